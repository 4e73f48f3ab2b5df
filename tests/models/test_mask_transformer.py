"""The plain transformer as encoder and the mask transformer as decoder: shapes, places, growth, memory, precision."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ciss.config import Model
from ciss.losses import cross_entropy
from ciss.models import Network, WeightsError, create_encoder, create_network, set_norm_mode
from ciss.models.encoders import PlainTransformer
from ciss.models.mask_transformer import MaskTransformer, class_norm
from ciss.store import weights as store_weights
from ciss.store.files import CheckpointError
from ciss.store.weights import restore, save_weights

TINY = "vit_tiny_patch16_224"  # 12 blocks of width 192
SMALL = "test_vit"  # timm's own for tests: 6 blocks of width 64
SIZES = [(64, 64), (48, 96), (50, 70), (16, 16), (17, 15)]  # the third: 4 x 5 patches, the last ones filled up


def build(groups=(5,), seed=0, **options):
    torch.manual_seed(seed)
    defaults = {"encoder": SMALL, "output_stride": 16, "image_size": 64, "decoder": "mask_transformer", "width": 32}
    return create_network(Model(**{**defaults, **options}), list(groups))


def stirred(module, seed=1):
    """Every parameter random: biases, scales and shifts too, which start as constants."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def images(height=64, width=64, count=2, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def stages(width=12, grid=(3, 5), count=2, seed=0):
    return [torch.randn(count, width, *grid, generator=torch.Generator().manual_seed(seed))]


def plain(**options):
    """The encoder around a small transformer of timm's, made for 64 pixels."""
    torch.manual_seed(0)
    made = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 0}
    made |= {"global_pool": "", "dynamic_img_size": True}
    return stirred(PlainTransformer(VisionTransformer(**{**made, **options}))).eval()


def decoder(groups=(5, 2), **options):
    torch.manual_seed(0)
    return stirred(MaskTransformer(12, 16, list(groups), **{"heads": 2, **options})).eval()


