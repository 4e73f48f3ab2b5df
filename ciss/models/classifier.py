"""The pixel classifier, which grows by one group of channels in each step."""

import math

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """1x1 convolutions over D features, one for each group of classes, with their outputs concatenated.

    Groups stay separate convolutions, so that growing leaves the old logits equal to the last bit: a wider single
    convolution may sum in another order.
    """

    def __init__(self, width: int, groups: list[int]):
        super().__init__()
        self.groups = nn.ModuleList(nn.Conv2d(width, classes, 1) for classes in groups)

    def forward(self, features: Tensor) -> Tensor:
        """features (B,D,h,w) -> logits (B,C,h,w)."""
        return torch.cat([group(features) for group in self.groups], dim=1)

    def grow(self, classes: int) -> None:
        """Adds a group of `classes` channels with the default initialisation."""
        old = self.groups[0]
        self.groups.append(nn.Conv2d(old.in_channels, classes, 1).to(old.weight.device, old.weight.dtype))

    @property
    def tokens(self) -> Tensor:
        """The weight rows (C,D) without biases, which correspond to the class tokens of a mask transformer."""
        return torch.cat([group.weight.flatten(1) for group in self.groups])

    @torch.no_grad()
    def transfer(self) -> None:
        """Background weight transfer (MBS, Park et al. 2024): new rows and biases are copies of the background's."""
        new = newest(self.groups)
        new.weight.copy_(self.groups[0].weight[:1].expand_as(new.weight))
        new.bias.fill_(self.groups[0].bias[0])

    @torch.no_grad()
    def balance(self) -> None:
        """Balanced initialisation (MiB, Cermelli et al. 2020, section 3.3): `transfer`, with a shared bias.

        The probabilities of the background and of the new classes sum to the old probability of the background.
        """
        self.transfer()
        background, new = self.groups[0], newest(self.groups)
        # b_new = b_bg = b_bg - log(C_new + 1)
        background.bias[0] -= math.log(new.out_channels + 1)
        new.bias.fill_(background.bias[0])


def newest(groups: nn.ModuleList | nn.ParameterList) -> nn.Module | nn.Parameter:
    """The last group. Raises ValueError where there is only that of the base step."""
    if len(groups) == 1:
        raise ValueError("there is no group of new classes yet. Grow the network first.")
    return groups[-1]
