"""Methods that start from the data, and steps without gradients: `Method.start` and `Method.epochs`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciss.analysis.compare.tables import runs_table
from ciss.analysis.figures.training import NO_EPOCHS, log_table
from ciss.analysis.forgetting.pace import pace_factors
from ciss.analysis.forgetting.traces import gradient_table, token_angles_table
from ciss.data.loaders import evaluation_loader
from ciss.inspection.trained import OpenedRun, explain
from ciss.labels.patches import patch_labels
from ciss.methods import METHODS, Select
from ciss.models.closed_form import balanced_ridge_solution
from ciss.runs import results as runs_results
from ciss.training import loop
from tests.helpers.project import choose_decoder
from tests.helpers.training import distance, stopped, weights


def plan(project, name: str, **coefficients):
    project.set(f"methods.{name}", coefficients)
    after = "base"
    for step in (1, 2):
        values = {"benchmark": "tiny", "method": name, "seed": 0, "after": after, "step": step}
        after = f"{name}-{step}"
        project.document["chain"][after] = values
    project.document["ends"][name] = {"run": after, "benchmark": "tiny"}
    return project


def chain(project, name: str, **coefficients) -> list[dict]:
    """Weights of the base step and of two increments."""
    plan(project, name, **coefficients)
    runs = [project.run(run) for run in ("base", f"{name}-1", f"{name}-2")]
    for run in runs:
        loop.train(run)
    return [weights(run) for run in runs]


def rows(state: dict) -> set[str]:
    return {name for name in state if name.startswith("decoder.classifier.")}


@pytest.mark.parametrize("name", ["ncm", "ridge"])
def test_a_step_without_gradients(project, name, monkeypatch):
    loop.train(project.run())
    monkeypatch.setattr(loop, "train_epoch", None)
    monkeypatch.setattr(loop, "save_state", None)
    base, first, second = chain(project, name)
    for before, after in ((base, first), (first, second)):
        changed = {n for n in before if before[n].shape != after[n].shape or not before[n].equal(after[n])}
        assert changed <= rows(before) | {"decoder.extras.moments.gram", "decoder.extras.moments.moment"}
    old = {n for n in first if n in rows(first)}
    if name == "ncm":
        assert all(first[n].equal(second[n]) for n in old), "old rows stay"
    else:
        assert first["decoder.extras.moments.moment"].shape == (9, 7)
        assert second["decoder.extras.moments.moment"].shape == (9, 9)
    assert all(value.isfinite().all() for value in second.values())
    result = runs_results.read(project.run(f"{name}-2"))
    assert result["log"] == [] and result["trace"] == {} and result["curve_epochs"].tolist() == [0.0]
    assert log_table(result["log"]) == NO_EPOCHS


@pytest.mark.parametrize(
    "coefficients", [{}, {"stages": 2, "context": 1, "cell_label": "top_left"}, {"stages": 0}, {"pseudo_labels": True}]
)
def test_the_rows_of_stage_ridge_are_the_balanced_solution(project, coefficients):
    """Logits of the saved network are x W with x of the features, stages and means, and old rows follow new sums."""
    _, first, second = chain(project, "stage_ridge", **coefficients)
    opened = OpenedRun(project.run("stage_ridge-2"))
    moments = opened.student.decoder.extras["moments"]
    solution = balanced_ridge_solution(moments.gram, moments.moment, balance=0.5)
    run = project.run("stage_ridge-2")
    index, table = run.index(), run.label_table(training=True)
    images, *_ = next(iter(evaluation_loader(run.settings, index, "train", index.steps[2], table)))
    with torch.no_grad():
        output = opened.student(run.normalise(images, opened.device))
    maps = [output.features]
    for stage in list(reversed(output.stages))[: coefficients.get("stages", 3)]:
        maps.append(stage)
        if coefficients.get("context", 5) == 5:
            maps.append(F.avg_pool2d(stage, 5, 1, 2, count_include_pad=False))
    grid = max(values.shape[-2:] for values in maps)
    x = torch.cat([F.interpolate(values, grid, mode="bilinear") for values in maps], dim=1).double()
    expected = torch.einsum("bdhw,dc->bchw", x, solution[:-1]) + solution[-1][:, None, None]
    seen = moments.moment[-1] > 0
    torch.testing.assert_close(output.logits[:, seen].double(), expected[:, seen], rtol=1e-3, atol=1e-3)
    assert not first["decoder.classifier.groups.0.weight"].equal(second["decoder.classifier.groups.0.weight"])
    encoder = [name for name in first if name.startswith("encoder.")]
    assert encoder and all(first[name].equal(second[name]) for name in encoder)


def test_the_nearest_means_are_those_of_the_features(project):
    chain(project, "ncm", cell_label="majority")
    run = project.run("ncm-1")
    opened = OpenedRun(run)
    sums, counts = torch.zeros(7, 8, dtype=torch.float64), torch.zeros(7)
    for step, kept in ((0, range(5)), (1, range(5, 7))):
        index = run.index()
        table = loop.resolve(project.config, "base" if step == 0 else "ncm-1").label_table(training=True)
        for images, labels, _ in evaluation_loader(run.settings, index, "train", index.steps[step], table):
            with torch.no_grad():
                output = opened.teacher(run.normalise(images, opened.device))
            cells = patch_labels(labels.long(), output.features.shape[-2:], rule="majority").flatten()
            points = output.features.permute(0, 2, 3, 1).flatten(0, 2).double()
            for position in kept:
                sums[position] += points[cells == position].sum(dim=0)
                counts[position] += (cells == position).sum()
    means = sums / counts.clamp(min=1)[:, None]
    groups = opened.student.decoder.classifier.groups
    weight = torch.cat([group.weight[:, :, 0, 0] for group in groups])
    bias = torch.cat([group.bias for group in groups])
    seen = counts > 0
    torch.testing.assert_close(weight[seen].double(), (2 * means / 8)[seen], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias[seen].double(), -(means.square().sum(dim=1) / 8)[seen], rtol=1e-5, atol=1e-6)
    assert (bias[~seen] == -1e4).all()


@pytest.mark.parametrize("decoder", ["deeplabv3", "mask_transformer"])
def test_select_continues_with_its_sources(make_project, decoder):
    """Killed in the second epoch, and resumed: the same weights as without a stop."""
    project = choose_decoder(plan(make_project("whole"), "select"), decoder)
    other = choose_decoder(plan(make_project("stopped"), "select"), decoder)
    for one in (project, other):
        loop.train(one.run())
    loop.train(project.run("select-1"))
    expected = weights(project.run("select-1"))
    run = other.run("select-1")
    with stopped(Select, call=2):
        loop.train(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Select, "start", None)  # not called again
        loop.train(run)
    assert distance(expected, weights(run)) == 0
    assert {"loss/separation"} <= runs_results.read(run)["log"][-1].keys()


@pytest.mark.parametrize("name", ["ncm", "ridge", "stage_ridge", "select"])
def test_a_finished_run_is_opened_again(project, name):
    """Figures see the labels and losses that the training had, from a `start` into another network."""
    chain(project, name)
    run = project.run(f"{name}-1")
    kept = weights(run)
    explained = explain(run, run.images(run.index())[:2])
    assert len(explained.labels) == 2 and np.isfinite(explained.tokens).all()
    opened = OpenedRun(run)
    (batch, _, teacher), *_ = opened.learnt(run.images(run.index())[:2])
    losses = opened.method.losses(opened.student(batch.images), teacher, batch)
    assert ("separation" in losses) == (name == "select") and distance(kept, weights(run)) == 0


def test_analyses_know_a_step_without_epochs(project):
    for name in ("ncm", "select"):
        chain(project, name)
    ends = {name: runs_results.read_end(project.config, name) for name in ("ncm", "select")}
    table = runs_table("tiny", ends)
    assert table["method"].tolist() == ["ncm", "select (adapted)"] and table["all"].notna().all()
    assert set(gradient_table(ends)["end"]) == {"select"} and set(token_angles_table(ends)["end"]) == {"ncm", "select"}
    probe = {"prototypes": np.ones((9, 8)), "counts": np.ones(9), "gradients": np.ones(9)}
    paces = pace_factors(ends, dict.fromkeys(("ncm-1", "ncm-2", "select-1", "select-2"), probe))
    assert set(paces["end"]) == {"select"}


@pytest.mark.parametrize("name", ["ncm", "ridge", "stage_ridge", "select"])
def test_what_they_do_not_suit(name, project):
    plan(project, name)
    project.set("benchmarks.tiny.setting", "domain")
    assert METHODS[name]().unsuited(project.config.benchmarks["tiny"])[0] == "setting"
