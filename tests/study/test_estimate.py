"""`ciss plan --estimate`: counts worked out by hand, sums, refusals, and the whole command at the smallest size."""

import json
from dataclasses import replace

import pytest

from ciss import cli, config
from ciss.config import Phase
from ciss.study.estimate import command, counts, measure, tables, worker
from ciss.study.estimate.counts import Images
from ciss.study.slurm import resources
from ciss.study.slurm.resources import Needs
from ciss.training import loop
from ciss.training.usage import Usage

MEASURED = {
    "start": [1.0, 2.0],
    "build": [0.5, 1.0],
    "prepare": {
        "seconds": [2.0, 4.0],
        "judged": [0.1, 0.2],
        "passes": 1.0,
        "passes_before": 0.0,
        "images": 10,
    },
    "updates": [[3.0, 6.0], [1.0, 2.0], [2.0, 4.0]],
    "rows": 4,
    "decode": [0.01, 0.02],
    "epoch": [0.25, 0.5],
    "peak": 1000,
    "cache": 24,
    "holdout": [0.02, 0.04],
    "validation": [0.03, 0.06],
    "write": [0.2, 0.4],
    "checkpoint": 800,
    "row": 40,
    "files": 300,
    "channels": 7,
    "accumulated": 1,
    "drawn": False,
    "device": "a processor, 1 threads",
    "gpu": False,
    "other_cores": 0.0,
    "cores": 2,
    "threads": 1,
}


@pytest.mark.parametrize(
    ("images", "batch", "accumulate", "updates", "batches"),
    [
        (20, 4, 1, 5, 1),
        (23, 4, 1, 5, 1),  # three images are left out
        (24, 4, 3, 2, 3),
        (5, 4, 3, 1, 2),  # fewer than an update: all images, in two batches
        (3, 4, 1, 1, 1),
    ],
)
def test_updates_of_an_epoch(project, images, batch, accumulate, updates, batches):
    train = replace(project.config.benchmarks["tiny"].train, batch=batch, accumulate=accumulate)
    assert counts.updates_of(train, images) == (updates, batches)


@pytest.mark.parametrize(
    ("curve", "every", "epochs", "updates", "points"),
    [
        ((1.0,), 1, 3, 5, 4),  # before, and after each epoch
        ((1.0,), 2, 3, 5, 4),  # curve names the first epoch, curve_every the second, the last is always scored
        ((2.0,), 3, 3, 5, 3),
        ((0.5, 1.0), 1, 2, 4, 4),  # before, after two updates, and twice at the end of an epoch
        ((0.01, 0.02, 1.0), 5, 5, 4, 4),  # both round to the first update; then the epochs 1 and 5
    ],
)
def test_points_of_the_curves(project, curve, every, epochs, updates, points):
    train = replace(project.config.benchmarks["tiny"].train, curve=curve, curve_every=every)
    assert counts.points_of(train, Phase(epochs=epochs, lr=0.1), updates) == points


def test_counts_are_those_of_a_training(project, monkeypatch):
    """The training counts its own updates and scores."""
    updates, points = [], []
    update, score = loop.train_update, loop.score_holdout
    monkeypatch.setattr(loop, "train_update", lambda *values: updates.append(1) or update(*values))
    monkeypatch.setattr(loop, "score_holdout", lambda *values: points.append(1) or score(*values))
    run = project.run()
    work = counts.work_of(run, Images.of_index(run.index()))
    loop.train(run)
    assert (work.all_updates, work.points) == (len(updates), len(points))
    assert work.images == len(run.index().steps[0]) and work.holdout == 4 and work.batch == 4
    assert work.validation == len(run.index().validation[0]) + 2


def test_the_cost_of_a_run():
    work = counts.Work("a-1", "a", "mib", 1, 20, 0, 2, 5, 1, 4, 3, 6, 10)
    cost = tables.cost(work, MEASURED, 800.0)
    # start 1, build 0.5, decode 26 x 0.01, updates 2 x 5 x 2 (the median), epochs 2 x 0.25, hold-out 3 x 6 x 0.02,
    # validation 10 x 0.03, write 0.2, before the step 2 x 20 / 10, judged labels 6 x 0.1
    assert cost.seconds[0] == pytest.approx(1 + 0.5 + 0.26 + 20 + 0.5 + 0.36 + 0.3 + 0.2 + 4 + 0.6)
    assert cost.seconds[1] == pytest.approx(2 * cost.seconds[0])
    assert cost.memory == 1024
    assert cost.disk == 800 + 300 + 10 * 40 / 4


