"""Presets that are like another, and presets of whole studies."""

import json

import pandas as pd
import pytest

from ciss import paths
from ciss.methods import METHODS
from ciss.study import presets

ROOT = paths.project()


def test_a_preset_like_another_changes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    (tmp_path / "a.yaml").write_text("# of a\nx: 1 # the x\ny: { z: 2, w: 3 }\nl: [1]\n")
    (tmp_path / "b.yaml").write_text("# of b\nlike: a\ny: { w: 4 }\nl: [2, 3]\nruns: { seeds: [7] }\n")
    (tmp_path / "c.yaml").write_text("# of c\nlike: b\nx: 5\n")
    assert json.loads(json.dumps(presets.load("b"))) == {
        "x": 1,
        "y": {"z": 2, "w": 4},
        "l": [2, 3],
        "runs": {"seeds": [7]},
    }
    third = presets.load("c")
    assert third["x"] == 5 and third["y"]["w"] == 4 and third.ca.comment[1][0].value == "# of c\n"
    assert presets.load("a")["y"]["w"] == 3, "and leaves the other as it is"


def test_the_benchmark_of_a_tuning_is_planned(planned):
    """Trials are no runs of the parameter file: they come from `ciss tune`, on another seed."""
    out = planned("voc8", "--preset", "tuning")
    settings = planned.config
    assert list(settings.benchmarks) == ["voc8-tuning"] and not settings.chain and not settings.joints
    assert settings.benchmarks["voc8-tuning"].groups == ((8, 9, 12, 15), (13,), (18,))
    assert out.endswith("ciss tune METHOD --trials 20\n")


def test_the_study_and_its_trials_share_all_but_the_steps():
    study, trials = (json.loads(json.dumps(presets.load(name))) for name in ("voc8", "voc8-tuning"))
    for document in (study, trials):
        for key in ("runs", "methods", "groups", "expects"):
            document.pop(key, None)
    assert study == trials


def committed_trials() -> pd.DataFrame:
    return pd.read_csv(ROOT / "reports" / "study" / "tuning.csv").set_index("trial")


def test_the_study_takes_what_was_chosen(planned):
    """Of every method the coefficients of its best trial, as committed; those that are not named are the defaults."""
    planned("voc8")
    table, preset = committed_trials(), presets.load("voc8")
    assert set(table["code"]) | {"gsc-source"} == set(preset["runs"]["methods"])
    for code, trials in table.groupby("code"):
        assert trials["chosen"].tolist() == (trials["mean"] == trials["mean"].max()).tolist()
        chosen = json.loads(trials[trials["chosen"]]["coefficients"].item())
        assert json.loads(json.dumps(preset["methods"].get(code, {}))) == chosen, code
    assert METHODS["gsc"](**planned.config.methods["gsc-source"]) == METHODS["gsc"](), "those of the sources"


@pytest.mark.parametrize("dataset", ["shapes", "voc8"])
def test_what_terms_are_worth_is_asked_of_the_chosen_coefficients(planned, dataset):
    planned(dataset, "--preset", "terms")
    settings, seeds = planned.config, set(presets.load(f"{dataset}-terms")["runs"]["seeds"])
    assert not seeds & set(presets.load(dataset).get("runs", {}).get("seeds", [0])) and not settings.joints
    left_out = {name: code for name in settings.methods if (code := name.partition("-")[0]) != name}
    assert left_out
    for name, code in left_out.items():
        differs = {key for key, value in settings.methods[name].items() if value != settings.methods[code][key]}
        assert 1 <= len(differs) <= 3, f"{name}: {differs}"


def test_a_study_of_orders_is_planned_in_parts(planned):
    """Each order is a benchmark of its own, complete in itself: no run continues one of another."""
    planned("voc8", "--preset", "orders")
    settings = planned.config
    assert list(settings.benchmarks) == ["voc8-orders", *(f"voc8-orders-order{k}" for k in range(1, 6))]
    assert len({benchmark.order for benchmark in settings.benchmarks.values()}) == 6
    for name in settings.benchmarks:
        runs = {run: entry for run, entry in settings.runs().items() if entry.benchmark == name}
        assert len(runs) == 1 + 10 * 4 + 1 and {entry.seed for entry in runs.values()} == {0}
        assert all(entry.after in runs for run, entry in settings.chain.items() if run in runs)
    planned("voc8", "--preset", "orders", "--orders", "2", "--fresh")
    assert len(planned.config.benchmarks) == 2, "what is named goes before the preset's"
    planned("voc8", "--preset", "orders", "--order", *"13 17 10 18 8 12 15 9".split(), "--fresh")
    assert len(planned.config.benchmarks) == 1


def test_named_methods_and_seeds_go_before_the_presets(planned):
    planned("voc8", "--preset", "tuning", "--methods", "mib", "--seeds", "3")
    assert list(planned.config.ends) == ["voc8-tuning-s3-mib"]
    planned("voc8", "4-2", "--preset", "tuning", "--methods", "mib")
    benchmark = planned.document["benchmarks"]["voc8-tuning-4-2"]
    assert "groups" not in benchmark and benchmark["protocol"] == "4-2", "groups are of the preset's protocol"
    mine = [[8, 9], [12], [15]]
    planned("voc8", "--name", "mine", "--methods", "mib", "--set", f"groups={mine}", "--no-joint")
    planned("voc8", "4-2", "--name", "mine", "--methods", "mib", "--no-joint")
    assert planned.document["benchmarks"]["mine"]["groups"] == mine, "those of the file are somebody's"


def test_a_variant_of_a_preset_is_ones_own_to_another_preset(planned):
    """Planned again without the preset that spells it, it stays as the file has it."""
    planned("voc8", "--methods", "gsc-source", "--seeds", "0", "--no-joint")
    source = planned.config.methods["gsc-source"]
    planned("shapes", "--methods", "gsc-source", "--seeds", "0", "--no-joint")
    assert list(planned.config.ends) == ["shapes-s0-gsc-source"] and planned.config.methods["gsc-source"] == source
    assert "no preset '7'" in planned.fails("voc8", "--methods", "mib-7")


@pytest.mark.parametrize("arguments", [["4-2"], ["--setting", "disjoint"]])
def test_a_protocol_or_setting_with_a_preset_has_its_runs(planned, arguments):
    planned("voc8", *arguments)
    (name,) = planned.config.benchmarks
    runs = presets.load(name)["runs"]
    assert runs["joint"] is False, "voc8's own stands for it"
    assert list(planned.config.ends) == [f"{name}-s0-{method}" for method in runs["methods"]]
