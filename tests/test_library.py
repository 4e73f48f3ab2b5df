"""The examples of docs/library.md, as written there."""

import numpy as np
import torch
from PIL import Image

from ciss import paths
from ciss.inspection.export import export
from ciss.store.weights import save_weights

ROOT = paths.project()
BLOCKS = [part.split("```")[0] for part in (ROOT / "docs/library.md").read_text().split("```python")[1:]]


def names_after(block: str) -> dict:
    names: dict = {}
    exec(block, names)
    return names


def test_the_example_of_three_lines(project, monkeypatch, tmp_path):
    run = project.run("tune-1")
    save_weights(run.folder / "weights.safetensors", run.build_network(), run.description())
    export(run, tmp_path / "exports/shapes-s0-mib-2", onnx=False)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("photo.jpg")
    (block,) = (block for block in BLOCKS if "ciss.load" in block)
    assert len([line for line in block.splitlines() if line]) == 3
    labels = names_after(block)["labels"]
    assert labels.shape == (20, 30) and labels.dtype == np.uint8


def test_the_example_of_tensors(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # outside any project
    (block,) = (block for block in BLOCKS if "unbiased" in block)
    names = names_after(block)
    assert names["groups"] == [list(range(1, 16)), list(range(16, 21))]
    assert names["images"].tolist() == [1, 2]
    assert names["logits"].grad.abs().sum() > 0 and names["loss"].isfinite()
    changed = names["pseudo_labels"] != names["labels"]
    assert changed.any() and (names["labels"][changed] == 0).all()
    assert names["confusion"].sum() == (names["pseudo_labels"] != 255).sum()
    assert torch.as_tensor(names["confusion"]).shape == (21, 21) and capsys.readouterr().out
