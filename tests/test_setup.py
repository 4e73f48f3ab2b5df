"""uv, pip and conda users get the same versions, from lists that hold versions and nothing else."""

import json
import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
ENVIRONMENT = YAML(typ="safe").load(ROOT / "environment.yml")
PIP = next(item["pip"] for item in ENVIRONMENT["dependencies"] if isinstance(item, dict))
EXTRAS = PROJECT["project"]["optional-dependencies"]
DEV = PROJECT["dependency-groups"]["dev"]
DEPENDENCIES = [*PROJECT["project"]["dependencies"], *chain(*EXTRAS.values()), *DEV]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def test_both_lists_are_the_same():
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == PINS, "renew them: uv run .ci/pin.py"


def test_every_pin_is_one_exact_version():
    """Of a release: a local version (1.0+cpu) cannot be installed elsewhere."""
    pins = [Requirement(pin) for pin in PINS]
    assert len(names(PINS)) == len(pins)
    for pin in pins:
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), pin


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_is_pinned(dependency):
    wanted = Requirement(dependency)
    pins = [pin for pin in map(Requirement, PINS) if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert pins, "renew the pins: uv run .ci/pin.py"
    assert pins[0].marker is None
    assert wanted.specifier.contains(str(pins[0].specifier).removeprefix("=="))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("uv"), reason="uv is not installed")
def test_the_pins_allow_every_extra():
    """All extras and tools at once, so each of them alone too. The registry knows what a package needs."""
    command = "uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11"
    command += " --constraints constraints.txt --no-annotate --no-header"
    done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 2 and re.search("Request failed|Failed to fetch", done.stderr):
        pytest.skip("the package registry does not answer")
    assert done.returncode == 0, done.stderr
    needed, pinned = ({line.split(" ; ")[0] for line in lines} for lines in (done.stdout.splitlines(), PINS))
    assert needed == pinned, "renew the pins: uv run .ci/pin.py --keep"


def test_conda_installs_the_same():
    options, tools = [item for item in PIP if item.startswith("-")], [item for item in PIP if not item.startswith("-")]
    assert options == ["-c constraints.txt", f"-e .[{','.join(EXTRAS)}]"]
    assert sorted(tools) == sorted(re.split("[<>=]", dependency)[0] for dependency in DEV), "names with their extras"
    python = next(item for item in ENVIRONMENT["dependencies"] if str(item).startswith("python "))
    offered = SpecifierSet(python.removeprefix("python "))
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in offered]
    assert minors
    assert all(minor in supported for minor in minors)
    assert "pip" in ENVIRONMENT["dependencies"]


def test_the_container_installs_the_same():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert (
        f'-c constraints.txt ${{TORCH:+--torch-backend "$TORCH"}} \\\n    -e ".[{",".join(EXTRAS)}]" --group dev'
        in dockerfile
    )
    (python,) = re.findall(r"^FROM python:(3\.\d+)-slim$", dockerfile, re.MULTILINE)
    assert python in SpecifierSet(PROJECT["project"]["requires-python"])
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert copied and all((ROOT / name).exists() for name in copied)
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert (ROOT / ".devcontainer" / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f"WORKDIR {container['workspaceFolder']}\n" in dockerfile, "the installed package is the one that is edited"


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_files_for_the_code_host_are_read(file):
    """Forms of issues have an id for each field, workflows have jobs."""
    document = YAML(typ="safe").load(file)
    if file.parent.name == "workflows":
        assert all(job["steps"] for job in document["jobs"].values())
    elif file.stem != "config":
        fields = [part["id"] for part in document["body"]]
        assert len(set(fields)) == len(fields) and document["name"] and document["description"]


def test_the_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)[0] == PROJECT["project"]["version"]
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize(
    "file",
    [
        "pyproject.toml",
        "constraints.txt",
        "environment.yml",
        ".ci/run",
        "Dockerfile",
        ".devcontainer/devcontainer.json",
    ],
)
def test_no_address(file):
    """An index, a local folder or a wheel's address works on one machine only."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not re.search(r"://|file:|find-links|index-url|\+cpu|\+cu\d", text)


def test_citation():
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "license"} <= set(citation)
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    gsc, mbs, plop, mib = citation["references"]
    assert gsc["doi"] == "10.1109/TMM.2023.3336243"
    assert gsc["identifiers"][0]["value"] == "arXiv:2307.10822"
    assert mbs["identifiers"][0]["value"] == "arXiv:2407.11859"
    assert plop["identifiers"][0]["value"] == "arXiv:2011.11390"
    assert mib["identifiers"][0]["value"] == "arXiv:2002.00718"
    for reference, authors in ((gsc, 5), (mbs, 5), (plop, 4), (mib, 5)):
        assert {"type", "title", "year"} <= set(reference)
        assert len(reference["authors"]) == authors
        assert all(set(author) == {"family-names", "given-names"} for author in reference["authors"])


def test_licence_is_complete():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
