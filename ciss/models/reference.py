"""Load checkpoints of published implementations."""

import math
from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from ciss.models.encoders import PlainTransformer
from ciss.models.mask_transformer import MaskTransformer
from ciss.models.network import Network

WRAPPERS = ("model_state", "model", "state_dict")  # keys under which checkpoint files have the parameters
DECODER = {  # ours: theirs
    "project": "proj_dec",
    "norm": "decoder_norm",
    "patch_projection": "proj_patch",
    "class_projection": "proj_classes",
    "class_tokens": "cls_emb",
    "scales": "mask_norm.weight",
    "shifts": "mask_norm.bias",
}
TOKENS = "decoder.cls_emb"  # (1,n,D) there, (n,D) here
GROUPED = (TOKENS, "decoder.mask_norm.weight", "decoder.mask_norm.bias")


def load_reference_checkpoint(
    name: str, state_dict: Mapping, *, encoder_heads: int | None = None, decoder_heads: int | None = None
) -> Network:
    """A network in evaluation mode with the same outputs as the published one.

    The published groups of the background and of the base classes become the first group.

    Args:
        name: `mbs` (Segmenter with grouped class tokens, Park et al. 2024).
        state_dict: parameters with the published names, also after `module.` or under one of `WRAPPERS`.
        encoder_heads, decoder_heads: of the attention; None: width // 64. The parameters do not tell them.

    Raises ValueError for another name, and for parameters that are missing, foreign or of another shape.
    """
    from timm.models.vision_transformer import VisionTransformer  # here, because timm takes seconds to import

    if name != "mbs":
        raise ValueError(f"there are no reference checkpoints of {name!r}. Use 'mbs'.")
    theirs = _parameters(state_dict)
    wanted = ("encoder.patch_embed.proj.weight", "encoder.pos_embed", "encoder.blocks.0.mlp.fc1.weight")
    wanted += ("decoder.cls_emb.0", "decoder.cls_emb.1", "decoder.proj_dec.weight", "decoder.blocks.0.mlp.fc1.weight")
    if missing := [key for key in wanted if key not in theirs]:
        raise ValueError(f"not a checkpoint of MBS: it has no {missing[0]}.")
    embedding, positions = theirs["encoder.patch_embed.proj.weight"], theirs["encoder.pos_embed"]
    width, patch, side = embedding.shape[0], embedding.shape[-1], math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise ValueError(f"encoder.pos_embed has {positions.shape[1]} positions: 1 and a square number is needed.")
    encoder = VisionTransformer(
        img_size=side * patch,
        patch_size=patch,
        embed_dim=width,
        depth=_count(theirs, "encoder.blocks."),
        num_heads=encoder_heads or max(1, width // 64),
        mlp_ratio=len(theirs["encoder.blocks.0.mlp.fc1.weight"]) / width,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),  # theirs; timm's is 1e-6
        num_classes=0,
        dynamic_img_size=True,
    )
    inner = theirs["decoder.proj_dec.weight"].shape[0]
    groups = [theirs[f"decoder.cls_emb.{k}"].shape[1] for k in range(_count(theirs, "decoder.cls_emb."))]
    decoder = MaskTransformer(
        width,
        inner,
        [groups[0] + groups[1], *groups[2:]],
        layers=_count(theirs, "decoder.blocks."),
        heads=decoder_heads,
        mlp_ratio=len(theirs["decoder.blocks.0.mlp.fc1.weight"]) / inner,
    )
    network = Network(PlainTransformer(encoder), decoder)
    ours = _by_published_names(network, groups)
    for key in [*ours, *theirs]:
        if key not in theirs or key not in ours or theirs[key].shape != ours[key].shape:
            problem = "is missing" if key not in theirs else "is foreign" if key not in ours else "has another shape"
            raise ValueError(f"not a checkpoint of MBS as it was published: {key} {problem}.")
    for key, parameter in ours.items():
        parameter.copy_(theirs[key])
    return network.eval()


def _parameters(state_dict: Mapping) -> dict[str, Tensor]:
    """Parameters by their published names, without wrappers and without the encoder's head, which is not used."""
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    plain = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return {key: value for key, value in plain.items() if not key.startswith("encoder.head.")}


def _count(parameters: dict[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in parameters if key.startswith(prefix)})


def _by_published_names(network: Network, groups: list[int]) -> dict[str, Tensor]:
    """Views of the network's parameters by the published names. Groups 0 and 1 are parts of our first group."""
    views = {}
    for key, value in network.state_dict().items():
        name = key.replace("encoder.body.", "encoder.")
        for ours, theirs in DECODER.items():
            if name.startswith(f"decoder.{ours}"):
                name = name.replace(f"decoder.{ours}", f"decoder.{theirs}")
                break
        prefix, _, group = name.rpartition(".")
        if prefix not in GROUPED:
            views[name] = value
            continue
        value = value[None] if prefix == TOKENS else value
        if group == "0":
            axis = 1 if prefix == TOKENS else 0
            views[f"{prefix}.0"], views[f"{prefix}.1"] = value.split(groups[:2], dim=axis)
        else:
            views[f"{prefix}.{int(group) + 1}"] = value
    return views
