"""Copies of executed notebooks in git: they work where they lie, are small, and of the default benchmark only."""

import base64
import io
import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from ciss import config, paths
from ciss.study import copies, execute

ROOT = paths.project()
NOTE = (
    "# Forgetting\n\n> The copy in the folder `notebooks/` has **smoke size**.\n> Its numbers mean nothing.\n\nText.\n"
)
LINKS = "[a](../../docs/a.md#part), ![b](../benchmarks/shapes/b.png), [c](https://c.org)"


def picture(side: int = 64) -> np.ndarray:
    """Drawn pixels of thousands of colours on white paper: (side, side, 4)."""
    image = np.full((side, side, 4), 255, np.uint8)
    half, dice = side // 2, np.random.default_rng(0)
    ramp = np.linspace(0, 230, half)
    image[:half, :half, 0] = ramp + dice.integers(0, 25, (half, half))
    image[:half, :half, 1] = ramp[:, None] + dice.integers(0, 25, (half, half))
    return image


def png(image: np.ndarray) -> bytes:
    Image.fromarray(image).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def notebook(title: str = NOTE) -> nbformat.NotebookNode:
    """As papermill leaves it."""
    output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(png(picture())).decode()})
    cells = [nbformat.v4.new_markdown_cell(text, id=name) for text, name in ((title, "title"), (LINKS, "links"))]
    cells.append(nbformat.v4.new_code_cell("draw()", outputs=[output], id="draw"))
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The default plan, its executed notebooks, and a record of the notebooks that are executed: (name, parameters)."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name in copies.BY_BENCHMARK:
        (tmp_path / "reports" / "shapes").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(), tmp_path / "reports" / "shapes" / f"{name}.ipynb")
    nbformat.write(notebook(), tmp_path / "reports" / "6_compare.ipynb")
    executed = []

    def record(source: Path, target: Path, parameters: dict) -> None:
        executed.append((source.relative_to(tmp_path).as_posix(), parameters, os.environ["OMP_NUM_THREADS"]))
        nbformat.write(notebook(), target)

    monkeypatch.setattr(execute, "main", record)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "7")
    monkeypatch.chdir(tmp_path)
    return tmp_path, executed


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_copies_of_the_default_benchmark(project):
    root, executed = project
    copies.main("shapes", "params.yaml")
    folder = root / "reports" / "notebooks"
    names = {"1_data", "4_forgetting", "5_background", "6_compare", "explore_gradients", "explore_prototypes"}
    assert {file.stem for file in folder.glob("*.ipynb")} == names
    chosen = {"config": "params.yaml", "run": "shapes-s0-gsc-2"}
    assert executed == [(f"notebooks/{name}.ipynb", chosen, "2") for name in copies.EXPLORING]
    first = nbformat.read(folder / "4_forgetting.ipynb", as_version=4).cells[0].source
    assert first == (
        "# Forgetting\n\n> **Executed copy**: results of `dvc repro` on the benchmark `shapes` (data set `shapes`, "
        "protocol `4-2`, overlapped).\n> Notebook to run yourself: "
        "[notebooks/4_forgetting.ipynb](../../notebooks/4_forgetting.ipynb).\n\nText.\n"
    )
    for name in names:
        texts = [cell.source for cell in nbformat.read(folder / f"{name}.ipynb", as_version=4).cells]
        assert f"[notebooks/{name}.ipynb](../../notebooks/{name}.ipynb)" in texts[0] and "smoke" not in texts[0]
    once = contents(folder)
    copies.main("shapes", "params.yaml")
    assert contents(folder) == once


def test_links_work_from_the_folder_of_the_copies(project):
    """`6_compare` lies one folder higher than the others; both kinds name the same files afterwards."""
    root, _ = project
    nbformat.write(notebook(NOTE.replace("Text.", "[d](../docs/d.md)")), root / "reports" / "6_compare.ipynb")
    copies.main("shapes", "params.yaml")
    links = {}
    for name in ("4_forgetting", "6_compare"):
        cells = nbformat.read(root / "reports" / "notebooks" / f"{name}.ipynb", as_version=4).cells
        links[name] = re.findall(r"\]\(([^)]+)\)", cells[0].source + cells[1].source)
    assert links["4_forgetting"][1:] == ["../../docs/a.md#part", "../benchmarks/shapes/b.png", "https://c.org"]
    assert links["6_compare"][1] == "../../docs/d.md"


