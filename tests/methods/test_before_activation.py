"""Stages before their last activation, which the published POD of PLOP compares."""

import copy

import pytest
import torch
from torch import nn

from ciss.config import Benchmark, Model, Phase, Train
from ciss.losses import local_pod
from ciss.methods import METHODS
from ciss.models import create_network, set_norm_mode
from ciss.models.encoders import create_encoder

TINY = {"encoder": "ciss_tiny", "output_stride": 4, "width": 8}


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    made = create_network(Model(**{**TINY, **options}), [3])
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts the last one of a residual block at 0
    return made


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def pair(**options) -> tuple[nn.Module, nn.Module]:
    """The same network without and with `before_activation`."""
    plain = network(**options)
    split = copy.deepcopy(plain)
    split.return_before_activation()
    return plain, split


@pytest.mark.parametrize(
    ("encoder", "stride", "activation"),
    [
        ("ciss_tiny", 4, torch.relu),
        ("resnet10t", 16, torch.relu),
        ("regnety_002", 16, torch.relu),
        ("mobilenetv2_035", 16, lambda values: values),
    ],
)
def test_activation_of_the_second_list_is_the_first(encoder, stride, activation):
    plain, split = pair(encoder=encoder, output_stride=stride)
    for mode in ("eval", "train"):
        getattr(plain, mode)(), getattr(split, mode)()
        expected, output = plain(images()), split(images())
        assert expected.before_activation is None
        assert torch.equal(output.logits, expected.logits)
        assert len(output.stages) == len(output.before_activation) == len(expected.stages)
        for stage, before, reference in zip(output.stages, output.before_activation, expected.stages, strict=True):
            assert torch.equal(stage, reference)
            assert torch.equal(activation(before), stage)
            assert (before < 0).any()
    assert list(split.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in split.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(split.state_dict().values(), plain.state_dict().values(), strict=True))


def test_stages_of_a_transformer_are_the_same_in_both():
    _, split = pair(encoder="vit_tiny_patch16_224", output_stride=16, decoder="mask_transformer", width=12, heads=1)
    with torch.no_grad():
        output = split.eval()(images())
    assert all(a is b for a, b in zip(output.stages, output.before_activation, strict=True))


def test_the_sum_of_a_residual_block_by_hand():
    """The last block of ciss_tiny, computed from its convolutions: the sum, and its ReLU."""
    plain, split = pair()
    caught = {}
    block = plain.eval().encoder.body["stages_2"][-1]
    block.register_forward_pre_hook(lambda _module, inputs: caught.update(block=inputs[0].clone()))
    with torch.no_grad():
        plain(images())
        output = split.eval()(images())
        x = caught["block"]
        total = block.conv2_kxk(block.conv1_kxk(x)) + (x if block.shortcut is None else block.shortcut(x))
    torch.testing.assert_close(output.before_activation[-1], total, rtol=0, atol=0)
    torch.testing.assert_close(output.stages[-1], total.clamp(min=0), rtol=0, atol=0)


def test_gradients_copies_channels_last_and_no_grad():
    plain, split = pair()
    for each in (plain, split):
        set_norm_mode(each, "batch")
        each.to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(split).eval().requires_grad_(False)
    copies = copy.deepcopy(teacher)  # after a forward pass, too
    with torch.no_grad():
        old = teacher(images())
        again = copy.deepcopy(teacher)(images())
    assert not old.before_activation[-1].requires_grad
    assert torch.equal(old.before_activation[-1], again.before_activation[-1])
    assert torch.equal(old.before_activation[-1], copies(images()).before_activation[-1])
    (plain(images()).logits.square().mean()).backward()
    (split(images()).logits.square().mean()).backward()
    for a, b in zip(plain.parameters(), split.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    split.zero_grad()
    # a unit that the ReLU switches off has a gradient here
    output = split(images())
    output.before_activation[-1].retain_grad()
    output.before_activation[-1].square().sum().backward()
    negative = output.before_activation[-1] < 0
    assert output.before_activation[-1].grad[negative].ne(0).all()


def test_torch_compile_returns_both_lists():
    _, split = pair()
    split.eval()
    compiled = torch.compile(split.encoder.stages, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected, values = split(images()), compiled(images())
    for a, b in zip((*values[0], *values[1]), (*expected.stages, *expected.before_activation), strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_request_changes_nothing():
    _, split = pair()
    names = [name for name, _ in split.named_modules()]
    split.return_before_activation()
    assert [name for name, _ in split.named_modules()] == names


def test_an_encoder_whose_activation_cannot_be_moved_is_refused():
    with torch.device("meta"):
        body = create_encoder("mobilenetv3_small_050", 16)
    with pytest.raises(ValueError, match=r"the last activation of stage \d \(.*\) is no module that can be moved"):
        body.split_activations()
    assert body.activations is None


@pytest.mark.parametrize(("encoder", "fits"), [("mobilenetv3_small_050", False), ("resnet10t", True)])
def test_such_an_encoder_is_reported_before_training(encoder, fits):
    phase = Phase(epochs=1, lr=0.01, norm="frozen")
    benchmark = Benchmark(
        dataset="shapes",
        protocol="4-2",
        model=Model(encoder=encoder, output_stride=16),
        train=Train(crop=32, batch=2, base=phase, increment=phase),
    )
    assert METHODS["plop"]().unsuited(benchmark) is None
    problem = METHODS["plop"](pod_stages="before_activation").unsuited(benchmark)
    assert (problem is None) == fits
    if problem:
        assert problem[0] == "model.encoder"
        assert "Use a ResNet, or `pod_stages: activated`" in problem[1]


def test_pod_reads_what_the_preset_says():
    released = METHODS["plop"](**METHODS["plop"].presets["released"])
    assert released.pod_stages == "before_activation" and released.needs_before_activation
    assert not METHODS["plop"]().needs_before_activation
    assert not METHODS["plop"](pod_stages="before_activation", pod=0, pod_outputs=0).needs_before_activation
    plain, split = pair()
    with torch.no_grad():
        student, teacher = (split.train()(images(size=64)), split.eval()(images(size=64)))
    losses = {}
    for choice, name in (("activated", "stages"), ("before_activation", "before_activation")):
        losses[choice] = METHODS["plop"](pod_stages=choice).host_losses(student, teacher)["pod"]
        # by hand: the mean over stages, features and logits
        terms = [0.01 * local_pod(a, b) for a, b in zip(getattr(student, name), getattr(teacher, name), strict=True)]
        terms.append(0.01 * local_pod(student.features, teacher.features))
        terms.append(0.0005 * local_pod(student.logits, teacher.logits))
        torch.testing.assert_close(losses[choice], sum(terms) / len(terms))
    assert losses["activated"] != losses["before_activation"]
    with torch.no_grad():
        output = plain(images())
    with pytest.raises(ValueError, match="return_before_activation"):
        released.host_losses(output, output)
