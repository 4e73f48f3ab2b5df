"""Results of `ciss bench` as Markdown and JSON."""

import json
import re
from collections.abc import Iterable
from statistics import median

PARTS = ("teacher", "student", "losses", "backward", "update")  # of a step
CLOCKS = ("processor", "wall")
MIB = 2**20
EXPLAINED = """\
`step` is one update without reading the batch: forward passes of teacher and student, losses (labels, losses and
logs), backward pass and update. `loader`: reading and normalising the batch. `loss part`: labels, losses, logs and the
backward pass to the outputs of the network, measured separately; `share`: its share of the step. `images/s`: images by
wall time of a step with its reading. `peak`: peak memory {peak}. `step MiB`, `loss part MiB`: memory that a step, or
the loss part alone, needs in addition to the memory in use before it. Network weights are random and images are
generated; neither changes the work of a step."""
ONE_ROUND = " One round is noise on a shared machine: repeat with --rounds 5."
CPU_PEAK = "of the process"
GPU_PEAK = "of torch's tensors"


def page(result: dict) -> str:
    """The whole text: machine, tables, command and explanation. `result`: see `command.run`."""
    machine, code = result["machine"], result["code"]
    facts = [machine["device"], f"torch {machine['torch']}, Python {machine['python']}"]
    facts += [f"code {code['new']}"] if code["new"] else []  # empty without git
    facts += [f"{name}={value}" for name, value in machine.get("variables", {}).items()]
    lines = [f"{'; '.join(facts)}."]
    rounds = result["rounds"]
    turns = f"{rounds} round{'s' * (rounds > 1)} in which the cases take turns"
    seconds = "wall time" if any(map(on_gpu, result["rows"])) else "processor time of all threads"
    if "old" in code:
        ratios = f"Ratios of {seconds}, {code['new']} (new) / {code['old']} (old)"
        lines += [f"\n{ratios}: median (least to largest) of {turns}.{ONE_ROUND if rounds == 1 else ''}\n"]
        lines += ratio_table(result["rows"])
    lines += [f"\nMilliseconds of {seconds}, medians of {turns}.\n", *time_table(result["rows"], code)]
    lines += [f"\n    {result['command']}"]
    lines += [f"\n{explained(result['rows'])}", *without_memory(result["rows"])]
    lines += failures(result["rows"])
    return "\n".join(lines) + "\n"


def explained(rows: list[dict]) -> str:
    return EXPLAINED.format(peak=GPU_PEAK if any(map(on_gpu, rows)) else CPU_PEAK)


def without_memory(rows: list[dict]) -> list[str]:
    """The sentence on methods that were measured without their stored images, if there are some."""
    methods = dict.fromkeys(row["case"]["method"] for row in rows if row.get("built", {}).get("without_memory"))
    if not methods:
        return []
    sentence = f"Measured without stored images (`memory`): {', '.join(methods)}."
    return [f"\n{sentence} An update draws as many images with them; their choice is not measured."]


def time_table(rows: list[dict], code: dict | None = None) -> list[str]:
    """Lines of a Markdown table of milliseconds and memory. `code`: names of the versions, shown if there are two."""
    names = ["images/s", "step", *PARTS, "loader", "loss part", "share"]
    memory = ["peak MiB", "step MiB", "loss part MiB"]
    lines = header([*CASE, *names, *memory])
    for row in rows:
        if "error" in row:
            continue
        speed = row["built"]["images"] / seconds(row, "whole", "wall")
        parts = [milliseconds(row, part) for part in names[1:-1]]
        share = seconds(row, "loss part") / seconds(row, "step")
        sizes = [megabytes(row, name) for name in ("peak", "step", "loss part")]
        method, *cells = case_cells(row)
        method += f" ({code[row['version']]})" if code and len(code) > 1 else ""
        lines.append(line([method, *cells, f"{speed:.3g}", *parts, f"{share:.1%}", *sizes]))
    return lines


def ratio_table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table of ratios new / old, of pairs of neighbouring turns."""
    names = ["step", *PARTS, "loader", "loss part"]
    lines = header([*CASE, *(f"{name}, new/old" for name in (*names, "peak memory", "loss part memory"))])
    for new, old in pairs(rows):
        clock = usual_clock(new)
        ratios = [ratio(new["seconds"].get(part), old["seconds"].get(part), clock) for part in names]
        sizes = []
        for name in ("peak", "loss part"):
            one, other = new["bytes"].get(name), old["bytes"].get(name)
            sizes.append(f"{one / other:.2f}" if one and other else "")
        lines.append(line([*case_cells(new), *ratios, *sizes]))
    return lines


def pairs(rows: list[dict]) -> Iterable[tuple[dict, dict]]:
    """Rows of the same case with the new and with the old code, where both could be measured."""
    old_rows = {json.dumps(row["case"]): row for row in rows if row["version"] == "old" and "error" not in row}
    for row in rows:
        old = old_rows.get(json.dumps(row["case"]))
        if row["version"] == "new" and "error" not in row and old:
            yield row, old


def ratio(new: list | None, old: list | None, clock: str) -> str:
    """ "0.76 (0.69 to 0.79)" of seconds [processor, wall] by round."""
    if not new or not old:
        return ""
    number = CLOCKS.index(clock)
    values = [one[number] / max(other[number], 1e-9) for one, other in zip(new, old, strict=True)]
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


CASE = ("method", "network", "px", "images", "channels", "precision", "compile")


def case_cells(row: dict) -> list[str]:
    built = row["built"]
    network = f"{built['encoder']}, {built['decoder']}"
    channels = f"{built['old_channels']}+{built['channels'] - built['old_channels']}"
    sizes = [str(built["size"]), str(built["images"])]
    return [row["case"]["method"], network, *sizes, channels, built["precision"], built["compile"]]


def on_gpu(row: dict) -> bool:
    return "built" in row and row["built"]["gpu"]


def usual_clock(row: dict) -> str:
    """On a GPU the processor waits, so that the wall clock counts; elsewhere other programs disturb it."""
    return "wall" if on_gpu(row) else "processor"


def seconds(row: dict, part: str, clock: str | None = None) -> float:
    """The median over the rounds; 0 for a part that the case does not have."""
    number = CLOCKS.index(clock or usual_clock(row))
    return median(values[number] for values in row["seconds"].get(part, [[0.0, 0.0]]))


def milliseconds(row: dict, part: str) -> str:
    if part not in row["seconds"]:
        return ""
    value = 1000 * seconds(row, part)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def megabytes(row: dict, name: str) -> str:
    return f"{row['bytes'][name] / MIB:.0f}" if name in row.get("bytes", {}) else ""


def failures(rows: list[dict]) -> list[str]:
    lines = reasons(rows)
    return ["\nNot measured:\n", *lines] if lines else []


def reasons(rows: list[dict]) -> list[str]:
    """Why cases were not measured, a line each."""
    return [f"* {row['case']['method']} ({row['version']}): {row['error']}" for row in rows if "error" in row]


def header(names: list[str]) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def compact(result: dict) -> str:
    """JSON with one line for each short list."""
    rounded = json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 6))
    text = json.dumps(rounded, indent=1)
    # "[\n 0.1,\n 0.2\n]" -> "[0.1, 0.2]"
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: "[" + " ".join(match[0][1:-1].split()) + "]", text) + "\n"
