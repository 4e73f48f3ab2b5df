"""Benchmarks of every kind, through notebooks and tables: domains, groups, no background, data of one's own."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from PIL import Image

from ciss import data, metrics
from ciss.analysis.compare.tables import compared_benchmark
from ciss.config import ConfigError
from ciss.inspection import probe
from ciss.protocol import Classes
from tests.helpers.gardens import benchmark

matplotlib.use("Agg")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[!0]*.ipynb"))


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


def garden_of(plot, method: str, **changes):
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
    pytest.param("finetune", {"setting": "domain"}, marks=pytest.mark.slow),
    ("mbs", {"setting": "domain"}),
    pytest.param("mib", {"protocol": "own", "groups": [[4], [2, 3]]}, marks=pytest.mark.slow),
])  # fmt: skip
def test_notebooks_show_domains_and_groups(plot, garden, method, changes):
    garden_of(plot, method, **changes)
    found = {}
    for notebook in NOTEBOOKS:
        if notebook.name.startswith("4"):  # the stage before it
            probe.write(plot.config, "tiny")
        runs = {"1": [{}], "2": [{"run": "base"}, {"run": "all"}], "3": [{"run": r} for r in plot.document["chain"]]}
        for parameters in runs.get(notebook.name[0], [{}]):
            found[notebook.stem] = execute(notebook, config="params.yaml", **parameters)
    space = found["6_compare"]
    said = set(space["counted"]["sentence"])
    images = "over the test images of the domains so far," if "setting" in changes else "over the full validation set"
    assert all(images in sentence for sentence in said) and len(said) == 5


def test_loaders_read_the_ids_that_the_scan_read(plot, garden, project, tmp_path):
    """Where the masks' numbers are not the raw ids: CamVid, Cityscapes, a named zero, another void."""
    (garden / "dataset.yaml").write_text("classes: {0: sky, 1: leaf, 2: stem, 3: flower}\nvoid: 4\n")
    settings = benchmark(project)
    index = data.prepare(settings, tmp_path / "data" / "index" / "garden", progress=False)
    table = Classes(index.groups).label_table(1, "overlapped", training=False)
    for number, pair in enumerate(index.pairs("train")):
        stored = np.array(Image.open(pair.mask))
        labels = data.loaders.picture(settings, index, "train", number, table)[1]
        assert np.asarray(labels).tolist() == np.array([1, 2, 3, 4, 255])[stored].tolist()


def test_mbs_leaves_failed_classes_out_of_all_only():
    """Its code's means of old and new classes have the zeros in them; only "Mean IoU" has not."""
    matrix = np.diag([5, 5, 0, 5, 0])
    matrix[2, 1] = matrix[4, 3] = 5
    found = metrics.scores(matrix, [2, 2], 1, metrics.CONVENTIONS["mbs"])
    assert (found["all"], found["old"], found["new"]) == (0.5, 0.25, 0.25)
    assert "above 0 (`old` and `new` over those known, absent ones as 0)" in metrics.CONVENTIONS["mbs"].sentence()


@pytest.mark.parametrize(("text", "classes", "background"), [
    ("classes: {0: background, 1: leaf}", {0: "background", 1: "leaf"}, True),
    ("classes: {1: leaf}\nvoid: 0", {0: "background", 1: "leaf"}, False),
    ("classes: {0: sky, 1: leaf}", {0: "background", 1: "sky", 2: "leaf"}, False),
])  # fmt: skip
def test_what_zero_is(garden, text, classes, background):
    (garden / "dataset.yaml").write_text(text)
    found = data.data_set("garden")
    assert (found.classes, found.background) == (classes, background)


@pytest.mark.parametrize(("text", "words"), [
    ('classes: {1: leaf, "1": stem}', "a number stands twice"),
    ("classes: {1: background, 2: stem}", "0 and 1 have the same name, 'background'"),
    ("classes: {0: background}", "nothing but background"),
    ('classes: {1: "a\\nb"}', "found 'a"),
])  # fmt: skip
def test_a_description_of_two_minds_is_named(garden, text, words):
    (garden / "dataset.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"dataset.yaml: classes.*{words}"):
        data.data_set("garden")


def test_folders_of_ones_own(garden):
    """A link is a domain too, what the system leaves is no image, and of two of one name both are named."""
    images = garden / "images" / "train"
    (images / "spring").rename(garden / "elsewhere")
    (images / "spring").symlink_to(garden / "elsewhere")
    (images / "._00.jpg").write_bytes(b"")
    (images / ".thumbnails").mkdir()
    (images / ".thumbnails" / "00.jpg").write_bytes(b"")
    found = data.data_set("garden")
    pairs = found.pairs(garden, "train")
    assert len(pairs) == 20 and {pair.domain for pair in pairs} == {"spring", "summer", "winter"}
    (images / "spring_00.jpg").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"spring_00\.jpg and .*/00\.jpg both have the image id train_spring_00"):
        found.pairs(garden, "train")
    (images / "spring_00.jpg").rename(images / "a\nb.jpg")
    with pytest.raises(data.DataError, match=r"a\\nb\.jpg': the name has characters that cannot be shown"):
        found.pairs(garden, "train")


def test_groups_replace_the_protocol_and_have_no_published_results():
    """`groups` come in place of the protocol, whatever that says."""
    values = {"dataset": "voc", "protocol": "15-1", "setting": "overlapped", "order": None, "limit": 0, "holdout": 0}
    values |= {
        "model": {"encoder": "resnet101", "decoder": "deeplabv3"},
        "train": {"crop": 512, "batch": 24, "base": {"epochs": 30}, "increment": {"epochs": 10}},
    }
    values["evaluation"] = {"size": "crop", "scales": [1.0], "flip": False}
    for groups in (None, [[15, 8], [12]]):
        result = {"identity": {"parameters": {"benchmark": {**values, "groups": groups}}}}
        benchmark = compared_benchmark({"e": [result]})
        assert benchmark.comparable == (groups is None)
        assert benchmark.notes[0] == "ours: 30 and 10 epochs a step (base, later), crops of 512, batches of 24"


def test_a_described_folder_is_read_where_its_description_lies(garden, tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "garden").mkdir(parents=True)
    monkeypatch.setenv("CISS_DATA", str(tmp_path / "elsewhere"))
    assert data.data_set("garden").root() == garden
