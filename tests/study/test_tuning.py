"""Trials on the hold-out, and presets of whole studies."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from ciss import cli, paths
from ciss.analysis.compare import tuning as compare_tuning
from ciss.analysis.compare.tuning import tuning_table
from ciss.study import presets
from tests.helpers.results import result

ROOT = paths.project()


def counts(*diagonal: float) -> np.ndarray:
    """A confusion matrix of four classes with ten pixels each; what is missed is called background."""
    matrix = np.diag(np.array(diagonal) * 10).astype(int)
    matrix[1:, 0] += 10 - matrix.diagonal()[1:]
    return matrix


def trial(method: str, first: tuple, second: tuple, **changes) -> list[dict]:
    """A base step and two increments that end with these shares right on the hold-out."""
    made = []
    for step, right in enumerate(((1, 1, 1, 0), (*first, 0), second)):
        made.append(result(step, counts(1, 1, 1, 1), method=method, **changes))
        made[-1]["curve_confusions"] = np.array([counts(1, 0, 0, 0), counts(*right)])
        made[-1]["identity"]["parameters"]["coefficients"] = {"distillation": 10.0 * len(method), "alpha": 1.0}
    return made


def test_the_best_on_the_hold_out_is_chosen():
    """Right in full counts 1, missed 0, and lowers the background's IoU, here by 10 pixels each."""
    ends = {
        "a": trial("mib-1", (1, 1, 1), (1, 0, 1, 1)),
        "b": trial("mib-22", (1, 1, 1), (1, 1, 1, 0), scores=dict.fromkeys(("all", "old", "new"), 0.9)),
        "c": trial("mib-22", (1, 0, 1), (1, 1, 1, 1), seed=1),
        "d": trial("plop-1", (1, 1, 0), (1, 0, 0, 0)),
        "joint": [result(0, counts(1, 1, 1, 1), method="joint", after=None)],
    }
    for results in (ends["a"], ends["b"]):  # by the validation images the second is better: they have no say
        results[-1]["confusion"] = counts(1, 0, 0, 0) if results is ends["a"] else counts(1, 1, 1, 1)
    ends["a"][1]["curve_confusions"][-1] = counts(1, 1, 1, 0)
    ends["b"][1]["curve_confusions"][-1] = counts(1, 0, 1, 0)
    for one in ends["d"]:
        one["identity"]["parameters"]["coefficients"] = {"pod": 0.01, "bins": 100}
    table = tuning_table("b", ends)
    assert list(table["trial"]) == ["mib-1", "mib-22", "mib-22", "plop-1"] and set(table["benchmark"]) == {"b"}
    # a: all three right, then the background 1/2 and a missed class; b: 1/2, 0, 1, then 1/2, 1, 1, 0
    assert table["mean"].tolist()[:2] == pytest.approx([(1 + 2.5 / 4) / 2, (0.5 + 2.5 / 4) / 2])
    assert table["all"].tolist()[:2] == pytest.approx([2.5 / 4, 2.5 / 4])
    assert table["old"].tolist()[:2] == [0, 1] and table["new"].tolist()[:2] == [1, 0.5]
    text = (ROOT / "reports" / "README.md").read_text(encoding="utf-8").partition("`tuning.csv`")[2]
    told = [name for name in re.findall(r"`(\w+)`", text) if name in table.columns]
    assert list(dict.fromkeys(told)) == list(table.columns)
    assert table["chosen"].tolist() == [True, False, True, True], "of each method and seed"
    assert [json.loads(text) for text in table["coefficients"]] == [
        {"distillation": 50.0},
        {"distillation": 60.0},
        {"distillation": 60.0},
        {},
    ]


def test_without_a_hold_out_nothing_is_chosen():
    ends = {"a": trial("mib-1", (1, 1, 1), (1, 1, 1, 1))}
    for each in ends["a"]:
        each["curve_confusions"] = each["curve_confusions"][:0]
    table = compare_tuning.tuning_table("b", ends)
    assert table["mean"].isna().all() and not table["chosen"].any()
    assert list(compare_tuning.tuning_table("b", {}).columns) == list(table.columns), "of no trial, too"


