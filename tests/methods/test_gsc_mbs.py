"""GSC and MBS in one method, the frozen control, and what they share: each part by hand, whole runs at tiny size."""

import copy
import math
import shutil

import pytest
import torch

from ciss import distributed
from ciss.data.loaders import evaluation_loader
from ciss.losses import sharp_loss, soft_relation_loss
from ciss.methods import GSCMBS, MBS, METHODS, Batch, Frozen, MiB
from ciss.models import Output
from ciss.runs import results as runs_results
from ciss.runs.results import read
from ciss.study import plan, presets
from ciss.training import loop
from tests.helpers.batches import NEW, OLD, make_batch, output, prepared, step
from tests.helpers.batches import decoder_network as network
from tests.helpers.project import choose_decoder as choose
from tests.helpers.training import left_by, stopped, weights

ALL = GSCMBS.presets["relations"]  # every part
OFF = {"compensation": False, "doubtful": "ignored", "soft": 0.0, "sharp": 0.0}
DECODERS = ["deeplabv3", "mask_transformer"]


def same(one, other):
    assert list(one) == list(other)
    assert all(value.equal(other[name]) or (value.isnan() & other[name].isnan()).all() for name, value in one.items())


def line(probabilities, features, labels, classes=(0, 0, 0, 1)):
    """A row of pixels: the output of a network that gives these probabilities and features, and its batch."""
    logits = torch.tensor(probabilities).log().T[None, :, None]
    maps, known = torch.tensor(features).reshape(1, 1, 1, -1), classes.count(0)
    made = Output(logits, maps, [maps], torch.zeros(1, logits.shape[1], 1), torch.eye(logits.shape[1]))
    given = torch.tensor(labels)[None, None]
    steps, new = torch.tensor(classes), torch.arange(known, len(classes))
    return made, Batch(torch.zeros(1, 3, 1, len(labels)), given, given.clone(), ["a"], 1, known, steps, new)


# --- without its parts it is MBS


@pytest.mark.parametrize("changes", [{}, {"threshold": 0.2}, *MBS.presets.values()], ids=str)
@pytest.mark.parametrize("decoder", DECODERS)
def test_without_its_parts_it_is_mbs_to_the_bit(decoder, changes):
    found = []
    for method in (MBS(**changes), GSCMBS(**OFF, **changes)):
        student = network(decoder, OLD)
        teacher, batch = copy.deepcopy(student).eval(), make_batch(size=(24, 34))
        method.initialise(student, NEW)
        with torch.no_grad():
            method.before_step(iter([batch]), teacher, iter([batch]))
            batch.labels = method.labels(batch, old := teacher(batch.images))
        losses = method.losses(student(batch.images), old, batch)
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        found.append((losses, {"labels": batch.labels}, batch.logs, gradients))
    [same(mine, theirs) for mine, theirs in zip(*found, strict=True)]


@pytest.mark.parametrize("part", [None, *OFF])
def test_each_part_changes_something(part):
    """Each of the four, put back alone, is no longer MBS."""
    found = []
    for method in (GSCMBS(**OFF | {name: getattr(GSCMBS(**ALL), name) for name in OFF if name == part}), MBS()):
        student, teacher, batch = prepared(method)
        found.append((batch.labels, sum(method.losses(student, teacher, batch).values())))
    (labels, loss), (kept, theirs) = found
    assert labels.equal(kept) == (part != "doubtful") and loss.equal(theirs) == (part is None)


# --- prototypes for doubtful pixels

# Prototypes, log 4 apart: background, class 2, class 1. Pixels: teacher's probabilities, feature, given label, by MBS.
FAR = math.log(4)
PIXELS = [
    ((0.10, 0.80, 0.10), -FAR, 0, 1),  # confident, beside the background's prototype
    ((0.60, 0.30, 0.10), FAR, 0, 0),  # background to the teacher, beside that of class 1
    ((0.20, 0.40, 0.40), 0.0, 3, 3),  # given as new
    ((0.20, 0.40, 0.40), 0.0, 255, 255),  # given as ignored
    ((0.20, 0.40, 0.40), 0.0, 0, 255),  # doubtful: .2/4, .4/4, .4: class 2 by .4/.55 = .73
    ((0.30, 0.40, 0.30), math.log(2), 0, 255),  # .3/8, .4/2, .3/2: class 1 by .2/.3875 = .52
    ((0.40, 0.30, 0.30), -FAR, 0, 255),  # .4, .3/16, .3/4: background by .4/.49375 = .81
]


