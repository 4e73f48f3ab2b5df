"""A run knows everything its training needs, and what cannot work is refused before it starts."""

import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ciss import cli, protocol
from ciss.config import ConfigError
from ciss.data import DATASETS, DataError
from ciss.methods import METHODS
from ciss.runs import check as runs_check
from ciss.runs import results as runs_results
from ciss.runs.check import benchmark_name
from ciss.runs.run import Run, digest, report_folder, weight_file
from ciss.study.presets import load, presets
from ciss.training import loop

GROUPS = [[1, 2, 3, 4], [5, 6], [7, 8]]


def mistakes(project) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        runs_check.check(project.config)
    return str(caught.value).splitlines()


def test_a_benchmark_by_name(project):
    """The analyses of a misspelt one found no runs, and wrote empty tables and figures."""
    assert benchmark_name(project.config) == "tiny" == runs_check.benchmark_name(project.config, "tiny")
    with pytest.raises(ConfigError, match=r"there is no benchmark 'tinny'. Did you mean 'tiny'\?$"):
        runs_check.benchmark_name(project.config, "tinny")


@pytest.mark.parametrize(
    ("name", "channels", "step", "reached", "phase", "after"),
    [
        ("base", [5], 0, 0, "base", None),
        ("tune-1", [5, 2], 1, 1, "increment", "base"),
        ("tune-2", [5, 2, 2], 2, 2, "increment", "tune-1"),
        ("all", [9], 0, 2, "base", None),
    ],
)
def test_what_a_run_is(project, name, channels, step, reached, phase, after):
    run = project.run(name)
    assert run.classes.groups == GROUPS
    assert (run.channel_groups, run.step, run.last_known_step, run.after) == (channels, step, reached, after)
    assert run.phase == getattr(run.settings.train, phase)
    assert run.joint == (name == "all")
    network = run.build_network()
    assert network.channels == sum(channels)
    assert run.build_network(0).channels == channels[0]
    assert run.folder == project.folder / "runs" / "tiny" / name
    assert run.results == project.folder / "results" / "tiny" / name
    assert run.resume == project.folder / "runs" / ".resume" / "tiny" / name
    index = run.index()
    assert run.images(index) == (index.joint if name == "all" else index.steps[step])
    assert json.loads(json.dumps(run.description())) == run.description(), "stored beside the weights, as JSON"


def test_a_run_takes_its_coefficients(project):
    project.set("methods.mib", {"distillation": 3})
    assert project.run("mib-1").build_method().distillation == 3
    assert project.run("mib-1").coefficients == {"distillation": 3}


def test_output_moves_everything(project):
    project.set("benchmarks.tiny.limit", 20)
    project.document["output"] = "other/place"
    run, root = project.run(), project.folder / "other" / "place"
    assert (run.root, run.folder) == (root, root / "runs" / "tiny" / "base")
    assert report_folder(project.config, "a", "tiny") == root / "reports" / "a" / "tiny"
    assert (root / "reports" / "a" / "tiny").is_dir()


def test_an_unknown_run_is_named(project):
    with pytest.raises(ConfigError, match=r"params\.yaml: there is no run 'tune-3'\. Did you mean 'tune-[12]'\?"):
        project.run("tune-3")


def seen(table: np.ndarray) -> dict[int, int]:
    """Raw ids that are no background."""
    return {int(raw): int(table[raw]) for raw in np.flatnonzero(table)}


@pytest.mark.parametrize("setting", ["overlapped", "disjoint", "sequential", "partitioned"])
def test_labels_in_training_and_in_scoring(project, setting):
    project.set("benchmarks.tiny.setting", setting)
    project.set("benchmarks.tiny.order", [8, 7, 6, 5, 4, 3, 2, 1])
    position = {raw: 9 - raw for raw in range(1, 9)}
    everything = {**position, 255: 255}
    for step, (name, new) in enumerate({"base": [8, 7, 6, 5], "tune-1": [4, 3], "tune-2": [2, 1]}.items()):
        old = [8, 7, 6, 5, 4, 3][: (0, 4, 6)[step]]
        shown = [*old, *new] if setting == "sequential" else new
        run = project.run(name)
        assert seen(run.label_table(training=True)) == {**{raw: position[raw] for raw in shown}, 255: 255}
        assert seen(run.label_table(training=False)) == everything, "the metric decides what becomes of future classes"
    for training in (True, False):
        assert seen(project.run("all").label_table(training=training)) == everything