def test_other_benchmarks_leave_the_folder_as_it_is(project, capsys):
    root, executed = project
    copies.main("shapes", "params.yaml")
    before = contents(root / "reports" / "notebooks")
    executed.clear()
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(
        text.replace("benchmark: shapes", "benchmark: own").replace("\n  shapes:", "\n  own:")
    )
    assert list(config.load("params.yaml").benchmarks) == ["own"]
    capsys.readouterr()
    copies.main("shapes", "params.yaml")
    assert contents(root / "reports" / "notebooks") == before and executed == []
    assert capsys.readouterr().out.endswith(
        "reports/notebooks: not changed, because params.yaml has no benchmark shapes.\n"
    )


def test_the_folder_is_never_empty(project):
    """DVC would warn: 'reports/notebooks' is empty."""
    root, _ = project
    copies.main("other", "params.yaml")
    assert [file.name for file in (root / "reports" / "notebooks").iterdir()] == ["README.txt"]


def test_a_study_without_increments_has_nothing_to_explore(project):
    """Copies of an earlier study do not stay beside those of this one."""
    root, executed = project
    copies.main("shapes", "params.yaml")
    executed.clear()
    text = re.sub(r"\nchain:\n(?:  .*\n)+", "\nchain: {}\n", (root / "params.yaml").read_text())
    text = re.sub(r"  shapes-s0-(?!joint).*run: shapes-s0-(?!joint).*\n", "", text)
    (root / "params.yaml").write_text(text)
    copies.main("shapes", "params.yaml")
    assert executed == []
    names = {file.stem for file in (root / "reports" / "notebooks").iterdir()}
    assert names == {"README", *copies.BY_BENCHMARK, copies.COMPARING}


def test_a_missing_notebook_is_one_message(project):
    root, _ = project
    (root / "reports" / "6_compare.ipynb").unlink()
    with pytest.raises(SystemExit, match="^error: .*6_compare.ipynb: there is no such notebook. Run: dvc repro$"):
        copies.main("shapes", "params.yaml")


def test_a_picture_with_a_palette_looks_the_same():
    before = png(picture(side=256))
    after = copies.with_palette(before)
    assert len(after) < len(before)
    with Image.open(io.BytesIO(after)) as image:
        assert image.mode == "P"
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - picture(256)[..., :3])
    assert difference.mean() < 3 and difference.max() <= 40
    assert (difference[128:] == 0).all(), "white stays white"
    assert copies.with_palette(after) == after


def test_transparent_pixels_are_paper():
    image = picture()
    image[40:] = (0, 0, 0, 0)
    with Image.open(io.BytesIO(copies.with_palette(png(image)))) as shown:
        assert (np.asarray(shown.convert("RGB"))[40:] == 255).all()


@pytest.mark.parametrize("name", [*copies.BY_BENCHMARK, copies.COMPARING, *copies.EXPLORING])
def test_each_notebook_has_one_note_to_replace(name):
    """That the copy in `notebooks/` is small, which the copies are not."""
    source = "".join(json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"][0]["source"])
    assert len(copies.NOTE.findall(source)) == 1 and "smoke" not in copies.NOTE.sub("", source)


COMMITTED = sorted((ROOT / "reports" / copies.FOLDER).glob("*.ipynb"))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_copies(file):
    """Of the present notebooks, without errors, times and folders, with links that work."""
    text = file.read_text(encoding="utf-8")
    cells = nbformat.reads(text, as_version=4).cells
    written = json.loads((ROOT / "notebooks" / file.name).read_text(encoding="utf-8"))["cells"]
    code = [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", ())
    ]
    assert code == ["".join(cell["source"]) for cell in written if cell["cell_type"] == "code"]
    assert not re.search(r'"output_type": "error"|/home/|\d s left|"papermill"|"start_time"', text)
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", text)]
    assert links and [link for link in links if not (file.parent / link).exists()] == []


def test_the_committed_copies_are_small():
    assert sum(file.stat().st_size for file in COMMITTED) < 2.5e6
    assert not COMMITTED or len(COMMITTED) == 6
