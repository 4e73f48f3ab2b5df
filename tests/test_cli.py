"""The command `ciss`: its help, its hints, what it imports, and the old names of its commands."""

import inspect
import os
import resource
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from typer.main import get_command

import ciss
from ciss import arguments, cli, old_names
from ciss.data.commands import DOWNLOADS

PACKAGE = Path(ciss.__file__).parent
COMMANDS = get_command(cli.app).commands
HELPS = [[name] for name in COMMANDS if name != "data"] + [["data", name] for name in COMMANDS["data"].commands]
# What a training may import, with what these packages need themselves: filelock and jinja2 by torch, pillow by
# torchvision, tqdm by timm's huggingface_hub.
TRAINING = {"torch", "torchvision", "timm", "numpy", "pydantic", "ruamel.yaml", "safetensors", "typer"}
TRAINING |= {"filelock", "pillow", "tqdm"}
COMPILER = {"timm", "torchvision", "torch._dynamo"}
# Its first argument: modules to import; prints which of the others are there afterwards.
IMPORTS = """
import importlib, sys
for name in sys.argv[1].split():
    importlib.import_module(name)
print(*(name for name in sys.argv[2].split() if name in sys.modules))
"""


def python(code: str, *arguments: str, **variables: str) -> str:
    """What a fresh Python prints."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | variables).stdout


def failing(*arguments: str) -> int | str:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_help_shows_an_example(words, capsys):
    assert failing(*words, "--help") == 0
    out, err = capsys.readouterr()
    assert f"\n  ciss {' '.join(words)}" in out and err == ""
    assert "--help" in out and out.startswith(f"usage: ciss {' '.join(words)} ")


def test_without_a_command_all_are_listed(capsys):
    cli.main([])
    out = capsys.readouterr().out
    assert all((f"\n  {name} " in out) != command.hidden for name, command in COMMANDS.items())
    assert {name for name, command in COMMANDS.items() if command.hidden} == {"source", "execute", "copy-notebooks"}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["plna"], "No such command 'plna'. Did you mean 'plan'?"),
        (["data", "fecth"], "No such command 'fecth'. Did you mean 'fetch'?"),
        (["plan", "shapes", "--method", "mib"], "--methods"),
        (["plan", "--check", "--clean"], "--clean: not allowed with --check"),
        (["predict", "a", "b.png", "--device", "gpu"], "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["data", "fetch", "vocc"], "'vocc' is not one of 'voc', 'sbd', 'ade20k', 'cityscapes'"),
        (["plan", "shapes", "--seeds"], "'--seeds': Input should be a valid integer"),
        (["plan", "shapes", "--seeds=-1"], "'--seeds': Input should be greater than or equal to 0"),
        (["plan", "shapes", "--orders", "0"], "'--orders': Input should be greater than or equal to 1"),
        (["train", "--jobs", "0"], "'--jobs': Input should be greater than or equal to 1"),
        (["plan"], "name a data set, or use --check or --clean"),
        (["execute", "a.ipynb", "b.ipynb", "-p", "run"], "write a name and a value"),
    ],
)
def test_a_wrong_argument_has_a_usage_and_a_hint(arguments, hint, capsys):
    assert failing(*arguments) == 2
    out, err = capsys.readouterr()
    usage, message = err.splitlines()
    assert out == "" and usage.lower().startswith("usage: ciss") and message.startswith("error: ")
    assert hint in message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("voc --seeds 0 1 --add", "voc --seeds 0 --seeds 1 --add"),
        ("--seeds 0 --seeds 1", "--seeds 0 --seeds 1"),
        ("--seeds -1 2", "--seeds -1 --seeds 2"),
        ("--seeds=3 4-2", "--seeds=3 4-2"),
        ("--methods a b --seeds 0", "--methods a --methods b --seeds 0"),
        ("--name a b", "--name a b"),
    ],
)
def test_several_values_of_an_option(given, expected):
    assert arguments.repeat_options(given.split(), {"--seeds", "--methods"}) == expected.split()


def test_an_option_without_values_has_none():
    assert arguments.repeat_options(["--methods", "--add"], {"--methods"}) == ["--methods", "", "--add"]
    assert arguments.repeat_options(["a", "--methods"], {"--methods"}) == ["a", "--methods", ""]


def test_every_download_is_a_choice():
    assert set(get_args(get_args(inspect.signature(cli.data_fetch).parameters["dataset"].annotation)[0])) == set(
        DOWNLOADS
    )


def test_every_method_is_offered():
    """By file, because the help may not import the methods."""
    from ciss.methods import METHODS

    assert set(arguments.METHODS) == set(METHODS) - {"joint"}


def test_the_shell_completes_names():
    words = {"_CISS_COMPLETE": "complete_bash", "COMP_WORDS": "ciss plan vo", "COMP_CWORD": "2"}
    assert python("from ciss import cli; cli.main()", **words).split() == ["voc", "voc8"]


@pytest.mark.parametrize("old", old_names.NEW)
def test_an_old_name_does_the_work_and_names_the_new_command(old, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "main", asked.append)
    module = f"ciss.{old.removesuffix('.__main__')}"
    monkeypatch.setattr(sys, "argv", [module, "some", "--words"])
    runpy.run_module(module, run_name="__main__", alter_sys=False)
    new = old_names.NEW[old]
    assert new in COMMANDS and asked == [[new, "some", "--words"]]
    assert capsys.readouterr().err == f"python -m {module} is now: ciss {new}\n"


def test_an_old_name_under_python_m():
    done = subprocess.run([sys.executable, "-m", "ciss.plan", "--sets"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "python -m ciss.plan is now: ciss plan"


def test_help_imports_no_more_than_typer():
    """And takes at most half a second of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "import sys\nfrom ciss import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
    out = python(code + "print(*sorted({name.partition('.')[0] for name in sys.modules}))")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    there = set(out.splitlines()[-1].split())
    assert "typer" in there and not there & {"torch", "numpy", "pandas", "matplotlib", "timm", "ruamel", "pydantic"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_light_modules_import_neither_timm_nor_the_compiler():
    """torchvision imports torch's compiler: seconds that planning, analysing and reporting need not wait for."""
    files = [*PACKAGE.glob("analysis/**/*.py"), *PACKAGE.glob("study/report/*.py")]
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    names += ["ciss.cli", "ciss.study.plan", "ciss.study.plan_check", "ciss.runs.results", "ciss.training.loop"]
    assert "ciss.analysis.compare.tables" in names and "ciss.study.report.page" in names
    assert python(IMPORTS, " ".join(names), " ".join(COMPILER)) == "\n"


def test_commands_of_data_import_no_torch():
    assert python(IMPORTS, "ciss.data.commands", "torch pandas matplotlib") == "\n"


def test_training_needs_few_packages(project):
    """All other dependencies are hidden."""
    requirements = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    hidden = {Requirement(line).name for line in requirements["dependencies"]} - TRAINING
    hidden |= {"IPython", "nbformat", "nbclient", "jupyter_client", "sklearn", "ipywidgets"}
    assert {"pandas", "matplotlib", "papermill", "scipy", "psutil"} <= hidden
    project.write()
    code = f"import sys\nsys.modules.update(dict.fromkeys({sorted(hidden)}))\nfrom ciss import cli\n"
    out = python(f"{code}cli.main(['train', 'base'])\ncli.main(['train', 'mib-1'])")
    assert "base: epoch 2/2" in out and "mib-1: epoch 2/2" in out


def test_a_missing_package_is_named_with_what_to_do(project, monkeypatch):
    project.write()
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "ciss.study.report"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert failing("report") == "error: this command needs the package matplotlib. Install the project: uv sync"
