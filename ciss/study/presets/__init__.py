"""Presets of benchmarks: documents of numbers, each saying where they are from and what to expect."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

FOLDER = Path(__file__).parent
RENAMED = {"gsc-paper": "gsc-source"}  # variants: old name -> present name


def presets() -> dict[str, Path]:
    """Files by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def load(name: str) -> CommentedMap:
    """A preset with its comments. One that is `like` another is that one but for the keys it says; `methods` and `runs`
    (what a plan takes when nothing is named) are sections beside the benchmark's own."""
    yaml = YAML()
    yaml.preserve_quotes = True
    document = yaml.load(presets()[name].read_text(encoding="utf-8"))
    if "like" not in document:
        return document
    whole = load(document.pop("like"))
    whole.ca.comment = document.ca.comment  # the head is its own
    _change(whole, document)
    return whole


def _change(document: CommentedMap, changes: CommentedMap) -> None:
    """Values with the comments behind them."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            _change(document[key], value)
            continue
        document[key] = value
        document.ca.items.pop(key, None)
        if key in changes.ca.items:
            document.ca.items[key] = changes.ca.items[key]


def present_names(methods: list[str] | None) -> list[str] | None:
    """Method sections by their present names. Prints a line for each old name."""
    for method in methods or []:
        if method in RENAMED:
            print(f"{method} is now called {RENAMED[method]}: its coefficients are those of GSC's sources.")
    return methods and [RENAMED.get(method, method) for method in methods]
