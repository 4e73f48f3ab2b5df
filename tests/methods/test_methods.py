"""The methods: coefficients that are checked, hooks with defaults, losses that are the papers' functions."""

import copy

import pytest
import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from ciss.config import ConfigError, validate
from ciss.losses import cross_entropy, unbiased_cross_entropy, unbiased_distillation
from ciss.methods import METHODS, Batch, Method
from ciss.methods.base import coefficients
from ciss.methods.finetune import Finetune
from ciss.methods.joint import Joint
from ciss.methods.mib import MiB
from ciss.models import Output
from tests.helpers.batches import NEW, OLD, SIZE, bare, full, make_batch, network, output

FILE = "params.yaml"


# --- the table of methods


def test_the_methods():
    assert {"finetune": Finetune, "joint": Joint, "mib": MiB}.items() <= METHODS.items()


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    kind = METHODS[name]
    assert issubclass(kind, Method)
    assert kind.__module__ == f"ciss.methods.{name}"  # a run's key and the pipeline look for that file
    assert kind.sees_all == (name == "joint")
    assert validate(kind, {}, FILE, f"methods.{name}") == kind()  # defaults are enough


# --- coefficients


def test_coefficients_are_read():
    method = validate(MiB, {"distillation": 3, "initialisation": "default"}, FILE, "methods.mib")
    assert method == MiB(distillation=3.0, alpha=1.0, initialisation="default") and method != MiB()
    assert (MiB().distillation, MiB().alpha, MiB().initialisation) == (10.0, 1.0, "balanced")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mib", {"distilation": 1}, r"methods\.mib\.distilation: unknown key\. Did you mean '?distillation'?\?"),
        ("mib", {"qqq": 1}, r"methods\.mib\.qqq: unknown key\."),
        ("finetune", {"alpha": 1}, r"methods\.finetune\.alpha: unknown key\."),
        ("joint", {"sees_all": False}, r"methods\.joint\.sees_all: unknown key\."),
        ("mib", {"distillation": "ten"}, r"methods\.mib\.distillation: found 'ten', but it should be a valid number"),
        ("mib", {"distillation": None}, r"methods\.mib\.distillation: found None"),
        ("mib", {"distillation": -1}, r"methods\.mib\.distillation: found -1, but it should be greater than or equal"),
        ("mib", {"alpha": float("inf")}, r"methods\.mib\.alpha: found inf"),
        ("mib", {"alpha": float("nan")}, r"methods\.mib\.alpha: found nan"),
        (
            "gsc",
            {"exponent": "old"},
            r"methods\.gsc\.exponent: found 'old', but it should be a valid number, or be 'old_s",
        ),
        (
            "gsc",
            {"exponent": 0},
            r"methods\.gsc\.exponent: found 0, but it should be greater than 0, or be 'old_share'\.$",
        ),
        (
            "gsc",
            {"clamp": [5.0, 0.5]},
            r"methods\.gsc\.clamp: found \[5\.0, 0\.5\], but it should go from small to large",
        ),
        ("gsc", {"grouping": "per-step"}, r"methods\.gsc\.grouping: found 'per-step', but it should be 'per_step', "),
        ("gsc", {"relabeling": "none"}, r"methods\.gsc\.relabeling: unknown key\. Did you mean '?relabelling"),
        ("plop", {"variant": "code"}, r"methods\.plop\.variant: found 'code', but it should be 'paper' or 'released'"),
        ("mib", {"initialisation": "balance"}, r"methods\.mib\.initialisation: found 'balance', .*'balanced' or"),
        (
            "mbs",
            {"patch_label": "centre"},
            r"methods\.mbs\.patch_label: found 'centre', but it should be 'top_left' or",
        ),
        ("mbs", {"threshold": 1.1}, r"methods\.mbs\.threshold: found 1\.1, but it should be less than or equal to 1"),
        ("mbs", {"selective": 1}, r"methods\.mbs\.selective: found 1, but it should be true or false"),
        ("mbs", {"ortho": 1.0}, r"methods\.mbs\.ortho: unknown key\."),
        ("mbs", {"outputs": "guided"}, r"methods\.mbs\.outputs: found 'guided', .* 'label_guided', 'plain' or"),
    ],
)
def test_wrong_coefficients_are_named(name, values, message):
    with pytest.raises(ConfigError, match=f"^{FILE}: {message}") as error:
        validate(METHODS[name], values, FILE, f"methods.{name}")
    assert len(str(error.value).splitlines()) == 1


