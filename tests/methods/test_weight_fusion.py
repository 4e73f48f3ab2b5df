"""Endpoints weight fusion: the released code's numbers, values by hand, and what a training does with it."""

import math

import pytest
import torch

from ciss.methods import METHODS, MiB
from ciss.methods.hosts import EWF, WeightFusion
from ciss.models.fusion import endpoint_weight, fuse_weights
from ciss.runs import results as runs_results
from ciss.training import loop
from tests.helpers.batches import NEW, OLD, decoder_network, network
from tests.helpers.golden import case, close
from tests.helpers.training import Stop, raising, weights
from tests.helpers.variants import CASES, benchmark

HOSTS = [name for name, kind in METHODS.items() if issubclass(kind, WeightFusion)]


def test_the_share_of_the_new_weights():
    for (old, new), expected in {
        (16, 5): 0.487950,  # VOC 15-5
        (16, 1): 0.242536,
        (20, 1): 0.218218,
        (101, 50): 0.575435,
        (5, 1): 0.408248,
        (15, 5): 0.5,  # 15-5 without the background
        (4, 0): 0.0,
    }.items():
        assert endpoint_weight(old, new) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "weight", "share"),
    [
        ("plain", 0.4879500364742666, None),
        ("single", 0.21821789023599236, None),
        ("most_changed", 0.4879500364742666, 0.45),
    ],
)
def test_the_released_code(name, weight, share):
    values = case(f"ewf.{name}")
    old, new, expected = (
        {key.removeprefix(f"{part}/"): value for key, value in values.items() if key.startswith(f"{part}/")}
        for part in ("old", "new", "out")
    )
    fused = fuse_weights(old, new, weight, fused_share=share)
    assert fused.keys() == new.keys() == expected.keys() and old.keys() < new.keys()
    for key, value in expected.items():
        close(fused[key], value, rtol=1e-6, atol=1e-7)


OLD_STATE = {"w": torch.tensor([[1, -2], [0.5, 4], [3, 0]]), "b": torch.tensor([0.2, -0.4, 1])}
NEW_STATE = {
    "w": torch.tensor([[1.5, -1], [0.5, 3], [2, 0.2]]),
    "b": torch.tensor([0.1, -0.4, 1.4]),
    "new": torch.tensor([9.0, 9.0]),
}


@pytest.mark.parametrize(
    ("share", "expected", "bias"),
    [
        (None, [[1.25, -1.5], [0.5, 3.5], [2.5, 0.1]], [0.15, -0.4, 1.2]),
        (0.45, [[1.25, -1.5], [0.5, 3.5], [2.5, 0.2]], [0.1, -0.4, 1.4]),  # 4 of 9: changes from 0.5 on
        (0.1, NEW_STATE["w"].tolist(), NEW_STATE["b"].tolist()),  # 0 of 9
        (1.0, [[1.25, -1.5], [0.5, 3.5], [2.5, 0.1]], [0.15, -0.4, 1.2]),
    ],
)
def test_three_rows_by_hand(share, expected, bias):
    fused = fuse_weights(OLD_STATE, NEW_STATE, 0.5, fused_share=share)
    close(fused["w"], torch.tensor(expected))
    close(fused["b"], torch.tensor(bias))
    assert fused["new"].equal(NEW_STATE["new"]) and fused["new"].data_ptr() != NEW_STATE["new"].data_ptr()


def test_no_weight_is_the_predecessor_and_all_is_the_new_network():
    for weight, expected in ((0.0, OLD_STATE), (1.0, NEW_STATE)):
        fused = fuse_weights(OLD_STATE, NEW_STATE, weight)
        assert all(fused[name].equal(expected[name]) for name in OLD_STATE)
    fused = fuse_weights(NEW_STATE, NEW_STATE, 0.487950)
    assert all(fused[name].equal(value) for name, value in NEW_STATE.items()), "equal weights keep their bits"


