"""The losses: values worked out by hand, reductions to simpler losses, invariances, reach of the gradients."""

from itertools import product
from math import exp, log

import pytest
import torch

from ciss.losses import cross_entropy, output_distillation, unbiased_cross_entropy, unbiased_distillation

OLD, CHANNELS, GRID = 3, 5, (4, 3)
LN2 = log(2)


def pixels(*rows):
    """Logits (1,C,1,N) in float64 whose softmax is proportional to each pixel's row."""
    return torch.tensor(rows, dtype=torch.float64).log().T[None, :, None].clone().requires_grad_()


def row(*labels):
    return torch.tensor(labels)[None, None]


def example(seed=0, dtype=torch.float64, scale=1.0):
    """Random logits, teacher logits and labels, with old, new, background and ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, CHANNELS, *GRID, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(2, OLD, *GRID, generator=generator, dtype=torch.float64)
    labels = torch.randint(CHANNELS, (2, *GRID), generator=generator)
    labels[0, 0], labels[1, -1, 0] = 255, 0
    return logits.to(dtype).requires_grad_(), teacher.to(dtype), labels


# Every loss as a function of (logits, teacher logits, labels), so that the properties they share are written once.
LOSSES = {
    "cross_entropy": lambda z, t, y: cross_entropy(z, y),
    "unbiased_cross_entropy": lambda z, t, y: unbiased_cross_entropy(z, y, OLD),
    "output_distillation": lambda z, t, y: output_distillation(z, t),
    "unbiased_distillation": lambda z, t, y: unbiased_distillation(z, t),
    "unbiased_distillation(alpha)": lambda z, t, y: unbiased_distillation(z, t, alpha=0.3),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# --- values by hand


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((2, 0), (log(8 / 5) + log(8 / 3)) / 2),
        ((255, 0), log(8 / 3)),
        ((2, 255), log(8 / 5)),
        ((1, 1), (log(8 / 2) + log(8 / 1)) / 2),
    ],
)
def test_cross_entropy_by_hand(labels, expected):
    logits = pixels((1, 2, 5), (3, 1, 4))
    assert cross_entropy(logits, row(*labels)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("label", "old", "q"),
    [
        (0, 3, 4 / 8),  # background or any of the two old classes
        (1, 3, 4 / 8),  # an old label is folded to background
        (2, 3, 4 / 8),
        (3, 3, 3 / 8),
        (4, 3, 1 / 8),
        (1, 2, 3 / 8),
        (2, 2, 1 / 8),
        (3, 4, 7 / 8),
        (0, 5, 1),
        (4, 5, 1),
        (0, 1, 1 / 8),
        (1, 1, 2 / 8),
    ],
)
def test_unbiased_cross_entropy_by_hand(label, old, q):
    loss = unbiased_cross_entropy(pixels((1, 2, 1, 3, 1)), row(label), old)
    assert loss.item() == pytest.approx(-log(q), abs=1e-12)


def test_unbiased_cross_entropy_is_a_mean_over_valid_pixels():
    logits = pixels((1, 2, 1, 3, 1), (5, 1, 1, 1, 8), (9, 1, 1, 1, 1))
    loss = unbiased_cross_entropy(logits, row(0, 4, 255), 3)
    assert loss.item() == pytest.approx((log(2) + log(2)) / 2, abs=1e-12)
    loss.backward()
    # dL/dz_c = (p_c - [c may be y] p_c / q_y) / N: old channels share the pull of a background pixel
    expected = [(-1, -2, -1, 3, 1), (2.5, 0.5, 0.5, 0.5, -4), (0, 0, 0, 0, 0)]
    torch.testing.assert_close(logits.grad[0, :, 0].T, torch.tensor(expected, dtype=torch.float64) / 8 / 2)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((1, 2, 4, 1), (2, 1, 1), (2 * log(7 / 1) + log(7 / 2) + log(7 / 4)) / 4 / 3),
        ((1, 2, 4, 9), (2, 1, 1), (2 * log(7 / 1) + log(7 / 2) + log(7 / 4)) / 4 / 3),  # the new channel is cut off
        ((2, 1, 1), (2, 1, 1), 1.5 * LN2 / 3),  # the entropy of (1/2, 1/4, 1/4)
        ((3, 5), (1,), 0),
    ],
)
def test_output_distillation_by_hand(student, teacher, expected):
    assert output_distillation(pixels(student), pixels(teacher)).item() == pytest.approx(expected, abs=1e-12)


def test_output_distillation_has_the_published_gradient():
    # two pixels of 128, and the gradients of the published MBS code there, times 128
    student = [
        [-1.9671911, -1.4350601, -0.35867456, -1.2155094, 0.2578397, 1.8020118],
        [1.7191893, -1.9078845, 1.3144997, 1.117558, 2.9864202, 2.619021],
    ]
    teacher = [
        [4.8457427, -0.7161636, -2.4706154, 3.7181947, -0.030046351],
        [-0.32654205, 1.3709685, -1.429305, 1.6122413, 0.14433378],
    ]
    gradient = [
        [-0.13921851, 0.017278641, 0.052284338, -0.026241275, 0.09589681, 0.0],
        [0.021491779, -0.0702542, 0.018708516, -0.071675576, 0.10172948, 0.0],
    ]
    logits = torch.tensor(student)[:, :, None, None].requires_grad_()
    output_distillation(logits, torch.tensor(teacher)[:, :, None, None]).backward()
    torch.testing.assert_close(2 * logits.grad[:, :, 0, 0], torch.tensor(gradient), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "alpha", "expected"),
    [
        # log2 r = (-2, -2, -1): background and new share 2/8
        ((1, 2, 4, 1), (2, 1, 1), 1, (2 * 2 + 2 + 1) / 4 * LN2 / 3),
        ((1, 2, 4, 1), (2, 1, 1), 2, (4 * 2 + 2 + 1) / 6 * LN2 / 3),  # p' is proportional to (4, 1, 1)
        ((1, 2, 4, 1), (2, 1, 1), 0, (2 + 2 + 1) / 3 * LN2 / 3),  # uniform
        ((1, 4, 2, 1), (2, 1, 1), 1, (2 * 2 + 1 + 2) / 4 * LN2 / 3),
        ((0.25, 2, 4, 1, 0.75), (2, 1, 1), 1, (2 * 2 + 2 + 1) / 4 * LN2 / 3),  # two new channels
        ((2, 1, 1), (2, 1, 1), 1, 1.5 * LN2 / 3),  # no new class
        ((3, 5, 1), (1,), 1, 0),  # no old class: everything may be background
    ],
)
def test_unbiased_distillation_by_hand(student, teacher, alpha, expected):
    loss = unbiased_distillation(pixels(student), pixels(teacher), alpha=alpha)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_unbiased_distillation_reaches_new_channels_through_the_background():
    logits = pixels((1, 2, 4, 1), (1, 1, 1, 5))
    unbiased_distillation(logits, pixels((2, 1, 1), (6, 1, 1)).detach()).backward()
    # dL/dz_c = (p_c - p'_0 p_c / (p_0 + p_new)) / (N K) for background and new classes, (p_c - p'_c) / (N K) for old
    expected = [(1 / 8 - 1 / 4, 0, 1 / 4, 1 / 8 - 1 / 4), (0, 0, 0, 0)]
    torch.testing.assert_close(logits.grad[0, :, 0].T, torch.tensor(expected, dtype=torch.float64) / 2 / 3)


def _by_loops(logits, teacher, labels):
    """Every loss once more, pixel by pixel and from the definitions."""
    found = {name: [] for name in ("cross_entropy", "unbiased_cross_entropy", "output", "unbiased")}
    images, _, height, width = logits.shape
    old = teacher.shape[1]
    for b, i, j in product(range(images), range(height), range(width)):
        weights = [exp(v) for v in logits[b, :, i, j].tolist()]
        p = [w / sum(weights) for w in weights]
        target = [exp(v) for v in teacher[b, :, i, j].tolist()]
        target = [w / sum(target) for w in target]
        y = int(labels[b, i, j])
        if y != 255:
            found["cross_entropy"].append(-log(p[y]))
            found["unbiased_cross_entropy"].append(-log(sum(p[:old]) if y < old else p[y]))
        sliced = [w / sum(weights[:old]) for w in weights[:old]]
        folded = [p[0] + sum(p[old:]), *p[1:old]]
        found["output"].append(-sum(t * log(s) for t, s in zip(target, sliced, strict=True)) / old)
        found["unbiased"].append(-sum(t * log(s) for t, s in zip(target, folded, strict=True)) / old)
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_maps_agree_with_loops_over_pixels(seed):
    logits, teacher, labels = example(seed)
    expected = _by_loops(logits, teacher, labels)
    found = {
        "cross_entropy": cross_entropy(logits, labels),
        "unbiased_cross_entropy": unbiased_cross_entropy(logits, labels, OLD),
        "output": output_distillation(logits, teacher),
        "unbiased": unbiased_distillation(logits, teacher),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


# --- reductions to simpler losses


def test_unbiased_cross_entropy_is_cross_entropy_when_only_the_background_is_old():
    logits, _, labels = example(dtype=torch.float32)
    plain, unbiased = cross_entropy(logits, labels), unbiased_cross_entropy(logits, labels, 1)
    assert plain.equal(unbiased)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (plain, unbiased)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


def test_unbiased_distillation_is_plain_without_new_channels():
    logits, teacher, _ = example()
    torch.testing.assert_close(unbiased_distillation(logits[:, :OLD], teacher), output_distillation(logits, teacher))


def test_unbiased_distillation_rests_at_the_balanced_start():
    _, teacher, _ = example()
    shared = teacher[:, :1] - log(3)  # background and two new classes
    student = torch.cat([shared, teacher[:, 1:], shared, shared], dim=1).requires_grad_()
    unbiased_distillation(student, teacher).backward()
    assert student.grad.abs().max() < 1e-15
    # and cross-entropy against the background alone does not: it would push the new classes away
    logits = student.detach().requires_grad_()
    output_distillation(logits, teacher).backward()
    assert logits.grad.abs().max() > 1e-3


# --- what every loss has in common


@every_loss
def test_gradients_are_those_of_finite_differences(loss):
    logits, teacher, labels = (values[..., :2, :2].detach() for values in example())
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, labels), logits.requires_grad_())


@every_loss
def test_adding_a_constant_to_the_logits_of_a_pixel_changes_nothing(loss):
    logits, teacher, labels = example()
    shift = 10 * torch.randn(2, 1, *GRID, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(loss(logits + shift, teacher, labels), loss(logits, teacher, labels))
    torch.testing.assert_close(loss(logits, teacher - shift, labels), loss(logits, teacher, labels))


@every_loss
@pytest.mark.parametrize("scale", [50, 1e3])
def test_confident_logits_stay_finite_and_precise(loss, scale):
    _, _, labels = example()
    signs = [
        torch.randint(2, (2, c, *GRID), generator=torch.Generator().manual_seed(c)) * 2 - 1 for c in (CHANNELS, OLD)
    ]
    values, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        logits, teacher = (scale * sign.to(dtype) for sign in signs)
        logits.requires_grad_()
        values.append(loss(logits, teacher, labels))
        gradients.append(torch.autograd.grad(values[-1], logits)[0])
    assert values[0].isfinite() and gradients[0].isfinite().all()
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-7)  # 1e3 has digits of 6e-5


def test_many_pixels_do_not_leave_the_range_of_float16():
    logits = torch.tensor([6.0, -6.0], dtype=torch.float16)[None, :, None, None].expand(1, 2, 100, 100)
    labels = torch.ones(1, 100, 100, dtype=torch.int64)
    for value in (cross_entropy(logits, labels), unbiased_cross_entropy(logits, labels, 1)):
        assert value.item() == pytest.approx(12, rel=1e-4)  # times 10 000 pixels: more than 65 504


# --- labels


@pytest.mark.parametrize("loss", [cross_entropy, lambda z, y: unbiased_cross_entropy(z, y, OLD)])
def test_nothing_to_learn_from_ignored_pixels(loss):
    logits, _, labels = example()
    value = loss(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0 and logits.grad.eq(0).all()
    logits.grad = None
    loss(logits, labels).backward()
    assert logits.grad.movedim(1, -1)[labels == 255].eq(0).all()
    assert logits.grad.movedim(1, -1)[labels != 255].ne(0).all()


@pytest.mark.parametrize(
    ("ignored", "labels", "old", "expected"),
    [
        (1, (0, 1), 3, (-log(4 / 8),)),  # an old class that does not count is not folded
        (0, (0, 1), 3, (-log(8 / 10),)),  # folding must not turn an old class into an ignored one
        (0, (1, 4), 3, (-log(4 / 8), -log(1 / 10))),
        (3, (3, 4), 3, (-log(1 / 10),)),
        (-1, (-1, 4), 3, (-log(1 / 10),)),
        (2, (4, 2), 3, (-log(1 / 8),)),
    ],
)
def test_any_label_may_be_the_ignored_one(ignored, labels, old, expected):
    logits = pixels((1, 2, 1, 3, 1), (2, 3, 3, 1, 1))
    loss = unbiased_cross_entropy(logits, row(*labels), old, ignore_index=ignored)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-12)
    plain = cross_entropy(logits, row(*labels), ignore_index=ignored)
    assert plain.equal(unbiased_cross_entropy(logits, row(*labels), 1, ignore_index=ignored))


@pytest.mark.parametrize("loss", [cross_entropy, lambda z, y: unbiased_cross_entropy(z, y, OLD)])
def test_a_label_without_a_channel_is_refused(loss):
    with pytest.raises(IndexError, match="out of bounds"):
        loss(pixels((1, 2, 1, 3, 1)), row(5))


# --- shapes


@pytest.mark.parametrize("old", [-1, 0, CHANNELS + 1])
def test_impossible_old_channels_are_refused(old):
    logits, _, labels = example()
    with pytest.raises(ValueError, match=f"old_channels is {old}; the logits have {CHANNELS} channels"):
        unbiased_cross_entropy(logits, labels, old)


@pytest.mark.parametrize("loss", [output_distillation, unbiased_distillation])
def test_a_teacher_with_more_channels_is_refused(loss):
    logits, teacher, _ = example()
    with pytest.raises(ValueError, match=f"the teacher has {CHANNELS} channels, the student only {OLD}"):
        loss(teacher, logits)
