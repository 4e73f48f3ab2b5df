"""Parts of a study: what is kept of a trained benchmark, and that it is enough."""

import filecmp
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from ciss import arguments, cli, config
from ciss.analysis.background.tables import label_rules
from ciss.analysis.compare.paired import paired_table
from ciss.analysis.compare.summary import family_tables
from ciss.analysis.forgetting.pace import pace_factors
from ciss.analysis.forgetting.traces import POINTS, gradient_table
from ciss.documents import ConfigError
from ciss.inspection import probe
from ciss.runs import results as runs_results
from ciss.runs.run import resolve
from ciss.store.files import CheckpointError
from ciss.study.report import parts, redraw
from ciss.training import loop
from tests.helpers.project import environment, make

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("tiny", "tiny-order1")
WITHOUT_SECONDS = ("params.yaml", parts.RUNS, parts.ARRAYS, "runs.csv")


def add_order(document: dict) -> None:
    """A second benchmark with the runs of the first one, in another order of classes."""
    first, second = NAMES
    document["benchmarks"][second] = {**document["benchmarks"][first], "order": [5, 6, 7, 8, 1, 2, 3, 4]}
    document["ends"] |= {"mib": {"run": "mib-2", "benchmark": first}, "joint": {"run": "all", "benchmark": first}}
    document["chain"]["mib-2"] = {**document["chain"]["mib-1"], "after": "mib-1", "step": 2}
    for section in ("bases", "joints", "chain", "ends"):
        for name, entry in list(document[section].items()):
            other = {key: f"{entry[key]}-o1" for key in ("after", "run") if key in entry}
            document[section][f"{name}-o1"] = {**entry, "benchmark": second, **other}


@pytest.fixture(scope="module")
def _trained(tmp_path_factory, tiny_data, frozen_code):
    with environment(tiny_data) as patch:
        made = make(tmp_path_factory.mktemp("parts") / "project", frozen_code, patch)
        add_order(made.document)
        made.prepare(NAMES[1])
        made.write()
        for name in made.config.runs():
            loop.train(made.run(name))
        for name in NAMES:
            probe.write(made.config, name)
    return made


@pytest.fixture
def trained(_trained, tiny_data):
    """A project of two benchmarks that differ in the order of classes, trained and probed: not to be changed."""
    with environment(tiny_data) as patch:
        patch.chdir(_trained.folder)
        yield _trained


@pytest.fixture
def kept(trained, tmp_path) -> Path:
    """The folder of both parts."""
    for name in NAMES:
        parts.keep(config.load(), name, tmp_path / "kept" / name)
    return tmp_path / "kept"


def tables(settings: config.Config) -> dict[str, pd.DataFrame]:
    ends = {name: runs_results.ends(settings, [name]) for name in settings.benchmarks}
    every = {end: results for by_end in ends.values() for end, results in by_end.items()}
    probes = probe.read(settings, dict.fromkeys(run for end in every for run in settings.path(end)))
    runs = family_tables(ends)
    return {
        **runs,
        "paired": paired_table(runs),
        "gradients": gradient_table(every),
        "rules": label_rules(every, probes),
        "pace": pace_factors(every, probes),
    }


