"""Labels of any pictures, from a command line."""

import os
import shutil
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ciss import cli
from ciss.analysis.figures.masks import overlay, percent
from ciss.analysis.figures.style import style
from ciss.data import DATASETS, DataError
from ciss.data.loaders import evaluation_loader
from ciss.data.normalisation import normalise
from ciss.inspection import predict
from ciss.models import create_network
from ciss.runs.run import Run
from ciss.store.files import CheckpointError
from ciss.store.weights import restore, save_weights
from ciss.training.evaluation import evaluate
from ciss.training.inference import predict as infer

ORDER = [3, 7, 1, 8, 5, 2, 6, 4]  # protocol 4-2: four, two, two
PALETTE = DATASETS["shapes"].palette


def save(project, name: str = "tune-1", position: int | None = None) -> Run:
    """A run whose network is saved untrained; with a position it says that one everywhere."""
    run = project.run(name)
    torch.manual_seed(0)
    network = run.build_network().eval()
    with torch.no_grad():
        base, new = network.decoder.classifier.groups
        for group in (base, new):
            group.bias.zero_()
        if position is not None:
            base.weight.zero_(), new.weight.zero_()
            one, place = (base, position) if position < len(base.bias) else (new, position - len(base.bias))
            one.bias[place] = 1.0
    save_weights(run.folder / "weights.safetensors", network, run.description())
    project.write()
    return run


def photo(height=40, width=60, seed=0) -> np.ndarray:
    """Soft blobs of colour."""
    coarse = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return (255 * torch.nn.functional.interpolate(coarse, (height, width))[0].permute(1, 2, 0)).byte().numpy()


def store(file, picture=None, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo() if picture is None else picture, **options).save(file)
    return str(file)


def ids(file) -> np.ndarray:
    with Image.open(file) as opened:
        assert opened.mode == "P"
        return np.array(opened)


@pytest.fixture
def shuffled(project):
    project.document["benchmarks"]["tiny"]["order"] = ORDER
    project.prepare()
    return project


def failing(*arguments) -> int | str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", *map(str, arguments)])
    return stop.value.code


# --- the mask


@pytest.mark.parametrize(("position", "raw"), [(0, 0), (1, 3), (4, 8), (5, 5), (6, 2)])
def test_a_mask_has_raw_ids_in_the_colours_of_the_data_set(shuffled, tmp_path, position, raw, capsys):
    save(shuffled, "tune-1", position)
    cli.main(["predict", "tune-1", store(tmp_path / "a.png"), "--out", str(tmp_path / "out")])
    found = ids(tmp_path / "out" / "a.png")
    assert found.shape == (40, 60) and found.dtype == np.uint8
    assert (found == raw).all()
    with Image.open(tmp_path / "out" / "a.png") as opened:
        assert (np.array(opened.convert("RGB")) == PALETTE[raw]).all()
    line = capsys.readouterr().out
    assert line == f"{os.path.relpath(tmp_path / 'out' / 'a.png')}: {DATASETS['shapes'].classes[raw]} 100.0 %\n"
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a.png", "a_overlay.png"]


@pytest.mark.parametrize("options", [{}, {"size": "window"}, {"flip": True, "scales": [0.5, 1.0]}])
def test_labels_are_those_of_the_evaluation(shuffled, tmp_path, options):
    shuffled.document["benchmarks"]["tiny"]["evaluation"] |= options
    run = save(shuffled)
    cli.main(["predict", "tune-1", store(tmp_path / "a.png"), "--out", str(tmp_path)])
    network = run.build_network().eval()
    restore(network, run.folder / "weights.safetensors")
    shown = normalise(torch.from_numpy(photo()).permute(2, 0, 1)[None], torch.device("cpu"), True)
    network.to(memory_format=torch.channels_last)
    positions = infer(network, shown, run.settings.evaluation, run.settings.train.crop)[0]
    expected = np.array([0, *ORDER])[positions]
    assert (ids(tmp_path / "a-2.png") == expected).all()
    assert len(np.unique(expected)) > 1