@pytest.mark.parametrize(
    ("agreement", "scale", "doubtful"),
    [
        (0.5, 1, [2, 1, 0]),
        (0.54, 1, [2, 255, 0]),
        (0.54, 2, [2, 1, 0]),  # .3/64, .4/4, .3/4: class 1 by .1/.1797 = .56
        (0.75, 1, [255, 255, 0]),
    ],
)
def test_prototypes_decide_what_mbs_would_ignore(agreement, scale, doubtful):
    probabilities, features, given, by_mbs = zip(*PIXELS, strict=True)
    teacher, batch = line(probabilities, features, given)
    assert MBS().labels(batch, teacher)[0, 0].tolist() == list(by_mbs)
    method = GSCMBS(agreement=agreement, distance_scale=scale)
    method.means, method.counts = torch.tensor([[-FAR], [FAR], [0.0]]), torch.ones(3, dtype=torch.int64)
    assert method.labels(batch, teacher)[0, 0].tolist() == [1, 0, 3, 255, *doubtful]
    assert batch.logs["doubtful/decided"].item() == pytest.approx(1 - doubtful.count(255) / 3)


def test_prototypes_are_means_of_sure_pixels(monkeypatch):
    probabilities, features, given, _ = zip(*PIXELS, strict=True)
    first, other = line(probabilities, features, given), line(probabilities[:2], (3.0, 5.0), (0, 0))
    outputs = {id(batch.images): made for made, batch in (first, other)}
    method = GSCMBS()
    method.before_step((batch for _, batch in (first, other)), lambda images: outputs[id(images)], iter(()))
    # sure are one pixel of class 1 and one of the background in each batch, none of class 2
    torch.testing.assert_close(method.means, torch.tensor([[(FAR + 5) / 2], [(-FAR + 3) / 2], [0.0]]))
    assert method.counts.tolist() == [2, 2, 0]
    assert set(method.state_dict()) == {"means", "counts"}, "what a stopped training goes on with"
    monkeypatch.setattr(distributed, "all_sum", lambda values: values.add_(1))  # another process saw a feature of 1
    method.before_step((batch for _, batch in (first, other)), lambda images: outputs[id(images)], iter(()))
    torch.testing.assert_close(method.means, torch.tensor([[(FAR + 6) / 3], [(-FAR + 4) / 3], [1.0]]))


def test_without_any_prototype_the_teacher_decides():
    teacher, batch = line([(0.1, 0.6, 0.3), (0.2, 0.4, 0.4)], [1.0, 2.0], [0, 0])
    method = GSCMBS()
    method.before_step(iter([batch]), lambda images: teacher, iter(()))
    assert method.counts.tolist() == [0, 0, 0]
    assert method.labels(batch, teacher)[0, 0].tolist() == [1, 255]


def test_prototypes_of_a_filled_image():
    """50 x 70 pixels are 4 x 5 patches of 16, the last ones reaching over the border."""
    teacher, batch = output(OLD, seed=5, grid=(4, 5)), make_batch(size=(50, 70))
    teacher.padding = ((50, 70), (64, 80))
    batch.given[:] = 255
    batch.given[:, 32, 48] = 0  # the first pixel of row 2 and column 3, and no other
    teacher.logits = 9 * torch.eye(OLD)[1].reshape(1, -1, 1, 1).repeat(2, 1, 4, 5)
    method = GSCMBS()
    method.before_step(iter([batch]), lambda images: teacher, iter(()))
    torch.testing.assert_close(method.means[1], teacher.features[:, :, 2, 3].mean(dim=0))


# --- compensation


