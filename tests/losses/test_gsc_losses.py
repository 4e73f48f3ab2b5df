"""GSC's and PLOP's losses: the worked examples of the specification, invariances, reach of the gradients, extremes."""

from math import e, log, sqrt

import pytest
import torch

from ciss.losses import (
    compensation_weights,
    cross_entropy,
    gradient_magnitude,
    local_pod,
    pod_distillation,
    sharp_loss,
    soft_relation_loss,
    sum_by_step,
    weigh_by_step,
)

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def mean_by_step(*arguments):
    sums, counts = sum_by_step(*arguments)
    return sums / counts


def pixels(*rows, dtype=torch.float64):
    """(1,C,1,N) of one row for each pixel."""
    return torch.tensor(rows, dtype=dtype).T[None, :, None].contiguous()


def row(*labels):
    return torch.tensor(labels)[None, None]


def close(found, expected, dtype=torch.float64):
    """Six printed digits: near in float64, as near as float32 is in float32."""
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-5, 1e-6)
    found = torch.as_tensor(found)
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


# --- E1: gradient compensation

# base {0, 1}, then 2, then 3, and 4 is being learnt; seven pixels, the last one ignored
STEPS = torch.tensor([0, 0, 1, 2, 3])
LOGITS = [
    (2, 0, 0, 0, 0),
    (0, 1, 0, 0, 0),
    (0, 0, 1, 0, 2),
    (0, 0, 2, 0, 0),
    (1, 0, 0, 1, 0),
    (0, 0, 0, 0, 3),
    (5, 0, 0, 0, 0),
]
LABELS = row(0, 1, 2, 2, 3, 4, 255)
SIGMOID = {"probability": "sigmoid", "exponent": 0.8}
HFC = {"exponent": 0.8, "logarithm": True, "clamp": (0.5, 1.2)}


@both_precisions
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.351214, 0.595390, 0.792614, 0.351214, 0.677798, 0.166075, 0)),
        (SIGMOID, (0.182402, 0.349725, 0.349725, 0.182402, 0.349725, 0.087259, 0)),
        ({"exponent": 2.0}, (0.351214**2, 0.595390**2, 0.792614**2, 0.351214**2, 0.677798**2, 0.166075**2, 0)),
        (
            {"logarithm": True},
            tuple(log(1 + g) for g in (0.351214, 0.59539, 0.792614, 0.351214, 0.677798, 0.166075, 0)),
        ),
    ],
)
def test_gradient_magnitude_of_the_example(options, expected, dtype):
    size = gradient_magnitude(pixels(*LOGITS, dtype=dtype), LABELS, **options)
    assert size.dtype == dtype and size.shape == LABELS.shape
    close(size[0, 0], expected, dtype)


def test_gradient_magnitude_is_the_derivative_of_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (2, 3, 4), generator=generator)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), logits)
    torch.testing.assert_close(gradient_magnitude(logits, labels), -gradient.gather(1, labels[:, None])[:, 0])


@both_precisions
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.742051, 1.257949, 1.385897, 0.614103, 1, 1, 0)),
        ({"grouping": "cumulative"}, (0.742051, 1.257949, 2.691237, 1.192512, 1.116252, 1, 0)),
        (SIGMOID, (0.685559, 1.314441, 1.314441, 0.685559, 1, 1, 0)),
        (SIGMOID | {"grouping": "cumulative"}, (0.685559, 1.314441, 2.504182, 1.306078, 1.189740, 1, 0)),
        # GLFC: old and new, each by its own mean
        (
            {"grouping": "together", "new": "mean"},
            (0.634366, 1.075399, 1.431625, 0.634366, 1.224243, 1, 0),
        ),
        # bounds are for what is weighed
        ({"clamp": (0.8, 0.9)}, (0.8, 0.9, 0.9, 0.8, 0.9, 1, 0)),
        ({"clamp": (0.8, 0.9), "new": "mean"}, (0.8, 0.9, 0.9, 0.8, 0.9, 0.9, 0)),
    ],
)
def test_compensation_weights_of_the_example(options, expected, dtype):
    close(compensation_weights(pixels(*LOGITS, dtype=dtype), LABELS, STEPS, **options)[0, 0], expected, dtype)