def parameters(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def close(found, expected, **options):
    torch.testing.assert_close(found, expected, **{"rtol": 1e-4, "atol": 1e-5, **options})


@pytest.fixture(scope="module")
def tiny():
    """ViT-Ti/16 made for 64 pixels, and the mask transformer: to look at, not to change."""
    network = build((4, 2, 1), encoder=TINY, width=192)
    assert [len(network.encoder.body.blocks), network.encoder.body.blocks[0].attn.num_heads] == [12, 3]
    return stirred(network).eval().requires_grad_(False)


# --- outputs


@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_every_image_size(tiny, size):
    output, grid = tiny(images(*size)), tuple(-(-side // 16) for side in size)
    assert output.logits.shape == (2, 7, *grid) and tiny.channels == 7
    assert [tuple(stage.shape) for stage in output.stages] == [(2, 192, *grid)] * 4
    assert output.features.shape == (2, 192, *grid)
    assert output.class_features.shape == (2, 7, 192) and output.class_tokens.shape == (7, 192)
    assert output.upsample(size).shape == (2, 7, *size)


@pytest.mark.parametrize(
    ("encoder", "stride", "grid"),
    [("ciss_tiny", 4, (13, 18)), ("mobilenetv2_100", 16, (4, 5)), ("resnet18", 8, (7, 9)), ("resnet18", 32, (2, 3))],
)
def test_convolutions_may_feed_the_mask_transformer(encoder, stride, grid):
    network = build((4, 2), encoder=encoder, output_stride=stride, image_size=None).eval()
    output = network(images(50, 70))
    assert output.logits.shape == (2, 6, *grid) and output.features.shape == (2, 32, *grid)
    assert output.class_features.shape == (2, 6, 32) and output.padding is None
    expected = F.interpolate(output.logits, (50, 70), mode="bilinear", align_corners=False)
    assert output.upsample((50, 70)).equal(expected), "no patches, nothing to cut off"


@pytest.mark.parametrize("size", SIZES)
def test_probabilities_are_those_of_the_upsampled_logits(tiny, size):
    output = tiny(images(*size))
    full = output.upsample(size)
    assert output.probabilities(size).equal(full.softmax(dim=1))
    assert output.log_probabilities(size).equal(full.log_softmax(dim=1))
    close(output.probabilities(size).sum(dim=1), torch.ones(2, *size))
    assert output.probabilities(list(size)) is output.probabilities(size), "made once"
    assert output.log_probabilities(torch.Size(size)) is output.log_probabilities(size)


def test_probabilities_keep_gradients_whoever_asked_first():
    output = build()(images(50, 70))
    with torch.no_grad():
        output.probabilities((50, 70)), output.log_probabilities((50, 70))
    for values in (output.probabilities((50, 70)), output.log_probabilities((50, 70))):
        assert values.requires_grad
    with torch.no_grad():
        assert not build()(images()).probabilities((64, 64)).requires_grad


def test_a_filled_image_is_the_image_with_zeros_around_it(tiny):
    """Zeros to the right and below, and nowhere else: what the network does, the caller can do."""
    picture = images(50, 70)
    padded = F.pad(picture, (0, 10, 0, 14))
    own, whole = tiny(picture), tiny(padded)
    assert own.logits.equal(whole.logits) and own.class_features.equal(whole.class_features)
    assert all(a.equal(b) for a, b in zip(own.stages, whole.stages, strict=True))
    assert own.upsample((50, 70)).equal(whole.upsample((64, 80))[..., :50, :70])
    assert (own.padding, whole.padding) == (((50, 70), (64, 80)), None)
    # drawn at twice the size, the grid stands for twice as much
    assert own.covered_by((100, 140)) == (128, 160) and own.upsample((100, 140)).shape == (2, 7, 100, 140)
    assert own.upsample((100, 140)).equal(whole.upsample((128, 160))[..., :100, :140])
    assert whole.covered_by((33, 44)) == (33, 44)


def test_a_patch_stands_where_it_is_in_the_image(tiny):
    """Not stretched: constant over a patch's middle pixels, the upsampled logits of padded images agree with the grid.

    With an odd number of pixels in between, bilinear resizing by 16 has no sample on a patch's centre, but the four
    around it average to the grid's value.
    """
    output = tiny(images(50, 70))
    full = output.upsample((50, 70))
    for i, j in ((0, 0), (1, 2), (2, 3)):
        middle = full[:, :, 16 * i + 7 : 16 * i + 9, 16 * j + 7 : 16 * j + 9].mean((2, 3))
        neighbourhood = output.logits[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        assert (middle <= neighbourhood.amax((2, 3))).all() and (middle >= neighbourhood.amin((2, 3))).all()
        if i and j:  # inside, opposite offsets cancel
            close(middle[:, 0], _at_centre(output.logits[:, 0], i, j))


def _at_centre(grid, i, j):
    """Mean of the four samples 1/32 of a patch around the centre of patch (i,j)."""
    near, far = 31 / 32, 1 / 32
    rows = far / 2 * grid[:, i - 1] + near * grid[:, i] + far / 2 * grid[:, i + 1]
    return far / 2 * rows[:, j - 1] + near * rows[:, j] + far / 2 * rows[:, j + 1]


def test_images_do_not_see_each_other(tiny):
    pair, alone = tiny(images(50, 70)), tiny(images(50, 70)[1:])
    for name in ("logits", "features", "class_features"):
        close(getattr(pair, name)[1:], getattr(alone, name))


# --- the encoder


def test_stages_are_the_outputs_of_blocks_3_6_9_and_12(tiny):
    body, caught, picture = tiny.encoder.body, [], images()
    hooks = [block.register_forward_hook(lambda _, __, out: caught.append(out)) for block in body.blocks]
    found = tiny.encoder(picture)
    for hook in hooks:
        hook.remove()
    assert len(caught) == 12
    for stage, number in zip(found[:-1], (2, 5, 8), strict=True):
        assert stage.flatten(2).mT.equal(caught[number][:, 1:])
    assert found[-1].flatten(2).mT.equal(body.norm(caught[11])[:, 1:]), "only the last is normed"
    assert not found[-1].flatten(2).mT.equal(caught[11][:, 1:])


@pytest.mark.parametrize(
    ("name", "ends"),  # a class token; a register instead, whose positions are the patches' own; others
    [(SMALL, [1, 2, 4, 5]), ("test_vit2", [1, 3, 5, 7]), ("test_vit3", [2, 4, 6, 8]), ("test_vit4", [2, 4, 6, 8])],
)
def test_the_last_stage_is_timms_own(name, ends):
    torch.manual_seed(0)
    encoder = stirred(create_encoder(name, 16, image_size=64)).eval()
    assert encoder.ends == ends and encoder.patch == 16
    body, picture = encoder.body, images()
    found = encoder(picture)
    assert encoder.widths == [stage.shape[1] for stage in found] and len(found) == 4
    timms = body.fc_norm(body.forward_features(picture))[:, body.num_prefix_tokens :]  # an identity, or the norm
    close(found[-1].flatten(2).mT, timms)
    for stage, expected in zip(found, body.forward_intermediates(picture, ends, intermediates_only=True), strict=True):
        if stage is not found[-1]:
            close(stage, expected)


@pytest.mark.parametrize(
    "options", [{"pre_norm": True}, {"no_embed_class": True, "reg_tokens": 3}, {"init_values": 0.5, "qk_norm": True}]
)
def test_variants_of_plain_transformers(options):
    encoder, picture = plain(**options), images()
    expected = encoder.body.forward_features(picture)[:, encoder.body.num_prefix_tokens :]
    close(encoder(picture)[-1].flatten(2).mT, expected)


def test_the_last_stage_of_vit_tiny_is_timms_own(tiny):
    expected = tiny.encoder.body.forward_features(images())[:, 1:]
    close(tiny.encoder(images())[-1].flatten(2).mT, expected)


@pytest.mark.parametrize(
    "before",  # what stands before the patches, and whether it has positions
    [
        {"class_token": True},
        {"class_token": True, "reg_tokens": 2},
        {"class_token": True, "reg_tokens": 2, "no_embed_class": True},
        {"class_token": False},
    ],
    ids=lambda before: "-".join(before),
)
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (32, 32), (96, 128), (16, 256)])
def test_positions_are_resized_bilinearly(before, size):
    encoder, placed = plain(**before), []
    body, classes, registers = encoder.body, int(before["class_token"]), before.get("reg_tokens", 0)
    body.blocks[0].register_forward_pre_hook(lambda _, inputs: placed.append(inputs[0]))
    picture, grid = images(*size), tuple(-(-side // 16) for side in size)
    encoder(picture)
    first = 0 if before.get("no_embed_class") else classes + registers
    own = body.pos_embed[:, first:].mT.unflatten(2, (4, 4))
    if grid == (4, 4):
        resized = own
    else:
        resized = F.interpolate(own, grid, mode="bilinear", align_corners=False, antialias=False)
    padded = F.pad(picture, (0, 16 * grid[1] - size[1], 0, 16 * grid[0] - size[0]))
    patches = F.conv2d(padded, body.patch_embed.proj.weight, body.patch_embed.proj.bias, stride=16)
    (found,) = placed
    assert found.shape[1] == classes + registers + math.prod(grid)
    close(found[:, classes + registers :], (patches + resized).flatten(2).mT)
    tokens = [token[0] for token in (body.cls_token, body.reg_token) if token is not None]
    if tokens:
        expected = torch.cat(tokens) + (body.pos_embed[0, :first] if first else 0)
        assert found[:, : classes + registers].equal(expected.expand(2, -1, -1))


@pytest.mark.parametrize(
    ("depth", "ends"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (6, [1, 2, 4, 5]), (24, [5, 11, 17, 23])]
)
def test_stages_of_any_depth(depth, ends):
    encoder = plain(depth=depth)
    assert encoder.ends == ends and encoder.widths == [32] * len(ends) and len(encoder(images())) == len(ends)


def test_positions_of_the_native_grid_keep_their_bits():
    encoder = create_encoder(SMALL, 16, image_size=64)
    assert encoder.body.pos_embed.shape == (1, 17, 64)
    assert encoder._with_positions(torch.zeros(1, 4, 4, 64), (4, 4))[:, 1:].equal(encoder.body.pos_embed[:, 1:])
    default = create_encoder(SMALL, 16)
    assert default.body.patch_embed.grid_size == (10, 10), "timm's, where no size is given"


def test_heads_have_to_divide_the_width():
    with pytest.raises(
        ValueError, match=r"width 32 does not divide into 5 heads\. Change model\.width or model\.heads"
    ):
        build(heads=5)
    assert build(heads=4).decoder.blocks[0].attn.num_heads == 4
    assert build(width=128).decoder.blocks[0].attn.num_heads == 2 and build().decoder.blocks[0].attn.num_heads == 1


def test_options_of_the_decoder_are_used():
    def rates(network):
        return [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.decoder.blocks]

    assert rates(build()) == [0.0, pytest.approx(0.1)]
    assert rates(build(layers=3, drop_path=0.4)) == [0.0, pytest.approx(0.2), pytest.approx(0.4)]
    assert rates(build(layers=1)) == [0.0]
    for drop_path, same in ((0.0, True), (0.5, False)):
        network = stirred(build(drop_path=drop_path)).train()
        torch.manual_seed(0)
        assert network(images(count=8)).logits.equal(network(images(count=8)).logits) == same
        assert network.eval()(images()).logits.equal(network(images()).logits)


# --- weight files


def stored(tmp_path, values):
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in values.items()}, file)
    return file


def test_weights_of_another_grid_are_taken_and_their_positions_resized(tmp_path):
    torch.manual_seed(0)
    other = stirred(timm.create_model(TINY, img_size=96)).state_dict()  # 6 x 6 positions, a classifier too
    loaded = create_encoder(TINY, 16, stored(tmp_path, other), image_size=64).body.state_dict()
    assert all(loaded[name].equal(other[name]) for name in loaded if name != "pos_embed")
    assert len(loaded) > 140 and not any(name.startswith("head.") for name in loaded)
    assert loaded["pos_embed"][:, 0].equal(other["pos_embed"][:, 0])
    old = other["pos_embed"][:, 1:].mT.unflatten(2, (6, 6))
    resized = F.interpolate(old, (4, 4), mode="bicubic", antialias=True)  # at loading it is timm's resize, once
    close(loaded["pos_embed"][:, 1:], resized.flatten(2).mT)


def test_weights_of_the_same_grid_keep_every_bit(tmp_path):
    torch.manual_seed(0)
    other = stirred(timm.create_model(SMALL, img_size=64, num_classes=0)).state_dict()
    loaded = create_encoder(SMALL, 16, stored(tmp_path, other), image_size=64).body.state_dict()
    assert loaded.keys() == other.keys() and all(loaded[name].equal(other[name]) for name in other)


def test_a_norm_by_another_name_is_taken_over(tmp_path):
    """timm's models that pool by the mean norm after it: these weights are the norm of the last stage."""
    torch.manual_seed(0)
    other = stirred(timm.create_model("test_vit2")).state_dict()
    encoder = create_encoder("test_vit2", 16, stored(tmp_path, other), image_size=64)
    norm = encoder.body.fc_norm
    encoder(images())[-1].sum().backward()
    assert norm.weight.grad is not None and all(p.grad is not None for p in encoder.parameters())
    assert norm.weight.equal(other["fc_norm.weight"]) and norm.bias.equal(other["fc_norm.bias"])


@pytest.mark.parametrize("size", [8, 50])
def test_positions_are_for_whole_patches(size):
    with pytest.raises(ValueError, match=r"image_size \d+ is no multiple of test_vit's patches\. Set .* to (16|64)\."):
        create_encoder("test_vit", 16, image_size=size)


@pytest.mark.parametrize("count", [1, 7, 36])
def test_a_grid_of_positions_is_square(tmp_path, count):
    state = {**timm.create_model("test_vit").state_dict(), "pos_embed": torch.randn(1, count, 64)}
    with pytest.raises(WeightsError, match=r"not the weights of test_vit: .* pos_embed first"):
        create_encoder("test_vit", 16, stored(tmp_path, state), image_size=64)


def test_npz_files_are_refused_by_name(tmp_path):
    (tmp_path / "B_16.npz").touch()
    with pytest.raises(WeightsError, match=r"B_16\.npz: npz files are not read\."):
        create_encoder("test_vit", 16, tmp_path / "B_16.npz")


def test_deit_is_a_plain_transformer_too():
    with torch.device("meta"):
        assert create_encoder("deit_tiny_patch16_224", 16).widths == [192] * 4
    with pytest.raises(ValueError, match="is no plain vision transformer"), torch.device("meta"):
        create_encoder("deit_tiny_distilled_patch16_224", 16)


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda state: timm.create_model("test_vit3").state_dict(), "cls_token"),  # of width 96
        (lambda state: {**state, "pos_embed": torch.randn(1, 17, 96)}, "pos_embed"),
        (lambda state: {**state, "pos_embed": torch.randn(17, 64)}, "pos_embed"),
        (lambda state: {**state, "patch_embed.proj.weight": torch.randn(64, 3, 32, 32)}, r"patch_embed\.proj\.weight"),
        (lambda state: {k: v for k, v in state.items() if k != "norm.bias"}, r"norm\.bias"),
        (lambda state: {k: v for k, v in state.items() if k != "pos_embed"}, "pos_embed"),
    ],
)
def test_weights_of_another_transformer_are_refused(tmp_path, change, first):
    file = stored(tmp_path, change(timm.create_model(SMALL, img_size=64).state_dict()))
    words = rf"^{file}: not the weights of {SMALL}: .*, {first} first\. Change model\.encoder or model\.weights\.$"
    with pytest.raises(WeightsError, match=words):
        create_encoder(SMALL, 16, file, image_size=64)