def test_counters_stay_and_half_precision_is_averaged_in_float32():
    """The released fusion makes 1292.77 of the counter, which is cut off to 1292."""
    old = {"count": torch.tensor(1000), "variance": torch.tensor([2.0]), "half": torch.tensor([1.0]).bfloat16()}
    new = {"count": torch.tensor(1600), "variance": torch.tensor([0.5]), "half": torch.tensor([1.0078125]).bfloat16()}
    fused = fuse_weights(old, new, 0.5)
    assert fused["count"] == 1600 and fused["variance"] == 1.25
    assert fused["half"].dtype == torch.bfloat16
    assert case("ewf.counter")["loaded"] == 1292


def test_a_balanced_start_and_frozen_rows():
    """K 16, n 1, background's bias 0.3, nothing moves: 0.3 - 0.242536 log 2; the new row keeps 0.3 - log 2."""
    student = network(16)
    with torch.no_grad():
        student.decoder.classifier.groups[0].bias[0] = 0.3
    method = MiB(**EWF["ewf"])
    method.initialise(student, 1)
    method.after_step(student)
    old, new = student.decoder.classifier.groups
    assert old.bias[0].item() == pytest.approx(0.131887, abs=1e-6)
    assert new.bias[0].item() == pytest.approx(0.3 - math.log(2), abs=1e-6)


@pytest.mark.parametrize("decoder", ["deeplabv3", "mask_transformer"])
@pytest.mark.parametrize("name", HOSTS)
def test_which_rows_learn(name, decoder):
    assert METHODS[name].presets["ewf"] == EWF["ewf"]
    student = decoder_network(decoder, OLD)
    METHODS[name]().initialise(student, NEW)
    frozen, free = (
        {id(parameter) for parameter in METHODS[name](old_rows=rows).trainable(student)} for rows in ("frozen", "learn")
    )
    old_rows = {id(p) for p in student.decoder.rows()} - {id(p) for p in student.decoder.rows(new=True)}
    assert free == {id(parameter) for parameter in student.parameters()} and free - frozen == old_rows != set()


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("values", [{"fusion": "classes"}, {"old_rows": "frozen"}])
def test_not_in_the_domain_setting(name, values):
    (key,) = values
    others = {"compensation": False} if "compensation" in METHODS[name].__dataclass_fields__ else {}
    method = METHODS[name](**values, **others)
    assert method.unsuited(benchmark("deeplabv3", CASES["domain"]))[0] == f"methods.{key}"
    assert method.unsuited(benchmark("deeplabv3", CASES["ordinary"])) is None


def ewf_run(project):
    project.document["methods"]["mib-ewf"] = EWF["ewf"]
    step = {"benchmark": "tiny", "method": "mib-ewf", "seed": 0, "after": "base", "step": 1}
    project.document["chain"]["mib-ewf-1"] = step
    return project.run("mib-ewf-1")


def test_the_fused_network_is_the_result(project, monkeypatch):
    """Scored, saved and taught from, and the new rows as they were learnt. Curves end before it."""
    run = ewf_run(project)
    before = {}

    def spied(method, student):
        before.update({name: value.clone() for name, value in student.state_dict().items()})
        return WeightFusion.after_step(method, student)

    monkeypatch.setattr(MiB, "after_step", spied)
    loop.train(project.run())
    loop.train(run)
    start, end = weights(project.run()), weights(run)
    expected = fuse_weights(start, before, math.sqrt(2 / 7))
    assert all(expected[name].equal(value) for name, value in end.items())
    assert any(not before[name].equal(value) for name, value in end.items())
    new = [name for name in end if name not in start]
    assert len(new) == 2 and all(before[name].equal(end[name]) for name in new)
    assert runs_results.read(run)["confusion"].sum() > 0


def test_a_stopped_training_fuses_to_the_same_weights(make_project, monkeypatch):
    """Stopped after the last epoch, before the fusion: the copy of the old weights is not part of the state."""
    whole, stopped = make_project("whole"), make_project("stopped")
    for project in (whole, stopped):
        run = ewf_run(project)
        loop.train(project.run())
        if project is stopped:
            with monkeypatch.context() as patch:
                patch.setattr(loop, "evaluate", raising)
                patch.setattr(loop, "score_holdout", lambda *_: None)
                with pytest.raises(Stop):
                    loop.train(run)
            assert (run.resume / "state.safetensors").exists()
        loop.train(run)
    found = weights(ewf_run(stopped))
    for name, value in weights(ewf_run(whole)).items():
        assert value.equal(found[name]), name
