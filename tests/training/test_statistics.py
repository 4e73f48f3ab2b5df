"""What `before_step` reads: every image of the step once, whatever the batch size, the seed and the order."""

from dataclasses import replace

import pytest
import torch

from ciss import distributed
from ciss.config import Phase, Train
from ciss.data import DataError
from ciss.data.loaders import statistics_loader
from ciss.data.transforms import resized_view, statistics_size
from ciss.inspection.trained import OpenedRun
from ciss.methods import GSC, GSCMBS, PLOP, Finetune
from ciss.training import loop

CPU = torch.device("cpu")
PHASE = Phase(epochs=1, lr=0.1)


def changed(run, seed: int = 0, **train):
    """The run with another seed and other keys of `train`."""
    settings = replace(run.settings, train=replace(run.settings.train, **train))
    return replace(run, seed=seed, settings=settings)


def numbers_read(loader) -> list[int]:
    return [number for batch in loader.batch_sampler for _, number in batch]


class Recorder(Finetune):
    """Notes the ids of the images that `before_step` gets."""

    def before_step(self, batches, teacher, previous):
        self.now = [image for batch in batches for image in batch.ids]
        self.earlier = [image for batch in previous for image in batch.ids]


@pytest.mark.parametrize("batch", [3, 4, 16, 17, 31])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_image_of_a_step_is_read_once(finished, batch, seed):
    run = changed(finished.run("tune-2"), seed, batch=batch)
    index, method = run.index(), Recorder()
    maker = loop.BatchMaker(run, index, CPU)
    loop.prepare_method(method, run, index, None, maker)
    assert method.now == [index.ids["train"][number] for number in index.steps[2]]
    assert method.earlier == [index.ids["train"][number] for number in index.steps[1]]
    held = {index.ids["train"][number] for number in index.holdout}
    assert held and held.isdisjoint(method.now + method.earlier)


def test_an_old_class_in_one_image_is_seen_with_every_seed(project):
    """31 images, batches of 16: one shuffled epoch, without the images that do not fill a batch, missed the image of
    an old class with 18 of 40 seeds."""
    index = project.run().index()
    rare = index.joint[0]
    for seed in range(40):
        for batch in (16, 17, 31):
            run = changed(project.run(), seed, batch=batch)
            images = (index.joint + index.holdout)[:24]
            read = numbers_read(statistics_loader(run.settings, index, images, run.label_table(True)))
            assert read.count(rare) == 1 and sorted(read) == sorted(images)


METHODS = [
    PLOP(),
    PLOP(variant="released"),
    GSC(gate="entropy"),
    GSC(prototypes="previous", features="decoder"),
    GSCMBS(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_statistics_do_not_depend_on_order_seed_or_training_batches(finished, method):
    run = finished.run("mib-1")
    index = run.index()
    teacher = OpenedRun(run).teacher
    backwards = replace(index, steps=[images[::-1] for images in index.steps])
    found = []
    for other, order in ((run, index), (run, backwards), (changed(run, 7, batch=3, flip=True, transpose=True), index)):
        own = replace(method)
        with torch.no_grad():
            loop.prepare_method(own, other, order, teacher, loop.BatchMaker(other, order, CPU))
        found.append(own.state_dict())
    assert found[0]
    for state in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(state[name], value)
    assert found[0].get("counts", torch.ones(1)).sum() > 0


def test_an_epoch_of_training_batches_is_a_switch(finished):
    """As published code reads them: other seeds give other crops, and images that do not fill a batch are left out."""
    run = finished.run("mib-1")
    index, seen = run.index(), []
    count = len(index.steps[1])
    for seed in (0, 1):
        other = changed(run, seed, batch=count - 1)
        method = Recorder()
        method.statistics_from = "epoch"
        loop.prepare_method(method, other, index, None, loop.BatchMaker(other, index, CPU))
        assert len(method.now) == count - 1
        seen.append(method.now)
    assert seen[0] != seen[1]
    assert PLOP(**PLOP.presets["released"]).statistics_from == "epoch"
    assert GSC(**GSC.presets["code"]).statistics_from == "epoch"
    assert {PLOP().statistics_from, GSC().statistics_from, GSCMBS().statistics_from} == {"images"}


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((30, 50), {}, (30, 50)),
        ((64, 64), {}, (64, 64)),  # four crops of 32 exactly
        ((128, 128), {}, (64, 64)),
        ((50, 200), {}, (32, 128)),
        ((4096, 1), {}, (4096, 1)),
        ((30, 50), {"resize": 20}, (20, 33)),
        ((50, 30), {"resize": 20}, (33, 20)),
        ((30, 50), {"resize": 60}, (49, 82)),  # 60 x 100 pixels have more area than 4 crops
    ],
)
def test_the_size_of_an_image(size, options, expected):
    train = Train(base=PHASE, increment=PHASE, crop=32, batch=4, **options)
    assert statistics_size(*size, train) == expected
    assert expected[0] * expected[1] <= 4 * 32**2
    view = resized_view(*size, expected)
    mask = view.mask(torch.full(size, 7, dtype=torch.uint8))
    image = view.image(torch.zeros(*size, 3, dtype=torch.uint8), torch.ones(3, dtype=torch.uint8))
    assert image.shape == (*mask.shape, 3) == (*expected, 3)
    assert (mask == 7).all()


def test_batches_have_one_size_and_bounded_memory(project, monkeypatch):
    run = project.run()
    index = run.index()
    sizes = [[30, 50], [50, 30], [64, 64], [200, 200], [8, 8]]
    images = list(range(24))
    index = replace(index, sizes={**index.sizes, "train": [sizes[number % 5] for number in images]})
    most, crop = run.settings.evaluation.batch, run.settings.train.crop
    for batch in statistics_loader(run.settings, index, images, run.label_table(True)).batch_sampler:
        shown = {statistics_size(*index.sizes["train"][number], run.settings.train) for _, number in batch}
        assert len(shown) == 1 and len(batch) <= most
        ((height, width),) = shown
        assert len(batch) == 1 or len(batch) * height * width <= most * crop**2


def test_processes_share_the_images(project, monkeypatch):
    run = project.run()
    index = run.index()
    for world, images in ((2, list(range(24))), (3, [1, 2, 3]), (3, [1, 2, 3, 4])):
        monkeypatch.setattr(distributed, "world", lambda world=world: world)
        shares = []
        for rank in range(world):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(numbers_read(statistics_loader(run.settings, index, images, run.label_table(True))))
        assert all(shares) and sorted(number for share in shares for number in share) == images
    with pytest.raises(DataError, match="2 training images cannot feed 3 processes"):
        statistics_loader(run.settings, index, [1, 2], run.label_table(True))
