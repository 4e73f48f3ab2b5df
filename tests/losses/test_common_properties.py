"""Properties of all losses and labels: half precision, no wait for the device, no gradient for the teacher."""

import contextlib
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ciss.losses
from ciss.labels import entropy as labels_entropy
from ciss.labels.entropy import EntropyMedians, adaptive_factor, confident, entropy_labels, normalised_entropy
from ciss.labels.patches import patch_labels, patch_weights
from ciss.labels.prototypes import ClassPrototypes, distance_weights
from ciss.labels.relabelling import argmax_labels, relabel_background, reweighted_labels
from ciss.labels.selective import selective_pseudo_labels
from ciss.models import Output

LARGE = 6e4  # float16 ends at 65504
B, C, K, D, H, W, N = 2, 6, 4, 8, 8, 12, 10


def large(*shape: int, seed: int = 0) -> Tensor:
    """float16 numbers up to +-6e4, the largest one among them."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    values.view(-1)[0] = 1
    return (values * LARGE).half()


def labels(*values: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.tensor(values)[torch.randint(len(values), (B, H, W), generator=generator)]


GIVEN = labels(0, 0, K, K + 1, 255)
LOGITS, TEACHER = large(B, C, H, W), large(B, K, H, W, seed=1)
FEATURES, TEACHER_FEATURES = large(B, D, H, W, seed=2), large(B, D, H, W, seed=3)
POINTS, TEACHER_POINTS = large(B, N, D, seed=2), large(B, N, D, seed=3)
STEPS, FRESH = torch.tensor([0] * K + [1] * (C - K)), torch.arange(K, C)
PROTOTYPES = large(K, D, seed=4)

# Name -> calls, each the arguments and keyword arguments. A new function without an entry fails a test.
LOSSES = {
    "absence_loss": [((LOGITS,), {})],
    "adaptive_feature_distillation": [((POINTS, TEACHER_POINTS, torch.rand(B, N).half()), {})],
    "compensation_weights": [
        ((LOGITS, GIVEN, STEPS), {"grouping": grouping, "probability": probability, "new": new})
        for grouping in ("per_step", "cumulative", "together")
        for probability in ("softmax", "sigmoid")
        for new in ("one", "mean")
    ]
    + [((LOGITS, GIVEN, STEPS), {"clamp": (0.5, 5.0), "exponent": 0.8, "logarithm": True, "background": False})],
    "cross_entropy": [
        ((LOGITS, GIVEN), {}),
        ((LOGITS, GIVEN), {"weights": large(B, H, W).abs(), "divisor": "all"}),
    ],
    "decomposed_distillation": [
        ((FEATURES.abs() / 100, PROTOTYPES / 100, TEACHER_FEATURES.abs() / 100, PROTOTYPES / 90), {})
    ],
    "context_hinge": [((large(D), large(3, D)), {"margin": 1e4})],
    "gradient_magnitude": [((LOGITS, GIVEN), {"exponent": e, "logarithm": e != 1}) for e in (0.5, 1.0, 2.0)],
    "label_guided_distillation": [((LOGITS, TEACHER, GIVEN), {"where": where}) for where in (None, GIVEN != 255)],
    "local_pod": [((FEATURES, TEACHER_FEATURES), {})],
    "negative_log_likelihood": [((LOGITS, GIVEN), {})],
    "orthogonality": [((large(C, 300), FRESH), {})],
    "output_distillation": [((LOGITS, TEACHER), {})],
    "pod_distillation": [(([FEATURES], [TEACHER_FEATURES], LOGITS, TEACHER), {})],
    "sharp_loss": [((LOGITS,), {}), ((LOGITS / LARGE,), {"where": GIVEN == 0})],
    "sigmoid_cross_entropy": [
        ((LOGITS, GIVEN), {}),
        ((LOGITS[:, K:], GIVEN), {"first": K, "positive": 35.0, "ignored": "negative"}),
        ((LOGITS, GIVEN), {"divisor": "all"}),
    ],
    "sigmoid_distillation": [((LOGITS, TEACHER), {})],
    "soft_relation_loss": [
        ((LOGITS, TEACHER, GIVEN), {"target": target, "guided": guided})
        for target in ("sigmoid_softmax", "softmax", "binary")
        for guided in (False, True)
    ],
    "sum_by_step": [((large(B, H, W).abs(), GIVEN, STEPS), {})],
    "unbiased_cross_entropy": [((LOGITS, GIVEN, K), {}), ((LOGITS, GIVEN, K), {"divisor": "all"})],
    "unbiased_distillation": [((LOGITS, TEACHER), {"alpha": 2.0})],
    "weigh_by_step": [((large(B, H, W).abs(), GIVEN, STEPS), {"new": "mean"})],
}


def entropy_medians(logits: Tensor) -> Tensor:
    medians = EntropyMedians(K, C)
    medians.update(GIVEN, logits)
    return medians.thresholds()


def class_prototypes(features: Tensor) -> Tensor:
    prototypes = ClassPrototypes(K, D)
    for _ in range(3):
        prototypes.update(features, labels(0, 1, 2, 255))
    return prototypes.means


def output_of(logits: Tensor) -> Output:
    return Output(logits, logits, [logits], logits, logits)


SCALING = ("none", "unit", "width")
LABELS = [
    (distance_weights, (FEATURES, PROTOTYPES, torch.ones(K)), {"scaling": scaling, "distance_scale": 1e-6})
    for scaling in SCALING
]
LABELS += [
    (relabel_background, (GIVEN, TEACHER, FEATURES, PROTOTYPES, torch.ones(K)), options)
    for options in ({}, {"resolution": "quarter"}, {"resolution": "grid"}, {"threshold": 0.5, "scaling": "unit"})
]
LABELS += [
    (reweighted_labels, (GIVEN, TEACHER, TEACHER.float().softmax(1).half()), {"threshold": 0.4}),
    (argmax_labels, (GIVEN, TEACHER), {}),
    (normalised_entropy, (TEACHER,), {}),
    (labels_entropy.normalised_entropy, (TEACHER,), {"variant": "released", "channels": C}),
    (confident, (TEACHER, torch.full((K,), 0.5)), {}),
    (entropy_labels, (GIVEN, TEACHER, torch.full((K,), 0.5)), {}),
    (selective_pseudo_labels, (GIVEN, TEACHER), {}),
    (selective_pseudo_labels, (GIVEN, TEACHER.float().softmax(1).half()), {"probabilities": True}),
    (patch_weights, (GIVEN, TEACHER, FRESH), {}),
    (patch_labels, (GIVEN, (2, 3)), {"covered": (8, 12), "rule": "majority"}),
    (patch_labels, (GIVEN, (2, 3)), {"covered": (8, 12)}),
    (adaptive_factor, (GIVEN, GIVEN), {}),
    (adaptive_factor, (GIVEN, GIVEN), {"variant": "released"}),
    (entropy_medians, (TEACHER,), {}),
    (class_prototypes, (FEATURES,), {}),
    (lambda logits: output_of(logits).upsample((20, 30)), (TEACHER,), {}),
    (lambda logits: output_of(logits).probabilities((20, 30)), (TEACHER,), {}),
    (lambda logits: output_of(logits).log_probabilities((20, 30)), (TEACHER,), {}),
]
CALLS = [(getattr(ciss.losses, name), *call) for name, calls in LOSSES.items() for call in calls] + LABELS


def map_tensors(change, values):
    if isinstance(values, Tensor):
        return change(values) if values.is_floating_point() else values
    if isinstance(values, list | tuple):
        return type(values)(map_tensors(change, value) for value in values)
    return values


def results(function, arguments, options) -> list[Tensor]:
    values = function(*arguments, **options)
    return list(values) if isinstance(values, tuple) else [values]


def compare(found: list[Tensor], expected: list[Tensor]) -> None:
    for value, reference in zip(found, expected, strict=True):
        assert value.isfinite().all()
        assert value.dtype == reference.dtype
        torch.testing.assert_close(value, reference, rtol=1e-3, atol=1e-3)


AUTOCAST = {
    "no autocast": contextlib.nullcontext,
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def test_every_published_loss_has_a_call():
    assert sorted(LOSSES) == sorted(ciss.losses.__all__)


@pytest.mark.parametrize("autocast", AUTOCAST)
@pytest.mark.parametrize("number", range(len(CALLS)), ids=lambda n: f"{CALLS[n][0].__name__}-{n}")
def test_large_half_precision_inputs_give_the_result_of_float32(number, autocast):
    function, arguments, options = CALLS[number]
    if autocast == "bfloat16":
        arguments = map_tensors(Tensor.bfloat16, arguments)
    wide = map_tensors(Tensor.float, arguments)
    wide_options = {key: map_tensors(Tensor.float, value) for key, value in options.items()}
    expected = results(function, wide, wide_options)
    compare(expected, expected)  # finite
    with AUTOCAST[autocast]():
        compare(results(function, arguments, options), expected)
        # float32 inputs stay float32
        compare(results(function, wide, wide_options), expected)


SEVERAL = ("pod_distillation", "decomposed_distillation")  # several maps, or several results
DETACHED = ("compensation_weights", "gradient_magnitude", "sum_by_step", "weigh_by_step")


@pytest.mark.parametrize("autocast", AUTOCAST)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*DETACHED, *SEVERAL)])
def test_gradients_of_large_half_precision_inputs_are_those_of_float32(name, autocast):
    function = getattr(ciss.losses, name)
    arguments, options = LOSSES[name][0]
    half, single = (change(arguments[0]).clone().requires_grad_() for change in (Tensor.half, Tensor.float))
    with AUTOCAST[autocast]():
        (found,) = torch.autograd.grad(function(half, *arguments[1:], **options), half)
    (expected,) = torch.autograd.grad(function(single, *arguments[1:], **options), single)
    assert expected.isfinite().all() and found.dtype == torch.float16
    if expected.abs().max() < torch.finfo(torch.float16).max:  # the gradient of a float16 input is float16
        torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-3)


# --- nothing waits for the device

RELABELLING = [
    (relabel_background, (GIVEN, TEACHER, FEATURES, PROTOTYPES, torch.ones(K)), dict(zip(names, values, strict=True)))
    for names in [("unseen", "scaling", "resolution", "background_prototype", "threshold")]
    for values in product(
        ("exclude", "uniform", "zero"), SCALING, ("full", "quarter", "grid"), (True, False), (0.0, 0.6)
    )
]


def fake_results(function, arguments, options) -> list[Tensor]:
    """Results for tensors that have shapes and no values: `.item()`, boolean indexing and `unique` fail on them."""
    wide = map_tensors(Tensor.float, arguments)
    with FakeTensorMode() as mode:

        def fake(value):
            if isinstance(value, list | tuple):
                return type(value)(fake(entry) for entry in value)
            return mode.from_tensor(value) if isinstance(value, Tensor) else value

        values = results(function, fake(wide), {name: fake(value) for name, value in options.items()})
        assert all(value.fake_mode is mode for value in values)
        return values


@pytest.mark.parametrize("number", [n for n in range(len(CALLS)) if CALLS[n][0] is not entropy_medians])
def test_no_function_asks_for_values_of_the_device(number):
    fake_results(*CALLS[number])


def test_no_option_of_relabelling_asks_for_values_of_the_device():
    for call in RELABELLING:
        (labels,) = fake_results(*call)
        assert labels.shape == GIVEN.shape


def test_fake_tensors_refuse_what_would_wait():
    with pytest.raises(Exception, match=r"\.item\(\)|aten\._local_scalar_dense"):
        fake_results(lambda values: values.sum().item(), (LOGITS,), {})
    with pytest.raises(Exception, match=r"aten\.nonzero|aten\.index"):
        fake_results(lambda labels: labels[labels != 255], (GIVEN,), {})


# --- gradients


DISTILLATION = [
    (name, number)
    for name, calls in LOSSES.items()
    for number, (arguments, _) in enumerate(calls)
    if len(arguments) > 1 and any(arguments[1] is teacher for teacher in (TEACHER, TEACHER_FEATURES, TEACHER_POINTS))
]


@pytest.mark.parametrize(("name", "number"), DISTILLATION)
def test_the_teacher_gets_no_gradient(name, number):
    (student, teacher, *others), options = LOSSES[name][number]
    student, teacher = ((values.float() / 1e4).requires_grad_() for values in (student, teacher))
    getattr(ciss.losses, name)(student, teacher, *others, **options).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None or teacher.grad.eq(0).all()


def test_the_teachers_maps_get_no_gradient_from_pod():
    student, teacher = (values.float().div(1e4).requires_grad_() for values in (FEATURES, TEACHER_FEATURES))
    logits, teacher_logits = (values.float().div(1e4).requires_grad_() for values in (LOGITS, TEACHER))
    ciss.losses.pod_distillation([student], [teacher], logits, teacher_logits).backward()
    assert all(values.grad.abs().max() > 0 for values in (student, logits))
    assert all(values.grad is None or values.grad.eq(0).all() for values in (teacher, teacher_logits))