def test_classes_outside_the_benchmark_are_background(project):
    table = project.run("all").label_table(training=False)
    assert set(table[9:255]) == {0} and table[0] == 0


# --- what is refused


@pytest.mark.parametrize("name", presets())
def test_presets_are_right(project, name, monkeypatch):
    text = presets()[name].read_text()
    settings = json.loads(json.dumps(load(name)))
    settings.pop("runs", None)
    assert text.startswith("#") and "Source:" in text and "wall time" in text.lower()
    dataset = settings["dataset"]
    assert (name == dataset or name.startswith(f"{dataset}-")) and (settings["order"] is None or name == "voc8-order")
    if dataset not in DATASETS:  # a data set of one's own: everything else about it holds
        assert dataset == "own"
        dataset, settings["dataset"], settings["protocol"] = "voc", "voc", "15-1"
    named = "joint" if settings["setting"] == "domain" else settings["protocol"]
    groups = settings.get("groups") or protocol.class_groups(dataset, named, order=settings["order"])
    settings["model"].pop("weights", None)
    project.document["methods"] |= settings.pop("methods", {})  # coefficients of its own, checked with the rest
    project.document["benchmarks"]["tiny"] = settings
    project.document["ends"], project.document["chain"] = {}, {}
    resolved = project.run("base")
    assert resolved.classes.groups == groups
    assert resolved.settings.train.base.epochs == settings["train"]["base"]["epochs"]
    runs_check.check(project.config)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("benchmarks.tiny.dataset", "shape", "benchmarks.tiny.dataset: no data set 'shape'. Did you mean 'shapes'?"),
        ("benchmarks.tiny.dataset", "kitti", "benchmarks.tiny.dataset: no data set 'kitti'. There are: "),
        (
            "benchmarks.tiny.protocol",
            "4-3",
            "benchmarks.tiny.protocol: shapes 4-3: the 4 classes after the base do not divide",
        ),
        ("benchmarks.tiny.protocol", "four-two", "benchmarks.tiny.protocol: unknown protocol 'four-two'; shapes has"),
        (
            "benchmarks.tiny.order",
            [1, 2, 3],
            "benchmarks.tiny.order: the order is no permutation of the 8 classes of shapes",
        ),
        ("benchmarks.tiny.protocol", "4-4", "chain.tune-2.step: 2, but tiny ends with step 1. Remove it."),
        ("benchmarks.tiny.model.encoder", "ciss_tin", "benchmarks.tiny.model.encoder: timm has no encoder 'ciss_tin'"),
        ("methods.mb", {}, "methods.mb: no such method. Did you mean 'mib'? Or remove the section."),
        ("methods.mib", {"distilation": 1}, "methods.mib.distilation: unknown key. Did you mean 'distillation'?"),
        ("methods.mib", {"alpha": "1"}, "methods.mib.alpha: found '1', but it should be a valid number."),
        ("methods.mib", {"alpha": True}, "methods.mib.alpha: found True, but it should be a valid number."),
        ("methods.mib", {"alpha": float("nan")}, "methods.mib.alpha: found nan, but it should be a finite number."),
        ("methods.mib", {"alpha": -1}, "methods.mib.alpha: found -1, but it should be greater than or equal to 0."),
        ("methods.finetune", {"x": 1}, "methods.finetune.x: unknown key. There are: memory."),
        ("bases.base.method", "joint", "bases.base.method: joint belongs under joints. Move it."),
        ("joints.all.method", "mib", "joints.all.method: mib belongs under bases. Move it."),
        ("chain.mib-1.method", "joint", "chain.mib-1.method: joint sees all classes at once. Name it under joints."),
    ],
)
def test_what_cannot_work_is_named(project, key, value, line):
    runs_check.check(project.config)
    project.set(key, value)
    (found,) = mistakes(project)
    assert found.startswith(f"params.yaml: {line}")


