"""A trained run as a folder for other programs: safetensors, config.json and ONNX."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

import ciss
from ciss import cli
from ciss.config import ConfigError
from ciss.data import DATASETS
from ciss.inspection import export_onnx, exported, predict
from ciss.inspection.export import export
from ciss.inspection.export_onnx import ExportError, PictureLabels, compare, onnx_graph
from ciss.models.extras import Rows, StageRows
from ciss.runs.run import Run
from ciss.store.files import CheckpointError
from ciss.store.weights import save_weights
from tests.helpers.project import choose_decoder

ORDER = [3, 7, 1, 8, 5, 2, 6, 4]  # protocol 4-2: four, two, two


def photo(height=40, width=60, seed=0) -> np.ndarray:
    """Soft blobs of colour with noise."""
    random = torch.Generator().manual_seed(seed)
    colours = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 6, generator=random), (height, width))[0]
    pixels = 0.9 * colours + 0.1 * torch.rand(colours.shape, generator=random)
    return (255 * pixels).permute(1, 2, 0).byte().numpy()


@torch.no_grad()
def save(project, method: str = "finetune", decoder: str = "deeplabv3", **evaluation) -> Run:
    """A run after step 1 with a random network, whose classes all occur on `photo()`."""
    if decoder == "mobilenet":
        options = {"encoder": "mobilenetv2_035", "output_stride": 16, "width": 8, "atrous_rates": [6]}
        decoder, project.document["benchmarks"]["tiny"]["model"] = "deeplabv3", options
    else:
        choose_decoder(project, decoder)
    project.document["benchmarks"]["tiny"]["order"] = ORDER
    project.document["benchmarks"]["tiny"]["evaluation"] |= evaluation
    project.document["methods"].setdefault(method, {})
    for name in ("tune-1", "tune-2"):
        project.document["chain"][name]["method"] = method
    project.write()
    run = project.run("tune-1")
    torch.manual_seed(0)
    network = run.build_network().eval()
    rows = [part for part in network.decoder.extras.values() if isinstance(part, Rows)]
    for part in [*rows, *network.decoder.classifier.groups] if decoder == "deeplabv3" else []:
        part.weight.mul_(10)  # so that sigmoids differ
    for part in network.decoder.extras.values():
        for weight in part.weights if isinstance(part, StageRows) else []:
            weight.normal_()
    images = run.normalise(torch.from_numpy(photo(64, 96)).permute(2, 0, 1)[None], torch.device("cpu"))
    means = network(images).rows.mean(dim=(0, 2, 3))
    extra = sum(part.out_channels for part in rows)
    for part in rows:  # one at most
        part.bias.sub_(means[:extra] + 6)
    biases = network.decoder.shifts if decoder != "deeplabv3" else [g.bias for g in network.decoder.classifier.groups]
    for bias, mean in zip(biases, means[extra:].split([len(bias) for bias in biases]), strict=True):
        bias.sub_(mean)
    save_weights(run.folder / "weights.safetensors", network, run.description())
    return run


def failing(*arguments) -> int | str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, arguments)])
    return stop.value.code


# --- the folder, opened by ciss.load


def test_three_lines_label_a_picture_as_ciss_predict_does(project, tmp_path):
    save(project)
    Image.fromarray(photo()).save(tmp_path / "a.png")
    cli.main(["predict", "tune-1", str(tmp_path / "a.png"), "--out", str(tmp_path / "masks")])
    cli.main(["export", "tune-1", "--out", str(tmp_path / "folder"), "--no-onnx"])
    network = ciss.load(tmp_path / "folder")
    expected = np.array(Image.open(tmp_path / "masks/a.png"))
    assert len(np.unique(expected)) > 3 and expected.dtype == np.uint8
    with Image.open(tmp_path / "a.png") as image:
        for picture in (tmp_path / "a.png", str(tmp_path / "a.png"), image, photo()):
            np.testing.assert_array_equal(network(picture), expected)
    assert network.classes == {raw: DATASETS["shapes"].classes[raw] for raw in [0, *ORDER[:6]]}


def test_config_json_says_what_the_network_is(project, tmp_path, capsys):
    run = save(project)
    cli.main(["export", "tune-1", "--no-onnx"])
    folder = run.root / "exports" / "tune-1"
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    values = json.loads((folder / "config.json").read_text())
    assert [row["id"] for row in values["classes"]] == [0, *ORDER[:6]]
    assert values["classes"][1]["colour"] == DATASETS["shapes"].palette[3].tolist()
    assert values["origin"]["run"] == "tune-1" and values["origin"]["method"] == "finetune"
    assert "model.safetensors" in capsys.readouterr().out
    assert 'ciss.load("FOLDER")' in (folder / "README.md").read_text()


def test_an_export_records_the_code_that_trained(finished, tmp_path):
    run = finished.run("mib-1")
    finished.write()
    export(run, tmp_path / "folder", onnx=False)
    code = ciss.load(tmp_path / "folder").settings.origin["code"]
    assert code["method"] == run.training_code().digest


@pytest.mark.parametrize("orientation", [3, 6])
def test_pictures_are_rotated_by_their_exif_tag(project, tmp_path, orientation):
    export(save(project), tmp_path / "folder", onnx=False)
    network, tag = ciss.load(tmp_path / "folder"), Image.Exif()
    tag[0x0112] = orientation
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=tag)
    turned = np.ascontiguousarray(np.rot90(photo(), {3: 2, 6: -1}[orientation]))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(network(image), network(turned))
    np.testing.assert_array_equal(network(tmp_path / "a.png"), network(turned))


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_another_array_is_refused(project, tmp_path, wrong):
    export(save(project), tmp_path / "folder", onnx=False)
    with pytest.raises(ValueError, match="uint8"):
        ciss.load(tmp_path / "folder")(wrong)


def test_wrong_folders_have_a_message(project, tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(CheckpointError, match="there is no such folder"):
        ciss.load(folder)
    export(save(project), folder, onnx=False)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match=r"not the weights of config\.json"):
        ciss.load(folder)
    (folder / "model.safetensors").write_bytes(weights)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ConfigError, match="format"):
        ciss.load(folder)
    (folder / "config.json").write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(CheckpointError, match=r"does not fit config\.json"):
        ciss.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no exported network"):
        ciss.load(folder)


def test_a_folder_with_other_files_stays_as_it_is(project, tmp_path):
    save(project)
    (tmp_path / "notes.txt").write_text("mine")
    assert "other files (notes.txt)" in failing("export", "tune-1", "--out", tmp_path, "--no-onnx")


def test_an_untrained_run_has_a_message(project):
    project.write()
    assert "tune-1 is not trained yet" in failing("export", "tune-1", "--no-onnx")


def test_statistics_that_only_training_needs_are_left_out(project, tmp_path):
    run = save(project, "ridge")
    assert any("extras" in name for name in run.build_network().state_dict())
    export(run, tmp_path / "folder", onnx=False)
    network = ciss.load(tmp_path / "folder")
    assert not [name for name in network.network.state_dict() if "extras" in name]
    trained = predict.load_network(run, torch.device("cpu"))
    np.testing.assert_array_equal(network(photo()), predict.label(run, trained, photo()))


def test_rows_over_stages_are_exported(project, tmp_path):
    run = save(project, "stage_ridge")
    export(run, tmp_path / "folder", onnx=False)
    network = ciss.load(tmp_path / "folder")
    trained = predict.load_network(run, torch.device("cpu"))
    rows = trained.decoder.extras["stages"].weights
    assert all(row.equal(own) for row, own in zip(network.network.decoder.extras["stages"].weights, rows, strict=True))
    expected = predict.label(run, trained, photo())
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(network(photo()), expected)


# --- a hub


class Hub(BaseHTTPRequestHandler):
    """The answers of a hub with one repository, owner/name, from the folder `server.folder`."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        commit, files = "a" * 40, ["config.json", "model.safetensors"]
        name = self.path.partition("?")[0].rpartition("/")[2]
        if self.path.startswith("/api/models/owner/name"):
            tree = [{"type": "file", "path": f, "oid": "b" * 40, "size": self.size(f)} for f in files]
            info = {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            self.answer(json.dumps(tree if "/tree/" in self.path else info).encode())
        elif self.path.startswith("/owner/name/resolve/") and name in files:
            self.answer((self.server.folder / name).read_bytes(), ETag=f'"{name}"', **{"X-Repo-Commit": commit})
        else:
            self.send_error(404)

    def size(self, name: str) -> int:
        return (self.server.folder / name).stat().st_size

    def answer(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_a_repository_of_a_hub_is_the_same_network(project, tmp_path):
    folder = tmp_path / "folder"
    export(save(project), folder, onnx=False)
    np.save(tmp_path / "photo.npy", photo())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = folder
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = """
import sys, ciss, numpy
network = ciss.load("owner/name")
numpy.save(sys.argv[2], network(numpy.load(sys.argv[1])))
"""
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub | {"no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", program, str(tmp_path / "photo.npy"), str(tmp_path / "labels.npy")]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), ciss.load(folder)(photo()))


