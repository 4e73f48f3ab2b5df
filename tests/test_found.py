"""What the readers of issue 6 found."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image
from test_own import benchmark, garden, plot  # noqa: F401

from ciss import data, protocol

matplotlib.use("Agg")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def execute(notebook: Path, **parameters) -> dict:
    """The notebook's cells in a namespace of their own."""
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    space: dict = {"display": print}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), space)
        if number == 0:
            space |= parameters
    matplotlib.pyplot.close("all")
    return space


def garden_of(plot, method: str, **changes):  # noqa: F811
    """The parameters of a method's chain and joint training on the garden."""
    plot.document["benchmarks"]["tiny"] |= {"dataset": "garden", "protocol": "1-1", "holdout": 2, **changes}
    plot.document["methods"][method] = {}
    steps, after = data.step_count(plot.config.benchmarks["tiny"]), "base"
    plot.document["chain"] = {}
    for step in range(1, steps):
        run = {"benchmark": "tiny", "method": method, "seed": 0, "after": after, "step": step}
        plot.document["chain"][f"m-{step}"] = run
        after = f"m-{step}"
    plot.document["ends"] = {"m": {"run": after, "benchmark": "tiny"}, "all": {"run": "all", "benchmark": "tiny"}}
    plot.write()


@pytest.mark.parametrize(("method", "changes"), [
    ("finetune", {"setting": "domain"}),
    ("mbs", {"setting": "domain"}),
    ("mib", {"protocol": "own", "groups": [[4], [2, 3]]}),
])  # fmt: skip
def test_notebooks_show_domains_and_groups(plot, garden, method, changes):  # noqa: F811
    garden_of(plot, method, **changes)
    for notebook in NOTEBOOKS:
        runs = {"1": [{}], "2": [{"run": "base"}, {"run": "all"}], "3": [{"run": r} for r in plot.document["chain"]]}
        for parameters in runs.get(notebook.name[0], [{}]):
            execute(notebook, config="params.yaml", **parameters)


def test_loaders_read_the_ids_that_the_scan_read(plot, garden, project, tmp_path):  # noqa: F811
    """Where the masks' numbers are not the raw ids: CamVid, Cityscapes, a named zero, another void."""
    (garden / "dataset.yaml").write_text("classes: {0: sky, 1: leaf, 2: stem, 3: flower}\nvoid: 4\n")
    settings = benchmark(project)
    index = data.prepare(settings, tmp_path / "data" / "index" / "garden", progress=False)
    table = protocol.label_table(index.groups, 1, "overlapped", training=False)
    for number, pair in enumerate(index.pairs("train")):
        stored = np.array(Image.open(pair.mask))
        labels = data.picture(settings, index, "train", number, table)[1]
        assert np.asarray(labels).tolist() == np.array([1, 2, 3, 4, 255])[stored].tolist()
