"""Analyses of gradients and prototypes, on arrays worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from ciss.analysis.exploring.prototypes import (
    OUTCOMES,
    distance_maps,
    distances,
    drift_table,
    label_outcomes,
    nearest_confusions,
    principal_components,
    projection_table,
    relabel_table,
    tsne,
)
from ciss.analysis.forgetting.gradients import gradient_conflict, gradients_by_class, gradients_by_step, term_cosines
from ciss.protocol import Classes

pytestmark = pytest.mark.filterwarnings("error")
NAN = np.nan


# --- gradients

# Background and class a are of the base step, b of step 1; c of step 1 has no pixel.
LABELS = [np.array([[0, 0], [1, 255]]), np.array([[1, 2]])]
SIZES = [np.array([[0.1, 0.3], [0.5, 9.0]]), np.array([[0.7, 0.4]])]
WEIGHTS = [np.array([[1.0, 1.0], [2.0, 9.0]]), np.array([[4.0, 1.0]])]


@pytest.fixture
def gradients():
    return gradients_by_class(SIZES, WEIGHTS, LABELS, np.array([0, 0, 1, 1]), ["bg", "a", "b", "c"])


def test_gradients_of_each_class(gradients):
    assert gradients["pixels"].tolist() == [2, 2, 1, 0]
    assert gradients["gradient"].tolist() == pytest.approx([0.2, 0.6, 0.4, NAN], nan_ok=True)
    assert gradients["weight"].tolist() == pytest.approx([1, 3, 1, NAN], nan_ok=True)
    assert gradients["share"].tolist() == pytest.approx([0.2, 0.6, 0.2, 0], nan_ok=True)
    # sums of weight times gradient: 0.4, 2 * 0.5 + 4 * 0.7 = 3.8, 0.4
    assert gradients["weighted share"].tolist() == pytest.approx([0.4 / 4.6, 3.8 / 4.6, 0.4 / 4.6, 0])


def test_gradients_of_each_step(gradients):
    table = gradients_by_step(gradients)
    assert table["introduced"].tolist() == [0, 1] and table["pixels"].tolist() == [4, 1]
    assert table["gradient"].tolist() == pytest.approx([0.4, 0.4])
    assert table["weight"].tolist() == pytest.approx([2, 1])
    assert table["share"].tolist() == pytest.approx([0.8, 0.2])


def test_without_a_gradient_nothing_has_a_share():
    table = gradients_by_class([np.zeros((1, 2))], [np.ones((1, 2))], [np.zeros((1, 2), int)], np.zeros(2), "ab")
    assert table["share"].isna().all() and table["gradient"].tolist() == pytest.approx([0, NAN], nan_ok=True)
    void = gradients_by_class([np.ones((1, 2))], [np.ones((1, 2))], [np.full((1, 2), 255)], np.zeros(2), "ab")
    assert void["pixels"].tolist() == [0, 0] and gradients_by_step(void)["pixels"].tolist() == [0]


def test_conflict_of_each_layer():
    one = {"a": np.array([3.0, 4.0]), "b": np.array([[1.0], [0.0]]), "c": np.zeros(2)}
    other = {"a": np.array([-3.0, -4.0]), "b": np.array([[0.0], [2.0]]), "c": np.ones(2)}
    table = gradient_conflict(one, other).set_index("layer")
    assert table["cosine"].tolist()[:3] == pytest.approx([-1, 0, NAN], nan_ok=True)
    assert table.loc["a", ["norm", "other norm"]].tolist() == [5, 5]
    # together: -25 / (sqrt(25 + 1) sqrt(25 + 4 + 2))
    assert table.loc["all layers", "cosine"] == pytest.approx(-25 / np.sqrt(26 * 31))
    # however large the gradients are
    one, other = {"a": np.array([1.0, 2.0])}, {"a": np.array([2.0, 1.0])}
    small = {"a": np.float32(1e-20) * other["a"].astype(np.float32)}
    assert gradient_conflict(one, other)["cosine"].tolist() == pytest.approx([0.8, 0.8])
    assert gradient_conflict(one, small)["cosine"].tolist() == pytest.approx([0.8, 0.8])
    with pytest.raises(ValueError, match="layers differ"):
        gradient_conflict({"a": np.ones(1)}, {"b": np.ones(1)})


def test_cosines_between_all_losses():
    gradients = {
        "x": {"a": np.array([1.0, 0.0]), "b": np.array([2.0])},
        "y": {"a": np.array([0.0, 3.0]), "b": np.array([-1.0])},
        "z": {"a": np.zeros(2), "b": np.array([1.0])},
    }
    table = term_cosines(gradients, "a")
    assert table.loc["x", ["x", "y"]].tolist() == [1, 0] and table["z"].isna().all()
    table = term_cosines(gradients)
    assert np.allclose(table, table.T) and np.allclose(np.diag(table), 1)
    assert table.loc["x", "y"] == pytest.approx(-2 / np.sqrt(5 * 10))
    assert table.loc["x", "z"] == pytest.approx(2 / np.sqrt(5))
    with pytest.raises(ValueError, match="no layer 'c'"):
        term_cosines(gradients, "c")


# --- projections


def test_principal_components():
    points = np.array([[0.0, 0.0, 1.0], [3.0, 4.0, 1.0], [6.0, 8.0, 1.0]])
    coordinates, shares = principal_components(points)
    assert coordinates[:, 0].tolist() == pytest.approx([-5, 0, 5]) and shares.tolist() == pytest.approx([1, 0])
    mirrored, _ = principal_components(points[::-1])
    assert mirrored[:, 0].tolist() == pytest.approx([5, 0, -5]), "the sign is of the direction, not of the order"
    # two directions
    points = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    coordinates, shares = principal_components(points)
    assert np.abs(coordinates) == pytest.approx(np.abs(points)) and shares.tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("points", [np.ones((1, 4)), np.ones((5, 1)), np.ones((3, 2))])
def test_points_that_do_not_spread(points):
    coordinates, shares = principal_components(points)
    assert coordinates.shape == (len(points), 2) and not coordinates.any() and not shares.any()
    assert not tsne(points).any()


def test_tsne_keeps_neighbours_together():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(30, 10)), rng.normal(size=(30, 10)) + 8])
    placed = tsne(points)
    apart = np.linalg.norm(placed[:, None] - placed, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert ((apart.argmin(axis=1) < 30) == (np.arange(60) < 30)).all()
    assert np.array_equal(placed, tsne(points)), "the same picture again"
    assert np.linalg.norm(placed[:30].mean(axis=0) - placed[30:].mean(axis=0)) > 2 * placed[:30].std()


def test_pixels_and_prototypes_in_one_plane():
    means, counts = np.array([[[1.0, 0], [0, 0]], [[3.0, 0], [5.0, 0]]]), np.array([[2, 0], [2, 1]])
    table, shares = projection_table(np.array([[0.0, 0], [4.0, 0]]), np.array([0, 1]), means, counts)
    assert table["step"].tolist() == [-1, -1, 0, 1, 1] and table["position"].tolist() == [0, 1, 0, 0, 1]
    x = table["x"] - table["x"][0]
    assert x.abs().tolist() == pytest.approx([0, 4, 1, 3, 5]) and shares[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="how is 'umap'"):
        projection_table(np.zeros((2, 2)), np.zeros(2), means, counts, "umap")


# --- prototypes


def test_drift_from_step_to_step():
    means = np.array([[[0.0, 2.0], [1.0, 0.0]], [[0.0, 5.0], [0.0, 1.0]], [[0.0, 5.0], [9.0, 9.0]]])
    means = np.concatenate([means, np.ones((3, 1, 2))], axis=1)
    counts = np.array([[4, 4, 4], [4, 4, 4], [4, 0, 4]])
    table = drift_table(means, counts, np.full((3, 3), 2.0), Classes([[3], [1]], ["a", "b", "c"]))
    assert table["step"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and table["introduced"].tolist() == [0, 0, 1] * 3
    root = np.sqrt(2)
    assert table["drift"].tolist() == pytest.approx([NAN, NAN, NAN, 3, root, 0, 0, NAN, 0], nan_ok=True)
    assert table["relative"].tolist() == pytest.approx([NAN, NAN, NAN, 1.5, root / 2, 0, 0, NAN, 0], nan_ok=True)
    assert table["cosine"].tolist() == pytest.approx([NAN, NAN, NAN, 1, 0, 1, 1, NAN, 1], nan_ok=True)
    # without spread or direction
    table = drift_table(np.zeros((2, 1, 2)), np.ones((2, 1)), np.zeros((2, 1)), Classes([], ["a"]))
    assert table["drift"].tolist()[1] == 0 and table[["relative", "cosine"]].isna().all(axis=None)


MEANS, COUNTS = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), np.array([3, 1, 2, 0])


def test_distances_to_prototypes():
    matrix = distances(np.array([[0.0, 3.0], [4.0, 3.0]]), MEANS, COUNTS)
    assert matrix.tolist() == [[3, 5, 0, np.inf], [5, 3, 4, np.inf]]
    far = distances(np.array([[1e8, 1.0]]), np.array([[1e8, 0.0]]), np.ones(1))
    assert far.tolist() == [[1]], "what is near is not lost among large numbers"
    # on an image
    features = np.zeros((2, 1, 3))
    features[:, 0, 1], features[:, 0, 2] = (4, 3), (0, 3)
    maps = distance_maps(features, MEANS, COUNTS)
    assert maps.shape == (4, 1, 3)
    assert maps[0].tolist() == [[0, 5, 3]] and maps[1].tolist() == [[4, 3, 5]]


def test_who_is_confused_with_whom():
    points = np.array([[0.1, 0.0], [3.0, 0.0], [3.5, 0.0], [0.0, 2.9], [4.0, 0.0]])
    labels = np.array([0, 0, 0, 0, 1])
    table = nearest_confusions(points, labels, MEANS, COUNTS, ["bg", "a", "b", "c"]).set_index("class")
    assert table["pixels"].tolist() == [4, 1, 0, 0]
    assert table["own"].tolist() == pytest.approx([0.25, 1, NAN, NAN], nan_ok=True)
    assert table["confused with"].tolist() == ["a", "", "", ""]
    assert table["confused"].tolist() == pytest.approx([0.5, 0, NAN, NAN], nan_ok=True)
    assert table["neighbour"].tolist() == ["b", "bg", "bg", ""], "c has no prototype"
    assert table["distance"].tolist() == pytest.approx([3, 4, 3, NAN], nan_ok=True)
    # one class has no neighbour
    table = nearest_confusions(np.zeros((0, 2)), np.zeros(0, int), np.zeros((1, 2)), np.ones(1), ["bg"])
    assert table.loc[0, ["pixels", "neighbour", "confused with"]].tolist() == [0, "", ""]


# --- labels

#                 found  missed  wrong  right bg  future  of bg  ignored  told  void
GIVEN = np.array([[0, 0, 0, 0, 0, 0, 0, 3, 255]])
LEARNT = np.array([[1, 0, 2, 0, 0, 1, 255, 3, 255]])
TRUTH = np.array([[1, 1, 1, 0, 3, 0, 2, 3, 255]])


def test_what_became_of_each_pixel():
    fates = label_outcomes(GIVEN, LEARNT, TRUTH, old=3)
    names = [OUTCOMES[k] for k in fates[0]]
    assert names == [
        "old class, found",
        "old class, missed",
        "wrong class",
        "background, rightly",
        "background, rightly",
        "wrong class",
        "ignored",
        "given",
        "given",
    ]


def test_what_became_of_each_class():
    table = relabel_table([GIVEN, GIVEN], [LEARNT, LEARNT], [TRUTH, TRUTH], 3, ["bg", "a", "b", "c"])
    table = table.set_index("class")
    assert table["pixels"].tolist() == [4, 6, 2, 2]
    assert table.loc["a", list(OUTCOMES[2:5])].tolist() == pytest.approx([1 / 3] * 3)
    assert table.loc["bg", ["background, rightly", "wrong class"]].tolist() == [0.5, 0.5]
    assert table.loc["b", "ignored"] == 1 and table.loc["c", "background, rightly"] == 1
    assert (table[list(OUTCOMES[1:])].sum(axis=1) == 1).all()
    # nothing is given the label background
    told = np.ones((1, 2), int)
    table = relabel_table([told], [told], [told], 1, ["bg", "a"])
    assert isinstance(table, pd.DataFrame) and table.empty and "ignored" in table.columns
