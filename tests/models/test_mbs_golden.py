"""The published MBS network and one of its training steps, number by number: `tests/golden/README.md` says whose."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciss.labels.patches import patch_labels, patch_weights
from ciss.labels.selective import selective_pseudo_labels
from ciss.losses import adaptive_feature_distillation, cross_entropy, label_guided_distillation, orthogonality
from ciss.methods import METHODS, Batch
from ciss.models import Network, load_reference_checkpoint

FOLDER = Path(__file__).parents[1] / "golden"
OLD, NEW = 5, torch.tensor([5])
# what the published code names otherwise
OURS = {
    "decoder.cls_emb": "decoder.class_tokens",
    "decoder.mask_norm.weight": "decoder.scales",
    "decoder.mask_norm.bias": "decoder.shifts",
    "decoder.proj_dec": "decoder.project",
    "decoder.proj_patch": "decoder.patch_projection",
    "decoder.proj_classes": "decoder.class_projection",
    "decoder.decoder_norm": "decoder.norm",
    "encoder": "encoder.body",
}


def read(file):
    with np.load(FOLDER / file) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays}
    return {name: values if values.is_floating_point() else values.long() for name, values in found.items()}


@pytest.fixture(scope="module")
def golden():
    return read("mbs.npz") | read("mbs_step.npz")


def under(golden, prefix):
    """Everything whose name starts so, by the rest of its name."""
    return {name.removeprefix(prefix): values for name, values in golden.items() if name.startswith(prefix)}


def network_of(golden, prefix):
    state_dict = {name: values.clone() for name, values in under(golden, prefix).items()}
    return load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)


@pytest.fixture
def segmenter(golden):
    return network_of(golden, "segmenter.weights.sd/")


def theirs(name, values):
    """{their name: values} of one of our parameters, or of its gradient: one entry, or two for the first group."""
    for their_prefix, prefix in OURS.items():
        if name == prefix:
            return {their_prefix: values}
        if not name.startswith(f"{prefix}."):
            continue
        rest = name.removeprefix(f"{prefix}.")
        if their_prefix not in ("decoder.cls_emb", "decoder.mask_norm.weight", "decoder.mask_norm.bias"):
            return {f"{their_prefix}.{rest}": values}
        first = {f"{their_prefix}.0": values[:1], f"{their_prefix}.1": values[1:]}  # background, base classes
        found = first if rest == "0" else {f"{their_prefix}.{int(rest) + 1}": values}
        return {key: v[None] if their_prefix == "decoder.cls_emb" else v for key, v in found.items()}
    return {name: values}


def by_their_names(network, of=lambda p: p.detach()):
    return {key: v for name, p in network.named_parameters() for key, v in theirs(name, of(p)).items()}


def near(found, expected, atol=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# --- the network


def test_every_parameter_is_taken_over(golden, segmenter):
    expected = under(golden, "segmenter.weights.sd/")
    expected = {name: values for name, values in expected.items() if not name.startswith("encoder.head.")}
    found = by_their_names(segmenter)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(values) for name, values in expected.items())
    assert isinstance(segmenter, Network) and not segmenter.training
    assert segmenter.channels == 6
    assert all(p.requires_grad for p in segmenter.parameters())


@pytest.mark.parametrize("case", ["native", "needs_padding"])
def test_the_published_network(golden, segmenter, case):
    expected = under(golden, f"segmenter.{case}.")
    with torch.no_grad():
        output = segmenter(expected["image"])
    grid = expected["logits_patch"].shape[-2:]
    size = expected["image"].shape[-2:]
    near(output.logits, expected["logits_patch"])
    near(output.upsample(size), expected["logits"])
    near(output.features.flatten(2).mT, expected["patches"])
    near(output.class_features, expected["cls_seg_feat"])
    assert output.class_tokens.equal(expected["cls_token"][0])
    assert output.features.shape[-2:] == output.stages[-1].shape[-2:] == grid
    near(output.probabilities(size), expected["logits"].softmax(dim=1))
    near(output.log_probabilities(size), expected["logits"].log_softmax(dim=1))


def test_images_do_not_see_each_other(golden, segmenter):
    image = golden["segmenter.needs_padding.image"]
    with torch.no_grad():
        both, alone, swapped = segmenter(image), segmenter(image[1:]), segmenter(image.flip(0))
    for name in ("logits", "features", "class_features"):
        near(getattr(both, name)[1:], getattr(alone, name))
        near(getattr(both, name).flip(0), getattr(swapped, name))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "model_state"])
def test_checkpoints_as_they_are_saved(golden, segmenter, prefix, wrapper):
    state_dict = {prefix + name: values for name, values in under(golden, "segmenter.weights.sd/").items()}
    if wrapper:
        state_dict = {wrapper: state_dict, "best_score": 0.5}
    names = list(state_dict)
    found = load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)
    assert all(a.equal(b) for a, b in zip(found.parameters(), segmenter.parameters(), strict=True))
    assert list(state_dict) == names


def test_the_head_that_is_never_used_may_be_missing(golden, segmenter):
    state_dict = under(golden, "segmenter.weights.sd/")
    state_dict = {name: values for name, values in state_dict.items() if not name.startswith("encoder.head.")}
    found = load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)
    assert all(a.equal(b) for a, b in zip(found.parameters(), segmenter.parameters(), strict=True))


def test_the_checkpoint_stays_what_it_was(golden):
    state_dict = {name: values.clone() for name, values in under(golden, "segmenter.weights.sd/").items()}
    network = load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    assert all(state_dict[name].equal(values) for name, values in under(golden, "segmenter.weights.sd/").items())


@pytest.mark.parametrize(
    "name",
    [
        "encoder.cls_token",
        "encoder.norm.bias",
        "encoder.patch_embed.proj.weight",
        "encoder.blocks.1.mlp.fc1.weight",
        "encoder.blocks.0.mlp.fc1.weight",
        "decoder.proj_patch",
        "decoder.cls_emb.1",
        "decoder.cls_emb.2",
        "decoder.mask_norm.bias.0",
        "decoder.mask_norm.weight.1",
        "decoder.mask_norm.weight.2",
    ],
)
def test_a_missing_parameter_is_named(golden, name):
    state_dict = under(golden, "segmenter.weights.sd/")
    del state_dict[name]
    with pytest.raises(ValueError) as raised:
        load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)
    # without a group's tokens its scales are foreign
    assert any(key in str(raised.value) for key in (name, name.replace("cls_emb", "mask_norm.weight")))


@pytest.mark.parametrize("name", ["decoder.head.weight", "encoder.blocks.1.gamma", "extra"])
def test_a_foreign_parameter_is_named(golden, name):
    state_dict = under(golden, "segmenter.weights.sd/") | {name: torch.zeros(3)}
    with pytest.raises(ValueError, match=name):
        load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)


def test_other_things_are_refused(golden):
    with pytest.raises(ValueError, match="plop"):
        load_reference_checkpoint("plop", under(golden, "segmenter.weights.sd/"))
    with pytest.raises(ValueError):
        load_reference_checkpoint("mbs", {})


# --- background weight transfer


@pytest.mark.parametrize("classes", [1, 3])
def test_new_classes_start_from_the_background(golden, classes):
    """New tokens are the background's, scale and shift are 1 and 0; everything else keeps its bits."""
    bg_token, new_token = golden["transfer.one_new.bg_token"], golden["transfer.one_new.new_token"]
    state_dict = under(golden, "step.one_new.teacher/") | {"decoder.cls_emb.0": bg_token}
    network = load_reference_checkpoint("mbs", state_dict, encoder_heads=2, decoder_heads=1)
    before = by_their_names(copy.deepcopy(network))
    METHODS["mbs"]().initialise(network, classes)
    after = by_their_names(network)
    added = {name: after.pop(name) for name in set(after) - set(before)}
    assert all(after[name].equal(values) for name, values in before.items())
    expected = {
        "decoder.cls_emb.2": new_token.expand(1, classes, -1),
        "decoder.mask_norm.weight.2": golden["transfer.one_new.mask_norm_weight"].expand(classes),
        "decoder.mask_norm.bias.2": golden["transfer.one_new.mask_norm_bias"].expand(classes),
    }
    assert added.keys() == expected.keys() and all(added[name].equal(values) for name, values in expected.items())
    assert network.channels == OLD + classes


