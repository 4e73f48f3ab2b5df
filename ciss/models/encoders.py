"""Encoders from timm, by name. timm takes seconds to import, so only the functions that need it import it."""

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

from ciss import documents
from ciss.models import hub, packages
from ciss.models.hub import WeightsError
from ciss.models.without_values import without_values

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

logging.getLogger("timm").setLevel(logging.ERROR)  # its warnings about weight files: `check_weights` checks them
STAGES = 4  # the deepest stages, as feature distillation and prototypes use them


class Convolutional(nn.Module):
    """A convolutional timm encoder. It returns its last four stages, deepest last."""

    patch = 1  # images need no padding

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.widths = body.feature_info.channels()[-STAGES:]
        self.activations: nn.ModuleDict | None = None  # after `split_activations`: by the child of `body` they follow
        self.sources: dict[str, str] = {}  # stage -> key of its last activation; none: the stage ends without one

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B,3,H,W) -> the last four stages, each (B,D,h,w)."""
        return self.stages(images)[0]

    def stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """images (B,3,H,W) -> the last four stages, and the same before their last activation.

        The second list has the stages themselves where they end without an activation and before `split_activations`.
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
        """Moves the last activation of each stage behind the stage, so that `stages` can return its input.

        Stages and names of parameters stay the same. Raises ValueError, and changes nothing, for a stage whose last
        activation cannot be found.
        """
        ends = _last_activations(self.body) if self.activations is None else {}
        if not ends:  # split already, or every stage ends without an activation
            return
        self.activations = nn.ModuleDict()
        for stage, path in ends.items():
            name = path.partition(".")[0]
            activation = self.body.get_submodule(path)
            if hasattr(activation, "inplace"):
                activation.inplace = False  # it would overwrite its input
            self.body.set_submodule(path, nn.Identity())
            self.activations[name] = activation
            self.sources[stage] = name


# Operations at the end of a stage that are no activations. autograd's names.
LINEAR = ("Add", "Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "Mul", "View", "Permute")


def _last_activations(body: nn.Module) -> dict[str, str]:
    """Stages of timm's feature network that end with an activation, by name, each with the path of that module.

    Runs a copy on the meta device, without memory. Raises ValueError for a stage that ends with an operation that is
    neither linear nor a module that can be moved.
    """
    from timm.models import FeatureListNet

    network = copy.deepcopy(body).to("meta").eval()
    producers: dict[int, str] = {}  # id of a tensor -> path of the first leaf module that returned it
    calls: Counter[str] = Counter()
    outputs = []  # kept alive, so that no id is used twice

    def record(path: str, output: Tensor) -> None:
        calls[path] += 1
        outputs.append(output)
        producers.setdefault(id(output), path)

    for path, module in network.named_modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # input and output would be one tensor
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, output, path=path: record(path, output))
    stages = network(torch.zeros(1, 3, 224, 224, device="meta"))[-STAGES:]
    names = list(getattr(network, "return_layers", {}))[-STAGES:]
    ends = {}
    for number, stage in enumerate(stages):
        operation = stage.grad_fn.name() if stage.grad_fn is not None else ""
        if operation.startswith(LINEAR):
            continue
        path = producers.get(id(stage), "")
        movable = isinstance(network, FeatureListNet) and calls[path] == 1 and "." in path
        if not movable or list(network.get_submodule(path).parameters()):
            raise ValueError(f"the last activation of stage {number + 1} ({operation}) is no module that can be moved")
        ends[names[number]] = path
    return ends


@functools.cache
def activation_problem(name: str, output_stride: int, image_size: int | None = None) -> str | None:
    """Why `split_activations` is impossible for an encoder; None where it is possible.

    Also None for an encoder that cannot be created, whose error `create_encoder` raises.
    """
    try:
        with without_values():
            encoder = create_encoder(name, output_stride, image_size=image_size)
    except ValueError:
        return None
    try:
        encoder.split_activations()
    except ValueError as error:
        return str(error)
    return None