@pytest.mark.parametrize(("encoder", "stride"), [("resnet18", 4), ("swin_tiny_patch4_window7_224", 16)])
def test_encoders_that_timm_cannot_make(project, encoder, stride):
    project.set("benchmarks.tiny.model.encoder", encoder)
    project.set("benchmarks.tiny.model.output_stride", stride)
    (line,) = mistakes(project)
    assert line.startswith(f"params.yaml: benchmarks.tiny.model.encoder: timm cannot make encoder '{encoder}'")


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"encoder": "vit_tiny_patch16_224"}, "encoder: vit_tiny_patch16_224 has patches of 16 pixels. Set model.out"),
        ({"encoder": "resnet18", "output_stride": 16, "image_size": 64}, "encoder: resnet18 has no grid of positions."),
        ({"encoder": "naflexvit_base_patch16_gap", "output_stride": 16}, "encoder: "),
        ({"decoder": "mask_transformer", "width": 64, "heads": 5}, "width: width 64 does not divide into 5 heads."),
        ({"decoder": "mask_transformers"}, "decoder: found 'mask_transformers', but it should be 'deeplabv3' or"),
    ],
)
def test_networks_that_cannot_be_are_named(project, model, line):
    for key, value in model.items():
        project.set(f"benchmarks.tiny.model.{key}", value)
    (found,) = mistakes(project)
    assert found.startswith(f"params.yaml: benchmarks.tiny.model.{line}")


@pytest.mark.parametrize("place", ["project", "data", "absolute"])
def test_weight_files_are_found_and_fit(project, tmp_path, monkeypatch, place):
    folder = {"project": project.folder, "data": tmp_path / "sets", "absolute": tmp_path / "anywhere"}[place]
    (folder / "weights").mkdir(parents=True)
    save_file(encoder("resnet18"), folder / "weights" / "r.safetensors")
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "sets"))
    (tmp_path / "sets" / "weights").mkdir(parents=True, exist_ok=True)
    project.set("benchmarks.tiny.model.encoder", "resnet18")
    project.set("benchmarks.tiny.model.output_stride", 8)
    name = "weights/r.safetensors"
    project.set("benchmarks.tiny.model.weights", str(folder / name) if place == "absolute" else name)
    runs_check.check(project.config)
    assert weight_file(project.config.benchmarks["tiny"]) == folder / name


def encoder(name: str) -> dict[str, torch.Tensor]:
    return timm.create_model(name).state_dict()


def test_weight_files_that_are_missing_or_foreign(project, tmp_path):
    key = "benchmarks.tiny.model.weights"
    for name in ("weights/none.safetensors", ".", "weights"):
        project.set(key, name)
        (line,) = mistakes(project)
        assert line.startswith(f"params.yaml: {key}: ") and "change model.weights" in line and name in line
    absent = tmp_path / "absent.safetensors"
    project.set(key, str(absent))
    remedy = "there is no such weight file. Put it there, or change model.weights."
    assert mistakes(project) == [f"params.yaml: {key}: {absent}: {remedy}"]
    foreign, torn = tmp_path / "foreign.safetensors", tmp_path / "torn.safetensors"
    save_file({"conv.weight": torch.zeros(2)}, foreign)
    torn.write_bytes(foreign.read_bytes()[:20])
    for file, words in (
        (foreign, ["not the weights of ciss_tiny", "Change model.encoder or model.weights"]),
        (torn, ["cannot be read", "Fetch it again"]),
    ):
        project.set(key, str(file))
        (line,) = mistakes(project)
        assert line.startswith(f"params.yaml: {key}: {file}: ") and all(word in line for word in words)


def test_weights_come_from_one_place(project, tmp_path):
    key = "benchmarks.tiny.model.pretrained"
    project.set(key, True)
    assert mistakes(project) == [f"params.yaml: {key}: there are no weights of ciss_tiny to fetch. Set this to false."]
    file = tmp_path / "own.safetensors"
    save_file(encoder("ciss_tiny"), file)
    project.set("benchmarks.tiny.model.weights", str(file))
    assert mistakes(project) == [
        f"params.yaml: {key}: model.weights names a file. Set this to false, or weights to null."
    ]
    project.set(key, False)
    runs_check.check(project.config)


