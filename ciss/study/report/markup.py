"""HTML of the page, by the templates in `templates/`. They escape all text, and load nothing from other addresses."""

import base64
import io
import re
from html import escape
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import mistune
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ciss.analysis.figures.families import block
from ciss.analysis.figures.style import only_note

MARKDOWN = mistune.create_markdown(escape=True)
LARGEST_WIDTH = 2000  # pixels at 160 per inch; wider pictures are not legible at the page's width


def render(template: str, **values: object) -> str:
    """A template as HTML. Texts in `values` are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"markdown": markdown, "picture": picture}
    environment.filters["by_method"] = by_method
    return environment.get_template(template).render(values)


def by_method(texts: pd.DataFrame) -> list[tuple[str, int, dict[str, str]]]:
    """The rows of a table with their method and its block: methods with stored images and joint training are last."""
    return [(method, block(method), texts.loc[method].to_dict()) for method in sorted(texts.index, key=block)]


def markdown(text: str) -> Markup:
    """Markdown as HTML. Of links and pictures only the text stays; HTML tags are escaped."""
    return Markup(MARKDOWN(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)))


def picture(source: Path | Figure, alt: str, caption: str, width: float | None = None) -> Markup:
    """A figure whose picture is part of the page. A figure that holds only sentences becomes a paragraph.

    Args:
        source: a PNG file, or a figure of matplotlib, which is closed. A file that is not legible at the page's width
            is wider on the screen and can be scrolled.
        alt: the description for screen readers.
        caption: the text below.
        width: of the picture in rem.
    """
    scroll = ""
    if isinstance(source, Figure):
        sentences = only_note(source)
        kind, data = "svg+xml", b"" if sentences else _svg(source)
        plt.close(source)
        if sentences:
            return Markup('<p class="note">{}</p>').format(sentences)
    else:
        kind, data = "png", source.read_bytes()
        pixels = int.from_bytes(data[16:20], "big")
        if pixels > LARGEST_WIDTH:
            width, scroll = pixels / LARGEST_WIDTH * 62, ' class="scroll"'
    size = scroll + (f' style="width: {width:g}rem"' if width else "")
    encoded = base64.b64encode(data).decode()
    return Markup(
        f'<figure><div class="wide"><img src="data:image/{kind};base64,{encoded}" alt="{escape(alt)}"{size}></div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _svg(figure: Figure) -> bytes:
    """The same bytes each time. Letters are outlines, so that they look the same on all systems."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ciss", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
