"""`ciss plan` in a project with nothing in it, and presets as benchmarks."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ciss import cli, config
from ciss.study import presets


class Plans:
    """A project with nothing in it, and `ciss plan` in it."""

    def __init__(self, folder: Path, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.file = folder / "params.yaml"

    def __call__(self, *arguments: str) -> str:
        """Runs the command; returns what it prints."""
        cli.main(["plan", *arguments])
        out, err = self.capsys.readouterr()
        assert err == ""
        return out

    def fails(self, *arguments: str) -> str:
        """The one message of a command that cannot do what it is asked; no file has changed."""
        before = self.files()
        with pytest.raises(SystemExit) as caught:
            self(*arguments)
        err = self.capsys.readouterr().err
        message = str(caught.value) if err == "" else err[err.index("error: ") :]
        assert message.startswith("error: ") and "Traceback" not in message and len(message.splitlines()) == 1
        assert self.files() == before
        return message.removeprefix("error: ").strip()

    def files(self) -> dict[Path, bytes | None]:
        return {file: file.read_bytes() if file.is_file() else None for file in sorted(self.folder.rglob("*"))}

    @property
    def text(self) -> str:
        return self.file.read_text()

    @property
    def document(self) -> dict:
        return YAML(typ="safe", pure=True).load(self.text)

    @property
    def config(self) -> config.Config:
        return config.load("params.yaml")

    def edit(self, old: str, new: str) -> None:
        assert self.text.count(old) == 1, old
        self.file.write_text(self.text.replace(old, new))


def load(name: str) -> tuple[config.Benchmark, dict]:
    """A preset as a benchmark, and the coefficients it sets."""
    document = json.loads(json.dumps(presets.load(name)))
    methods = document.pop("methods", {})
    document.pop("runs", None)
    return config.validate(config.Benchmark, document, f"{name}.yaml", ""), methods
