"""Labels of whole images in windows, at scales, with mirror images: by hand, on networks that are known functions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ciss.config import Evaluation, Model
from ciss.data.loaders import evaluation_loader
from ciss.models import Output, create_network
from ciss.training import evaluation as training_evaluation
from ciss.training import inference as training_inference
from ciss.training.evaluation import evaluate, predict_samples
from ciss.training.inference import _logits, predict, starts

FULL = Evaluation()
WINDOW = Evaluation(size="window", stride=1.0, batch=4)


class Fake(nn.Module):
    """Logits are a function of the images; what it was shown is kept."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.shown = logits, []

    def forward(self, images):
        self.shown.append(images)
        return Output(self.logits(images), *[torch.empty(0)] * 2, torch.empty(0), torch.empty(0))


def pointwise(images):
    """Three classes, each the brightness of a channel."""
    return 2 * images


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tagged(height, width):
    """An image (1,3,H,W) whose pixels say where they are: row, column and a one, which padding has not."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.ones_like(rows)])[None].float()


# --- as it always was


@pytest.mark.parametrize("size", ["full", "crop"])
def test_the_plain_way_is_one_forward_pass_and_the_same_bits(size):
    torch.manual_seed(0)
    network = create_network(Model(width=8, atrous_rates=(1,)), [5]).eval()
    images = noise(2, 3, 37, 50)
    with torch.no_grad():
        expected = network(images).upsample((37, 50))
    fake = Fake(lambda shown: network(shown).logits)
    found = _logits(fake, images, replace(FULL, size=size), 16, 1.0, False)
    assert found.equal(expected)
    assert len(fake.shown) == 1 and fake.shown[0] is images
    assert predict(network, images, replace(FULL, size=size), 16).equal(expected.argmax(dim=1))


def test_labels_are_positions_and_no_gradient_is_kept():
    kept = []
    network = Fake(lambda shown: pointwise(shown) if kept.append(torch.is_grad_enabled()) is None else None)
    labels = predict(network, noise(2, 3, 5, 7).requires_grad_(), replace(FULL, flip=True), 4)
    assert labels.shape == (2, 5, 7) and labels.dtype == torch.int64
    assert kept == [False, False]


# --- windows


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [
        (8, 8, 0.5, [0]),
        (9, 8, 0.5, [0, 1]),  # one pixel more: a second window, flush with the border
        (12, 8, 0.5, [0, 4]),
        (13, 8, 0.5, [0, 4, 5]),
        (24, 8, 1.0, [0, 8, 16]),
        (20, 8, 0.67, [0, 6, 12]),  # 5.36, rounded up
        (200, 100, 0.07, [*range(0, 100, 7), 100]),  # 0.07 x 100 is 7.000000000000001
        (5, 4, 0.001, [0, 1]),
        (5, 4, 1e-12, [0, 1]),
    ],
)
def test_where_windows_start(side, window, stride, expected):
    assert starts(side, window, stride) == expected


def test_windows_cover_everything_once_without_overlap():
    network = Fake(pointwise)
    predict(network, tagged(8, 12), WINDOW, 4)
    shown = torch.cat(network.shown)
    assert shown.shape == (6, 3, 4, 4)
    places = [tuple(pixel) for window in shown[:, :2].flatten(2).transpose(1, 2) for pixel in window.tolist()]
    assert sorted(places) == [(row, column) for row in range(8) for column in range(12)]
    assert [tuple(window[:2, 0, 0].tolist()) for window in shown] == [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8)]


@pytest.mark.parametrize("shape", [(4, 4), (5, 4), (5, 5), (9, 13), (3, 11), (3, 2), (1, 1)])
@pytest.mark.parametrize("stride", [1.0, 0.67, 0.3])
def test_a_pointwise_network_says_the_same_in_windows(shape, stride):
    images = noise(3, 3, *shape)
    options = replace(WINDOW, stride=stride)
    logits = training_inference._logits(Fake(pointwise), images, options, 4, 1.0, False)
    torch.testing.assert_close(logits, 2 * images)
    assert predict(Fake(pointwise), images, options, 4).equal(images.argmax(dim=1))


def test_overlaps_are_averaged_by_count():
    """A row of five pixels in windows of four: pixels 1 to 3 lie in both. Each window says twice its first pixel."""
    images = torch.zeros(1, 3, 4, 5)
    images[:, 0] = torch.tensor([1.0, 3.0, 0.0, 0.0, 0.0])
    logits = training_inference._logits(
        Fake(lambda shown: (2 * shown[..., :1]).expand_as(shown)), images, replace(WINDOW, stride=0.5), 4, 1.0, False
    )
    assert logits[0, 0, 0].tolist() == [2, 4, 4, 4, 6]
    assert logits[0, 1].eq(0).all()


def test_a_smaller_image_is_filled_to_the_window_and_nothing_is_said_of_the_filling():
    """The network calls filling class 2 and its neighbours by what they are: the image alone comes back."""
    network = Fake(lambda shown: torch.cat([shown[:, 2:], shown[:, :1] * 0, 1 - shown[:, 2:]], dim=1))
    found = predict(network, tagged(3, 6), WINDOW, 4)
    assert found.shape == (1, 3, 6) and found.eq(0).all()
    assert [tuple(window.shape) for window in network.shown] == [(2, 3, 4, 4)]
    assert network.shown[0][:, :, 3].eq(0).all(), "below, zeros"
    assert network.shown[0][1, 1, 0].tolist() == [2, 3, 4, 5], "the width is not filled, its last window is flush"


@pytest.mark.parametrize("batch", [1, 6, 100])
def test_every_image_of_a_batch_gets_its_own_windows(batch):
    images, local = noise(3, 3, 9, 6, seed=1), nn.Conv2d(3, 4, 3, padding=1)
    options = replace(WINDOW, stride=0.5, batch=batch)
    together = predict(Fake(local), images, options, 4)
    alone = [predict(Fake(local), image[None], options, 4) for image in images]
    assert together.equal(torch.cat(alone))
    assert not together[0].equal(together[1])


@pytest.mark.parametrize(("images", "batch", "expected"), [(1, 4, [4, 2]), (2, 5, [4, 4, 4]), (3, 2, [3] * 6)])
def test_windows_go_through_in_chunks_of_the_batch(images, batch, expected):
    network = Fake(pointwise)
    predict(network, noise(images, 3, 8, 12), replace(WINDOW, batch=batch), 4)
    assert [len(shown) for shown in network.shown] == expected


def test_a_window_smaller_than_the_grid_is_upsampled_by_itself():
    """A network of stride 2: each window's logits are stretched to the window, not to the image."""
    images = noise(1, 3, 4, 8)
    logits = training_inference._logits(Fake(lambda shown: F.avg_pool2d(shown, 2)), images, WINDOW, 4, 1.0, False)
    for left in (0, 4):
        part = F.interpolate(F.avg_pool2d(images[..., left : left + 4], 2), (4, 4), mode="bilinear")
        assert logits[..., left : left + 4].equal(part)