# --- the decoder


def test_logits_are_normed_cosines_of_patches_and_classes():
    made = decoder()
    logits, patches, classes, tokens = made(stages())
    scales, shifts = torch.cat(list(made.scales)), torch.cat(list(made.shifts))
    for image, i, j in ((0, 0, 0), (1, 2, 4), (0, 1, 3)):
        cosines = F.cosine_similarity(patches[image, :, i, j], classes[image], dim=1)
        z = scales * (cosines - cosines.mean()) / (cosines.std(unbiased=True) + 1e-5) + shifts
        close(logits[image, :, i, j], z)
    assert tokens.equal(torch.cat(list(made.class_tokens))) and made.channels == 7


def test_the_decoder_knows_no_place():
    """Positions are the encoder's: whatever changes places in the grid changes places in the output."""
    made, given = decoder(), stages(grid=(3, 5))[0]
    for move in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.roll((1, 2), (-2, -1)), lambda x: x.mT):
        plain, moved = made([given]), made([move(given).contiguous()])
        close(moved[0], move(plain[0]))
        close(moved[1], move(plain[1]))
        close(moved[2], plain[2])


def test_the_decoder_knows_no_order_of_classes():
    made = decoder((4, 3))
    plain = made(stages())
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for group in (made.class_tokens[0], made.scales[0], made.shifts[0]):
            group.copy_(group[order])
    swapped = made(stages())
    every = torch.cat([order, torch.arange(4, 7)])
    close(swapped[0], plain[0][:, every])
    close(swapped[2], plain[2][:, every])
    assert swapped[3].equal(plain[3][every])


