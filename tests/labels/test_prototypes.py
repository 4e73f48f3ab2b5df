"""Class prototypes: plain means whatever the batches, and distance weights as the specification works them out."""

from itertools import pairwise

import pytest
import torch

from ciss.labels.prototypes import ClassPrototypes, distance_weights


def grid(*vectors, dtype=torch.float32):
    """(1,D,1,N) of one vector for each pixel."""
    return torch.tensor(vectors, dtype=dtype).T[None, :, None].contiguous()


def row(*labels):
    return torch.tensor(labels)[None, None]


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-5)


# E3
VECTORS = [(0, 0), (0, 2), (4, 0), (0, 4), (2, 4), (1, 4)]
CLASSES = (0, 0, 1, 2, 2, 2)
MEANS = [(0, 1), (4, 0), (1, 4), (0, 0)]
COUNTS = [2, 1, 3, 0]
FEATURES = grid((1, 3), (3, 1), (0, 1))
OMEGA = [(0.218508, 0.029378, 0.752114, 0), (0.155548, 0.759559, 0.084894, 0), (0.944712, 0.015299, 0.039989, 0)]


@pytest.mark.parametrize("cuts", [(0, 6), (0, 5, 6), (0, 1, 3, 4, 6), range(7)], ids=str)
def test_prototypes_of_the_example_in_any_batches(cuts):
    found = ClassPrototypes(4, 2)
    for start, stop in pairwise(cuts):
        found.update(grid(*VECTORS[start:stop]), row(*CLASSES[start:stop]))
    assert found.means.tolist() == [list(map(float, mean)) for mean in MEANS]
    assert found.counts.tolist() == COUNTS
    assert found.means.dtype == found.sums.dtype == torch.float64 and found.counts.dtype == torch.int64


