"""DeepLabV3's decoder: atrous spatial pyramid pooling (torchvision's), then the growing classifier."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ciss.models.classifier import Classifier, newest
from ciss.models.extras import Extra, Rows, StageRows, make_extras, on_grid


class DeepLabV3(nn.Module):
    """Chen et al., Rethinking atrous convolution (2017), without the extra 3x3 convolution, as in MiB and PLOP.

    Args:
        stage_widths: channels of the encoder's stages, the deepest last.
        width: channels D of the dense features.
        groups: channels of each group of classes, the first with the background.
        extras: rows and buffers that belong to no class, by name.
    """

    def __init__(
        self,
        stage_widths: list[int],
        width: int,
        groups: list[int],
        *,
        atrous_rates: tuple[int, ...],
        dropout: float,
        extras: Mapping[str, Extra] | None = None,
    ):
        from torchvision.models.segmentation.deeplabv3 import ASPP  # here, because it takes seconds to import

        super().__init__()
        self.pyramid = ASPP(stage_widths[-1], list(atrous_rates), width)
        for module in self.pyramid.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout  # torchvision's is 0.5, which distillation would see as noise
        self.classifier = Classifier(width, groups)
        self.widths = [width, *reversed(stage_widths)]
        self.extras = make_extras(extras or {}, self.widths)

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """stages -> logits (B,C,h,w), features (B,D,h,w), class features (B,C,D), class tokens (C,D).

        With rows over stages, logits are on the finest grid of the features and these stages. Class features and tokens
        are the weight rows of the classifier, the same for every image.
        """
        features = self.pyramid(stages[-1])
        tokens, logits = self.tokens, self.classifier(features)
        for module in self.extras.values():
            if isinstance(module, StageRows):
                added = module(stages, features.shape[-2:])
                logits = on_grid(logits, added.shape[-2:]) + added
        return logits, features, tokens.expand(features.shape[0], -1, -1), tokens

    def extra_logits(self, features: Tensor) -> dict[str, Tensor]:
        """features (B,D,h,w) -> logits (B,e,h,w) of the extra rows by name."""
        return {name: module(features) for name, module in self.extras.items() if isinstance(module, Rows)}

    def extra_rows(self, name: str) -> list[nn.Parameter]:
        """The parameters of extra rows; none if the network has no rows of this name."""
        return list(self.extras[name].parameters()) if name in self.extras else []

    @torch.no_grad()
    def add_extras(self, extras: Mapping[str, Extra]) -> None:
        """Adds the extras that a predecessor of another method lacks: rows are copies of the background's."""
        background = self.classifier.groups[0]
        missing = {name: extra for name, extra in extras.items() if name not in self.extras}
        for name, module in make_extras(missing, self.widths).items():
            if isinstance(module, Rows):
                module.weight.copy_(background.weight[:1].expand_as(module.weight))
                module.bias.fill_(background.bias[0])
            self.extras[name] = module.to(background.weight.device)

    @torch.no_grad()
    def take_rows(self, name: str, count: int) -> tuple[Tensor, Tensor]:
        """Removes the first `count` extra rows. Returns their weights (count,D,1,1) and biases (count,)."""
        rows = self.extras.pop(name)
        taken = rows.weight[:count].clone(), rows.bias[:count].clone()
        if left := rows.out_channels - count:
            self.extras[name] = Rows(rows.in_channels, left, rows.detached).to(rows.weight.device)
            self.extras[name].weight.copy_(rows.weight[count:])
            self.extras[name].bias.copy_(rows.bias[count:])
        return taken

    def grow(self, classes: int) -> None:
        self.classifier.grow(classes)

    def balance(self) -> None:
        self.classifier.balance()

    def transfer(self) -> None:
        self.classifier.transfer()

    def rows(self, new: bool = False) -> list[nn.Parameter]:
        """The classifier's parameters, or those of the newest classes alone."""
        return list((newest(self.classifier.groups) if new else self.classifier).parameters())

    @property
    def tokens(self) -> Tensor:
        """The classifier's weight rows (C,D), biases apart."""
        return self.classifier.tokens

    @property
    def biases(self) -> Tensor:
        """The classifier's biases (C,)."""
        return torch.cat([group.bias for group in self.classifier.groups])

    @property
    def channels(self) -> int:
        return sum(group.out_channels for group in self.classifier.groups)
