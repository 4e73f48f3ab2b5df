"""MBS's losses, labels and weights: the published code's numbers, values by hand, empty sets, reach of gradients."""

from math import inf, log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciss.labels.patches import label_shares, patch_labels, patch_weights
from ciss.labels.selective import selective_pseudo_labels
from ciss.losses import (
    adaptive_feature_distillation,
    label_guided_distillation,
    orthogonality,
    output_distillation,
)
from ciss.models.mask_transformer import class_norm

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mbs.npz")
NEW = torch.tensor([5])


def golden(case, *names):
    """Arrays of a case as tensors, label maps as int64."""
    arrays = (torch.from_numpy(GOLDEN[f"{case}.{name}"]) for name in names)
    return [values if values.is_floating_point() else values.long() for values in arrays]


def same(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=1e-5, atol=1e-6)


def gradient(loss, *inputs):
    return torch.autograd.grad(loss, inputs)[0]


def rows(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def pixels(*values, dtype=torch.float64):
    """(1,C,1,N) of one row for each pixel."""
    return rows(*values, dtype=dtype).T[None, :, None].contiguous()


def of(*probabilities):
    """Logits (1,C,1,N) whose softmax is proportional to each pixel's row."""
    return pixels(*probabilities).log()


def row(*labels):
    return torch.tensor(labels)[None, None]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_labels(classes, *shape, seed=0):
    """With a row of ignored pixels in the first image."""
    labels = torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))
    labels[0, 0] = 255
    return labels


# --- the published code's numbers

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@both_precisions
@pytest.mark.parametrize(("case", "new"), [("seed0", [5]), ("after_transfer", [4, 5])])
def test_published_orthogonality(case, new, dtype):
    """There, B copies of the tokens: the gradient of one set is the sum over the copies."""
    tokens, loss, grad = golden(f"ortho.{case}", "class_token", "loss", "grad")
    assert tokens[0].equal(tokens[1])
    tokens = tokens[0].to(dtype).requires_grad_()
    found = len(new) / 6 * orthogonality(tokens, torch.tensor(new))
    same(found, loss)
    same(gradient(found, tokens), grad.sum(dim=0))


@both_precisions
@pytest.mark.parametrize("case", ["seed0", "one_image_zero"])
def test_published_feature_distillation(case, dtype):
    inputs, targets, weights, loss, grad = golden(f"afd.{case}", "inputs", "targets", "weights", "loss", "grad")
    features, teacher = inputs[:, 0].to(dtype).requires_grad_(), targets[:, 0].to(dtype)
    found = adaptive_feature_distillation(features, teacher, weights[:, 0, :, 0].to(dtype))
    same(found, loss)
    same(gradient(found, features), grad[:, 0])


@both_precisions
def test_published_class_feature_distillation(dtype):
    """A plain mean square: what ones as weights give."""
    inputs, targets, loss, grad = golden("afd.cls_feat", "inputs", "targets", "loss", "grad")
    inputs = inputs.to(dtype).requires_grad_()
    found = adaptive_feature_distillation(inputs, targets.to(dtype), torch.ones(inputs.shape[:2], dtype=dtype))
    same(found, loss)
    same(gradient(found, inputs), grad)


@both_precisions
@pytest.mark.parametrize("case", ["seed0", "no_new_class", "one_image_all_ignore"])
def test_published_label_guided_distillation(case, dtype):
    student, teacher, labels, loss, grad = golden(f"lgkd.{case}", "student", "teacher", "labels", "loss", "grad")
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    found = label_guided_distillation(student, teacher, labels)
    same(found, loss)
    same(gradient(found, student), grad)


@both_precisions
def test_published_plain_distillation(dtype):
    student, teacher, loss, grad = golden("kd.seed0", "student", "teacher", "loss", "grad")
    student = student.to(dtype).requires_grad_()
    found = output_distillation(student, teacher.to(dtype))
    same(found, loss)
    same(gradient(found, student), grad)