def test_every_mistake_is_shown(project):
    project.set("methods.mib", {"alpha": -1, "beta": 1})
    project.set("benchmarks.tiny.protocol", "4-3")
    project.set("benchmarks.tiny.model.encoder", "nothing")
    project.set("bases.base.method", "joint")
    assert [line.split(": ")[1] for line in mistakes(project)] == [
        "methods.mib.alpha",
        "methods.mib.beta",
        "benchmarks.tiny.protocol",
        "benchmarks.tiny.model.encoder",
        "bases.base.method",
    ]


VALUES = {
    "benchmarks.tiny.dataset": ["voc", "voc8", "ade20k", "x", ""],
    "benchmarks.tiny.protocol": ["joint", "8-0", "1-1", "", "7-1", "4_2"],
    "benchmarks.tiny.order": [None, [1], [8, 7, 6, 5, 4, 3, 2, 1], [9] * 8],
    "benchmarks.tiny.model.encoder": ["resnet18", "vit_tiny_patch16_224", "x", "*", "resnet18.", "hf_hub:x/y"],
    "benchmarks.tiny.model.output_stride": [8, 32],
    "benchmarks.tiny.model.weights": [None, "x", "/", "..", "a\0b"],
    "benchmarks.tiny.model.pretrained": [True],
    "methods.mib": [{}, {"alpha": None}, {"alpha": [1]}, {"initialisation": "x"}, {"": 1}],
    "bases.base.method": ["mib", "joint"],
    "joints.all.method": ["finetune"],
}
EDITS = [(key, value) for key, values in VALUES.items() for value in values]


@given(edits=st.lists(st.sampled_from(EDITS), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_valid_file_is_accepted_or_explained(project, edits):
    before = json.dumps(project.document)
    for key, value in edits:
        project.set(key, value)
    try:
        runs_check.check(project.config)
        for name in project.config.runs():
            project.run(name).build_method()
    except ConfigError as error:
        assert all(line.startswith("params.yaml: ") for line in str(error).splitlines())
    finally:
        project.document = json.loads(before)


# --- what a stopped training shares to go on


def key_of(run: Run, fingerprint: str = "data", teacher: str | None = None) -> str:
    return digest(run.identity(fingerprint, teacher))


def test_the_key_changes_with_what_makes_a_run(project):
    def key(name="mib-1", fingerprint="data", teacher="weights") -> str:
        return key_of(project.run(name), fingerprint, teacher)

    first, fine, every = key(), key("tune-1"), key("all")
    assert key() == first and len({first, fine, every, key("tune-2"), key("base")}) == 5
    assert first not in (key(fingerprint="other"), key(teacher="other"), key(teacher=None))
    before = json.dumps(project.document)
    for name, value in (
        ("methods.mib", {"distillation": 9.0}),
        ("train.batch", 3),
        ("train.increment.lr", 0.03),
        ("train.augment_on", "device"),  # another device rounds otherwise
        ("benchmarks.tiny.evaluation.samples", 1),  # results are part of a run
        ("benchmarks.tiny.order", [2, 1, 3, 4, 5, 6, 7, 8]),
    ):
        project.set(name, value)
        assert key() != first, name
        assert (key("tune-1") == fine) == name.startswith("methods"), "another method's coefficients do not count"
        project.document = json.loads(before)
    for name, value in (("train.workers", 3), ("train.cache", True)):
        project.set(name, value)
    assert key() == first, "a training that ran out of memory goes on with fewer loader processes"
    assert "augment_on" not in project.run().description()["benchmark"]["train"], "older checkpoints have no such key"
    project.document = json.loads(before)
    for name in ("bases.base.seed", "chain.tune-1.seed", "chain.tune-2.seed", "chain.mib-1.seed"):
        project.set(name, 1)
    assert key() != first and key("tune-1") != fine and key("all") == every


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mib-1", {"methods.mib.MiB"}),
        ("tune-1", {"methods.finetune.Finetune"}),
        ("all", {"methods.joint.Joint", "methods.finetune.Finetune"}),
    ],
)
def test_the_key_is_of_the_code_of_its_method(project, name, wanted):
    """Joint training learns like fine-tuning. Other methods, figures and analyses do not count."""
    places = set(project.run(name).training_code().locations().values())
    methods = {kind.__module__.removeprefix("ciss.") + "." + kind.__name__ for kind in METHODS.values()}
    assert places & methods == wanted
    assert {"training.loop.train", "methods.base.Method", "data.sets.shapes.DATASET"} <= places
    assert not [place for place in places if place.startswith(("analysis.", "study.", "inspection.", "paths."))]