def test_memory_grows_over_many_updates_of_a_processor():
    """Not over few updates (10), and not on a GPU."""
    work = counts.Work("a-1", "a", "mib", 1, 20, 0, 2, 5, 1, 4, 3, 6, 10)
    long = replace(work, updates=50)
    memory = [tables.cost(one, {**MEASURED, "gpu": gpu}, 0.0).memory for gpu in (False, True) for one in (work, long)]
    assert memory == [1024, round(1.1 * 1024), 1024, 1024]


def test_durations_and_devices_are_for_people():
    assert tables.duration_range(18.0, 19.0) == "18 s to 19 s"
    assert tables.duration_range(18.6, 19.0) == "19 s"
    assert tables.device_text("a processor, 1 threads") == "a processor, 1 thread"
    assert tables.device_text("a processor, 11 threads") == "a processor, 11 threads"


def test_totals_are_durations(project, monkeypatch):
    work = counts.Work("base", "tiny", "x", 0, 1, 0, 1, 1, 1, 1, 0, 0, 0)
    found = [tables.Cost(work, (720.0, 12_000.0), (0.0, 0.0), 1, 1.0, 1.0)]
    monkeypatch.setattr(tables, "costs", lambda *_: found)
    lines = tables.totals(project.config, {"base": {**MEASURED, "other_cores": 1.0}})
    assert lines[0] == "training: 12 min of processor time on a processor, 1 thread"
    assert lines[1] == "on the clock: 3 h 20 min on 1 device, 3 h 20 min on 2, 3 h 20 min on 4"
    assert lines[2].endswith("on an idle machine 12 min on 1)")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"start": [1, 2]}}'])
def test_a_damaged_file_of_measurements_is_named(project, capsys, text):
    project.write()
    file = measure.file_of(project.config, "tiny")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    cli.main(["plan", "--cluster"])
    out = capsys.readouterr().out
    assert out.count(f"note: {file} is damaged, so its measurements are not used.") == 1


def test_an_update_of_fewer_batches_takes_less():
    work = counts.Work("a-1", "a", "mib", 1, 5, 0, 1, 1, 2, 12, 0, 0, 0)
    whole = replace(work, batches=3)
    costs = [tables.cost(one, {**MEASURED, "accumulated": 3, "prepare": None}, 0.0).seconds[0] for one in (work, whole)]
    assert costs[1] - costs[0] == pytest.approx(2 / 3)


def test_bytes_of_checkpoints_lie_on_a_line():
    assert tables.checkpoint_bytes(5, {5: 100}) == tables.checkpoint_bytes(9, {5: 100}) == 100
    assert tables.checkpoint_bytes(7, {5: 100, 9: 140}) == 120


def test_checkpoints_are_as_large_as_estimated(project):
    """Those of other steps than the measured one, too."""
    loop.train_all(project.config, ["tune-2"])
    sizes = {
        sum(project.run(name).channel_groups): (project.run(name).folder / "weights.safetensors").stat().st_size
        for name in ("base", "tune-1", "tune-2")
    }
    middle = sorted(sizes)[1]
    ends = {channels: size for channels, size in sizes.items() if channels != middle}
    assert tables.checkpoint_bytes(middle, ends) == pytest.approx(sizes[middle], rel=0.05)


def test_runs_wait_for_what_they_continue(project):
    """base 4 s, then tune-1 2 s and tune-2 2 s in turn, mib-1 3 s, all 5 s."""
    seconds = {"base": 4.0, "tune-1": 2.0, "tune-2": 2.0, "mib-1": 3.0, "all": 5.0}
    costs = [
        tables.Cost(counts.Work(name, "tiny", "x", 0, 1, 0, 1, 1, 1, 1, 0, 0, 0), (0.0, value), (0.0, 0.0), 1, 1.0, 1.0)
        for name, value in seconds.items()
    ]
    assert tables.critical_seconds(project.config, costs, 1) == 16
    # base, tune-1, tune-2 on one; all, mib-1 on the other
    assert tables.critical_seconds(project.config, costs, 2) == 8
    assert tables.critical_seconds(project.config, costs, 9) == 8


