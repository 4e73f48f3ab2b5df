"""The mask transformer: blocks over patches and class tokens; logits are cosines between them.

Source: Segmenter (Strudel et al. 2021); in MBS (Park et al. 2024) the class tokens grow by a group a step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.models.classifier import newest
from ciss.precision import at_least_float32


def class_norm(cosines: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last axis, that of the classes. Shapes: cosines (...,C), weight (C,), bias (C,) -> (...,C).

    The deviation is the unbiased one, and eps is added to it, not to the variance; so a logit is at most
    (C - 1) / sqrt(C) times its weight. Source: the published code of MBS.
    """
    # z = a (x - mean_c x) / (std_c x + eps) + b
    deviation, mean = torch.std_mean(cosines, dim=-1, keepdim=True)
    return weight * (cosines - mean) / (deviation + eps) + bias


class MaskTransformer(nn.Module):
    """Transformer blocks over patches and class tokens.

    Args:
        in_width: channels of the encoder's last stage.
        width: D, a multiple of `heads`.
        groups: classes of each step, the first with the background.
        layers: number of blocks.
        drop_path: rate of the last block; it rises linearly from 0 in the first.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        groups: list[int],
        *,
        layers: int = 2,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
    ):
        from timm.models.vision_transformer import Block  # here, because timm takes seconds to import

        super().__init__()
        heads = heads or max(1, width // 64)
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads. Change model.width or model.heads.")
        self.project = nn.Linear(in_width, width)
        rates = torch.linspace(0, drop_path, layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates
        )
        self.norm = nn.LayerNorm(width)
        self.patch_projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.class_projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.extras = nn.ModuleDict()  # none, see `create_decoder`
        self.class_tokens, self.scales, self.shifts = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for classes in groups:
            self.grow(classes)

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """stages -> logits (B,C,h,w), features (B,D,h,w), class features (B,C,D), class tokens (C,D)."""
        images, _, *grid = stages[-1].shape
        patches = self.project(stages[-1].flatten(2).transpose(1, 2))
        tokens = self.tokens
        mixed = torch.cat([patches, tokens.to(patches.dtype).expand(images, -1, -1)], dim=1)
        for block in self.blocks:
            mixed = block(mixed)
        patches, classes = self.norm(mixed).split([math.prod(grid), len(tokens)], dim=1)
        patches, classes = patches @ self.patch_projection, classes @ self.class_projection
        # cos(P_j, S_c), then the norm over classes, in float32 or wider: differences of cosines are small
        with torch.autocast(patches.device.type, enabled=False):
            unit_patches, unit_classes = (F.normalize(at_least_float32(x), dim=-1) for x in (patches, classes))
            cosines = unit_patches @ unit_classes.transpose(1, 2)
            logits = class_norm(cosines, torch.cat(list(self.scales)), torch.cat(list(self.shifts)))
        logits, patches = (x.transpose(1, 2).unflatten(2, grid) for x in (logits, patches))
        return logits, patches, classes, tokens

    def grow(self, classes: int) -> None:
        """Adds random class tokens, with scale 1 and shift 0."""
        like = {"device": self.patch_projection.device, "dtype": self.patch_projection.dtype}
        token = torch.empty(classes, len(self.patch_projection), **like)
        self.class_tokens.append(nn.Parameter(nn.init.trunc_normal_(token, std=0.02)))
        self.scales.append(nn.Parameter(torch.ones(classes, **like)))
        self.shifts.append(nn.Parameter(torch.zeros(classes, **like)))

    @torch.no_grad()
    def balance(self) -> None:
        """MiB's start: new tokens, scales and shifts are copies of the background's, whose shift is reduced.

        Probabilities are kept approximately: attention and the norm over classes change logits a little.
        """
        self.transfer()
        self.scales[-1].fill_(self.scales[0][0])
        # b_new = b_bg = b_bg - log(n + 1)
        self.shifts[0][0] -= math.log(len(self.shifts[-1]) + 1)
        self.shifts[-1].fill_(self.shifts[0][0])

    @torch.no_grad()
    def transfer(self) -> None:
        """Background weight transfer (MBS): new tokens are copies of the background's, with scale 1 and shift 0."""
        new = newest(self.class_tokens)
        new.copy_(self.class_tokens[0][:1].expand_as(new))

    def rows(self, new: bool = False) -> list[nn.Parameter]:
        """Class tokens, scales and shifts, or those of the newest classes alone."""
        parts = (self.class_tokens, self.scales, self.shifts)
        return [newest(part) for part in parts] if new else [p for part in parts for p in part]

    @property
    def tokens(self) -> Tensor:
        """The class tokens (C,D)."""
        return torch.cat(list(self.class_tokens))

    @property
    def channels(self) -> int:
        return sum(len(group) for group in self.class_tokens)
