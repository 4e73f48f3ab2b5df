"""Rows by nearest means and by ridge regression: the worked examples, and that order and batches do not matter."""

import pytest
import torch

from ciss.labels.scores import labels_above
from ciss.models.closed_form import (
    balanced_ridge_solution,
    expand,
    nearest_mean_rows,
    ridge_solution,
    second_moments,
)
from tests.helpers.golden import case


def float64(values):
    return torch.as_tensor(values).to(torch.float64)


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=1e-6, atol=1e-6)


# --- nearest class mean

MEANS = float64([[0, 1], [14 / 3, 1], [1, 5]])
QUERIES = float64([[2, 1], [3, 3], [0, 4]])


def test_rows_of_nearest_means():
    weight, bias = nearest_mean_rows(MEANS)
    close(weight, [[0, 2], [9.333333, 2], [2, 10]])
    close(bias, [-1, -22.777778, -26])
    logits = QUERIES @ weight.T + bias
    close(logits, [[1, -2.111111, -12], [5, 11.222222, 10], [7, -14.777778, 14]])
    squares = torch.cdist(QUERIES, MEANS).square()
    close(QUERIES.square().sum(dim=1, keepdim=True) - logits, squares)
    assert logits.argmax(dim=1).tolist() == [0, 1, 2] == squares.argmin(dim=1).tolist()
    close((logits[0] / 1).softmax(dim=0), [0.957347, 0.042651, 0.000002])


def test_rows_of_largest_cosines():
    weight, bias = nearest_mean_rows(MEANS, metric="cosine")
    cosines = QUERIES @ weight.T / QUERIES.norm(dim=1, keepdim=True)
    close(cosines, [[0.447214, 0.968277, 0.613941], [0.707107, 0.839570, 0.832050], [1, 0.209529, 0.980581]])
    assert (QUERIES @ weight.T + bias).argmax(dim=1).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="'euclidean' or 'cosine'"):
        nearest_mean_rows(MEANS, metric="angle")


def test_golden_rows_of_nearest_means():
    golden = case("ncm.rows")
    features, labels = golden["features"], golden["labels"]
    means = torch.stack([features[labels == c].mean(dim=0) for c in range(4)])
    torch.testing.assert_close(means, golden["means"], rtol=1e-8, atol=1e-12)
    weight, bias = nearest_mean_rows(means)
    torch.testing.assert_close(weight, golden["weight"], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(bias, golden["bias"], rtol=1e-8, atol=1e-12)
    assert (golden["query"] @ weight.T + bias).argmax(dim=1).equal(golden["nearest"])


# --- ridge regression

STEPS = [([[1, 0], [1, 1], [0, 2]], [0, 1, 1]), ([[2, 1], [0.5, 0]], [2, 0])]
AFTER_0 = [[0.352941, 0.176471], [-0.058824, 0.470588]]
AFTER_1 = [[0.251497, -0.047904, 0.263473], [-0.107784, 0.449102, 0.029940]]


def recursion(inverse, weight, x, y):
    """As printed: R <- R - R X' (I + X R X')^-1 X R;  W <- W + R X' (Y - X W)."""
    weight = torch.nn.functional.pad(weight, (0, y.shape[1] - weight.shape[1]))
    gain = inverse @ x.T @ torch.linalg.inv(torch.eye(len(x), dtype=x.dtype) + x @ inverse @ x.T)
    inverse = inverse - gain @ x @ inverse
    return inverse, weight + inverse @ x.T @ (y - x @ weight)


def one_hot(labels, classes):
    return (torch.as_tensor(labels)[:, None] == torch.arange(classes)).double()


def test_sums_and_recursion_are_the_same():
    gram, moment = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    inverse, weight = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for (features, labels), expected, classes in zip(STEPS, (AFTER_0, AFTER_1), (2, 3), strict=True):
        x = float64(features)
        more = second_moments(x, one_hot(torch.tensor(labels), 3))
        gram, moment = gram + more[0], moment + more[1]
        close(ridge_solution(gram, moment[:, :classes]), expected)
        inverse, weight = recursion(inverse, weight, x, one_hot(labels, classes))
        close(weight, expected)
    close(inverse, [[0.167665, -0.071856], [-0.071856, 0.173653]])
    close(float64([1, 1]) @ ridge_solution(gram, moment), [0.143713, 0.401198, 0.293413])


def test_order_and_batches_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (60,), generator=generator)
    labels[::7] = 255
    whole = ridge_solution(*second_moments(x, one_hot(labels, 4)))
    order = torch.randperm(60, generator=generator)
    batches = order.split([1, 30, 29])
    sums_of_batches = [second_moments(x[batch], one_hot(labels[batch], 4)) for batch in batches]
    torch.testing.assert_close(
        ridge_solution(*(sum(sums) for sums in zip(*sums_of_batches, strict=True))), whole, rtol=1e-10, atol=0
    )
    more = ridge_solution(*second_moments(x, one_hot(labels, 5)))
    assert more[:, 4].equal(torch.zeros(5, dtype=torch.float64)), "a class without a feature"
    torch.testing.assert_close(more[:, :4], whole, rtol=1e-12, atol=1e-15)
    assert second_moments(x, one_hot(torch.full((60,), 255), 4))[0].eq(0).all()


