"""`ciss bench`: cases, workers, tables, and the parts of `--gpu`."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ciss import cli, paths
from ciss.documents import ConfigError
from ciss.study.bench import command, gpu, repeat, tables
from ciss.study.bench.command import Case, Request

PARTS = {"loader", "step", "whole", "loss part", *tables.PARTS}
BUILT = {
    "device": "a processor",
    "gpu": False,
    "torch": "2",
    "precision": "float32",
    "compile": "off",
    "channels": 151,
    "old_channels": 141,
    "images": 2,
    "size": 256,
    "encoder": "resnet50",
    "decoder": "deeplabv3",
}

EMPTY = {"command": "ciss bench --gpu", "machine": {"device": "a card"}, "parts": []}


def row(method="gsc", version="new", slower=1.0):
    """Two rounds: processor seconds are `slower` and 3 times that, wall seconds half of these."""
    rounds = [[slower, slower / 2], [3 * slower, 1.5 * slower]]
    case = {"method": method, "classes": [141, 10]}
    seconds = {part: rounds for part in PARTS}
    return {"version": version, "case": case, "built": BUILT, "seconds": seconds, "bytes": {"peak": 3 << 20}}


def result(*rows, **code):
    machine = {"device": "a processor", "torch": "2", "python": "3", "variables": {"OMP_NUM_THREADS": "1"}}
    return {"command": "ciss bench", "machine": machine, "code": code, "rounds": 2, "rows": rows}


# --- what is measured


def test_every_combination_of_options(project):
    project.write()
    file = project.folder / "params.yaml"
    request = Request(encoder=["resnet18", "resnet50"], image=[64], classes=["5+2", "16+1+1"], batch=[2])
    found = request.networks(file)
    assert [len(cases) for cases in found] == [2] * 4, "finetune and mib of the chain"
    assert found[1] == [Case(method, "resnet18", None, 64, (16, 1, 1), 2) for method in ("finetune", "mib")]
    order = replace(found[0][0], compile="reduce-overhead").order(file)
    assert order["train"] == {"crop": 64, "batch": 2, "precision": None, "compile": False}
    assert order["mode"] == "reduce-overhead"


@pytest.mark.parametrize("text", ["21", "1+2", "a+2", "5+", "5+0", "-5+2"])
def test_wrong_channels(text):
    with pytest.raises(ConfigError, match="--classes: found '.*Write 141.10"):
        command.channels(text)


def test_without_an_increment_methods_must_be_named(project):
    project.document["chain"], project.document["ends"] = {}, {}
    project.write()
    with pytest.raises(ConfigError, match="Name methods"):
        Request().networks(project.folder / "params.yaml")


# --- measuring


def test_a_table_of_a_tiny_network(project, capsys):
    """Two methods and a wrong one, by the command line."""
    project.write()
    options = "--methods gsc mib-memory wrong --image 32 --batch 2 --classes 4+2+1 --rounds 2 --output speed/cpu"
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *options.split()])
    assert stop.value.code == 1, "a method was not measured"
    document = json.loads((project.folder / "speed" / "cpu.json").read_text())
    text = (project.folder / "speed" / "cpu.md").read_text()
    assert capsys.readouterr().out == f"{text}\n"
    gsc, mib, wrong = document["rows"]
    assert wrong["error"].startswith("ConfigError: there is no method 'wrong'") and wrong["error"] in text
    for entry in (gsc, mib):
        assert set(entry["seconds"]) == PARTS and {len(rounds) for rounds in entry["seconds"].values()} == {2}
        assert all(clock > 0 for rounds in entry["seconds"].values() for times in rounds for clock in times)
        built = entry["built"]
        assert (built["old_channels"], built["channels"], built["size"], built["images"]) == (6, 7, 32, 2)
        steps = zip(*(entry["seconds"][part] for part in ("step", *tables.PARTS)), strict=True)
        assert all(abs(step[0] - sum(part[0] for part in parts)) < 1e-4 for step, *parts in steps)
    assert set(gsc["bytes"]) in ({"peak", "step", "loss part"}, set()), "Linux measures memory"
    assert text.count("| gsc | ciss_tiny, deeplabv3 | 32 | 2 | 6+1 | float32 | off |") == 1
    assert "\nMeasured without stored images (`memory`): mib-memory. " in text
    assert not tables.without_memory([gsc, wrong])


@pytest.mark.slow
def test_two_versions_take_turns(project):
    """The commit is that of the checkout, so that the ratios are near 1."""
    if not (command.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    project.write()
    found = command.run(Request(methods=["bare"], image=[64], batch=[8], rounds=5, versus="HEAD"))
    assert [entry["version"] for entry in found["rows"]] == ["new", "old"] and not tables.failures(found["rows"])
    (_, _, cells), text = tables.ratio_table(found["rows"]), tables.page(found)
    ratio = float(cells.split("|")[8].split()[0])
    assert 0.5 < ratio < 2 and cells in text
    assert not [line for line in command.git("worktree", "list").splitlines() if "ciss-bench-" in line]


def test_an_unknown_revision(project, capsys):
    project.write()
    with pytest.raises(SystemExit, match="^error: --vs no-such-revision: .* has no such commit"):
        command.main(Request(versus="no-such-revision"))


def test_if_no_case_can_be_measured_the_reason_is_the_message(monkeypatch, project):
    project.write()
    broken = {"version": "new", "case": {"method": "wrong"}, "error": "ConfigError: there is no method 'wrong'"}
    monkeypatch.setattr(command, "measure", lambda *_: [broken])
    with pytest.raises(SystemExit) as stop:
        command.main(Request(methods=["wrong"], output="speed/cpu"))
    assert stop.value.code.endswith("\n* wrong (new): ConfigError: there is no method 'wrong'")


def test_output_is_checked_before_measuring(monkeypatch, project):
    project.write()
    (project.folder / "file").touch()
    monkeypatch.setattr(command, "run", lambda request: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="^error: --output file/cpu: cannot make its folder"):
        command.main(Request(output="file/cpu"))


def test_names_of_the_output(tmp_path):
    """The part of a name behind a point stays, unless it is .md or .json."""
    for name in ("v1.2", "cpu.json", "gpu.md", "plain"):
        command.save(tmp_path / name, {}, "")
    stems = ("v1.2", "cpu", "gpu", "plain")
    assert {file.name for file in tmp_path.iterdir()} == {f"{s}.{kind}" for s in stems for kind in ("md", "json")}


def test_without_git_no_code_is_named():
    assert "code" not in tables.page(result(row(), new="")).partition("\n")[0]


# --- tables


def test_medians_and_shares():
    entry = row()
    entry["seconds"]["loss part"] = [[0.5, 0.1], [0.5, 0.2], [9.0, 0.1]]
    *_, line = tables.time_table([entry])
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:7] == ["gsc", "resnet50, deeplabv3", "256", "2", "141+10", "float32", "off"]
    assert cells[7] == "2", "2 images in a median wall time of 1 s"
    assert cells[8] == "2000" and cells[15:18] == ["500", "25.0%", "3"]


def test_on_a_gpu_the_wall_clock_counts():
    entry = row()
    entry["built"] = {**BUILT, "gpu": True}
    assert tables.seconds(entry, "step") == 1.0 and tables.seconds(row(), "step") == 2.0


def test_ratios_are_of_rounds():
    slow = row(version="old", slower=2.0)
    slow["seconds"]["step"] = [[2.0, 1.0], [4.0, 2.0]]
    *_, line = tables.ratio_table([row(), slow, row("mib"), {"version": "old", "case": {}, "error": "broken"}])
    assert "| 0.62 (0.50 to 0.75) | 0.50 (0.50 to 0.50) |" in line and line.startswith("| gsc |")
    page = tables.page(result(row(), slow, new="new1", old="old1"))
    assert (
        "new1 (new) / old1 (old): median" in page
        and "| step, new/old |" in page
        and "| gsc (new1) |" in page
        and "| gsc (old1) |" in page
    )
    assert "OMP_NUM_THREADS=1." in page and "\n    ciss bench\n" in page
    noise = "One round is noise"
    assert noise not in page
    assert noise in tables.page({**result(row(), slow, new="new1", old="old1"), "rounds": 1})


def test_compact_json_is_the_same_document():
    document = result(row(), new="a")
    text = tables.compact(document)
    assert json.loads(text) == json.loads(json.dumps(document)) and "[1.0, 0.5]" in text


# --- a GPU


def script(name: str, code: str, limit: float = 30.0) -> gpu.Part:
    return gpu.Part(name, (sys.executable, "-c", code, gpu.OUTPUT), limit)


def test_a_part_that_fails_loses_only_itself(tmp_path):
    write = "import sys; open(sys.argv[1], 'w').write('{\"largest\": 0.25}')"
    sleep = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    chosen = [
        script("first", write),
        script("second", f"{write}; raise SystemExit('broken')"),
        script("third", sleep, 0.5),
        script("fourth", write),
    ]
    started = time.monotonic()
    found = gpu.run_all(chosen, 60, tmp_path / "gpu", {"device": "a card"})
    assert time.monotonic() - started < 30
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == found.keys()
    assert [part["status"] for part in found["parts"]] == ["ok", "failed", "stopped after 0 s", "ok"]
    assert [part.get("result") for part in found["parts"]] == [{"largest": 0.25}] * 2 + [None, {"largest": 0.25}]
    assert found["parts"][1]["output"] == ["broken"]
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# a card") and "largest: 0.25" in page and "    broken" in page


def test_results_are_saved_after_each_part(tmp_path):
    look = f"import json, sys; sys.exit(len(json.load(open({str(tmp_path / 'gpu.json')!r}))['parts']) != 1)"
    found = gpu.run_all([script("first", "pass"), script("second", look)], 60, tmp_path / "gpu", {"device": "a card"})
    assert [part["status"] for part in found["parts"]] == ["ok", "ok"]


def test_parts_without_time_are_listed(tmp_path):
    found = gpu.run_all([script("first", "pass")], 1.0, tmp_path / "gpu", {"device": "a card"})
    assert found["parts"] == [{"name": "first", "status": "no time left", "seconds": 0.0}]


def test_without_a_gpu_there_is_a_message(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^error: torch sees no GPU"):
        cli.main(["bench", "--gpu"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--gpu", "--batch", "2"])
    assert stop.value.code == 2 and "--gpu: not allowed with other options" in capsys.readouterr().err


def test_a_card_is_described(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA T4 (x)", major=7, minor=5, total_memory=16 * 10**9)
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_properties": properties,
        "get_device_capability": (7, 5),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    card = gpu.describe_card()
    assert (card["cards"], card["capability"], card["memory"]) == (2, "7.5", "16 GB")
    assert card["automatic precision"] == "float32"
    files = []
    monkeypatch.setattr(gpu, "run_all", lambda parts, seconds, file, card: files.append((file, seconds)) or EMPTY)
    assert gpu.main(2, None) == 0
    assert files == [(paths.project() / "reports/speed/gpu-nvidia-t4-x", 120)]


@pytest.mark.parametrize("cards", [1, 2])
def test_commands_of_the_parts_exist(cards, monkeypatch):
    requests = []
    monkeypatch.setattr(command, "main", lambda request: requests.append(request) or 0)
    chosen = gpu.parts(cards)
    for part in chosen:
        _, _, module, *options = part.command
        if module == "ciss":
            with pytest.raises(SystemExit) as stop:
                cli.main(options)
            assert stop.value.code == 0
    assert {request.precision[0] for request in requests} == {"bfloat16", "float16", "float32"}
    assert {request.compile and request.compile[0] for request in requests} == {None, "on", "reduce-overhead"}
    assert all(len(request.networks(paths.project() / "params.yaml")) == 1 for request in requests)
    assert ("NCCL" in {part.name for part in chosen}) == (cards > 1)
    assert sum(part.name == "tests" for part in chosen) == 1 and len({part.name for part in chosen}) == len(chosen)


@pytest.mark.slow
def test_the_tests_of_a_gpu(tmp_path):
    """Here they are skipped, or pass."""
    part = gpu.tests(300)
    assert any(file.endswith("test_gpu.py") for file in part.command)
    few = [word for word in part.command if not word.endswith(".py") or word.endswith("test_inference.py")]
    found = gpu.run_part(replace(part, command=tuple(few)), 300)
    assert found["status"] == "ok" and found["result"]["tests"] > 1 and found["result"]["failed"] == []
    if not torch.cuda.is_available():
        assert found["result"]["skipped"] == found["result"]["tests"]


def test_failed_tests_are_named(tmp_path):
    file = tmp_path / "result.json"
    suite = '<testsuite tests="2" skipped="1"><testcase classname="a" name="b"><failure/></testcase></testsuite>'
    file.write_text(f"<testsuites>{suite}</testsuites>")
    assert gpu.read(file) == {"tests": 2, "skipped": 1, "failed": ["a.b"]}


@pytest.mark.slow
def test_repeated_trainings(tmp_path, monkeypatch):
    """On the CPU one seed gives one result, also after a kill. The tables show it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parts = [
        gpu.module("repeated", "ciss.study.bench.repeat", gpu.OUTPUT, limit=600),
        gpu.module("two processes", "ciss.study.bench.repeat", gpu.OUTPUT, "--processes", "2", limit=600),
    ]
    found = gpu.run_all(parts, 1200, tmp_path / "gpu", {"device": "none"})
    assert [part["status"] for part in found["parts"]] == ["ok", "ok"], found["parts"]
    once, several = (part["result"] for part in found["parts"])
    assert once["second run of the seed"] == {"same_bytes": True, "largest_difference": 0}
    assert once["killed and continued"] == {"killed": True, "same_bytes": True, "largest_difference": 0}
    (comparison,) = several.values()
    assert comparison["largest_difference"] < 1e-4


def test_weights_that_differ_are_measured(tmp_path):
    from safetensors.torch import save_file

    for name, value in (("one", 1.0), ("other", 1.5)):
        save_file({"weight": torch.tensor([0.0, value]), "running_mean": torch.tensor([9 * value])}, tmp_path / name)
    found = repeat.compare(tmp_path / "one", tmp_path / "other")
    assert found == {"same_bytes": False, "largest_difference": 0.5}
    assert repeat.compare(tmp_path / "one", Path(tmp_path / "one"))["same_bytes"]
