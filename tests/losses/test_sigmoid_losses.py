"""Losses of one sigmoid per class, and LwF's and ILT's: released numbers, values by hand, empty sets, gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from ciss.losses import (
    absence_loss,
    cross_entropy,
    decomposed_distillation,
    output_distillation,
    sigmoid_cross_entropy,
    sigmoid_distillation,
)
from tests.helpers.golden import case, close

VOID = 255


def pixels(*rows):
    """(1,C,1,N) of one row for each pixel, in float64."""
    return torch.tensor(rows, dtype=torch.float64).T[None, :, None].contiguous()


def labels(*values):
    return torch.tensor(values)[None, None]


def with_gradient(loss, values):
    """A loss of `values`, and its gradient."""
    leaf = values.clone().requires_grad_()
    value = loss(leaf)
    return value, torch.autograd.grad(value, leaf)[0]


# --- the released code's numbers


@pytest.mark.parametrize(("name", "positive"), [("bce", 1.0), ("bce_weighted", 35.0)])
def test_released_dkd_cross_entropy(name, positive):
    """Two new channels of six; void and background are negatives of both."""
    values = case(f"dkd.{name}")
    new = values["logits"]
    first = 4
    found, gradient = with_gradient(
        lambda z: sigmoid_cross_entropy(z, values["labels"], first=first, positive=positive, ignored="negative"), new
    )
    close(found, values["loss"])
    close(gradient, values["grad"])
    each = [
        sigmoid_cross_entropy(
            new[:, c : c + 1], values["labels"], first=first + c, positive=positive, ignored="negative"
        )
        for c in range(new.shape[1])
    ]
    close(torch.stack(each), values["per_class"].flatten())


def test_released_dkd_distillation():
    values = case("dkd.kd")
    found, gradient = with_gradient(lambda z: sigmoid_distillation(z, values["teacher"]), values["logits"])
    close(found, values["loss"])
    close(gradient, values["grad"])
    close(values["per_class"].sum(), values["loss"])


def test_released_dkd_absence():
    values = case("dkd.ac")
    found, gradient = with_gradient(absence_loss, values["logits"])
    close(found, values["loss"])
    close(gradient, values["grad"])


@pytest.mark.parametrize("name", ["lwf.seed", "lwf.void_image"])
def test_released_lwf(name):
    values = case(name)
    z, teacher, given = values["logits"], values["teacher"], values["labels"]
    close(cross_entropy(z, given, divisor="all"), values["ce"])
    close(output_distillation(z, teacher), values["kd"])
    found, gradient = with_gradient(
        lambda z: cross_entropy(z, given, divisor="all") + 100 * output_distillation(z, teacher), z
    )
    close(found, values["loss"])
    close(gradient, values["grad"])


def test_released_lwf_mc():
    values = case("lwf_mc.seed")
    z, teacher, given = values["logits"], values["teacher"], values["labels"]
    close(sigmoid_cross_entropy(z, given, divisor="all"), values["bce"])
    found, gradient = with_gradient(
        lambda z: sigmoid_cross_entropy(z, given, divisor="all") + 10 * sigmoid_distillation(z, teacher), z
    )
    close(found, values["loss"])
    close(gradient, values["grad"])


@pytest.mark.parametrize("name", ["pseudo_plain", "pseudo_saliency"])
def test_released_ssul_loss(name):
    values = case(f"ssul.{name}")
    found, gradient = with_gradient(lambda z: sigmoid_cross_entropy(z, values["labels"]), values["logits"])
    close(found, values["loss"])
    close(gradient, values["grad"])


# --- values by hand

NEW = pixels((0.3, 1.2), (-0.7, -1.5), (-2, 0.4))


def test_dkd_by_hand():
    given = labels(2, 0, 1)
    each = [sigmoid_cross_entropy(NEW[:, c : c + 1], given, first=2 + c) for c in range(2)]
    assert [value.item() for value in each] == pytest.approx([0.361490, 0.859237], abs=1e-6)
    assert sigmoid_cross_entropy(NEW, given, first=2).item() == pytest.approx(1.220727, abs=1e-6)
    assert sigmoid_cross_entropy(NEW, given, first=2, positive=2.0).item() == pytest.approx(1.405512, abs=1e-6)
    void = labels(2, VOID, 1)
    assert sigmoid_cross_entropy(NEW, void, first=2, ignored="negative").item() == pytest.approx(1.220727, abs=1e-6)
    assert sigmoid_cross_entropy(NEW, void, first=2).item() == pytest.approx(1.528790, abs=1e-6)


def test_sigmoid_distillation_by_hand():
    z, teacher = pixels((-1,), (0.5,), (2,)), pixels((-2,), (0,), (3,))
    assert sigmoid_distillation(z, teacher).item() == pytest.approx(0.459440, abs=1e-6)
    assert sigmoid_distillation(teacher, teacher).item() == pytest.approx(0.416449, abs=1e-6), "the entropy, not 0"


def test_decomposition_by_hand():
    f, w = pixels((0.5, 2, 0, 1)), torch.tensor([[1, -0.5, 3, -1]], dtype=torch.float64)
    old = torch.tensor([[0.8, -0.25, 3, -1.5]], dtype=torch.float64)
    positive, negative = decomposed_distillation(f, w, f, old)
    assert positive.item() == pytest.approx(0.674733, abs=1e-6)
    assert negative.item() == pytest.approx(0.365334, abs=1e-6)
    # z+ + z- + b = z
    parts = [F.conv2d(f, part[..., None, None]) for part in (w.clamp(min=0), w.clamp(max=0))]
    assert [part.item() for part in parts] == [0.5, -2] and sum(parts).item() + 0.25 == -1.25


def test_absence_by_hand():
    assert absence_loss(pixels((-1,), (0,), (2,))).item() == pytest.approx(1.044446, abs=1e-6)


def test_lwf_and_its_relatives_by_hand():
    z, teacher = pixels((1, 0, 0.5), (0, 2, 1), (0.5, -1, 3)), pixels((2, 0), (0, 1), (0, -1))
    given = labels(0, VOID, 2)
    assert cross_entropy(z, given).item() == pytest.approx(0.387972, abs=1e-6)
    assert cross_entropy(z, given, divisor="all").item() == pytest.approx(0.258648, abs=1e-6)
    assert output_distillation(z, teacher).item() == pytest.approx(0.283683, abs=1e-6)
    assert output_distillation(teacher, teacher).item() == pytest.approx(0.254957, abs=1e-6)
    first = sigmoid_cross_entropy(z, given, divisor="all").item()
    second = sigmoid_distillation(z, teacher).item()
    assert first == pytest.approx(1.105471, abs=1e-6) and second / 2 == pytest.approx(0.631642, abs=1e-6)
    assert first + 10 * second == pytest.approx(13.738304, abs=1e-5)


# --- empty sets, gradients


@pytest.mark.parametrize("options", [{}, {"divisor": "all"}, {"ignored": "negative"}, {"positive": 2.0}])
def test_nothing_valid(options):
    """The released loss of SSUL is NaN there."""
    assert case("ssul.all_void")["loss"].isnan()
    void = torch.full((2, 3, 4), VOID)
    found, gradient = with_gradient(lambda z: sigmoid_cross_entropy(z, void, **options), torch.randn(2, 5, 3, 4))
    if options.get("ignored") == "negative":
        assert found > 0
    else:
        assert found == 0 and gradient.eq(0).all()


@pytest.mark.parametrize("positive", [1.0, 35.0])
@pytest.mark.parametrize("first", [0, 2])
def test_it_is_torchs_binary_cross_entropy(first, positive):
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) * 20).requires_grad_()
    given = torch.randint(6, (2, 4, 5), generator=generator)
    target = torch.stack([(given == first + c).double() for c in range(3)], dim=1)
    weight = torch.full((3, 1, 1), positive, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(z, target, pos_weight=weight, reduction="none").sum(1).mean()
    close(sigmoid_cross_entropy(z, given, first=first, positive=positive), expected, rtol=1e-8, atol=1e-8)


def test_gradients():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 2, 2, generator=generator, dtype=torch.float64)
    given = torch.tensor([[[0, 1], [2, VOID]], [[VOID, 4], [3, 1]]])
    for options in ({}, {"first": 1, "positive": 3.0}, {"divisor": "all"}, {"ignored": "negative"}):
        assert gradcheck(lambda z, options=options: sigmoid_cross_entropy(z, given, **options), z)
    assert gradcheck(lambda z: sigmoid_distillation(z, teacher), z)
    assert gradcheck(absence_loss, z)
    f = torch.rand(2, 4, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    old_f = torch.rand(2, 4, 2, 2, generator=generator, dtype=torch.float64)
    assert gradcheck(lambda f, w: decomposed_distillation(f, w, old_f, other), (f, w))


def test_equal_networks_have_no_gradient():
    """In logits and in both parts of them, whatever the teacher's probabilities."""
    generator = torch.Generator().manual_seed(2)
    f = torch.rand(2, 4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    w = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    losses = [sigmoid_distillation(F.conv2d(f, w[..., None, None]), F.conv2d(f, w[..., None, None]))]
    losses += decomposed_distillation(f, w, f, w)
    for loss in losses:
        assert loss > 0
        assert all(gradient.abs().max() < 1e-15 for gradient in torch.autograd.grad(loss, (f, w), retain_graph=True))
