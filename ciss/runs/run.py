"""A run with all parameters of its training, and the one way to open its network."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ciss import config as configuration
from ciss import data, distributed, documents, paths
from ciss.config import Benchmark, Config, ConfigError, Increment, Phase
from ciss.data import Index, normalisation, saliency
from ciss.data.loaders import stable_seed
from ciss.data.stored import Memory
from ciss.methods import Method, code_of, method_class
from ciss.models import Extra, Network, WeightsError, create_network, needs_two_images, packages
from ciss.protocol import Classes
from ciss.store import code as store_code
from ciss.store.code import Closure
from ciss.store.files import CheckpointError
from ciss.store.weights import restore

SPEED_KEYS = ("workers", "cache")  # keys of `train` that change no result


@dataclass(frozen=True)
class Run:
    """One training of one benchmark and seed. `classes`: those of the benchmark."""

    name: str
    benchmark: str
    settings: Benchmark
    method: str
    coefficients: dict
    step: int
    seed: int
    after: str | None
    classes: Classes
    root: Path
    config: str = "params.yaml"  # the file that it is from
    before: "Run | None" = None  # the run that it continues

    @property
    def folder(self) -> Path:
        """The checkpoint and its losses: what later steps depend on."""
        return self.root / "runs" / self.benchmark / self.name

    @property
    def results(self) -> Path:
        """Small files for the analyses."""
        return self.root / "results" / self.benchmark / self.name

    @property
    def resume(self) -> Path:
        return self.root / "runs" / ".resume" / self.benchmark / self.name

    @property
    def code(self) -> str:
        """The method's name without that of its variant."""
        return code_of(self.method)

    @property
    def title(self) -> str:
        """The method in tables: "mbs (adapted)" with another decoder than the published one, "(own base)" where it does
        not share the base step of the others, "mib-M (100 stored images)" with memory."""
        method = self.build_method()
        remarks = [] if method.decoder in (None, self.settings.model.decoder) else ["adapted"]
        remarks += ["own base"] * (method.own_base is not None) + method.remarks
        remarks += [f"{self.memory.images} stored images"] if self.memory else []
        name = name_in_tables(self.method, self.memory)
        return f"{name} ({', '.join(remarks)})" if remarks else name

    @property
    def memory(self) -> Memory | None:
        """The stored images that the run draws from; None: none."""
        return self.build_method().memory if self.after and not self.joint else None

    @property
    def joint(self) -> bool:
        return method_class(self.code).sees_all

    @property
    def last_known_step(self) -> int:
        """The last step whose classes the trained network knows."""
        return len(self.classes.groups) - 1 if self.joint else self.step

    @property
    def phase(self) -> Phase:
        return self.settings.train.increment if self.after else self.settings.train.base

    @property
    def epochs(self) -> int:
        """Epochs of the training; 0 for an increment that `Method.start` makes."""
        return self.build_method().epochs(self.phase) if self.after else self.phase.epochs

    @property
    def old_channels(self) -> int:
        """Channels of the predecessor's network, the background's included; 1 in a base step.

        `Batch.old_channels` is 0 there.
        """
        return self.classes.known(self.step - 1)

    @property
    def channel_groups(self) -> list[int]:
        """Channels of each group of the classifier, the first one with the background."""
        base, *later = self.classes.sizes[: self.last_known_step + 1]
        return [len(self.classes)] if self.joint else [1 + base, *later]

    def build_method(self) -> Method:
        return method_class(self.code)(**self.coefficients)

    def extras(self, steps: int | None = None) -> dict[str, Extra]:
        """What the network has beside its classes after a step (None: this run's), see `Method.extras`."""
        return self.build_method().extras(self.classes.sizes, self.last_known_step if steps is None else steps)

    def build_network(
        self, steps: int | None = None, *, starting_weights: bool = True, reader: "Run | None" = None
    ) -> Network:
        """The untrained network.

        Args:
            steps: last step whose classes it has; None: this run's.
            reader: the run whose method reads the network's outputs; None: this run.
            starting_weights: whether the encoder gets those of `model.weights` or `model.pretrained`. Without them no
                file is needed. The same random numbers are drawn.
        """
        model = self.settings.model if starting_weights else replace(self.settings.model, pretrained=False)
        file = weight_file(self.settings) if starting_weights else None
        groups = self.channel_groups[: None if steps is None else steps + 1]
        network = create_network(model, groups, file, self.extras(steps))
        network.prediction = self.build_method().prediction
        if (reader or self).build_method().needs_before_activation:
            network.return_before_activation()
        return network

    def normalise(self, images: Tensor, device: torch.device) -> Tensor:
        """Normalises images (B,3,H,W) uint8, in the same way for training and evaluation."""
        statistics = normalisation.input_statistics(self.settings.model)
        return normalisation.normalise(images, device, self.settings.train.channels_last, statistics)

    def index(self) -> Index:
        """The index of the benchmark. Raises DataError if it is missing, damaged, or made for other settings."""
        return Index.load(index_folder(self.root, self.benchmark), self.settings)

    def images(self, index: Index) -> list[int]:
        """Numbers of this run's training images."""
        return index.joint if self.joint else index.steps[self.step]

    def label_table(self, training: bool, stored: bool = False):
        """(256,) raw id -> position, for training or for scoring. `stored`: for stored images."""
        setting = self.settings.setting
        if stored and self.memory.labels == "seen":
            setting = "sequential"  # in which labels of earlier classes stay
        return self.classes.label_table(self.step, setting, training=training and not self.joint)

    def description(self) -> dict:
        """The parameters that determine the weights, which are stored with them."""
        settings = json.loads(json.dumps(asdict(self.settings)))
        del settings["expects"]  # for messages about the data only
        for name in SPEED_KEYS:
            del settings["train"][name]
        if self.settings.train.augment_on == "cpu":  # stored only if it differs from checkpoints without this key
            del settings["train"]["augment_on"]
        if not self.settings.train.portable:  # likewise
            del settings["train"]["portable"]
        # Stored only if they differ from ImageNet's, which checkpoints without this key were trained with.
        del settings["model"]["input_statistics"]
        if (statistics := normalisation.input_statistics(self.settings.model)) != normalisation.IMAGENET:
            settings["model"]["input_statistics"] = [list(values) for values in statistics]
        # Stored only if there are any, as above.
        rows = {"extras": {name: extra.rows for name, extra in extras.items()}} if (extras := self.extras()) else {}
        if (rule := self.build_method().prediction) != "learnt":
            rows["prediction"] = rule
        return {
            **rows,
            "benchmark": settings,
            "method": self.method,
            "coefficients": self.coefficients,
            "step": self.step,
            "seed": self.seed,
            "groups": self.classes.groups,
            "channels": self.channel_groups,
        }

    def differences(self, stored: dict) -> list[str]:
        """How a stored description differs from this run's, in parameters that determine the weights."""
        free = ["benchmark.evaluation", "benchmark.train.curve"]
        if self.after is None:
            free.append("benchmark.train.increment")
        wanted = json.loads(json.dumps(self.description()))
        return [line for line in documents.differences(stored, wanted) if not line.startswith(tuple(free))]

    def identity(self, fingerprint: str, teacher: str | None) -> dict:
        """The values that a stopped or finished training must share with this run to be used.

        Parameters of `evaluation` count, too, because results are part of a run.

        Args:
            fingerprint: of the data.
            teacher: sha256 of the predecessor's checkpoint; None: no predecessor.
        """
        package = store_code.read(paths.project())
        shared = store_code.training_code(package, dataset=self.settings.dataset)
        return {
            "parameters": self.description(),
            "code": {"training": shared.digest, "method": self.training_code().digest},
            "data": self._with_saliency_maps(fingerprint),
            "teacher": teacher,
            "torch": torch.__version__,
            "device": distributed.device().type,
        }

    def _with_saliency_maps(self, fingerprint: str) -> str:
        """The fingerprint of the data with that of the saliency maps, for a method that reads them."""
        if not self.build_method().reads_saliency:
            return fingerprint
        return digest([fingerprint, saliency.digest(self.index().pairs("train"))])

    def training_code(self) -> Closure:
        """The code that its results depend on, with that of its method."""
        return store_code.training_code(store_code.read(paths.project()), (self.code,), self.settings.dataset)