def test_a_hub_that_does_not_answer_has_a_message(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(exported, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"owner/name: neither a folder here, nor .*no route"):
        ciss.load("owner/name")


# --- ONNX

SIZES = [(1 + 13 * number % 71, 2 + 29 * number % 83) for number in range(1, 21)]  # 20 different ones


@pytest.mark.parametrize(
    ("decoder", "method"),
    [
        ("deeplabv3", "ssul"),
        ("deeplabv3", "stage_ridge"),
        pytest.param("deeplabv3", "dkd", marks=pytest.mark.slow),
        pytest.param("mask_transformer", "finetune", marks=pytest.mark.slow),
        pytest.param("test_vit", "finetune", marks=pytest.mark.slow),
        pytest.param("mobilenet", "finetune", marks=pytest.mark.slow),
    ],
)
def test_labels_in_onnxruntime_are_those_of_ciss_predict(project, tmp_path, decoder, method, capsys):
    import onnxruntime

    run = save(project, method, decoder)
    cli.main(["export", "tune-1", "--out", str(tmp_path / "folder")])
    assert "have another label" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "folder/model.onnx", providers=["CPUExecutionProvider"])
    network, pixels, different, classes = predict.load_network(run, torch.device("cpu")), 0, 0, set()
    assert len(set(SIZES)) == 20
    for number, (height, width) in enumerate(SIZES):
        picture = photo(height, width, seed=number)
        (labels,) = session.run(None, {"image": picture})
        expected = predict.label(run, network, picture)
        assert labels.shape == (height, width) and labels.dtype == np.uint8
        images = run.normalise(torch.from_numpy(picture).permute(2, 0, 1)[None], torch.device("cpu"))
        best, second = network(images).upsample((height, width))[0].topk(2, dim=0).values
        close = (best - second < 1e-4).numpy()
        assert (labels == expected)[~close].all(), (height, width)
        pixels, different = pixels + labels.size, different + (labels != expected).sum()
        classes |= set(np.unique(expected).tolist())
    assert different < 0.001 * pixels
    assert len(classes) > 3, classes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "options"),
    [("deeplabv3", {"size": "window", "stride": 0.5}), ("mask_transformer", {"size": "window", "flip": True})],
)
def test_windows_and_mirror_images_are_in_the_graph(project, tmp_path, decoder, options):
    run = save(project, decoder=decoder, **options)
    export(run, tmp_path / "folder")
    network, graph = ciss.load(tmp_path / "folder"), (tmp_path / "folder/model.onnx").read_bytes()
    comparison = compare(network, graph, [photo(*size, seed=size[0]) for size in SIZES])
    assert comparison.equal and comparison.pixels == sum(height * width for height, width in SIZES)
    np.testing.assert_array_equal(network(photo()), predict.label(run, network.network, photo()))


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"size": "window"}, {"size": "window", "flip": True}])
@pytest.mark.parametrize("decoder", ["deeplabv3", "mask_transformer"])
def test_the_exported_form_gives_the_labels_of_the_network(project, tmp_path, decoder, options):
    export(save(project, decoder=decoder, **options), tmp_path / "folder", onnx=False)
    network = ciss.load(tmp_path / "folder")
    labels = PictureLabels(network).eval()
    for size in SIZES[:6]:
        picture = photo(*size, seed=size[1])
        with torch.no_grad():
            np.testing.assert_array_equal(labels(torch.from_numpy(picture)).numpy(), network(picture))