def test_data_that_are_not_here(project):
    """The preset's numbers, by classes: 10 x 4/6 and 10 x 2/6."""
    expects = config.Expected(train=12, val=7, classes=6)
    benchmark = replace(project.config.benchmarks["tiny"], holdout=2, expects=expects)
    images = counts.expected_images(benchmark, [4, 2])
    assert images == Images((7, 3), 10, 2, (7, 7), known=False)


def test_kinds_of_runs(project):
    """Of each kind the run with the most classes is measured."""
    assert counts.representatives(project.config) == {
        "base": ["base"],
        "all": ["all"],
        "tune-2": ["tune-1", "tune-2"],
        "mib-1": ["mib-1"],
    }
    assert counts.stage_count(project.config) == {"notebook": 5 + 1 + 2 + 1, "other": 6}


@pytest.fixture
def measured_project(project):
    """Only the base step and one increment."""
    for section in ("joints", "ends"):
        project.document[section] = {}
    project.document["chain"] = {"mib-1": project.document["chain"]["mib-1"]}
    project.document["benchmarks"]["tiny"]["train"]["batch"] = 2
    project.prepare()
    project.write()
    return project


def test_the_command(measured_project, capsys):
    """It measures, keeps what it measured, and compares it with the trainings; then `cluster.yaml` has its numbers."""
    project = measured_project
    cli.main(["plan", "--estimate"])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "params.yaml: 2 kinds of runs; of each, up to five updates are measured now."
    assert [line.split(" in ")[0] for line in lines[1:5]] == [
        "base: measuring, at most 3 min",
        "base: measured",
        "mib-1: measuring, at most 3 min",
        "mib-1: measured",
    ]
    assert [line.split()[0] for line in lines[5:8]] == ["method", "base", "mib"]
    assert "training:" in out and "disk:" in out and " on 1 device, " in out and "warning" not in out
    file = measure.file_of(project.config, "tiny")
    stored = json.loads(file.read_text())
    assert all(values.keys() == MEASURED.keys() == measure.KEYS for values in stored.values())
    assert len(stored) == 2 and all(len(values["updates"]) == 5 for values in stored.values())

    # --- known now: nothing is measured again, unless a parameter changes
    assert set(measure.known(project.config)) == {"base", "mib-1"}
    assert "training:" in "\n".join(command.at_hand(project.config))
    project.set("train.base.epochs", 7)
    assert set(measure.known(project.config)) == {"base", "mib-1"}, "the number of epochs does not matter"
    project.set("train.crop", 48)
    assert measure.known(project.config) == {} and command.at_hand(project.config) == []
    project.set("train.crop", 32)
    project.set("train.base.epochs", 2)

    cli.main(["plan", "--estimate"])
    assert "2 kinds of runs; all were measured before.\nmethod" in capsys.readouterr().out

    # --- reality
    loop.train_all(project.config)
    base, _, both = command.compare(["base", "mib-1"], "params.yaml")
    assert base.startswith("base: ") and "of processor time, estimated" in base and "memory" in base
    assert both.startswith("2 runs: ")
    took = sum((project.run(n).folder / "weights.safetensors").stat().st_size for n in ("base", "mib-1"))
    estimated = sum(one.checkpoint for one in command.costs_at_hand(project.config).values())
    assert estimated == pytest.approx(took, rel=0.05)

    cli.main(["plan", "--cluster"])
    out = capsys.readouterr().out
    assert "cluster.yaml: sections added: tiny." in out
    least = "tiny: hours: 1, the least that is asked for; memory: 4, the least that is asked for. Measured on "
    assert least in out and "asks for gpus: 1, but no GPU was measured" in out
    asked = resources.read(project.folder / "cluster.yaml", project.config, ["tiny"])["tiny"]
    assert asked.hours == 1 and asked.memory == 4

    # --- one kind is missing: what is known of the other is not used
    stored.pop(measure.key(project.run("mib-1")))
    file.write_text(json.dumps(stored))
    needs, missing = command.cluster_needs(project.config)
    assert needs == {} and missing["tiny"].startswith("only 1 of 2 kinds of runs were measured")