@both_precisions
@pytest.mark.parametrize(("case", "selective"), [("seed0", True), ("tie", True), ("no_mbs", False)])
def test_published_pseudo_labels(case, selective, dtype):
    teacher, labels, expected = golden(f"pseudo.{case}", "teacher_logits", "labels", "out")
    found = selective_pseudo_labels(labels, teacher.to(dtype), threshold=0.7, selective=selective)
    assert found.equal(expected)


@both_precisions
@pytest.mark.parametrize(("case", "new"), [("seed0", [5, 6]), ("down8", [5])])
def test_published_patch_weights(case, new, dtype):
    teacher, labels, expected = golden(f"scoremap.{case}", "teacher_logits", "labels", "weights")
    found = patch_weights(labels.long(), teacher.to(dtype), torch.tensor(new))
    same(found, expected)


def test_published_patch_labels():
    full, expected = golden("scoremap.down8", "labels_full", "labels")
    assert patch_labels(full, (4, 4)).equal(expected.long())


@both_precisions
def test_published_class_norm(dtype):
    x, weight, bias, expected = (values.to(dtype) for values in golden("masknorm.seed0", "x", "weight", "bias", "out"))
    same(class_norm(x, weight, bias, eps=1e-5), expected)


# --- orthogonality

TOKENS = rows((1, 0), (0, 2), (3, 4))  # background, an old class, a new one


def test_orthogonality_by_hand():
    """cos = .6 and .8; d|cos|/de = (u_j - cos u_i) / |e_i|, in the new token alone."""
    tokens = TOKENS.clone().requires_grad_()
    loss = orthogonality(tokens, torch.tensor([2]))
    assert loss.item() == pytest.approx((0.6 + 0.8) / 2)
    same(gradient(loss, tokens), rows((0, 0), (0, 0), (0.016, -0.012)))


def test_the_sign_of_a_cosine_does_not_matter():
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)[:, None]
    assert orthogonality(signs * TOKENS, torch.tensor([2])).item() == pytest.approx(0.7)
    tokens = (signs * TOKENS).requires_grad_()
    # from (0,-1) the token turns away too: |cos| = .8 u_y as before
    same(gradient(orthogonality(tokens, torch.tensor([2])), tokens)[2], rows(0.016, -0.012))


def test_new_classes_avoid_each_other_and_exact_zeros_do_not_count():
    """Row 2: .6, .8, .6; row 3: 1, 0, .6. The mean is over the five that are not 0."""
    tokens = torch.cat([TOKENS, rows((5, 0))]).requires_grad_()
    loss = orthogonality(tokens, torch.tensor([2, 3]))
    assert loss.item() == pytest.approx((0.6 + 0.8 + 0.6 + 1 + 0.6) / 5)
    grad = gradient(loss, tokens)
    # row 2 sees (1,0) twice and (0,1) once; row 3 sees (3,4): ((.6,.8) - .6 (1,0)) / 5; its |cos| to (1,0) is flat
    row_2 = (2 * rows(0.128, -0.096) + rows(-0.096, 0.072)) / 5
    same(grad, torch.stack([torch.zeros(2), torch.zeros(2), row_2, rows(0, 0.16) / 5]))


def test_orthogonality_agrees_with_loops_over_pairs():
    tokens, new = random(7, 5).requires_grad_(), [2, 5, 6]
    cosines = [F.cosine_similarity(tokens[i], tokens[j].detach(), dim=0).abs() for i in new for j in range(7) if j != i]
    expected = torch.stack(cosines).mean()
    found = orthogonality(tokens, torch.tensor(new))
    same(found.detach(), expected.detach())
    grad = gradient(found, tokens)
    same(grad, gradient(expected, tokens))
    assert grad[[0, 1, 3, 4]].eq(0).all() and grad[new].ne(0).any(dim=1).all()


def test_orthogonality_looks_at_directions_only_and_at_no_order():
    tokens, new = random(6, 4), torch.tensor([4, 5])
    expected = orthogonality(tokens, new)
    same(orthogonality(tokens * (1 + torch.arange(6))[:, None], new), expected)
    same(orthogonality(tokens, new.flip(0)), expected)
    order = torch.tensor([3, 5, 1, 0, 4, 2])
    same(orthogonality(tokens[order], torch.tensor([1, 4])), expected)


