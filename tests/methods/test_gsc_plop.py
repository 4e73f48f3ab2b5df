"""GSC and PLOP as methods: their parts and switches, what they prepare and log, whole runs at tiny size."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ciss import distributed, metrics
from ciss.data.loaders import evaluation_loader
from ciss.inspection.trained import explain, images_with_most_classes
from ciss.labels.entropy import adaptive_factor, entropy_labels
from ciss.labels.relabelling import argmax_labels, relabel_background
from ciss.losses import (
    compensation_weights,
    cross_entropy,
    gradient_magnitude,
    pod_distillation,
    sharp_loss,
    soft_relation_loss,
    sum_by_step,
)
from ciss.methods import GSC, METHODS, PLOP, Finetune, code_of
from ciss.runs import results as runs_results
from ciss.runs import timings
from ciss.training import loop
from ciss.training.evaluation import judge_labels
from tests.helpers.batches import NEW, OLD, SIZE, full, make_batch, network, output, prepared

OFF = {"compensation": False, "soft": 0.0, "sharp": 0.0, "relabelling": "none", "pod": 0.0, "pod_outputs": 0.0}
SWITCHES = [
    {"probability": "sigmoid"},
    {"exponent": "old_share"},
    {"exponent": 0.5, "logarithm": True},
    {"grouping": "cumulative"},
    {"grouping": "together"},
    {"new_weight": "mean"},
    {"clamp": (0.9, 1.1)},
    {"divisor": "all"},
    {"statistics": "global"},
    {"compensation": False},
    {"soft": 0.0},
    {"sharp": 0.0},
    {"soft_target": "softmax"},
    {"soft_target": "binary"},
    {"sharp_where": "background"},
    {"sharp_where": "certain"},
    {"relabelling": "argmax"},
    {"relabelling": "entropy"},
    {"relabelling": "none"},
    {"prototypes": "previous"},
    {"features": "decoder"},
    {"scaling": "unit"},
    {"scaling": "width"},
    {"distance_scale": 0.5},
    {"unseen": "uniform"},
    {"unseen": "zero"},
    {"background_prototype": False},
    {"resolution": "quarter"},
    {"resolution": "grid"},
    {"gate": "two_stage"},
    {"gate": "entropy"},
    {"threshold": 0.6},
    {"pod": 0.0, "pod_outputs": 0.0},
    {"initialisation": "default"},
]
named = pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))


# --- the parts, in their order and with their coefficients


def test_gsc_is_its_parts():
    method = GSC(soft=0.7, sharp=0.2, pod=0.03, pod_outputs=0.004, scales=(1, 2))
    student, teacher, batch = prepared(method)
    losses = method.losses(student, teacher, batch)
    new, old = full(student.logits), full(teacher.logits)
    labels = relabel_background(batch.given, old, teacher.stages[-1], method.means, method.counts)
    assert batch.labels.equal(labels) and not labels.equal(batch.given)
    weights = compensation_weights(new, labels, batch.class_steps)
    pod = pod_distillation(
        [*student.stages, student.features],
        [*teacher.stages, teacher.features],
        student.logits,
        teacher.logits,
        features=0.03,
        outputs=0.004,
        scales=(1, 2),
    )
    expected = {
        "compensated": cross_entropy(new, labels, weights=weights),
        "soft": 0.7 * soft_relation_loss(new, old, labels),
        "sharp": 0.2 * sharp_loss(new),
        "pod": pod,
    }
    assert list(losses) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_plop_is_its_parts():
    for variant in ("paper", "released"):
        method = PLOP(variant=variant, pod=0.03, pod_outputs=0.004)
        student, teacher, batch = prepared(method)
        losses = method.losses(student, teacher, batch)
        new, old = full(student.logits), full(teacher.logits)
        labels = entropy_labels(batch.given, old, method.thresholds, variant=variant, channels=OLD + NEW)
        assert batch.labels.equal(labels)
        # nu_b by hand: kept over all background pixels; the mean is over all pixels, ignored ones too
        expected = 0.0
        per_pixel = torch.nn.functional.cross_entropy(new, labels, ignore_index=255, reduction="none")
        for image in range(2):
            given = batch.given[image] == 0
            kept = (given & (labels[image] != 255)).sum() / given.sum()
            expected += kept * per_pixel[image].sum() / labels.numel()
        torch.testing.assert_close(losses["cross_entropy"], expected)
        assert losses["pod"] > 0 and list(losses) == ["cross_entropy", "pod"]


def test_without_its_parts_gsc_is_fine_tuning():
    student, teacher, batch = prepared(GSC(**OFF))
    losses = GSC(**OFF).losses(student, teacher, batch)
    plain = Finetune().losses(student, teacher, batch)
    assert list(losses) == ["compensated"] and batch.labels.equal(batch.given)
    torch.testing.assert_close(losses["compensated"], plain["cross_entropy"])


def test_without_its_parts_plop_is_fine_tuning_over_all_pixels():
    method = PLOP(pseudo_labels=False, pod=0.0, pod_outputs=0.0)
    student, teacher, batch = prepared(method)
    losses = method.losses(student, teacher, batch)
    valid = (batch.labels != 255).float().mean()
    assert list(losses) == ["cross_entropy"]
    torch.testing.assert_close(losses["cross_entropy"], valid * cross_entropy(full(student.logits), batch.labels))


@named
def test_every_switch_changes_what_it_says(switch):
    """A step runs with every value of every switch, finite, and is another one than the default's: loss or labels."""
    made = {}
    for name, values in {"switched": switch, "default": {}}.items():
        batch = make_batch()
        batch.class_steps, batch.step = torch.tensor([0, 1, 2] + [3] * NEW), 3  # old steps enough that groups differ
        method = GSC(**{"distance_scale": 20.0, **values})
        student, teacher, batch = prepared(method, batch)
        losses = method.losses(student, teacher, batch)
        assert all(value.isfinite() and value.shape == () for value in losses.values())
        sum(losses.values()).backward()
        assert student.logits.grad.isfinite().all() and student.logits.grad.abs().sum() > 0
        made[name] = (*losses.values(), batch.labels)
    if set(switch) & {"statistics", "prototypes", "unseen", "initialisation"}:
        return  # the same here: one process, one batch, every class seen, no new network
    same = len(made["switched"]) == len(made["default"])
    assert not (same and all(a.equal(b) for a, b in zip(*made.values(), strict=True)))


