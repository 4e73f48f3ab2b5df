"""MBS as a method: its parts and switches, both decoders, what it logs, whole runs, its figures, and its presets."""

import copy
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciss import config
from ciss.analysis.figures import training as figures_training
from ciss.analysis.figures.style import style
from ciss.analysis.figures.training import token_angles, trace_panels
from ciss.data import classes_of, data_set
from ciss.data.loaders import evaluation_loader
from ciss.data.transforms import training_view
from ciss.inspection.trained import explain, images_with_most_classes
from ciss.labels.patches import patch_labels, patch_weights
from ciss.labels.selective import selective_pseudo_labels
from ciss.losses import label_guided_distillation, orthogonality, output_distillation
from ciss.methods import METHODS
from ciss.methods.mbs import MBS
from ciss.runs import check as runs_check
from ciss.runs import results as runs_results
from ciss.runs.check import check
from ciss.runs.results import read
from ciss.runs.run import index_folder
from ciss.store import weights as store_weights
from ciss.study import presets
from ciss.training import loop
from tests.helpers.batches import NEW, OLD, SIZE, full, make_batch, on_gpu, output, step
from tests.helpers.batches import decoder_network as network
from tests.helpers.project import choose_decoder as choose

mpl.use("Agg")
import matplotlib.pyplot as plt

TERMS = ["cross_entropy", "patches", "class_features", "distillation", "orthogonality"]
SWITCHES = [
    *MBS.presets.values(),
    {"threshold": 0.2},
    {"patch_label": "majority"},
    {"ignored": "left_out"},
    {"initialisation": "balanced"},
    {"patches": 0.0},
    {"class_features": 0.0},
    {"distillation": 0.0},
]
named = pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))


def without(*left_out):
    return [term for term in TERMS if term not in left_out]


def close(found, expected, **options):
    torch.testing.assert_close(found, torch.as_tensor(expected), **options)


def mean(values):
    return float(torch.as_tensor(values).float().mean())


# --- the parts, their coefficients and switches


def by_hand(student, teacher, batch, **terms):
    """Every variant of every term, written out once more."""
    z, z_old = full(student.logits), full(teacher.logits)
    labels, wanted = batch.labels, {}
    valid = labels != 255
    picked = z.log_softmax(dim=1).movedim(1, -1)[valid].gather(1, labels[valid][:, None])
    wanted["cross_entropy"] = -picked.mean()
    difference = (student.features - teacher.features).square()
    wanted["plain patches"] = difference.mean()
    weights = patch_weights(patch_labels(labels, (4, 6)), teacher.logits, batch.new_classes)
    counted = (weights > 0).sum() * difference.shape[1]
    wanted["adaptive patches"] = (difference * weights[:, None]).sum() / counted
    wanted["class features"] = (student.class_features[:, :OLD] - teacher.class_features).square().mean()
    wanted["guided"] = label_guided_distillation(z, z_old, batch.given)
    wanted["plain outputs"] = -(z_old.softmax(dim=1) * z[:, :OLD].log_softmax(dim=1)).mean()
    wanted["orthogonality"] = NEW / (OLD + NEW) * orthogonality(student.class_tokens, batch.new_classes)
    return {name: factor * wanted[part] for name, (part, factor) in terms.items()}


CE = {"cross_entropy": ("cross_entropy", 1.0)}
PATCHES = {"patches": ("adaptive patches", 1.0)}
CLASSES = {"class_features": ("class features", 1.0)}
GUIDED = {"distillation": ("guided", 25.0)}
ORTHOGONALITY = {"orthogonality": ("orthogonality", 1.0)}
EVERY = {**CE, **PATCHES, **CLASSES, **GUIDED, **ORTHOGONALITY}
PLAIN_PATCHES = {"patches": ("plain patches", 1.0)}
PLAIN_OUTPUTS = {"distillation": ("plain outputs", 25.0)}
PARTS = {
    "": EVERY,
    "no-selection": EVERY,
    "no-labels": EVERY,
    "no-adaptive": {**EVERY, **PLAIN_PATCHES},
    "no-features": {**CE, **GUIDED, **ORTHOGONALITY},
    "no-guidance": {**EVERY, **PLAIN_OUTPUTS},
    "no-outputs": {**CE, **PATCHES, **CLASSES, **ORTHOGONALITY},
    "no-orthogonality": {**CE, **PATCHES, **CLASSES, **GUIDED},
    "no-transfer": EVERY,
    "off": {**CE, **PLAIN_PATCHES, **CLASSES, **PLAIN_OUTPUTS},
    "ewf": EVERY,
}


