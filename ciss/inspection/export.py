"""`ciss export`: a trained run as a folder for other programs, with safetensors, config.json and ONNX."""

import hashlib
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save

from ciss import config
from ciss.config import ConfigError
from ciss.data import DataError, normalisation
from ciss.documents import counted
from ciss.inspection.exported import CONFIG, GRAPH, WEIGHTS, load
from ciss.models import Network
from ciss.models.extras import Rows, StageRows
from ciss.runs import results
from ciss.runs.run import Run, load_network, resolve
from ciss.store.files import CheckpointError, write_bytes, write_text

README = "README.md"
MODULES = ("onnx", "onnxscript", "onnxruntime")
NO_ONNX = "ciss export needs the package {}. Install it: uv sync --extra export, or use --no-onnx"


def describe(run: Run, network: Network, weights: bytes) -> dict:
    """The content of config.json, see `exported.Settings`."""
    settings, classes = run.settings, run.classes
    evaluation = asdict(settings.evaluation)
    if evaluation["size"] == "crop":  # as `ciss predict`
        evaluation["size"] = "full"
    mean, deviation = normalisation.input_statistics(settings.model)
    rows = zip(classes.raw.tolist(), classes.names, classes.colours.tolist(), strict=True)
    extras = {name: part.out_channels for name, part in network.decoder.extras.items() if isinstance(part, Rows)}
    stage_rows = {
        name: {"rows": network.channels, "stages": part.stages, "context": part.context}
        for name, part in network.decoder.extras.items()
        if isinstance(part, StageRows)
    }
    origin = {
        "run": run.name,
        "benchmark": run.benchmark,
        "dataset": settings.dataset,
        "protocol": settings.protocol,
        "setting": settings.setting,
        "method": run.method,
        "coefficients": run.coefficients,
        "step": run.last_known_step,
        "seed": run.seed,
        "checkpoint": hashlib.sha256((run.folder / "weights.safetensors").read_bytes()).hexdigest(),
        "code": _code_hashes(run),
        "versions": {name: version(name) for name in ("ciss", "torch", "timm")},
    }
    return {
        "format": 1,
        "model": {**asdict(settings.model), "pretrained": False, "weights": None},
        "groups": run.channel_groups,
        "extras": extras,
        **({"stage_rows": stage_rows} if stage_rows else {}),
        "prediction": network.prediction,
        "input": {"mean": mean, "deviation": deviation},
        "channels_last": settings.train.channels_last,
        "evaluation": evaluation,
        "window": settings.train.crop,
        "classes": [{"id": raw, "name": name, "colour": colour} for raw, name, colour in rows][: network.channels],
        "sha256": hashlib.sha256(weights).hexdigest(),
        "origin": origin,
    }


def _code_hashes(run: Run) -> dict[str, str] | None:
    """Hashes of the code that trained a run, from its results; None without results."""
    try:
        return results.read(run)["identity"]["code"]
    except CheckpointError:
        return None


def export(run: Run, folder: Path, onnx: bool = True) -> list[str]:
    """Writes the folder. Returns a line about each file.

    Raises CheckpointError for a run that is not trained and for a folder with other files. Raises ExportError for a
    network without an ONNX graph, after the other files are written.
    """
    known = {CONFIG, WEIGHTS, GRAPH, README, ".gitattributes", ".git"}
    if folder.exists() and (others := sorted({file.name for file in folder.iterdir()} - known)):
        raise CheckpointError(f"{folder}: there are other files ({others[0]}). Name another folder with --out.")
    network = load_network(run, torch.device("cpu"))
    statistics = {name for name, extra in network.decoder.extras.items() if not isinstance(extra, Rows | StageRows)}
    needless = tuple(f"decoder.extras.{name}." for name in statistics)  # which only training needs
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(needless)}
    weights = save(tensors, metadata={"format": "pt"})
    values = describe(run, network, weights)
    for name in (CONFIG, GRAPH):
        (folder / name).unlink(missing_ok=True)
    write_bytes(folder / WEIGHTS, weights)
    write_text(folder / README, describe_in_words(values))
    write_text(folder / CONFIG, json.dumps(values, indent=1))
    lines = [f"{folder / WEIGHTS}: {len(weights) / 1e6:.1f} MB, {counted(len(values['classes']), 'class', 'classes')}"]
    return [*lines, _write_graph(folder)] if onnx else lines


def _write_graph(folder: Path) -> str:
    """Writes the ONNX file of an exported folder after comparing it with the network. Returns a line about it."""
    from ciss.inspection import export_onnx

    exported = load(folder)
    graph = export_onnx.onnx_graph(export_onnx.PictureLabels(exported).eval())
    pictures = export_onnx.drawn_pictures(exported.settings.window)
    comparison = export_onnx.compare(exported, graph, pictures)
    if not comparison.equal:
        raise export_onnx.ExportError(f"{folder / GRAPH}: not written, because {comparison}. Use --no-onnx.")
    write_bytes(folder / GRAPH, graph)
    sizes = ", ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in pictures)
    return f"{folder / GRAPH}: {len(graph) / 1e6:.1f} MB. On pictures of {sizes}: {comparison}"


def describe_in_words(values: dict) -> str:
    """README.md of the folder, with the head that hubs read."""
    origin, evaluation = values["origin"], values["evaluation"]
    classes = "\n".join(f"| {row['id']} | {row['name']} | {row['colour']} |" for row in values["classes"])
    return f"""---
library_name: ciss
pipeline_tag: image-segmentation
---
# {origin["run"]}

Trained with method `{origin["method"]}` on `{origin["dataset"]}`, protocol `{origin["protocol"]}`, setting
`{origin["setting"]}`, after step {origin["step"]}, seed {origin["seed"]}. `{CONFIG}` has all parameters.

    import ciss
    network = ciss.load("FOLDER")
    labels = network("photo.jpg")    # raw class ids (height, width), uint8

`{GRAPH}`, if present, needs onnxruntime only. Input `image`: (height, width, 3) uint8, red first, any size. Output
`labels`: (height, width) uint8, raw class ids. Normalisation, upsampling and the prediction rule are inside.

    session = onnxruntime.InferenceSession("{GRAPH}")
    (labels,) = session.run(None, {{"image": pixels}})

Pictures are labelled at full resolution; `evaluation` is {json.dumps(evaluation)}. Pictures whose EXIF tag rotates them
are to be rotated first; `ciss.load` does this for files and images of Pillow.

| raw class id | class | colour (RGB) |
|---|---|---|
{classes}
"""


def main(name: str, config_file: str, out: str | None, onnx: bool) -> None:
    """Exports a run. Exits with a message if this is impossible; see `ciss export --help`."""
    missing = [module for module in MODULES if find_spec(module) is None]
    if onnx and missing:
        sys.exit(f"error: {NO_ONNX.format(missing[0])}")
    from ciss.inspection.export_onnx import ExportError

    try:
        run = resolve(config.load(config_file), name)
        folder = Path(out) if out else run.root / "exports" / run.name
        for line in export(run, folder, onnx):
            print(line, flush=True)
    except (ConfigError, DataError, CheckpointError, ExportError, OSError) as error:
        sys.exit(f"error: {error}")
