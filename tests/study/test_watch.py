"""`ciss watch` and the line on the terminal: states of runs, time left, the page and its server."""

import http.client
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from ciss.config import ConfigError
from ciss.methods import Finetune
from ciss.runs import charts, live
from ciss.runs.live import AGREEMENT, HOLDOUT, Curve
from ciss.runs.run import resolve
from ciss.study.slurm import status
from ciss.study.slurm.queue import Job
from ciss.study.watch import overview, page, terminal
from ciss.study.watch.overview import DONE, FAILED, QUEUED, RUNNING, STOPPED, TO_COME, Overview, Row
from ciss.study.watch.server import SIGNALS, Watcher, end
from ciss.training import loop
from tests.helpers.training import stopped

ABOUT = {
    "last_step": 2,
    "epochs": 4,
    "updates": 5,
    "images": 20,
    "score": HOLDOUT,
    "scored_images": 4,
    "started": 100.0,
}


def states(project) -> dict[str, str]:
    return {row.name: row.state for row in Overview(project.config).rows()}


def row_of(project, name: str) -> Row:
    (row,) = [row for row in Overview(project.config).rows() if row.name == name]
    return row


def write(project, name: str, rows: list[dict], **about) -> None:
    """The curve of a training that never was. `rows`: its epochs, by `epoch`."""
    run = project.run(name)
    live.begin(live.folder(project.folder, run.benchmark, name), {"run": name, **ABOUT, **about}, rows)


def epoch(number: int, wall: float = 2.0, **values) -> dict:
    row = {"epoch": number, "lr": 0.1, "loss": 1.0, "loss/a": 1.0, "seconds": wall, "wall_seconds": wall, "time": 100.0}
    return {**row, "score": {"all": 0.5, "old": 0.25, "new": None}, "score_every": 1, **values}


# --- states


def test_states_of_runs(project, monkeypatch):
    assert set(states(project).values()) == {TO_COME}
    loop.train(project.run())
    with stopped(Finetune, call=2, error=OSError("no space left")):
        loop.train(project.run("tune-1"))
    assert states(project) == {"base": DONE, "all": TO_COME, "tune-1": FAILED, "tune-2": TO_COME, "mib-1": TO_COME}
    assert row_of(project, "tune-1").details == "after epoch 1 of 2: no space left"
    rows = Overview(project.config).rows()
    assert overview.counts(rows) == "1 of 5 runs done, 1 failed, 3 to come"
    assert overview.last_message(rows) == "tune-1: after epoch 1 of 2: no space left"
    with stopped(Finetune, call=1, error=KeyboardInterrupt):
        loop.train(project.run("tune-1"))
    assert row_of(project, "tune-1").state == STOPPED
    project.set("train.base.lr", 0.5)
    row = row_of(project, "base")
    assert (row.state, row.details) == (TO_COME, "trained before with other values")
    assert row.curve is None and row.left > 0, "it will take as long as before"
    assert "to come, trained before with other values" in page.content(Overview(project.config).rows())


def test_a_killed_process_is_no_running_one(project):
    write(project, "base", [epoch(1)])
    file = project.run().resume / "lock.pid"
    file.parent.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process, state in ((os.getpid(), RUNNING), (dead.pid, STOPPED)):
        file.write_text(f"{process} {os.uname().nodename}")
        assert row_of(project, "base").state == state
    details = "after epoch 1 of 4: its process ended without a message; it may have been killed"
    assert row_of(project, "base").details == details
    listed = status.describe(project.config, "base", None)
    assert (listed.state, listed.details) == ("stopped", details), "ciss train --status"
    assert status.describe(project.config, "all", None).state == "missing"
    live.add(live.folder(project.folder, "tiny", "base"), {"message": "no space left"})
    listed = status.describe(project.config, "base", None)
    assert (listed.state, listed.details) == ("failed", "after epoch 1 of 4: no space left")