@pytest.mark.parametrize(
    ("tokens", "new"),
    [
        (torch.eye(3), [2]),  # exactly orthogonal: the published mean of nothing is NaN
        (torch.eye(4), [2, 3]),
        (TOKENS, []),  # no new class
        (TOKENS[:1], [0]),  # no other class
    ],
    ids=["orthogonal", "several", "none", "alone"],
)
def test_orthogonality_of_nothing_is_zero(tokens, new):
    tokens = tokens.clone().requires_grad_()
    loss = orthogonality(tokens, torch.tensor(new, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and tokens.grad.eq(0).all()


def test_a_token_of_zeros_stays_finite():
    tokens = torch.cat([TOKENS, rows((0, 0))]).requires_grad_()
    for new in ([2], [3], [2, 3]):
        loss = orthogonality(tokens, torch.tensor(new))
        assert loss.isfinite() and gradient(loss, tokens).isfinite().all()


def test_classes_that_start_as_the_background_have_cosine_one():
    tokens = TOKENS[[0, 1, 0, 0]].clone().requires_grad_()
    loss = orthogonality(tokens, torch.tensor([2, 3]))
    assert loss.item() == pytest.approx(1)  # of six pairs two are orthogonal, the rest equal
    assert gradient(loss, tokens).isfinite().all()


# --- adaptive feature distillation

FEATURES, OTHERS = rows([(1, 2), (3, 1), (0, 5)]), rows([(0, 0), (0, 1), (1, 4)])
WEIGHTS = rows((1, 0.5, 0))


def test_feature_distillation_by_hand():
    """Squares 5, 9, 2; divided by D times the two patches that count, not by the weights' sum."""
    features = FEATURES.clone().requires_grad_()
    loss = adaptive_feature_distillation(features, OTHERS, WEIGHTS)
    assert loss.item() == pytest.approx((5 + 0.5 * 9) / (2 * 2))
    same(gradient(loss, features), rows([(2 / 4, 4 / 4), (3 / 4, 0), (0, 0)]))


@pytest.mark.parametrize(("weight", "patches"), [(0.0, 2), (1e-6, 3), (1e-30, 3)])
def test_the_least_weight_counts_as_a_patch(weight, patches):
    weights = rows((1, 0.5, weight))
    expected = (5 + 0.5 * 9 + 2 * weight) / (2 * patches)
    assert adaptive_feature_distillation(FEATURES, OTHERS, weights).item() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2, 6, 3), (1, 5, 8), (3, 1, 1)], ids=str)
def test_ones_as_weights_are_the_mean_square(shape):
    features, teacher = random(*shape).requires_grad_(), random(*shape, seed=1)
    loss, expected = (
        adaptive_feature_distillation(features, teacher, torch.ones(shape[:2])),
        F.mse_loss(features, teacher),
    )
    same(loss, expected)
    same(gradient(loss, features), gradient(expected, features))
    same(adaptive_feature_distillation(features, teacher, 0.25 * torch.ones(shape[:2])), expected / 4)


@both_precisions
def test_no_weight_at_all_is_zero(dtype):
    """The published code divides 0 by 0."""
    features = FEATURES.to(dtype).requires_grad_()
    loss = adaptive_feature_distillation(features, OTHERS.to(dtype), torch.zeros(1, 3))
    loss.backward()
    assert loss.item() == 0 and features.grad.eq(0).all()


def test_feature_distillation_knows_no_order_of_patches_or_images():
    features, teacher, weights = random(3, 8, 4), random(3, 8, 4, seed=1), random(3, 8, seed=2).clamp(min=0)
    expected = adaptive_feature_distillation(features, teacher, weights)
    for order in (
        torch.tensor([2, 0, 1]),
        (slice(None), torch.randperm(8, generator=torch.Generator().manual_seed(0))),
    ):
        same(adaptive_feature_distillation(features[order], teacher[order], weights[order]), expected)
    # the batch is one pool: its parts weigh by their number of patches
    parts = [
        adaptive_feature_distillation(*(values[i : i + 1] for values in (features, teacher, weights))) for i in range(3)
    ]
    counts = (weights > 0).sum(dim=1)
    assert counts.unique().numel() > 1
    same((torch.stack(parts) * counts).sum() / counts.sum(), expected)


