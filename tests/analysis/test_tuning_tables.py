"""The table and the figures of a tuning."""

import json
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from ciss import paths
from ciss.analysis.figures.style import only_note
from ciss.analysis.tuning import figures, words
from ciss.analysis.tuning.tables import finished_trials, tuning_table
from ciss.ranges import Choices, Range
from tests.helpers.figures import draw, legend, strings

SPACE = {"distillation": Range(1, 100, log=True), "clamp": Choices(None, (0.5, 5.0)), "guided": Choices(True, False)}


def trial(number: int, *alls: float, method: str = "mib", state: str = "complete", **values) -> dict:
    scores = [{"all": score, "old": score / 2, "new": score / 4} for score in alls]
    coefficients = {"distillation": 10.0, "clamp": None, "guided": True, **values}
    row = {"benchmark": "shapes", "method": method, "seed": 9, "trial": number, "state": state, "steps": len(alls)}
    return {**row, "scores": scores, "coefficients": coefficients}


def five(method: str = "mib") -> list[dict]:
    """Means 0.5, 0.55, 0.9 of one step, 0.55 and none."""
    return [
        trial(0, 0.6, 0.4, method=method),
        trial(1, 0.5, 0.6, method=method, clamp=[0.5, 5.0]),
        trial(2, 0.9, method=method, state="pruned", distillation=50.0),
        trial(3, 0.6, 0.5, method=method, guided=False),
        trial(4, method=method, state="diverged", distillation=99.0),
    ]


def test_the_first_of_the_best_complete_trials_is_chosen():
    table = tuning_table(five())
    assert table["mean"].tolist()[:4] == pytest.approx([0.5, 0.55, 0.9, 0.55]) and table["mean"].isna()[4]
    assert table[["all", "old", "new"]].iloc[1].tolist() == pytest.approx([0.6, 0.3, 0.15]), "after the last step"
    assert table["chosen"].tolist() == [False, True, False, False, False], "the pruned one has no second step"
    assert json.loads(table["coefficients"][1])["clamp"] == [0.5, 5.0] and table["comparable"].all()


def test_methods_with_unequal_numbers_are_marked():
    table = tuning_table([*five(), *five("plop")[:4]])
    assert not table["comparable"].any() and finished_trials(table) == {"mib": 5, "plop": 4}
    assert table.groupby("method")["chosen"].sum().to_dict() == {"mib": 1, "plop": 1}
    assert "Not comparable: the numbers of trials differ. Run: ciss tune plop --trials 5" in words.summary(table)
    assert "do not compare the methods" in words.conditions(table)
    unfinished = tuning_table([*five(), *five("plop")[:4], trial(4, 0.5, method="plop", state="unfinished")])
    assert not unfinished["comparable"].any(), "a trial that was interrupted does not count"
    equal = tuning_table([*five(), *five("plop")])
    assert equal["comparable"].all() and "Not comparable" not in words.summary(equal)


def test_the_columns_are_documented():
    text = (paths.project() / "docs" / "tuning.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)`(?:, `(\w+)`)*(?:, `(\w+)`)? \|", text, re.MULTILINE)
    names = [
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert documented and names == list(tuning_table([]).columns)


def test_words_are_in_percent_and_name_the_seed():
    table = tuning_table(five())
    assert words.summary(table).splitlines() == [
        "shapes, seed 9, mIoU on the hold-out set in percent:",
        "  mib, 5 trials: published 50.0, best 55.0 (trial 1)",
    ]
    line = words.trial_line(five()[2], 20)
    assert line == "mib: trial 2 of 20, pruned after step 1: 90.0 %; distillation 50.0, clamp None, guided True"
    assert "none %" in words.trial_line(five()[4], 20)
    for caption in words.captions(table).values():
        assert "seed 9" in caption and "may be chance" in caption and "mib 5" in caption and "percent" in caption


def test_the_line_of_the_best_rises_and_other_trials_lie_under_the_scores():
    figure, ax = plt.subplots()
    figures.best_so_far(ax, tuning_table([*five(), trial(5, 0.3, state="unfinished")]))
    steps, complete, others, border = ax.lines
    assert steps.get_ydata().tolist() == pytest.approx([50, 55, 55, 55, 55, 55])
    assert complete.get_ydata().tolist() == pytest.approx([50, 55, 55]) and "%" in ax.get_ylabel()
    labels = ["mib, 5 trials", "best complete trial so far", "pruned, diverged or refused"]
    assert strings(ax.get_legend().get_texts()) == labels, "as on the terminal, which counts finished trials"
    assert others.get_xdata().tolist() == [2, 4] and others.get_markerfacecolor() == "none"
    assert_under_the_scores(ax, others, border)
    plt.close(figure)


def assert_under_the_scores(ax, others, border) -> None:
    """The marks of trials that ended early: the score of a few steps is no height."""
    draw(ax.figure)
    bottom, top = ax.get_ylim()
    level = border.get_ydata()[0]
    heights = others.get_ydata()  # shares of the axis
    assert bottom < bottom + heights.max() * (top - bottom) < level < 50 and top < 60


def test_one_trial_is_not_called_trials():
    table = tuning_table(five()[:1])
    assert "mib, 1 trial: published 50.0" in words.summary(table)
    figure, ax = plt.subplots()
    figures.best_so_far(ax, table)
    assert strings(ax.get_legend().get_texts())[0] == "mib, 1 trial"
    plt.close(figure)


def test_slices_show_the_whole_range_and_mark_the_published_values():
    figure = figures.slice_panels(tuning_table(five()), SPACE)
    axes = {ax.get_xlabel(): ax for ax in figure.axes if ax.axison}
    assert set(axes) == set(SPACE)
    distillation = axes["distillation"]
    assert distillation.get_xscale() == "log" and [t.get_text() for t in distillation.get_xticklabels()] == [
        "1",
        "10",
        "100",
    ]
    assert [tick.get_text() for tick in axes["clamp"].get_xticklabels()] == ["None", "0.5, 5.0"]
    stars = [line for line in distillation.lines if line.get_marker() == "*"]
    assert stars[0].get_xydata().tolist() == [[10.0, pytest.approx(50)]]
    hollow = [line for line in distillation.lines if line.get_markerfacecolor() == "none" and line.get_marker() == "o"]
    assert hollow[0].get_xdata().tolist() == [50.0, 99.0]
    assert_under_the_scores(distillation, hollow[0], distillation.lines[-1])
    assert legend(figure) == ["complete trial", "published values", "chosen trial", "pruned, diverged or refused"]
    plt.close(figure)


def test_importance_names_the_number_of_trials():
    figure, ax = plt.subplots()
    figures.importance_bars(ax, {"distillation": 0.7, "alpha": 0.3}, 14, "mib")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["alpha", "distillation"], "the first at the top"
    assert ax.get_xlabel() == "importance (%), 14 complete trials"
    plt.close(figure)


def test_without_scores_there_is_a_sentence():
    nothing = tuning_table([trial(0, state="diverged")])
    assert only_note(figures.slice_panels(nothing, SPACE)) == "No trial is complete."
    for plot in (lambda ax: figures.best_so_far(ax, nothing), lambda ax: figures.importance_bars(ax, {}, 1)):
        figure, ax = plt.subplots()
        plot(ax)
        assert only_note(figure)
    plt.close("all")
    assert "published none" in words.summary(nothing) and not nothing["chosen"].any()
    assert isinstance(tuning_table([]), pd.DataFrame) and "comparable" in tuning_table([])
