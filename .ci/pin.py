# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Renews the pins: `uv run .ci/pin.py` resolves the newest versions allowed, with all extras, and writes them to
`pyproject.toml` and `constraints.txt`. With `--keep`, versions in `uv.lock` change only where they must.

A lock file is full of download addresses and stays out of git; a list of exact versions pins the same closure without.
Both files change together or, when the resolution fails, not at all. The lines above make this a script with an
environment of its own: uv runs it also while the project's pins exclude a new dependency.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)
EXPORT = "export --frozen --all-extras --all-groups --no-hashes --no-emit-project --no-annotate --no-header"


def main(options: list[str]) -> None:
    """Options: `--keep`."""
    if unknown := set(options) - {"--keep"}:
        raise SystemExit(f"unknown option: {', '.join(sorted(unknown))}. The only option is --keep.")
    root = Path(__file__).resolve().parents[1]
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "pyproject.toml").write_text(BLOCK.sub("", project), encoding="utf-8")
        if "--keep" in options:
            shutil.copy(root / "uv.lock", scratch)
        uv("lock" if "--keep" in options else "lock --upgrade", scratch)
        pins = uv(EXPORT, scratch).split("\n")
    pins = sorted(pin.strip() for pin in pins if pin.strip())
    # A local version (1.0+cpu) or an address exists on one machine only.
    if foreign := [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+( ; .+)?", pin)]:
        raise SystemExit(f"these are not versions everybody can install: {', '.join(foreign)}")
    block = "".join(["constraint-dependencies = [\n", *(f'    "{pin}",\n' for pin in pins), "]\n"])
    if BLOCK.search(project):
        project = BLOCK.sub(lambda _: block, project)
    else:
        project = project.replace("[tool.uv]\n", f"[tool.uv]\n{block}", 1)
    (root / "pyproject.toml").write_text(project, encoding="utf-8")
    (root / "constraints.txt").write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
    uv("lock", root)
    print(f"{len(pins)} packages pinned; `uv run pytest` checks them")


def uv(arguments: str, folder: str | Path) -> str:
    return subprocess.run(["uv", *arguments.split()], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(sys.argv[1:])