# --- label-guided distillation

# two old channels, one new; the teacher says 3/4 background
STUDENT, TEACHER = (1, 2, 5), (3, 1)


@pytest.mark.parametrize(
    ("label", "target"),
    [
        (0, (3 / 4, 1 / 4, 0)),
        (2, (0, 1 / 4, 3 / 4)),  # a new class takes the background's share
        (1, (3 / 4, 1 / 4, 0)),  # an old class, as the sequential setting keeps it: the published code overwrites it
        (255, (3 / 4, 1 / 4, 0)),  # ignored pixels are distilled, too
    ],
)
def test_label_guided_distillation_by_hand(label, target):
    logits = of(STUDENT).requires_grad_()
    loss = label_guided_distillation(logits, of(TEACHER), row(label))
    expected = -sum(q * log(s / 8) for q, s in zip(target, STUDENT, strict=True)) / 3
    assert loss.item() == pytest.approx(expected)
    # d/dz = (softmax - q) / (pixels * channels): the softmax has all channels
    same(gradient(loss, logits)[0, :, 0, 0], (rows(*STUDENT) / 8 - rows(*target)) / 3)


def targets(teacher, labels, channels):
    """q once more, pixel by pixel, from its definition."""
    old = teacher.shape[1]
    q = torch.cat([teacher.softmax(dim=1), torch.zeros(len(teacher), channels - old, *labels.shape[1:])], dim=1)
    for b, i, j in torch.nonzero((labels >= old) & (labels != 255)).tolist():
        q[b, labels[b, i, j], i, j], q[b, 0, i, j] = q[b, 0, i, j].item(), 0
    return q


@pytest.mark.parametrize(("old", "channels"), [(3, 4), (3, 6), (1, 3), (4, 4), (1, 1)])
def test_label_guided_distillation_agrees_with_loops_over_pixels(old, channels):
    logits, teacher = random(2, channels, 4, 7).requires_grad_(), random(2, old, 4, 7, seed=1)
    labels = random_labels(channels, 2, 4, 7)
    q = targets(teacher, labels, channels)
    same(q.sum(dim=1), torch.ones(2, 4, 7))
    expected = -(q * logits.log_softmax(dim=1)).mean()
    loss = label_guided_distillation(logits, teacher, labels)
    same(loss.detach(), expected.detach())
    same(gradient(loss, logits), gradient(expected, logits))


def test_without_a_new_label_the_target_is_the_padded_teacher():
    logits, teacher, labels = random(2, 5, 4, 6), random(2, 3, 4, 6, seed=1), random_labels(3, 2, 4, 6)
    padded = torch.cat([teacher, torch.full((2, 2, 4, 6), -inf, dtype=torch.float64)], dim=1)
    same(label_guided_distillation(logits, teacher, labels), output_distillation(logits, padded))
    assert not label_guided_distillation(logits, teacher, labels).isclose(output_distillation(logits, teacher))
    # no channel is new: plain distillation, whatever the labels
    same(label_guided_distillation(logits[:, :3], teacher, labels), output_distillation(logits[:, :3], teacher))


def test_only_new_labels_matter():
    logits, teacher = random(1, 5, 2, 3), random(1, 3, 2, 3, seed=1)
    value = {
        y: label_guided_distillation(logits, teacher, torch.full((1, 2, 3), y)).item() for y in (0, 1, 2, 3, 4, 255)
    }
    assert value[0] == value[1] == value[2] == value[255] and len(set(value.values())) == 3


