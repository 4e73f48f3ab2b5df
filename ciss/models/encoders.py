"""Encoders come from timm, by name; weight files of another network are refused.

timm takes seconds to import, so only the functions that need it do.
"""

import copy
import difflib
import functools
import logging
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.models import hub
from ciss.models.hub import WeightsError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

logging.getLogger("timm").setLevel(logging.ERROR)  # what it says of a weight file, `check_weights` has judged
STAGES = 4  # the deepest stages, as feature distillation and prototypes use them


class Convolutional(nn.Module):
    """A timm backbone made for features: it returns its last four stages, deepest last."""

    patch = 1  # images need no padding

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.widths = body.feature_info.channels()[-STAGES:]
        self.activations: nn.ModuleDict | None = None  # by the name of the part of `body` that they follow
        self.sources: dict[str, str] = {}  # stage -> the key of its activation; without one: it ends linearly

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) -> the last four stages, each (B,D,h,w)."""
        return self.stages(images)[0]

    def stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """images (B,3,H,W) -> the last four stages, and the same before their last activation.

        Both lists hold the same tensors for stages that end without an activation, and until `split_activations`.
        """
        if self.activations is None:
            stages = self.body(images)[-STAGES:]
            return stages, stages
        values, inputs, stages, before = images, {}, [], []
        for name, module in self.body.items():
            values = module(values)
            if name in self.activations:
                inputs[name] = values
                values = self.activations[name](values)
            if name in self.body.return_layers:
                stages.append(values)
                before.append(inputs.get(self.sources.get(name), values))
        return stages[-STAGES:], before[-STAGES:]

    def split_activations(self) -> None:
        """Moves the last activation of each stage out of the stage, so that `stages` has both sides of it.

        The values of the stages and the names of all parameters stay the same. Raises ValueError, and changes nothing,
        where the last activation of a stage cannot be found.
        """
        if self.activations is not None:
            return
        ends = _last_activations(self.body)
        if not ends:  # every stage ends without an activation
            return
        self.activations, self.sources = nn.ModuleDict(), {}
        for tap, path in ends.items():
            name = path.partition(".")[0]
            activation = self.body.get_submodule(path)
            if hasattr(activation, "inplace"):
                activation.inplace = False  # else the input, which is what is asked for, would be overwritten
            self.body.set_submodule(path, nn.Identity())
            self.activations[name], self.sources[tap] = activation, name


# What a stage may end with that is no activation: a residual sum, a convolution, batch statistics, a scale, a view.
LINEAR = ("Add", "Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "Mul", "View", "Permute")


def _last_activations(body: nn.Module) -> dict[str, str]:
    """Names of the stages of timm's feature network that end with an activation, each with the path of that module.

    Found by a forward pass without memory. Raises ValueError for a stage whose end is neither linear nor a module of
    its own that can be moved.
    """
    from timm.models import FeatureListNet

    trial = copy.deepcopy(body).to("meta").eval()
    producers: dict[int, str] = {}  # the leaf module that made a tensor; leaves that hand it on come later
    calls: Counter[str] = Counter()
    outputs = []  # kept, so that no address is used twice

    def note(path: str, output: Tensor) -> None:
        calls[path] += 1
        outputs.append(output)
        producers.setdefault(id(output), path)

    for path, module in trial.named_modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # else input and output are one tensor
        if not any(True for _ in module.children()):
            module.register_forward_hook(lambda _module, _inputs, output, path=path: note(path, output))
    stages = trial(torch.zeros(1, 3, 224, 224, device="meta"))[-STAGES:]
    names = list(getattr(trial, "return_layers", {}))[-STAGES:]
    ends = {}
    for number, stage in enumerate(stages):
        operation = stage.grad_fn.name() if stage.grad_fn is not None else ""
        if operation.startswith(LINEAR):
            continue
        path = producers.get(id(stage), "")
        movable = isinstance(trial, FeatureListNet) and calls[path] == 1 and "." in path
        if not movable or any(True for _ in trial.get_submodule(path).parameters()):
            raise ValueError(f"the last activation of stage {number + 1} ({operation}) is no module that can be moved")
        ends[names[number]] = path
    return ends


@functools.cache
def activation_problem(name: str, output_stride: int, image_size: int | None = None) -> str | None:
    """Why an encoder has no stages before their last activation, see `split_activations`; None where it has them.

    Found without memory. None, too, for an encoder that cannot be created: `create_encoder` says why.
    """
    try:
        with torch.device("meta"):
            encoder = create_encoder(name, output_stride, image_size=image_size)
    except ValueError:
        return None
    try:
        encoder.split_activations()
    except ValueError as error:
        return str(error)
    return None


class PlainTransformer(nn.Module):
    """A plain vision transformer of timm's; its stages are the outputs of four blocks, the last one normed.

    Images of any size: zeros to the right and below fill the last patches, and position embeddings are resized
    bilinearly, as the published MBS does both.
    """

    def __init__(self, body: "VisionTransformer"):
        super().__init__()
        body.attn_pool = None  # of the head, which nothing here uses
        self.body = body
        self.patch = body.patch_embed.patch_size[0]
        depth = len(body.blocks)
        self.ends = sorted({-(-depth * part // STAGES) - 1 for part in range(1, STAGES + 1)})  # of 12: 2, 5, 8, 11
        self.widths = [body.embed_dim] * len(self.ends)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) -> stages, each (B,D,h,w) of ceil(H/patch) x ceil(W/patch)."""
        body, (height, width) = self.body, images.shape[-2:]
        patches = body.patch_embed(F.pad(images, (0, -width % self.patch, 0, -height % self.patch)))
        grid = tuple(patches.shape[1:3])
        tokens, stages = body.norm_pre(self._place(patches, grid)), []
        norm = body.fc_norm if isinstance(body.norm, nn.Identity) else body.norm  # the former where timm pools by means
        for number, block in enumerate(body.blocks):
            tokens = block(tokens)
            if number in self.ends:
                whole = norm(tokens) if number == self.ends[-1] else tokens
                stages.append(whole[:, body.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid))
        return stages

    def stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stages twice: a block ends with a residual sum, the last one with a norm; neither is an activation."""
        stages = self(images)
        return stages, stages

    def split_activations(self) -> None:
        """Nothing to do, see `stages`."""

    def _place(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B,h,w,D) with positions, class and register tokens before them: (B,N,D)."""
        body, patches = self.body, patches.flatten(1, 2)
        first = [token.expand(len(patches), -1, -1) for token in (body.cls_token, body.reg_token) if token is not None]
        positions, own = body.pos_embed, body.patch_embed.grid_size
        if grid != own:
            from timm.layers import resample_abs_pos_embed

            placed = 0 if body.no_embed_class else body.num_prefix_tokens
            options = {"num_prefix_tokens": placed, "interpolation": "bilinear", "antialias": False}
            positions = resample_abs_pos_embed(positions, list(grid), list(own), **options)
        if body.no_embed_class:
            return torch.cat([*first, patches + positions], dim=1)
        return torch.cat([*first, patches], dim=1) + positions


