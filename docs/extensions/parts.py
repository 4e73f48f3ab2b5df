"""Parts of pages that are computed from the code: `<!-- site: NAME ARGUMENTS -->` becomes Markdown when a page is read.

On a code host the comment is invisible. A line between it and `<!-- site end -->` is for readers there, and not on the
site.
"""

import re
from collections.abc import Callable
from pathlib import Path

from sphinx.application import Sphinx

from extensions import messages, presets, reference, results

COMMENT = re.compile(r"^<!-- site: (\w+)((?: \S+)*) -->$(?:\n.*\n<!-- site end -->$)?", re.MULTILINE)


def symbols() -> str:
    return "```{include} ../methods.md\n:start-after: <!-- symbols -->\n:end-before: <!-- end -->\n```"


def findings(file: str) -> str:
    """A text that the pipeline writes."""
    return f"```{{include}} {file}\n```"


def code(file: str, name: str) -> str:
    """A function or class of a file, from the source."""
    return f"```{{literalinclude}} {file}\n:language: python\n:pyobject: {name}\n```"


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
    "symbols": symbols,
    "code": code,
    "findings": findings,
}


def insert_parts(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces the comments of a page. Raises KeyError for an unknown name."""
    source[0] = COMMENT.sub(lambda found: PARTS[found[1]](*found[2].split()), source[0])


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