def test_every_mistake_has_its_line():
    with pytest.raises(ConfigError) as error:
        validate(MiB, {"alpha": "a", "distilation": 1}, FILE, "methods.mib")
    assert len(str(error.value).splitlines()) == 2


# --- a method of one's own


@coefficients
class Anchor(Method):
    """What a user writes: a coefficient and a loss."""

    strength: NonNegativeFloat = 2.0

    def losses(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        losses = {"cross_entropy": cross_entropy(student.upsample(batch.size), batch.labels)}
        if teacher is not None:
            drift = student.logits[:, : batch.old_channels] - teacher.logits
            losses["drift"] = self.strength * drift.square().mean()
        return losses


def test_a_new_method_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(METHODS, "anchor", Anchor)
    with pytest.raises(ConfigError, match=r"methods\.anchor\.strenght: unknown key\. Did you mean '?strength'?\?"):
        validate(METHODS["anchor"], {"strenght": 1}, FILE, "methods.anchor")
    method = validate(METHODS["anchor"], {"strength": 3}, FILE, "methods.anchor")
    losses = {}
    for strength in (3.0, 6.0):
        method.strength = strength
        student = network(OLD)
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        batch = make_batch()
        method.initialise(student, NEW)
        assert student.channels == OLD + NEW
        method.before_step([batch], teacher, [])
        assert len(list(method.trainable(student))) == len(list(student.parameters()))
        with torch.no_grad():
            old = teacher(batch.images)
        batch.labels = method.labels(batch, old)
        losses[strength] = method.losses(student.train()(batch.images), old, batch)
        sum(losses[strength].values()).backward()
        assert all(p.grad is not None for p in student.parameters())
    assert losses[3.0].keys() == {"cross_entropy", "drift"} and losses[3.0]["drift"] > 0
    torch.testing.assert_close(2 * losses[3.0]["drift"], losses[6.0]["drift"])


def test_hooks_do_nothing_by_default():
    method, student, batch = Method(), network(OLD), make_batch()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert not method.sees_all
    method.initialise(student, NEW)
    grown = {name: value.clone() for name, value in student.state_dict().items()}
    assert all(grown[name].equal(value) for name, value in before.items()) and len(grown) == len(before) + 2
    assert {id(p) for p in method.trainable(student)} == {id(p) for p in student.parameters()}
    assert method.before_step(iter([batch]), student, iter([batch])) is None
    given = batch.given.clone()
    batch.labels = torch.zeros_like(batch.labels)
    assert method.labels(batch, output(OLD)) is batch.given and batch.given.equal(given)
    assert all(grown[name].equal(value) for name, value in student.state_dict().items())


def test_a_method_without_losses_says_so():
    class Empty(Method):
        pass

    with pytest.raises(NotImplementedError, match="Empty defines no losses"):
        Empty().losses(output(OLD + NEW), output(OLD), make_batch())


def test_batch_knows_its_size():
    assert make_batch(size=(4, 6)).size == (4, 6)


# --- fine-tuning and joint training


@pytest.mark.parametrize("kind", [Finetune, Joint])
@pytest.mark.parametrize("teacher", [None, output(OLD)])
def test_plain_training_is_cross_entropy(kind, teacher):
    student, batch = output(OLD + NEW), make_batch()
    batch.given = torch.zeros_like(batch.given)  # the labels that `Method.labels` gave count
    losses = kind().losses(student, teacher, batch)
    assert losses.keys() == {"cross_entropy"}
    assert losses["cross_entropy"].equal(cross_entropy(full(student.logits), batch.labels))


def test_fine_tuning_never_supports_an_old_class():
    student, batch = output(OLD + NEW, grid=SIZE), make_batch()
    Finetune().losses(student, output(OLD), batch)["cross_entropy"].backward()
    gradient, p = student.logits.grad.movedim(1, -1), student.logits.detach().softmax(dim=1).movedim(1, -1)
    valid = batch.labels != 255
    # dL/dz_c = p_c / N for a class without a label: every pixel pushes the old classes down
    torch.testing.assert_close(gradient[valid][:, 1:OLD], p[valid][:, 1:OLD] / valid.sum())
    assert gradient[valid][:, 1:OLD].min() > 0 and gradient[~valid].eq(0).all()
    assert gradient[..., 0].min() < 0 and gradient[..., OLD:].min() < 0  # background and new classes have labels


# --- MiB


def test_mib_starts_with_cross_entropy():
    student, batch = output(OLD + NEW), make_batch(old=0, new=4)
    losses = MiB().losses(student, None, batch)
    assert losses.keys() == {"cross_entropy"}
    assert losses["cross_entropy"].equal(cross_entropy(full(student.logits), batch.labels))


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_mib_is_two_functions_and_a_coefficient(weight, alpha):
    student, teacher, batch = output(OLD + NEW), output(OLD, seed=5), make_batch()
    batch.given = torch.zeros_like(batch.given)
    losses = MiB(distillation=weight, alpha=alpha).losses(student, teacher, batch)
    old, new = full(teacher.logits), full(student.logits)
    assert losses.keys() == {"cross_entropy", "distillation"}
    torch.testing.assert_close(losses["cross_entropy"], unbiased_cross_entropy(new, batch.labels, OLD))
    torch.testing.assert_close(losses["distillation"], weight * unbiased_distillation(new, old, alpha=alpha))


@pytest.mark.parametrize(("initialisation", "balanced"), [("balanced", True), ("default", False)])
def test_mib_initialisation(initialisation, balanced):
    student, images = network(OLD).eval(), make_batch().images
    old = student(images).logits.softmax(dim=1)
    MiB(initialisation=initialisation).initialise(student, NEW)
    logits = student(images).logits
    new = logits.softmax(dim=1)
    assert new.shape[1] == OLD + NEW
    assert torch.allclose(new[:, 0] + new[:, OLD:].sum(dim=1), old[:, 0], atol=1e-6) == balanced
    assert torch.allclose(new[:, 1:OLD], old[:, 1:], atol=1e-6) == balanced
    # so that nothing is left to distil, and the distillation does not move the network
    losses = MiB().losses(bare(logits), bare(old.log()), make_batch())
    (gradient,) = torch.autograd.grad(losses["distillation"], logits)
    assert (gradient.abs().max() < 1e-6) == balanced


@pytest.mark.parametrize("name", ["finetune", "mib", "plop", "gsc"])
def test_gradients_reach_the_student_and_not_the_teacher(name):
    method, student, batch = METHODS[name](), network(OLD), make_batch()
    teacher = copy.deepcopy(student).eval()  # its parameters could learn: the engine's no_grad has to be enough
    method.initialise(student, NEW)
    with torch.no_grad():
        old = teacher(batch.images)
        method.before_step(iter([batch]), teacher, iter([]))
        batch.labels = method.labels(batch, old)
    losses = method.losses(student.train()(batch.images), old, batch)
    for value in losses.values():
        student.zero_grad()
        value.backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        assert all(g.weight.grad.abs().sum() > 0 for g in student.decoder.classifier.groups)
    assert all(p.grad is None for p in teacher.parameters())
