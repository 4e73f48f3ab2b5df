"""Prediction rules: from the rows of a network to logits whose argmax is the prediction."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# learnt: the rows of the classes. zero: the background's logit is 0. folded: it has the scores of the extra rows too.
Rule = Literal["learnt", "zero", "folded"]
CERTAIN = 10_000.0  # the background's logit where the sum of its scores is 1 or more: above every other logit


def fold(rule: Rule, raw: Tensor, extra: int) -> Tensor:
    """Logits (B,C,H,W) of the classes from full-resolution rows (B,e+C,H,W), the `extra` e ones first.

    The argmax is that of the method's scores: see `zero_background` and `folded_background`. Raises ValueError for an
    unknown rule.
    """
    if rule == "learnt":
        return raw[:, extra:]
    if rule == "zero":
        return zero_background(raw[:, extra:])
    if rule == "folded":
        return folded_background(raw, extra)
    raise ValueError(f"the prediction rule is {rule!r}. Use 'learnt', 'zero' or 'folded'.")


def zero_background(logits: Tensor) -> Tensor:
    """Logits (B,C,H,W) with 0 in channel 0: background where no other class has a sigmoid above 1/2.

    Source: DKD (Baek et al. 2022).
    """
    return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, 1:]], dim=1)


def folded_background(raw: Tensor, extra: int) -> Tensor:
    """Logits (B,C,H,W) in which channel 0 stands for the sum of the sigmoids of the extra rows and of the background.

    Shapes: raw (B,e+C,H,W), the e extra rows first. The sigmoid increases, so that the argmax is that of the scores
    [s, sigma(z_1), ...]. Source: SSUL (Cha et al. 2021), whose extra row is the unknown class.
    """
    # s = sum_u sigma(z_u) + sigma(z_0);   z = log s - log(1 - s), or 10000 where s >= 1
    scored = raw[:, : extra + 1]
    log_s = F.logsigmoid(scored).logsumexp(dim=1, keepdim=True)
    certain = (scored.sigmoid().sum(dim=1, keepdim=True) >= 1) | (log_s >= 0)
    below = torch.where(certain, -1.0, log_s)  # a value without infinite gradient where it is not used
    background = torch.where(certain, CERTAIN, below - torch.log(-torch.expm1(below)))
    return torch.cat([background, raw[:, extra + 1 :]], dim=1)