def name_in_tables(method: str, memory: Memory | None) -> str:
    """The name of a section under `methods`; with memory it ends in -M: `mib-memory` is mib-M."""
    return f"{method.replace('-memory', '')}-M" if memory else method


def predecessor(run: Run) -> Path | None:
    """The checkpoint of the run that a run continues."""
    return run.folder.with_name(run.after) / "weights.safetensors" if run.after else None


def load_network(run: Run, device: torch.device, *, reader: Run | None = None) -> Network:
    """A run's trained network, frozen and in evaluation mode. Needs neither weight file nor network access.

    Args:
        reader: the run whose method reads the network's outputs; None: the run itself.

    Raises CheckpointError if there is no checkpoint, or if it was made with other parameters.
    """
    file = run.folder / "weights.safetensors"
    command = f"ciss train {run.name}"
    if run.config != "params.yaml":
        command += f" --config {run.config}"
    if not file.is_file():
        raise CheckpointError(f"{file}: {run.name} is not trained yet. Train it: dvc repro, or {command}")
    network = run.build_network(starting_weights=False, reader=reader)
    if different := run.differences(restore(network, file)):
        raise CheckpointError(
            f"{file}: made with other parameters ({'; '.join(different)}). Restore them, or train it again: {command}"
        )
    return network.to(device).eval().requires_grad_(False)