@pytest.mark.parametrize(
    ("decoder", "options", "message"),
    [
        ("deeplabv3", {"scales": [0.5, 1.0]}, r"evaluation\.scales is \[0\.5, 1\.0\]"),
        ("test_vit", {"size": "window"}, "test_vit is a plain vision transformer"),
    ],
)
def test_what_has_no_graph_is_refused_by_name(project, tmp_path, decoder, options, message):
    save(project, decoder=decoder, **options)
    with pytest.raises(SystemExit, match=message):
        cli.main(["export", "tune-1", "--out", str(tmp_path / "folder")])
    assert ciss.load(tmp_path / "folder")(photo()).shape == (40, 60)
    assert not (tmp_path / "folder/model.onnx").exists()


def test_a_network_that_torch_cannot_export_is_refused(project, tmp_path):
    export(save(project), tmp_path / "folder", onnx=False)
    labels = PictureLabels(ciss.load(tmp_path / "folder"))
    labels._whole = lambda images: images if images.sum() > 0 else -images
    with pytest.raises(ExportError, match="torch cannot export this network to ONNX"):
        onnx_graph(labels)


def test_a_graph_with_other_labels_is_not_written(project, tmp_path, monkeypatch):
    save(project)
    monkeypatch.setattr(export_onnx, "onnx_graph", lambda labels: b"")
    monkeypatch.setattr(export_onnx, "compare", lambda *_: export_onnx.Comparison(1000, 3, 2))
    assert "model.onnx: not written, because 0.3000 %" in failing("export", "tune-1", "--out", tmp_path / "folder")
    assert not (tmp_path / "folder/model.onnx").exists()


def test_a_size_that_onnxruntime_refuses_is_named(project, tmp_path):
    class Refusing:
        def run(self, *_):
            raise RuntimeError("Concat: dimensions must match")

    with pytest.raises(ExportError, match="cannot label a picture of 60x40 pixels .*must match"):
        export_onnx._run(Refusing(), photo())


@pytest.mark.parametrize(("different", "close", "equal"), [(0, 0, True), (9, 9, True), (10, 10, False), (1, 0, False)])
def test_when_labels_count_as_equal(different, close, equal):
    assert export_onnx.Comparison(10_000, different, close).equal is equal


def test_without_the_extra_the_command_names_it(project, monkeypatch):
    save(project)
    monkeypatch.setattr("ciss.inspection.export.find_spec", lambda name: None if name == "onnxruntime" else name)
    assert "needs the package onnxruntime. Install it: uv sync --extra export" in failing("export", "tune-1")


def test_importing_ciss_imports_neither_torch_nor_onnx():
    program = "import ciss, sys; print([n for n in ('torch', 'onnx', 'numpy', 'timm') if n in sys.modules], ciss.load)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("[] <function load"), done.stderr