class PlainTransformer(nn.Module):
    """A plain vision transformer of timm. Its stages are the outputs of four blocks, the last one after the norm.

    Images may have any size: the last patches are padded with zeros, and position embeddings are resized bilinearly,
    both as in the published MBS.
    """

    def __init__(self, body: "VisionTransformer"):
        super().__init__()
        body.attn_pool = None  # a part of the head, which is not used
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
        tokens = body.norm_pre(self._with_positions(patches, grid))
        stages = []
        norm = body.fc_norm if isinstance(body.norm, nn.Identity) else body.norm  # fc_norm: mean-pooled models
        for number, block in enumerate(body.blocks):
            tokens = block(tokens)
            if number in self.ends:
                whole = norm(tokens) if number == self.ends[-1] else tokens
                stages.append(whole[:, body.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid))
        return stages

    def stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stages twice, because no block ends with an activation."""
        stages = self(images)
        return stages, stages

    def split_activations(self) -> None:
        """Does nothing, see `stages`."""

    def _with_positions(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B,h,w,D) -> tokens (B,N,D) with position embeddings, class and register tokens first."""
        body, patches = self.body, patches.flatten(1, 2)
        first = [token.expand(len(patches), -1, -1) for token in (body.cls_token, body.reg_token) if token is not None]
        positions, own = body.pos_embed, body.patch_embed.grid_size
        if grid != own:
            from timm.layers import resample_abs_pos_embed

            prefix = 0 if body.no_embed_class else body.num_prefix_tokens
            options = {"num_prefix_tokens": prefix, "interpolation": "bilinear", "antialias": False}
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

    Args:
        output_stride: of a transformer, the side of its patches.
        weights: a local weight file.
        pretrained: use timm's own weights, from the cache or the network.
        image_size: side in pixels of the grid of a transformer's position embeddings; None: timm's.

    Raises:
        WeightsError: the file is of another network, or weights cannot be fetched.
        ValueError: timm has no such name, output stride or image size.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    _check_name(name)
    options = {}
    if weights is not None:
        stored = check_weights(name, weights)
        source = {"state_dict": stored} if packages.package_of(weights) else {"file": str(weights)}
        options = {"pretrained": True, "pretrained_cfg_overlay": source}
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
    except (AssertionError, RuntimeError, TypeError) as error:  # timm has no such variant
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

        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5)) or "see timm.list_models()"
        raise ValueError(f"timm has no encoder {documents.short(name)}. Close ones: {near}.")


def is_encoder(name: str) -> bool:
    """Whether timm, or this project, has an encoder with this name."""
    import timm

    from ciss.models import tiny  # noqa: F401, for its entry in timm's list

    return timm.is_model(name)


def has_pretrained_weights(name: str) -> bool:
    """Whether timm has weights of an encoder."""
    import timm

    return timm.is_model_pretrained(name)


def check_weights(name: str, file: Path) -> dict[str, Tensor]:
    """The parameters in a weight file, under timm's names.

    Raises WeightsError unless the file has every parameter of the encoder in its shape; its head may be missing.
    """
    import timm

    _check_name(name)
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such weight file. Put it there, or change model.weights.")
    if file.suffix == ".npz":
        raise WeightsError(f"{file}: npz files are not read. Use timm's safetensors of {name}, or model.pretrained.")
    try:
        stored = timm.models.load_state_dict(str(file), device="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; each means the file cannot be read
        raise WeightsError(f"{file}: this weight file cannot be read ({error}). Fetch it again.") from None
    with without_values():
        network = timm.create_model(name)
    package = packages.package_of(file)
    if package and package.encoder != name:
        raise WeightsError(f"{file}: these are the weights of {package.encoder}, not {name}. Change model.encoder.")
    if package:
        stored = packages.rename(stored, list(network.state_dict()))
    head = (network.default_cfg or {}).get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    wanted = {k: v.shape for k, v in network.state_dict().items() if not k.startswith(tuple(f"{h}." for h in head))}
    # timm resizes position embeddings, so any square number of patches will do
    if "pos_embed" in wanted and getattr(stored.get("pos_embed"), "ndim", 0) == 3:
        count = stored["pos_embed"].shape[1]
        patches = count - (0 if network.no_embed_class else network.num_prefix_tokens)
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            wanted["pos_embed"] = (1, count, wanted["pos_embed"][2])
    wrong = [k for k, shape in wanted.items() if getattr(stored.get(k), "shape", None) != shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise WeightsError(
            f"{file}: not the weights of {name}: {len(wrong)} of {len(wanted)} parameters are missing or of another "
            f"shape, {wrong[0]} first. Change model.encoder or model.weights."
        )
    return stored