# --- a whole training step


class Step:
    """The stored step: networks, outputs, and what is compared in the end."""

    def __init__(self, golden):
        self.golden = under(golden, "step.one_new.")
        self.student = network_of(golden, "step.one_new.student/")
        self.teacher = network_of(golden, "step.one_new.teacher/").requires_grad_(False)
        self.image, self.given = self.golden["image"], self.golden["gt"]
        self.size = tuple(self.image.shape[-2:])
        with torch.no_grad():
            self.old = self.teacher(self.image)
        self.new = self.student(self.image)

    def compare(self, losses):
        """Terms, gradients of every parameter, and one update."""
        expected = {
            "cross_entropy": self.golden["seg_loss"],
            "patches": self.golden["fd_patches"],
            "class_features": self.golden["fd_cls"],
            "distillation": 25 * self.golden["od_raw"],
            "orthogonality": self.golden["ortho_weighted"],
        }
        assert losses.keys() == expected.keys()
        for name in expected:
            close(losses[name].detach(), expected[name])
        total = sum(losses.values())
        close(total.detach(), self.golden["loss_total"])
        total.backward()
        self.compare_gradients()
        self.compare_update()

    def compare_gradients(self):
        stored = under(self.golden, "grad/")
        norms = dict(zip(stored, self.golden["grad_norms"].tolist(), strict=True))
        found = by_their_names(self.student, lambda p: p.grad)
        assert found.keys() == stored.keys()
        for name, expected in stored.items():
            gradient = found[name].double()
            assert gradient.norm().item() == pytest.approx(norms[name], rel=1e-4), name
            some = gradient.flatten()[:: -(-gradient.numel() // 256)]
            assert (some - expected).norm() <= 1e-4 * expected.double().norm(), name

    def compare_update(self):
        before = {name: values.clone() for name, values in by_their_names(self.student).items()}
        torch.optim.SGD(self.student.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-5).step()
        after, stored = by_their_names(self.student), under(self.golden, "after/")
        assert stored.keys() == {
            "decoder.cls_emb.0",
            "decoder.cls_emb.2",
            "decoder.proj_dec.weight",
            "encoder.pos_embed",
            "encoder.norm.weight",
        }
        for name, expected in stored.items():
            moved, wanted = after[name].double() - before[name], expected.double() - before[name]
            # float32 leaves the update, a ten-thousandth of the gradient, few digits
            assert (after[name] - expected).abs().max() <= 2e-7, name
            assert (moved - wanted).norm() <= 1e-2 * wanted.norm(), name


@pytest.fixture
def step(golden):
    return Step(golden)


def test_labels_and_patch_weights_of_the_step(step):
    labels = selective_pseudo_labels(step.given, step.old.upsample(step.size))
    assert labels.equal(step.golden["labels_used"])
    grid = patch_labels(labels, step.old.logits.shape[-2:])
    close(patch_weights(grid, step.old.logits, NEW).flatten(1), step.golden["patch_weights"])


def test_a_whole_step_by_the_functions(step):
    """L = L_CE + L_patch + L_cls + 25 L_LGKD + (n / C) L_ortho, and SGD."""
    z, z_old = step.new.upsample(step.size), step.old.upsample(step.size)
    labels = selective_pseudo_labels(step.given, z_old)
    weights = patch_weights(patch_labels(labels, step.old.logits.shape[-2:]), step.old.logits, NEW)
    patches = (output.features.flatten(2).mT for output in (step.new, step.old))
    losses = {
        "cross_entropy": cross_entropy(z, labels),
        "patches": adaptive_feature_distillation(*patches, weights.flatten(1)),
        "class_features": F.mse_loss(step.new.class_features[:, :OLD], step.old.class_features),
        "distillation": 25 * label_guided_distillation(z, z_old, step.given),
        "orthogonality": len(NEW) / 6 * orthogonality(step.new.class_tokens, NEW),
    }
    step.compare(losses)
    assert all(p.grad is None for p in step.teacher.parameters())


def batch_of(step):
    class_steps = torch.tensor([0, 0, 0, 0, 0, 1])
    return Batch(step.image, step.given, step.given, ["a", "b"], 1, OLD, class_steps, NEW)


def test_a_whole_step_by_the_method(step):
    method, batch = METHODS["mbs"](), batch_of(step)
    given = step.given.clone()
    batch.labels = method.labels(batch, step.old)
    assert batch.labels.equal(step.golden["labels_used"]) and step.given.equal(given)
    step.compare(method.losses(step.new, step.old, batch))


def test_the_method_guides_by_the_given_labels_not_by_its_own(step):
    """Pseudo labels play no part in the distillation."""
    method, batch = METHODS["mbs"](), batch_of(step)
    batch.labels = torch.full_like(step.given, 5)
    close(method.losses(step.new, step.old, batch)["distillation"].detach(), 25 * step.golden["od_raw"])


def test_the_base_step_is_cross_entropy_alone(step):
    class_steps = torch.zeros(6, dtype=torch.int64)
    batch = Batch(step.image, step.given, step.given, ["a", "b"], 0, 0, class_steps, torch.arange(6))
    losses = METHODS["mbs"]().losses(step.new, None, batch)
    assert losses.keys() == {"cross_entropy"}
    close(losses["cross_entropy"], F.cross_entropy(step.new.upsample(step.size), step.given, ignore_index=255))


def test_nothing_to_learn_from_is_finite(step):
    """Every pixel ignored: no cross-entropy, no weighted patch; the published code's loss is NaN."""
    method, batch = METHODS["mbs"](), batch_of(step)
    batch.given = batch.labels = torch.full_like(step.given, 255)
    batch.labels = method.labels(batch, step.old)
    assert batch.labels.eq(255).all()
    losses = method.losses(step.new, step.old, batch)
    assert losses["cross_entropy"].item() == 0 and losses["patches"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in step.student.parameters())


def test_a_padded_image_has_its_patches_where_the_network_has_them(golden):
    """30 x 35 pixels, patches of 8: rows 0, 8, 16, 24 and columns 0, 8, 16, 24, 32."""
    student, teacher = network_of(golden, "step.one_new.student/"), network_of(golden, "step.one_new.teacher/")
    image = golden["segmenter.needs_padding.image"]
    with torch.no_grad():
        new, old = student(image), teacher(image)
    given = torch.randint(6, (2, 30, 35), generator=torch.Generator().manual_seed(0))
    batch = Batch(image, given, given, ["a", "b"], 1, OLD, torch.tensor([0, 0, 0, 0, 0, 1]), NEW)
    found = METHODS["mbs"]().losses(new, old, batch)["patches"]
    weights = patch_weights(given[:, ::8, ::8], old.logits, NEW).flatten(1)
    close(found, adaptive_feature_distillation(new.features.flatten(2).mT, old.features.flatten(2).mT, weights))