def test_a_cluster_file_without_estimate(project, capsys):
    project.write()
    cli.main(["plan", "--cluster", "other.yaml"])
    out = capsys.readouterr().out
    assert "other.yaml: sections added: tiny.\ntiny: not measured, so hours and memory are defaults." in out
    assert resources.read(project.folder / "other.yaml", project.config, ["tiny"])["tiny"].hours == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cluster params.yaml", "params.yaml has parameters, so it cannot have resources for Slurm, too."),
        ("--cluster ./params.yaml", "params.yaml has parameters"),
        ("shapes 4-2 --output new.yaml --cluster new.yaml", "new.yaml has parameters"),
        ("--cluster notes.yaml", "notes.yaml has something other than resources for Slurm, and stays as it is."),
        ("--cluster shapes 4-2", "--cluster takes one FILE.yaml, but found shapes 4-2. Write data set and protocol be"),
        ("--cluster notes.txt", "--cluster takes one FILE.yaml, but found notes.txt."),
        ("--cluster folder.yaml", "--cluster: folder.yaml is a folder. Name a file, for example folder.yaml/new.yaml."),
        ("--cluster notes.yaml/new.yaml", "notes.yaml/new.yaml cannot be written, because"),
        ("shapes 4-2 --output folder.yaml", "--output: folder.yaml is a folder."),
        ("--check --output folder.yaml", "--output: folder.yaml is a folder."),
        ("--estimate --output folder.yaml", "--output: folder.yaml is a folder."),
    ],
)
def test_files_that_cannot_be_written(project, options, message):
    """They stay as they are, and nothing is planned or measured before the message."""
    project.write()
    (project.folder / "folder.yaml").mkdir()
    (project.folder / "notes.yaml").write_text("shopping: [milk]\n")
    before = {file: file.read_text() for file in project.folder.glob("*.yaml") if file.is_file()}
    with pytest.raises(SystemExit, match="^error: ") as caught:
        cli.main(["plan", *options.split()])
    assert message in str(caught.value)
    assert {file: file.read_text() for file in project.folder.glob("*.yaml") if file.is_file()} == before


def test_an_invalid_parameter_file_is_one_message(project):
    project.document["benchmarks"]["tiny"]["train"]["batsh"] = 2
    project.write()
    with pytest.raises(SystemExit, match="^error: params.yaml: line 26: benchmarks.tiny.train.batsh: unknown key"):
        cli.main(["plan", "--cluster", "x.yaml"])
    assert not (project.folder / "x.yaml").exists()


@pytest.mark.parametrize("option", ["--check", "--clean"])
@pytest.mark.parametrize("other", ["--estimate", "--cluster"])
def test_options_that_exclude_each_other(capsys, option, other):
    with pytest.raises(SystemExit):
        cli.main(["plan", option, other])
    assert f"{other}: not allowed with {option}" in capsys.readouterr().err


def test_a_kind_that_takes_too_long_is_ended(project, tmp_path, monkeypatch):
    """The message names the run, the part that it was at, and what to do. Its temporary folder is removed."""
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.setattr(measure.tempfile, "tempdir", str(empty))
    code = "import time; print('updates', flush=True); time.sleep(60)"
    (tmp_path / "slow.py").write_text(code)
    monkeypatch.setattr(measure, "WORKER", [str(tmp_path / "slow.py")])
    with pytest.raises(measure.EstimateError, match="base: its measurement was ended after 4 s, at this part: updates"):
        measure._measure(project.config, "base", 2.0)
    assert list(empty.iterdir()) == []