def test_patches_and_classes_see_each_other():
    made, given = decoder(drop_path=0.0), stages()
    given[0].requires_grad_()
    _, patches, classes, _ = made(given)
    (gradient,) = torch.autograd.grad(classes[0, 3].sum(), given[0], retain_graph=True)
    assert (gradient[0].abs().amax(dim=0) > 0).all() and gradient[1].eq(0).all()
    found = torch.autograd.grad(patches[0, :, 2, 1].sum(), [*made.class_tokens, given[0]])
    assert (found[0].abs().amax(dim=1) > 0).all() and (found[1].abs().amax(dim=1) > 0).all()
    assert (found[2][0].abs().amax(dim=0) > 0).all()


# --- growing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growing_keeps_every_old_bit(dtype):
    network = stirred(build((4, 2))).to(dtype)
    before, pointers = parameters(network), {name: p.data_ptr() for name, p in network.named_parameters()}
    torch.manual_seed(5)
    network.grow(3)
    after = network.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    assert all(dict(network.named_parameters())[name].data_ptr() == place for name, place in pointers.items())
    new = [f"decoder.{part}.2" for part in ("class_tokens", "scales", "shifts")]
    assert set(after) - set(before) == set(new) and network.channels == 9
    torch.manual_seed(5)
    expected = nn.init.trunc_normal_(torch.empty(3, 32, dtype=dtype), std=0.02)
    assert after[new[0]].equal(expected)
    assert after[new[1]].tolist() == [1] * 3 and after[new[2]].tolist() == [0] * 3
    assert all(p.requires_grad and p.is_leaf and p.dtype == dtype for p in network.parameters())
    assert network(images().to(dtype)).logits.shape[1] == 9


