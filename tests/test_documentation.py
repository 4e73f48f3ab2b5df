"""The documentation site builds without a warning, its links resolve, and it loads nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from ciss import arguments, config, metrics, paths
from ciss.data.stored import Memory
from ciss.methods import METHODS

pytest.importorskip("myst_nb", reason="needs the extra docs")
from bs4 import BeautifulSoup

ROOT = paths.project()
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@cache
def page(file: Path) -> BeautifulSoup:
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(file: Path) -> set[str]:
    return {tag["id"] for tag in page(file).find_all(id=True)}


@cache
def resolved(folder: Path, address: str) -> Path | None:
    """The file that an address in a page of this folder names, if it is there."""
    file = Path(os.path.normpath(folder / unquote(address)))
    return file if file.is_file() else None


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


@pytest.mark.slow
def test_every_link_resolves(site):
    wrong, count = [], 0
    for file in pages(site):
        for tag in page(file).find_all(["a", *LOADED]):
            address = urlsplit(tag.get(LOADED.get(tag.name, "href")) or "")
            if address.scheme or address.netloc or not (address.path or address.fragment):
                continue
            target = resolved(file.parent, address.path) if address.path else file
            count += 1
            if target is None:
                wrong.append(f"{file.relative_to(site)}: {address.path}")
            elif target.suffix == ".html" and unquote(address.fragment) not in anchors(target) | {""}:
                wrong.append(f"{file.relative_to(site)}: {address.path}#{address.fragment}")
    assert not wrong
    assert count > 1000


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    for file in pages(site):
        loaded = [tag.get(key) or "" for name, key in LOADED.items() for tag in page(file).find_all(name)]
        assert not [address for address in loaded if urlsplit(address).scheme not in ("", "data")], file
        scripts = " ".join(tag.get_text() for tag in page(file).find_all(["script", "style"]))
        assert not re.search(r"(import|fetch|url)\W{1,3}https?:", scripts), file
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), file


@pytest.mark.slow
def test_the_font_has_every_sign_of_the_formulas(site):
    from fontTools.ttLib import TTFont

    font = TTFont(ROOT / "docs/_static/formulas.woff")
    used = {sign for file in pages(site) for formula in page(file).find_all("math") for sign in formula.get_text()}
    assert len(used) > 60
    assert not [sign for sign in used if not sign.isspace() and ord(sign) not in font.getBestCmap()]
    assert "MATH" in font  # heights of roots, braces and sums


@pytest.mark.slow
def test_the_address_of_the_site_shows_the_front_page(site):
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")


def text_of(site: Path, name: str) -> str:
    return page(site / "docs" / f"{name}.html").find("article").get_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_its_coefficients(site, name):
    text = text_of(site, f"methods/{name}")
    assert "<!--" not in text
    assert f"methods/{name}.html" in str(page(site / "docs/index.html"))
    assert not [entry.name for entry in fields(METHODS[name]) if entry.name not in text]


@pytest.mark.slow
def test_every_key_and_option_has_a_row_with_its_meaning(site):
    rows = page(site / "docs/reference/parameters.html").find("article").find_all("tr")
    cells = [[cell.get_text().strip() for cell in row.find_all("td")] for row in rows]
    meanings = {row[0]: row[-1] for row in cells if row}
    keys = {key.rpartition(".")[2] for key in config._keys(config.Config)} - {"file"}
    keys |= {key.rpartition(".")[2] for key in config._keys(config.Benchmark)}
    keys |= {entry.name for entry in fields(Memory)}
    assert keys <= set(meanings)
    assert not [key for key, meaning in meanings.items() if not meaning]
    commands = text_of(site, "reference/commands")
    assert {"--estimate", "--per-run", "ciss data fetch", "--against"} <= set(
        re.findall(r"--[a-z-]+|ciss data \w+", commands)
    )
    assert not [name for name in arguments.METHODS if name not in commands]


@pytest.fixture
def extension(monkeypatch):
    """extension("messages") -> that module of `docs/extensions`."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return lambda name: importlib.import_module(f"extensions.{name}")


def test_the_four_pixels():
    """The table of the page, computed by the functions that compute all scores."""
    table = (ROOT / "docs/concepts/scores.md").read_text(encoding="utf-8").split("<!-- four pixels -->")[1]
    rows = [re.findall(r"[\w.]+", row)[:4] for row in table.split("<!-- end -->")[0].strip().splitlines()[2:]]
    truth, predicted = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 2, 2])
    matrix = metrics.confusion_matrix(truth, predicted, classes=4)
    for name, *cells in rows:
        scores = metrics.scores(matrix, [1, 1, 1], 1, metrics.CONVENTIONS[name])
        assert cells == [f"{100 * scores[key]:.1f}" for key in ("all", "old", "new")], name
    assert [row[0] for row in rows] == list(metrics.CONVENTIONS)


def test_messages_of_the_headings_exist(extension):
    """The longest part of a heading without names and numbers is in a message of the code."""
    messages = extension("messages").messages()
    headings = re.findall(
        r"^### `([^`]+)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(headings) > 8
    for heading in headings:
        assert max(re.findall(r"[a-z][a-z ,:]*[a-z]", heading), key=len) in messages, heading


def test_messages_have_the_names_of_what_is_inserted(extension, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(
        "def check(path):\n"
        "    problem = f'{path.name}: the file is empty'\n"
        "    raise DataError(f'{problem}. Remove it, or write {len(path.wanted)} lines.')\n"
        "    raise KeyError(path)\n"
    )
    assert set(extension("messages")._of_file(file)) == {"NAME: the file is empty. Remove it, or write WANTED lines."}


@pytest.mark.parametrize(
    ("formula", "markup"),
    [
        (r"\tilde{y}_i", "<msub><mover accent=true><mi>y</mi><mo>~</mo></mover><mi>i</mi></msub>"),
        (r"\log q", "<mi>log</mi><mspace/><mi>q</mi>"),
        ("p'", "<mi>p</mi><mo>′</mo>"),
    ],
)
def test_formulas(extension, formula, markup):
    text = extension("formulas").markup(formula)
    text = re.sub(r'\s+(?!accent)[a-z]+="[^"]*"|\s*\n\s*', "", text).replace(' accent="true"', " accent=true")
    assert markup.replace('"', "") in text.replace('"', "").replace(" />", "/>")


def test_fields_are_described_by_their_comments(extension):
    source = """
    class Part:
        # --- a heading
        size: int = 1  # in pixels
        # a line above,
        # and another
        name: str
        pair: tuple = (
            1,  # within
        )
        bare: int = 2
    """
    meanings = {"size": "in pixels", "name": "a line above, and another", "pair": "within", "bare": ""}
    assert extension("text").field_comments(source) == meanings