# --- scales and mirror images


def test_images_are_resized_with_antialiasing_and_logits_back():
    network = Fake(pointwise)
    images = noise(2, 3, 9, 14)
    labels = predict(network, images, replace(FULL, scales=(0.5, 1.0, 1.75)), 4)
    assert labels.shape == (2, 9, 14)
    assert [tuple(shown.shape[-2:]) for shown in network.shown] == [(4, 7), (9, 14), (16, 24)]  # 4.5 and 24.5 to even
    assert network.shown[1] is images
    small = F.interpolate(images, (4, 7), mode="bilinear", antialias=True)
    assert network.shown[0].equal(small) and not small.equal(F.interpolate(images, (4, 7), mode="bilinear"))
    tiny = Fake(pointwise)
    predict(tiny, noise(1, 3, 1, 2), replace(FULL, scales=(0.1,)), 4)
    assert tiny.shown[0].shape[-2:] == (1, 1)


def test_windows_keep_their_side_at_every_scale():
    network = Fake(pointwise)
    labels = predict(network, noise(1, 3, 8, 6), replace(WINDOW, scales=(0.5, 2.0)), 4)
    assert labels.shape == (1, 8, 6)
    assert {tuple(shown.shape[-2:]) for shown in network.shown} == {(4, 4)}
    assert sum(len(shown) for shown in network.shown) == 1 + 4 * 3  # 4x3, filled to 4x4; 16x12


def test_probabilities_are_averaged_not_logits():
    """Of two views one says class 0 with logits (8, 0, 0), the other class 1 with (0, 9, 8): logits would sum to class
    1's 9 against 8, probabilities to 0.9993 + 0.0001 against 0.0003 + 0.7310."""
    says = iter([[8.0, 0, 0], [0, 9.0, 8.0]])
    network = Fake(lambda shown: torch.tensor(next(says)).view(1, 3, 1, 1).expand(1, 3, *shown.shape[-2:]))
    assert predict(network, noise(1, 3, 2, 2), replace(FULL, flip=True), 4).eq(0).all()