def run(monkeypatch, capsys, *arguments: str) -> str:
    cli.main(["tune", *arguments])
    return capsys.readouterr().out


def test_trials_are_trained_once_and_written(project, monkeypatch, capsys):
    project.document["methods"] |= {"mib-1": {}, "mib-2": {"distillation": 1.0}}
    project.document["chain"] = {}
    # Joint training and a benchmark without trials may be in the file: neither is trained, nor in a table.
    project.document["ends"] = {"joint": {"run": "all", "benchmark": "tiny"}}
    project.document["benchmarks"]["other"] = project.document["benchmarks"]["tiny"]
    project.document["bases"]["other"] = {**project.document["bases"]["base"], "benchmark": "other"}
    for name, step in (("finetune", 1), ("mib-1", 1), ("mib-2", 1)):
        chained = {"benchmark": "tiny", "method": name, "seed": 0, "after": "base", "step": step}
        project.document["chain"][f"{name}-run"] = chained
        project.document["ends"][name] = {"run": f"{name}-run", "benchmark": "tiny"}
    project.write()
    out = run(monkeypatch, capsys, "--only", "finetune")
    trained = {folder.name for folder in (project.folder / "results" / "tiny").iterdir()}
    assert trained == {"base", "finetune-run"} and "tuning.csv" not in out
    out = run(monkeypatch, capsys)
    assert "finetune-run: epoch" not in out and "mib-2-run: epoch 2/2" in out
    table = pd.read_csv(project.folder / "reports" / "tiny" / "tuning.csv")
    assert table["trial"].tolist() == ["finetune", "mib-1", "mib-2"] and table["code"].tolist()[1:] == ["mib", "mib"]
    assert table.groupby("code")["chosen"].sum().min() == 1
    best = table[(table["code"] == "mib") & table["chosen"]]
    assert best["mean"].item() == table[table["code"] == "mib"]["mean"].max()
    assert out.splitlines()[-1].endswith(", ".join(table[table["chosen"]]["trial"]))
    assert not (project.folder / "runs" / "tiny" / "all").exists()
    assert [folder.name for folder in (project.folder / "reports").iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("key", "value", "arguments", "message"),
    [
        ("methods.mib.distillation", -1.0, [], "params.yaml: methods.mib.distillation: "),
        (
            "benchmarks.tiny.holdout",
            0,
            [],
            "params.yaml: benchmarks.tiny.holdout: 0, so there are no images to choose by. Set it, for example to a "
            "tenth of the training images.",
        ),
        ("ends", {"all": {"run": "all", "benchmark": "tiny"}}, [], "params.yaml: ends: no end of the chain is a trial"),
        ("methods.joint", {}, ["--only", "mbi"], "--only: params.yaml has no trial of 'mbi'."),
        ("chain.tune-1.after", "nobody", [], "params.yaml: chain.tune-1.after: "),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(
    project, monkeypatch, capsys, key, value, arguments, message
):
    project.set(key, value)
    project.write()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, capsys, *arguments)
    without_line = re.sub(r"line \d+: ", "", str(caught.value))
    assert without_line.startswith(f"error: {message}") and not (project.folder / "runs" / "tiny").exists()


def test_a_trial_that_diverges_is_one_line(project, monkeypatch, capsys):
    project.document["ends"] = {"mib": {"run": "mib-1", "benchmark": "tiny"}}
    project.set("train.increment.lr", 1e30)
    project.write()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, capsys)
    assert str(caught.value).startswith("error: mib-1: ") and "\n" not in str(caught.value)


# --- presets that are like another


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


def test_the_trials_are_planned(planned):
    planned("voc8", "--preset", "tuning")
    settings, preset = planned.config, presets.load("voc8-tuning")
    assert list(settings.benchmarks) == ["voc8-tuning"] and list(settings.bases) == ["voc8-tuning-s9"]
    wanted = preset["runs"]["methods"]
    assert list(settings.ends) == [f"voc8-tuning-s9-{name}" for name in wanted] and not settings.joints
    assert settings.methods["mib-1"]["distillation"] == 10.0, "the defaults, whatever mib itself is set to"
    assert settings.methods["mib-3"]["distillation"] == 100.0
    by_code: dict[str, list] = {}
    for name in wanted:
        by_code.setdefault(name.rpartition("-")[0], []).append(settings.methods[name])
    del by_code[""]  # fine-tuning has no coefficient
    assert {len(trials) for trials in by_code.values()} == {5}, "as many for every method"
    for trials in by_code.values():
        assert all(one not in trials[:number] for number, one in enumerate(trials))