def create_encoder(
    name: str,
    output_stride: int,
    weights: Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
) -> Convolutional | PlainTransformer:
    """An encoder by timm's name.

    Args: output_stride: a transformer's is its patch; `weights`: a local file; `pretrained`: let timm fetch its own;
    image_size: pixels, what a transformer's own grid of positions is made for (None: timm's). Raises: WeightsError for
    a file of another network, ValueError for a name, output stride or image size timm does not know.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    _check_name(name)
    options = {}
    if weights is not None:
        check_weights(name, weights)
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    elif pretrained:
        file = hub.cached_weights(name) or hub.fetch(name)
        options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)} if file else None}
    plain = timm.models.is_model_in_modules(name, ["vision_transformer", "deit"])
    if plain:
        options |= {"num_classes": 0, "dynamic_img_size": True}
        options |= {"img_size": image_size} if image_size else {}
    elif image_size:
        raise ValueError(f"{name} has no grid of positions. Set model.image_size to null.")
    else:
        options |= {"features_only": True, "output_stride": output_stride}
    try:
        body = timm.create_model(name, **options)
    except (AssertionError, RuntimeError, TypeError) as error:  # timm's ways to say that it has no such variant
        raise ValueError(
            f"timm cannot make encoder {name!r} with output stride {output_stride}"
            f"{f' ({error})' if str(error) else ''}. Change model.encoder or model.output_stride."
        ) from error
    if not plain:
        return Convolutional(body)
    if type(body) is not VisionTransformer or body.pos_embed is None:
        raise ValueError(f"{name} is no plain vision transformer with learnt positions. Change model.encoder.")
    encoder = PlainTransformer(body)
    if encoder.patch != output_stride:
        raise ValueError(f"{name} has patches of {encoder.patch} pixels. Set model.output_stride to {encoder.patch}.")
    if image_size and image_size % encoder.patch:
        near = -(-image_size // encoder.patch) * encoder.patch
        raise ValueError(f"image_size {image_size} is no multiple of {name}'s patches. Set model.image_size to {near}.")
    return encoder


def _check_name(name: str) -> None:
    if not is_encoder(name):
        import timm

        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"timm has no encoder {name!r}. Close ones: {', '.join(near) or 'see timm.list_models()'}.")


def is_encoder(name: str) -> bool:
    """Whether timm, or this project, has an encoder of this name."""
    import timm

    from ciss.models import tiny  # noqa: F401, for its entry in timm's list

    return timm.is_model(name)


def has_pretrained_weights(name: str) -> bool:
    """Whether timm knows weights of an encoder."""
    import timm

    return timm.is_model_pretrained(name)


def check_weights(name: str, file: Path) -> None:
    """Raises WeightsError unless the file holds every parameter of the encoder in its shape (the classifier apart)."""
    import timm

    _check_name(name)
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such weight file. Put it there, or change model.weights.")
    if file.suffix == ".npz":
        raise WeightsError(f"{file}: npz files are not read. Use timm's safetensors of {name}, or model.pretrained.")
    try:
        found = timm.models.load_state_dict(str(file), device="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; each means the file cannot be read
        raise WeightsError(f"{file}: this weight file cannot be read ({error}). Fetch it again.") from None
    with torch.device("meta"):
        network = timm.create_model(name)
    head = (network.default_cfg or {}).get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    wanted = {k: v.shape for k, v in network.state_dict().items() if not k.startswith(tuple(f"{h}." for h in head))}
    # timm resizes position embeddings: their number is free
    if "pos_embed" in wanted and getattr(found.get("pos_embed"), "ndim", 0) == 3:
        count = found["pos_embed"].shape[1]
        patches = count - (0 if network.no_embed_class else network.num_prefix_tokens)
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            wanted["pos_embed"] = (1, count, wanted["pos_embed"][2])
    wrong = [k for k, shape in wanted.items() if getattr(found.get(k), "shape", None) != shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise WeightsError(
            f"{file}: not the weights of {name}: {len(wrong)} of {len(wanted)} parameters are missing or of another "
            f"shape, {wrong[0]} first. Change model.encoder or model.weights."
        )