def test_a_kind_without_enough_memory_is_named(project, tmp_path, monkeypatch):
    (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(measure, "WORKER", [str(tmp_path / "killed.py")])
    text = "base: the system ended its measurement, usually for lack of memory. The run has 4 images of 32 x 32 pixels"
    with pytest.raises(measure.EstimateError, match=text):
        measure._measure(project.config, "base", 2.0)


def test_of_slow_updates_one_is_measured(project, monkeypatch, tmp_path):
    """And few images are scored, and the statistics of the network stay."""
    project.write()
    case = {"config": "params.yaml", "run": "mib-1", "seconds": 90.0, "started": 0.0}
    kinds = {}
    for slow in (1e-9, 1e9):
        monkeypatch.setattr(worker, "SLOW", slow)
        (folder := tmp_path / str(slow)).mkdir()
        kinds[slow] = worker.measure(case, folder)
    assert [len(kinds[slow]["updates"]) for slow in kinds] == [1, 5]
    batch = project.config.benchmarks["tiny"].train.batch
    assert kinds[1e-9]["rows"] == 1 and kinds[1e-9]["prepare"]["images"] <= batch * 3


def test_what_a_node_is_asked_for():
    assert Needs(3.2, 20_000_000_000).resources() == {"hours": 7.0, "memory": 40.0}
    assert Needs(0.01, None).resources() == {"hours": 1.0}
    text = "hours: 7, twice the estimate, rounded up; memory: 4, the least that is asked for. Measured on a card."
    assert Needs(3.2, 1_000_000, "a card", gpu=True).describe(1) == text


def test_data_that_are_missing_are_drawn(measured_project, monkeypatch, capsys, tmp_path):
    project = measured_project
    project.document["benchmarks"]["tiny"] |= {"dataset": "voc", "protocol": "15-5", "holdout": 0}
    project.document["chain"] = {}
    project.write()
    monkeypatch.setenv("CISS_DATA", str(tmp_path))
    cli.main(["plan", "--estimate"])
    assert "The data are not here: updates were measured on drawn images" in capsys.readouterr().out


def test_other_kinds_are_measured_after_one_that_cannot_be(project, monkeypatch, capsys):
    project.write()
    real = measure._measure

    def fails(config, name, seconds):
        if name == "base":
            raise measure.EstimateError("base: no memory")
        return real(config, name, seconds)

    monkeypatch.setattr(measure, "_measure", fails)
    with pytest.raises(SystemExit, match=r"^error: 1 of \d kinds of runs were not measured.*\nbase: no memory$"):
        cli.main(["plan", "--estimate"])
    out = capsys.readouterr().out
    assert "base: not measured" in out and "mib" in out.split("checkpoint\n")[1], "a row for each measured kind"
    assert measure.known(config.load("params.yaml")), "and they are kept"


def test_an_error_is_one_message(project, monkeypatch):
    project.write()

    def fails(*_):
        raise measure.EstimateError("base: no memory")

    monkeypatch.setattr(measure, "_measure", fails)
    with pytest.raises(SystemExit, match=r"^error: (\d) of \1 kinds .* no sums\.\nbase: no memory"):
        cli.main(["plan", "--estimate"])
    with pytest.raises(SystemExit):
        cli.main(["plan"])


def test_usage(monkeypatch):
    """Other programs used 3 of 10 seconds of two cores; this one 4."""
    from ciss.training import usage

    clocks = {"wall": iter([0.0, 10.0]), "own": iter([1.0, 5.0]), "busy": iter([100.0, 107.0])}
    monkeypatch.setattr(usage.time, "perf_counter", lambda: next(clocks["wall"]))
    monkeypatch.setattr(usage, "own_seconds", lambda: next(clocks["own"]))
    monkeypatch.setattr(usage, "busy_seconds", lambda: next(clocks["busy"]))
    monkeypatch.setattr(usage.os, "cpu_count", lambda: 2)
    assert Usage().read() == {
        "wall_seconds": 10.0,
        "processor_seconds": 4.0,
        "other_cores": pytest.approx(0.3),
        "idle_machine": False,
    }
    monkeypatch.setattr(usage, "SYSTEM", usage.Path("/nowhere"))
    monkeypatch.undo()


def test_orders_of_classes_share_measurements(project, monkeypatch, capsys):
    """A plan of six orders is measured as fast as one; what cannot be measured is tried once."""
    tiny = project.document["benchmarks"]["tiny"]
    order = [number for group in project.run("mib-1").classes.groups for number in group]
    project.document["benchmarks"]["turned"] = {**tiny, "order": order[::-1]}
    for name, entry in list(project.document["bases"].items()):
        project.document["bases"][f"turned-{name}"] = {**entry, "benchmark": "turned"}
    project.write()
    tried = []

    def fail(config, name, seconds):
        tried.append(name)
        raise measure.EstimateError(f"{name}: no memory")

    monkeypatch.setattr(measure, "_measure", fail)
    with pytest.raises(SystemExit, match="of .* kinds of runs were not measured"):
        command.main("params.yaml")
    alone = [*tried]
    assert "turned-base" not in alone and "base" in alone

    monkeypatch.setattr(measure, "_measure", lambda config, name, seconds: tried.append(name) or MEASURED)
    tried.clear()
    capsys.readouterr()
    command.main("params.yaml")
    assert tried == alone and measure.known(project.config).keys() >= {"base", "turned-base"}
    assert f"{len(alone)} kinds of runs" in capsys.readouterr().out
    tried.clear()
    command.main("params.yaml")
    assert not tried