def test_a_column_of_ones_is_the_bias():
    x = torch.nn.functional.pad(float64(STEPS[0][0]), (0, 1), value=1.0)
    solution = ridge_solution(*second_moments(x, one_hot(torch.tensor(STEPS[0][1]), 2)))
    close(solution, [[0.206897, 0.103448], [-0.172414, 0.413793], [0.275862, 0.137931]])


def test_targets_may_be_shares_of_classes():
    """Half of the second feature's pixels are ignored: it weighs half."""
    x, y = float64([[1, 2], [3, 1], [2, 2]]), float64([[1, 0], [0.25, 0.25], [0, 0]])
    gram, moment = second_moments(x, y)
    close(gram, [[5.5, 3.5], [3.5, 4.5]])
    close(moment, [[1.75, 0.75], [2.25, 0.25]])


def test_expanded_features():
    expansion = float64([[1, -1, 0.5, 0], [0, 2, -1, 1]])
    close(expand(float64([[1, 1], [2, -1]]), expansion), [[1, 1, 0, 1], [2, 0, 2, 0]])


def test_the_golden_recursion():
    golden = case("closed.recursive")
    gram, moment = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 5, dtype=torch.float64)
    for part, classes in enumerate((3, 3, 4, 5)):
        x = expand(golden[f"features{part}"], golden["expansion"])
        torch.testing.assert_close(x, golden[f"expanded{part}"], rtol=1e-8, atol=1e-10)
        more = second_moments(x, one_hot(golden[f"labels{part}"], 5))
        gram, moment = gram + more[0], moment + more[1]
        found = ridge_solution(gram, moment[:, :classes], gamma=10.0)
        torch.testing.assert_close(found, golden[f"weight{part}"], rtol=1e-8, atol=1e-10)
        inverse = torch.linalg.inv(gram + 10 * torch.eye(12, dtype=torch.float64))
        torch.testing.assert_close(inverse, golden[f"inverse{part}"], rtol=1e-8, atol=1e-10)


def test_pseudo_labels_of_scores():
    scores = torch.tensor([[0.9, 0.2, 0.0, 0.1, 0.3], [0.1, 0.85, 0.84, 2.0, 0.9]])[None, :, None]  # two classes
    labels = torch.tensor([[[0, 0, 0, 3, 255]]])
    assert labels_above(labels, scores, 0.847298).tolist() == [[[0, 1, 0, 3, 255]]]
    # sigma(0.847298) = 0.7
    assert torch.tensor([0.0, 1, 0.405465, 0.847298, 2.197225]).sigmoid().tolist() == pytest.approx(
        [0.5, 0.731059, 0.6, 0.7, 0.9], abs=1e-6
    )


# --- balanced classes


def labelled(counts: list[int], means: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with a one at the end and their labels: every class has the same deviations from its mean."""
    points = [float64(mean) + float64(SPREAD).repeat(n // 4, 1) for n, mean in zip(counts, means, strict=True)]
    features = torch.nn.functional.pad(torch.cat(points), (0, 1), value=1.0)
    return features, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


SPREAD = [[0.5, 0], [-0.5, 0], [0, 0.25], [0, -0.25]]


def test_without_balance_the_solution_is_that_of_ridge():
    features, labels = labelled([40, 4, 8], [[0, 0], [1, 0], [0, 2]])
    sums = second_moments(features, one_hot(labels, 3))
    close(balanced_ridge_solution(*sums, balance=0.0), ridge_solution(*sums))


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_balance_weighs_each_feature_by_its_class(balance):
    """The classes share their covariance here, so that the solution is exact: least squares with weights."""
    counts = torch.tensor([40, 4, 8])
    features, labels = labelled(counts.tolist(), [[0, 0], [1, 0], [0, 2]])
    weights = counts[labels].double() ** -balance
    weights *= len(labels) / weights.sum()
    gram = features.T @ (weights[:, None] * features) + torch.eye(3)
    moment = features.T @ (weights[:, None] * torch.nn.functional.one_hot(labels).double())
    sums = second_moments(features, one_hot(labels, 3))
    close(balanced_ridge_solution(*sums, balance=balance), torch.linalg.solve(gram, moment))


def test_a_rare_class_is_found_with_balance_alone():
    features, labels = labelled([4000, 8], [[0, 0], [1, 0]])
    sums = second_moments(features, one_hot(labels, 2))
    middle = float64([[0.8, 0, 1]])
    assert (middle @ balanced_ridge_solution(*sums, balance=0.0)).argmax() == 0
    assert (middle @ balanced_ridge_solution(*sums, balance=1.0)).argmax() == 1


def test_classes_without_features_have_no_row():
    features, labels = labelled([8, 0, 4], [[0, 0], [1, 0], [0, 2]])
    assert (balanced_ridge_solution(*second_moments(features, one_hot(labels, 3)), balance=0.5)[:, 1] == 0).all()
    nothing = torch.zeros(3, 3), torch.zeros(3, 2)
    assert (balanced_ridge_solution(*nothing, balance=0.5) == 0).all()
