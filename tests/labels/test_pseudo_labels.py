"""Pseudo labels: the worked examples of the specification, what must never change, PLOP's medians and their bug."""

from itertools import product
from math import inf, log

import pytest
import torch

from ciss.labels.entropy import EntropyMedians, adaptive_factor, confident, entropy_labels, normalised_entropy
from ciss.labels.prototypes import distance_weights
from ciss.labels.relabelling import argmax_labels, relabel_background, reweighted_labels

RESOLUTIONS = ("full", "quarter", "grid")
every_resolution = pytest.mark.parametrize("resolution", RESOLUTIONS)


def pixels(*rows, dtype=torch.float32):
    """(1,C,1,N) of one row for each pixel."""
    return torch.tensor(rows, dtype=dtype).T[None, :, None].contiguous()


def of(*probabilities):
    """Logits (1,K,1,N) whose softmax is proportional to each pixel's row."""
    return pixels(*probabilities, dtype=torch.float64).log()


def row(*labels):
    return torch.tensor(labels)[None, None]


# --- E3: prototypes; classes 0 to 3 are old, 4 is new, 3 was not seen

MEANS, COUNTS = torch.tensor([(0, 1), (4, 0), (1, 4), (0, 0)]).float(), torch.tensor([2, 1, 3, 0])
FEATURES = pixels((1, 3), (3, 1), (0, 1))
TEACHER = pixels((2, 0, 1, 0), (1, 0.5, 0, 0), (3, 0, 0, 0))
GIVEN = row(0, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("scale", "expected"), [(1.0, (2, 1, 4)), (0.5, (0, 1, 4))])
def test_relabelling_of_the_example(scale, expected, dtype):
    tensors = (values.to(dtype) for values in (TEACHER, FEATURES, MEANS))
    found = relabel_background(GIVEN, *tensors, COUNTS, distance_scale=scale)
    assert found.flatten().tolist() == list(expected) and found.dtype == torch.int64
    assert argmax_labels(GIVEN, TEACHER).flatten().tolist() == [0, 0, 4]
    # were the third pixel background, too: r = .997095 says that it is
    assert relabel_background(row(0, 0, 0), TEACHER, FEATURES, MEANS, COUNTS).flatten()[2] == 0


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.5542, (2, 1, 0)), (0.5544, (255, 1, 0)), (0.7114, (255, 1, 0)), (0.7116, (255, 255, 0)), (0.998, (255,) * 3)],
)
def test_the_threshold_is_of_the_normalised_product(threshold, expected):
    found = relabel_background(row(0, 0, 0), TEACHER, FEATURES, MEANS, COUNTS, threshold=threshold)
    assert found.flatten().tolist() == list(expected)
    kept = relabel_background(GIVEN, TEACHER, FEATURES, MEANS, COUNTS, threshold=threshold)
    assert kept.flatten()[2] == 4
    other = relabel_background(row(0, 0, 0), TEACHER, FEATURES, MEANS, COUNTS, threshold=threshold, ignore_index=9)
    assert other.flatten().tolist() == [9 if y == 255 else y for y in expected]