def test_every_preset_is_tested():
    assert set(PARTS) == {"", *MBS.presets}


@pytest.mark.parametrize("preset", PARTS)
def test_a_preset_is_its_parts(preset):
    method = MBS(**MBS.presets.get(preset, {}))
    student, teacher, batch = step(method)
    losses = method.losses(student, teacher, batch)
    expected = by_hand(student, teacher, batch, **PARTS[preset])
    assert list(losses) == list(expected)
    for name, value in expected.items():
        close(losses[name], value)
        assert losses[name].shape == () and losses[name].dtype == torch.float32


@pytest.mark.parametrize("preset", PARTS)
def test_labels_of_a_preset(preset):
    _, teacher, batch = step(method := MBS(**MBS.presets.get(preset, {})))
    selective = preset not in ("no-selection", "off")
    expected = selective_pseudo_labels(batch.given, full(teacher.logits), threshold=0.7, selective=selective)
    if preset == "no-labels":
        expected = batch.given
    assert method.labels(batch, teacher).equal(expected) and batch.labels.equal(expected)
    background = batch.given == 0
    assert batch.labels[~background].equal(batch.given[~background])
    if preset != "no-labels":
        assert (batch.labels[background] > 0).any() and (batch.labels[background] == 0).any()
    assert (batch.labels[background] == 255).any() == (selective and preset != "no-labels")


def test_what_is_switched_off_is_the_published_baseline():
    """`MBS: False`: confident labels, CE, plain means of squares, and distillation of the old channels alone."""
    method = MBS(**MBS.presets["off"])
    student, teacher, batch = step(method)
    losses = method.losses(student, teacher, batch)
    z, z_old = full(student.logits), full(teacher.logits)
    p = z_old.softmax(dim=1)
    labels = torch.where((batch.given == 0) & (p.argmax(1) > 0) & (p.amax(1) >= 0.7), p.argmax(1), batch.given)
    close(losses["cross_entropy"], F.cross_entropy(z, labels, ignore_index=255))
    close(losses["patches"], F.mse_loss(student.features, teacher.features))
    close(losses["class_features"], F.mse_loss(student.class_features[:, :OLD], teacher.class_features))
    close(losses["distillation"], 25 * output_distillation(z, z_old))
    assert list(losses) == without("orthogonality")
    # of what is distilled, new channels are no part: they get no gradient
    (gradient,) = torch.autograd.grad(losses["distillation"], student.logits)
    assert gradient[:, OLD:].abs().max() < 1e-7 < gradient[:, :OLD].abs().max()


@pytest.mark.parametrize(
    ("coefficient", "term", "default"),
    [("patches", "patches", 1), ("class_features", "class_features", 1), ("distillation", "distillation", 25)]
    + [("orthogonality", "orthogonality", 1)],
)
def test_coefficients_multiply_their_term(coefficient, term, default):
    assert getattr(MBS(), coefficient) == default
    plain = MBS().losses(*step(MBS()))
    for value in (0.5, 7.0):
        changed = MBS(**{coefficient: value}).losses(*step(MBS()))
        for name in TERMS:
            close(changed[name], plain[name] * (value / default if name == term else 1))
    assert list(MBS(**{coefficient: 0.0}).losses(*step(MBS()))) == without(term), "nothing is computed for nothing"


def test_ignored_pixels_may_be_left_out_of_the_distillation():
    student, teacher, batch = step(MBS(), grid=SIZE)
    batch.given = batch.given.clone()
    batch.given[0, :, :5] = 255
    valid = batch.given != 255
    log_p, p = full(student.logits).log_softmax(dim=1), full(teacher.logits).softmax(dim=1)
    target = torch.cat([p, torch.zeros(2, NEW, *SIZE)], dim=1)
    new = (batch.given >= OLD) & valid
    target.scatter_(1, torch.where(new, batch.given, 0)[:, None], p[:, :1])
    target[:, 0] = torch.where(new, 0, target[:, 0])
    per_pixel = -(target * log_p).mean(dim=1)
    found = {}
    for ignored, expected in (("left_out", per_pixel[valid].mean()), ("distilled", per_pixel.mean())):
        found[ignored] = MBS(ignored=ignored).losses(student, teacher, batch)["distillation"]
        close(found[ignored], 25 * expected)
        (gradient,) = torch.autograd.grad(found[ignored], student.logits, retain_graph=True)
        moved = gradient.abs().sum(dim=1) > 0
        assert moved[valid].all() and moved[~valid].all() == (ignored == "distilled")
        assert moved[~valid].any() == (ignored == "distilled")
    # pixels that the method itself ignores are no such
    assert (batch.labels[valid] == 255).any()


