"""The pixel classifier: one group of channels a step."""

import math

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """1x1 convolutions over D features, one for every group of classes, their outputs side by side.

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
        """Adds a group of `classes` channels with the default initialisation; the old groups are not touched."""
        old = self.groups[0]
        self.groups.append(nn.Conv2d(old.in_channels, classes, 1).to(old.weight.device, old.weight.dtype))

    @property
    def tokens(self) -> Tensor:
        """The weight rows (C,D), biases apart: what class tokens are to a mask transformer."""
        return torch.cat([group.weight.flatten(1) for group in self.groups])


@torch.no_grad()
def transfer(classifier: Classifier) -> None:
    """Background weight transfer to the newest group: its rows and biases are the background's.

    Source: MBS (Park et al. 2024), whose code does it with class tokens; this is the same for rows of a classifier.
    """
    background, new = classifier.groups[0], new_group(classifier)
    new.weight.copy_(background.weight[:1].expand_as(new.weight))
    new.bias.fill_(background.bias[0])


def new_group(classifier: Classifier) -> nn.Conv2d:
    """The newest group. Raises ValueError where there is only the base step's."""
    return newest(classifier.groups)


def newest(groups: nn.ModuleList | nn.ParameterList):
    """What a decoder's last growing added. Raises ValueError where it never grew."""
    if len(groups) == 1:
        raise ValueError("there is no group of new classes yet. Grow the network first.")
    return groups[-1]


@torch.no_grad()
def balance(classifier: Classifier) -> None:
    """Balanced initialisation of the newest group (Cermelli et al., MiB, section 3.3).

    New rows copy the background's; the background's bias is shared among background and new classes, so that their
    probabilities sum to the background's old one.
    """
    transfer(classifier)
    background, new = classifier.groups[0], new_group(classifier)
    # b_new = b_bg = b_bg - log(C_new + 1)
    shared = background.bias[0] - math.log(new.out_channels + 1)
    new.bias.fill_(shared)
    background.bias[0] = shared