def starting_network(run: Run, method: Method) -> Network:
    """The network at the start of a training, on the CPU: in an increment the predecessor's with the new classes.

    Seeds torch's random numbers.
    """
    torch.manual_seed(stable_seed("weights", run.seed, run.last_known_step))
    if run.after is None:
        return run.build_network()
    network = load_network(run.before, torch.device("cpu"), reader=run).requires_grad_(True)
    if extras := run.extras(run.step - 1):  # a shared base step has none
        network.decoder.add_extras(extras)
    network.prediction = method.prediction
    if new := len(run.classes.new(run.step)):  # a later step of the domain setting brings none
        method.initialise(network, new)
    return network


def digest(document: object) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def index_folder(root: Path, benchmark: str) -> Path:
    return root / "data" / "index" / benchmark


def report_folder(config: Config, *parts: str) -> Path:
    """A folder in `reports/`, created if missing."""
    folder = (paths.project() / config.output).resolve().joinpath("reports", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def resolve(config: Config, name: str) -> Run:
    """A run by name. Raises ConfigError for an unknown name."""
    runs = config.runs()
    if name not in runs:
        raise ConfigError(f"{config.file}: there is no run {name!r}. {configuration.choose(name, runs)}")
    run = runs[name]
    benchmark = config.benchmarks[run.benchmark]
    increment = isinstance(run, Increment)
    return Run(
        name=name,
        benchmark=run.benchmark,
        settings=benchmark,
        method=run.method,
        coefficients=config.methods[run.method],
        step=run.step if increment else 0,
        seed=run.seed,
        after=run.after if increment else None,
        classes=classes_of(benchmark, f"{config.file}: benchmarks.{run.benchmark}"),
        root=(paths.project() / config.output).resolve(),
        config=config.file,
        before=resolve(config, run.after) if increment else None,
    )


def classes_of(benchmark: Benchmark, place: str) -> Classes:
    """The classes of a benchmark, see `ciss.data.classes_of`. Raises ConfigError naming the key."""
    try:
        return data.classes_of(benchmark)
    except data.ChoiceError as error:
        raise ConfigError(f"{place}.{error.key}: {error}") from None


def steps(benchmark: Benchmark, place: str) -> int:
    """Number of steps, the base step included. Raises ConfigError naming the key."""
    try:
        return data.step_count(benchmark)
    except data.ChoiceError as error:
        raise ConfigError(f"{place}.{error.key}: {error}") from None
    except (FileNotFoundError, data.DataError) as error:  # domains are folders
        raise ConfigError(f"{place}.dataset: {error}") from None


def weight_file(benchmark: Benchmark) -> Path | None:
    """The absolute path of the encoder's weight file: of a package, or looked up in the project and the data roots."""
    if benchmark.model.weights is None:
        return None
    if benchmark.model.weights.startswith(packages.PREFIX):
        return packages.package_file(benchmark.model.weights)
    file = paths.project() / benchmark.model.weights
    if Path(benchmark.model.weights).is_absolute() or file.is_file():
        return file
    try:
        return paths.data_root(benchmark.model.weights)
    except FileNotFoundError as error:
        raise WeightsError(f"no such file under the project, and {error}; or change model.weights.") from None


def lone_image(benchmark: Benchmark, phase: Phase, images: int) -> bool:
    """Whether a batch of so many `images` in all processes together cannot be normalised: one image, where a layer has
    one value per channel."""
    if images != 1 or phase.norm == "frozen":
        return False
    return needs_two_images(benchmark.model, benchmark.train.crop) is not None
