"""Killed trainings end as undisturbed ones, and the campaign that says so can tell when they do not."""

import csv
import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest

from tests.helpers import campaign, trials
from tests.helpers.trials import EPOCHS, PROCESSES, RUNS, Moment, Session, Trial

RUN = "shapes-s0-gsc-1"  # the method with the most to keep: prototypes
LIMITS = {"trainer": 1.0, "papermill": 2.0, "dvc": 3.0}  # seconds from Ctrl-C to the end
KILLS = int(os.environ.get("CISS_KILLS", 3))


def test_what_is_drawn():
    drawn = campaign.draw(100, RUNS, seed=0, again=0.3)
    assert sum(len(trial.moments) for trial in drawn) == 100
    assert [trial.process for trial in drawn[:4]] == [*PROCESSES, PROCESSES[0]]
    assert {(trial.process, trial.run) for trial in drawn[:30]} == {(p, run) for p in PROCESSES for run in RUNS}
    assert Counter(len(trial.moments) for trial in drawn)[2] > 10
    shares = [moment.share for trial in drawn for moment in trial.moments if not moment.text]
    assert 40 < len(shares) < 65 and min(shares) < 0.05 and max(shares) > 1
    assert drawn == campaign.draw(100, RUNS, seed=0, again=0.3) != campaign.draw(100, RUNS, seed=1, again=0.3)
    assert [len(trial.moments) for trial in campaign.draw(5, RUNS, seed=0, again=1)] == [2, 2, 1]


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> list[trials.Project]:
    return trials.prepare(tmp_path_factory.mktemp("campaign"), (RUN,), workers=3)


@pytest.mark.slow
@pytest.mark.timeout(max(1200, 400 * KILLS), func_only=True)  # the projects are no part of it
def test_killed_runs_end_as_undisturbed_ones(projects, tmp_path, capsys):
    """One kill of each kind of process; more with CISS_KILLS=100."""
    command = f"--kills {KILLS} --again 0 --runs {RUN} --workers 2 --out {tmp_path}".split()
    status = campaign.main(command, prepared=projects[:2])
    found = json.loads((tmp_path / "campaign.json").read_text())
    assert status == 0, capsys.readouterr().out
    assert found["kills"] == KILLS and found["identical ends"] == found["trials"] == KILLS
    with open(tmp_path / "campaign.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["process"] for row in rows} == set(PROCESSES[:KILLS])
    assert len(rows) == KILLS and all(row["identical"] == "True" for row in rows)


@pytest.mark.slow
def test_momentum_that_is_not_restored_is_seen(projects, tmp_path):
    project = projects[2]
    expected = {"trainer": project.files(RUN)}
    with open(project.folder / "ciss" / "__init__.py", "a") as code:  # counts for no key: the resumed run goes on
        code.write("\nimport torch\n\ntorch.optim.SGD.load_state_dict = lambda *_: None\n")
    trial = Trial(0, "trainer", RUN, (Moment(text=f"epoch 3/{EPOCHS}", seconds=0.3),))
    (row,) = trials.carry_out(project, trial, {"trainer": 0.0}, expected, threading.Event(), tmp_path)
    assert row["landed"] == "between epochs" and row["resumed"].startswith("continuing after epoch")
    assert not row["identical"]
    assert "weights.safetensors differs" in (tmp_path / "trial-0.txt").read_text()

    # --- what a kill may leave beside whole outputs is seen too
    assert not trials.differences(project, trial, expected), "the undisturbed outputs are back"
    (project.folder / "runs" / "shapes" / f".{RUN}.new").mkdir()
    assert trials.differences(project, trial, expected) == [f"runs/shapes/.{RUN}.new is left"]


@pytest.mark.slow
def test_the_orphan_of_a_killed_pipeline_is_named(projects, tmp_path):
    """It trains on; the same command, then, is refused until it has ended, here by the command given."""
    project = projects[0]
    expected = {"dvc": project.files(RUN)}
    for seconds in (1.5, 1.0, 2.0):  # beside other work the command may not have begun by then, or have ended
        moment = Moment(text="> python -m ciss execute", seconds=seconds)
        trial = Trial(2000, "dvc", RUN, (moment,), patient=False)
        (row,) = trials.carry_out(project, trial, {"dvc": 0.0}, expected, threading.Event(), tmp_path)
        assert row["identical"], row["wrong"]
        if row["orphan"]:
            break
    assert row["orphan"].startswith("ended"), row


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_ctrl_c_stops_and_goes_on(projects, process):
    """As a terminal sends it, to the process group: the kernel, a group of its own, must hear of it too."""
    project = projects[1]
    trial = Trial(1000 + PROCESSES.index(process), process, RUN, ())
    expected = {process: project.files(RUN)}
    session = Session(project, trial, threading.Event())
    project.clear(RUN, process)
    try:
        command, *_ = session.launch(Moment(text=f"epoch 2/{EPOCHS}", seconds=0.1))
        said, before = session.text(), spent(session)
        os.killpg(command.pid, signal.SIGINT)
        started, after = time.monotonic(), before
        while session.living() and time.monotonic() - started < 60:
            after = {**after, **spent(session)}
            time.sleep(0.01)
        seconds = sum(after.values()) - sum(before.values())  # of the processors: other work does not count
        print(f"{process}: {seconds:.2f} s of processor time, {time.monotonic() - started:.2f} s in all")
        assert command.wait(timeout=1) != 0
        assert not session.living(), "the kernel is not left behind"
        said = session.text().removeprefix(said)
        assert "Traceback" not in said and "Stopped. The same command goes on" in said
        assert seconds < LIMITS[process]
        session.launch(None)
        assert "continuing after epoch" in session.text(-1)
        assert not trials.differences(project, trial, expected)
    finally:
        session.end()
        project.restore(RUN)


def spent(session: Session) -> dict[int, float]:
    """Processor seconds of a trial's processes, by id."""
    found = {}
    for process in session.living():
        with suppress(psutil.Error):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found
