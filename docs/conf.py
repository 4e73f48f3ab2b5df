"""The documentation site: `uv run --extra docs sphinx-build -W -c docs . docs/_build/html`, then open its index.html.

The source folder is the whole project, so that pages, reports and notebooks are read where they lie and their links
are the same here and on a code host. `docs/index.md` is the table of contents. Parts that are computed from the code
stand in pages as `<!-- site: NAME -->`, see `docs/extensions/parts.py`.
"""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

project = "ciss"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
html_title = "ciss"
root_doc = "docs/index"
language = "en"
smartquotes = False  # they make a dash of the two of an option

# Folders are named one by one: data sets and runs hold millions of files.
PAGES = {"docs", "reports", "notebooks", "data", "README.md", "REPRODUCIBILITY.md", "CHANGELOG.md", "CONTRIBUTING.md"}
COMMITTED = {"study", "notebooks"}  # folders of `reports` with notebooks in git
exclude_patterns = [
    *(entry.name for entry in ROOT.iterdir() if entry.name not in PAGES),
    *(f"data/{entry.name}" for entry in (ROOT / "data").iterdir() if entry.name != "README.md"),
    # only committed notebooks, and results of the default benchmark: those of the reader's own have no place here
    "reports/*.ipynb",
    *(f"reports/{entry.name}/**.ipynb" for entry in (ROOT / "reports").iterdir() if entry.name not in COMMITTED),
    "reports/speed/[cg]pu*.md",  # tables of `ciss bench`, without titles
    "reports/**/forgetting.md",
    "reports/**/background.md",
    "reports/**/data.md",
    "docs/_build",
    "docs/extensions",
]

if not any((ROOT / "reports" / "notebooks").glob("*.ipynb")):  # before the first `dvc repro`, nothing is there to link
    suppress_warnings = ["myst.xref_missing"]

extensions = ["myst_nb", "extensions.parts", "extensions.formulas"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from another server
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["filter.js"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # it would be fetched, which browsers refuse for files
