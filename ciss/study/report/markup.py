"""Pieces of the page. Whatever comes from a file is escaped, and nothing is fetched from anywhere."""

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

TEXT = mistune.create_markdown(escape=True)
BROAD = 2000  # pixels, at 160 an inch: more cannot be read at the page's width
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --soft: #5c5c5c; --line: #d5d5d5; --tint: #f4f4f2;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --paper: #181a1b; --soft: #a8a8a4; --line: #3b3d3e;
  --tint: #222526; --link: #7ab8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
nav { border: 1px solid var(--line); background: var(--tint); border-radius: 6px; padding: .5rem 1rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .1rem 0; padding: 0; list-style: none; }
a { color: var(--link); }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 2px solid var(--line); }
h3 { margin: 1.8rem 0 .4rem; } h4 { margin: 1.2rem 0 .3rem; }
p, li, dd { max-width: 48rem; } .note, figcaption { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; } .wide img.broad { max-width: none; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { border-bottom: 2px solid var(--soft); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 9rem; } tr.apart td { border-top: 2px solid var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { display: block; max-width: 100%; height: auto; background: #fff; padding: 6px;
  border-radius: 4px; }
details { margin: .5rem 0; } code { font-size: .9em; overflow-wrap: anywhere; }
@media print { :root { --ink: #000; --paper: #fff; --soft: #444; --line: #bbb; --tint: #fff; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } h2.next { break-before: page; }
  figure, tr { break-inside: avoid; } h3, h4 { break-after: avoid; }
  .wide { overflow: visible; } .wide img.broad { max-width: 100%; } table { font-size: 8pt; }
  th, td { padding: 1pt 4pt; } }
"""


def document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def heading(level: int, text: str, anchor: str, kind: str = "") -> str:
    return f'<h{level} id="{escape(anchor)}"{named(kind)}>{escape(text)}</h{level}>'


def table(
    head: list[str],
    rows: list[list[str]],
    *,
    bold: set[tuple[int, int]] = frozenset(),
    apart: set[int] = frozenset(),
    text: set[int] = frozenset(),
) -> str:
    """A table of text.

    Args:
        head: names of the columns.
        rows: of cells.
        bold: (row, column) of what stands out.
        apart: rows with a line above.
        text: columns of words, which may break.
    """
    kinds = ["text" if column in text else "" for column in range(len(head))]
    lines = []
    for number, row in enumerate(rows):
        cells = [escape(value) for value in row]
        cells = [f"<strong>{cell}</strong>" if (number, k) in bold else cell for k, cell in enumerate(cells)]
        cells = "".join(f"<td{named(kind)}>{cell}</td>" for kind, cell in zip(kinds, cells, strict=True))
        lines.append(f"<tr{named('apart' if number in apart else '')}>{cells}</tr>")
    heads = "".join(f'<th scope="col"{named(kind)}>{escape(name)}</th>' for kind, name in zip(kinds, head, strict=True))
    body = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def named(kind: str) -> str:
    """The attribute of a tag's class, or nothing."""
    return f' class="{kind}"' if kind else ""


def facts(pairs: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def details(summary: str, inner: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{named(kind)}>{escape(text)}</p>"


def prose(markdown: str) -> str:
    """Markdown; of links the words alone, and tags as they are written."""
    return TEXT(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown))


def picture(source: Path | Figure, alt: str, caption: str, width: float | None = None) -> str:
    """A figure with its picture inside the page. One that shows only sentences becomes a paragraph.

    Args:
        source: a PNG file, or a figure of matplotlib, which is closed. A file that would not be legible at the page's
            width is broader on the screen, and can be moved.
        alt: what a screen reader says.
        caption: the text under it.
        width: of the picture in rem.
    """
    broad = False
    if isinstance(source, Path):
        kind, data = "png", source.read_bytes()
        pixels = int.from_bytes(data[16:20], "big")
        broad = pixels > BROAD
        width = pixels / BROAD * 62 if broad else width
    else:
        sentences = only_note(source)
        kind, data = "svg+xml", b"" if sentences else _svg(source)
        plt.close(source)
        if sentences:
            return paragraph(sentences, "note")
    size = named("broad" if broad else "") + (f' style="width: {width:g}rem"' if width else "")
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure><div class="wide"><img src="data:image/{kind};base64,{encoded}" alt="{escape(alt)}"{size}></div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _svg(figure: Figure) -> bytes:
    """The same bytes each time; letters as outlines, so that they look the same everywhere."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ciss", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
