"""The pipeline at smoke size, in a repository of its own: what re-runs, and what does not."""

import ast
import base64
import json
import resource
from pathlib import Path

import pytest
import repository
from repository import run
from ruamel.yaml import YAML

from ciss import config, paths

ROOT = paths.project()


def test_every_stage_of_the_default_plan_is_in_the_lock():
    """`dvc.lock` names the runs of `params.yaml`: nothing was committed half-made."""
    settings = config.load(ROOT / "params.yaml")
    lock = YAML(typ="safe").load(ROOT / "dvc.lock")["stages"]
    runs = {
        f"{kind}@{name}" for kind, part in (("base", "bases"), ("joint", "joints")) for name in getattr(settings, part)
    }
    runs |= {f"increment@{name}" for name in settings.chain}
    kinds = ("prepare", "probe", "forgetting", "background", "pictures")
    analyses = {f"{kind}@{name}" for kind in kinds for name in settings.benchmarks}
    assert set(lock) == {"source", "check", "shapes", "compare", "report", *runs, *analyses}


def test_training_depends_on_all_the_code_that_trains():
    """What `ciss.training.loop` imports, and what that imports, is a dependency of the stages that train."""
    reached, queue = set(), [ROOT / "ciss" / "engine.py"]
    while queue:
        file = queue.pop()
        if file in reached:
            continue
        reached.add(file)
        for name in imported_modules(file):
            module = ROOT / "ciss" / name
            queue += [module.with_suffix(".py")] if module.with_suffix(".py").is_file() else module.glob("*.py")
    needed = {str(file.relative_to(ROOT / "ciss")) for file in reached}
    # A progress bar, folders, hashes and checks of parameters change no number; the table of methods names them all.
    needed -= {"progress.py", "paths.py", "run_checks.py", "source.py", "methods/__init__.py"}
    needed = {name for name in needed if not name.startswith("methods/") or name == "methods/base.py"}
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    later = {"prototypes.py", "pseudo_labels.py"}  # only methods use them, once there is a teacher
    for stage, wanted in {"base": needed - later, "joint": needed - later, "increment": needed}.items():
        deps = [dep.removeprefix(".source/ciss/") for dep in stages[stage]["do"]["deps"]]
        missing = {name for name in wanted if name not in deps and name.split("/")[0] not in deps}
        assert not missing, f"{stage} does not depend on {missing}"


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "ciss":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ciss."):
            found.add(node.module.removeprefix("ciss.").replace(".", "/"))
    return found


def changed(folder: Path) -> set[str]:
    """Stages that `dvc repro` would run again, what only follows from other stages left out."""
    run(folder, "dvc", "repro", "-q", "source")
    return set(json.loads(run(folder, "dvc", "status", "--json")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_pipeline(study, tmp_path):
    metrics = json.loads((study / "reports" / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"finetune", "mib", "joint"}
    assert {"all", "old", "new", "forgetting"} <= set(metrics["methods"]["mib"])
    assert "all" in run(study, "dvc", "metrics", "show")
    page = (study / "reports" / "report.html").read_text(encoding="utf-8")
    for picture in ("shapes/forgetting.png", "shapes/background.png", "predictions/shapes.steps.png"):
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
    engine, notebook = clone / "ciss" / "engine.py", clone / "notebooks" / "3_increment.ipynb"
    engine.write_text(
        engine.read_text().replace('"""The training loop', '"""A remark. The training loop') + "# a comment\n"
    )
    book = json.loads(notebook.read_text())
    book["cells"][1]["outputs"] = []
    book["cells"][1]["execution_count"] = 99
    notebook.write_text(json.dumps(book))
    assert not changed(clone)

    # --- one method's number: that method and the analyses
    parameters = clone / "params.yaml"
    before = parameters.read_text()
    parameters.write_text(before.replace("distillation: 10.0", "distillation: 5.0"))
    assert changed(clone) == {"check", "probe@shapes", "increment@shapes-s0-mib-1", "increment@shapes-s0-mib-2"}
    ran = run(clone, "dvc", "repro", "compare")
    assert "Running stage 'increment@shapes-s0-mib-2'" in ran
    assert "Running stage 'compare'" in ran
    assert "Running stage 'base" not in ran
    assert "Running stage 'increment@shapes-s0-finetune" not in ran
    analyses = {f"{name}@shapes" for name in ("probe", "forgetting", "background", "pictures")}
    assert changed(clone) - {"report"} == analyses, "the other analyses read the same results"

    # --- back again: from the run cache, without training
    parameters.write_text(before)
    ran = run(clone, "dvc", "repro")
    assert "Running stage 'increment" not in ran
    assert json.loads((clone / "reports" / "metrics.json").read_text()) == metrics

    # --- a picture that is not the one on the page
    (clone / "reports" / "shapes" / "forgetting.png").write_bytes(b"")
    assert {"forgetting@shapes", "pictures@shapes"} <= changed(clone)

    # --- a real edit of the training code does re-run it
    watch = clone / "ciss" / "watch.py"
    watch.write_text(watch.read_text().replace("CHECK_EVERY = 50", "CHECK_EVERY = 51"))
    assert "base@shapes-s0" in changed(clone)
