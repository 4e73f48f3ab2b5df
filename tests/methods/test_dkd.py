"""DKD: the released step and prediction, the five terms together, what learns and what the start is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciss.config import Model
from ciss.methods import DKD
from ciss.models import Extra, Output, create_network
from ciss.models.prediction import fold
from ciss.training.optimisation import choose_trainable
from tests.helpers.batches import make_batch, network
from tests.helpers.golden import case, close
from tests.helpers.variants import CASES, benchmark

OLD, NEW = 4, 2


def step() -> tuple[dict, Output, Output, dict]:
    """The released step: outputs from features and rows, and the leaves by name."""
    values = case("dkd.step")
    names = ("features", "aux_weight", "aux_bias", "old_weight", "old_bias", "new_weight", "new_bias")
    leaves = {name: values[name].clone().requires_grad_() for name in names}

    def output(features, weight, bias, extras):
        rows = torch.cat([torch.zeros_like(weight[:1]), weight])  # a background's row, which has no say
        logits = F.conv2d(features, rows[..., None, None], torch.cat([torch.full_like(bias[:1], 7.0), bias]))
        return Output(logits, features, [], rows, rows, extras=extras, prediction="zero")

    weight = torch.cat([leaves["old_weight"], leaves["new_weight"]])
    bias = torch.cat([leaves["old_bias"], leaves["new_bias"]])
    auxiliary = F.conv2d(leaves["features"].detach(), leaves["aux_weight"][..., None, None], leaves["aux_bias"])
    student = output(leaves["features"], weight, bias, {"auxiliary": auxiliary})
    teacher = output(values["teacher_features"], values["teacher_weight"], values["teacher_bias"], {})
    return values, student, teacher, leaves


def test_the_released_step():
    values, student, teacher, leaves = step()
    batch = make_batch(OLD, NEW, size=tuple(values["labels"].shape[-2:]))
    batch.labels = batch.given = values["labels"]
    method = DKD(**DKD.presets["released"])
    losses = method.losses(student, teacher, batch)
    close(losses["cross_entropy"], values["bce"])
    weighed = {"distillation": "kd", "positive_part": "pos", "negative_part": "neg"}
    for name, released in weighed.items():
        close(losses[name] / 5, values[released])
    close(losses["absence"], values["ac"])
    total = sum(losses.values())
    close(total, values["loss"])
    total.backward()
    gradients = {"features": "features", "aux_weight": "aux", "old_weight": "old", "new_weight": "new"}
    for name, released in gradients.items():
        close(leaves[name].grad, values[f"grad_{released}"], rtol=1e-4, atol=1e-5)
    assert DKD().losses(student, teacher, batch)["cross_entropy"] != losses["cross_entropy"], "void is left out"


def test_the_absence_loss_does_not_reach_the_features():
    values, student, teacher, leaves = step()
    batch = make_batch(OLD, NEW, size=tuple(values["labels"].shape[-2:]))
    DKD().losses(student, teacher, batch)["absence"].backward()
    assert leaves["features"].grad.eq(0).all() and leaves["aux_weight"].grad.abs().sum() > 0


def test_the_released_prediction():
    """Channel 0 is the auxiliary row, which has no say. Logits of exactly 0 are background."""
    values = case("dkd.predict")
    raw = values["logits"]
    assert fold("zero", raw, 0).argmax(dim=1).equal(values["labels"])
    assert (raw[:, 1:, 0, 0] == 0).any() and values["labels"][0, 0, :2].eq(0).all()
    with_rule = (raw[:, 1:].sigmoid() > 0.5).any(dim=1)
    assert with_rule.equal(values["labels"] > 0)


def test_predictions_by_hand():
    logits = torch.tensor([(9.0, -0.1, -2), (9, 1.5, 1.4), (9, -3, -1), (9, 0, 0)]).T[None, :, None]
    assert fold("zero", logits, 0).argmax(dim=1).flatten().tolist() == [0, 1, 0, 0]


def with_auxiliary():
    torch.manual_seed(0)
    return create_network(Model(width=8, atrous_rates=(1,), dropout=0.3), [OLD], extras={"auxiliary": Extra(1, True)})


def test_the_start_is_the_auxiliary_row():
    student = with_auxiliary()
    DKD().initialise(student, NEW)
    weight, bias = student.decoder.rows(new=True)
    auxiliary_weight, auxiliary_bias = student.decoder.extra_rows("auxiliary")
    assert all(row.equal(auxiliary_weight[0]) for row in weight) and bias.eq(auxiliary_bias).all()
    for other in (DKD(absence=0.0), DKD(initialisation="default")):
        student = with_auxiliary()
        other.initialise(student, NEW)
        assert not student.decoder.rows(new=True)[0][0].equal(student.decoder.extra_rows("auxiliary")[0][0])


class Increment:
    after = "base"


def test_what_learns():
    student = with_auxiliary()
    DKD().initialise(student, NEW)
    learning = {id(p) for p in choose_trainable(DKD(), student.train(), Increment())}
    names = {name for name, p in student.named_parameters() if id(p) not in learning}
    norms = {
        f"{name}.{part}"
        for name, module in student.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    assert names == norms
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            assert not module.training
    assert any(isinstance(module, nn.Dropout) for module in student.modules())
    assert len(list(DKD(affine="learn").trainable(student))) == len(list(student.parameters()))


def test_equal_networks():
    """Gradients of the three distillations are 0. A background row has none in any step."""
    student = with_auxiliary().eval()
    teacher = copy.deepcopy(student)
    batch = make_batch(OLD, NEW, size=(16, 16))
    DKD().initialise(student, NEW)
    student.prediction = teacher.prediction = "zero"
    output = student.eval()(batch.images)
    losses = DKD().losses(output, teacher(batch.images), batch)
    for name in ("distillation", "positive_part", "negative_part"):
        student.zero_grad()
        losses[name].backward(retain_graph=True)
        assert max(p.grad.abs().max() for p in student.parameters() if p.grad is not None) < 1e-6
    student.zero_grad()
    sum(losses.values()).backward()
    assert student.decoder.classifier.groups[0].weight.grad[0].eq(0).all()


@pytest.mark.parametrize(("decoder", "case_name", "key"), [
    ("mask_transformer", "ordinary", "model.decoder"),
    ("deeplabv3", "domain", "setting"),
])  # fmt: skip
def test_where_it_cannot_be_used(decoder, case_name, key):
    assert DKD().unsuited(benchmark(decoder, CASES[case_name]))[0] == key
    assert DKD().unsuited(benchmark("deeplabv3", CASES["ordinary"])) is None


def test_the_base_step():
    student = with_auxiliary()
    batch = make_batch(0, OLD - 1, size=(16, 16))
    losses = DKD().losses(student(batch.images), None, batch)
    assert losses.keys() == {"cross_entropy", "absence"}
    later = DKD(positive=1.0).losses(student(batch.images), None, batch)
    assert losses["cross_entropy"] > later["cross_entropy"], "positives weigh 2"
    assert DKD().own_base == "dkd" and DKD(base="shared").own_base is None
    assert network(OLD).prediction == "learnt" and DKD.prediction == "zero"