@pytest.mark.parametrize("ignored", [4, -1, 255, 0])
def test_any_label_may_be_the_ignored_one(ignored):
    """Also one that would be a channel."""
    logits, teacher = random(1, 5, 1, 1), random(1, 3, 1, 1, seed=1)
    expected = label_guided_distillation(logits, teacher, row(0))
    same(label_guided_distillation(logits, teacher, row(ignored), ignore_index=ignored), expected)
    assert not label_guided_distillation(logits, teacher, row(3), ignore_index=ignored).isclose(expected)


def test_old_classes_may_swap_places():
    logits, teacher = random(2, 6, 3, 4), random(2, 4, 3, 4, seed=1)
    labels = random_labels(6, 2, 3, 4)
    expected = label_guided_distillation(logits, teacher, labels)
    same(label_guided_distillation(logits[:, [0, 3, 1, 2, 4, 5]], teacher[:, [0, 3, 1, 2]], labels), expected)
    # and new ones, if their labels do
    swapped = torch.where((labels == 4) | (labels == 5), 9 - labels, labels)
    same(label_guided_distillation(logits[:, [0, 1, 2, 3, 5, 4]], teacher, swapped), expected)
    shift = random(2, 1, 3, 4, seed=2)
    same(label_guided_distillation(logits + shift, teacher - shift, labels), expected)


def test_label_guided_distillation_is_a_mean_over_pixels():
    logits, teacher, labels = random(4, 5, 3, 4), random(4, 3, 3, 4, seed=1), random_labels(5, 4, 3, 4)
    expected = label_guided_distillation(logits, teacher, labels)
    parts = [label_guided_distillation(logits[i::2], teacher[i::2], labels[i::2]) for i in (0, 1)]
    same(sum(parts) / 2, expected)
    same(label_guided_distillation(logits.mT, teacher.mT, labels.mT), expected)


def test_guided_distillation_of_chosen_pixels():
    logits, teacher = random(2, 5, 3, 4), random(2, 3, 3, 4, seed=1)
    labels, where = random_labels(5, 2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)
    everything = label_guided_distillation(logits, teacher, labels)
    same(label_guided_distillation(logits, teacher, labels, where=~where), everything)
    first = torch.tensor([True, False])[:, None, None].expand(2, 3, 4)
    same(
        label_guided_distillation(logits, teacher, labels, where=first),
        label_guided_distillation(logits[:1], teacher[:1], labels[:1]),
    )
    logits.requires_grad_()
    nothing = label_guided_distillation(logits, teacher, labels, where=where)
    assert nothing.item() == 0 and gradient(nothing, logits).eq(0).all()


def test_a_teacher_with_more_channels_is_refused():
    with pytest.raises(ValueError, match="the teacher has 5 channels, the student only 3"):
        label_guided_distillation(random(1, 3, 2, 2), random(1, 5, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))


# --- selective pseudo labels


@pytest.mark.parametrize(
    ("teacher", "selected", "confident"),
    [
        ((0.1, 0.8, 0.1), 1, 1),
        ((0.2, 0.09, 0.71), 2, 2),
        ((0.3, 0.4, 0.3), 255, 0),  # an old class, unsure which
        ((0.4, 0.3, 0.3), 255, 0),  # no class above background, all together are
        ((0.45, 0.55, 0.0), 255, 0),
        ((0.51, 0.49, 0.0), 0, 0),
        ((0.8, 0.1, 0.1), 0, 0),
    ],
)
def test_selective_labels_by_hand(teacher, selected, confident):
    """Given labels, old ones of the sequential setting and ignored pixels among them, are left alone."""
    given, logits = row(0, 1, 2, 3, 255), of(*[teacher] * 5)
    assert selective_pseudo_labels(given, logits).equal(row(selected, 1, 2, 3, 255))
    assert selective_pseudo_labels(given, logits, selective=False).equal(row(confident, 1, 2, 3, 255))
    assert given.equal(row(0, 1, 2, 3, 255))  # not written into


