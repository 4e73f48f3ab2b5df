"""The presets of benchmarks: a table of their numbers, and what each file says about source, results and time."""

from itertools import takewhile

from ciss.study import presets
from extensions.text import table

COLUMNS = ("preset", "protocol", "setting", "encoder", "decoder", "crop (pixels)", "batch", "epochs", "learning rate")


def overview() -> str:
    """A row for each preset, then the head of each file."""
    rows, heads = [], []
    for name, file in presets.presets().items():
        preset = presets.load(name)
        train, model = preset["train"], preset["model"]
        phases = [train["base"], train["increment"]]
        epochs, rates = ([f"{phase[key]:g}" for phase in phases] for key in ("epochs", "lr"))
        names = (f"[`{name}`](#{name})", str(preset.get("protocol", "")), str(preset.get("setting", "")))
        network = (str(model.get("encoder", "")), str(model.get("decoder", "")))
        rows.append((*names, *network, str(train["crop"]), str(train["batch"]), ", ".join(epochs), ", ".join(rates)))
        lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
        head = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
        heads.append(f"### {name}\n\n```text\n{head}\n```\n")
    text = "Epochs and learning rates: base step, then each later step."
    return f"{table(COLUMNS, rows)}\n{text}\n\n## What each preset says\n\n" + "\n".join(heads)