def test_tables_from_parts_are_those_of_the_runs(trained, kept, tmp_path, monkeypatch):
    """Without weights, data and index, in a folder that has nothing else."""
    made = tables(config.load())
    (root := tmp_path / "root").mkdir()
    settings = redraw.unpack(redraw.find(kept), root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("CISS_DATA")
    again = tables(settings)
    assert list(again) == list(made) and "tiny-order1" not in made, "one family"
    assert set(made["paired"]["over"]) == {"orders"} and made["paired"]["pairs"].max() == 2
    for name, table in made.items():
        assert len(table), name
        pd.testing.assert_frame_equal(table, again[name], check_exact=name != "gradients", rtol=1e-12)
    assert not list(root.rglob("*.safetensors"))


def test_the_same_part_twice_is_the_same_bytes_and_small(trained, kept, tmp_path, capsys):
    cli.main(["report", "--keep", str(tmp_path / "again")])
    assert "tiny-order1: 6 runs, " in capsys.readouterr().out
    for name in NAMES:
        files = {file.name for file in (kept / name).iterdir()}
        assert files == {*WITHOUT_SECONDS, "timings.csv"}
        assert filecmp.cmpfiles(kept / name, tmp_path / "again" / name, files, shallow=False)[1:] == ([], [])
        assert sum(file.stat().st_size for file in (kept / name).iterdir()) < 40_000
    document = YAML(typ="safe").load(kept / NAMES[1] / "params.yaml")
    assert list(document["benchmarks"]) == ["tiny-order1"] and set(document["ends"]) == {
        "tune-o1",
        "mib-o1",
        "joint-o1",
    }
    result = json.loads(lzma.decompress((kept / "tiny" / parts.RUNS).read_bytes()))["tune-1"]
    assert set(result["identity"]) >= {"code", "data", "teacher"} and len(result["weights"]) == 64


def test_seconds_come_back_from_their_table(trained, kept, tmp_path):
    (root := tmp_path / "root").mkdir()
    redraw.unpack(redraw.find(kept), root)
    for file in (trained.folder / "timings").rglob("*.json"):
        again = json.loads((root / file.relative_to(trained.folder)).read_text())
        assert len(again.pop("update_seconds")) == 2, "a mean for each epoch, for the table of cost"
        assert again.items() <= json.loads(file.read_text()).items() and again["training_seconds"] > 0
        assert "host" not in again


def test_a_trace_made_short_and_long_again():
    rng = np.random.default_rng(0)
    values = rng.random((95, 3)).astype(np.float32)
    values[:39, 1] = np.nan
    columns = np.array(["loss/ce", "gradient/step0", "compensated/step0"])
    short = parts.thin(columns, values)
    assert short["columns"].tolist() == ["gradient/step0", "compensated/step0"] and short["means"].shape == (POINTS, 2)
    long = parts.spread(**short)["values"]
    assert long.shape == (95, 2) and np.isnan(long[:39, 0]).all()
    assert long[:3, 1] == pytest.approx([values[:3, 2].astype(float).mean()] * 3), "95 rows: stretches of three first"
    for rows in (0, 5):
        assert parts.spread(**parts.thin(columns, values[:rows]))["values"].shape == (rows, 2)
    np.testing.assert_array_equal(parts.spread(**parts.thin(columns, values[50:55]))["values"], values[50:55, 1:])
    assert parts.spread(**parts.thin(columns[:1], values[:, :1]))["values"].shape == (95, 0)


# --- what is refused


def test_unfinished_runs_are_refused(trained, tmp_path):
    copied = trained.copy(tmp_path / "copy")
    run = copied.run("mib-2")
    shutil.rmtree(run.results)
    with pytest.raises(CheckpointError, match="no result yet. Train it: ciss train mib-2"):
        parts.keep(config.load(), "tiny", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    parts.keep(config.load(), "tiny-order1", tmp_path / "kept")  # no part needs another's runs
    (copied.folder / "probes" / "tiny-order1" / "mib-1-o1.npz").unlink()
    with pytest.raises(CheckpointError, match="Make it: ciss probe tiny-order1"):
        parts.keep(config.load(), "tiny-order1", tmp_path / "kept")
    weights = resolve(config.load(), "all-o1").folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="not those of"):
        parts.keep(config.load(), "tiny-order1", tmp_path / "kept")


def change(part: Path, edit) -> None:
    """Edits result.json of every run of a part."""
    results = json.loads(lzma.decompress((part / parts.RUNS).read_bytes()))
    for result in results.values():
        edit(result)
    (part / parts.RUNS).write_bytes(lzma.compress(json.dumps(results).encode()))


def test_parts_of_different_code_are_refused_but_when_asked_for(kept, tmp_path, monkeypatch):
    def other_code(result: dict) -> None:
        if result["method"] == "mib":
            result["identity"]["code"]["method"] = "f" * 64

    change(kept / "tiny-order1", other_code)
    (root := tmp_path / "root").mkdir()
    with pytest.raises(ConfigError, match=r"mib: .* in tiny; ffffffffffff in tiny-order1\. Equal: finetune, joint\."):
        redraw.unpack(redraw.find(kept), root)
    settings = redraw.unpack(redraw.find(kept), root, mixed=True)
    assert "(--mixed): mib: " in (root / "reports/benchmarks/tiny/data/data.md").read_text(), "the page says so"
    monkeypatch.chdir(root)
    assert tables(settings)["tiny"]["code"].nunique() == 3, "one for each method, joint training among them"


def test_parts_that_do_not_fit_together_are_refused(kept, tmp_path):
    yaml, file = YAML(), kept / "tiny-order1" / "params.yaml"
    document = yaml.load(file)
    document["methods"]["mib"]["distillation"] = 11.0
    yaml.dump(document, file)
    with pytest.raises(ConfigError, match=r"differs from an earlier part: methods\.mib\.distillation 10\.0, now 11\.0"):
        redraw.unpack(redraw.find(kept), tmp_path)
    (kept / "tiny" / parts.RUNS).write_bytes(b"half")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        redraw.unpack([kept / "tiny"], tmp_path)
    with pytest.raises(ConfigError, match="no part of a study"):
        redraw.find(tmp_path / "nowhere")


def test_the_runs_of_a_part(trained):
    names = arguments.chosen_runs(None, "tiny-order1", "params.yaml")
    assert names == ["base-o1", "all-o1", "tune-1-o1", "tune-2-o1", "mib-1-o1", "mib-2-o1"]
    assert arguments.chosen_runs(["base"], None, "params.yaml") == ["base"]
    with pytest.raises(SystemExit, match="no run is of a benchmark 'tiny-order'. Did you mean 'tiny-order1'"):
        arguments.chosen_runs(None, "tiny-order", "params.yaml")


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("x-order10", "x", "x-order2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / parts.RUNS).touch()
    assert [part.name for part in redraw.find(tmp_path)] == ["x", "x-order2", "x-order10"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--benchmark", "tiny"], "--benchmark: only allowed with --keep"),
        (["--out", "a"], "--out: only allowed with --redraw"),
        (["--mixed"], "--mixed: only allowed with --redraw"),
        (["--keep", "a", "--redraw", "b"], "--redraw: not allowed with --keep"),
    ],
)
def test_options_that_do_not_go_together(words, said, capsys):
    with pytest.raises(SystemExit):
        cli.main(["report", *words])
    assert said in capsys.readouterr().err


# --- whole commands


@pytest.mark.slow
def test_redrawn_reports_are_those_made_beside_the_runs(trained, kept, tmp_path, monkeypatch):
    """Byte for byte: tables, figures, findings, executed notebooks; all but photographs' predictions."""
    copied = trained.copy(tmp_path / "copy")
    (copied.folder / "notebooks").symlink_to(ROOT / "notebooks")
    (copied.folder / "reports").mkdir()
    shutil.copy(ROOT / "reports" / "published.yaml", copied.folder / "reports")
    monkeypatch.chdir(copied.folder)
    jobs = [(name, notebook) for name in NAMES for notebook in redraw.BY_BENCHMARK] + [("", "6_compare")]
    for name, notebook in jobs:
        benchmark = ["-p", "benchmark", name] if name else []
        out = Path("reports", name, f"{notebook}.ipynb")
        command = ["execute", f"notebooks/{notebook}.ipynb", str(out), "-p", "config", "params.yaml", *benchmark]
        process = subprocess.run([sys.executable, "-m", "ciss", *command], capture_output=True, text=True, timeout=600)
        assert process.returncode == 0, process.stderr[-400:]
    redraw.main(str(kept), None, mixed=False)
    here, there = copied.folder / "reports", kept / "reports"
    made = {str(file.relative_to(here)) for file in here.rglob("*") if file.is_file()}
    compared = {name for name in made if "predictions" not in name} - {"6_compare.ipynb", "published.yaml"}
    assert len(compared) > 60
    assert filecmp.cmpfiles(here, there, compared, shallow=False)[1:] == ([], [])
    assert "Minus finetune, over orders" in (there / "report.html").read_text(encoding="utf-8")
    assert (there / "cost.csv").is_file()


@pytest.mark.slow
def test_a_part_killed_twice_is_the_undisturbed_one(trained, kept, tmp_path):
    copied = trained.copy(tmp_path / "copy")
    for folder in ("runs", "results", "probes", "timings"):
        shutil.rmtree(copied.folder / folder / "tiny-order1")
    shutil.rmtree(copied.folder / "runs" / ".resume", ignore_errors=True)
    for text in ("tune-1-o1: epoch 1/2", "mib-2-o1: epoch 1/2"):
        training = copied.command("-m", "ciss", "train", "--benchmark", "tiny-order1", start_new_session=True)
        for line in training.stdout:
            if text in line:
                break
        training.kill()
        training.communicate()
    last = copied.command("-m", "ciss", "train", "--benchmark", "tiny-order1")
    assert "trained, " in last.communicate(timeout=300)[0] and last.returncode == 0
    for command in (["probe", "tiny-order1"], ["report", "--keep", "kept", "--benchmark", "tiny-order1"]):
        process = copied.command("-m", "ciss", *command)
        assert process.communicate(timeout=300)[1] == "" and process.returncode == 0
    part = copied.folder / "kept" / "tiny-order1"
    assert filecmp.cmpfiles(part, kept / "tiny-order1", WITHOUT_SECONDS, shallow=False)[1:] == ([], [])