def test_ties_are_for_the_label_at_the_threshold_and_for_the_background_at_one_half():
    low = -1e4
    # p' = (0, 1/2, 1/2): as certain as the threshold, which is enough; the first of two equals
    assert selective_pseudo_labels(row(0), pixels((low, 0, 0)), threshold=0.5).item() == 1
    assert selective_pseudo_labels(row(0), pixels((low, 0, 0)), threshold=0.51).item() == 255
    # p'_0 = 1/2 is not less than the rest
    for logits in ((0, 0, low), (0, low, 0)):
        assert selective_pseudo_labels(row(0), pixels(logits)).item() == 0
        assert selective_pseudo_labels(row(0), pixels(logits), threshold=0.5).item() == 0  # the argmax is background


def test_the_two_rules_can_be_switched_off():
    given, teacher = random_labels(4, 2, 16, 24), 3 * random(2, 3, 16, 24)
    assert selective_pseudo_labels(given, teacher, threshold=1.01, selective=False).equal(given)
    doubtful = (given == 0) & (teacher.softmax(dim=1)[:, 0] < 0.5)
    assert selective_pseudo_labels(given, teacher, threshold=1.01).equal(torch.where(doubtful, 255, given))
    # at threshold 0 background pixels take the teacher's class; where that is background, the second rule acts
    best = teacher.argmax(dim=1)
    expected = torch.where(given == 0, best, given)
    assert selective_pseudo_labels(given, teacher, threshold=0, selective=False).equal(expected)
    expected = torch.where((expected == 0) & doubtful, 255, expected)
    assert selective_pseudo_labels(given, teacher, threshold=0).equal(expected) and (doubtful & (best == 0)).any()


def test_a_teacher_of_background_alone_changes_nothing():
    given = row(0, 1, 255)
    assert selective_pseudo_labels(given, pixels((0.3,), (-2,), (0,))).equal(given)


def test_selective_labels_knows_no_order_of_old_classes_and_images():
    given, teacher = random_labels(5, 2, 6, 8), 2 * random(2, 4, 6, 8)
    given[(given > 0) & (given < 4)] = 0
    expected = selective_pseudo_labels(given, teacher)
    assert selective_pseudo_labels(given.flip(0), teacher.flip(0)).equal(expected.flip(0))
    moved = torch.tensor([0, 2, 3, 1, 4] + [255] * 251)[expected]  # class c stands at moved[c]
    assert selective_pseudo_labels(given, teacher[:, [0, 3, 1, 2]]).equal(moved)
    assert selective_pseudo_labels(given, teacher + 7).equal(expected)


@pytest.mark.parametrize("ignored", [-1, 99])
def test_doubt_takes_the_ignored_label_of_ones_choice(ignored):
    given = row(0, ignored, 0)
    found = selective_pseudo_labels(given, of(*[(0.4, 0.3, 0.3)] * 2, (0.1, 0.8, 0.1)), ignore_index=ignored)
    assert found.equal(row(ignored, ignored, 1))


# --- patches


def test_patch_weights_by_hand():
    """Background: the teacher's p'_0; old: 1; new or ignored: 0."""
    teacher = of(*[(2, 1, 1)] * 6)
    labels = row(0, 1, 2, 3, 4, 255)
    same(patch_weights(labels, teacher, torch.tensor([3, 4])), rows([[0.5, 1, 1, 0, 0, 0]]))
    # the teacher's opinion counts on background only
    sure = patch_weights(labels, of(*[(1, 98, 1)] * 6), torch.tensor([3, 4]))
    same(sure, rows([[0.01, 1, 1, 0, 0, 0]]))


def test_patch_weights_take_new_classes_from_the_argument():
    labels, teacher = row(1, 2, 3), of(*[(1, 1, 1)] * 3)
    same(patch_weights(labels, teacher, torch.tensor([1, 3])), rows([[0, 1, 0]]))
    same(patch_weights(labels, teacher, torch.tensor([3, 1])), rows([[0, 1, 0]]))
    same(patch_weights(labels, teacher, torch.tensor([], dtype=torch.int64)), rows([[1, 1, 1]]))


@pytest.mark.parametrize("ignored", [-1, 99])
def test_patch_weights_of_another_ignored_label(ignored):
    found = patch_weights(row(0, 1, ignored), of(*[(1, 1, 2)] * 3), torch.tensor([3]), ignore_index=ignored)
    same(found, rows([[0.25, 1, 0]]))