def test_masks_compare_with_annotations_as_the_evaluation_does(shuffled, tmp_path):
    """The confusion matrix comes out of the files, raw ids on both sides."""
    run = save(shuffled)
    index, network = run.index(), predict.load_network(run, torch.device("cpu"))
    pairs, raw = index.pairs("val"), [0, *ORDER]
    cli.main(["predict", "tune-1", *(str(pair.image) for pair in pairs), "--out", str(tmp_path / "out")])
    confusion = np.zeros((9, 9), int)
    for pair in pairs:
        truth, found = np.array(Image.open(pair.mask)), ids(tmp_path / "out" / f"{pair.id}.png")
        np.add.at(confusion, (truth[truth != 255], found[truth != 255]), 1)
    loader = evaluation_loader(run.settings, index, "val", list(range(len(pairs))), run.label_table(training=False))
    np.testing.assert_array_equal(confusion[np.ix_(raw, raw)], evaluate(run, network, loader))
    assert (confusion.sum(0) > 0).sum() > 2


def test_pictures_are_labelled_whole_where_the_evaluation_crops(project, tmp_path, capsys):
    project.set("benchmarks.tiny.evaluation.size", "crop")
    save(project)
    cli.main(
        ["predict", "tune-1", store(tmp_path / "a.png"), store(tmp_path / "b.png"), "--out", str(tmp_path / "out")]
    )
    assert ids(tmp_path / "out" / "a.png").shape == (40, 60)
    assert capsys.readouterr().out.count("at full resolution") == 1


# --- the overlay


def rendered(picture, labels) -> tuple[np.ndarray, list[str], list[str]]:
    """Pixels, the legend's words, the numbers on the picture."""
    figure = overlay(picture, labels, DATASETS["shapes"].classes, PALETTE)
    canvas = figure.canvas
    canvas.draw()
    words = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return np.asarray(canvas.buffer_rgba())[..., :3], words, [text.get_text() for text in figure.texts]


def test_classes_lie_half_transparent_over_the_picture_and_background_stays_clear():
    picture = np.full((500, 640, 3), 100, np.uint8)
    labels = np.zeros((500, 640), np.uint8)
    labels[:, 480:] = 2
    labels[:400, 480:] = 0
    pixels, words, numbers = rendered(picture, labels)
    assert pixels.shape[1] == 640 and 520 < pixels.shape[0] < 560, "a pixel is a pixel, and the legend is below"
    assert (pixels[:500, :480] == 100).all()
    assert (pixels[:400] == 100).all(), "the number stands on its class"
    assert pixels[499, 639].tolist() == [(100 + c + 1) // 2 for c in PALETTE[2]]
    assert words == ["0  background  95.0 %", f"2  {DATASETS['shapes'].classes[2]}  5.0 %"]
    assert numbers == ["2"]
    assert (pixels[500:] < 128).any() and (pixels[500:] == 255).any(), "dark words on white"


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((64, 64), (448, 448)),
        ((1, 1), (480, 480)),
        ((300, 50), (300, 50)),
        ((1, 5000), (1, 2500)),
        ((241, 7), (241, 7)),
    ],
)
def test_the_legend_is_whole_at_every_size(shape, shown):
    """No letter is cut off: the outermost pixels are white."""
    labels = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) * 9 // max(1, np.prod(shape))
    pixels, words, _ = rendered(np.zeros((*shape, 3), np.uint8), labels.astype(np.uint8))
    height = pixels.shape[0] - shown[0]
    assert len(words) == len(np.unique(labels))
    assert 15 <= height <= 900
    assert pixels.shape[1] >= shown[1]
    below = pixels[-height:]
    assert (below[-1] == 255).all() and (below[:, 0] == 255).all() and (below[:, -1] == 255).all()
    assert (below < 100).any()


