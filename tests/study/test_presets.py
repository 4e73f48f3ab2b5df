"""The presets: they hold the papers' numbers, and say where these are from and what to expect.

That a preset can be planned and run is held in tests/runs/test_runs.py, MBS's numbers in tests/methods/test_mbs.py.
"""

import json
import re
from dataclasses import asdict

import pytest

from ciss import protocol
from ciss.methods import METHODS, code_of
from ciss.methods.gsc import GSC
from ciss.study import presets
from tests.helpers.plans import load

NAMES = sorted(presets.presets())
PAPERS = [name for name in NAMES if not name.startswith(("shapes", "voc8", "camvid", "own"))]
# Epochs and rates of base step and increments, images in all, rate of the encoder as a multiple, pixels
FURTHER = {
    "voc-dkd": (60, 0.01, 60, 0.001, 32, 0.1, 512),
    "ade20k-dkd": (100, 0.025, 100, 0.0025, 24, 0.1, 512),
    "voc-ssul": (50, 0.01, 50, 0.01, 32, 0.1, 513),
    "ade20k-ssul": (100, 0.05, 100, 0.05, 24, 0.1, 513),
    "voc-ewf": (30, 0.01, 30, 0.001, 24, 1.0, 512),
    "ade20k-ewf": (60, 0.01, 60, 0.001, 48, 1.0, 512),
    "voc-select": (32, 0.001, 32, 0.0001, 16, 1.0, 512),
    "ade20k-select": (64, 0.001, 64, 0.0005, 8, 1.0, 512),
    "voc-fixbc": (30, 0.02, 30, 0.0005, 24, 1.0, 512),
    "voc-ridge": (30, 0.01, 30, 0.001, 24, 1.0, 513),
    "ade20k-fixbc": (30, 0.02, 60, 0.1, 24, 1.0, 512),
}
FAMILY = [name for name in PAPERS if name not in FURTHER and not name.endswith("-mbs")]  # MiB's, PLOP's, GSC's schedule
EPOCHS = {"voc": 30, "ade20k": 60, "cityscapes": 50}
PROTOCOLS = "voc:15-1 voc-gsc:15-1 voc-mbs:15-1 ade20k:100-50 ade20k-gsc:100-50 ade20k-mbs:100-50 cityscapes:13-1"
PROTOCOLS += " cityscapes-gsc:14-1 cityscapes-domain:11-5 camvid:6-5 own:1-1"
PROTOCOLS = dict(pair.split(":") for pair in PROTOCOLS.split())
PROTOCOLS |= {name: PROTOCOLS[name.partition("-")[0]] for name in FURTHER}
# every protocol in the head comment
EXPECTED = {
    "voc": ("15-1", "15-5", "19-1", "10-1"),
    "voc-gsc": ("15-1", "15-5", "19-1", "10-1"),
    "voc-mbs": ("15-1", "15-5", "19-1", "10-1", "5-3"),
    "voc-dkd": ("15-1", "15-5", "19-1"),
    "voc-ssul": ("15-1", "15-5", "19-1"),
    "voc-ridge": ("15-1", "10-1"),
    "ade20k": ("100-50", "100-10", "50-50", "100-5"),
    "ade20k-gsc": ("100-50", "100-10", "50-50"),
    "ade20k-mbs": ("100-50", "100-10", "50-50", "100-5"),
}
RELATIONS = {"soft": 0.3, "sharp": 0.1}
ADE20K = {"pod": 0.001, "pod_outputs": 0.00001}
CITYSCAPES = {"pod": 0.0001, "pod_outputs": 0.0001}
MBS = {"distillation": 50.0}
COEFFICIENTS = {
    "voc": {},
    "voc-gsc": {"gsc": {**RELATIONS, "pod": 0.01, "pod_outputs": 0.0005}},
    "ade20k": {"plop": ADE20K, "gsc": ADE20K, "mbs": MBS, "gsc_mbs": MBS},
    "ade20k-gsc": {"gsc": RELATIONS | ADE20K},
    "cityscapes": {"plop": CITYSCAPES, "gsc": CITYSCAPES},
    "cityscapes-gsc": {"gsc": RELATIONS | CITYSCAPES},
    "cityscapes-domain": {
        "plop": {"pseudo_labels": False, "initialisation": "default", **CITYSCAPES},
        # without a new class, every weight of the compensation would be 1
        "gsc": {"compensation": False, "relabelling": "none", "initialisation": "default", **CITYSCAPES},
    },
}