def test_new_tokens_are_small_and_differ():
    made = MaskTransformer(8, 256, [2], heads=2)
    made.grow(20)
    tokens = made.class_tokens[1].detach()
    assert tokens.std().item() == pytest.approx(0.02, rel=0.05) and abs(tokens.mean().item()) < 1e-3
    assert len(tokens.unique(dim=0)) == 20


def test_transfer_by_hand():
    """Tokens of the background; its scale and shift stay its own."""
    made = decoder((3, 2))
    made.grow(2)
    with torch.no_grad():
        made.scales[0][0], made.shifts[0][0] = 3.0, -2.0
    before = parameters(made)
    made.transfer()
    after = made.state_dict()
    changed = [name for name, value in before.items() if not after[name].equal(value)]
    assert changed == ["class_tokens.2"]
    background = before["class_tokens.0"][0]
    assert all(row.equal(background) for row in after["class_tokens.2"])
    assert after["scales.2"].tolist() == [1, 1] and after["shifts.2"].tolist() == [0, 0]
    # a copy: what one of them learns the others do not
    with torch.no_grad():
        made.class_tokens[2][0] += 1
    assert made.class_tokens[0][0].equal(background) and made.class_tokens[2][1].equal(background)
    assert all(p.requires_grad and p.is_leaf for p in made.parameters())
    # classes that start alike say alike
    logits, _, classes, _ = decoder((3, 2))(stages())
    made = decoder((3, 2))
    made.transfer()
    with torch.no_grad():
        made.scales[0].fill_(1), made.scales[1].fill_(1), made.shifts[0].fill_(0), made.shifts[1].fill_(0)
    logits, _, classes, _ = made(stages())
    close(logits[:, 3:], logits[:, :1].expand(-1, 2, -1, -1))
    close(classes[:, 3:], classes[:, :1].expand(-1, 2, -1))


