"""Rows and buffers that belong to no class, and prediction rules: a method of a test has both."""

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.config import Model
from ciss.methods import base
from ciss.methods.base import Batch, Method
from ciss.models import Extra, Output, create_network
from ciss.models.deeplabv3 import DeepLabV3
from ciss.models.prediction import fold
from tests.helpers.batches import make_batch, random

EXTRAS = {
    "auxiliary": Extra(1, detached=True),
    "future": Extra(3),
    "none": Extra(0),
    "sums": Extra(buffers=lambda widths: {"gram": (widths[0], widths[0]), "count": ()}),
}


def network(extras=EXTRAS, decoder="deeplabv3", groups=(3,)):
    torch.manual_seed(0)
    return create_network(Model(width=8, atrous_rates=(1, 2), decoder=decoder), list(groups), extras=extras)


def test_extras_are_apart_from_the_classes():
    with_extras, without = network(), network(extras=None)
    images = random(2, 3, 16, 16)
    names = {"auxiliary.weight", "auxiliary.bias", "future.weight", "future.bias", "sums.gram", "sums.count"}
    assert with_extras.state_dict().keys() - without.state_dict().keys() == {f"decoder.extras.{n}" for n in names}
    for name, value in without.state_dict().items():
        assert with_extras.state_dict()[name].equal(value), "the classes' rows get the same random numbers"
    output, plain = with_extras.eval()(images), without.eval()(images)
    assert with_extras.channels == 3 and len(with_extras.decoder.rows()) == len(without.decoder.rows())
    for name in ("logits", "class_tokens", "class_features"):
        assert getattr(output, name).equal(getattr(plain, name))
    assert {name: rows.shape[1] for name, rows in output.extras.items()} == {"auxiliary": 1, "future": 3}
    assert plain.extras == {} and with_extras.decoder.extras["sums"].gram.dtype == torch.float64
    assert [len(with_extras.decoder.extra_rows(n)) for n in ("auxiliary", "none", "sums")] == [2, 0, 0]


def test_rows_over_stages_are_added_to_the_logits():
    """The logits are those of one linear layer over the features and the maps of the stages."""
    made = network({"stages": Extra(rows=3, stages=2)}).eval()
    rows = made.decoder.extras["stages"]
    images, plain = random(2, 3, 16, 16), made(random(2, 3, 16, 16)).logits
    assert plain.equal(network(extras=None).eval()(images).logits), "rows start at 0"
    for weight in rows.weights:
        torch.nn.init.normal_(weight)
    output = made(images)
    grid = output.features.shape[-2:]
    maps = [F.interpolate(stage, grid, mode="bilinear") for stage in (output.stages[-1], output.stages[-2])]
    expected = plain + sum(torch.einsum("bdhw,cd->bchw", m, w) for m, w in zip(maps, rows.weights, strict=True))
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    assert output.extras == {}, "they are no rows of their own"
    rows.grow(2)
    made.grow(2)
    longer = made(images).logits
    assert longer.shape[1] == 5
    # Convolutions of other widths may add in another order.
    torch.testing.assert_close(longer[:, :3], output.logits, rtol=1e-5, atol=1e-6)


def test_rows_over_neighbourhoods_have_the_finest_grid():
    """Logits are a linear layer over stages, and over their means in 3x3 cells, on the grid of the finer stage."""
    extras = {"stages": Extra(rows=3, stages=2, context=3)}
    decoder = DeepLabV3([4, 6], 8, [3], atrous_rates=(1,), dropout=0.0, extras=extras).eval()
    stages = [random(2, 4, 10, 8), random(2, 6, 5, 4)]
    plain, features, *_ = decoder(stages)
    assert plain.shape == (2, 3, 10, 8) and features.shape == (2, 8, 5, 4)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(plain, F.interpolate(decoder.classifier(features), (10, 8), mode="bilinear"))
    rows = decoder.extras["stages"].weights
    assert [row.shape for row in rows] == [(3, 6), (3, 6), (3, 4), (3, 4)]
    for weight in rows:
        torch.nn.init.normal_(weight)
    maps = []
    for stage in reversed(stages):
        padded = [F.pad(m, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1) for m in (stage, torch.ones_like(stage))]
        sums, cells = (m.sum(dim=(-1, -2)) for m in padded)
        maps += [stage, sums / cells]
    maps = [F.interpolate(m, (10, 8), mode="bilinear") for m in maps]
    expected = plain + sum(torch.einsum("bdhw,cd->bchw", m, w) for m, w in zip(maps, rows, strict=True))
    close(decoder(stages)[0], expected)


def test_detached_rows_send_no_gradient_to_the_features():
    made = network().train()
    output = made(random(2, 3, 16, 16))
    output.extras["auxiliary"].sum().backward()
    assert made.decoder.extras["auxiliary"].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in made.encoder.parameters())
    made(random(2, 3, 16, 16)).extras["future"].sum().backward()
    assert any(p.grad.abs().sum() > 0 for p in made.encoder.parameters())


def test_rows_are_handed_over_bit_for_bit():
    decoder = network().decoder
    weight, bias = (p.detach().clone() for p in decoder.extra_rows("future"))
    taken = decoder.take_rows("future", 2)
    assert taken[0].equal(weight[:2]) and taken[1].equal(bias[:2])
    assert decoder.extras["future"].weight.equal(weight[2:]) and decoder.extras["future"].bias.equal(bias[2:])
    assert decoder.extras["future"].weight.requires_grad
    decoder.take_rows("future", 1)
    assert "future" not in decoder.extras and decoder.extra_rows("future") == []