@both_precisions
def test_hfc_weights_of_the_example(dtype):
    weights = compensation_weights(pixels(*LOGITS, dtype=dtype), LABELS, STEPS, **HFC)[0, 0]
    # w_cls = sqrt(1 - kappa) w for old pixels; w_dist = kappa w
    close(sqrt(0.2) * weights[:5], (0.371199, 0.523229, 0.536656, 0.333701, 0.447214), dtype)
    close(0.8 * weights[:5], (0.664020, 0.935980, 0.96, 0.596943, 0.8), dtype)
    own = compensation_weights(pixels(*LOGITS, dtype=dtype), LABELS, STEPS, new="mean", **HFC)[0, 0]
    close(0.2 * own[5:], (0.2, 0), dtype)


@both_precisions
@pytest.mark.parametrize(
    ("options", "valid", "everything"),
    [
        ({}, 0.869903, 0.745631),
        (SIGMOID | {"grouping": "cumulative"}, 1.253271, 1.074232),
        ({"grouping": "cumulative"}, 1.275809, 1.093551),
        (SIGMOID, 0.860766, 0.737799),
        (None, 0.776250, 0.665357),
    ],
)
def test_compensated_cross_entropy_of_the_example(options, valid, everything, dtype):
    logits = pixels(*LOGITS, dtype=dtype)
    weights = None if options is None else compensation_weights(logits, LABELS, STEPS, **options)
    close(cross_entropy(logits, LABELS, weights=weights), valid, dtype)
    close(cross_entropy(logits, LABELS, weights=weights, divisor="all"), everything, dtype)


@both_precisions
def test_compensated_gradient_of_the_example(dtype):
    logits = pixels(*LOGITS, dtype=dtype).requires_grad_()
    weights = compensation_weights(logits, LABELS, STEPS)
    assert not weights.requires_grad
    cross_entropy(logits, LABELS, weights=weights).backward()
    close(logits.grad[0, :, 0, 2], (0.017622, 0.017622, -0.183080, 0.017622, 0.130213), dtype)
    assert logits.grad[0, :, 0, 6].eq(0).all()


@both_precisions
def test_group_means_of_the_example(dtype):
    size = gradient_magnitude(pixels(*LOGITS, dtype=dtype), LABELS)
    means = mean_by_step(size, LABELS, STEPS)
    close(means[:4], (0.473302, 0.571914, 0.677798, 0.166075), dtype)
    assert means[4:].isnan().all()  # no fifth step
    close(mean_by_step(size, LABELS, torch.tensor([0, 0, 1, 1, 2]))[1], 0.607209, dtype)


@both_precisions
@pytest.mark.parametrize(
    ("clamp", "expected"), [(None, (0.02 / 0.049, 0.6 / 0.049)), ((0.5, 5.0), (0.5, 5.0))], ids=["free", "clamped"]
)
def test_an_easy_background_lifts_the_weight_of_hard_pixels(clamp, expected, dtype):  # E8
    labels = torch.tensor([0] * 95 + [1] * 5).view(1, 10, 10)
    size = torch.where(labels == 0, 0.02, 0.6).to(dtype)
    weights = weigh_by_step(size, labels, torch.tensor([0, 0, 1]), clamp=clamp)
    close(weights[labels == 0], [expected[0]] * 95, dtype)
    close(weights[labels == 1], [expected[1]] * 5, dtype)


GROUPINGS = ("per_step", "cumulative", "together")
every_grouping = pytest.mark.parametrize("grouping", GROUPINGS)