def scene(seed=0, classes=5, dtype=torch.float32):
    """labels (2,8,12) with background, old, new and ignored pixels; teacher; features on a grid; prototypes, counts."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes + 2, (2, 8, 12), generator=generator)
    labels = torch.where(torch.rand(2, 8, 12, generator=generator) < 0.6, 0, labels)
    labels[0, 0] = 255
    teacher = 2 * torch.randn(2, classes, 8, 12, generator=generator)
    features = 2 * torch.randn(2, 3, 4, 6, generator=generator)
    means = 2 * torch.randn(classes, 3, generator=generator)
    return labels, teacher.to(dtype), features.to(dtype), means, torch.arange(classes) % 4 + 1


OPTIONS = [
    {"resolution": resolution, "unseen": unseen, "scaling": scaling, "background_prototype": prototype, "threshold": t}
    for resolution, unseen, scaling, prototype, t in product(
        RESOLUTIONS, ("exclude", "uniform", "zero"), ("none", "unit"), (True, False), (0.0, 0.4)
    )
]


def test_only_background_changes_and_only_to_old_classes():
    labels, *rest = scene()
    for options in OPTIONS:
        found = relabel_background(labels, *rest, **options)
        assert found[labels != 0].equal(labels[labels != 0])  # old, new and ignored pixels
        allowed = (*range(5), 255) if options["threshold"] else range(5)
        assert torch.isin(found[labels == 0], torch.tensor(allowed)).all()
        assert found[labels == 0].unique().numel() > 2
    ignored = torch.full_like(labels, 255)
    assert relabel_background(ignored, *rest).equal(ignored)
    nothing = labels.clamp(min=5)
    assert relabel_background(nothing, *rest).equal(nothing)


def _relabelled_by_loops(labels, teacher, weights):
    found = labels.clone()
    p = teacher.double().softmax(dim=1)
    weights = torch.nn.functional.interpolate(weights.double(), labels.shape[-2:], mode="bilinear", align_corners=False)
    for b, i, j in product(*map(range, labels.shape)):
        if labels[b, i, j] == 0:
            found[b, i, j] = (weights[b, :, i, j] * p[b, :, i, j]).argmax()
    return found


@pytest.mark.parametrize("seed", range(3))
def test_relabelling_agrees_with_loops_over_pixels(seed):
    labels, teacher, features, means, counts = scene(seed)
    weights = distance_weights(features, means, counts)
    expected = _relabelled_by_loops(labels, teacher, weights)
    assert relabel_background(labels, teacher, features, means, counts).equal(expected)
    assert reweighted_labels(labels, teacher, weights).equal(expected)


@every_resolution
def test_resolutions_agree_where_there_is_only_one(resolution):
    # constant maps have no resolution
    labels, teacher, features, means, counts = scene()
    teacher, features = teacher[..., :1, :1].expand(2, 5, 8, 12), features[..., :1, :1].expand(2, 3, 4, 6)
    expected = relabel_background(labels, teacher, features, means, counts)
    assert relabel_background(labels, teacher, features, means, counts, resolution=resolution).equal(expected)
    odd = relabel_background(labels[:, :7, :11], teacher[..., :7, :11], features, means, counts, resolution=resolution)
    assert odd.equal(expected[:, :7, :11])


def test_resolutions_are_those_they_are_called():
    labels, teacher, features, means, counts = scene(3)
    labels = torch.zeros_like(labels)
    weights = distance_weights(features, means, counts)

    def resized(values, *size):
        return torch.nn.functional.interpolate(values, size, mode="bilinear", align_corners=False)

    for resolution, size in (("quarter", (2, 3)), ("grid", (4, 6))):
        product_ = resized(weights, *size) * resized(teacher, *size).softmax(dim=1)
        expected = resized(product_ / product_.sum(dim=1, keepdim=True), 8, 12).argmax(dim=1)
        assert reweighted_labels(labels, teacher, weights, resolution=resolution).equal(expected)


@every_resolution
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_an_unseen_class_never_wins(resolution, scale):
    labels, teacher, features, means, counts = scene()
    teacher[:, 2] += 50  # the teacher sees nothing else
    counts[2] = 0
    found = relabel_background(labels, teacher, scale * features, scale * means, counts, resolution=resolution)
    assert (found[labels == 0] != 2).all()


def test_without_any_prototype_the_teacher_decides():
    labels, teacher, features, means, counts = scene()
    for unseen in ("exclude", "uniform"):
        found = relabel_background(labels, teacher, features, 0 * means, 0 * counts, unseen=unseen)
        assert found.equal(argmax_labels(labels, teacher))


@pytest.mark.parametrize("nearest", [0, 1, 2])
def test_large_distances_do_not_vanish_into_background(nearest):
    means = 1e4 * torch.eye(3)
    features = (1e4 * torch.eye(3)[nearest] + 1)[None, :, None, None]
    teacher = pixels((20, 0, 0))  # sure of the background
    found = relabel_background(row(0), teacher, features, means, torch.ones(3, dtype=torch.int64))
    assert found.item() == nearest
    # as far from all of them: the teacher decides
    middle = torch.full((1, 3, 1, 1), 1e4)
    for sure in range(3):
        teacher = pixels([20.0 * (c == sure) for c in range(3)])
        assert relabel_background(row(0), teacher, middle, means, torch.ones(3, dtype=torch.int64)).item() == sure


def test_half_precision_and_confident_teachers():
    labels, teacher, features, means, counts = scene()
    for dtype, options in product((torch.float16, torch.bfloat16), OPTIONS[::5]):
        half = teacher.to(dtype), features.to(dtype)
        full = half[0].float(), half[1].float()
        found = relabel_background(labels, *half, means.double(), counts, **options)
        assert found.equal(relabel_background(labels, *full, means, counts, **options))
    # certain by 1e4, and equally far from everything
    sure = relabel_background(labels, 1e4 * teacher, features, 0 * means, counts)
    assert sure.equal(argmax_labels(labels, teacher))


# --- without a prototype of the background

WEIGHTS = [(0.9, 0.02, 0.08), (0.9, 0.02, 0.08), (0.1, 0.8, 0.1)]
PROBABILITIES = [(0.5, 0.3, 0.2), (0.2, 0.5, 0.3), (0.4, 0.35, 0.25)]


def test_without_a_background_prototype_the_teacher_decides_what_is_background():
    weights = torch.tensor(WEIGHTS).T[None, :, None]
    found = reweighted_labels(row(0, 0, 0), of(*PROBABILITIES), weights)
    assert found.flatten().tolist() == [0, 0, 1]
    # 1: background, it stays. 2: .02 * .5 < .08 * .3. 3: the teacher's background stays, whatever is near
    found = reweighted_labels(row(0, 0, 0), of(*PROBABILITIES), weights, background_prototype=False)
    assert found.flatten().tolist() == [0, 2, 0]


@every_resolution
@pytest.mark.parametrize("distance", [10.0, 1e4])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_without_a_background_prototype_it_attracts_nothing(resolution, distance, threshold):
    # the pixel stands on the background's prototype; the teacher is sure that it is not background
    means = torch.tensor([(0.0, 0), (distance, 0), (0, 2 * distance)])
    found = relabel_background(
        torch.zeros(1, 8, 8, dtype=torch.int64),
        torch.tensor([-9.0, 0, 1])[None, :, None, None].expand(1, 3, 8, 8),
        torch.zeros(1, 2, 4, 4),
        means,
        torch.ones(3, dtype=torch.int64),
        background_prototype=False,
        resolution=resolution,
        threshold=threshold,
    )
    assert found.eq(1).all()


# --- entropy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [2, 4, 21])
def test_entropy_goes_from_certain_to_uniform(classes, dtype):
    uniform = torch.full((1, classes, 2, 3), 3.0, dtype=dtype)
    torch.testing.assert_close(normalised_entropy(uniform), torch.ones(1, 2, 3))
    certain = uniform.clone()
    certain[:, 1] = 1e4
    for options in ({}, {"variant": "released", "channels": classes + 1}):
        found = normalised_entropy(certain, **options)
        torch.testing.assert_close(found, torch.zeros(1, 2, 3), rtol=0, atol=1e-6)


def test_entropy_of_the_example():  # E3b
    logits = of((0.7, 0.1, 0.1, 0.1), (1, 1, 1, 1))
    torch.testing.assert_close(normalised_entropy(logits), row(0.678390, 1.0), rtol=1e-5, atol=1e-6)
    found = normalised_entropy(logits, variant="released", channels=5)
    torch.testing.assert_close(found, row(0.105377, 0.155334), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found * log(5), row(0.169597, 0.25), rtol=1e-5, atol=1e-6)


def test_one_class_is_certain():
    assert normalised_entropy(torch.randn(1, 1, 2, 2)).eq(0).all()


def surroundings(seed, shape=(3, 8, 10), classes=4, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    teacher *= torch.rand(shape[0], 1, *shape[1:], generator=generator) * 3
    labels = torch.randint(3, shape, generator=generator)
    labels = torch.where(labels == 0, 0, torch.where(labels == 1, 255, classes))
    return labels, teacher


def test_medians_are_within_a_bin_of_the_true_ones():
    medians, values, called = EntropyMedians(4, 5), [], []
    for seed in range(5):
        labels, teacher = surroundings(seed)
        medians.update(labels, teacher)
        values.append(normalised_entropy(teacher)[labels == 0])
        called.append(teacher.argmax(dim=1)[labels == 0])
    values, called = torch.cat(values), torch.cat(called)
    assert medians.histograms.sum() == len(values)
    expected = torch.stack([values[called == c].median() for c in range(4)])
    found = medians.thresholds()
    assert found.shape == (4,) and found.dtype == torch.float32
    assert (found - expected).abs().max() <= 0.01
    # fewer bins, wider bins
    coarse = EntropyMedians(4, 5, bins=10)
    for seed in range(5):
        coarse.update(*surroundings(seed))
    assert (coarse.thresholds() - expected).abs().max() <= 0.1


def _histogram(counts, variant="paper", bins=100):
    medians = EntropyMedians(1, 2, variant=variant, bins=bins)
    for b, count in counts.items():
        medians.histograms[0, b] = count
    return medians


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({10: 4}, 0.105),
        ({10: 2, 20: 2}, 0.11),  # half of them lie below the end of the first bin
        ({10: 1, 20: 3}, 0.2 + 0.01 / 3),
        ({0: 1, 99: 3}, 0.99 + 0.01 / 3),
        ({0: 100}, 0.005),
        ({0: 1_000_000_001, 50: 1}, 0.005),
        ({}, 0.001),  # never called
    ],
)
def test_medians_by_hand(counts, expected):
    assert _histogram(counts).thresholds().item() == pytest.approx(expected, abs=1e-6)


def test_thresholds_have_a_floor():
    assert _histogram({0: 9}).thresholds(least=0.1).item() == pytest.approx(0.1)
    assert _histogram({}).thresholds(least=0.1).item() == pytest.approx(0.1)
    assert _histogram({}, "released").thresholds().item() == pytest.approx(0.001)


def _released_walk(counts):
    """The published walk over a histogram: it adds the bin's index where it means the bin's count."""
    half, running = sum(counts) / 2, 0
    if half == 0:
        return 0.001
    for b in range(100):
        if running <= half <= running + counts[b]:
            break
        running += b
    if counts[b] == 0:
        return inf if half > running else 0.001  # 0 / 0, too, leaves the floor
    return max((b + (half - running) / counts[b]) / 100, 0.001)


@pytest.mark.parametrize("seed", range(60))
def test_the_published_walk_is_kept(seed):
    generator = torch.Generator().manual_seed(seed)
    size, filled = [(5, 3), (50, 8), (300, 100), (3000, 100), (100_000, 3), (20, 100)][seed % 6]
    counts = torch.randint(size, (100,), generator=generator)
    counts[filled:] = 0
    counts[0] += 1
    if seed % 4 == 3:
        counts = counts.flip(0)
    if seed % 4 == 2:
        counts[99] = 1 + seed  # a walk past the end divides by this
    medians = EntropyMedians(1, 2, variant="released")
    medians.histograms[0] = counts
    assert medians.thresholds().item() == pytest.approx(_released_walk(counts.tolist()), rel=1e-5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({0: 10}, 0.005),
        ({0: 4, 1: 6}, (1 + 5 / 6) / 100),  # half is 5; nothing was added for bin 0
        ({0: 2, 1: 2, 2: 12}, (2 + (8 - 1) / 12) / 100),
        (dict.fromkeys(range(100), 200), (99 + (10_000 - 4950) / 200) / 100),  # past the end, bin 99 added: above 1
        ({50: 100}, 0.001),  # runs past the half at once, ends with an empty bin
        (dict.fromkeys(range(99), 200), inf),
    ],
    ids=range(6),
)
def test_the_published_walk_by_hand(counts, expected):
    assert _histogram(counts, "released").thresholds().item() == pytest.approx(expected, rel=1e-6)
    assert _released_walk([counts.get(b, 0) for b in range(100)]) == pytest.approx(expected)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_medians_of_any_batches_are_equal(variant):
    labels, teacher = surroundings(7)
    whole, split = (EntropyMedians(4, 5, variant=variant) for _ in range(2))
    whole.update(labels, teacher)
    for b in range(3):
        split.update(labels[b : b + 1], teacher[b : b + 1])
    assert whole.histograms.equal(split.histograms)
    before = whole.thresholds()
    assert whole.all_reduce() is whole and whole.thresholds().equal(before)
    # only background counts, wherever the values lie
    whole.update(torch.full_like(labels, 255), teacher)
    whole.update(torch.full_like(labels, 4), teacher)
    whole.update(torch.full_like(labels, 1), teacher)
    assert whole.histograms.equal(split.histograms)
    values = normalised_entropy(teacher, variant=variant, channels=5)[labels == 0]
    bins = (values * 100).long().clamp(max=99).bincount(minlength=100)
    assert whole.histograms.sum(dim=0).equal(bins)


def test_uniform_pixels_fall_into_the_last_bin():
    medians = EntropyMedians(2, 3)
    medians.update(row(0, 0), of((1, 1), (1, 1)))
    assert medians.histograms.tolist() == [[0] * 99 + [2], [0] * 100]


# --- PLOP's labels


def test_entropy_labels_by_hand():
    # normalised entropies .6784 for the first four, 1 for the fifth, 0 for the last
    sure, other = (0.7, 0.1, 0.1, 0.1), (0.1, 0.1, 0.7, 0.1)
    teacher = of(sure, other, other, other, (1, 1, 1, 1), (0, 0, 1, 0))
    given = row(0, 0, 4, 255, 0, 0)
    for thresholds, expected in [
        ((0.68, 0, 0.68, 0), (0, 2, 4, 255, 255, 2)),
        ((0.67, 0, 0.68, 0), (255, 2, 4, 255, 255, 2)),
        ((0.68, 0, 0.67, 0), (0, 255, 4, 255, 255, 2)),
        ((2, 2, 0, 2), (0, 255, 4, 255, 0, 255)),  # less, not equal
        ((inf, inf, inf, inf), (0, 2, 4, 255, 0, 2)),
    ]:
        found = entropy_labels(given, teacher, torch.tensor(thresholds))
        assert found.flatten().tolist() == list(expected)
        certain = confident(teacher, torch.tensor(thresholds))
        assert certain.dtype == torch.bool and torch.where(certain, found, -1)[given == 0].ne(255).all()
        other_index = entropy_labels(given, teacher, torch.tensor(thresholds), ignore_index=9)
        assert other_index[given == 0].tolist() == [9 if y == 255 else y for y in found[given == 0].tolist()]
    # E3b: .105377
    for threshold, kept in ((0.1053, 255), (0.1054, 2)):
        found = entropy_labels(row(0), of(other), torch.full((4,), threshold), variant="released", channels=5)
        assert found.item() == kept


@pytest.mark.parametrize(("variant", "channels"), [("paper", None), ("released", 6)])
def test_given_labels_are_kept(variant, channels):
    labels, teacher, *_ = scene()
    found = entropy_labels(
        labels, teacher, torch.full((5,), 0.5 if channels is None else 0.05), variant=variant, channels=channels
    )
    for result in (found, argmax_labels(labels, teacher)):
        assert result[labels != 0].equal(labels[labels != 0])
    changed = found[labels == 0]
    assert ((changed == 255) | (changed == teacher.argmax(dim=1)[labels == 0])).all()
    assert (changed == 255).any() and (changed != 255).any()
    assert argmax_labels(labels, teacher)[labels == 0].equal(teacher.argmax(dim=1)[labels == 0])


def test_half_of_the_background_is_below_its_median():
    medians = EntropyMedians(4, 5)
    batches = [surroundings(seed, (4, 16, 16)) for seed in range(4)]
    for batch in batches:
        medians.update(*batch)
    found = torch.cat([entropy_labels(*batch, medians.thresholds()) for batch in batches])
    background = torch.cat([labels for labels, _ in batches]) == 0
    assert (found[background] != 255).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("variant", "without"), [("paper", 1.0), ("released", 0.0)])
def test_adaptive_factor_by_hand(variant, without):
    given = torch.tensor(
        [[[0, 0], [0, 0]], [[0, 0], [4, 255]], [[4, 4], [255, 4]], [[0, 0], [0, 255]], [[0, 0], [0, 0]]]
    )
    labels = given.clone()
    labels[0, 0, 0], labels[0, 1, 1], labels[1, 0, 0], labels[4] = 255, 2, 255, 255
    found = adaptive_factor(given, labels, variant=variant)
    assert found.shape == (5, 1, 1) and found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), torch.tensor([0.75, 0.5, without, 1, 0]), rtol=1e-5, atol=1e-6)
    other = adaptive_factor(given, labels.where(labels != 255, 9), variant=variant, ignore_index=9)
    torch.testing.assert_close(other, found)


def test_pseudo_labels_keep_no_graph():
    labels, teacher, features, means, _ = scene()
    teacher.requires_grad_()
    for found in (
        normalised_entropy(teacher),
        distance_weights(features.requires_grad_(), means, torch.ones(5)),
        adaptive_factor(labels, labels),
    ):
        assert not found.requires_grad