def test_the_mirror_image_is_mirrored_back_before_the_mean():
    """Class 1 wherever a pixel is brighter than the one left of it. In the mirror that is the one right of it; logits
    of 4 and 1 let one view outvote the other."""
    images = torch.zeros(1, 3, 1, 6)
    images[..., 2] = 1.0

    def step(shown):
        """(0, 4 or -1): a rise by 1 from the left says 1, all else 0."""
        before = F.pad(shown, (1, 0))[..., :-1]
        return torch.cat([torch.zeros_like(shown[:, :1]), 5 * (shown - before)[:, :1].clamp(min=0) - 1], dim=1)

    assert predict(Fake(step), images, FULL, 4).tolist() == [[[0, 0, 1, 0, 0, 0]]]
    assert predict(Fake(step), images, replace(FULL, flip=True), 4).tolist() == [[[0, 0, 1, 0, 0, 0]]]
    # not mirrored back, the second view would speak of pixel 3

    def left(shown):
        """Class 1 left of the middle, by position alone."""
        place = torch.linspace(1, -1, shown.shape[-1]).expand(len(shown), 1, *shown.shape[-2:])
        return torch.cat([torch.zeros_like(place), place + 0.5], dim=1)

    assert predict(Fake(left), images, FULL, 4).tolist() == [[[1, 1, 1, 1, 0, 0]]]
    # mean of sigmoid(p + 0.5) and sigmoid(0.5 - p) is above a half everywhere
    assert predict(Fake(left), images, replace(FULL, flip=True), 4).eq(1).all()


@pytest.mark.parametrize("options", [FULL, WINDOW, replace(WINDOW, stride=0.5)])
def test_a_flip_of_a_mirrored_picture_is_the_mirrored_answer(options):
    """With the mirror image averaged in, no network tells left from right, whatever its windows."""
    images, local = noise(1, 3, 8, 12), nn.Conv2d(3, 4, (1, 3), padding=(0, 1))
    both = replace(options, flip=True)
    assert predict(Fake(local), images.flip(-1), both, 4).equal(predict(Fake(local), images, both, 4).flip(-1))
    one = predict(Fake(local), images.flip(-1), options, 4)
    assert not one.equal(predict(Fake(local), images, options, 4).flip(-1)), "this network does"


# --- real networks


TRANSFORMER = Model(
    encoder="vit_tiny_patch16_224", image_size=32, output_stride=16, decoder="mask_transformer", width=64, layers=1
)


@pytest.mark.parametrize("model", [Model(width=8, atrous_rates=(1,)), TRANSFORMER], ids=["convolutional", "vit"])
@pytest.mark.parametrize("size", ["full", "window"])
def test_networks_of_both_kinds_in_every_way(model, size):
    network = create_network(model, [3]).eval().to(memory_format=torch.channels_last)
    images = noise(2, 3, 41, 65).contiguous(memory_format=torch.channels_last)
    options = Evaluation(size=size, scales=(0.5, 1.0, 1.5), flip=True, batch=3)
    labels = predict(network, images, options, 32)
    assert labels.shape == (2, 41, 65) and labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() < 3


@pytest.mark.parametrize("options", [replace(WINDOW, flip=True, scales=(0.5, 1.0)), replace(FULL, flip=True)])
def test_the_network_sees_channels_last(options):
    network = Fake(pointwise)
    predict(network, noise(2, 3, 9, 13).contiguous(memory_format=torch.channels_last), options, 4)
    assert all(shown.is_contiguous(memory_format=torch.channels_last) for shown in network.shown)
    assert len(network.shown) > 1


def test_half_precision_is_averaged_in_float32():
    network = Fake(lambda shown: (shown * 300).half())
    images = noise(1, 3, 6, 6)
    logits = training_inference._logits(network, images, replace(WINDOW, stride=0.5), 4, 1.0, False)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, (images * 300).half().float(), rtol=1e-6, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [WINDOW, replace(FULL, flip=True, scales=(0.5, 1.0))])
def test_nothing_waits_for_the_gpu(options):
    network = create_network(Model(width=8, atrous_rates=(1,)), [3]).eval().cuda()
    images = noise(2, 3, 41, 65).cuda()
    predict(network, images, options, 32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        predict(network, images, options, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- evaluation uses it


@pytest.mark.parametrize("options", [{}, {"size": "window"}, {"flip": True, "scales": [0.5, 1.0]}])
def test_evaluation_scores_what_is_predicted(project, options):
    project.document["benchmarks"]["tiny"]["evaluation"] |= options
    run = project.run("base")
    torch.manual_seed(0)
    network, index = run.build_network().eval(), run.index()
    table = run.label_table(training=False)
    numbers = list(range(8))
    confusion = evaluate(run, network, evaluation_loader(run.settings, index, "val", numbers, table))
    expected = torch.zeros_like(confusion)
    for images, truth, _ in evaluation_loader(run.settings, index, "val", numbers, table):
        shown = run.normalise(images, torch.device("cpu"))
        labels = predict(network, shown, run.settings.evaluation, run.settings.train.crop)
        for true, label in zip(truth.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if true != 255:
                expected[true, label] += 1
    assert confusion.equal(expected)
    samples = predict_samples(run, network, index)
    assert {sample.shape for sample in samples.values()} == {(64, 64)}


def test_evaluation_in_windows_shows_crops(project, monkeypatch):
    project.set("benchmarks.tiny.evaluation.size", "window")
    run = project.run("base")
    network, seen = run.build_network().eval(), []
    network.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    training_evaluation.predict_samples(run, network, run.index())
    assert seen and {shape[-2:] for shape in seen} == {(32, 32)}, "train.crop"
