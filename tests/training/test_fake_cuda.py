"""The training step on fake CUDA tensors: devices and shapes without values, on a machine without a GPU.

A fake tensor has no values, so that `.item()`, boolean indexing and `nonzero` are errors; on a GPU the host would wait
for the device. `OnDevice` refuses tensors of the host, whose copies make the host wait, too.

autograd's backward pass needs a real device. It is left out on fake CUDA tensors, and runs on fake CPU tensors.
"""

import copy
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ciss import metrics
from ciss.config import Evaluation, Model, Phase, Train
from ciss.data.transforms import training_view
from ciss.methods import METHODS, Batch, Method
from ciss.methods.finetune import Finetune
from ciss.models import create_network, set_norm_mode
from ciss.training.batches import loss_weights
from ciss.training.evaluation import autocast
from ciss.training.inference import predict
from ciss.training.log import LossLog
from ciss.training.loop import train_update
from ciss.training.optimisation import make_optimiser, make_schedule
from tests.helpers.variants import CASES, CHOICES, DECODERS, SIZES, VARIANTS, benchmark, build

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
OLD, NEW, SIDE = 4, 2, 32  # channels of the teacher, of this step's classes; pixels
PHASE = Phase(epochs=2, lr=0.1)
TRAIN = Train(base=PHASE, increment=PHASE, crop=SIDE, batch=2)
NETWORKS = {
    **{name: {"encoder": "ciss_tiny", "output_stride": 4, **options} for name, options in DECODERS.items()},
    "vit": {"encoder": "test_vit", "output_stride": 16, "image_size": SIDE, **DECODERS["mask_transformer"]},
}
REFUSED = (DataDependentOutputException, DynamicOutputShapeException)  # on fake tensors: values would be needed


class HostTensor(Exception):
    """An operation has a tensor of the host. The message names both."""


class OnDevice(TorchDispatchMode):
    """Refuses operations with a tensor that is not on CUDA."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in tree_leaves((arguments, options, result)):
            if isinstance(value, Tensor) and value.device.type != "cuda":
                raise HostTensor(f"{function} has a tensor {tuple(value.shape)} on {value.device}")
        return result


@contextmanager
def fake(device: torch.device):
    """Fake tensors inside; on CUDA, as on a card of compute capability 8.0, and nothing on the host."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=False), warnings.catch_warnings():
        warnings.simplefilter("error")  # autocast warns where it is off
        if device.type == "cuda":
            patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        yield patch


def make_fake(network: nn.Module, device: torch.device) -> None:
    """Replaces parameters and buffers by fake tensors on a device. Call it inside `fake`."""

    def made(value: Tensor) -> Tensor:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)

    for module in network.modules():
        for name, value in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(made(value), value.requires_grad)
        for name, value in module.named_buffers(recurse=False):
            module._buffers[name] = made(value)


