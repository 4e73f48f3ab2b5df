"""Copies of executed notebooks for readers of the repository: `ciss copy-notebooks`, the last stage of the pipeline.

Executed notebooks lie in DVC's cache, where nobody can read them without running or downloading something. Of one
benchmark, copies are also in git: those of the analyses, and the two for exploring, which no other stage executes. A
copy has no times and no machine (`ciss.study.execute` removes them), works where it lies, and has smaller pictures.
"""

import base64
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from PIL import Image

from ciss import config, paths
from ciss.config import Config, ConfigError
from ciss.study import execute

FOLDER = "notebooks"  # in `reports`
BY_BENCHMARK = ("1_data", "4_forgetting", "5_background")  # in `reports/<benchmark>`
COMPARING = "6_compare"  # of all benchmarks, in `reports`
EXPLORING = ("explore_gradients", "explore_prototypes")
NOTE = re.compile(r"^>.*\n(?:>.*\n)*", re.MULTILINE)  # in the first cell: that the copy in `notebooks/` is small
COLOURS = 256  # of a picture
ABOUT = """Copies of executed notebooks, for readers. The stage copy_notebooks of dvc.yaml makes them again if
params.yaml has the benchmark shapes. With other benchmarks alone, it leaves them as they are.
"""


def main(benchmark: str, config_file: str) -> None:
    """Writes the copies to `reports/notebooks`. Without the benchmark in the file, it changes none.

    README.txt is always there: DVC warns of an empty folder. Exits with a message if it cannot.
    """
    try:
        settings = config.load(config_file)
        reports = (paths.project() / settings.output).resolve() / "reports"
        folder = reports / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.txt").write_text(ABOUT, encoding="utf-8", newline="\n")
        if benchmark not in settings.benchmarks:
            print(f"{folder}: not changed, because {config_file} has no benchmark {benchmark}.")
            return
        sources = {name: reports / benchmark / f"{name}.ipynb" for name in BY_BENCHMARK}
        sources[COMPARING] = reports / f"{COMPARING}.ipynb"
        for name, source in sources.items():
            copy(source, folder / source.name, introduction(settings, benchmark, name))
        explored = EXPLORING if any(run.benchmark == benchmark for run in settings.chain.values()) else ()
        for name in explored:
            explore(settings, benchmark, config_file, name, folder)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    for file in folder.glob("*.ipynb"):
        if file.stem not in (*sources, *explored):
            file.unlink()


def copy(source: Path, target: Path, text: str) -> None:
    """Copies an executed notebook.

    Args:
        text: instead of the note in its first cell.

    Raises: FileNotFoundError.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such notebook. Run: dvc repro")
    notebook = nbformat.read(source, as_version=4)
    execute.move_links_of(notebook, source.parent, target.parent)
    shorten(notebook, text)
    nbformat.write(notebook, target)


def explore(settings: Config, benchmark: str, config_file: str, name: str, folder: Path) -> None:
    """Executes a notebook for exploring on the run of the benchmark that it would show first. Exits with a message if
    it fails.

    The number of threads changes last digits, so it is that of the trainings.
    """
    from ciss.inspection.chain import default_run  # with torch, which a plan without the benchmark does not need

    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(settings.benchmarks[benchmark].train.threads)
    target = folder / f"{name}.ipynb"
    parameters = {"config": config_file, "run": default_run(settings, benchmark)}
    execute.main(paths.project().resolve() / "notebooks" / target.name, target, parameters)
    notebook = nbformat.read(target, as_version=4)
    shorten(notebook, introduction(settings, benchmark, name))
    nbformat.write(notebook, target)


def introduction(settings: Config, benchmark: str, name: str) -> str:
    """The note at the top of a copy, with links that work from its folder."""
    chosen = settings.benchmarks[benchmark]
    what = f"the benchmark `{benchmark}` (data set `{chosen.dataset}`, protocol `{chosen.protocol}`, {chosen.setting})"
    if name == COMPARING and len(settings.benchmarks) > 1:
        what = f"the benchmarks {', '.join(f'`{other}`' for other in settings.benchmarks)}"
    lines = [
        f"> **Executed copy**: results of `dvc repro` on {what}.",
        f"> Notebook to run yourself: [notebooks/{name}.ipynb](../../notebooks/{name}.ipynb).",
    ]
    if (paths.project() / "reports" / "study" / f"{name}.ipynb").is_file():
        lines.append(f"> The same notebook on photographs: [study](../study/{name}.ipynb).")
    return "\n".join(lines) + "\n"


def shorten(notebook: nbformat.NotebookNode, text: str) -> None:
    """Replaces the note in the first cell by a text, and the pictures by smaller ones."""
    first = notebook.cells[0]
    first.source = NOTE.sub(lambda _: text, first.source, count=1)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = with_palette(base64.b64decode(data["image/png"]))
                data["image/png"] = base64.b64encode(picture).decode()


def with_palette(png: bytes) -> bytes:
    """A picture with a palette of 256 colours, which is about half as large. The picture itself if that is smaller."""
    with Image.open(io.BytesIO(png)) as picture:
        if picture.mode == "P":
            return png
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(picture, mask=picture.getchannel("A") if "A" in picture.getbands() else None)
    stream = io.BytesIO()
    paper.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    return min(png, stream.getvalue(), key=len)
