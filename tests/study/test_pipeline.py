"""The pipeline at smoke size, in a repository of its own: what re-runs, and what does not."""

import base64
import json
import re
import resource
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from ciss import config, paths
from ciss.methods import METHODS
from ciss.store import code as store_code
from tests.helpers import repository
from tests.helpers.repository import run

ROOT = paths.project()


def test_every_stage_of_the_default_plan_is_in_the_lock():
    """`dvc.lock` names the runs of `params.yaml`: nothing was committed half-made."""
    settings = config.load(ROOT / "params.yaml")
    lock = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
    runs = {
        f"{kind}@{name}" for kind, part in (("base", "bases"), ("joint", "joints")) for name in getattr(settings, part)
    }
    runs |= {f"increment@{name}" for name in settings.chain}
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    kinds = [name for name, stage in stages.items() if stage.get("foreach") == "${benchmarks}"]
    analyses = {f"{kind}@{name}" for kind in kinds for name in settings.benchmarks}
    single = {name for name, stage in stages.items() if "foreach" not in stage}
    assert set(lock) == {*single, *runs, *analyses} and len(single) == 6 and len(kinds) >= 4


def test_every_stage_has_one_code_dependency(tmp_path):
    """It is there under its name for every run that can be planned, and nothing but code is named by hand."""
    for name in ("ciss", "notebooks"):
        (tmp_path / name).symlink_to(ROOT / name)
    written = set(store_code.stages(tmp_path))
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert stages.pop("source")["outs"] == [".source"]
    used = set()
    del stages["content"]  # which runs every time
    for name, stage in stages.items():
        (code,) = (dep for dep in stage.get("do", stage)["deps"] if dep.startswith(".source/"))
        for method in METHODS:
            used.add(code.removeprefix(".source/").replace("${item.code}", method))
        assert code.replace("${item.code}", "mib").removeprefix(".source/") in written, name
    assert used == written, "nothing is written for no stage"