def random_batch(seed, dtype=torch.float32, classes=5):
    generator = torch.Generator().manual_seed(seed)
    features = 10 * torch.randn(3, 7, 4, 5, generator=generator)
    labels = torch.randint(-1, classes + 2, (3, 4, 5), generator=generator)
    labels[0, 0, :2], labels[2, 3, 4] = 255, -1
    return features.to(dtype), labels


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_means_agree_with_loops_over_pixels(dtype):
    features, labels = random_batch(0, dtype)
    found = ClassPrototypes(5, 7)
    found.update(features, labels)
    for c in range(5):
        members = [
            features[b, :, i, j].double() for b in range(3) for i in range(4) for j in range(5) if labels[b, i, j] == c
        ]
        assert found.counts[c] == len(members) > 0
        torch.testing.assert_close(found.means[c], torch.stack(members).mean(dim=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("label", [255, 5, 6, -1])
def test_other_labels_are_skipped(label):
    features, _ = random_batch(1)
    found = ClassPrototypes(5, 7)
    found.update(features, torch.full((3, 4, 5), label))
    assert found.sums.eq(0).all() and found.counts.eq(0).all() and found.means.eq(0).all()


def test_channels_stay_channels_in_every_memory_layout():
    features, labels = random_batch(2)
    found = [ClassPrototypes(5, 7) for _ in range(2)]
    found[0].update(features, labels)
    found[1].update(features.to(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(found[0].means, found[1].means)
    # a feature that says which channel, image and place it is
    code = (
        torch.arange(3.0)[:, None, None, None]
        + 10 * torch.arange(7.0)[:, None, None]
        + 100 * torch.arange(20.0).view(4, 5)
    )
    one = torch.full((3, 4, 5), 255)
    one[1, 2, 3] = 4
    found = ClassPrototypes(5, 7)
    found.update(code, one)
    assert found.means[4].tolist() == [1 + 10 * d + 100 * 13 for d in range(7)]  # one pixel: the pixel itself


def _of(*seeds):
    found = ClassPrototypes(5, 7)
    for seed in seeds:
        found.update(*random_batch(seed))
    return found


def test_merging_is_adding_batches_in_any_order():
    expected = _of(0, 1, 2)
    for found in (_of(0).merge(_of(1)).merge(_of(2)), _of(0).merge(_of(1).merge(_of(2))), _of(2).merge(_of(1, 0))):
        torch.testing.assert_close(found.sums, expected.sums, rtol=1e-12, atol=1e-12)
        assert found.counts.equal(expected.counts)
    # integers add up to the last bit
    features, labels = random_batch(3)
    whole, split = ClassPrototypes(5, 7), ClassPrototypes(5, 7)
    whole.update(features.round(), labels)
    for image in range(3):
        split.update(features[image : image + 1].round(), labels[image : image + 1])
    assert whole.means.equal(split.means) and whole.counts.equal(split.counts)


def test_many_small_features_do_not_get_lost():
    found = ClassPrototypes(1, 1)
    found.update(torch.tensor([[[[1e8]]]]), row(0))
    for _ in range(100):
        found.update(torch.full((1, 1, 1, 1), 1.0), row(0))
    assert found.means.item() == (1e8 + 100) / 101


def test_alone_all_reduce_changes_nothing():
    found, expected = _of(0), _of(0)
    assert found.all_reduce() is found
    assert found.means.equal(expected.means) and found.counts.equal(expected.counts)


def test_the_state_is_a_copy_and_comes_back():
    found, other = _of(0), ClassPrototypes(5, 7)
    state = found.state_dict()
    found.update(*random_batch(1))
    other.load_state_dict(state)
    other.update(*random_batch(1))
    assert other.means.equal(found.means) and other.counts.equal(found.counts)
    assert state["sums"].equal(_of(0).sums) and state["counts"].equal(_of(0).counts)


def test_shapes_that_do_not_fit_are_refused():
    found, (features, labels) = ClassPrototypes(5, 7), random_batch(0)
    for wrong in ((features[:, :6], labels), (features, labels[:, :2]), (features.mT, labels)):
        with pytest.raises(ValueError, match="do not fit"):
            found.update(*wrong)
    with pytest.raises(ValueError, match="do not merge"):
        found.merge(ClassPrototypes(4, 7))
    with pytest.raises(ValueError, match="stored prototypes"):
        found.load_state_dict(ClassPrototypes(5, 6).state_dict())


def test_updates_keep_no_graph():
    features, labels = random_batch(0)
    found = ClassPrototypes(5, 7)
    found.update(features.requires_grad_(), labels)
    assert not found.means.requires_grad
    assert not distance_weights(features, found.means, found.counts).requires_grad


# --- distances


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_distance_weights_of_the_example(dtype):
    weights = distance_weights(FEATURES.to(dtype), torch.tensor(MEANS, dtype=dtype), torch.tensor(COUNTS))
    assert weights.shape == (1, 4, 1, 3)
    close(weights[0, :, 0].T, OMEGA)
    assert weights[:, 3].eq(0).all()


def test_a_prototype_that_is_not_there_attracts_from_the_origin():
    # the published code's: a class never seen weighs 26 %
    weights = distance_weights(FEATURES, torch.tensor(MEANS).float(), torch.tensor(COUNTS), unseen="zero")
    close(weights[0, :, 0, 2], (0.701064, 0.011353, 0.029676, 0.257907))


def test_unseen_classes_may_share_uniformly():
    weights = distance_weights(FEATURES, torch.tensor(MEANS).float(), torch.tensor(COUNTS), unseen="uniform")
    close(weights[0, 3, 0], (0.25, 0.25, 0.25))
    close(weights[0, :3, 0].T, 0.75 * torch.tensor(OMEGA)[:, :3])


@pytest.mark.parametrize("unseen", ["exclude", "uniform"])
def test_no_prototype_at_all_says_nothing(unseen):
    weights = distance_weights(FEATURES, torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), unseen=unseen)
    close(weights, torch.full((1, 4, 1, 3), 0.25))


def test_distance_scale_multiplies_the_distance():
    means, counts = torch.tensor(MEANS).float(), torch.tensor(COUNTS)
    found = distance_weights(FEATURES, means, counts, distance_scale=0.5)
    powers = torch.tensor(OMEGA) ** 0.5
    close(found[0, :, 0].T, powers / powers.sum(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("scaling", "change"),
    [
        ("none", lambda v: v),
        ("unit", lambda v: v / v.norm(dim=1, keepdim=True)),
        ("width", lambda v: v / v.shape[1] ** 0.5),
    ],
)
def test_scalings(scaling, change):
    features, _ = random_batch(4)
    means = 10 * torch.randn(5, 7, generator=torch.Generator().manual_seed(5))
    points = change(features.movedim(1, -1).reshape(-1, 7))
    distances = (points[:, None] - change(means)).norm(dim=-1)
    expected = (-distances).softmax(dim=1).view(3, 4, 5, 5).movedim(-1, 1)
    found = distance_weights(features, means, torch.ones(5), scaling=scaling)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unseen", ["exclude", "uniform", "zero"])
@pytest.mark.parametrize("scaling", ["none", "unit", "width"])
@pytest.mark.parametrize("distance", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_weights_sum_to_one(unseen, scaling, distance, dtype):
    features, labels = random_batch(6)
    found = ClassPrototypes(6, 7)
    found.update(features, labels.where(labels != 2, 255))
    weights = distance_weights(
        (features * distance).clamp(-6e4, 6e4).to(dtype),
        found.means * distance,
        found.counts,
        unseen=unseen,
        scaling=scaling,
    )
    assert weights.isfinite().all() and weights.min() >= 0
    close(weights.sum(dim=1), torch.ones(3, 4, 5))
    if unseen == "exclude":
        assert weights[:, 2].eq(0).all()


def test_close_points_far_from_the_origin_keep_their_distance():
    # expanded squares would lose it: |f|^2 = 1e8 has digits of 8 in float32
    weights = distance_weights(grid((1e4, 1e4)), torch.tensor([(1e4, 1e4), (1e4 + 1, 1e4)]), torch.tensor([1, 1]))
    close(weights.flatten(), torch.tensor([0.0, -1.0]).softmax(dim=0))


@pytest.mark.parametrize("options", [{"unseen": "x"}, {"scaling": "x"}], ids=str)
def test_unknown_choices_are_refused(options):
    with pytest.raises(ValueError, match="is 'x'"):
        distance_weights(FEATURES, torch.zeros(4, 2), torch.ones(4), **options)