def test_the_key_changes_with_the_code(project, frozen_code):
    (project.folder / "ciss").unlink()
    package = shutil.copytree(frozen_code, project.folder / "ciss")
    file = package / "methods" / "mib.py"
    first = key_of(project.run("mib-1"))
    file.write_text(file.read_text() + "\n# a comment\nUNUSED = 1\n")
    assert key_of(project.run("mib-1")) == first
    file.write_text(file.read_text().replace("10.0", "11.0"))
    assert key_of(project.run("mib-1")) != first


def test_the_functions_that_changed_are_named(project, frozen_code):
    """A result of other code says which of it, by name."""
    loop.train(project.run())
    run = project.run()
    assert runs_results.outdated(run, loop.training_identity(run, run.index())) == []
    (project.folder / "ciss").unlink()
    package = shutil.copytree(frozen_code, project.folder / "ciss")
    for name, old, new in (
        ("training/log.py", "CHECK_EVERY = 50", "CHECK_EVERY = 51"),
        ("methods/finetune.py", "return self", "return +self"),
        ("methods/mib.py", "10.0", "11.0"),
    ):
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))
    found = runs_results.outdated(run, loop.training_identity(run, run.index()))
    assert found == ["code: training.log.CHECK_EVERY, methods.finetune.Finetune"]
    (run.results / "code.txt").write_text("")
    (different,) = runs_results.outdated(run, loop.training_identity(run, run.index()))
    assert re.fullmatch(r"code: (\S+, ){5}and \d+ more", different)
    (run.results / "code.txt").unlink()
    assert runs_results.outdated(run, loop.training_identity(run, run.index())) == ["code"]


def test_a_method_is_found_by_the_name_of_its_file():
    for name, kind in METHODS.items():
        assert kind.__module__ == f"ciss.methods.{name}", "a stage depends on the file of the method's name"


# --- an index that does not fit


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("protocol", "4-4", "made for protocol 4-2, not 4-4"),
        ("setting", "disjoint", "made for setting overlapped, not disjoint"),
        ("holdout", 5, "made for holdout 4, not 5"),
        ("limit", 20, "made for limit 0, not 20"),
        ("order", [8, 7, 6, 5, 4, 3, 2, 1], "made for order None, not [8, 7, 6, 5, 4, 3, 2, 1]"),
    ],
)
def test_an_index_made_for_other_settings(project, key, value, words):
    project.document.update(chain={}, ends={})
    project.set("train.batch", 3)  # decides nothing about images
    project.run().index()
    project.set(f"benchmarks.tiny.{key}", value)
    with pytest.raises(DataError) as caught:
        project.run().index()
    file = project.folder / "data" / "index" / "tiny" / "index.json"
    assert str(caught.value) == f"{file}: {words}. Delete it, and run: dvc repro prepare@tiny"
    project.prepare()
    project.run().index()


def test_a_missing_or_damaged_index(project):
    file = project.folder / "data" / "index" / "tiny" / "index.json"
    text = file.read_text()
    for damage in (b"", text[:-20].encode(), b"[]", b"{}", b"\xff", b'{"steps": []}'):
        file.write_bytes(damage)
        with pytest.raises(DataError) as caught:
            project.run().index()
        assert str(caught.value).startswith(f"{file}: damaged (")
        assert str(caught.value).endswith("Run: dvc repro -f -s prepare@tiny")
    file.unlink()
    with pytest.raises(DataError) as caught:
        project.run().index()
    assert str(caught.value) == f"{file}: the data are not prepared. Run: dvc repro prepare@tiny"