def test_balance_by_hand():
    made = decoder((3, 2))
    made.grow(4)
    with torch.no_grad():
        made.scales[0][0], made.shifts[0][0] = 3.0, -2.0
    before = parameters(made)
    made.balance()
    after = made.state_dict()
    shared = pytest.approx(-2 - 1.6094379124)  # ln 5
    assert all(row.equal(before["class_tokens.0"][0]) for row in after["class_tokens.2"])
    assert after["scales.2"].tolist() == [3] * 4 and after["shifts.2"].tolist() == [shared] * 4
    assert after["shifts.0"].tolist() == [shared, *before["shifts.0"][1:].tolist()]
    changed = {name for name, value in before.items() if not after[name].equal(value)}
    assert changed == {"class_tokens.2", "scales.2", "shifts.2", "shifts.0"}
    assert all(p.requires_grad and p.is_leaf for p in made.parameters())


@pytest.mark.parametrize("start", ["transfer", "balance"])
def test_a_start_from_the_background_needs_new_classes(start):
    made = decoder((5,))
    before = parameters(made)
    with pytest.raises(ValueError, match="Grow the network first"):
        getattr(made, start)()
    assert all(made.state_dict()[name].equal(value) for name, value in before.items())


# --- memory, gradients, precision


def test_no_attention_matrix_is_made(monkeypatch):
    """Every block asks for the fused attention, and nothing of N x N is kept for the way back."""
    network, asked, kept = build((4, 2), encoder=TINY, width=192).train(), [], []
    fused = F.scaled_dot_product_attention

    def watched(query, *rest, **options):
        asked.append(tuple(query.shape))
        return fused(query, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    picture = images(176, 208, count=1)  # 11 x 13 patches; 144 tokens, 149 in the decoder
    with saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        output = network(picture)
    assert asked == [(1, 3, 144, 64)] * 12 + [(1, 3, 149, 64)] * 2
    assert len(kept) > 100
    tokens = {143, 144, 149}
    assert not [shape for shape in kept if len([side for side in shape if side in tokens]) > 1]
    assert max(math.prod(shape) for shape in kept) <= 4 * 192 * 192 + 149 * 4 * 192
    cross_entropy(output.upsample((176, 208)), torch.zeros(1, 176, 208).long()).backward()


@pytest.mark.parametrize("encoder", [SMALL, "test_vit2", "ciss_tiny"])
def test_the_base_step_reaches_every_parameter(encoder):
    """So that several processes need not look for unused ones."""
    options = {"image_size": None, "output_stride": 4} if encoder == "ciss_tiny" else {}
    network = stirred(build((4,), encoder=encoder, drop_path=0.0, **options)).train()
    picture = images(50, 70)
    labels = torch.randint(0, 4, (2, 50, 70), generator=torch.Generator().manual_seed(0))
    cross_entropy(network(picture).upsample((50, 70)), labels).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    for group in network.decoder.class_tokens:
        assert (group.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_logits_of_single_precision(tiny, dtype):
    with torch.autocast("cpu", dtype):
        output = tiny(images(50, 70))
    assert output.logits.dtype == torch.float32 and output.features.dtype == output.class_features.dtype == dtype
    for values in (output.upsample((50, 70)), output.probabilities((50, 70)), output.log_probabilities((50, 70))):
        assert values.dtype == torch.float32
    # cosines and their norm are computed in it, from what half precision left of the features
    patches, classes = F.normalize(output.features.float(), dim=1), F.normalize(output.class_features.float(), dim=2)
    cosines = torch.einsum("bdhw,bcd->bhwc", patches, classes)
    made = tiny.decoder
    close(output.logits.movedim(1, -1), class_norm(cosines, torch.cat(list(made.scales)), torch.cat(list(made.shifts))))
    error = (output.logits - tiny(images(50, 70)).logits).norm() / output.logits.norm()
    assert error < (0.1 if dtype == torch.float16 else 0.5)  # twelve random blocks magnify what is rounded


def test_double_precision_stays():
    network = build().double()
    output = network(images().double())
    assert {output.logits.dtype, output.features.dtype, output.upsample((64, 64)).dtype} == {torch.float64}


def test_half_precision_learns():
    network = build((4, 2)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images(50, 70))
    cross_entropy(output.upsample((50, 70)), torch.ones(2, 50, 70).long()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())


@pytest.fixture
def compiled():
    """compiled(network, backend) -> the compiled network; skips where nothing at all can be compiled."""

    def make(network, backend):
        torch._dynamo.reset()
        try:
            torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))
        except Exception as error:
            pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
        return torch.compile(network, backend=backend)

    yield make
    torch._dynamo.reset()