@pytest.mark.parametrize(
    ("clamp", "weights"), [(None, [5 / 3, 1 / 3, 1, 0]), ((0.5, 1.5), [1.5, 0.5, 1, 0]), ((2.0, 3.0), [2, 2, 1, 0])]
)
def test_the_compensated_cross_entropy(clamp, weights):
    """|G| is .5 and .1 on old pixels, .3 on average; a new one weighs 1, an ignored one nothing."""
    chances = [(0.2, 0.5, 0.3), (0.9, 0.05, 0.05), (0.1, 0.1, 0.8), (0.3, 0.3, 0.4)]
    student, batch = line(chances, [0.0] * 4, [0, 0, 2, 255], classes=(0, 0, 1))
    teacher, _ = line([chance[:2] for chance in chances], [0.0] * 4, [0] * 4)
    batch.labels = torch.tensor([[[1, 0, 2, 255]]])
    method = GSCMBS(**ALL, clamp=clamp, new_weight="one", background_weight="mean", doubtful="ignored")
    losses = method.losses(student, teacher, batch)
    own = [-math.log(chance) for chance in (0.5, 0.9, 0.8)]
    assert losses["compensated"].item() == pytest.approx(sum(w * e for w, e in zip(weights, own, strict=False)) / 3)
    assert "cross_entropy" not in losses
    assert batch.weights[0, 0].tolist() == pytest.approx(weights, abs=1e-6)
    assert batch.logs["weight/largest"].item() == pytest.approx(max(weights[:2]))
    assert method.maps(student, teacher, batch)["weight"].equal(batch.weights)
    batch.log_gradients(student)  # of every fourth pixel
    assert batch.logs["gradient/step0"].item() == pytest.approx(0.5)
    assert batch.logs["compensated/step0"].item() == pytest.approx(0.5 * weights[0])


def test_objects_are_weighed_and_the_background_is_not():
    """|G| is .2 and .4 on new pixels, .3 on average; .3 and .9 on an old class's, .6; the background is apart."""
    chances = [(0.1, 0.1, 0.8), (0.2, 0.2, 0.6), (0.2, 0.7, 0.1), (0.8, 0.1, 0.1), (0.3, 0.5, 0.2)]
    student, batch = line(chances, [0.0] * 5, [2, 2, 1, 1, 0], classes=(0, 0, 1))
    found = GSCMBS().pixel_weights(student.logits, batch)
    assert found[0, 0].tolist() == pytest.approx([2 / 3, 4 / 3, 0.5, 1.5, 1])
    batch.log_weights(found, background=False)
    assert batch.weights.equal(found)
    assert batch.labels[0, 0].tolist() == [2, 2, 1, 1, 0] and batch.logs["weight/largest"].item() == pytest.approx(1.5)
    with_background = GSCMBS(background_weight="mean", clamp=None).pixel_weights(
        student.logits, batch
    )  # .3, .9, .7: .6333
    assert with_background[0, 0].tolist() == pytest.approx([2 / 3, 4 / 3, 9 / 19, 27 / 19, 21 / 19])
    halved = GSCMBS(exponent=0.5).pixel_weights(student.logits, batch)[0, 0]
    assert halved[0] == pytest.approx(2 * 0.2**0.5 / (0.2**0.5 + 0.4**0.5))


# --- guided relations


def by_hand(target, guided, chances, new):
    """The loss of one pixel: teacher's logits 0 and log 3, the student's log P."""
    relations = {"softmax": [0.25, 0.75]}.get(target, [0.5, 0.75])
    soft = [0.0 if guided and new else relations[0], relations[1], float(new)]
    if target == "binary":
        logs = [(math.log(p / (1 + p)), math.log(1 / (1 + p))) for p in chances]  # of the sigmoid of log p
        return -sum(y * yes + (1 - y) * no for y, (yes, no) in zip(soft, logs, strict=True)) / 3
    soft = [math.exp(y) for y in soft] if target == "sigmoid_softmax" else soft
    return -sum(y / sum(soft) * math.log(p) for y, p in zip(soft, chances, strict=True)) / 3


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("target", ["sigmoid_softmax", "softmax", "binary"])
def test_guided_relations(target, guided):
    chances = (0.2, 0.3, 0.5)
    logits = torch.tensor(chances).log().reshape(1, 3, 1, 1).repeat(1, 1, 1, 4).requires_grad_()
    teacher = torch.tensor([0, math.log(3)]).reshape(1, 2, 1, 1).repeat(1, 1, 1, 4).requires_grad_()
    labels = torch.tensor([[[2, 0, 255, 2]]])
    loss = soft_relation_loss(logits, teacher, labels, target=target, guided=guided)
    expected = [by_hand(target, guided, chances, new) for new in (True, False, False, True)]
    assert loss.item() == pytest.approx(sum(expected) / 4)
    loss.backward()
    assert teacher.grad is None and (logits.grad != 0).any(dim=1).all()
    old = torch.tensor([[[1, 0, 255, 1]]])
    for z in (logits, logits[:, :2]):  # no label is new; no class is
        one, other = (soft_relation_loss(z, teacher, old, target=target, guided=either) for either in (True, False))
        assert one.equal(other) and one.isfinite()