def test_many_classes_have_a_legend_each_below_the_other():
    voc = DATASETS["voc"]
    labels = np.repeat(np.arange(21, dtype=np.uint8), 300 * 400 // 21 + 1)[: 300 * 400].reshape(300, 400)
    figure = overlay(np.zeros((300, 400, 3), np.uint8), labels, voc.classes, voc.palette)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(boxes) == 21 and figure.bbox.width == 400
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= 400 and box.y0 >= 0 and box.y1 <= figure.bbox.height - 300
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_shares_are_said_as_they_are():
    assert [percent(share) for share in (1.0, 0.1234, 0.0006, 0.0004)] == ["100.0 %", "12.3 %", "0.1 %", "< 0.1 %"]


def test_the_style_of_the_notebooks_changes_no_size(project, tmp_path):
    """It saves figures tightly cut, at more dots an inch."""
    save(project)
    with mpl.rc_context():
        style()
        cli.main(["predict", "tune-1", store(tmp_path / "a.png"), "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "a_overlay.png") as opened:
        assert opened.mode == "RGB" and opened.width == 480 and opened.height > 320 + 15, "eight times 60x40"


# --- what is given


def test_a_folder_means_its_pictures_each_once(project, tmp_path, capsys):
    save(project)
    for name in ("b.jpg", "a.PNG", ".hidden.png", "deeper/c.png"):
        store(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    cli.main(
        ["predict", "tune-1", str(tmp_path / "in"), str(tmp_path / "in" / "b.jpg"), "--out", str(tmp_path / "out")]
    )
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a.png", "a_overlay.png", "b.png", "b_overlay.png"]
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert printed.err == f"{tmp_path / 'in'}: 1 folder in it not searched\n"


def test_results_never_meet_on_one_name(project, tmp_path):
    save(project)
    shapes = {"x/a.png": (8, 9), "y/a.jpg": (10, 11), "z/A.bmp": (12, 13), "a_overlay.png": (14, 15), "a-2.png": (6, 7)}
    files = [store(tmp_path / name, photo(*shape)) for name, shape in shapes.items()]
    cli.main(["predict", "tune-1", *files, "--out", str(tmp_path / "out")])
    found = {f.name: ids(f).shape for f in (tmp_path / "out").iterdir() if not f.stem.endswith("_overlay")}
    assert found == {
        "a.png": (8, 9),
        "a-2.png": (10, 11),
        "A-3.png": (12, 13),
        "a-2-2.png": (6, 7),
        "a_overlay-2.png": (14, 15),
    }
    assert len(list((tmp_path / "out").iterdir())) == 10


def test_names_differ_where_letters_have_no_case(tmp_path):
    assert predict.names([tmp_path / "A.png", tmp_path / "x" / "a.png"], tmp_path / "out") == ["A", "a-2"]


def test_no_picture_is_written_over(project, tmp_path):
    save(project)
    file = store(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    cli.main(["predict", "tune-1", file, "--out", str(tmp_path)])
    assert (tmp_path / "a.png").read_bytes() == before
    assert ids(tmp_path / "a-2.png").shape == (40, 60)


def test_grey_pictures_palettes_and_opaque_rgba_are_read_as_colours(project, tmp_path):
    save(project)
    grey = photo()[..., 0]
    store(tmp_path / "grey.png", grey)
    store(tmp_path / "colour.png", np.stack([grey] * 3, axis=-1))
    store(tmp_path / "opaque.png", np.dstack([*[grey] * 3, np.full_like(grey, 255)]))
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    files = [str(tmp_path / f"{name}.png") for name in ("grey", "colour", "opaque", "palette")]
    cli.main(["predict", "tune-1", *files, "--out", str(tmp_path / "out")])
    found = [ids(tmp_path / "out" / f"{name}.png") for name in ("grey", "colour", "opaque", "palette")]
    assert len(np.unique(found[0])) > 1
    assert all((mask == found[0]).all() for mask in found)


def test_a_bad_picture_is_named_and_the_others_are_done(project, tmp_path, capsys):
    save(project)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "empty").mkdir()
    clear = store(tmp_path / "clear.png", np.dstack([photo(), photo()[..., 0]]))
    good = [store(tmp_path / "a.png"), store(tmp_path / "z.png")]
    given = [good[0], tmp_path / "broken.jpg", tmp_path / "lost.png", tmp_path / "empty", clear, good[1]]
    assert failing("tune-1", *given, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and ids(tmp_path / "out" / "z.png").shape == (40, 60)
    errors = said.err.splitlines()
    assert len(errors) == 4 and all(line.startswith(f"error: {tmp_path}") and line.endswith(".") for line in errors)
    for name, words in {
        "broken": "leave it out",
        "lost": "no such",
        "empty": "no pictures",
        "clear": "transparent",
    }.items():
        assert any(name in line and words in line for line in errors), name


def test_names_that_no_terminal_shows(project, tmp_path, capsys):
    save(project)
    files = [store(tmp_path / "two\nlines.png"), store(tmp_path / os.fsdecode(b"byte\xff.png"))]
    (tmp_path / "bad\n.png").write_bytes(b"")
    assert failing("tune-1", *files, tmp_path / "bad\n.png", "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 and len(said.err.splitlines()) == 1
    said.out.encode(), said.err.encode()
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_vision_transformer_with_class_tokens(project, tmp_path):
    """Pictures of any size, in windows of the size it is trained at."""
    model = {"encoder": "vit_tiny_patch16_224", "image_size": 32, "output_stride": 16, "decoder": "mask_transformer"}
    project.set("benchmarks.tiny.model", {**model, "width": 64, "layers": 1})
    project.set("benchmarks.tiny.evaluation.size", "window")
    project.write()
    run = project.run("tune-1")
    save_weights(run.folder / "weights.safetensors", run.build_network(), run.description())
    files = [store(tmp_path / "a.png"), store(tmp_path / "b.png", photo(33, 17))]
    cli.main(["predict", "tune-1", *files, "--out", str(tmp_path / "out")])
    assert ids(tmp_path / "out" / "b.png").shape == (33, 17)


def test_one_pixel_and_one_row(project, tmp_path):
    save(project)
    files = [store(tmp_path / "dot.png", photo(1, 1)), store(tmp_path / "row.png", photo(1, 200))]
    cli.main(["predict", "tune-1", *files, "--out", str(tmp_path / "out")])
    assert ids(tmp_path / "out" / "dot.png").shape == (1, 1) and ids(tmp_path / "out" / "row.png").shape == (1, 200)


# --- the run


def test_results_lie_in_the_project(project, tmp_path, monkeypatch):
    save(project)
    file = store(tmp_path / "elsewhere" / "a.png")
    (project.folder / "deeper").mkdir()
    monkeypatch.chdir(project.folder / "deeper")
    cli.main(["predict", "tune-1", os.path.relpath(file)])
    assert ids(project.folder / "predictions" / "tune-1" / "a.png").shape == (40, 60)


def test_an_unknown_run_and_its_neighbour(project, tmp_path):
    save(project)
    message = failing("tune1", store(tmp_path / "a.png"))
    assert (
        message.startswith("error: params.yaml: there is no run 'tune1'. Did you mean 'tune-") and "\n" not in message
    )


def test_an_untrained_run_says_how_to_train_it(project, tmp_path):
    project.write()
    message = failing("tune-1", store(tmp_path / "a.png"))
    assert "tune-1 is not trained yet" in message and "dvc repro" in message
    assert message.endswith("ciss train tune-1")
    shutil.copy(project.folder / "params.yaml", project.folder / "mine.yaml")
    assert failing("tune-1", tmp_path / "a.png", "--config", "mine.yaml").endswith("tune-1 --config mine.yaml")
    assert not (project.folder / "predictions").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("benchmarks.tiny.model.width", 16, "made by another network"),
        ("benchmarks.tiny.order", ORDER, "groups"),
        ("train.base.lr", 0.5, "benchmark.train.base.lr 0.05, now 0.5"),
    ],
)
def test_weights_of_other_parameters_are_refused(project, tmp_path, key, value, words):
    save(project)
    project.document["benchmarks"]["tiny"].setdefault("order", None)
    project.set(key, value)
    project.write()
    message = failing("tune-1", store(tmp_path / "a.png"))
    assert words in message and "ciss train tune-1" in message
    assert not (project.folder / "predictions").exists()


def test_another_evaluation_needs_no_training(project, tmp_path):
    save(project)
    project.set("benchmarks.tiny.evaluation", {"size": "window", "flip": True, "scales": [0.5, 1.0], "batch": 2})
    project.write()
    cli.main(["predict", "tune-1", store(tmp_path / "a.png")])
    assert ids(project.folder / "predictions" / "tune-1" / "a.png").shape == (40, 60)


def test_a_damaged_checkpoint(project, tmp_path):
    file = save(project).folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "damaged" in failing("tune-1", store(tmp_path / "a.png"))


def test_the_encoders_starting_weights_are_not_needed(project, tmp_path):
    """They may lie on another machine, or come from a network."""
    project.set("benchmarks.tiny.model.weights", "gone.safetensors")
    project.write()
    run = project.run("tune-1")
    network = create_network(replace(run.settings.model, weights=None), run.channel_groups)
    save_weights(run.folder / "weights.safetensors", network, run.description())
    cli.main(["predict", "tune-1", store(tmp_path / "a.png")])
    assert ids(project.folder / "predictions" / "tune-1" / "a.png").shape == (40, 60)


def test_options_that_cannot_be(project, tmp_path):
    save(project)
    file = store(tmp_path / "a.png")
    for folder, reason in ((file, "File exists"), ("/proc/x", "No such file or directory")):
        message = f"--out: cannot make the folder {folder}: {reason}. Name another."
        assert message in failing("tune-1", file, "--out", folder)
    assert failing("tune-1", file, "--config", "lost.yaml").startswith("error: ")
    if not torch.cuda.is_available():
        assert "no CUDA device" in failing("tune-1", file, "--device", "cuda")


def test_too_many_pixels_for_the_memory(project, tmp_path, monkeypatch, capsys):
    save(project)

    def short(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(predict, "predict", short)
    assert failing("tune-1", store(tmp_path / "a.png")) == 1
    said = capsys.readouterr().err
    assert "a.png: 60x40 pixels are too many" in said and "evaluation.size to window" in said


def test_a_network_for_a_notebook(project):
    run = save(project)
    network = predict.load_network(run, torch.device("cpu"))
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    labels = predict.label(run, network, photo())
    assert labels.shape == (40, 60) and labels.dtype == np.uint8
    with pytest.raises(CheckpointError, match="not trained yet"):
        predict.load_network(replace(run, name="mib-9"), torch.device("cpu"))
    with pytest.raises(DataError, match="no such picture"):
        list(predict.pictures(["nowhere.png"]))


def test_the_command(shuffled, tmp_path, capsys):
    save(shuffled, "tune-1", 5)
    assert failing("tune-1", store(tmp_path / "a.png"), tmp_path / "lost.png", "--device", "cpu") == 1
    out, err = capsys.readouterr()
    assert out == f"{os.path.join('predictions', 'tune-1', 'a.png')}: {DATASETS['shapes'].classes[5]} 100.0 %\n"
    assert err == f"error: {tmp_path / 'lost.png'}: there is no such picture. Name a file, or a folder of pictures.\n"
    assert (ids(shuffled.folder / "predictions" / "tune-1" / "a.png") == 5).all()


def test_help_says_what_is_written(capsys):
    assert failing("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(word in shown for word in ("RUN", "IMAGE", "--out", "--config", "_overlay.png", "raw class ids"))


def test_a_photograph_is_turned_as_viewers_show_it(project, tmp_path, capsys):
    """A telephone stores pixels lying on their side, and a tag. The mask has the size of the turned picture."""
    save(project)
    pictures, uprights, lines = [], [], []
    for orientation in range(2, 9):
        phone = store(tmp_path / "in" / f"phone{orientation}.png")
        with Image.open(phone) as opened:
            tags = opened.getexif()
            tags[0x0112] = orientation
            opened.save(phone, exif=tags)
        with Image.open(phone) as opened:
            uprights.append(ImageOps.exif_transpose(opened).convert("RGB"))
        upright = store(tmp_path / "in" / f"upright{orientation}.png", np.array(uprights[-1]))
        pictures += [phone, upright]
        size = f"{uprights[-1].width}x{uprights[-1].height} pixels"
        lines.append(f"{phone}: turned as its EXIF tag says; the mask has {size}")
    cli.main(["predict", "tune-1", *pictures, "--out", str(tmp_path / "out")])
    for orientation, picture in zip(range(2, 9), uprights, strict=True):
        first, second = (ids(tmp_path / "out" / f"{name}{orientation}.png") for name in ("phone", "upright"))
        assert np.array_equal(first, second) and first.shape == (picture.height, picture.width)
    assert [line for line in capsys.readouterr().out.splitlines() if "EXIF" in line] == lines


@pytest.mark.filterwarnings("error")
def test_a_huge_picture_is_refused_in_one_line(project, tmp_path, capsys):
    """Pillow's warning once stood before it."""
    save(project)
    Image.new("1", (12_000, 9_000)).save(tmp_path / "huge.png")
    assert failing("tune-1", tmp_path / "huge.png") == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "the image is too large (12000x9000 pixels)" in err