def backend(name):
    return pytest.param(name, marks=[] if name == "eager" else pytest.mark.slow)


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
@pytest.mark.parametrize("backend", [backend("eager"), backend("aot_eager"), backend("inductor")])
def test_a_compiled_network_says_the_same(compiled, backend, size):
    """At one size, as the engine's crops have, and for another number of images."""
    network = Network(plain(depth=1), MaskTransformer(32, 16, [4, 2], layers=1, heads=2)).train()
    made = compiled(network, backend)
    for count in (2, 3):
        losses, gradients = [], []
        for forward in (network, made):
            network.zero_grad(set_to_none=True)
            shown = images(*size, count=count)
            if backend == "inductor":  # one compilation for every number, not one for the first and one for the others
                torch._dynamo.mark_dynamic(shown, 0)
            output = forward(shown)
            assert output.padding == ((size, (64, 80)) if size == (50, 70) else None)
            losses.append(cross_entropy(output.upsample(size), torch.ones(count, *size).long()))
            losses[-1].backward()
            gradients.append({name: p.grad for name, p in network.named_parameters()})
        close(losses[1], losses[0])
        for name, gradient in gradients[0].items():
            close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.xfail(reason="torch cannot trace `%` of sizes that vary (pytorch/pytorch#197716)")
def test_a_compiled_network_takes_several_sizes(compiled):
    network = Network(plain(depth=1), MaskTransformer(32, 16, [4, 2], layers=1, heads=2)).eval()
    made = compiled(network, "aot_eager")
    for size in ((64, 64), (50, 70)):
        close(made(images(*size)).logits, network(images(*size)).logits)