def test_jobs_of_slurm(project, monkeypatch):
    folder = {name: str(project.run(name).folder) for name in ("base", "tune-1")}
    jobs = {
        folder["base"]: Job("7", "RUNNING", "None", "n1", folder["base"]),
        folder["tune-1"]: Job("8", "PENDING", "Dependency", "", folder["tune-1"]),
    }
    monkeypatch.setattr(overview.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(overview.queue, "jobs", lambda: jobs)
    write(project, "base", [epoch(1)], host="n1")
    rows = {row.name: row for row in Overview(project.config).rows()}
    assert (rows["base"].state, rows["base"].details) == (RUNNING, "job 7, on n1") and rows["base"].epoch == 1
    assert (rows["tune-1"].state, rows["tune-1"].details) == (QUEUED, "job 8")


def test_results_are_read_again_only_if_they_change(project, monkeypatch):
    loop.train(project.run())
    read, original = [], overview.runs_results.finished
    monkeypatch.setattr(overview.runs_results, "finished", lambda *parts: read.append(1) or original(*parts))
    seen = Overview(project.config)
    assert [seen.rows()[0].state for _ in range(3)] == [DONE] * 3 and len(read) == 1
    os.utime(project.run().results / "result.json")
    assert seen.rows()[0].state == DONE and len(read) == 2


# --- time left


def estimates(project, counts: dict[str, int]) -> dict[str, float | None]:
    seen = Overview(project.config)
    seen._images = counts
    return {row.name: row.left for row in seen.rows()}


def test_the_time_of_a_run_is_that_of_its_like(project):
    """Seconds for an image and epoch: of its own, its method's, its phase's or its benchmark's trainings."""
    counts = {"base": 20, "all": 40, "tune-1": 10, "tune-2": 5, "mib-1": 10}
    assert set(estimates(project, counts).values()) == {None}
    write(project, "base", [epoch(1, wall=4.0)])  # 0.2 s an image
    assert estimates(project, counts) == pytest.approx(
        {"base": 0.2 * 20 * 1, "all": 0.2 * 40 * 2, "tune-1": 0.2 * 10 * 2, "tune-2": 0.2 * 5 * 2, "mib-1": 4.0}
    )
    write(project, "tune-1", [epoch(1, wall=1.0)], images=10)  # 0.1 s an image
    assert estimates(project, counts) == pytest.approx(
        {"base": 4.0, "all": 16.0, "tune-1": 0.1 * 10 * 1, "tune-2": 0.1 * 5 * 2, "mib-1": 0.1 * 10 * 2}
    )
    write(project, "mib-1", [epoch(1, wall=3.0), epoch(2, wall=5.0)], images=10)
    assert estimates(project, counts)["mib-1"] == 0.0


def plan(project, *parts: tuple[str, str, float | None]) -> list[Row]:
    rows = []
    for number, (name, state, left) in enumerate(parts, start=1):
        rows.append(Row(resolve(project.config, name), number, state, None, {}, left=left))
    return rows


def test_the_time_left_of_all(project):
    assert overview.time_left(plan(project, ("base", DONE, 0.0))) == "all runs are done"
    unknown = plan(project, ("base", RUNNING, None), ("tune-1", TO_COME, None))
    assert overview.time_left(unknown) == "time left: known after the first epoch"
    one = plan(project, ("base", RUNNING, 20.0), ("tune-1", TO_COME, 10.0), ("mib-1", TO_COME, 10.0))
    assert overview.time_left(one) == "40 s left of all"
    two = plan(project, ("tune-1", RUNNING, 20.0), ("mib-1", RUNNING, 20.0), ("all", TO_COME, 20.0))
    assert overview.time_left(two) == "30 s left of all"
    chain = plan(project, ("tune-1", RUNNING, 30.0), ("mib-1", RUNNING, 10.0), ("tune-2", TO_COME, 30.0))
    assert overview.time_left(chain) == "60 s left of all", "one waits for the other"
    part = plan(project, ("base", RUNNING, 20.0), ("all", TO_COME, None))
    assert overview.time_left(part) == "20 s left of all, without 1 run not measured yet"


# --- the line on the terminal


def test_the_line_fits(project):
    rows = plan(project, ("base", DONE, 0.0), ("tune-1", RUNNING, 70.0), ("tune-2", TO_COME, 10.0))
    write(project, "tune-1", [epoch(1)])
    rows[1].curve = live.read(live.folder(project.folder, "tiny", "tune-1"))
    rows[1].scores = {"all": 0.512, "old": 0.5, "new": 0.6}
    assert terminal.status_line(rows, 200) == (
        "run 2 of 3: tune-1, step 1 of 2, epoch 1/2, mIoU 51.2; 80 s left of all"
    )
    assert terminal.status_line(rows, 60) == "run 2 of 3: tune-1, epoch 1/2, mIoU 51.2; 80 s left of all"
    assert terminal.status_line(rows, 52) == "1 of 3 runs done; tune-1 1/2; 80 s left of all"
    assert all(len(terminal.status_line(rows, width)) <= width for width in range(3, 80))


def on_a_terminal(project, *arguments: str, seconds: float = 120) -> str:
    """What a command writes to a terminal."""
    project.write()
    process, handle = pty.fork()
    if not process:
        os.environ["TERM"] = "xterm"
        os.chdir(project.folder)
        os.execv(sys.executable, [sys.executable, *arguments])
    output, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and select.select([handle], [], [], seconds)[0]:
        try:
            data = os.read(handle, 65536)
        except OSError:  # its end, on Linux
            break
        output += data
    _, status = os.waitpid(process, 0)
    assert status == 0, output.decode()
    return output.decode()


@pytest.mark.slow
def test_lines_of_several_runs_do_not_mix(project, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # as in many containers; `print` then writes a line in two parts
    output = on_a_terminal(project, "-m", "ciss", "train", "--jobs", "3")
    lines = [line.rpartition("\x1b[K")[2] for line in output.replace("\r\n", "\n").splitlines()]
    finished = [line for line in lines if re.fullmatch(r"\S+  mIoU \d+\.\d( \(old \d+\.\d, new \d+\.\d\))?", line)]
    assert sorted(line.split()[0] for line in finished) == ["all", "base", "mib-1", "tune-1", "tune-2"]
    assert lines[-1] == "5 of 5 runs trained, 0 were trained before. Next: dvc repro"
    assert "of 5" in output and "left of all" in output and ": epoch 1/2:" not in output


# --- the page


def test_the_page_shows_what_is_planned(project):
    loop.train(project.run())
    write(project, "tune-1", [epoch(1)])
    rows = Overview(project.config).rows()
    text = page.content(rows)
    for name in project.config.runs():
        assert f">{name}<" in text
    assert text.count("<svg") == 2 and "1 of 5 runs done" in text and "Last message: " in text
    assert [row.name for row in page.shown(rows, "base")] == ["base"]
    assert [row.name for row in page.shown(rows, "../../etc/passwd")] == ["base"], "the last one"


def test_running_runs_are_shown_first(project):
    rows = plan(project, ("base", DONE, 0.0), ("tune-1", RUNNING, 1.0), ("mib-1", RUNNING, 1.0))
    for row in rows:
        row.curve = Curve({**ABOUT, "run": row.name})
    assert [row.name for row in page.shown(rows, "")] == ["tune-1", "mib-1"]


def test_texts_are_escaped(project):
    write(project, "tune-1", [epoch(1, **{"loss/<b>": 2.0}), {"message": "<script>alert(1)</script>", "time": 1.0}])
    text = page.content(Overview(project.config).rows())
    assert "<script>" not in text and "&lt;script&gt;alert(1)" in text and "<b>" not in text and "&lt;b&gt;" in text


def test_memory_of_a_gpu(project):
    rows = plan(project, ("base", RUNNING, 1.0))
    rows[0].curve = Curve(ABOUT, [epoch(1, gpu_used_bytes=2**31, gpu_bytes=2**36, peak_memory_bytes=2**30)])
    assert page.gpu_memory(rows) == "2.0 GB of 64.0 GB in use" and ("peak memory", "1.0 GB") in page.facts(rows[0])
    assert "GPU memory: 2.0 GB of 64.0 GB in use" in page.content(rows)
    rows[0].state = DONE
    assert page.gpu_memory(rows) == ""


def test_the_agreement_is_named(project):
    about = {**ABOUT, "score": AGREEMENT, "scored_images": 16}
    rows = plan(project, ("base", RUNNING, 1.0))
    rows[0].curve = Curve(about, [epoch(3, score={"agreement": 0.5}, score_every=3)])
    text = page.content(rows)
    assert ">agreement with the given labels, in %<" in text and ">on 16 fixed training images<" in text
    assert "16 fixed training images, on the labels they are given, every 3 epochs" in text


# --- charts


def numbers(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_chart_has_points_where_they_belong():
    svg = charts.chart("title", {"a": [(0, 0.0), (10, 10.0)]}, 10)
    left, right, bottom = charts.LEFT, charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM
    top = bottom - (bottom - charts.TOP) * 10 / 10.5
    assert f'd="M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}"' in svg
    assert numbers(svg) == ["title", "0", "5", "10", "0", "2", "4", "6", "8", "10", "epoch", "a"]


def test_titles_are_not_cut_off():
    """In a wide font, and all kinds of scores and losses."""
    rows = [{**epoch(1), "loss/a": 1.0, "loss/b": 0.01, "score": {"all": 0.5, "agreement": 0.5}}]
    bold = FontProperties(family="DejaVu Sans", weight="bold", size=14)
    for score in (HOLDOUT, AGREEMENT):
        curve = Curve({**ABOUT, "score": score, "scored_images": 16}, rows)
        for svg in (charts.losses(curve), charts.scores(curve)):
            title, legend = numbers(svg)[0], numbers(svg)[-1]
            assert charts.LEFT + TextPath((0, 0), title, prop=bold).get_extents().width <= charts.WIDTH
            assert charts.LEFT + 42 + TextPath((0, 0), legend, prop=bold).get_extents().width <= charts.WIDTH


def test_lines_differ_without_colours():
    svg = charts.chart("title", {name: [(0, 1.0), (1, 2.0)] for name in "abcdefg"}, 1)
    dashes = re.findall(r'stroke="(#\w+)" stroke-width="2.2"(?: stroke-dasharray="([^"]+)")?', svg)
    assert len({pattern for _, pattern in dashes}) == 7 and len({colour for colour, _ in dashes}) == 7
    assert len(set(charts.MARKS)) == 7


@pytest.mark.parametrize(("values", "logarithmic"), [((1.0, 29.0), False), ((0.01, 1.0), True), ((0.0, 1.0), False)])
def test_losses_of_different_sizes(values, logarithmic):
    rows = [{"epoch": 1, "loss/a": values[0], "loss/b": values[1], "loss/c": None}]
    svg = charts.losses(Curve(ABOUT, rows))
    assert ("logarithmic axis" in svg) == logarithmic
    assert {"a", "b", "c"} <= set(numbers(svg))


def test_a_chart_without_points():
    assert "no points yet" in charts.losses(Curve(ABOUT)) and "no points yet" in charts.scores(Curve(ABOUT))


def test_ticks_of_a_logarithmic_axis():
    axis = charts.Axis(0.008, 1.2, 0, 100, logarithmic=True)
    assert axis.ticks() == pytest.approx([0.01, 0.03, 0.1, 0.3, 1.0])
    assert axis(0.008) == 0 and axis(1.2) == pytest.approx(100)


# --- the server


@pytest.fixture
def server(project):
    project.write()
    watcher = Watcher("params.yaml", 0)
    thread = threading.Thread(target=watcher.serve_forever, daemon=True)
    thread.start()
    yield watcher
    watcher.shutdown()
    watcher.server_close()
    thread.join()


def ask(server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_the_page_needs_nothing_from_elsewhere(server, project):
    status, text, headers = ask(server, "/")
    assert status == 200 and not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//|url\(|@import", text)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'nonce-")
    assert headers["Content-Security-Policy"].split("'nonce-")[1].split("'")[0] in text
    status, text, _ = ask(server, "/content?run=base")
    assert status == 200 and "0 of 5 runs done" in text and "://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_only_two_addresses_are_answered(server):
    paths = [
        "/params.yaml",
        "/../params.yaml",
        "//etc/passwd",
        "/content/../../dvc.yaml",
        "/%2e%2e/params.yaml",
        "/live",
    ]
    assert [ask(server, path)[0] for path in paths] == [404] * len(paths)
    assert ask(server, "/content?run=../../etc/passwd")[0] == 200
    assert ask(server, "/", method="POST")[0] == 501


def test_only_the_loopback_address_is_served(server):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/content", host="evil.example:80")[0] == 403
    assert ask(server, "/content", host="evil.example")[0] == 403
    assert ask(server, "/content", host=f"localhost:{server.server_port}")[0] == 200


def test_a_changed_plan_is_read_again(server, project, monkeypatch):
    monkeypatch.setattr("ciss.study.watch.server.FRESH_SECONDS", 0.0)
    del project.document["chain"]["mib-1"]
    project.write()
    os.utime(project.folder / "params.yaml", (1, 1))
    assert "0 of 4 runs done" in ask(server, "/content")[1]
    (project.folder / "params.yaml").write_text("bases: [")
    assert "params.yaml: " in ask(server, "/content")[1] and ask(server, "/content")[0] == 200


def test_a_second_signal_does_not_disturb_the_end():
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with pytest.raises(KeyboardInterrupt):
            end()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_a_folder_is_no_parameter_file(project):
    (project.folder / "docs").mkdir()
    with pytest.raises(ConfigError, match=r"^docs: a folder. Name a parameter file: --config params.yaml$"):
        Watcher("docs", 0)


def test_ctrl_c_ends_the_command(project):
    with project.command("-u", "-m", "ciss", "watch") as process:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", line)[1])
        assert ask(SimpleNamespace(server_port=port), "/content")[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\nEnded. Trainings go on.\n", "")


def test_a_port_in_use_is_named(server, project):
    process = project.command("-m", "ciss", "watch", "--port", str(server.server_port))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        err == f"error: port {server.server_port} of 127.0.0.1: Address already in use. Choose another one: --port N\n"
    )


def test_the_switch_of_the_command(monkeypatch):
    from ciss import arguments

    monkeypatch.delenv("CISS_TENSORBOARD", raising=False)
    arguments.switch_tensorboard(False)
    assert "CISS_TENSORBOARD" not in os.environ
    arguments.switch_tensorboard(True)
    assert os.environ["CISS_TENSORBOARD"] == "1"


def test_rows_as_json_are_lines(tmp_path):
    live.begin(tmp_path, {"run": "a"}, [])
    live.add(tmp_path, {"epoch": 1, "text": "two\nlines"})
    assert [json.loads(line) for line in (tmp_path / live.CURVE).read_text().splitlines()][1]["text"] == "two\nlines"