def example(seed=0, dtype=torch.float64, scale=1.0, steps=STEPS):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, len(steps), 4, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(len(steps), (2, 4, 6), generator=generator)
    labels[0, 0], labels[1, -1, 0] = 255, 0
    return logits.to(dtype), labels


def _weights_by_loops(size, labels, steps, grouping, new):
    """The definition once more, pixel by pixel."""
    size, labels, steps = size.flatten().tolist(), labels.flatten().tolist(), steps.tolist()
    current = max(steps)

    def mean(wanted):
        found = [g for g, y in zip(size, labels, strict=True) if y != 255 and steps[y] in wanted]
        return sum(found) / len(found)

    weights = []
    for g, y in zip(size, labels, strict=True):
        s = None if y == 255 else steps[y]
        if s is None:
            weights.append(0.0)
        elif s == current:
            weights.append(g / mean({s}) if new == "mean" else 1.0)
        elif grouping == "together":
            weights.append(g / mean(set(range(current))))
        elif grouping == "per_step" or s == 0:
            weights.append(g / mean({s}))
        else:
            weights.append(sum(g / mean(set(range(1, j + 1))) for j in range(s, current)))
    return weights


@every_grouping
@pytest.mark.parametrize("new", ["one", "mean"])
@pytest.mark.parametrize("steps", [[0, 0, 1, 2, 3], [0, 0, 0, 1, 1], [0, 1, 1, 2, 3, 4, 4]], ids=str)
def test_weights_agree_with_loops_over_pixels(grouping, new, steps):
    steps = torch.tensor(steps)
    logits, labels = example(1, steps=steps)
    size = gradient_magnitude(logits, labels)
    found = compensation_weights(logits, labels, steps, grouping=grouping, new=new)
    expected = _weights_by_loops(size, labels, steps, grouping, new)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected, dtype=torch.float64))
    assert found.equal(weigh_by_step(size, labels, steps, grouping=grouping, new=new))


def test_the_mean_weight_of_each_old_step_is_one():
    logits, labels = example(2)
    weights = compensation_weights(logits, labels, STEPS)
    close(mean_by_step(weights, labels, STEPS)[:4], (1, 1, 1, 1))
    assert weights[labels == 4].eq(1).all() and weights[labels == 255].eq(0).all()


@every_grouping
def test_a_constant_added_to_the_logits_changes_no_weight(grouping):
    logits, labels = example(3)
    shift = 5 * torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weigh = {
        p: lambda z, p=p: compensation_weights(z, labels, STEPS, grouping=grouping, probability=p)
        for p in (
            "softmax",
            "sigmoid",
        )
    }
    torch.testing.assert_close(weigh["softmax"](logits + shift), weigh["softmax"](logits))
    assert not torch.allclose(weigh["sigmoid"](logits + shift), weigh["sigmoid"](logits))


@every_grouping
def test_permuted_pixels_permute_weights(grouping):
    logits, labels = example(4)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(2))
    flat = logits.movedim(1, 0).flatten(1)
    permuted = flat[:, order].view(5, 2, 4, 6).movedim(0, 1), labels.flatten()[order].view(2, 4, 6)
    found = compensation_weights(*permuted, STEPS, grouping=grouping)
    expected = compensation_weights(logits, labels, STEPS, grouping=grouping)
    torch.testing.assert_close(found.flatten(), expected.flatten()[order])


@every_grouping
def test_the_base_step_weighs_nothing(grouping):
    logits, labels = example()
    weights = compensation_weights(logits, labels, torch.zeros(5, dtype=torch.int64), grouping=grouping)
    assert weights.equal((labels != 255).double())