@pytest.mark.parametrize("guided", [True, False])
def test_relations_of_the_given_labels(guided):
    student, teacher, batch = step(method := GSCMBS(doubtful="ignored", soft=2.0, sharp=3.0, guided=guided))
    losses, z, z_old = method.losses(student, teacher, batch), student.upsample((8, 12)), teacher.upsample((8, 12))
    either, other = (soft_relation_loss(z, z_old, batch.given, guided=how).item() for how in (guided, not guided))
    assert losses["soft"].item() == pytest.approx(2 * either) and either != pytest.approx(other)
    assert losses["sharp"].item() == pytest.approx(3 * sharp_loss(z).item())


# --- the control


@pytest.mark.parametrize("decoder", DECODERS)
def test_rows(decoder):
    made = network(decoder, OLD, NEW)
    kinds = ("classifier",) if decoder == "deeplabv3" else ("class_tokens", "scales", "shifts")
    rows = {n: p for n, p in made.decoder.named_parameters() if n.startswith(kinds)}
    assert {id(p) for p in made.decoder.rows()} == {id(p) for p in rows.values()}
    fresh = [p for n, p in rows.items() if ".1" in n]
    assert {id(p) for p in made.decoder.rows(new=True)} == {id(p) for p in fresh}
    assert all(len(p) == NEW for p in fresh) and len(rows) == 2 * len(fresh) == (4 if decoder == "deeplabv3" else 6)


def test_the_unbiased_control_has_mibs_losses():
    student, teacher, batch = output(OLD + NEW), output(OLD, seed=5), make_batch()
    unbiased = Frozen(cross_entropy="unbiased", distillation=10.0)
    for one, other in ((unbiased, MiB()), (Frozen(), METHODS["finetune"]())):
        same(one.losses(student, teacher, batch), other.losses(student, teacher, batch))


def test_the_unbiased_control_learns_in_a_new_domain():
    student, teacher, batch = output(5), output(5, seed=5), make_batch()
    batch.old_channels, batch.class_steps, batch.new_classes = 5, torch.zeros(5, dtype=torch.int64), torch.arange(0)
    losses = Frozen(cross_entropy="unbiased", distillation=10.0).losses(student, teacher, batch)
    same(losses, MiB().losses(student, teacher, batch))


# --- whole runs


def add(project, name, **coefficients):
    """An increment by a method (or variant) after the base step, and its run."""
    project.document["methods"][name] = coefficients
    project.document["chain"][f"{name}-1"] = {**project.document["chain"]["mib-1"], "method": name}
    return project.run(f"{name}-1")


@pytest.mark.parametrize("decoder", DECODERS)
def test_only_rows_learn(project, decoder):
    project.set("train.increment.norm", "frozen")
    choose(project, decoder)
    loop.train(project.run())
    for rows in ("all", "new"):
        run = add(project, f"frozen-{rows}", rows=rows, initialisation="default")
        if rows == "all":
            with stopped(Frozen, 2):
                loop.train(run)
        loop.train(run)
        before, after, grown = weights(project.run()), weights(run), run.build_network()
        learns = {name for name, p in grown.named_parameters() if any(p is row for row in grown.decoder.rows())}
        new = set(after) - set(before)
        assert new and new <= learns
        moved = {name for name in before if not after[name].equal(before[name])}
        assert moved == (learns - new if rows == "all" else set())
        torch.manual_seed(loop.stable_seed("weights", run.seed, run.last_known_step))
        Frozen(initialisation="default").initialise(grown := run.build_network(0), 2)
        assert not any(after[name].equal(grown.state_dict()[name]) for name in new), "new rows learn"