def head(name: str) -> list[str]:
    """Lines of the head comment, without their mark."""
    lines = presets.presets()[name].read_text(encoding="utf-8").splitlines()
    number = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert lines[number].startswith(("dataset: ", "like: "))
    return [line.removeprefix("# ") for line in lines[:number]]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_benchmark_with_known_coefficients(name):
    benchmark, methods = load(name)
    assert benchmark.dataset in protocol.DATASETS or name == "own"
    assert benchmark.limit == 0 and (name.startswith("voc8-") or benchmark.order is benchmark.groups is None)
    for method, values in methods.items():
        assert json.loads(json.dumps(asdict(METHODS[code_of(method)](**values)))).items() >= values.items()


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_it_is_from_and_what_to_expect(name):
    text = "\n".join(head(name))
    for word in ("Source: ", "Expected|Result", "[Ww]all time"):
        assert re.search(word, text), word
    assert not re.search(r"https?://|/(home|work|tmp)/", text)
    assert all(len(line) <= 120 for line in presets.presets()[name].read_text(encoding="utf-8").splitlines())
    if name in PAPERS:
        assert "Not run by this project." in text.replace("\n", " ")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols(name):
    benchmark, _ = load(name)
    assert benchmark.protocol == PROTOCOLS[name]
    assert benchmark.setting == ("domain" if name == "cityscapes-domain" else "overlapped")
    if name == "cityscapes-domain":
        assert benchmark.legacy_split is False
    elif name != "own":
        for wanted in {benchmark.protocol, *EXPECTED.get(name, ())}:
            assert len(protocol.class_groups(benchmark.dataset, wanted)) > 1


def test_a_data_set_of_ones_own_may_have_any_number_of_classes():
    protocol_ = load("own")[0].protocol
    for dataset in protocol.DATASETS:
        assert [len(group) for group in protocol.class_groups(dataset, protocol_)][:2] == [1, 1]


@pytest.mark.parametrize("name", PAPERS)
def test_papers_hold_nothing_out_and_score_a_crop(name):
    benchmark, _ = load(name)
    assert (benchmark.holdout, benchmark.evaluation.size, benchmark.evaluation.scales) == (0, "crop", (1.0,))
    assert not benchmark.evaluation.flip and benchmark.train.crop == FURTHER.get(name, (512,))[-1]


@pytest.mark.parametrize("name", FURTHER)
def test_the_schedules_of_further_methods(name):
    train = load(name)[0].train
    base, increment = train.base, train.increment
    numbers = (base.epochs, base.lr, increment.epochs, increment.lr, train.batch, train.encoder_lr, train.crop)
    assert numbers == FURTHER[name]
    method = presets.load(name)["runs"]["methods"][-1]
    assert (increment.norm == "frozen") == (method in ("dkd", "ssul", "fixbc"))


def test_coefficients_of_further_methods():
    coefficients = {name: load(name)[1] for name in FURTHER}
    assert coefficients["voc-dkd"]["dkd"] == {"positive": 2.0, "positive_later": 1.0}
    assert coefficients["ade20k-dkd"]["dkd"] == {"positive": 35.0, "positive_later": 35.0}
    assert coefficients["ade20k-select"]["select"] == {"distillation": 50.0}
    assert coefficients["ade20k-ewf"]["mib"] == {"distillation": 10.0}


@pytest.mark.parametrize("name", FURTHER)
def test_further_methods_are_found_by_the_plan(planned, name):
    dataset, method = name.split("-")
    planned(dataset, "--preset", method)
    assert list(planned.config.benchmarks) == [name]
    assert {run.method for run in planned.config.chain.values()} == set(presets.load(name)["runs"]["methods"])


@pytest.mark.parametrize("name", FAMILY)
def test_the_schedule_of_mib_and_plop(name):
    benchmark, methods = load(name)
    model, train, epochs = benchmark.model, benchmark.train, EPOCHS[benchmark.dataset]
    assert (model.encoder, model.pretrained, model.output_stride) == ("resnet101", True, 16)
    assert (model.decoder, model.width, model.atrous_rates) == ("deeplabv3", 256, (6, 12, 18))
    assert (train.base.epochs, train.base.lr) == (epochs, 0.01)
    assert (train.increment.epochs, train.increment.lr) == (epochs, 0.001)
    assert train.base.norm == train.increment.norm == "sync"
    assert (train.crop, train.batch, train.accumulate, train.resize) == (512, 24, 1, None)
    assert (train.augmentation, train.scale) == ("resized_crop", (0.5, 2.0))
    assert (train.flip, train.transpose, train.encoder_lr) == (True, False, 1.0)
    assert (train.schedule, train.power, train.momentum, train.weight_decay) == ("poly", 0.9, 0.9, 1e-4)
    assert methods == COEFFICIENTS[name]


