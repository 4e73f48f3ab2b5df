"""The page of `ciss watch` as HTML, by the templates in `templates/`. They escape all text and load nothing."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ciss.documents import counted
from ciss.runs import charts, live
from ciss.study.watch import overview
from ciss.study.watch.overview import RUNNING, Row

SHOWN = 4  # runs with curves, if several run at a time
SECONDS = 3  # from one redrawing to the next
FOLDER = Path(__file__).with_name("templates")


def frame(file: str, nonce: str) -> str:
    """The page without its content, which its script loads again and again.

    Args:
        file: the parameter file.
        nonce: the text that the browser wants to see on a script that may run.
    """
    style = Markup((FOLDER / "style.css").read_text(encoding="utf-8"))
    return _render("page.html", file=file, nonce=nonce, seconds=SECONDS, style=style)


def content(rows: list[Row], chosen: str = "") -> str:
    """What the page shows now.

    Args:
        chosen: the run whose curves are shown; another text: those of the running runs, or of the last one.
    """
    return _render(
        "content.html",
        rows=rows,
        shown=shown(rows, chosen),
        chosen=chosen,
        counts=overview.counts(rows),
        left=overview.time_left(rows),
        done=sum(row.state == overview.DONE for row in rows) / len(rows),
        gpu=gpu_memory(rows),
        message=overview.last_message(rows),
    )


def problem(text: str) -> str:
    """The content if the parameter file cannot be read."""
    return _render("problem.html", text=text)


def shown(rows: list[Row], chosen: str) -> list[Row]:
    """The runs whose curves the page shows."""
    with_curve = [row for row in rows if row.curve]
    if named := [row for row in with_curve if row.name == chosen]:
        return named
    if running := [row for row in with_curve if row.state == RUNNING]:
        return running[:SHOWN]
    return sorted(with_curve, key=lambda row: row.curve.time)[-1:]


def gpu_memory(rows: list[Row]) -> str:
    """The memory of the GPU of the last finished epoch, in words; empty without a GPU."""
    measured = [
        (row.curve.time, line)
        for row in rows
        if row.curve and row.state == RUNNING
        for line in row.curve.trained[-1:]
        if "gpu_bytes" in line
    ]
    if not measured:
        return ""
    line = max(measured, key=lambda pair: pair[0])[1]
    return f"{gigabytes(line['gpu_used_bytes'])} of {gigabytes(line['gpu_bytes'])} in use"


def drawn(row: Row) -> list[Markup]:
    """The charts of a run as SVG, whose texts are escaped."""
    return [Markup(chart(row.curve)) for chart in (charts.losses, charts.scores)]


def facts(row: Row) -> list[tuple[str, str]]:
    """Name and value of what is known of a run besides its curves."""
    about, last = row.curve.about, (row.curve.trained or [{}])[-1]
    values = {
        "epoch": f"{row.epoch} of {about['epochs']}",
        "images": f"{about['images']}, {counted(about['updates'], 'update')} an epoch",
        "learning rate": f"{last['lr']:.3g}" if "lr" in last else "",
        "seconds": _seconds(last),
        "peak memory": gigabytes(last["peak_memory_bytes"]) if last.get("peak_memory_bytes") else "",
        "time left": live.duration(row.left) if row.state == RUNNING and row.left else "",
        "scored": _scored(about, last),
    }
    return [(name, value) for name, value in values.items() if value]


def _seconds(last: dict) -> str:
    """What the last epoch took."""
    if "seconds" not in last:
        return ""
    return f"{last['seconds']:.1f} for training, {last['wall_seconds'] - last['seconds']:.1f} for scoring and saving"


def _scored(about: dict, last: dict) -> str:
    """What the curve of scores is of, and every how many epochs it has a point."""
    every = last.get("score_every", 1)
    rhythm = "every epoch" if every == 1 else f"every {every} epochs"
    kind = "fixed training images, on the labels they are given" if "agreement" in about["score"] else "hold-out images"
    return f"{about['scored_images']} {kind}, {rhythm}"


def gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GB"


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": live.percent, "duration": live.duration}
    environment.globals |= {"facts": facts, "drawn": drawn}
    return environment.get_template(template).render(values)