@every_grouping
@pytest.mark.parametrize("new", ["one", "mean"])
@pytest.mark.parametrize(
    "kept", [(), (0,), (4,), (0, 4), (3, 4), (1, 2)], ids=lambda kept: "-".join(map(str, kept)) or "ignored"
)
def test_empty_groups_leave_the_others_alone(grouping, new, kept):
    logits, labels = example(5)
    labels = torch.where(torch.isin(labels, torch.tensor(kept, dtype=torch.int64)), labels, 255)
    weights = compensation_weights(logits, labels, STEPS, grouping=grouping, new=new)
    assert weights.isfinite().all() and weights[labels == 255].eq(0).all() and weights[labels != 255].gt(0).all()
    if len(kept) == 1:
        assert weights[labels == kept[0]].mean().item() == pytest.approx(1)


def test_one_class_only():
    logits, labels = torch.randn(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert gradient_magnitude(logits, labels).eq(0).all()
    assert compensation_weights(logits, labels, torch.tensor([0])).eq(1).all()
    assert sharp_loss(logits).item() == 0


def test_statistics_may_be_those_of_all_processes():
    parts = [example(seed, torch.float32) for seed in (6, 7)]
    together = compensation_weights(*(torch.cat(values) for values in zip(*parts, strict=True)), STEPS)
    statistics = []
    for logits, labels in parts:
        compensation_weights(logits, labels, STEPS, reduce=lambda values: statistics.append(values) or values)
    total = statistics[0] + statistics[1]
    found = [compensation_weights(*part, STEPS, reduce=lambda values: total) for part in parts]
    torch.testing.assert_close(torch.cat(found), together)
    assert not torch.allclose(torch.cat([compensation_weights(*part, STEPS) for part in parts]), together)


@pytest.mark.parametrize(
    ("options", "match"), [({"grouping": "none"}, "grouping is 'none'"), ({"probability": "x"}, "probability is 'x'")]
)
def test_unknown_choices_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        compensation_weights(*example(), STEPS, **options)
    with pytest.raises(ValueError, match="target is 'x'"):
        soft_relation_loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1), row(0), target="x")


def test_ones_as_weights_are_plain_cross_entropy():
    logits, labels = example()
    plain = cross_entropy(logits, labels)
    torch.testing.assert_close(cross_entropy(logits, labels, weights=torch.ones(2, 1, 1)), plain)
    images = torch.tensor([2.0, 0.5])[:, None, None]
    by_image = [cross_entropy(logits[b : b + 1], labels[b : b + 1], divisor="all") for b in (0, 1)]
    found = cross_entropy(logits, labels, weights=images, divisor="all")
    torch.testing.assert_close(found, (2 * by_image[0] + 0.5 * by_image[1]) / 2)


# --- E2: soft-sharp relation distillation

TEACHER = [(2, 0, -1, 1), (0, 0, 1, -2)]
STUDENT = [(1, 0, 0, 2, 0), (0, 0, 1, 0, 2)]
PAIR = row(0, 4)


@both_precisions
def test_soft_and_sharp_of_the_example(dtype):
    student, teacher = pixels(*STUDENT, dtype=dtype), pixels(*TEACHER, dtype=dtype)
    for i, (soft, sharp) in enumerate([(0.359146, 0.247663), (0.351637, 0.247663)]):
        pixel = (student[..., i : i + 1], teacher[..., i : i + 1], PAIR[..., i : i + 1])
        close(soft_relation_loss(*pixel), soft, dtype)
        close(sharp_loss(pixel[0]), sharp, dtype)
    soft, sharp = soft_relation_loss(student, teacher, PAIR), sharp_loss(student)
    close(torch.stack([soft, sharp, 0.3 * soft + 0.1 * sharp]), (0.355392, 0.247663, 0.131384), dtype)
    # V2: cross-entropies summed over five channels; V3
    close(soft_relation_loss(student, teacher, PAIR, target="softmax"), (1.455492 + 1.293146) / 2 / 5, dtype)
    close(soft_relation_loss(student[..., :1], teacher[..., :1], row(0), target="softmax"), 1.455492 / 5, dtype)
    close(soft_relation_loss(student, teacher, PAIR, target="binary"), 0.596529, dtype)
    # E4: with the compensated cross-entropy of E1
    logits = pixels(*LOGITS, dtype=dtype)
    compensated = cross_entropy(logits, LABELS, weights=compensation_weights(logits, LABELS, STEPS))
    close(compensated + 0.3 * soft + 0.1 * sharp, 1.001287, dtype)