# --- checkpoints, modes, copies


def test_a_checkpoint_brings_everything_back(tmp_path):
    network = stirred(build((4,)))
    network.grow(2)
    stirred(network, seed=3).eval()
    file = tmp_path / "run" / "weights.safetensors"
    save_weights(file, network, {"step": 1})
    other = build((4, 2), seed=9).eval()
    assert restore(other, file) == {"step": 1}
    output = network(images(50, 70))
    assert other(images(50, 70)).logits.equal(output.logits)
    assert all(other.state_dict()[name].equal(value) for name, value in network.state_dict().items())
    first = file.read_bytes()
    store_weights.save_weights(file, other.to(memory_format=torch.channels_last), {"step": 1})
    assert file.read_bytes() == first
    for groups in ((4, 3), (6,), (4, 2, 1)):
        with pytest.raises(CheckpointError, match=r"made by another network \(.*decoder\."):
            store_weights.restore(build(groups), file)
    with pytest.raises(CheckpointError, match=r"made by another network \(1 parameter does not fit, .*pos_embed first"):
        store_weights.restore(build((4, 2), image_size=48), file)


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync"])
def test_modes_of_normalisation_change_nothing_here(norm):
    network = build(drop_path=0.0)
    expected = network.eval()(images()).logits
    assert set_norm_mode(network, norm) is network and all(module.training for module in network.modules())
    close(network(images()).logits, expected)
    network(images()).logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_frozen_statistics_of_a_convolutional_encoder():
    network = build(encoder="ciss_tiny", image_size=None, output_stride=4)
    before = parameters(network)
    set_norm_mode(network, "frozen")(images())
    assert all(network.state_dict()[name].equal(value) for name, value in before.items())
    assert network.decoder.training and network.decoder.blocks[1].drop_path1.training


def test_a_teacher_is_not_touched_by_its_student():
    student = stirred(build())
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    before, output = parameters(teacher), teacher(images()).logits
    student.grow(2)
    student.decoder.balance()
    student.train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        student(images()).logits.square().mean().backward()
        optimiser.step()
    assert teacher.channels == 5 and student.channels == 7
    assert all(before[name].equal(value) for name, value in teacher.state_dict().items())
    assert teacher(images()).logits.equal(output) and all(p.grad is None for p in teacher.parameters())
    moved = student.state_dict()
    assert all(not moved[name].equal(before[name]) for name in before if name != "decoder.shifts.0")


def test_channels_last_changes_nothing():
    """The engine asks for it, whatever the network."""
    network = stirred(build((4, 2))).eval()
    expected = network(images(50, 70))
    network.to(memory_format=torch.channels_last)
    found = network(images(50, 70).contiguous(memory_format=torch.channels_last))
    close(found.logits, expected.logits)
    assert found.upsample((50, 70)).is_contiguous() == expected.upsample((50, 70)).is_contiguous()
