"""Saliency maps: read, cropped and flipped with the masks; missing and wrong ones; a training that uses them."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ciss.data import DataError, saliency
from ciss.data.loaders import training_loader
from ciss.data.pictures import read_mask
from ciss.methods import SSUL
from ciss.training import loop
from tests.helpers.training import spy, weights

VOID = 255


@pytest.fixture
def project(make_project, tiny_data, tmp_path, monkeypatch):
    """With saliency maps: the left halves of images show an object."""
    own = tmp_path / "data"
    shutil.copytree(tiny_data, own)
    monkeypatch.setenv("CISS_DATA", str(own))
    made = make_project()
    folder = next(own.rglob("JPEGImages")).parent / "saliency"
    folder.mkdir()
    for pair in made.run().index().pairs("train"):
        half = np.zeros_like(read_mask(pair.mask))
        half[:, : half.shape[1] // 2] = 255
        assert saliency.map_file(pair).parent == folder
        Image.fromarray(half).save(saliency.map_file(pair))
    made.set("methods.ssul-saliency", {"saliency": "maps"})
    made.set("bases.own", {"benchmark": "tiny", "method": "ssul-saliency", "seed": 0})
    step = {"benchmark": "tiny", "method": "ssul-saliency", "seed": 0, "after": "own", "step": 1}
    made.set("chain.ssul-saliency-1", step)
    return made


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("crop", "augment_on"), [(64, "cpu"), (32, "cpu"), (64, "device")])
def test_maps_are_viewed_as_masks_are(project, crop, augment_on, flip):
    """At every background pixel, and nowhere else; labels stay what they are without maps."""
    project.set("train.crop", crop)
    project.set("train.augment_on", augment_on)
    project.set("train.flip", flip)
    run = project.run("own")
    index = run.index()
    table = run.label_table(training=True)
    batches = []
    for maps in (False, True):
        loader = training_loader(run.settings, index, run.images(index), table, 0, maps)
        batches.append(list(loader))
    halves = set()
    for (images, plain, numbers), (same, marked, others) in zip(*batches, strict=True):
        assert images.equal(same) and numbers.equal(others)
        other = marked == saliency.NOT_SALIENT
        assert plain[other].eq(0).all() and marked[~other].equal(plain[~other])
        if crop == 64:
            for labels, where in zip(plain, other, strict=True):
                background, columns = labels == 0, torch.arange(64)
                right = (background & (columns >= 32)).equal(where)
                left = (background & (columns < 32)).equal(where)
                assert right or left
                halves.add("right" if right else "left")
    assert crop != 64 or halves == ({"right", "left"} if flip else {"right"})


def test_a_training_with_maps(project, monkeypatch):
    """The background's row learns from pixels that are not salient. Without maps it is never a positive."""
    run = project.run("own")
    seen = spy(monkeypatch, SSUL)
    loop.train(run)
    (student, _, batch, losses) = seen[0]
    assert batch.salient.dtype == torch.bool and batch.salient.shape == batch.labels.shape
    assert batch.labels[~batch.salient].eq(0).all() and not batch.salient.all() and batch.labels.max() in (4, VOID)
    without = SSUL().losses(student, None, dataclasses.replace(batch, salient=None))
    assert losses["cross_entropy"] != without["cross_entropy"]
    increment = project.run("ssul-saliency-1")
    loop.train(increment)
    assert increment.title == "ssul-saliency (own base)"
    assert "decoder.extras.unknown.weight" in weights(increment)


def test_strips_cut_the_maps(project):
    run = project.run("own")
    index = run.index()
    loader = training_loader(run.settings, index, run.images(index), run.label_table(training=True), 0, True)
    batches = loop.BatchMaker(run, index, torch.device("cpu"))
    batch = next(batches.read(loader, epoch=0))
    assert batch.strip(slice(3, 7)).salient.equal(batch.salient[:, 3:7])
    assert batch.labels.max() != saliency.NOT_SALIENT


def test_changed_and_missing_maps(project):
    """A changed map is another training; a missing one, and one of another size, are named."""
    run = project.run("own")
    index = run.index()
    before = run.identity(index.fingerprint, None)["data"]
    assert before != index.fingerprint == project.run("base").identity(index.fingerprint, None)["data"]
    file = saliency.map_file(index.pairs("train")[3])
    Image.fromarray(np.ones((64, 64), np.uint8)).save(file)
    assert run.identity(index.fingerprint, None)["data"] != before
    Image.fromarray(np.ones((32, 64), np.uint8)).save(file)
    with pytest.raises(DataError, match=rf"{file.name}: 64x32, but its image is 64x64 pixels"):
        saliency.read_map(index.pairs("train")[3], (64, 64))
    file.unlink()
    with pytest.raises(DataError, match=rf"{file.name}: the saliency map is missing. .*`saliency: off`"):
        loop.train(run)