def test_an_analysis_has_a_folder_for_itself():
    """A stage empties its folders before it runs: none is another's, or has files that are made by hand."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    owners = {}
    for name, stage in stages.items():
        for out in stage.get("do", stage)["outs"]:
            (path, options) = next(iter(out.items())) if isinstance(out, dict) else (out, {})
            if options.get("cache") is False:
                owners.setdefault(path, []).append(name)
    assert set(owners) >= {"reports/benchmarks/${key}/forgetting", "reports/compare", ".reported", "reports/notebooks"}
    assert all(len(names) == 1 for names in owners.values())
    for path, (name,) in owners.items():
        assert path.startswith("reports/benchmarks/${key}/") or name in ("compare", "report", "copy_notebooks"), path


def changed(folder: Path) -> set[str]:
    """Stages that `dvc repro` would run again, what only follows from other stages left out."""
    run(folder, "dvc", "repro", "-q", "source")
    return set(json.loads(run(folder, "dvc", "status", "--json")))


@pytest.mark.slow
def test_the_whole_pipeline(study, tmp_path):
    metrics = json.loads((study / "reports" / "metrics.json").read_text())
    assert set(metrics["shapes"]) == {"finetune", "mib", "joint"}
    assert {"all", "old", "new", "forgetting"} <= set(metrics["shapes"]["mib"])
    assert "all" in run(study, "dvc", "metrics", "show")
    page = (study / "reports" / "report.html").read_text(encoding="utf-8")
    figures = ("benchmarks/shapes/forgetting/forgetting.png", "benchmarks/shapes/background/background.png")
    for picture in (*figures, "compare/predictions/shapes.steps.png"):
        assert base64.b64encode((study / "reports" / picture).read_bytes()).decode() in page, picture
    assert (study / "reports" / "shapes" / "shapes-s0-mib-2.ipynb").is_file()

    # --- again: nothing to do
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "up to date" in run(study, "dvc", "repro")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 8, "processor seconds: others work too"
    assert not changed(study)
    repository.copy(study, clone := tmp_path / "clone")

    # --- meaning, not files: a comment, a docstring, a notebook executed by hand
    loop, notebook = clone / "ciss" / "training" / "loop.py", clone / "notebooks" / "3_increment.ipynb"
    loop.write_text(
        loop.read_text().replace('"""The training loop', '"""A remark. The training loop') + "# a comment\n"
    )
    book = json.loads(notebook.read_text())
    book["cells"][1]["outputs"] = []
    book["cells"][1]["execution_count"] = 99
    notebook.write_text(json.dumps(book))
    assert not changed(clone)

    # --- one method's number: that method, the analyses, and the page, which shows it
    parameters = clone / "params.yaml"
    before = parameters.read_text()
    parameters.write_text(before.replace("distillation: 10.0", "distillation: 5.0"))
    increments = {"increment@shapes-s0-mib-1", "increment@shapes-s0-mib-2"}
    assert changed(clone) == {"check", "probe@shapes", "report", *increments}
    ran = run(clone, "dvc", "repro", "compare")
    assert "Running stage 'increment@shapes-s0-mib-2'" in ran
    assert "Running stage 'compare'" in ran
    assert "Running stage 'base" not in ran
    assert "Running stage 'increment@shapes-s0-finetune" not in ran
    analyses = {f"{name}@shapes" for name in ("probe", "forgetting", "background")}
    assert changed(clone) - {"report", "copy_notebooks"} == analyses, "the other analyses read the same results"

    # --- back again: from the run cache, without training
    parameters.write_text(before)
    ran = run(clone, "dvc", "repro")
    assert "Running stage 'increment" not in ran
    assert json.loads((clone / "reports" / "metrics.json").read_text()) == metrics

    # --- a picture that is not the one on the page
    (clone / "reports" / figures[0]).write_bytes(b"")
    assert {"forgetting@shapes", "report"} <= changed(clone)

    # --- a real edit of the training code does re-run it
    log = clone / "ciss" / "training" / "log.py"
    log.write_text(log.read_text().replace("CHECK_EVERY = 50", "CHECK_EVERY = 51"))
    assert "base@shapes-s0" in changed(clone)


@pytest.mark.slow
def test_views_of_dvc_fit_100_columns(study, tmp_path):
    """The commands of the documentation, after an experiment that changed a coefficient, its scores and its results."""
    repository.copy(study, folder := tmp_path / "project")
    parameters, metrics = folder / "params.yaml", folder / "reports" / "metrics.json"
    parameters.write_text(parameters.read_text().replace("distillation: 10.0", "distillation: 5.0"))
    scores = json.loads(metrics.read_text())
    scores["shapes"]["mib"] = {name: value + 0.25 for name, value in scores["shapes"]["mib"].items() if name != "seeds"}
    metrics.write_text(json.dumps(scores))
    with open(folder / "results/shapes/shapes-s0-mib-2/result.json", "a") as stream:
        stream.write("\n")
    run(folder, "dvc", "exp", "save", "-n", "low")
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    commands = re.findall(r"uv run (dvc (?:exp show|exp diff|metrics diff|params diff).*?)(?: +#.*)?\n", text)
    assert len(commands) == 5
    for command in commands:
        lines = run(folder, *shlex.split(command), COLUMNS="100").splitlines()
        assert max(map(len, lines)) <= 100 and "…" not in "".join(lines), command
        assert any(("distillation" if "params" in command else "shapes.mib.all") in line for line in lines), command


@pytest.mark.slow
def test_own_images_that_change_are_prepared_again(tmp_path):
    folder = repository.make_code(tmp_path / "project")
    leaves = folder / "data" / "leaves"
    for split in ("train", "val"):
        for number in range(8):
            mask = np.zeros((32, 32), np.uint8)
            mask[4:20, 4:20] = 1 + number % 2
            for kind, array in (("images", mask * 90), ("masks", mask)):
                file = leaves / kind / split / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).convert("RGB" if kind == "images" else "L").save(file)
    (leaves / "dataset.yaml").write_text("classes: {1: leaf, 2: stem}\n")
    small = ("model.encoder=ciss_tiny", "model.pretrained=false", "model.output_stride=4", "holdout=0")
    repository.commit(folder, ("leaves", "1-1", "--name", "leaves", *(f"--set={value}" for value in small)))
    assert "Running stage 'prepare@leaves'" in run(folder, "dvc", "repro", "prepare")
    index = folder / "data" / "index" / "leaves" / "index.json"
    first = index.read_bytes()

    with open(leaves / "dataset.yaml", "a") as stream:
        stream.write("# a comment\n")
    again = run(folder, "dvc", "repro", "prepare")
    assert "Running stage 'content@leaves'" in again and "Stage 'prepare@leaves' didn't change" in again

    Image.fromarray(np.full((32, 32), 2, np.uint8)).save(leaves / "masks" / "train" / "0.png")
    assert "Running stage 'prepare@leaves'" in run(folder, "dvc", "repro", "prepare")
    assert index.read_bytes() != first
