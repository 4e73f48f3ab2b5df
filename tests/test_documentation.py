"""The documentation site builds without a warning, its links resolve, and it loads nothing from elsewhere."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ciss import paths

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


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_link_resolves(site):
    wrong, count = [], 0
    for file in pages(site):
        for tag in page(file).find_all(["a", *LOADED]):
            address = urlsplit(tag.get(LOADED.get(tag.name, "href")) or "")
            if address.scheme or address.netloc or not (address.path or address.fragment):
                continue
            target = (file.parent / unquote(address.path)).resolve() if address.path else file
            count += 1
            if not target.is_file():
                wrong.append(f"{file.relative_to(site)}: {address.path}")
            elif target.suffix == ".html" and unquote(address.fragment) not in anchors(target) | {""}:
                wrong.append(f"{file.relative_to(site)}: {address.path}#{address.fragment}")
    assert not wrong
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site):
    for file in pages(site):
        loaded = [tag.get(key) or "" for name, key in LOADED.items() for tag in page(file).find_all(name)]
        assert not [address for address in loaded if urlsplit(address).scheme not in ("", "data")], file
        scripts = " ".join(tag.get_text() for tag in page(file).find_all(["script", "style"]))
        assert not re.search(r"(import|fetch|url)\W{1,3}https?:", scripts), file
    for file in site.rglob("*.css"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), file


def test_the_address_of_the_site_shows_the_front_page(site):
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")