@both_precisions
def test_gradients_of_soft_and_sharp_of_the_example(dtype):
    student = pixels(*STUDENT, dtype=dtype).requires_grad_()
    (soft,) = torch.autograd.grad(soft_relation_loss(student, pixels(*TEACHER, dtype=dtype), PAIR), student)
    (sharp,) = torch.autograd.grad(sharp_loss(student), student)
    close(soft[0, :, 0, 0], (-0.007824, -0.011888, -0.007862, 0.031783, -0.004209), dtype)
    close(sharp[0, :, 0, 0], (0.006944, 0.010184, 0.010184, -0.037497, 0.010184), dtype)
    close(soft.sum(dim=1), torch.zeros(1, 1, 2), dtype)


@both_precisions
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "sigmoid_softmax",
            [(0.285629, 0.195175, 0.154909, 0.245907, 0.118380), (0.178828, 0.178828, 0.225311, 0.122196, 0.294837)],
        ),
        # at a zero student dL/dz is (1/C - Ytil) / (N C) for a softmax, (1/2 - u) / (N C) for sigmoids
        ("softmax", [(0.643914, 0.087144, 0.032059, 0.236883, 0), (0.103016, 0.103016, 0.280026, 0.013942, 0.5)]),
        ("binary", [(0.880797, 0.5, 0.268941, 0.731059, 0), (0.5, 0.5, 0.731059, 0.119203, 1)]),
    ],
)
def test_soft_labels_of_the_example(target, expected, dtype):
    student = torch.zeros(1, 5, 1, 2, dtype=dtype, requires_grad=True)
    soft_relation_loss(student, pixels(*TEACHER, dtype=dtype), PAIR, target=target).backward()
    start = 1 / 2 if target == "binary" else 1 / 5
    close((start - 10 * student.grad)[0, :, 0].T, torch.tensor(expected), dtype)


def test_soft_labels_are_at_most_e_to_one_and_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    student = torch.zeros(1, 6, 1, 50, dtype=torch.float64, requires_grad=True)
    teacher = 100 * torch.randn(1, 4, 1, 50, generator=generator, dtype=torch.float64)
    soft_relation_loss(student, teacher, torch.randint(6, (1, 1, 50), generator=generator)).backward()
    soft = 1 / 6 - 300 * student.grad
    close(soft.sum(dim=1), torch.ones(1, 1, 50))
    assert (soft.amax(dim=1) / soft.amin(dim=1)).max() <= e * (1 + 1e-9)
    close(student.grad.sum(dim=1), torch.zeros(1, 1, 50))


def test_old_and_ignored_labels_do_not_matter_to_the_soft_label():
    student, teacher = pixels(*STUDENT), pixels(*TEACHER)
    expected = soft_relation_loss(student, teacher, row(0, 0))
    assert all(soft_relation_loss(student, teacher, row(y, y)).equal(expected) for y in (1, 3, 255))
    assert not soft_relation_loss(student, teacher, row(4, 0)).equal(expected)


def test_sharp_loss_goes_from_certain_to_uniform():
    assert sharp_loss(torch.zeros(2, 5, 3, 2)).item() == pytest.approx(log(5) / 5)
    assert sharp_loss(pixels((100, 0, 0), (0, 0, 100))).item() == pytest.approx(0, abs=1e-30)
    # a mean over the chosen pixels
    logits = pixels((0, 0, 0), (100, 0, 0), (1, 2, 3))
    where = torch.tensor([True, True, False])[None, None]
    assert sharp_loss(logits, where=where).item() == pytest.approx(log(3) / 3 / 2)
    assert sharp_loss(logits, where=torch.zeros_like(where)).item() == 0
    torch.testing.assert_close(sharp_loss(logits, where=torch.ones_like(where)), sharp_loss(logits))