def test_all_pixels_ignored_is_finite():
    for ignored in ("left_out", "distilled"):
        student, teacher, batch = step(MBS(ignored=ignored))
        batch.given = batch.labels = torch.full_like(batch.given, 255)
        losses = MBS(ignored=ignored).losses(student, teacher, batch)
        assert all(value.isfinite() for value in losses.values())
        assert losses["cross_entropy"] == 0 and losses["patches"] == 0
        assert (losses["distillation"] == 0) == (ignored == "left_out")


def test_the_label_of_a_patch():
    """Of its first pixel, or of most of them: here these differ in every patch."""
    labels = torch.full((2, *SIZE), 1)
    labels[:, ::2, ::2] = OLD  # patches of 2 x 2 pixels
    for rule, expected in (("top_left", 0.0), ("majority", 1.0)):
        student, teacher, batch = step(method := MBS(patch_label=rule))
        batch.labels = labels
        assert method.patch_weights(teacher, batch).eq(expected).all()
        losses = method.losses(student, teacher, batch)
        close(losses["patches"], expected * F.mse_loss(student.features, teacher.features))
        assert batch.logs["patch/weight"] == expected
    assert MBS().patch_label == "top_left"


def test_patches_of_a_filled_image_are_those_of_the_network():
    """50 x 70 pixels are 4 x 5 patches of 16, the last ones reaching over the border."""
    teacher, size = output(OLD, seed=5, grid=(4, 5)), (50, 70)
    student = output(OLD + NEW, grid=(4, 5))
    student.padding = teacher.padding = (size, (64, 80))
    batch = make_batch(size=size)
    batch.labels = torch.full((2, *size), OLD)
    batch.labels[:, 16:32, 64:] = 1  # the patch of row 1 and column 4
    for rule in ("top_left", "majority"):
        weights = MBS(patch_label=rule).patch_weights(teacher, batch)
        assert weights.nonzero().tolist() == [[0, 1, 4], [1, 1, 4]] and weights.sum() == 2


@named
def test_every_switch_changes_what_it_says(switch):
    made = {}
    for name, values in {"switched": switch, "default": {}}.items():
        method = MBS(**values)
        student, teacher, batch = step(method)
        losses = method.losses(student, teacher, batch)
        assert all(value.isfinite() and value.shape == () for value in losses.values())
        sum(losses.values()).backward()
        assert student.logits.grad.isfinite().all() and student.logits.grad.abs().sum() > 0
        made[name] = (*losses.values(), batch.labels)
    same = len(made["switched"]) == len(made["default"])
    same = same and all(a.equal(b) for a, b in zip(*made.values(), strict=True))
    assert same == (set(switch) <= {"initialisation", "fusion", "old_rows"})  # they act before and after the step


def test_the_base_step_is_cross_entropy():
    student, batch = output(4), make_batch(old=0, new=3)
    losses = MBS().losses(student, None, batch)
    assert list(losses) == ["cross_entropy"] and not batch.logs
    close(losses["cross_entropy"], F.cross_entropy(full(student.logits), batch.labels, ignore_index=255))


# --- both decoders, every method


decoders = pytest.mark.parametrize(
    ("decoder", "encoder"),
    [("deeplabv3", "ciss_tiny"), ("mask_transformer", "ciss_tiny"), ("mask_transformer", "test_vit")],
)


# Methods with rows of their own have a test in tests/methods/test_every_method.py: not every decoder has such rows.
ROWS_OF_CLASSES = [name for name in METHODS if name != "joint" and not METHODS[name]().extras([OLD, 1], 1)]


@decoders
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("name", ROWS_OF_CLASSES)
def test_a_step_of_every_method_on_every_decoder(name, new, decoder, encoder):
    method, student = METHODS[name](), network(decoder, OLD, encoder=encoder)
    teacher = copy.deepcopy(student).eval()  # its parameters could learn: the engine's no_grad has to be enough
    before = set(dict(student.named_parameters()))
    method.initialise(student, new)
    batch = make_batch(new=new, size=(24, 34))
    with torch.no_grad():
        old = teacher(batch.images)
        method.before_step(iter([batch]), teacher, iter([batch]))
        batch.labels = method.labels(batch, old)
    output = student.train()(batch.images)
    assert output.logits.shape[1] == OLD + new == student.channels
    losses = method.losses(output, old, batch)
    assert all(value.isfinite() and value.shape == () for value in losses.values())
    sum(losses.values()).backward()
    found = dict(student.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in found.values())
    fresh = set(found) - before
    assert len(fresh) == (2 if decoder == "deeplabv3" else 3)
    for parameter in (found[added] for added in fresh):
        assert parameter.shape[0] == new and (parameter.grad.reshape(new, -1).abs().sum(dim=1) > 0).all()
    assert all(p.grad is None for p in teacher.parameters())