QUARTERS = torch.tensor([[1, 2, 2, 255], [2, 2, 255, 255], [3, 0, 5, 4], [0, 3, 4, 5], [7, 8, 8, 9], [8, 8, 9, 9]])[
    None
]


def test_patch_labels_by_hand():
    """The first pixel, or the most frequent label: the smallest id of several, and 255 as a label of its own."""
    assert patch_labels(QUARTERS, (3, 2)).equal(torch.tensor([[[1, 2], [3, 5], [7, 8]]]))
    assert patch_labels(QUARTERS, (3, 2), rule="majority").equal(torch.tensor([[[2, 255], [0, 4], [8, 9]]]))
    for rule in ("top_left", "majority"):
        assert patch_labels(QUARTERS, (6, 4), rule=rule).equal(QUARTERS)


def test_shares_of_labels_by_hand():
    """Of four pixels; ignored and unknown labels are part of the whole."""
    labels = torch.tensor([[[0, 0, 1, 255], [1, 0, 2, 2], [7, 7, 255, 255], [1, 0, 255, 255]]])
    expected = [[[0.75, 0.25, 0], [0, 0.25, 0.5]], [[0.25, 0.25, 0], [0, 0, 0]]]
    assert label_shares(labels, (2, 2), 3).equal(torch.tensor([expected]))
    cut = label_shares(labels[:, 1:], (2, 2), 3, covered=(4, 4))  # the last patches have one row of pixels
    assert cut.equal(torch.tensor([[[[0.25, 0.25, 0], [0, 0, 0.5]], [[0.5, 0.5, 0], [0, 0, 0]]]]))
    everything = label_shares(random_labels(9, 2, 30, 35), (4, 5), 9)[1]
    torch.testing.assert_close(everything.sum(dim=-1), torch.ones(4, 5))


def test_the_first_pixel_is_that_of_nearest_resizing():
    """Where patches tile the image; not the centre."""
    labels = random_labels(9, 2, 32, 48)
    nearest = F.interpolate(labels[:, None].double(), (4, 6), mode="nearest")[:, 0].long()
    found = patch_labels(labels, (4, 6))
    assert found.equal(nearest) and found.equal(labels[:, ::8, ::8])
    assert not found.equal(labels[:, 4::8, 4::8])


@pytest.mark.parametrize(("height", "width"), [(30, 35), (25, 33), (32, 40), (31, 34)])
def test_patches_of_a_filled_up_image_start_at_multiples_of_their_side(height, width):
    """Patches of 8 over 32 x 40 pixels, of which the image is a part: the last ones are cut."""
    labels = random_labels(4, 2, height, width, seed=3)
    found = patch_labels(labels, (4, 5), covered=(32, 40))
    assert found.equal(labels[:, ::8, ::8])
    counted = torch.zeros_like(found)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                inside = labels[b, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].flatten().tolist()
                counted[b, i, j] = max(sorted(set(inside)), key=inside.count)
    assert patch_labels(labels, (4, 5), covered=(32, 40), rule="majority").equal(counted)


def test_pixels_outside_the_image_have_no_vote():
    """One pixel of a patch is inside, fifteen are not."""
    labels = torch.full((1, 5, 5), 3)
    labels[0, 4, 4] = 255
    found = patch_labels(labels, (2, 2), covered=(8, 8), rule="majority")
    assert found.equal(torch.tensor([[[3, 3], [3, 255]]]))
    labels[0, 4, 4] = 0
    assert patch_labels(labels, (2, 2), covered=(8, 8), rule="majority")[0, 1, 1] == 0


def test_an_ignored_label_of_ones_choice_is_a_label_of_its_own():
    labels = torch.tensor([[[-1, -1], [-1, 2]]])
    assert patch_labels(labels, (1, 1), rule="majority", ignore_index=-1).item() == -1
    labels = torch.tensor([[[255, 255], [2, 2]]])
    assert patch_labels(labels, (1, 1), rule="majority").item() == 2


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'centre'"):
        patch_labels(QUARTERS, (3, 2), rule="centre")