# --- local POD


def _pod_by_loops(features, teacher, scales=(1, 2, 4)):
    """As published: pooled squares of the one minus pooled squares of the other, cell by cell."""

    def pooled(image):
        _, height, width = image.shape
        found = []
        for s in scales:
            h, w = height // s, width // s
            for i in range(s):
                for j in range(s):
                    cell = image[:, i * h : (i + 1) * h, j * w : (j + 1) * w] ** 2
                    found += [cell.mean(dim=2).flatten(), cell.mean(dim=1).flatten()]
        return torch.cat(found)

    norms = [(pooled(a) - pooled(b)).norm() for a, b in zip(features, teacher, strict=True)]
    return sum(norms) / len(norms)


def maps(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


@both_precisions
def test_local_pod_of_the_example(dtype):  # E7
    first = torch.tensor([[1, 2], [3, 4]], dtype=dtype)[None, None]
    second = torch.tensor([[1, 1], [3, 3]], dtype=dtype)[None, None]
    close(local_pod(first, second, scales=(1,)), 6.284903, dtype)
    close(0.01 * sqrt(5) * local_pod(first, second, scales=(1,)), 0.140535, dtype)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 2, 4, 12), (1, 5, 16, 4)], ids=str)
@pytest.mark.parametrize("scales", [(1, 2, 4), (1,), (2, 4)], ids=str)
def test_local_pod_agrees_with_loops_over_cells(shape, scales):
    features, teacher = maps(*shape)
    torch.testing.assert_close(local_pod(features, teacher, scales=scales), _pod_by_loops(features, teacher, scales))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 3, 9), (1, 2, 1, 1), (2, 2, 2, 3)], ids=str)
def test_local_pod_of_any_sides(shape):
    features, teacher = (values.requires_grad_() for values in maps(*shape))
    value = local_pod(features, teacher.detach())
    value.backward()
    assert value.isfinite() and value > 0 and features.grad.isfinite().all()
    assert features.grad.ne(0).all()  # no row or column is left out
    # height and width are treated alike
    torch.testing.assert_close(local_pod(features.mT, teacher.mT), value)


def test_local_pod_grows_with_the_square_and_vanishes_for_equal_maps():
    features, teacher = maps(2, 3, 4, 8)
    torch.testing.assert_close(local_pod(3 * features, 3 * teacher), 9 * local_pod(features, teacher))
    same = features.clone().requires_grad_()
    value = local_pod(same, features)
    value.backward()
    assert value.item() == 0 and same.grad.eq(0).all()
    # of one equal and one other image, the mean
    mixed = torch.cat([features[:1], teacher[1:]])
    torch.testing.assert_close(local_pod(mixed, teacher), local_pod(features[:1], teacher[:1]) / 2)


