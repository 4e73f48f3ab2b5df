"""DeepLabV3's decoder: atrous spatial pyramid pooling (torchvision's), then the growing classifier."""

from torch import Tensor, nn

from ciss.models.classifier import Classifier, newest


class DeepLabV3(nn.Module):
    """Chen et al., Rethinking atrous convolution (2017), without the extra 3x3 convolution, as in MiB and PLOP.

    Args:
        in_width: channels of the encoder's last stage.
        width: channels D of the dense features.
        groups: channels of each group of classes, the first with the background.
    """

    def __init__(self, in_width: int, width: int, groups: list[int], *, atrous_rates: tuple[int, ...], dropout: float):
        from torchvision.models.segmentation.deeplabv3 import ASPP  # here, because it takes seconds to import

        super().__init__()
        self.pyramid = ASPP(in_width, list(atrous_rates), width)
        for module in self.pyramid.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout  # torchvision's is 0.5, which distillation would see as noise
        self.classifier = Classifier(width, groups)

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """stages -> logits (B,C,h,w), features (B,D,h,w), class features (B,C,D), class tokens (C,D)."""
        features = self.pyramid(stages[-1])
        tokens = self.tokens
        return self.classifier(features), features, tokens.expand(features.shape[0], -1, -1), tokens

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
    def channels(self) -> int:
        return sum(group.out_channels for group in self.classifier.groups)