@decoders
@pytest.mark.parametrize("initialisation", ["background", "balanced", "default"])
def test_where_new_classes_start(decoder, encoder, initialisation):
    student = network(decoder, OLD, encoder=encoder)
    other = copy.deepcopy(student)
    torch.manual_seed(3)
    MBS(initialisation=initialisation).initialise(student, NEW)
    torch.manual_seed(3)
    other.grow(NEW)
    if initialisation != "default":
        {"background": other.decoder.transfer, "balanced": other.decoder.balance}[initialisation]()
    assert all(student.state_dict()[name].equal(value) for name, value in other.state_dict().items())
    tokens = student.eval()(torch.zeros(1, 3, 32, 32)).class_tokens
    assert (tokens[OLD:] == tokens[0]).all() == (initialisation != "default")


@decoders
def test_new_classes_come_apart(decoder, encoder):
    """Two that start alike, at the background: orthogonality and labels turn them away from it and from each other."""
    method, student = MBS(), network(decoder, OLD, encoder=encoder)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    method.initialise(student, NEW)
    batch, seen = make_batch(size=(32, 32)), []
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05)
    for _ in range(6):
        optimiser.zero_grad()
        old = teacher(batch.images)
        batch.labels = method.labels(batch, old)
        sum(method.losses(student.train()(batch.images), old, batch).values()).backward()
        seen.append(batch.logs["cosine/background"].item())
        optimiser.step()
    assert seen[0] == pytest.approx(1) and seen[-1] < seen[1] < seen[0]


def test_pseudo_labels_are_not_guidance():
    """What the method labels itself changes cross-entropy and patches, and nothing else."""
    student, teacher, batch = step(MBS())
    plain = MBS().losses(student, teacher, batch)
    batch.labels = torch.where(batch.given == 0, 1, batch.given)
    changed = MBS().losses(student, teacher, batch)
    assert [name for name in TERMS if not changed[name].equal(plain[name])] == ["cross_entropy", "patches"]


# --- logs


LOGS = ["background/relabelled", "background/kept", "background/ignored", "patch/weight"]
LOGS += ["cosine/background", "cosine/nearest old"]


def test_what_mbs_logs():
    student, teacher, batch = step(method := MBS())
    method.losses(student, teacher, batch)
    assert list(batch.logs) == LOGS
    logs = {name: float(value) for name, value in batch.logs.items()}
    background = batch.given == 0
    relabelled = (batch.labels == 1) | (batch.labels == 2)
    assert logs["background/relabelled"] == pytest.approx(mean(relabelled[background])) and relabelled.any()
    assert logs["background/kept"] == pytest.approx(mean((batch.labels == 0)[background]))
    assert logs["background/ignored"] == pytest.approx(mean((batch.labels == 255)[background]))
    shares = [value for name, value in logs.items() if name.startswith("background/")]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0
    assert logs["patch/weight"] == pytest.approx(mean(method.patch_weights(teacher, batch)))
    tokens = student.class_tokens
    cosines = [[F.cosine_similarity(tokens[new], other, dim=0).item() for other in tokens] for new in (3, 4)]
    assert logs["cosine/background"] == pytest.approx((cosines[0][0] + cosines[1][0]) / 2, abs=1e-6)
    nearest = (max(cosines[0][1:3]) + max(cosines[1][1:3])) / 2  # to old classes, not to the other new one
    assert logs["cosine/nearest old"] == pytest.approx(nearest, abs=1e-6)
    assert not any(value.requires_grad for value in batch.logs.values())


def test_logs_of_fewer_parts():
    method = MBS(**MBS.presets["no-features"])
    student, teacher, batch = step(method)
    method.losses(student, teacher, batch)
    assert list(batch.logs) == [name for name in LOGS if name != "patch/weight"]
    # without a pixel of background there are no shares
    batch.given = batch.labels = torch.full_like(batch.given, OLD)
    method.losses(student, teacher, batch)
    assert all(batch.logs[name].isnan() for name in LOGS[:3]) and batch.logs["cosine/background"].isfinite()