@pytest.mark.parametrize("decoder", DECODERS)
def test_runs_of_both_in_one(project, decoder):
    choose(project, decoder)
    loop.train(project.run())
    loop.train(plain := add(project, "mbs", threshold=0.3))
    loop.train(off := add(project, "gsc_mbs-off", threshold=0.3, **OFF))
    same(weights(plain), weights(off))
    run = add(project, "gsc_mbs", threshold=0.3, **ALL)
    with stopped(GSCMBS, 2):  # in its second epoch: prototypes are read back
        loop.train(run)
    loop.train(run)
    trace = read(run)["trace"]
    assert {"loss/compensated", "loss/soft", "loss/sharp", "doubtful/decided", "weight/median"} <= set(trace)
    assert {"compensated/step0", "compensated/step1"} <= set(trace), "weights reach the log of gradients"
    assert runs_results.read(run)["labels"]["method"].sum() > 0
    resumed = left_by(run)
    shutil.rmtree(run.folder)
    loop.train(run)
    assert left_by(run) == resumed


def test_the_key_of_a_run_is_of_all_its_code(project):
    places = set(add(project, "gsc_mbs").training_code().locations().values())
    assert {"methods.gsc_mbs.GSCMBS", "methods.mbs.MBS", "methods.base.Method"} <= places


def test_seldom_scored_and_stopped(make_project):
    found = []
    for place, every, stops in (("often", 1, False), ("whole", 3, False), ("stopped", 3, True)):
        project = make_project(place)
        project.set("train.curve_every", every)
        project.set("train.base.epochs", 4)
        if stops:
            with stopped(METHODS["finetune"], 15):  # of 16 updates: in the last epoch
                loop.train(project.run())
        loop.train(run := project.run())
        found.append(left_by(run) | {"tensors": {name: p.tolist() for name, p in weights(run).items()}})
    often, whole, resumed = found
    assert resumed == whole and whole["tensors"] == often["tensors"]
    assert whole["curve_epochs"] == [0, 0.5, 1, 3, 4]
    assert whole["curve_confusions"] == [often["curve_confusions"][k] for k in (0, 1, 2, 4, 5)]


def test_rules_are_judged_in_one_pass_as_alone(project):
    run = add(choose(project, "mask_transformer"), "mbs")
    index, teacher = run.index(), run.build_network(0).eval()
    maker = loop.BatchMaker(run, index, torch.device("cpu"))
    loader = evaluation_loader(run.settings, index, "train", index.holdout, run.label_table(training=False))
    rules = {"some": MBS(threshold=0.4), "all": MBS(threshold=0.0), "none": MBS(labelling="none")}
    together = loop.judge_labels(run, rules, teacher, map(maker.as_given, loader))
    assert list(together) == [*rules, "argmax"] and (together["none"][:, 1:] == 0).all()
    for name, rule in rules.items():
        alone = loop.judge_labels(run, {"method": rule}, teacher, map(maker.as_given, loader))
        assert (alone["method"] == together[name]).all() and (alone["argmax"] == together["argmax"]).all()
    assert len({counts.tobytes() for counts in together.values()}) > 2


# --- what the pipeline and the plan see of them


def test_what_is_planned(planned):
    planned("shapes", "--no-joint")
    usual = ["finetune", "mib", "plop", "gsc", "mbs"]
    assert list(planned.config.ends) == [f"shapes-s0-{method}" for method in usual] and usual == plan.USUAL
    several = ["shapes", "--no-joint", "--fresh", "--methods", "gsc_mbs", "frozen", "gsc_mbs-relations"]
    assert "train.increment.norm: for frozen" in planned.fails(*several)
    planned(*several, "--set", "train.increment.norm=frozen")
    chain = planned.config.chain
    codes = {"gsc_mbs": "gsc_mbs", "frozen": "frozen", "gsc_mbs-relations": "gsc_mbs"}
    assert {run.method: run.code for run in chain.values()} == codes


@pytest.mark.parametrize("preset", presets.presets())
def test_presets_keep_what_is_compared_comparable(preset):
    """gsc_mbs without its parts is the mbs beside it; a preset that tunes them says both."""
    settings = presets.load(preset)
    mbs, both = (plan._coefficients(name, settings) for name in ("mbs", "gsc_mbs"))
    assert both == both | mbs or {"mbs", "gsc_mbs"} <= set(settings["methods"])