def networks(decoder: str, method: Method, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Teacher and student, made on the CPU, then fake. Call it outside of `fake`."""
    torch.manual_seed(0)
    teacher = create_network(Model(**NETWORKS[decoder]), [OLD], extras=method.extras(SIZES, 0))
    teacher.prediction = method.prediction
    if method.needs_before_activation:
        teacher.return_before_activation()
    student = copy.deepcopy(teacher)
    method.initialise(student, NEW)
    teacher, student = (network.to(memory_format=torch.channels_last) for network in (teacher, student))
    return teacher.eval().requires_grad_(False), set_norm_mode(student, "batch")


def make_batch(device: torch.device) -> Batch:
    """A batch of an incremental step. Call it inside `fake`."""
    labels = torch.zeros(TRAIN.batch, SIDE, SIDE, dtype=torch.int64, device=device)
    steps = torch.zeros(OLD + NEW, dtype=torch.int64, device=device)
    return Batch(
        images=torch.empty(TRAIN.batch, 3, SIDE, SIDE, device=device).to(memory_format=torch.channels_last),
        given=labels,
        labels=labels,
        ids=["a", "b"],
        step=1,
        old_channels=OLD,
        class_steps=steps,
        new_classes=torch.arange(OLD, OLD + NEW, device=device),
    )


@torch.no_grad()
def start(method: Method, teacher: nn.Module, student: nn.Module) -> None:
    """`Method.start` on the CPU: it is called once, and may wait for the device. Call it outside of `fake`."""
    batch = make_batch(CPU)
    batch.images = torch.rand(batch.images.shape)
    batch.given[:, SIDE // 2 :], batch.given[:, :4] = OLD, OLD + 1
    base = replace(batch, given=torch.zeros_like(batch.given))
    method.start(student, teacher, iter([batch]), iter([base]))


def make_setup(
    teacher: nn.Module, student: nn.Module, method: Method, device: torch.device, precision: torch.dtype
) -> SimpleNamespace:
    """What `train_update` uses of a `Setup`. Call it inside `fake`."""
    scaled = precision == torch.float16
    outputs = {}

    def recorded(network: nn.Module, name: str):
        return lambda images: outputs.setdefault(name, network(images))

    optimiser = make_optimiser(list(student.parameters()), student, PHASE, TRAIN)
    return SimpleNamespace(
        run=SimpleNamespace(after="base"),
        device=device,
        method=method,
        teacher=recorded(teacher, "teacher") if method.uses_teacher else None,
        student=student,
        student_for_training=recorded(student, "student"),
        outputs=outputs,  # of the networks, by name
        per_update=1,
        optimiser=optimiser,
        schedule=make_schedule(optimiser, 10, TRAIN, skips=scaled),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
        precision=precision,
        autocast=lambda: autocast(device, precision),
    )


def check_update(method: Method, decoder: str, device: torch.device, precision: torch.dtype | None = None) -> None:
    """`before_step`, an update, a method's maps and the weights of the losses of two batches.

    Args: precision: None: bfloat16 on CUDA, float32 on the CPU.
    """
    if method.unsuited(benchmark(decoder if decoder in DECODERS else "mask_transformer", CASES["ordinary"])):
        return
    precision = precision or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    teacher, student = networks(decoder, method, device)
    start(method, teacher, student)
    with fake(device) as patch:
        for network in (teacher, student):
            make_fake(network, device)
        for name, value in vars(method).items():
            if isinstance(value, Tensor):  # what `start` left
                setattr(method, name, torch.empty(value.shape, dtype=value.dtype, device=device))
            elif isinstance(value, nn.Module):
                make_fake(value, device)
        setup, log = make_setup(teacher, student, method, device, precision), LossLog()
        batches = [make_batch(device), make_batch(device)]
        if device.type == "cuda":
            patch.setattr(Tensor, "backward", lambda _: make_gradients(student))
        with OnDevice() if device.type == "cuda" else nullcontext():
            with torch.no_grad(), setup.autocast():
                method.before_step(batches[:1], teacher, batches[1:])
            train_update(setup, batches[:1], log)
            check_other_hooks(setup, batches)
        (losses,) = log.unchecked
        assert losses.device.type == device.type and losses.dtype == torch.float32
        assert len(losses) == len(log.names) + len(log.logs)
        assert not method.softmax or {"gradient/background", "gradient/step1"} <= set(log.logs)
        momenta = [setup.optimiser.state[parameter]["momentum_buffer"] for parameter in student.parameters()]
        assert {momentum.device.type for momentum in momenta} == {device.type}


@torch.no_grad()
def check_other_hooks(setup: SimpleNamespace, batches: list[Batch]) -> None:
    """What `train_update` calls for several batches, and figures."""
    old, new = setup.outputs.get("teacher"), setup.outputs["student"]
    if setup.student.encoder.patch == 1:  # transformers add positions in float32
        assert new.stages[-1].dtype == setup.precision
    assert len(loss_weights(setup.method, [old, old], batches)) == 2
    if old is not None:
        setup.method.maps(new, old, batches[0])


def make_gradients(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)


@pytest.mark.parametrize("decoder", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_no_method_leaves_the_device(name, decoder):
    check_update(METHODS[name](), decoder, CUDA)


@pytest.mark.parametrize(("name", "preset"), [variant for variant in VARIANTS if variant.values[1]])
def test_no_preset_leaves_the_device(name, preset):
    check_update(build(name, preset), METHODS[name].decoder or "deeplabv3", CUDA)


@pytest.mark.parametrize(("name", "values", "decoder"), CHOICES)
def test_no_choice_of_a_coefficient_leaves_the_device(name, values, decoder):
    check_update(METHODS[name](**values), decoder, CUDA)


@pytest.mark.parametrize("name", ["finetune", "gsc"])
@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_no_precision_leaves_the_device(name, precision):
    check_update(METHODS[name](), "deeplabv3", CUDA, precision)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", METHODS)
def test_the_backward_pass_needs_no_values(name, decoder):
    check_update(METHODS[name](), decoder, CPU)


@pytest.mark.parametrize("options", [{"size": "full"}, {"size": "window"}, {"flip": True, "scales": (0.5, 1.0)}])
def test_evaluation_stays_on_the_device(options):
    network, _ = networks("deeplabv3", Finetune(), CUDA)
    with fake(CUDA):
        make_fake(network, CUDA)
        batch = make_batch(CUDA)
        with OnDevice(), torch.inference_mode(), autocast(CUDA, torch.bfloat16):
            predictions = predict(network, batch.images, Evaluation(**options), SIDE // 2)
            assert metrics.confusion_matrix(batch.labels, predictions, OLD).shape == (OLD, OLD)


@pytest.mark.parametrize("augmentation", ["none", "scaled_crop", "resized_crop"])
def test_views_of_images_stay_on_the_device(augmentation):
    """`train.augment_on: device`."""
    train = replace(TRAIN, augmentation=augmentation, scale=(0.5, 0.9), resize=40, transpose=True)
    views = [training_view(48, 64, torch.Generator().manual_seed(seed), train) for seed in range(20)]
    with fake(CUDA):
        image = torch.empty(48, 64, 3, dtype=torch.uint8, device=CUDA)
        with OnDevice():
            shown = [view.image(image, image[0, 0]) for view in views]
    assert {(part.shape, part.dtype) for part in shown} == {((SIDE, SIDE, 3), torch.uint8)}


# --- the check itself


class Reading(Finetune):
    """Does one thing that a method must not do."""

    def __init__(self, mistake):
        self.mistake = mistake

    def losses(self, student, teacher, batch):
        losses = super().losses(student, teacher, batch)
        return {"cross_entropy": losses["cross_entropy"] + self.mistake(student, batch)}


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda student, batch: student.logits.sum().item(), REFUSED),
        (lambda student, batch: float(batch.labels.sum()), REFUSED),
        (lambda student, batch: 1 if batch.labels.any() else 0, REFUSED),
        (lambda student, batch: batch.labels[batch.labels > 0].sum(), REFUSED),
        (lambda student, batch: batch.labels.nonzero().sum(), REFUSED),
        (lambda student, batch: batch.labels.unique().sum(), REFUSED),
        (lambda student, batch: torch.bincount(batch.labels.flatten()).sum(), REFUSED),
        (lambda student, batch: torch.tensor([1.0, 2.0]).sum(), HostTensor),
        (lambda student, batch: torch.tensor([1.0, 2.0], device=CUDA).sum(), HostTensor),
        (lambda student, batch: batch.labels.cpu().sum(), HostTensor),
        (lambda student, batch: student.logits.float().mean() * torch.ones(2).sum(), HostTensor),
    ],
)
def test_a_mistake_is_seen(mistake, error):
    check_update(Finetune(), "deeplabv3", CUDA)
    with pytest.raises(error):
        check_update(Reading(mistake), "deeplabv3", CUDA)
