"""SELECT's start of new tokens: the worked examples, and votes over images."""

import pytest
import torch

from ciss.losses import context_hinge
from ciss.models.context import (
    choose_sources,
    context_token,
    mixture_weights,
    row_distances,
    token_distances,
)
from tests.helpers.golden import case

TOKENS = torch.tensor([[0.0, 0], [1, 0], [0, 1], [2, 2]])  # background, classes 1, 2, 3
MASKED = torch.tensor(
    [
        [[0, 0.1], [1.1, 0], [0, 1.5], [3, 3]],
        [[0, 0], [1, 0.3], [0.2, 1], [2, 2.5]],
        [[0.5, 0], [1, 0.1], [0, 1.4], [2, 2.9]],
        [[0, 0.2], [1.6, 0], [0, 1.1], [2.5, 2]],
        [[0.1, 0], [1.2, 0], [0, 1.3], [2, 2.05]],
    ]
)


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=1e-6, atol=1e-6)


def test_votes_and_sources():
    distances = token_distances(MASKED, TOKENS)
    close(distances[0], [0.1, 0.1, 0.5, 1.414214])
    nearest = 1 + distances[:, 1:].argmin(dim=1)
    assert nearest.tolist() == [1, 2, 1, 2, 3]
    votes = torch.bincount(nearest, minlength=4)
    assert choose_sources(votes, epsilon=0.15) == [1, 2, 3] and choose_sources(votes, epsilon=0.3) == [1, 2]
    assert choose_sources(votes, epsilon=0.9) == [1], "no share is above: the most voted class, lowest position first"
    assert choose_sources(votes, epsilon=0.15, best=True) == [1]
    assert choose_sources(torch.tensor([7, 0, 2, 1]), epsilon=0.15, first=0) == [0, 2]
    assert choose_sources(torch.tensor([7, 0, 0, 0]), epsilon=0.15) == []


def test_mixtures_of_tokens():
    close(mixture_weights(TOKENS[1:3]), [0.5, 0.5])
    close(mixture_weights(TOKENS[1:]), [0.096692, 0.096692, 0.806617])
    close(mixture_weights(TOKENS[1:]) @ TOKENS[1:].double(), [1.709925, 1.709925])
    close(mixture_weights(TOKENS[1:], mixture="average"), [1 / 3] * 3)
    with pytest.raises(ValueError, match="'attended' or 'average'"):
        mixture_weights(TOKENS, mixture="sum")


def test_noise_is_drawn_on_the_cpu_from_the_seed():
    token, bias = context_token(TOKENS[1:], torch.tensor([1.0, 2, 3]), mixture="attended", deviation=0.0, seed=0)
    close(token, [1.709925, 1.709925])
    close(bias, 0.096692 + 2 * 0.096692 + 3 * 0.806617)
    xi = torch.randn(2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noisy, _ = context_token(TOKENS[1:], torch.zeros(3), mixture="attended", deviation=0.1 * 0.05, seed=4)
    close(noisy, token + 0.005 * xi)
    # xi (1.5, -.5): the token (1.717425, 1.707425)
    close(token + 0.005 * torch.tensor([1.5, -0.5]), [1.717425, 1.707425])


def test_the_mixture_lies_between_its_sources():
    sources = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = mixture_weights(sources)
    assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)
    order = torch.tensor([3, 0, 4, 1, 2])
    close(mixture_weights(sources[order]), weights[order])


def test_rows_of_a_classifier():
    rows = torch.tensor([[2.0, 0], [0, 1], [1, 1]])
    features = torch.tensor([[[[6.0, 0, 9]], [[1, 1, 9]]]])  # (1,2,1,3): (3,1) is the mean of the first two cells
    inside = torch.tensor([[[True, True, False]]])
    close(row_distances(features, inside, rows)[0], [0.320364, 1.169421, 0.459506])


def test_the_hinge():
    new = torch.tensor([0.7, 0.2], dtype=torch.float64, requires_grad=True)
    sources = TOKENS[1:].double().requires_grad_()
    loss = context_hinge(new, sources)
    close(loss, 0.213148)
    loss.backward()
    close(new.grad, [0.277350, -0.184900])
    close(sources.grad, [[-0.277350, 0.184900], [0, 0], [0, 0]])
    assert context_hinge(new + 9, sources) == 0 and context_hinge(new, sources[:0]) == 0
    close(context_hinge(new, sources, margin=2.0), (1.639445 + 0.936985 + 0) / 3)


def test_a_token_on_its_only_source_has_no_gradient():
    new = torch.tensor([1.0, 0], requires_grad=True)
    loss = context_hinge(new, TOKENS[1:2])
    loss.backward()
    assert loss == 1 and new.grad.equal(torch.zeros(2))


def test_the_hinge_has_the_gradient_of_differences():
    generator = torch.Generator().manual_seed(1)
    new, sources = (torch.randn(shape, generator=generator, dtype=torch.float64) / 3 for shape in ((6,), (4, 6)))
    assert torch.autograd.gradcheck(context_hinge, (new.requires_grad_(), sources.requires_grad_()))


# --- values of an independent script, see tests/golden/README.md


def test_the_golden():
    golden = case("select.start")
    distances = token_distances(golden["class_features"], golden["tokens"])
    close(distances, golden["distances"])
    nearest = 1 + distances[:, 1:].argmin(dim=1)
    assert nearest.equal(golden["votes"])
    votes = torch.bincount(nearest, minlength=7)
    close(votes / votes.sum(), golden["shares"])
    chosen = choose_sources(votes, epsilon=0.15)
    assert chosen == golden["chosen"].tolist()
    weights = mixture_weights(golden["tokens"][chosen])
    torch.testing.assert_close(weights, golden["attention"], rtol=1e-8, atol=0)
    torch.testing.assert_close(weights @ golden["tokens"][chosen], golden["token"], rtol=1e-8, atol=0)


def test_the_golden_hinge():
    golden = case("select.hinge")
    new, sources = golden["new"].requires_grad_(), golden["sources"].requires_grad_()
    loss = context_hinge(new, sources, margin=1.0)
    loss.backward()
    for found, name in ((loss, "loss"), (new.grad, "grad_new"), (sources.grad, "grad_sources")):
        torch.testing.assert_close(found, golden[name].reshape(found.shape), rtol=1e-8, atol=1e-15)