@both_precisions
@pytest.mark.parametrize(("channels", "old", "factor"), [(21, 20, 4.5826), (21, 16, 2.0494), (12, 11, 3.4641)])
def test_pod_distillation_grows_with_the_share_of_old_classes(channels, old, factor, dtype):  # E5
    first, second = maps(2, 3, 4, 4, dtype=dtype)
    third, fourth = maps(2, 2, 8, 4, seed=1, dtype=dtype)
    logits, teacher = maps(2, channels, 4, 4, seed=2, dtype=dtype)
    teacher = teacher[:, :old]
    assert sqrt(channels / (channels - old)) == pytest.approx(factor, abs=1e-4)
    folded = logits[:, :old].clone()
    folded[:, 0] += logits[:, old:].sum(dim=1)
    parts = [0.01 * local_pod(first, second), 0.01 * local_pod(third, fourth), 0.0005 * local_pod(folded, teacher)]
    expected = sqrt(channels / (channels - old)) * sum(parts) / 3
    found = pod_distillation([first, third], [second, fourth], logits, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    weighed = pod_distillation([first], [second], logits, teacher, features=2, outputs=0, scales=(1,))
    close(weighed, factor * local_pod(first, second, scales=(1,)).double(), torch.float32)


def test_pod_distillation_refuses_lists_that_do_not_pair():
    first, second = maps(1, 2, 2, 2)
    with pytest.raises(ValueError):
        pod_distillation([first, first], [second], first, second[:, :1])
    with pytest.raises(ValueError, match="the teacher has 2 channels, the student only 1"):
        pod_distillation([first], [second], first[:, :1], second)


# --- what they have in common

OLD = 4
LOSSES = {
    "soft": lambda z, t, y: soft_relation_loss(z, t, y),
    "soft(softmax)": lambda z, t, y: soft_relation_loss(z, t, y, target="softmax"),
    "soft(binary)": lambda z, t, y: soft_relation_loss(z, t, y, target="binary"),
    "sharp": lambda z, t, y: sharp_loss(z),
    "sharp(where)": lambda z, t, y: sharp_loss(z, where=y == 0),
    "local_pod": lambda z, t, y: local_pod(z[:, :OLD], t),
    "pod": lambda z, t, y: pod_distillation([z[:, :OLD], z[:, 1:]], [t, t], z, t, features=0.1, outputs=0.3),
    "weighted": lambda z, t, y: cross_entropy(z, y, weights=0.5 + torch.arange(y.numel()).view_as(y) / 7),
    "compensated": lambda z, t, y: cross_entropy(
        z, y, weights=compensation_weights(z, y, STEPS, grouping="cumulative"), divisor="all"
    ),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def triple(seed=0, dtype=torch.float64, scale=1.0):
    logits, labels = example(seed, dtype, scale)
    teacher = scale * torch.randn(2, OLD, 4, 6, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return logits.requires_grad_(), teacher.to(dtype), labels


@pytest.mark.parametrize("loss", list(LOSSES.values())[:-1], ids=list(LOSSES)[:-1])
def test_gradients_are_those_of_finite_differences(loss):
    logits, teacher, labels = (values[..., :2, :3].detach() for values in triple())
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, labels), logits.requires_grad_())


def test_the_compensated_gradient_takes_weights_for_constants():
    logits, _, labels = triple()
    weights = compensation_weights(logits, labels, STEPS)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, labels, weights=weights), logits)
    p = logits.detach().softmax(dim=1)
    onehot = torch.arange(5)[:, None, None] == labels[:, None]
    torch.testing.assert_close(gradient, weights[:, None] * (p - onehot.double()) / (labels != 255).sum())
    for function in (gradient_magnitude(logits, labels), mean_by_step(logits[:, 0], labels, STEPS)):
        assert not function.requires_grad


@every_grouping
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("right", [True, False])
def test_confident_logits_give_finite_weights(grouping, dtype, right):
    _, labels = example()
    called = labels.clamp(max=4) if right else (labels + 1) % 5
    logits = 1e4 * torch.nn.functional.one_hot(called, 5).movedim(-1, 1).to(dtype)
    for probability in ("softmax", "sigmoid"):
        weights = compensation_weights(logits, labels, STEPS, grouping=grouping, probability=probability, new="mean")
        assert weights.isfinite().all() and weights.min() >= 0


@every_loss
def test_ignored_pixels_only(loss):
    logits, teacher, labels = triple()
    value = loss(logits, teacher, torch.full_like(labels, 255))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    if loss in (LOSSES["weighted"], LOSSES["compensated"], LOSSES["sharp(where)"]):
        assert value.item() == 0 and logits.grad.eq(0).all()


@every_loss
def test_permuted_images_change_nothing(loss):
    logits, teacher, labels = triple()
    if loss is not LOSSES["weighted"]:  # its weights in this test know their place
        torch.testing.assert_close(loss(logits.flip(0), teacher.flip(0), labels.flip(0)), loss(logits, teacher, labels))
