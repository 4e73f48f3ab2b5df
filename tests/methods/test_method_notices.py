"""What methods say before training, and what a diverged training says."""

import json
from dataclasses import asdict

import pytest
import torch

from ciss import config
from ciss.config import Benchmark, ConfigError, Phase, Train
from ciss.losses import compensation_weights, gradient_magnitude
from ciss.methods import METHODS
from ciss.runs.check import check, notices
from ciss.study.presets import load
from ciss.training.log import DivergenceError, LossLog


def benchmark(setting: str) -> Benchmark:
    phase = Phase(epochs=1, lr=0.01)
    return Benchmark(
        dataset="shapes", protocol="4-2", setting=setting, train=Train(crop=32, batch=2, base=phase, increment=phase)
    )


@pytest.mark.parametrize(
    ("name", "coefficients", "words"),
    [
        ("gsc", {}, ["Set relabelling to none"]),
        ("gsc", {"relabelling": "none"}, []),
        ("gsc", {"compensation": False}, ["Set relabelling to none"]),
        ("gsc", {"compensation": False, "relabelling": "none"}, []),
        ("gsc", {"new_weight": "mean", "relabelling": "none"}, []),
        ("plop", {}, ["pseudo-labels replace it. Set pseudo_labels to false"]),
        ("plop", {"pseudo_labels": False}, []),
        ("mbs", {}, ["pseudo-labels replace it. Set labelling to none"]),
        ("mbs", {"labelling": "none"}, []),
        ("gsc_mbs", {}, ["Set labelling to none"]),
        ("mib", {}, []),
    ],
)
def test_methods_say_what_does_not_work_on_domains(name, coefficients, words):
    method = METHODS[name](**coefficients)
    assert method.notice(benchmark("overlapped")) is None
    notice = method.notice(benchmark("domain"))
    assert (notice is None) == (not words)
    for word in words:
        assert word in notice


@pytest.mark.parametrize(
    ("method", "coefficients", "refused"),
    [
        ("gsc", {}, True),
        ("gsc-clamped", {"clamp": [0.5, 5.0]}, True),
        ("gsc", {"compensation": False}, False),
        ("gsc", {"new_weight": "mean"}, False),
        ("gsc_mbs", {}, False),
        ("gsc_mbs-new-one", {"new_weight": "one"}, True),
    ],
)
@pytest.mark.parametrize("setting", ["domain", "overlapped"])
def test_compensation_without_new_classes_is_refused(project, method, coefficients, refused, setting):
    """Every weight would be 1, silently."""
    project.document["methods"][method] = coefficients
    project.document["chain"] = {"one": {**project.document["chain"]["mib-1"], "method": method}}
    project.document["ends"] = {}
    project.set("benchmarks.tiny.setting", setting)
    try:
        check(project.config)
        found = ""
    except ConfigError as error:
        found = str(error)
    line = f"params.yaml: methods.{method}.compensation: on tiny, no class is new in the domain setting"
    assert (line in found) == (refused and setting == "domain")
    if line in found:
        assert f"Set `compensation: false`, or `new_weight: mean`, under methods.{method}." in found


@pytest.mark.parametrize(("new_weight", "constant"), [("one", True), ("mean", False)])
def test_the_notice_on_compensation_is_true(new_weight, constant):
    """Without a new class all weights are 1; by `mean` they are gradients over their mean."""
    logits = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (2, 6, 6), generator=torch.Generator().manual_seed(1))
    weights = compensation_weights(logits, labels, torch.zeros(4, dtype=torch.int64), new=new_weight)
    size = gradient_magnitude(logits, labels)
    torch.testing.assert_close(weights, torch.ones_like(size) if constant else size / size.mean())


def test_the_domain_preset_needs_no_notice():
    preset = json.loads(json.dumps(load("cityscapes-domain")))
    for name in ("plop", "gsc"):
        assert METHODS[name](**preset["methods"][name]).notice(benchmark("domain")) is None


def test_notices_of_a_file_name_each_method_once():
    settings = config.parse(
        {
            "benchmarks": {"b": json.loads(json.dumps(asdict(benchmark("domain"))))},
            "methods": {"finetune": {}, "gsc": {}, "mib": {}, "broken-x": {"a": 1}},
            "bases": {"b-s0": {"benchmark": "b", "method": "finetune", "seed": 0}},
            "chain": {
                f"b-{name}-{step}": {
                    "benchmark": "b",
                    "method": name,
                    "seed": 0,
                    "after": "b-s0" if step == 1 else f"b-{name}-{step - 1}",
                    "step": step,
                }
                for name in ("gsc", "mib", "broken-x")
                for step in (1, 2)
            },
        },
        "params.yaml",
    )
    lines = notices(settings)
    assert len(lines) == 1
    assert lines[0].startswith("b, gsc: in the domain setting the background is labelled as such")


def diverged(*batches: dict[str, float]) -> str:
    watch = LossLog("shapes-s0-plop-1")
    for number, losses in enumerate(batches):
        watch.add({name: torch.tensor(value) for name, value in losses.items()}, [f"image{number}"])
    with pytest.raises(DivergenceError) as caught:
        watch.check()
    return str(caught.value)


def test_a_diverged_training_names_the_loss_that_was_large_before():
    message = diverged({"cross_entropy": 2.0, "pod": 5e6}, {"cross_entropy": float("nan"), "pod": float("nan")})
    assert "after 2 batches of this epoch: cross_entropy nan, pod nan. Images: image1." in message
    assert "The largest loss of the batch before was pod, 5e+06." in message
    assert "Lower the coefficients pod and pod_outputs under `methods` or train.*.lr, or check the images." in message


@pytest.mark.parametrize(
    ("losses", "remedy"),
    [
        ({"cross_entropy": 2.0, "pod": float("inf")}, "Lower the coefficients pod and pod_outputs under `methods`"),
        ({"cross_entropy": 2.0, "soft": float("nan")}, "Lower the coefficient of soft under `methods` or train.*.lr"),
        ({"cross_entropy": float("nan"), "pod": 1.0}, "Lower train.*.lr, or check the images."),
    ],
)
def test_a_first_batch_that_diverges_names_its_loss(losses, remedy):
    message = diverged(losses)
    assert remedy in message
    assert "batch before" not in message
