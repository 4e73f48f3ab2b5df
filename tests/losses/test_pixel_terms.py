"""Terms of pixels with one gradient for all of them, against autograd's of each."""

from math import log

import pytest
import torch
from torch import Tensor

from ciss.losses.pixel_terms import pixel_terms

C = 5
VOID = 255


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_terms_of_two_pixels_by_hand():
    """P = (1/4, 3/4) and (1/2, 1/2)."""
    logits = torch.tensor([[0.0, log(3)], [0.0, 0.0]]).T[None, :, None]
    labels = torch.tensor([[[1, VOID]]])
    target = torch.tensor([2.0, 1.0])[None, None, None]  # of the second channel
    terms = pixel_terms(logits, labels, target=target, first=1, entropy=True)
    torch.testing.assert_close(terms.by_label[0], torch.tensor([[[-log(0.75), 0.0]]]))
    torch.testing.assert_close(terms.by_target, torch.tensor([[[-2 * log(0.75), log(2)]]]))
    torch.testing.assert_close(terms.entropy, torch.tensor([[[-0.25 * log(0.25) - 0.75 * log(0.75), log(2)]]]))
    assert terms.target_sums.tolist() == [[[2, 1]]]


@pytest.mark.parametrize("given", [False, True], ids=["", "known log-softmax"])
@pytest.mark.parametrize("parts", ["labels", "target", "entropy", "two labels", "all"])
def test_the_gradient_is_that_of_autograd(parts, given):
    logits = (3 * draw(2, C, 4, 3)).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    labels = [
        torch.randint(C, (2, 4, 3), generator=generator) for _ in range(2 if parts in ("two labels", "all") else 1)
    ]
    labels[0][0, 0] = VOID
    labels = [] if parts in ("target", "entropy") else labels
    target = draw(2, 3, 4, 3, seed=2).exp() if parts in ("target", "all") else None
    entropy = parts in ("entropy", "all")
    weights = draw(4, 2, 4, 3, seed=3)  # of the terms, different in every pixel

    log_p = logits.log_softmax(dim=1)
    expected = [-log_p.gather(1, y.masked_fill(y == VOID, 0)[:, None])[:, 0].masked_fill(y == VOID, 0) for y in labels]
    expected += [-(target * log_p[:, 1:4]).sum(dim=1)] if target is not None else []
    expected += [-(log_p.exp() * log_p).sum(dim=1)] if entropy else []
    known = log_p if given else None
    terms = pixel_terms(logits, *labels, target=target, first=1, entropy=entropy, log_p=known)
    found = [*terms.by_label, *(term for term in (terms.by_target, terms.entropy) if term is not None)]

    assert len(found) == len(expected)
    totals = []
    for values in (found, expected):
        totals.append(sum((w * term).sum() for w, term in zip(weights, values, strict=False)))
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(total, logits, retain_graph=True)[0] for total in totals]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    again = torch.autograd.grad(totals[0], logits)[0]
    assert again.equal(gradients[0]), "the way back leaves what it has kept as it was"


def test_only_the_logits_learn():
    logits, target = draw(1, C, 2, 2).requires_grad_(), draw(1, C, 2, 2, seed=1).exp().requires_grad_()
    terms = pixel_terms(logits, target=target)
    terms.by_target.sum().backward()
    assert target.grad is None and logits.grad.abs().sum() > 0
    assert not terms.target_sums.requires_grad
    with torch.no_grad():
        assert not pixel_terms(logits, entropy=True).entropy.requires_grad
