"""Pictures of pages in README and docs: small, used, and made by one command."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ciss import paths
from tests.helpers import screenshot

ROOT = paths.project()
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*"))
PAGE = """<body style="margin: 0; background: white">
<div style="height: 100px; background: red"></div>
<div style="height: 40px; width: 50px; background: blue"></div>
</body>"""


@pytest.mark.parametrize("picture", PICTURES, ids=lambda file: file.name)
def test_a_picture_is_small_and_shown(picture):
    assert picture.stat().st_size <= screenshot.LARGEST
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert [page for page in pages if f'pictures/{picture.name}" width=' in page.read_text(encoding="utf-8")]
    assert f"docs/pictures/{picture.name}" in screenshot.__doc__, "the command that makes it again"


@pytest.mark.skipif(not any(map(shutil.which, screenshot.BROWSERS)), reason="needs a browser")
def test_the_picture_of_a_part_of_a_page(tmp_path, monkeypatch):
    (tmp_path / "page.html").write_text(PAGE)
    file = tmp_path / "pictures" / "page.png"
    page = str(tmp_path / "page.html")
    size = screenshot.screenshot(page, file, width=600, height=60, top=100)
    with Image.open(file) as picture:
        assert picture.size == (900, 90) and size == file.stat().st_size
        shown = np.asarray(picture.convert("RGB"))
    assert (shown[:60, :75] == (0, 0, 255)).all() and (shown[61:] == 255).all(), "40 x 50 CSS pixels, and paper"
    monkeypatch.setattr(screenshot, "LARGEST", 10)
    with pytest.raises(ValueError, match=f"page.png: {size} bytes, but at most 10. Use a smaller --height."):
        screenshot.screenshot(page, file, width=600, height=60, top=100)


def test_a_page_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(FileNotFoundError, match="report.html: there is no such page. Run: ciss report"):
        screenshot.screenshot(str(tmp_path / "report.html"), tmp_path / "a.png")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no browser found"):
        screenshot.screenshot(__file__, tmp_path / "a.png")