@pytest.mark.parametrize("name", ["plop", "gsc"])
def test_the_start_is_mibs(name):
    starts = []
    for method in (METHODS[name](), METHODS["mib"]()):
        grown = network(OLD)
        method.initialise(grown, NEW)
        starts.append(grown.state_dict())
    assert all(starts[0][key].equal(value) for key, value in starts[1].items())


# --- preparation


def test_prototypes_are_means_over_true_and_teachers_labels():
    """Given labels where there are any but background, else the teacher's argmax; the nearest pixel of each feature."""
    method, batch = GSC(), make_batch()
    batch.given[0, 2, 2] = 1  # an old label, as the sequential setting gives them
    teachers = [output(OLD, seed=s) for s in (5, 6)]
    others = iter(teachers)
    with torch.no_grad():
        method.before_step(iter([batch, batch]), lambda images: next(others), iter([]))
    features = {c: [] for c in range(OLD)}
    for teacher in teachers:
        called = full(teacher.logits).argmax(dim=1)
        for image in range(2):
            for i in range(4):
                for j in range(6):
                    y = int(batch.given[image, i * SIZE[0] // 4, j * SIZE[1] // 6])
                    c = int(called[image, i * SIZE[0] // 4, j * SIZE[1] // 6]) if y == 0 else y
                    if c < OLD:
                        features[c].append(teacher.stages[-1][image, :, i, j].double())
    assert method.counts.tolist() == [len(features[c]) for c in range(OLD)]
    expected = torch.stack([torch.stack(found).mean(dim=0) for found in features.values()])
    torch.testing.assert_close(method.means, expected.float())


@pytest.mark.parametrize(("when", "reads"), [("start", "now"), ("previous", "before")])
def test_prototypes_are_of_the_step_that_is_asked_for(when, reads):
    read = []

    def batches(name):
        read.append(name)
        yield make_batch()

    GSC(prototypes=when).before_step(batches("now"), lambda images: output(OLD), batches("before"))
    assert read == [reads]
    GSC(prototypes=when, relabelling="none").before_step(batches("now"), lambda images: output(OLD), batches("before"))
    PLOP(pseudo_labels=False).before_step(batches("now"), lambda images: output(OLD), batches("before"))
    assert read == [reads], "a method that needs no pass makes none"


def test_gates():
    found = {}
    for gate in ("none", "two_stage", "entropy"):
        _, teacher, batch = prepared(method := GSC(gate=gate, distance_scale=20.0))
        found[gate] = batch.labels
    certain = prepared(PLOP())[2].labels != 255
    background = batch.given == 0
    plain = argmax_labels(batch.given, full(teacher.logits))
    assert not found["none"].equal(plain)
    assert found["two_stage"].equal(torch.where(background & certain, plain, found["none"]))
    assert found["entropy"].equal(torch.where(background & ~certain, 255, found["none"]))
    student = output(OLD + NEW)
    factor, weights = adaptive_factor(batch.given, batch.labels), method.pixel_weights(full(student.logits), batch)
    assert (factor < 1).all(), "PLOP's factor, where pixels are ignored"
    loss = method.losses(student, teacher, batch)["compensated"]
    torch.testing.assert_close(loss, cross_entropy(full(student.logits), batch.labels, weights=factor * weights))


def test_global_statistics_add_the_other_processes(monkeypatch):
    """Another process with as many pixels of three times the gradient: twice the mean, half the weight."""
    student, _, batch = prepared(GSC())
    alone = GSC().pixel_weights(full(student.logits), batch)
    monkeypatch.setattr(distributed, "all_sum", lambda sums: sums * torch.tensor([[4.0], [2.0]]))
    together = GSC(statistics="global").pixel_weights(full(student.logits), batch)
    old = batch.labels < OLD
    torch.testing.assert_close(together[old], alone[old] / 2)
    assert GSC().pixel_weights(full(student.logits), batch).equal(alone), "the default asks nobody"


# --- logs


def test_what_gsc_logs():
    method = GSC()
    student, teacher, batch = prepared(method)
    batch.logs.clear()
    batch.labels = method.labels(batch, teacher)
    method.losses(student, teacher, batch)
    batch.log_gradients(student)
    logits = full(student.logits)
    magnitude = gradient_magnitude(logits, batch.labels)
    weights = compensation_weights(logits, batch.labels, batch.class_steps)
    background, old = batch.given == 0, batch.labels < OLD
    logs = {name: float(value) for name, value in batch.logs.items()}
    seen = torch.zeros_like(old)
    seen[:, ::4, ::4] = True
    new = (batch.labels >= OLD) & (batch.labels < 255)
    for name, group in {"step0": old, "step1": new, "background": batch.labels == 0}.items():
        assert logs[f"gradient/{name}"] == pytest.approx(float(magnitude[seen & group].mean()))
    for name, group in {"step0": old, "step1": new}.items():
        assert logs[f"compensated/{name}"] == pytest.approx(float((weights * magnitude)[seen & group].mean()))
    assert logs["weight/largest"] == pytest.approx(float(weights[old].max()))
    moved = (background & (batch.labels > 0)).sum() / background.sum()
    assert logs["background/relabelled"] == pytest.approx(float(moved)) and moved > 0
    assert logs["background/ignored"] == 0 and logs["unseen_classes"] == 0
    assert logs["distance/largest"] == pytest.approx(float(method.distances(teacher).amax(1).mean()))
    assert logs["weight/q05"] <= logs["weight/median"] <= logs["weight/q95"] <= logs["weight/largest"]


def test_quantiles_are_of_old_pixels():
    batch = make_batch(size=(64, 64))
    batch.labels = torch.full((2, 64, 64), OLD)
    batch.labels[:, :32] = 1
    weights = torch.where(batch.labels == 1, torch.arange(64.0), 1e6)
    batch.log_weights(weights)
    columns = torch.arange(0, 64, 8.0)
    assert batch.logs["weight/median"].item() == pytest.approx(columns.median().item() + 4)
    assert batch.logs["weight/q05"].item() == pytest.approx(torch.quantile(columns.repeat(8), 0.05).item())
    assert batch.logs["weight/largest"].item() == 63


def test_a_group_without_pixels_logs_nan():
    method = GSC()
    student, teacher, batch = prepared(method)
    batch.class_steps = torch.tensor([0] * OLD + [2] * NEW)  # nothing of step 1
    batch.step = 2
    method.losses(student, teacher, batch)
    batch.log_gradients(student)
    assert batch.logs["gradient/step1"].isnan() and batch.logs["gradient/step2"].isfinite()
    sums, counts = sum_by_step(torch.ones(1, 1, 1), torch.tensor([[[255]]]), torch.tensor([0, 1]))
    assert (sums / counts).isnan().all()


# --- whole runs


@pytest.fixture
def steps(project):
    project.document["methods"] |= {
        "gsc": {"pod": 0.001, "pod_outputs": 0.00005},
        "gsc-early": {"prototypes": "previous", "gate": "two_stage"},
        "plop": {},
    }
    for name in ("gsc", "gsc-early", "plop"):
        after = "base"
        for step in (1, 2):
            run = f"{name}-{step}"
            project.document["chain"][run] = {
                "benchmark": "tiny",
                "method": name,
                "seed": 0,
                "after": after,
                "step": step,
            }
            after = run
    loop.train(project.run())
    return project


def test_runs_leave_traces_and_judged_labels(steps):
    for name in ("gsc-1", "gsc-2", "gsc-early-1", "gsc-early-2", "plop-1"):
        loop.train(run := steps.run(name))
        result = runs_results.read(run)
        trace, log = result["trace"], result["log"]
        updates = log[-1]["updates"]
        assert {len(column) for column in trace.values()} == {updates}
        for column, values in trace.items():
            for row, epoch in zip(log, values.reshape(len(log), -1), strict=True):
                there = epoch[~np.isnan(epoch)]
                assert row[column] == (pytest.approx(there.mean(), rel=1e-5) if len(there) else None)
        timing = timings.read(run.root, run.benchmark, name)
        assert timing["training_seconds"] > timing["preparation_seconds"] > 0
        # the hold-out's pixels that the step calls background, judged by the method and by the teacher alone
        truth = evaluation_loader(
            run.settings, run.index(), "train", run.index().holdout, run.label_table(training=False)
        )
        seen = torch.cat([labels.flatten() for _, labels, _ in truth])
        old = sum(run.channel_groups[:-1])
        hidden = (seen < old) | ((seen >= sum(run.channel_groups)) & (seen != 255))
        for matrix in result["labels"].values():
            assert matrix.shape == (9, old + 1)
            assert matrix.sum() == hidden.sum()
            assert matrix[old : sum(run.channel_groups)].sum() == 0
        assert result["labels"]["argmax"][:, -1].sum() == 0
        ignored = result["labels"]["method"][:, -1].sum()
        assert (ignored > 0) == name.startswith("plop")
        assert result["pseudo_labels"]["method"].keys() == {"precision", "recall", "relabelled", "ignored"}


def test_a_process_without_a_batch_judges_nothing(steps):
    """It has to join the sum of all processes with zeros."""
    run = steps.run("gsc-1")
    matrices = judge_labels(run, {"method": run.build_method()}, run.build_network(0), [])
    assert {name: (matrix.shape, matrix.sum()) for name, matrix in matrices.items()} == {
        "method": ((9, 6), 0),
        "argmax": ((9, 6), 0),
    }


def test_scores_of_pseudo_labels():
    #                 background, class 1, class 2, ignored
    matrix = np.array([[50, 3, 1, 6], [4, 10, 0, 2], [0, 2, 5, 1], [8, 5, 0, 3]])
    assert metrics.label_scores(matrix) == pytest.approx(
        {"precision": 15 / 26, "recall": 15 / 24, "relabelled": 26 / 100, "ignored": 12 / 100}
    )
    nothing = metrics.label_scores(np.zeros((3, 3)))
    assert all(math.isnan(value) for value in nothing.values())


def test_a_stopped_gsc_run_ends_as_one_that_was_not(steps, monkeypatch):
    loop.train(run := steps.run("gsc-1"))
    whole, log = load_file(run.folder / "weights.safetensors"), (run.folder / "log.json").read_text()
    trace = (run.results / "trace.npz").read_bytes()
    shutil.rmtree(run.folder)
    shutil.rmtree(run.resume)
    evaluate, calls = loop.evaluate, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:  # within the second epoch
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.train(steps.run("gsc-1"))
    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.train(steps.run("gsc-1"))
    assert all(value.equal(whole[name]) for name, value in load_file(run.folder / "weights.safetensors").items())
    assert (run.folder / "log.json").read_text() == log
    assert (run.results / "trace.npz").read_bytes() == trace


def test_explanations(steps):
    for name in ("gsc-1", "plop-1"):
        loop.train(run := steps.run(name))
    run = steps.run("gsc-1")
    images = images_with_most_classes(run, 3)
    found = explain(run, images)
    assert set(images) <= set(run.images(run.index())) and len(images) == 3
    assert list(found.maps) == ["gradient", "weight", "old, by distance", "old, by teacher"]
    for given, labels, truth in zip(found.given, found.labels, found.truth, strict=True):
        assert (labels[given != 0] == given[given != 0]).all()
        assert (given[(truth > 0) & (truth < 5)] == 0).all(), "old classes are background in the step"
        assert (given[(truth >= 5) & (truth < 7)] == truth[(truth >= 5) & (truth < 7)]).all()
    assert list(explain(steps.run("plop-1"), images[:1]).maps) == ["uncertainty"]
    with pytest.raises(ValueError, match="base continues no run"):
        explain(steps.run("base"), images)


# --- variants


def test_a_variant_has_the_code_of_its_method(steps):
    run = steps.run("gsc-early-1")
    assert (run.method, run.code) == ("gsc-early", "gsc")
    assert run.build_method() == GSC(prototypes="previous", gate="two_stage")
    assert code_of("gsc") == "gsc" and code_of("gsc-a-b") == "gsc"


@pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if kind.presets])
def test_presets_are_coefficients(name):
    for values in METHODS[name].presets.values():
        assert METHODS[name](**values) != METHODS[name]()
        json.dumps(values)


def test_methods_that_keep_labels_are_not_judged(project):
    loop.train(project.run())
    loop.train(project.run("tune-1"))
    result = runs_results.read(project.run("tune-1"))
    assert result["labels"] == {} and result["pseudo_labels"] == {}
    gradients = [f"gradient/{group}" for group in ("background", "step0", "step1")]
    assert list(result["trace"]) == ["loss/cross_entropy", *gradients], "the same of every method"
