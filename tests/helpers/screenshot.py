"""A picture of a page as a browser shows it, for README and docs.

    uv run ciss report
    uv run python -m tests.helpers.screenshot reports/report.html docs/pictures/report.png --top 812 --height 892

It needs Chromium or Chrome. For the page of `ciss watch`, name its address instead of a file.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from ciss.store import files
from ciss.study.copies import with_palette

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 900, 900  # CSS pixels
SCALE = 1.5  # pixels of the picture for each CSS pixel
LARGEST = 150_000  # bytes
WAIT = 60  # seconds


def screenshot(page: str, picture: Path, width: int = WIDTH, height: int = HEIGHT, top: int = 0) -> int:
    """Writes a part of a page as PNG with a palette; returns its size in bytes.

    Args:
        page: a file or an address.
        width, height: of the picture, in CSS pixels.
        top: CSS pixels above it that are left out.

    Raises: FileNotFoundError without a browser or without the file, ValueError for a picture that is too large.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"no browser found ({', '.join(BROWSERS)}). Install Chromium.")
    if "://" not in page and not Path(page).is_file():
        raise FileNotFoundError(f"{page}: there is no such page. Run: ciss report")
    address = page if "://" in page else Path(page).resolve().as_uri()
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "page.png")
        options = f"--headless --no-sandbox --hide-scrollbars --force-device-scale-factor={SCALE}".split()
        options += [f"--user-data-dir={folder}/profile", f"--window-size={width},{top + height}"]
        command = [browser, *options, f"--screenshot={shot}", address]
        subprocess.run(command, check=True, capture_output=True, timeout=WAIT)
        with Image.open(shot) as whole:
            whole.crop((0, round(top * SCALE), *whole.size)).save(part := io.BytesIO(), "PNG")
    content = with_palette(part.getvalue())
    if len(content) > LARGEST:
        raise ValueError(f"{picture}: {len(content)} bytes, but at most {LARGEST}. Use a smaller --height.")
    picture.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(picture, content)
    return len(content)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a picture of a page.")
    parser.add_argument("page", help="file or address")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--width", type=int, default=WIDTH, help="CSS pixels, default %(default)s")
    parser.add_argument("--height", type=int, default=HEIGHT, help="CSS pixels, default %(default)s")
    parser.add_argument("--top", type=int, default=0, help="CSS pixels above the picture, default %(default)s")
    arguments = parser.parse_args()
    try:
        size = screenshot(**vars(arguments))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.picture}: {size} bytes")


if __name__ == "__main__":
    main()
