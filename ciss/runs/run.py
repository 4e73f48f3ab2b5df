"""A run, resolved: everything its training needs to know, checked before it starts."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ciss import config as configuration
from ciss import data, distributed, documents, paths
from ciss.config import Benchmark, Config, ConfigError, Increment, Phase
from ciss.data import Index
from ciss.data.loaders import stable_seed
from ciss.methods import Method, code_of, method_class
from ciss.models import Network, WeightsError, create_network, needs_two_images
from ciss.protocol import Classes
from ciss.store import code as store_code
from ciss.store.code import Closure
from ciss.store.files import CheckpointError
from ciss.store.weights import restore

PACE = ("workers", "cache")  # of `train`: they change no result


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
        """The method's name without its variant's."""
        return code_of(self.method)

    @property
    def title(self) -> str:
        """The method as tables call it: "mbs (adapted)" on a network that it was not published on."""
        home = method_class(self.code).decoder
        return self.method if home in (None, self.settings.model.decoder) else f"{self.method} (adapted)"

    @property
    def joint(self) -> bool:
        return method_class(self.code).sees_all

    @property
    def reached(self) -> int:
        """The last step whose classes the trained network knows."""
        return len(self.classes.groups) - 1 if self.joint else self.step

    @property
    def phase(self) -> Phase:
        return self.settings.train.increment if self.after else self.settings.train.base

    @property
    def new_classes(self) -> list[int]:
        """Raw ids that this step brings; none in a later step of the domain setting."""
        return self.classes.raw[self.classes.new(self.step)].tolist()

    @property
    def old_channels(self) -> int:
        """Channels of the predecessor's network, the background's included; 1 without a predecessor."""
        return self.classes.known(self.step - 1)

    @property
    def channel_groups(self) -> list[int]:
        """Channels of each group of the classifier, the first one with the background."""
        base, *later = self.classes.sizes[: self.reached + 1]
        return [len(self.classes)] if self.joint else [1 + base, *later]

    def build_method(self) -> Method:
        return method_class(self.code)(**self.coefficients)

    def build_network(self, steps: int | None = None, *, starting_weights: bool = True) -> Network:
        """The untrained network.

        Args: steps: increments whose classes it has (default: this run's); starting_weights: whether the encoder gets
        those of `model.weights` or `model.pretrained`. Without them no file is needed, and the same random numbers are
        drawn.
        """
        model = self.settings.model if starting_weights else replace(self.settings.model, pretrained=False)
        file = weight_file(self.settings) if starting_weights else None
        network = create_network(model, self.channel_groups[: None if steps is None else steps + 1], file)
        if self.build_method().needs_before_activation:
            network.return_before_activation()
        return network

    def normalise(self, images: Tensor, device: torch.device) -> Tensor:
        """Images (B,3,H,W) uint8 as the network of this run reads them: the one way for training and evaluation."""
        return data.normalise(
            images, device, self.settings.train.channels_last, data.input_statistics(self.settings.model)
        )

    def index(self) -> Index:
        """Raises DataError when it is missing, damaged, or made for other settings."""
        return Index.load(index_folder(self.root, self.benchmark), self.settings)

    def images(self, index: Index) -> list[int]:
        """Numbers of the training images this run sees."""
        return index.joint if self.joint else index.steps[self.step]

    def label_table(self, training: bool):
        """(256,) raw id -> position, as the network sees labels in training or as they are scored."""
        if training and not self.joint:
            return self.classes.label_table(self.step, self.settings.setting, training=True)
        return self.classes.label_table(self.reached, self.settings.setting, training=False)

    def description(self) -> dict:
        """What makes the weights, as stored beside them; not what only makes them sooner."""
        settings = json.loads(json.dumps(asdict(self.settings)))
        del settings["expects"]  # it changes notes, not results
        for name in PACE:
            del settings["train"][name]
        # By their values: a checkpoint from before this key, which had ImageNet's for every encoder, keeps opening.
        del settings["model"]["input_statistics"]
        if (statistics := data.input_statistics(self.settings.model)) != data.IMAGENET:
            settings["model"]["input_statistics"] = [list(values) for values in statistics]
        return {
            "benchmark": settings,
            "method": self.method,
            "coefficients": self.coefficients,
            "step": self.step,
            "seed": self.seed,
            "groups": self.classes.groups,
            "channels": self.channel_groups,
        }

    def differences(self, stored: dict) -> list[str]:
        """How a description that was stored with weights differs from this run's, in what makes the weights."""
        free = ["benchmark.evaluation", "benchmark.train.curve"]
        if self.after is None:
            free.append("benchmark.train.increment")
        wanted = json.loads(json.dumps(self.description()))
        return [line for line in documents.differences(stored, wanted) if not line.startswith(tuple(free))]

    def identity(self, fingerprint: str, teacher: str | None) -> dict:
        """What a stopped training shares with the one that goes on, and a finished one with what is asked for.

        Every parameter of the benchmark counts, `evaluation` too: results are part of a run. `fingerprint`: of the
        data; `teacher`: sha256 of the predecessor's checkpoint.
        """
        package = store_code.read(paths.project())
        shared = store_code.training_code(package, dataset=self.settings.dataset)
        return {
            "parameters": self.description(),
            "code": {"training": shared.digest, "method": self.training_code().digest},
            "data": fingerprint,
            "teacher": teacher,
            "torch": torch.__version__,
            "device": distributed.device().type,
        }

    def training_code(self) -> Closure:
        """The code that its results depend on, its method's included."""
        return store_code.training_code(store_code.read(paths.project()), (self.code,), self.settings.dataset)


def predecessor(run: Run) -> Path | None:
    """The checkpoint of the run that a run continues."""
    return run.folder.with_name(run.after) / "weights.safetensors" if run.after else None


def load_network(run: Run, device: torch.device, *, reader: Run | None = None) -> Network:
    """A run's trained network, frozen and in evaluation mode: the one way to open a checkpoint.

    The encoder's weight file is not needed, nor is network access.

    Args: reader: the run whose method reads the network's outputs (default: the run itself). Raises: CheckpointError
    where there is no checkpoint, and where it was made with other parameters than the run has now.
    """
    file = run.folder / "weights.safetensors"
    command = f"ciss train {run.name}"
    if run.config != "params.yaml":
        command += f" --config {run.config}"
    if not file.is_file():
        raise CheckpointError(f"{file}: {run.name} is not trained yet. Train it: dvc repro, or {command}")
    network = (reader or run).build_network(run.reached, starting_weights=False)
    if different := run.differences(restore(network, file)):
        raise CheckpointError(
            f"{file}: made with other parameters ({'; '.join(different)}). Restore them, or train it again: {command}"
        )
    return network.to(device).eval().requires_grad_(False)


def starting_network(run: Run, method: Method) -> Network:
    """The network at the start of a run's training, on the CPU; seeds torch's random numbers.

    In an incremental step: the predecessor's network, grown by the new classes as the method does it.
    """
    torch.manual_seed(stable_seed("weights", run.seed, run.reached))
    if run.after is None:
        return run.build_network()
    network = load_network(run.before, torch.device("cpu"), reader=run).requires_grad_(True)
    if run.new_classes:
        method.initialise(network, len(run.new_classes))
    return network


def digest(document: object) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def index_folder(root: Path, benchmark: str) -> Path:
    return root / "data" / "index" / benchmark


def report_folder(config: Config, *parts: str) -> Path:
    """A folder in `reports/`; made if missing. An analysis has `benchmarks/<benchmark>/<analysis>` for itself."""
    folder = (paths.project() / config.output).resolve().joinpath("reports", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def resolve(config: Config, name: str) -> Run:
    """A run by name. Raises ConfigError naming the known ones."""
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
    """The encoder's weight file, absolute: given so, or under the project or a data root."""
    if benchmark.model.weights is None:
        return None
    file = paths.project() / benchmark.model.weights
    if Path(benchmark.model.weights).is_absolute() or file.is_file():
        return file
    try:
        return paths.data_root(benchmark.model.weights)
    except FileNotFoundError as error:
        raise WeightsError(f"no such file under the project, and {error}; or change model.weights.") from None


def lone_image(benchmark: Benchmark, phase: Phase, images: int) -> bool:
    """Whether batches of so many `images` cannot be normalised: one image, where a layer has one value of it.

    `sync` normalises over the processes of a training on GPUs, and as `batch` without them.
    """
    synced = (
        phase.norm == "sync" and torch.cuda.is_available() and max(benchmark.train.processes, distributed.world()) > 1
    )
    if images != 1 or phase.norm == "frozen" or synced:
        return False
    return needs_two_images(benchmark.model, benchmark.train.crop) is not None