def test_missing_extras_are_copies_of_the_background():
    decoder = network(extras=None).decoder
    decoder.add_extras(EXTRAS)
    background = decoder.classifier.groups[0]
    for rows in (decoder.extras["auxiliary"], decoder.extras["future"]):
        assert (rows.weight == background.weight[:1]).all() and (rows.bias == background.bias[0]).all()
    changed = decoder.extras["future"].weight.data.fill_(7.0)
    decoder.add_extras(EXTRAS)
    assert decoder.extras["future"].weight.equal(changed), "rows that are there stay"


def test_a_mask_transformer_has_no_extras():
    assert not network(extras={}, decoder="mask_transformer").decoder.extras
    with pytest.raises(ValueError, match="no rows beside its classes: auxiliary, future"):
        network(decoder="mask_transformer")


# --- prediction rules


def test_the_zero_rule_is_a_sigmoid_above_one_half():
    # DKD: logits of two classes over four pixels: labels 0, 1, 0, 0, a logit of exactly 0 is background
    raw = torch.tensor([[9.0, 9, 9, 9], [-0.1, 1.5, -3, 0], [-2, 1.4, -1, 0]])[None, :, None]
    assert fold("zero", raw, 0).argmax(1).flatten().tolist() == [0, 1, 0, 0]
    with_auxiliary = torch.cat([raw[:, :1] + 5, raw], dim=1)
    assert fold("zero", with_auxiliary, 1).equal(fold("zero", raw, 0))


def test_the_folded_rule_adds_the_sigmoid_of_the_unknown_row():
    # SSUL: rows unknown, background, 1, 2, 3 of pixels 2, 3 and 6
    logits = [[0.5, -0.5, 2], [0, -1, 0.3], [-1, -2, -1], [-1.5, -1, -2.5]]
    unknown = [[0.5, -0.5, 0], [0.0, -1, 1]]
    raw = torch.tensor([unknown[0], unknown[1], *logits[2:], logits[0]])[None, :, None]
    folded = fold("folded", raw, 1)
    scores = raw.sigmoid()
    s = scores[:, 0] + scores[:, 1]
    assert s.flatten().tolist() == pytest.approx([1.122459, 0.646482, 1.231059], abs=1e-6)
    assert folded[0, 0].flatten().tolist() == pytest.approx([10000, 0.603611, 10000], abs=1e-5)
    assert folded[:, 1:].equal(raw[:, 2:])
    both = torch.cat([s[:, None], scores[:, 2:]], dim=1)
    assert folded.argmax(1).equal(both.argmax(1))


def test_the_folded_rule_is_the_rule_with_sigmoids():
    raw = 3 * random(4, 6, 16, 16)
    scores = raw.sigmoid().double()
    rule = torch.cat([scores[:, :2].sum(dim=1, keepdim=True), scores[:, 2:]], dim=1)
    assert fold("folded", raw, 1).argmax(1).equal(rule.argmax(1))


@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_rules_are_finite_for_large_logits(size):
    raw = torch.full((1, 4, 2, 2), size, requires_grad=True)
    for rule in ("zero", "folded"):
        values = fold(rule, raw, 1)
        values.sum().backward()
        assert values.isfinite().all() and raw.grad.isfinite().all()


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'learnt', 'zero' or 'folded'"):
        fold("soft", torch.zeros(1, 3, 2, 2), 1)


def output(rule="folded"):
    logits, unknown = random(2, 4, 4, 6).requires_grad_(), random(2, 1, 4, 6, seed=3).requires_grad_()
    features = random(2, 5, 4, 6)
    return Output(logits, features, [features], features, features, extras={"unknown": unknown}, prediction=rule)


def test_outputs_fold_after_enlarging():
    made, size = output(), (16, 24)
    raw = made.raw(size)
    assert raw.shape == (2, 5, *size) and made.raw(size) is raw
    assert made.upsample(size).equal(fold("folded", raw, 1))
    assert made.probabilities(size).equal(made.upsample(size).softmax(dim=1))
    assert made.log_probabilities(size).equal(made.upsample(size).log_softmax(dim=1))
    learnt = dataclasses.replace(made, prediction="learnt").without_cache()
    assert learnt.upsample(size).equal(raw[:, 1:])


def test_outputs_take_other_rows():
    made = output()
    made.upsample((8, 12))
    other = made.with_rows(2 * made.rows)
    assert other.logits.equal(2 * made.logits) and other.extras["unknown"].equal(2 * made.extras["unknown"])
    assert other.raw((8, 12)).equal(2 * made.raw((8, 12))), "nothing of the first output's maps is kept"


class WithExtras(Method):
    """Sigmoids of all rows."""

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return self.over_strips(self.pixel_losses, student, teacher, batch)

    def pixel_losses(self, student, teacher, batch):
        return {
            "raw": student.raw(batch.size).sigmoid().square().mean(),
            "folded": student.upsample(batch.size).clamp(max=50).square().mean(),
        }


def test_strips_have_the_extra_rows(monkeypatch):
    found = {}
    for strip_bytes in (2**20, 3 * 4 * 2 * 4 * 24):
        monkeypatch.setattr(base, "STRIP_BYTES", strip_bytes)
        made, batch = output(), make_batch(old=3, new=1, size=(16, 24))
        made.logits, made.extras = (
            made.logits.double().detach().requires_grad_(),
            {"unknown": made.extras["unknown"].double().detach().requires_grad_()},
        )
        losses = WithExtras().losses(made, None, batch)
        sum(losses.values()).backward()
        found[len(batch.strips)] = [*losses.values(), made.logits.grad, made.extras["unknown"].grad]
    whole, strips = found[1], found[6]
    for one, other in zip(whole, strips, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    assert strips[-1].abs().sum() > 0