def test_after_transfer_the_new_classes_are_the_background():
    method, student = MBS(), network("mask_transformer", OLD)
    teacher = copy.deepcopy(student).eval()
    method.initialise(student, NEW)
    batch = make_batch(size=(32, 32))
    with torch.no_grad():
        old = teacher(batch.images)
        method.losses(student(batch.images), old, batch)
    assert batch.logs["cosine/background"].item() == pytest.approx(1, abs=1e-6)
    tokens = student.decoder.class_tokens[0]
    nearest = F.cosine_similarity(tokens[:1], tokens[1:]).max().item()
    assert batch.logs["cosine/nearest old"].item() == pytest.approx(nearest, abs=1e-6)


# --- on a GPU, and in half precision


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["deeplabv3", "mask_transformer"])
def test_a_network_step_does_not_wait_for_a_gpu(decoder):
    method, student = MBS(), network(decoder, OLD, encoder="ciss_tiny")
    teacher = copy.deepcopy(student).eval().requires_grad_(False).cuda()
    method.initialise(student, NEW)
    student, batch = student.cuda().train(), on_gpu(make_batch(size=(32, 32)))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad():
                old = teacher(batch.images)
            new = student(batch.images)
        with torch.no_grad():
            batch.labels = method.labels(batch, old)
        sum(method.losses(new, old, batch).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs(dtype):
    """As under autocast: features in half precision, labels and losses as of the same numbers in float32."""
    student, teacher, batch = step(MBS())
    narrow = [copy.copy(part) for part in (student, teacher)]
    wide = [copy.copy(part) for part in (student, teacher)]
    for half, single in zip(narrow, wide, strict=True):
        for name in ("logits", "features", "class_features"):
            setattr(half, name, getattr(half, name).detach().to(dtype))
            setattr(single, name, getattr(half, name).float())
        half._upsampled, single._upsampled = {}, {}
    assert MBS().labels(batch, narrow[1]).equal(MBS().labels(batch, wide[1]))
    found, expected = MBS().losses(*narrow, batch), MBS().losses(*wide, batch)
    for name in TERMS:
        assert found[name].dtype == torch.float32
        close(found[name], expected[name])


# --- whole runs


@pytest.fixture
def steps(project):
    project.document["methods"] |= {"mbs": {"threshold": 0.3}, "mbs-off": MBS.presets["off"]}
    for name, last in (("mbs", 2), ("mbs-off", 1)):
        after = "base"
        for number in range(1, last + 1):
            run = {"benchmark": "tiny", "method": name, "seed": 0, "after": after, "step": number}
            project.document["chain"][after := f"{name}-{number}"] = run
    return project


@pytest.mark.parametrize("decoder", ["deeplabv3", "mask_transformer", "test_vit"])
def test_runs_leave_traces_and_judged_labels(steps, decoder):
    choose(steps, decoder)
    check(steps.config)
    for name in ("base", "mbs-1", "mbs-2", "mbs-off-1"):
        loop.train(run := steps.run(name))
        result = runs_results.read(run)
        assert all(math.isfinite(row["loss"]) for row in result["log"])
        if name == "base":
            assert list(result["trace"]) == ["loss/cross_entropy"] and result["pseudo_labels"] == {}
            continue
        terms = without("orthogonality") if name == "mbs-off-1" else TERMS
        gradients = [f"gradient/{group}" for group in ("background", *(f"step{s}" for s in range(run.step + 1)))]
        assert list(result["trace"]) == [*(f"loss/{term}" for term in terms), *LOGS, *gradients]
        trace = {column: values.astype(float) for column, values in result["trace"].items()}
        shares = sum(trace[name] for name in LOGS[:3])
        assert np.allclose(shares[~np.isnan(shares)], 1)
        assert ((trace["patch/weight"] >= 0) & (trace["patch/weight"] <= 1)).all()
        assert trace["cosine/background"][0] == pytest.approx(1, abs=1e-4), "the first batch is before the first update"
        assert trace["cosine/background"][-1] < 1
        assert result["images"] == len(run.images(run.index()))
        judged = result["pseudo_labels"]
        assert judged.keys() == {"method", "argmax"}
        for scores in judged.values():
            assert scores.keys() == {"precision", "recall", "relabelled", "ignored"}
            assert all(value is None or 0 <= value <= 1 for value in scores.values())
        counts = result["labels"]["method"]
        assert counts.sum() == result["labels"]["argmax"].sum() > 0
        assert judged["method"]["relabelled"] == pytest.approx(counts[:, 1:-1].sum() / counts.sum())
        assert judged["method"]["ignored"] == pytest.approx(counts[:, -1].sum() / counts.sum())
        assert judged["argmax"]["ignored"] == 0
        if name == "mbs-off-1":
            assert judged["method"]["ignored"] == 0
    last = steps.run("mbs-2")
    assert runs_results.read(last)["confusion"].shape == (9, 9)
    check_explanation(last, decoder == "test_vit")


def check_explanation(run, patches):
    images = images_with_most_classes(run, 3)
    found, width = explain(run, images), run.settings.model.width
    assert found.tokens.shape == (9, width) and found.tokens.dtype == np.float32
    student = run.build_network()
    store_weights.restore(student, run.folder / "weights.safetensors")
    expected = student.eval()(torch.zeros(1, 3, 32, 32)).class_tokens.detach().numpy()
    assert np.array_equal(found.tokens, expected)
    assert list(found.maps) == ["an old class, by teacher", "patch weight"]
    old, weights = found.maps.values()
    for number, given, labels, share, weight in zip(images, found.given, found.labels, old, weights, strict=True):
        size = tuple(run.index().sizes["train"][number])
        assert given.shape == labels.shape == share.shape == size
        stride = 16 if patches else 4
        assert weight.shape == tuple(-(-side // stride) for side in size)
        for values in (share, weight):
            assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1
        background = given == 0
        assert (labels[~background] == given[~background]).all()
        assert (labels[background & (share < 0.5)] != 255).all(), "in doubt only where it may be an object"
        # a label is taken where the teacher is confident of it, and so where the background is not likely
        assert (share[background & (labels != 0) & (labels != 255)] >= 0.3 - 1e-6).all()
        first = labels[::stride, ::stride]
        assert (weight[(first >= 7) | (first == 255)] == 0).all() and (weight[(first > 0) & (first < 7)] == 1).all()
    assert any((labels == 255).any() for labels in found.labels)


def test_a_shuffled_class_order_trains(steps):
    """Positions count, not raw ids: what breaks the published code."""
    steps.set("benchmarks.tiny.order", [7, 3, 8, 1, 6, 2, 5, 4])
    (index_folder(steps.folder, "tiny") / "index.json").unlink()
    steps.prepare()
    choose(steps, "mask_transformer")
    for name in ("base", "mbs-1", "mbs-2"):
        loop.train(run := steps.run(name))
    assert run.classes.groups == [[7, 3, 8, 1], [6, 2], [5, 4]]
    result = read(run)
    assert result["classes"].names[1:5] == [data_set("shapes").classes[c] for c in (7, 3, 8, 1)]
    assert all(np.isfinite(result["trace"][f"loss/{term}"]).all() for term in TERMS)
    # every class of the step is named by the labels that the loader gives
    truth = evaluation_loader(run.settings, run.index(), "train", run.images(run.index()), run.label_table(True))
    seen = torch.cat([labels.flatten() for _, labels, _ in truth]).unique().tolist()
    assert {7, 8} <= set(seen) <= {0, 7, 8, 255}


def test_the_first_update_is_by_the_five_terms(steps, monkeypatch):
    """The engine's batches, through the method, give what the functions give: labels, logits and tokens belong
    together."""
    loop.train(choose(steps, "mask_transformer").run("base"))
    losses, checked = MBS.losses, []

    def watched(self, student, teacher, batch):
        found = losses(self, student, teacher, batch)
        size = batch.size
        labels = selective_pseudo_labels(batch.given, teacher.upsample(size), threshold=0.3)
        assert batch.labels.equal(labels) and batch.old_channels == 5 and batch.new_classes.tolist() == [5, 6]
        close(found["cross_entropy"], F.cross_entropy(student.upsample(size), labels, ignore_index=255))
        guided = label_guided_distillation(student.upsample(size), teacher.upsample(size), batch.given)
        close(found["distillation"], 25 * guided)
        close(found["orthogonality"], 2 / 7 * orthogonality(student.class_tokens, batch.new_classes))
        checked.append(list(found))
        return found

    monkeypatch.setattr(MBS, "losses", watched)
    loop.train(steps.run("mbs-1"))
    assert checked and all(terms == TERMS for terms in checked)


# --- figures


@pytest.fixture
def ax():
    style()
    _, ax = plt.subplots()
    yield ax
    plt.close("all")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("tokens", "new", "expected"),  # angles, None on the diagonal
    [
        ([[1, 0], [0, 2]], 1, [[90, None]]),
        ([[1, 0], [1, 0]], 1, [[0, None]]),
        ([[1, 0], [-3, 0], [1, 1]], 1, [[45, 135, None]]),
        ([[2, 0], [0, 1], [5, 5]], 2, [[90, None, 45], [45, 45, None]]),
        ([[0, 0], [0, 1]], 1, [[90, None]]),  # of a token without a direction
        ([[1, 0], [0, 0]], 1, [[90, None]]),
        ([[1, 1], [1e-30, 1e-30]], 1, [[None, None]]),
        ([[1, 0]], 1, [[None]]),
    ],
)
def test_token_angles(ax, tokens, new, expected):
    names = [f"class {k}" for k in range(len(tokens))]
    token_angles(ax, np.array(tokens, np.float32), names, new)
    ax.figure.canvas.draw()
    drawn = ax.collections[0].get_array()
    assert drawn.shape == (new, len(tokens))
    for row, (values, wanted) in enumerate(zip(drawn, expected, strict=True)):
        assert np.ma.getmaskarray(values)[len(tokens) - new + row], "nothing is said of a class and itself"
        for column, value in enumerate(wanted):
            if value is not None:
                assert values[column] == pytest.approx(value, abs=0.1)
    assert [label.get_text() for label in ax.get_xticklabels()] == names
    assert [label.get_text() for label in ax.get_yticklabels()] == names[-new:]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sign", [1, -1])
def test_angles_of_classes_that_start_alike(ax, sign):
    """After the transfer: their cosine may come out a little above 1."""
    background = np.random.RandomState(0).randn(40, 8).astype(np.float32)
    unit = background / np.linalg.norm(background, axis=1, keepdims=True)
    assert ((unit[:, None] @ unit[:, :, None]) > 1).any(), "else this tests nothing"
    tokens = np.concatenate([background, sign * background])
    figures_training.token_angles(ax, tokens, [str(k) for k in range(80)], 40)
    angles = ax.collections[0].get_array()
    assert np.isfinite(angles).all() and np.allclose(np.diagonal(angles), 0 if sign == 1 else 180, atol=0.1)


@pytest.mark.filterwarnings("error")
def test_trace_panels_of_mbs(ax):
    trace = {name: np.array([0.2, np.nan, 0.4]) for name in LOGS} | {"loss/cross_entropy": np.ones(3)}
    figure = trace_panels(trace, window=1)
    figure.canvas.draw()
    titles = [panel.get_ylabel() for panel in figure.axes]
    assert titles == ["share of the background", "weight of patches", "cosine of new tokens"]
    assert [len(panel.lines) for panel in figure.axes] == [3, 1, 2]


@pytest.mark.filterwarnings("error")
def test_negative_cosines_are_seen(ax):
    for values in ([-0.5, -0.1, 0.3], [-0.5, -0.2, -0.1]):
        figure = figures_training.trace_panels({"cosine/background": np.array(values)}, window=1)
        low, high = figure.axes[0].get_ylim()
        assert low <= min(values) and high >= max(values)


# --- presets: what the paper trains with


def check_model(model):
    assert (model.encoder, model.pretrained, model.weights) == ("vit_base_patch16_384", True, None)
    assert (model.image_size, model.output_stride, model.decoder) == (512, 16, "mask_transformer")
    assert (model.width, model.layers, model.heads, model.drop_path) == (768, 2, 12, 0.1)


def check_schedule(train):
    assert (train.crop, train.resize, train.augmentation, train.scale) == (512, 512, "scaled_crop", (0.5, 2.0))
    assert (train.schedule, train.momentum, train.weight_decay) == ("constant", 0.9, 1e-5)
    assert (train.flip, train.transpose, train.encoder_lr, train.accumulate) == (True, False, 1.0, 1)
    assert train.base.norm == train.increment.norm == "batch"


def test_the_plan_has_the_papers_numbers(planned):
    assert "\nparams.yaml: voc-mbs; " in planned("voc", "15-1", "--preset", "mbs")
    settings = planned.config
    (benchmark,) = settings.benchmarks.values()
    assert (benchmark.dataset, benchmark.protocol, benchmark.setting) == ("voc", "15-1", "overlapped")
    assert (benchmark.holdout, benchmark.limit, benchmark.order) == (0, 0, None)
    check_model(benchmark.model)
    check_schedule(train := benchmark.train)
    assert (train.base.epochs, train.base.lr) == (train.increment.epochs, 10 * train.increment.lr) == (32, 1e-3)
    assert train.batch == 16 and benchmark.evaluation.size == "crop"
    assert METHODS["mbs"](**settings.methods["mbs"]) == MBS(), "25, all coefficients at their defaults"
    assert settings.methods["mbs"]["distillation"] == 25
    path = settings.path("voc-mbs-s0-mbs")
    assert path == ["voc-mbs-s0", *(f"voc-mbs-s0-mbs-{number}" for number in range(1, 6))]
    assert "# Pascal VOC 2012 as MBS trains it" in planned.text and "arXiv 2407.11859" in planned.text
    runs_check.check(settings)
    first = planned.text
    planned("voc", "--preset", "mbs")
    assert planned.text == first, "15-1 is the preset's own protocol"
    planned("voc", "--preset", "voc-mbs")
    assert planned.text == first


@pytest.mark.parametrize(("factor", "resize"), [(1.0, 32), (0.5, 32), (0.5, None), (1.0, None)])
def test_the_shorter_side_comes_first_then_the_scale(factor, resize):
    phase = config.Phase(epochs=1, lr=0.1)
    options = {"crop": 32, "batch": 1, "augmentation": "scaled_crop", "scale": (factor, factor), "flip": False}
    train = config.Train(base=phase, increment=phase, resize=resize, **options)
    rows = torch.arange(64, dtype=torch.uint8)[:, None].expand(64, 128)  # each row has its number
    view = training_view(64, 128, torch.Generator().manual_seed(0), train)
    mask = view.mask(rows)
    assert view.image(torch.stack([rows] * 3, dim=-1), mask[0, :3]).shape == (32, 32, 3) and mask.shape == (32, 32)
    seen, height = mask[:, 16][mask[:, 16] != 255], round((resize or 64) * factor)
    assert len(seen) == min(height, 32)
    assert (seen.diff() - 64 // height).abs().max() <= 1, "rows lie as far apart as the image was made smaller"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["15-5"], "voc-mbs-15-5"),
        (["15-1", "--setting", "disjoint"], "voc-mbs-disjoint"),
        (["10-1", "--setting", "disjoint"], "voc-mbs-10-1-disjoint"),
        (["15-5", "--name", "mine"], "mine"),
    ],
)
def test_other_protocols_have_names_of_their_own(planned, arguments, name):
    planned("voc", *arguments, "--preset", "mbs")
    (found,) = planned.config.benchmarks
    assert found == name and list(planned.config.bases) == [f"{name}-s0"]
    check_model(planned.config.benchmarks[name].model)
    assert planned.config.benchmarks[name].protocol == arguments[0]


def test_a_preset_stands_beside_the_data_sets_own(planned):
    planned("voc", "15-1", "--methods", "mib")
    planned("voc", "15-1", "--preset", "mbs", "--methods", "mbs", "mbs-off", "--add")
    settings = planned.config
    assert list(settings.benchmarks) == ["voc", "voc-mbs"]
    assert settings.benchmarks["voc"].model.decoder == "deeplabv3"
    assert METHODS["mbs"](**settings.methods["mbs-off"]) == MBS(**MBS.presets["off"])
    assert settings.chain["voc-mbs-s0-mbs-off-1"].code == "mbs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--preset", "mbs"], "--preset: no preset 'mbs' for shapes. "),
        (["voc8", "4-2", "--preset", "mbs"], "--preset: no preset 'mbs' for voc8. "),
        (["voc", "--preset", "msb"], "--preset: no preset 'msb' for voc. Did you mean 'mbs'?"),
        (["voc", "--preset", "mbs", "--methods", "mbs-of"], "--methods: mbs has no preset 'of'. Did you mean 'off'?"),
        (["voc", "--preset", "mbs", "--set", "model.decode=x"], "plan: benchmarks.voc-mbs.model.decode: unknown key."),
    ],
)
def test_what_cannot_be_planned_is_named(planned, arguments, message):
    planned("shapes", "--methods", "finetune")
    found = planned.fails(*arguments)
    assert found.startswith(message), found


def test_ade20k():
    """Its data set is not read yet; its numbers are there."""
    document = presets.load("ade20k-mbs")
    methods, runs = document.pop("methods"), document.pop("runs")
    benchmark = config.validate(config.Benchmark, document, "ade20k-mbs.yaml", "")
    assert (benchmark.dataset, benchmark.protocol, benchmark.setting) == ("ade20k", "100-50", "overlapped")
    check_model(benchmark.model)
    check_schedule(train := benchmark.train)
    assert (train.base.epochs, train.base.lr, train.batch) == (64, 1e-3, 8)
    assert (train.increment.epochs, train.increment.lr) == (64, 5e-4)
    assert benchmark.holdout == 0 and benchmark.evaluation.size == "crop"
    assert METHODS["mbs"](**methods.pop("mbs")) == MBS(distillation=50.0)
    assert methods == {"gsc_mbs": {"distillation": 50.0}} and runs == {"methods": ["mbs"], "joint": False}
    assert classes_of(benchmark).sizes == [100, 50]