# --- the command line


def test_the_commands_give_one_message(project):
    """A typo, a chain in disorder, a foreign weight file: one error each, nothing written."""
    file = project.folder / "foreign.safetensors"
    save_file({"conv.weight": torch.zeros(2)}, file)
    project.set("benchmarks.tiny.model.weights", "foreign.safetensors")
    project.write()
    keep = project.folder / "results" / "tiny" / "gone" / "result.json"
    keep.parent.mkdir(parents=True)
    keep.write_text("{}")
    (project.folder / "typo.yaml").write_text("benchmarks: {}\nmethds: {}\n")
    before = sorted(project.folder.rglob("*"))
    check = [f"params.yaml: benchmarks.tiny.model.weights: {file}: not the weights of ciss_tiny", "Change"]
    typo = ["line 1: benchmarks: found {}", "typo.yaml: bases: this key is missing", "Did you mean 'methods'?"]
    for command, lines in ((["plan", "--check"], check), (["train", "base", "--config", "typo.yaml"], typo)):
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        message = str(caught.value)
        assert message.startswith("error: ") and message.count("error: ") == 1
        assert all(line in message for line in lines), message
    assert sorted(project.folder.rglob("*")) == before


def command(capsys, *arguments: str) -> str:
    """What `ciss train` says when it gives up."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *arguments])
    assert capsys.readouterr().err == ""
    message = str(caught.value)
    assert message.startswith("error: ") and "Traceback" not in message
    return message.removeprefix("error: ")


def test_the_engine_says_what_lacks(project, monkeypatch, capsys):
    project.write()
    weights = project.folder / "runs" / "tiny" / "base" / "weights.safetensors"
    assert command(capsys, "tune-1").startswith(f"{weights}: there is no such checkpoint. Train it: ")
    assert command(capsys, "tune-9").startswith("params.yaml: there is no run 'tune-9'. Did you mean")
    assert command(capsys, "base", "--config", "other.yaml").startswith(
        f"{project.folder / 'other.yaml'}: there is no such file. Write one with"
    )
    project.set("chain.tune-2.after", "base")
    project.write()
    message = r"params.yaml: line \d+: chain.tune-2.step: 2 cannot follow step 0 of 'base'. Make it 1."
    assert re.fullmatch(message, command(capsys, "base"))
    assert not weights.parent.exists()


def test_data_that_break_after_they_were_prepared(project, tiny_data, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(tiny_data, tmp_path / "sets")
    monkeypatch.setenv("CISS_DATA", str(data))
    project.write()
    result = project.run("base").results / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"key": "earlier"}')
    for image in (data / "shapes" / "JPEGImages").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:200])
    message = command(capsys, "base")
    assert "JPEGImages" in message and "changed since the data were prepared" in message
    assert message.endswith("Run: dvc repro -f prepare") and len(message.splitlines()) == 1
    shutil.rmtree(data / "shapes" / "SegmentationClassAug")
    message = command(capsys, "base")
    assert message.startswith(f"{data / 'shapes'}: no folder SegmentationClassAug or SegmentationClass. Put the masks")
    assert result.read_text() == '{"key": "earlier"}'


def test_input_statistics_in_the_description(project):
    """By their values, and only where they are not ImageNet's: checkpoints from before the key keep opening."""
    project.set("benchmarks.tiny.model", {"encoder": "vit_tiny_patch16_224", "output_stride": 16, "pretrained": True})
    run = project.run()
    found = run.description()["benchmark"]["model"]
    assert found["input_statistics"] == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    images = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert run.normalise(images, torch.device("cpu")).flatten().tolist() == [1, 1, 1]
    for key, value in (("input_statistics", "imagenet"), ("pretrained", False), ("encoder", "resnet18")):
        project.set("benchmarks.tiny.model", {"encoder": "vit_tiny_patch16_224", "pretrained": True, key: value})
        assert "input_statistics" not in project.run().description()["benchmark"]["model"]