# --- normalisation over the classes


def test_class_norm_by_hand():
    """(x - mean) / (unbiased std + eps), then a scale and a shift for each class."""
    x, weight, bias = rows((1, 2, 3)), rows(1, 2, 3), rows(0.5, 0, -1)
    same(class_norm(x, weight, bias), rows((-1 / (1 + 1e-5) + 0.5, 0, 3 / (1 + 1e-5) - 1)))
    same(class_norm(x, torch.ones(3), torch.zeros(3), eps=1.0), rows((-0.5, 0, 0.5)))


def test_class_norm_bounds_logits():
    """At most (C - 1) / sqrt(C) times the scale."""
    x = torch.eye(6, dtype=torch.float64)
    found = class_norm(x, torch.ones(6), torch.zeros(6))
    assert found.amax().item() == pytest.approx(5 / sqrt(6), rel=1e-4)
    shifted = class_norm(100 * x + 3, torch.ones(6), torch.zeros(6))
    torch.testing.assert_close(shifted, found, rtol=1e-3, atol=1e-4)


def test_class_norm_of_equal_cosines_is_the_shift():
    x = torch.full((2, 3, 4), 0.3, dtype=torch.float64, requires_grad=True)
    found = class_norm(x, torch.ones(4), torch.arange(4.0))
    same(found, torch.arange(4.0).expand(2, 3, 4))
    assert gradient(found.square().sum(), x).isfinite().all()


# --- what they have in common

OLD, CHANNELS = 3, 5


def triple():
    return random(2, CHANNELS, 4, 6), random(2, OLD, 4, 6, seed=1), random_labels(CHANNELS, 2, 4, 6)


def test_weights_and_labels_are_constants():
    weights = WEIGHTS.clone().requires_grad_()
    features = FEATURES.clone().requires_grad_()
    adaptive_feature_distillation(features, OTHERS, weights).backward()
    assert weights.grad is None or weights.grad.eq(0).all()
    teacher = random(1, 3, 2, 2).requires_grad_()
    assert not patch_weights(torch.zeros(1, 2, 2, dtype=torch.int64), teacher, NEW).requires_grad
    logits = random(1, 4, 2, 2).requires_grad_()
    label_guided_distillation(logits, teacher, torch.zeros(1, 2, 2, dtype=torch.int64)).backward()
    assert logits.grad is not None and teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_of_the_teacher_does_not_move_thresholds(dtype):
    """Probabilities of bfloat16 near .7 or .5 would be on the wrong side of them."""
    given, teacher = torch.zeros(2, 64, 96, dtype=torch.int64), random(2, 3, 64, 96, dtype=dtype)
    for selective in (True, False):
        found = selective_pseudo_labels(given, teacher, selective=selective)
        assert found.equal(selective_pseudo_labels(given, teacher.float(), selective=selective))
    weights = patch_weights(given, teacher, NEW)
    assert weights.dtype == torch.float32
    same(weights, teacher.float().softmax(dim=1)[:, 0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_labels_of_other_integers(dtype):
    logits, teacher, labels = triple()
    new, other = torch.tensor([3, 4]), labels.to(dtype)
    expected = selective_pseudo_labels(labels, teacher)
    assert selective_pseudo_labels(other, teacher).long().equal(expected)
    assert patch_weights(other, teacher, new.to(dtype)).equal(patch_weights(labels, teacher, new))
    for rule in ("top_left", "majority"):
        assert patch_labels(other, (2, 3), rule=rule).long().equal(patch_labels(labels, (2, 3), rule=rule))
    if dtype == torch.int32:  # torch gathers by no smaller ones
        guided = label_guided_distillation(logits, teacher, other)
        assert guided.equal(label_guided_distillation(logits, teacher, labels))
    tokens = logits[0].flatten(1)
    assert orthogonality(tokens, new.to(torch.int32)).equal(orthogonality(tokens, new))
