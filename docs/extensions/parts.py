"""Parts of pages that are computed from the code: `<!-- site: NAME ARGUMENT -->` becomes Markdown when a page is read.

On a code host the comment is invisible.
"""

import re
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

from extensions import messages, presets, reference, results

COMMENT = re.compile(r"^<!-- site: (\w+)(?: (\S+))? -->$", re.MULTILINE)


PARTS: dict[str, Callable[..., str]] = {
    "commands": reference.commands,
    "keys": reference.keys,
    "functions": reference.functions,
    "class": reference.one_class,
    "method": results.method,
    "ours": results.ours,
    "papers": results.papers,
    "notebooks": results.notebooks,
    "messages": messages.messages,
    "presets": presets.overview,
}


def insert_parts(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces the comments of a page. Raises KeyError for an unknown name."""
    source[0] = COMMENT.sub(lambda found: PARTS[found[1]](*filter(None, [found[2]])), source[0])


def open_front_page(app: Sphinx, error: Exception | None) -> None:
    """The site's address shows the front page, which lies in a folder."""
    front = f"{app.config.root_doc}.html"
    if not error and app.builder.format == "html":
        head = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={front}"><title>ciss</title>'
        page = f'<!doctype html>{head}<a href="{front}">ciss</a>\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("source-read", insert_parts)
    app.connect("build-finished", open_front_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