def test_the_study_and_its_trials_share_all_but_the_steps():
    study, trials = (json.loads(json.dumps(presets.load(name))) for name in ("voc8", "voc8-tuning"))
    assert set(presets.load("voc8-tuning")["runs"]["seeds"]).isdisjoint(study.get("runs", {}).get("seeds", [0]))
    for document in (study, trials):
        for key in ("runs", "methods", "groups", "expects"):
            document.pop(key, None)
    assert study == trials


def committed_trials() -> pd.DataFrame:
    return pd.read_csv(ROOT / "reports" / "study" / "tuning.csv").set_index("trial")


def test_the_committed_trials_are_those_of_the_preset():
    table = committed_trials()
    assert set(table.index) == set(presets.load("voc8-tuning")["runs"]["methods"])
    for trial, row in table.iterrows():
        asked = presets.load("voc8-tuning")["methods"].get(trial, {})
        assert json.loads(json.dumps(asked)) == json.loads(row["coefficients"]), trial


def test_the_study_takes_what_was_chosen(planned):
    """Of every method the coefficients of its best trial, as committed; those that are not named are the defaults."""
    planned("voc8")
    table, preset = committed_trials(), presets.load("voc8")
    assert set(table["code"]) | {"gsc-source"} == set(preset["runs"]["methods"])
    for code, trials in table.groupby("code"):
        assert trials["chosen"].tolist() == (trials["mean"] == trials["mean"].max()).tolist()
        chosen = json.loads(trials[trials["chosen"]]["coefficients"].item())
        assert json.loads(json.dumps(preset["methods"].get(code, {}))) == chosen, code
    planned("voc8", "--preset", "tuning", "--methods", "gsc-1", "--add")
    first = planned.config.methods["gsc-1"]  # the first trial
    assert planned.config.methods["gsc-source"] == first, "both have the coefficients of the sources"


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


def test_named_methods_and_seeds_go_before_the_presets(planned):
    planned("voc8", "--preset", "tuning", "--methods", "mib-2", "--seeds", "3")
    assert list(planned.config.ends) == ["voc8-tuning-s3-mib-2"]
    planned("voc8", "4-2", "--preset", "tuning", "--methods", "mib-2")
    benchmark = planned.document["benchmarks"]["voc8-tuning-4-2"]
    assert "groups" not in benchmark and benchmark["protocol"] == "4-2", "groups are of the preset's protocol"
    mine = [[8, 9], [12], [15]]
    planned("voc8", "--name", "mine", "--methods", "mib", "--set", f"groups={mine}", "--no-joint")
    planned("voc8", "4-2", "--name", "mine", "--methods", "mib", "--no-joint")
    assert planned.document["benchmarks"]["mine"]["groups"] == mine, "those of the file are somebody's"


def test_a_trial_is_a_variant_of_ones_own_to_another_preset(planned):
    """Planned again without the preset that spells it, it stays as the file has it."""
    planned("voc8", "--preset", "tuning")
    planned("voc8", "--methods", "mib-1", "mib-2", "--seeds", "0", "--no-joint")
    assert list(planned.config.ends) == ["voc8-s0-mib-1", "voc8-s0-mib-2"]
    assert planned.config.methods["mib-2"]["distillation"] == 30.0
    assert "no preset '7'" in planned.fails("voc8", "--methods", "mib-7")


@pytest.mark.parametrize("arguments", [["4-2"], ["--setting", "disjoint"]])
def test_a_protocol_or_setting_with_a_preset_has_its_runs(planned, arguments):
    planned("voc8", *arguments)
    (name,) = planned.config.benchmarks
    runs = presets.load(name)["runs"]
    assert runs["joint"] is False, "voc8's own stands for it"
    assert list(planned.config.ends) == [f"{name}-s0-{method}" for method in runs["methods"]]
