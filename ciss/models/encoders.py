"""Encoders come from timm, by name; this module adds a tiny one and refuses weight files of another network."""

import difflib
import logging
from pathlib import Path

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, load_state_dict, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

logging.getLogger("timm").setLevel(logging.ERROR)  # what it says of a weight file, `check_weights` has judged
STAGES = 4  # the deepest stages, as feature distillation and prototypes use them
default_cfgs = generate_default_cfgs({"ciss_tiny.untrained": {"classifier": "head.fc", "first_conv": "stem.conv"}})


class WeightsError(Exception):
    """A weight file that is missing, unreadable, or of another network."""


@register_model
def ciss_tiny(pretrained: bool = False, **options) -> nn.Module:
    """Three residual blocks, 0.2 million parameters: small enough to train from scratch on two CPU cores."""
    if pretrained:
        raise WeightsError(
            "ciss_tiny has no pretrained weights. Set model.pretrained to false and model.weights to null."
        )
    blocks = tuple(ByoBlockCfg(type="basic", d=1, c=c, s=s, br=1.0) for c, s in ((48, 2), (64, 1), (64, 2)))
    layout = ByoModelCfg(blocks=blocks, stem_chs=24, stem_type="3x3", stem_pool="", act_layer="relu")
    if options.get("features_only"):
        options.setdefault("out_indices", (1, 2))  # without the stem
    network = build_model_with_cfg(
        ByobNet, "ciss_tiny", False, model_cfg=layout, feature_cfg={"flatten_sequential": True}, **options
    )
    # torch's default initialisation: its smaller weights learn faster in a thousand updates than timm's (0.41 against
    # 0.31 mIoU after four epochs of joint training on shapes).
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return network


class Encoder(nn.Module):
    """A timm backbone that returns its stages, deepest last.

    Args: name and `output_stride` as timm knows them; `weights`: a local file; `pretrained`: let timm fetch its own.
    Raises: WeightsError for a file of another network, ValueError for a name or output stride timm does not know.
    """

    def __init__(self, name: str, output_stride: int, weights: Path | None = None, pretrained: bool = False):
        super().__init__()
        _check_name(name)
        options = {}
        if weights is not None:
            check_weights(name, weights)
            options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
        elif pretrained:
            options = {"pretrained": True}
        try:
            self.body = timm.create_model(name, features_only=True, output_stride=output_stride, **options)
        except (AssertionError, RuntimeError, TypeError) as error:  # timm's ways to say that it has no such variant
            raise ValueError(
                f"timm cannot make encoder {name!r} with output stride {output_stride}"
                f"{f' ({error})' if str(error) else ''}. Change model.encoder or model.output_stride."
            ) from error
        self.widths = self.body.feature_info.channels()[-STAGES:]

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) -> the last four stages, each (B,D,h,w)."""
        return self.body(images)[-STAGES:]


def create_encoder(name: str, output_stride: int, weights: Path | None = None, pretrained: bool = False) -> Encoder:
    return Encoder(name, output_stride, weights, pretrained)


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"timm has no encoder {name!r}. Close ones: {', '.join(near) or 'see timm.list_models()'}.")


def check_weights(name: str, file: Path) -> None:
    """Raises WeightsError unless the file holds every parameter of the encoder in its shape (the classifier apart)."""
    _check_name(name)
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such weight file. Put it there, or change model.weights.")
    try:
        found = load_state_dict(str(file), device="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; each means the file cannot be read
        raise WeightsError(f"{file}: this weight file cannot be read ({error}). Fetch it again.") from None
    with torch.device("meta"):
        network = timm.create_model(name)
    head = (network.default_cfg or {}).get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    wanted = {k: v.shape for k, v in network.state_dict().items() if not k.startswith(tuple(f"{h}." for h in head))}
    wrong = [k for k, shape in wanted.items() if getattr(found.get(k), "shape", None) != shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise WeightsError(
            f"{file}: not the weights of {name}: {len(wrong)} of {len(wanted)} parameters are missing or of another "
            f"shape, {wrong[0]} first. Change model.encoder or model.weights."
        )
