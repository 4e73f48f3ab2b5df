"""HTML elements of the page. All text from files is escaped. The page loads nothing from other addresses."""

import base64
import io
import re
from html import escape
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import mistune
from matplotlib.figure import Figure

from ciss.analysis.figures.style import only_note

MARKDOWN = mistune.create_markdown(escape=True)
LARGEST_WIDTH = 2000  # pixels at 160 per inch; wider pictures are not legible at the page's width
STYLE = Path(__file__).with_name("style.css")
DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def document(title: str, body: str) -> str:
    return DOCUMENT.format(title=escape(title), style=STYLE.read_text(encoding="utf-8"), body=body)


def heading(level: int, text: str, anchor: str, css_class: str = "") -> str:
    return f'<h{level} id="{escape(anchor)}"{_class(css_class)}>{escape(text)}</h{level}>'


def table(
    head: list[str],
    rows: list[list[str]],
    *,
    bold: set[tuple[int, int]] = frozenset(),
    line_above: set[int] = frozenset(),
    text: set[int] = frozenset(),
) -> str:
    """A table.

    Args:
        head: names of the columns.
        rows: texts of the cells.
        bold: (row, column) of bold cells.
        line_above: rows with a line above.
        text: columns of words, which may break into lines.
    """
    classes = [_class("text" if column in text else "") for column in range(len(head))]
    lines = []
    for number, row in enumerate(rows):
        cells = [f"<strong>{escape(t)}</strong>" if (number, k) in bold else escape(t) for k, t in enumerate(row)]
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(classes, cells, strict=True))
        lines.append(f"<tr{_class('line-above' if number in line_above else '')}>{cells}</tr>")
    heads = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(classes, head, strict=True))
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def definitions(entries: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def details(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def paragraph(text: str, css_class: str = "") -> str:
    return f"<p{_class(css_class)}>{escape(text)}</p>"


def note(text: str) -> str:
    return paragraph(text, "note")


def markdown(text: str) -> str:
    """Markdown as HTML. Of links and pictures only the text stays; HTML tags are escaped."""
    return MARKDOWN(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text))


def picture(source: Path | Figure, alt: str, caption: str, width: float | None = None) -> str:
    """A figure whose picture is part of the page. A figure that holds only sentences becomes a paragraph.

    Args:
        source: a PNG file, or a figure of matplotlib, which is closed. A file that is not legible at the page's width
            is wider on the screen and can be scrolled.
        alt: the description for screen readers.
        caption: the text below.
        width: of the picture in rem.
    """
    if isinstance(source, Figure):
        sentences = only_note(source)
        kind, data, scroll = "svg+xml", b"" if sentences else _svg(source), False
        plt.close(source)
        if sentences:
            return note(sentences)
    else:
        kind, data = "png", source.read_bytes()
        pixels = int.from_bytes(data[16:20], "big")
        scroll = pixels > LARGEST_WIDTH
        width = pixels / LARGEST_WIDTH * 62 if scroll else width
    size = _class("scroll" if scroll else "") + (f' style="width: {width:g}rem"' if width else "")
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure><div class="wide"><img src="data:image/{kind};base64,{encoded}" alt="{escape(alt)}"{size}></div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _svg(figure: Figure) -> bytes:
    """The same bytes each time. Letters are outlines, so that they look the same on all systems."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ciss", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
