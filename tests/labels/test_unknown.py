"""SSUL's unknown class: the released labels, values by hand, and what never happens."""

import pytest
import torch

from ciss.labels.unknown import rows_of_labels, sigmoid_labels
from ciss.losses import sigmoid_cross_entropy
from tests.helpers.golden import case

VOID = 255


def pixels(*rows):
    return torch.tensor(rows, dtype=torch.float64).T[None, :, None].contiguous()


def test_released_labels():
    plain, maps = case("ssul.labels_plain"), case("ssul.labels_saliency")
    assert rows_of_labels(plain["given"]).equal(plain["labels"])
    found = rows_of_labels(maps["given"], maps["saliency"] > 0)
    assert found.equal(maps["labels"]) and set(found.unique().tolist()) >= {0, 1, VOID}


def positions(rows):
    """The released numbering -> channel positions: unknown and background are 0."""
    return torch.where(rows == VOID, VOID, (rows - 1).clamp(min=0))


@pytest.mark.parametrize("name", ["pseudo_plain", "pseudo_saliency"])
def test_released_pseudo_labels(name):
    """Given rows and pseudo-labels; what is background or unknown afterwards was so before."""
    values = case(f"ssul.{name}")
    given = values["given"]
    found = sigmoid_labels(positions(given), values["teacher"])
    # "plain": 0 and 1 alike are unknown; with maps: what was salient (row 0)
    assert rows_of_labels(found, given == 0).equal(values["labels"])
    assert (found != positions(given)).any()


GIVEN = torch.tensor([[[0, 0, 0, 3, VOID, 0]]])
SIGMOIDS = pixels(*zip(
    (0.2, 0.6, 0.75, 0.9, 0.1, 0.3),
    (0.1, 0.3, 0.1, 0.05, 0.1, 0.65),
    (0.8, 0.65, 0.71, 0.02, 0.9, 0.2),
    (0.3, 0.05, 0.2, 0.02, 0.1, 0.1),
    strict=True,
))  # fmt: skip
STUDENT = pixels(*zip(
    (1, 0.5, -0.5, -2, 0, 0),
    (-1, 0, -1, -3, 0, 1),
    (2, 0.3, 0.9, -2, 0, -1),
    (-2, -1, -2, -1, 0, -2),
    (-3, -1.5, -1, 1.5, 0, -2.5),
    strict=True,
))  # fmt: skip
SALIENT = torch.tensor([[[True, True, True, True, True, False]]])


def test_labels_by_hand():
    found = sigmoid_labels(GIVEN, SIGMOIDS.logit())
    assert found.flatten().tolist() == [1, 0, 0, 3, VOID, 0]
    assert rows_of_labels(found).flatten().tolist() == [2, 0, 0, 4, VOID, 0]
    assert rows_of_labels(found, SALIENT).flatten().tolist() == [2, 0, 0, 4, VOID, 1]


def test_the_unknown_class_beats_an_old_one_and_the_threshold():
    """Pixel 3: the unknown's .75 beats .71. Without the unknown's row, it would be class 1."""
    assert sigmoid_labels(GIVEN, SIGMOIDS[:, 1:].logit(), extra=0).flatten().tolist() == [1, 0, 1, 3, VOID, 0]
    assert sigmoid_labels(GIVEN, SIGMOIDS.logit(), threshold=0.81).flatten().tolist() == [0, 0, 0, 3, VOID, 0]
    tie = sigmoid_labels(GIVEN, torch.full((1, 4, 1, 6), 3.0))
    assert tie.equal(GIVEN), "of equal rows the first is taken: the unknown class"


def test_loss_by_hand():
    labels = sigmoid_labels(GIVEN, SIGMOIDS.logit())
    student = STUDENT.clone().requires_grad_()
    loss = sigmoid_cross_entropy(student, rows_of_labels(labels))
    assert loss.item() == pytest.approx(2.155302, abs=1e-6)
    with_maps = sigmoid_cross_entropy(STUDENT, rows_of_labels(labels, SALIENT))
    assert with_maps.item() == pytest.approx(1.955302, abs=1e-6)
    loss.backward()
    expected = [-0.075508, 0.100000, 0.114889, 0.053788, 0.036485]
    assert student.grad[0, :, 0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert student.grad[0, :, 0, 4].eq(0).all()