def test_gsc_on_voc_is_the_methods_default():
    assert GSC(**load("voc-gsc")[1]["gsc"]) == GSC()


@pytest.mark.parametrize("name", NAMES)
def test_where_the_scale_is_an_area_it_says_so(name):
    text = presets.presets()[name].read_text(encoding="utf-8")
    if name in FURTHER and (other := re.search("^like: (.*)$", text, re.MULTILINE)) and "scale:" not in text:
        text += presets.presets()[other[1]].read_text(encoding="utf-8")
    if load(name)[0].train.augmentation == "resized_crop":
        assert re.search(r"scale: \[0\.5, 2\.0\] # share of the AREA", text)
    else:
        assert "share of the AREA" not in re.sub(r"\(with resized_crop [^)]*\)", "", text)


@pytest.mark.parametrize("name", ["voc", "voc-gsc"])
def test_a_protocol_with_a_number_of_its_own_says_how(name):
    assert "--set train.increment.epochs=10" in presets.presets()[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["voc-gsc", "ade20k-gsc", "cityscapes-gsc"])
def test_a_reconstruction_says_so(name):
    text = " ".join(head(name))
    assert "[inferred]" in text and "a reconstruction" in text


@pytest.mark.parametrize(("task", "name"), [("15-1", "voc-gsc"), ("15-5", "voc-gsc-15-5")])
def test_gscs_is_found_by_the_plan(planned, task, name):
    planned("voc", task, "--preset", "gsc", "--methods", "plop", "gsc", "--no-joint")
    (found,) = planned.config.benchmarks
    assert found == name and planned.config.benchmarks[name].protocol == task
    assert GSC(**planned.config.methods["gsc"]) == GSC()
    assert "# Pascal VOC 2012 for GSC" in planned.text and "openreview 9qbKOaF8YJ" in planned.text


def quoted(name: str) -> list[tuple[str, str, tuple[float, ...]]]:
    """Protocol, whose, (old, new, all) of every result in the head comment."""
    found, current = [], ""
    for line in (line for line in head(name) if line.startswith("  ")):
        words = line.split()
        for before, word in zip(["", *words], words, strict=False):
            if re.fullmatch(r"\d+-\d+", word):
                current = word
            elif re.fullmatch(r"(\d+\.\d+/){2}\d+\.\d+", word):
                found.append((current, before, tuple(map(float, word.split("/")))))
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_quoted_results_add_up(name):
    """`all` follows from old and new, background counted or not, but where the comment says that it does not."""
    results = quoted(name)
    protocols = {result[0] for result in results}
    assert protocols == set(EXPECTED[name])
    for task, whose, (old, new, everything) in results:
        base, rest = (sum(map(len, groups)) for groups in split(load(name)[0].dataset, task))
        counted, left_out = (((base + more) * old + rest * new) / (base + more + rest) for more in (1, 0))
        if (name, task, whose) == ("ade20k-mbs", "100-5", "SELECT"):
            assert round(left_out, 1) == 37.0
        elif whose in ("SELECT", "finetune"):
            assert abs(left_out - everything) < 0.16, (task, whose)
        else:
            assert abs(counted - everything) < 0.16, (task, whose)


def split(dataset: str, task: str) -> tuple[list, list]:
    groups = protocol.class_groups(dataset, task)
    return groups[:1], groups[1:]


def test_camvid_and_own_follow_voc8():
    reference = load("voc8")[0]
    for name in ("camvid", "own"):
        benchmark, methods = load(name)
        assert not methods and benchmark.evaluation.size == "full"
        for key in ("encoder", "output_stride", "decoder", "width", "atrous_rates"):
            assert getattr(benchmark.model, key) == getattr(reference.model, key)
        assert benchmark.train.encoder_lr == {"camvid": 0.2, "own": reference.train.encoder_lr}[name]
        assert benchmark.train.increment.norm == "frozen"
        assert benchmark.train.augmentation == "scaled_crop"
    assert load("camvid")[0].model.weights == reference.model.weights
    assert load("own")[0].model.pretrained and load("own")[0].model.weights is None and load("own")[0].holdout == 0
