"""The plan: what it writes is right, what people wrote survives, and nothing is written when it cannot be."""

import copy
from dataclasses import field
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ciss import config, paths
from ciss.config import ConfigError
from ciss.data.stored import BREAKS_PROTOCOL
from ciss.methods import METHODS, Method
from ciss.methods.base import coefficients
from ciss.runs import check as runs_check
from ciss.runs.run import resolve
from ciss.study import plan, presets


def test_the_committed_file_is_the_default_plan(planned):
    assert planned("shapes", "4-2") == (
        "methods: finetune, mib, plop, gsc, mbs and joint training. Name others with --methods and --no-joint.\n"
        "params.yaml: shapes; 12 runs. Next: dvc repro\n"
    )
    committed = YAML(typ="safe", pure=True).load(paths.project() / "params.yaml")
    assert planned.document == committed
    first = planned.text
    planned("shapes")
    assert planned.text == first, "the preset's protocol is the default one"
    planned("shapes", "4-2", "--fresh")
    assert planned.text == first


@pytest.mark.parametrize(
    ("arguments", "name", "steps"),
    [
        (["shapes", "4-2"], "shapes", 3),
        (["shapes", "7-1", "--setting", "disjoint"], "shapes-7-1-disjoint", 2),
        (["voc", "15-1"], "voc", 6),
        (["voc", "19-1"], "voc-19-1", 2),
        (["voc", "10-5", "--name", "mine", "--setting", "sequential"], "mine", 3),
        (["camvid", "joint"], "camvid-joint", 1),
        (["voc8", "15-1", "--preset", "voc", "--set", "dataset=voc"], "voc8-15-1", 6),
    ],
)
def test_what_is_written_is_right(planned, arguments, name, steps):
    planned(*arguments)
    settings = planned.config
    assert list(settings.benchmarks) == [name]
    assert list(settings.bases) == [f"{name}-s0"] and list(settings.joints) == [f"{name}-s0-joint"]
    assert list(settings.ends) == [f"{name}-s0-{method}" for method in (*plan.USUAL, "joint")]
    for end in settings.ends:
        path = settings.path(end)
        assert len(path) == (1 if end.endswith("-joint") else steps)
        assert [resolve(settings, run).step for run in path] == list(range(len(path)))
    assert len(settings.chain) == (steps - 1) * len(plan.USUAL)
    first = planned.text
    planned(*arguments)
    assert planned.text == first


def test_the_base_step_alone_is_compared(planned):
    planned("shapes", "--methods", "--no-joint")
    assert planned.config.path("shapes-s0") == ["shapes-s0"], "an end that the analyses read"


def test_seeds_methods_and_no_joint(planned):
    planned("shapes", "--seeds", "3", "1", "--methods", "mib", "--no-joint")
    settings = planned.config
    assert list(settings.ends) == ["shapes-s3-mib", "shapes-s1-mib"]
    assert [settings.runs()[name].seed for name in settings.path("shapes-s1-mib")] == [1, 1, 1]
    assert not settings.joints and set(settings.methods) == {"mib", "finetune"}, "the base step is fine-tuning"
    planned("shapes", "--methods")
    assert list(planned.config.ends) == ["shapes-s0-joint"] and not planned.config.chain


def test_orders(planned):
    planned("shapes", "--orders", "3", "--methods", "mib")
    settings = planned.config
    assert list(settings.benchmarks) == ["shapes", "shapes-order1", "shapes-order2"]
    assert settings.benchmarks["shapes"].order is None
    # The same for everybody, for ever.
    assert settings.benchmarks["shapes-order1"].order == (8, 3, 2, 7, 1, 5, 4, 6)
    assert sorted(settings.benchmarks["shapes-order2"].order) == list(range(1, 9))
    assert "order: [8, 3, 2, 7, 1, 5, 4, 6] # raw class ids" in planned.text
    assert len(settings.chain) == 3 * 2 and "shapes-order2-s0-mib" in settings.ends
    runs_check.check(settings)
    given = ["8", "7", "6", "5", "4", "3", "2", "1"]
    planned("shapes", "--order", *given)
    assert planned.config.benchmarks["shapes"].order == (8, 7, 6, 5, 4, 3, 2, 1)
    planned("shapes", "--seeds", "1")
    assert planned.config.benchmarks["shapes"].order == (8, 7, 6, 5, 4, 3, 2, 1), "as much your own as the numbers"


def test_set_takes_yaml_and_nested_keys(planned):
    changes = "train.batch=8 train.base.lr=1e-3 train.curve=[0.5,1] train.flip=false model.weights=null"
    changes += " evaluation.size=crop limit=60 holdout=6"
    planned("shapes", "--orders", "2", "--set", *changes.split())
    for benchmark in planned.config.benchmarks.values():
        train = benchmark.train
        assert (train.batch, train.base.lr, train.curve, train.flip) == (8, 1e-3, (0.5, 1.0), False)
        assert (benchmark.model.weights, benchmark.evaluation.size, benchmark.limit) == (None, "crop", 60)
    assert "&" not in planned.text, "two benchmarks share no value"
    said = planned("shapes", "--set", "train.base.lr=0.5", "train.curve=[1]")
    assert planned.config.benchmarks["shapes"].limit == 60, "yours until --fresh"
    kept = "evaluation.size 'crop', preset 'full'; holdout 6, preset 120; limit 60, not in the preset; train.batch 8"
    assert f"benchmarks.shapes stays as the file has it: {kept}, preset 16; train.flip False, preset True. Take" in said
    planned("shapes", "--fresh")
    assert planned.config.benchmarks["shapes"].limit == 0


def test_comments_and_numbers_survive(planned):
    planned("shapes")
    planned.edit("distillation: 10.0", "distillation: 7.5")
    whole = "{distillation: 7.5, alpha: 1.0, divisor: valid, initialisation: balanced}"
    planned.edit(whole, "{distillation: 7.5} # as in the thesis")
    planned.edit("lr: 0.1,", "lr: 0.3,")
    planned.edit("    evaluation: {size: full, batch: 60, samples: 6}", "    evaluation:\n      batch: 7 # small")
    planned.edit("# what the runs share", "# Our study.\n# what the runs share")
    planned.edit("  shapes-s0-mib-1:", "  # the old way\n  shapes-s0-mib-1:")
    chain = "shapes-s0-mib-2: {after: shapes-s0-mib-1, method: mib, code: mib, step: 2, benchmark: shapes, seed: 0}"
    planned.edit(chain, f"{chain} # looked at twice")
    mine = planned.text
    planned("shapes")
    assert planned.text == mine
    planned("shapes", "--seeds", "0", "1")
    assert set(mine.splitlines()) <= set(planned.text.splitlines())
    planned("shapes", "--seeds", "0")
    assert planned.text == mine

    planned("shapes", "--fresh")
    assert planned.config.benchmarks["shapes"].train.base.lr == 0.1
    assert planned.config.benchmarks["shapes"].evaluation.batch == 60
    assert planned.config.methods["mib"] == {"distillation": 7.5}, "coefficients belong to the methods, not to a preset"
    assert "# Our study." in planned.text and planned.text.count("# The embedded benchmark") == 1


def test_comments_stand_where_they_belong(planned):
    """Also after a benchmark whose last value stands on a line of its own."""
    planned("shapes", "--set", "limit=60", "holdout=6", "--methods", "mib", "--no-joint")
    planned("voc8", "--add", "--set", "limit=300", "--methods", "mib", "--no-joint")
    planned.edit("  voc8:\n", "  # photographs\n  voc8:\n")
    both = planned.text
    planned("voc8", "--add", "--methods", "mib", "--no-joint")
    assert planned.text == both
    for section, about in plan.ABOUT.items():
        assert both.count(f"\n# {about}\n{section}:") == 1
    assert both.index("# drawn once") < both.index("limit: 60") < both.index("# photographs\n  voc8:\n    # Eight well")
    planned("voc8", "--methods", "mib", "--no-joint")
    assert "shapes" not in planned.text.partition("benchmarks:")[2] and "# photographs\n  voc8:" in planned.text
    for about in plan.ABOUT.values():
        assert planned.text.count(f"\n# {about}\n") == 1
    planned("shapes", "--methods", "mib", "--no-joint")
    assert "Eight well" not in planned.text, "comments go with what they are about"
    for section, about in plan.ABOUT.items():
        assert planned.text.count(f"\n# {about}\n{section}:") == 1


def test_add_keeps_the_other_benchmark(planned):
    planned("shapes", "--set", "train.batch=5")
    before = planned.document
    planned("voc8", "4-2", "--seeds", "1", "--methods", "finetune", "--no-joint", "--add")
    after = planned.document
    assert list(after["benchmarks"]) == ["shapes", "voc8-4-2"]
    for section in ("benchmarks", "bases", "joints", "chain", "ends"):
        assert before[section].items() <= after[section].items()
    assert list(after["ends"])[-1] == "voc8-4-2-s1-finetune"
    planned("voc8", "4-2", "--seeds", "1", "--methods", "finetune", "--no-joint")
    assert list(planned.config.benchmarks) == ["voc8-4-2"] and list(planned.config.bases) == ["voc8-4-2-s1"]


def test_methods_missing_from_the_file_are_added(planned):
    planned("shapes", "--methods", "finetune", "--no-joint")
    assert set(planned.config.methods) == {"finetune"}
    planned("shapes")
    methods = dict(planned.document["methods"])
    gsc = methods.pop("gsc")
    assert gsc["soft"] == 0.3 and gsc["scales"] == [1, 2, 4], "all coefficients, on lines of their own"
    assert methods.pop("plop")["variant"] == "paper"
    assert methods.pop("mbs")["distillation"] == 25
    assert methods == {
        "finetune": {},
        "mib": {"distillation": 10.0, "alpha": 1.0, "divisor": "valid", "initialisation": "balanced"},
        "joint": {},
    }
    for name, values in planned.config.methods.items():
        small = {"pod": 0.001, "pod_outputs": 0.00005} if name in ("plop", "gsc") else {}  # the benchmark's own
        assert METHODS[name](**values) == METHODS[name](**small), "the other numbers in the file are the defaults"


def test_variants_of_a_method(planned):
    """A preset of the method over those of the benchmark; a section that is there already needs no preset."""
    planned("shapes", "--methods", "gsc-clamped", "plop-released", "--no-joint")
    gsc, plop = planned.config.methods["gsc-clamped"], planned.config.methods["plop-released"]
    assert (gsc["clamp"], gsc["pod"], gsc["soft"]) == ([0.5, 5.0], 0.001, 0.3)
    assert (plop["variant"], plop["pod_outputs"]) == ("released", 0.00005)
    run = planned.config.chain["shapes-s0-gsc-clamped-2"]
    assert (run.method, run.code, run.after) == ("gsc-clamped", "gsc", "shapes-s0-gsc-clamped-1")
    planned.edit("gsc-clamped:\n", "gsc-mine: {clamp: [0.0, 2.0]}\n  gsc-clamped:\n")
    planned("shapes", "--methods", "gsc-mine", "--no-joint")
    assert planned.config.chain["shapes-s0-gsc-mine-1"].code == "gsc"
    assert planned.config.methods["gsc-mine"] == {"clamp": [0.0, 2.0]}


def test_the_code_of_a_run_is_that_of_its_method(planned):
    planned("shapes", "--methods", "gsc")
    last = "shapes-s0-gsc-2: {after: shapes-s0-gsc-1, method: gsc, code: "
    planned.edit(f"{last}gsc", f"{last}mib")
    assert "chain.shapes-s0-gsc-2.code: 'mib', but the code of gsc is gsc" in planned.fails("--check")


def test_a_method_with_lists(planned, monkeypatch):
    """YAML has no tuples, a coefficient may be one."""

    @coefficients
    class Pods(Method):
        scales: tuple[int, ...] = (1, 2, 4)
        names: list[str] = field(default_factory=lambda: ["a"])

    monkeypatch.setitem(METHODS, "pods", Pods)
    monkeypatch.setattr(plan, "INCREMENTAL", ["pods"])
    planned("shapes", "--methods", "pods")
    assert "  pods: {scales: [1, 2, 4], names: [a]}\n" in planned.text
    runs_check.check(planned.config)
    planned.edit("scales: [1, 2, 4]", "scales: [1, 2.5]")
    with pytest.raises(
        config.ConfigError, match=r"methods\.pods\.scales\.1: found 2\.5, but it should be a valid integer"
    ):
        runs_check.check(planned.config)


def test_a_file_with_sections_missing_is_completed(planned):
    planned("shapes", "--no-joint")
    whole = planned.text
    start, end = whole.index("\n# all classes at once"), whole.index("\n# every later step")
    planned.file.write_text(whole[:start] + whole[end:])
    planned("shapes")
    assert "# all classes at once, usually the upper bound\njoints:\n  shapes-s0-joint: {" in planned.text
    planned.file.write_text("# nothing yet\n")
    planned("shapes")
    assert planned.config.benchmarks


# Arguments of the plan | the beginning of its message
REFUSED = """
shape | no data set 'shape'. Did you mean 'shapes'?
kitti | no data set 'kitti'. There are: ade20k, camvid, cityscapes, shapes, voc, voc8. A folder
shapes --preset vooc | --preset: no preset 'vooc' for shapes. Did you mean 'voc'?
voc --preset mps | --preset: no preset 'mps' for voc. Did you mean 'mbs'?
voc --preset nothing | --preset: no preset 'nothing' for voc. There are: ade20k, camvid, cityscapes, dkd, ewf, fixbc,
shapes --set model.encoder=resnet51 | params.yaml: benchmarks.shapes.model.encoder: timm has no
shapes --set model.encoder=vgg16 | params.yaml: benchmarks.shapes.model.encoder: timm cannot make
shapes --set holdout=5000 | params.yaml: benchmarks.shapes.holdout: 5000, but the data set has only 1200 training images
shapes --set limit=60 | params.yaml: benchmarks.shapes.holdout: 120, but limit leaves only 60 training images. Make
shapes 4-3 | plan: benchmarks.shapes-4-3.protocol: shapes 4-3: the 4 classes after the base do not divide
shapes four | plan: benchmarks.shapes-four.protocol: unknown protocol 'four'; shapes has
shapes --methods mb | --methods: no incremental method 'mb'. Did you mean 'mib'?
shapes --methods joint | --methods: no incremental method 'joint'. There are: dkd, finetune, fixbc, frozen, gsc, gsc_mbs
shapes --methods gsc-x | --methods: gsc has no preset 'x'. There are: clamped, code, ewf, no-
shapes --order 1 2 | plan: benchmarks.shapes.order: the order is no permutation of the 8 classes
shapes --set train.bse.epochs=3 | plan: benchmarks.shapes.train.bse: unknown key. Did you mean 'base
shapes --set train.lr=1 | plan: benchmarks.shapes.train.lr: unknown key. Did you mean 'train.base.lr' or 'train.incre
shapes --set epochs=1 | plan: benchmarks.shapes.epochs: unknown key. Did you mean 'train.base.epochs' or 'train.in
shapes --set train.batch=many | plan: benchmarks.shapes.train.batch: found 'many', but it should be
shapes --set train.flip=on | plan: benchmarks.shapes.train.flip: found 'on', but it should be true
shapes --set train=3 | plan: benchmarks.shapes.train: found 3, but it should be a section.
shapes --set train.batch.x=3 | --set train.batch.x: batch is no section. Leave out what follows it.
shapes --set train.batch | --set: found 'train.batch'. Write KEY=VALUE, the value as in the file.
shapes --set train.curve=[1 | --set: found 'train.curve=[1'. Write KEY=VALUE, the value as in the file.
shapes --set dataset=shape | plan: benchmarks.shapes.dataset: no data set 'shape'. Did you mean
shapes --setting dis | plan: benchmarks.shapes-dis.setting: found 'dis', but it should be 'overlapped', 'disjoint',
shapes --name a.b | plan: --name.a.b: found the name 'a.b', but it should match
shapes --seeds -1 --no-joint --methods | Invalid value for '--seeds': Input should be greater than or equal to 0
shapes --seeds one | Invalid value for '--seeds': Input should be a valid integer
shapes --orders 2 --order 1 2 | Invalid value for --orders: not allowed with --order
| Invalid value for DATASET: name a data set, or use --check or --clean
--check --output none.yaml | {folder}/none.yaml: there is no such file. Write one with: ciss plan
"""


@pytest.mark.parametrize("line", REFUSED.strip("\n").splitlines())
def test_what_cannot_be_planned_is_named_and_nothing_is_written(planned, line):
    arguments, _, message = line.partition("| ")
    planned("shapes", "--methods", "finetune")
    found = planned.fails(*arguments.split())
    assert found.startswith(message.format(folder=planned.folder)), found


def test_a_protocol_of_another_setting_names_it(planned):
    assert planned.fails("cityscapes", "11-5").endswith("Or add --setting domain.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benchmarks: [", "{folder}/params.yaml: line 2, column 1: not valid YAML"),
        ("[1]", "params.yaml: found [1], but it should have sections"),
        ("benchmarks: {shapes: 3}\nmethods: {}\nbases: {}", "params.yaml: line 1: benchmarks.shapes: found 3, but"),
        ("benchmarks:\nmethods: {}\nbases: {}", "params.yaml: line 1: benchmarks: found None, but it should be a"),
        ("\xff", "{folder}/params.yaml: line 1: not UTF-8"),
    ],
)
def test_a_broken_file_is_not_overwritten(planned, text, message):
    planned.file.write_bytes(f"{text}\n".encode("latin-1"))
    for arguments in (["shapes"], ["shapes", "--add"], ["--check"]):
        assert planned.fails(*arguments).startswith(message.format(folder=planned.folder))


def test_no_place_for_the_file(planned):
    (planned.folder / "folder.yaml").mkdir()
    assert "folder.yaml" in planned.fails("shapes", "--output", "folder.yaml")


def test_help(planned):
    with pytest.raises(SystemExit) as caught:
        planned("--help")
    out = planned.capsys.readouterr().out
    assert caught.value.code == 0
    out = " ".join(out.split())
    for word in ("ade20k, camvid, cityscapes, shapes, voc, voc8", "--fresh", "--check", *plan.INCREMENTAL):
        assert word in out


def test_check_says_that_all_is_well(planned):
    planned("shapes")
    assert planned("--check") == (
        "params.yaml: 1 benchmark, 12 runs, no error found. The first stage of `dvc repro` reads images and masks.\n"
    )
    proof = planned.folder / ".data" / "checked"
    first, inode = proof.read_bytes(), proof.stat().st_ino
    planned("shapes", "--seeds", "1")
    planned("--check")
    assert proof.read_bytes() == first, "always the same bytes: nothing runs again because of it"
    assert proof.stat().st_ino != inode, "put in place whole, never written into: it may be a link into a cache"


def test_check_refuses_before_it_forgets(planned):
    planned("shapes")
    stale = planned.folder / "results" / "shapes" / "stale"
    stale.mkdir(parents=True)
    planned.edit("encoder: ciss_tiny", "encoder: ciss_tny")
    message = planned.fails("--check")
    assert message.startswith("params.yaml: benchmarks.shapes.model.encoder: timm has no encoder 'ciss_tny'")


def test_check_refuses_outputs_that_are_links(planned, tmp_path):
    """DVC refuses them too, but after hours of training."""
    planned("shapes")
    (tmp_path / "scratch").mkdir()
    (planned.folder / "runs").symlink_to(tmp_path / "scratch")
    message = planned.fails("--check")
    assert message.startswith(f"{planned.folder}/runs is a link to {tmp_path}/scratch, and DVC refuses")
    assert not (planned.folder / ".data" / "checked").exists()


def results_of_other_runs(folder: Path) -> list[str]:
    """Makes results of runs that the plan of finetune names, and of others. Returns the others."""
    kept = ["shapes/shapes-s0", "shapes/shapes-s0-joint", "shapes/shapes-s0-finetune-2", "shapes/.stale.new"]
    kept += [".hidden/stale"]
    others = ["shapes/shapes-s1", "shapes/shapes-s0-mib-1", "other/shapes-s0", "other/stale"]
    for name in kept + others:
        (folder / "results" / name).mkdir(parents=True)
        (folder / "results" / name / "result.json").write_text("{}")
    (folder / "results" / "shapes" / ".gitignore").write_text("/stale\n")
    (folder / "results" / "shapes" / "notes.txt").write_text("mine\n")
    for elsewhere in ("runs/shapes/stale", "reports/shapes/stale", "data/index/stale"):
        (folder / elsewhere).mkdir(parents=True)
    return sorted(others)


def test_check_deletes_nothing(planned):
    """It once removed the results of every run that the file no longer names."""
    planned("shapes", "--methods", "finetune")
    results_of_other_runs(planned.folder)
    before = planned.files()
    out = planned("--check")
    assert {k: v for k, v in planned.files().items() if k.name not in (".data", "checked")} == before
    assert (
        "note: 4 folders in results/ are ignored, because params.yaml does not name their runs (first: other/shapes-s0)"
        in out
    )
    assert "ciss plan --clean" in out


def test_clean_removes_results_that_the_file_does_not_name(planned):
    planned("shapes", "--methods", "finetune")
    others = results_of_other_runs(planned.folder)
    before = set(planned.files())
    timing = planned.folder / "timings" / f"{others[0]}.json"
    timing.parent.mkdir(parents=True)
    timing.touch()
    out = planned("--clean")
    assert not timing.exists()
    results = planned.folder / "results"
    removed = {path for name in others for path in (results / name, results / name / "result.json")}
    assert before - set(planned.files()) == removed
    assert out.splitlines() == [f"removing results/{name}" for name in others]
    assert "holds no runs" in planned("--clean")
    planned("shapes", "--output", "other.yaml")
    assert "is not the pipeline's file" in planned.fails("--clean", "--output", "other.yaml")


def test_a_plan_before_its_data_says_what_to_do(planned):
    """README plans first and fetches then, so this is a note and no error."""
    out = planned("voc", "15-1", "--methods", "mib")
    (note,) = (line for line in out.splitlines() if line.startswith("note: "))
    assert note.startswith("note: benchmarks.voc: The data of 'voc' are not complete: no VOCdevkit in ")
    assert note.endswith("Run `ciss data fetch voc`.")
    assert planned("--check").count("The data of 'voc' are not complete") == 1
    lists = planned.folder / "data" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    assert "of train images there. VOC's: ciss data fetch sbd" in planned("--check")


def test_a_plan_says_that_its_data_are_not_the_papers(planned):
    folder = planned.folder / "data" / "VOCdevkit" / "VOC2012"
    (folder / "SegmentationClassAug").mkdir(parents=True)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, images in (("trainaug", 1_464), ("val", 1_449)):
        (lists / f"{name}.txt").write_text("".join(f"{number}\n" for number in range(images)))
    note = (
        "note: benchmarks.voc: This preset expects 10,582 training images; 1,464 were found. Scores cannot be compared "
        "with the published ones. Run `ciss data fetch sbd`."
    )
    assert note in planned("voc", "15-1", "--methods", "mib").splitlines()
    assert note in planned("--check").splitlines()


def test_a_weight_file_may_come_after_the_plan(planned):
    out = planned("voc8", "--methods", "mib")
    assert "note: params.yaml: benchmarks.voc8.model.weights: no such file under the project" in out
    assert "model.weights: no such file" in planned.fails("--check")


def test_weights_that_cannot_be_fetched_now_are_a_note(planned, monkeypatch):
    """A plan may be made on a machine without a network."""
    offline = (
        "params.yaml: benchmarks.voc.model.pretrained: weights are missing, and huggingface.co cannot be reached. Fetch"
    )

    def check(settings) -> None:
        raise config.ConfigError(offline)

    monkeypatch.setattr(runs_check, "check", check)
    assert f"note: {offline}" in planned("voc", "15-1").splitlines()
    assert planned.config.benchmarks


def test_further_orders_have_the_edited_schedule(planned):
    planned("shapes", "--methods", "mib")
    planned.edit("base: {epochs: 15, lr: 0.1,", "base: {epochs: 3, lr: 0.3,")
    planned("shapes", "--methods", "mib", "--orders", "3")
    for benchmark in planned.config.benchmarks.values():
        assert (benchmark.train.base.epochs, benchmark.train.base.lr) == (3, 0.3)
    assert len({benchmark.order for benchmark in planned.config.benchmarks.values()}) == 3
    planned("shapes", "--methods", "mib", "--orders", "3", "--fresh")
    assert {benchmark.train.base.epochs for benchmark in planned.config.benchmarks.values()} == {15}


def test_variants_of_a_preset_leave_with_their_plan(planned):
    """Numbers of one's own stay."""
    planned("voc8", "--methods", "gsc-source", "mib", "--seeds", "0", "--no-joint")
    planned.edit("  gsc-source:", "  mib-mine: {distillation: 3.0}\n  gsc-source:")
    planned("shapes", "--methods", "mib")
    assert {name for name in planned.config.methods if "-" in name} == {"mib-mine"}
    planned("voc8", "--methods", "gsc-source", "mib", "--seeds", "0", "--no-joint")
    planned.edit("soft: 0.3", "soft: 0.4")
    planned("shapes", "--methods", "mib", "gsc-clamped", "gsc-code")
    planned("shapes", "--methods", "mib")
    variants = {name for name in planned.config.methods if "-" in name}
    assert variants == {"mib-mine", "gsc-source", "gsc-clamped", "gsc-code"}
    planned("shapes", "--methods", "mib", "--fresh")
    assert {name for name in planned.config.methods if "-" in name} == {"mib-mine", "gsc-source"}


def test_a_preset_may_be_a_whole_study(planned):
    """`voc8` says its seeds and methods; arguments say others."""
    planned("voc8")
    settings, methods = planned.config, presets.load("voc8")["runs"]["methods"]
    seeds = [f"voc8-s{seed}" for seed in (0, 1, 2)]
    assert list(settings.bases) == seeds and list(settings.joints) == [f"{base}-joint" for base in seeds]
    assert list(settings.ends) == [f"{base}-{method}" for base in seeds for method in (*methods, "joint")]
    assert len(settings.chain) == 3 * len(methods) * 4
    assert all(len(settings.path(end)) == (1 if end.endswith("-joint") else 5) for end in settings.ends)
    first = planned.text
    planned("voc8")
    assert planned.text == first
    planned("voc8", "--seeds", "4", "--methods", "mib")
    assert list(planned.config.ends) == ["voc8-s4-mib", "voc8-s4-joint"]


def test_a_preset_of_a_paper_plans_its_method_alone(planned):
    """Days of training for baselines are planned by request only."""
    assert "methods: mbs. Name others with --methods and --joint." in planned("voc", "15-1", "--preset", "mbs")
    assert list(planned.config.ends) == ["voc-mbs-s0-mbs"] and len(planned.config.runs()) == 6
    planned("voc", "15-1", "--preset", "mbs", "--methods", "mib", "--joint")
    assert list(planned.config.ends) == ["voc-mbs-s0-mib", "voc-mbs-s0-joint"]


def test_checking_another_file_forgets_nothing(planned):
    """Its runs are other runs; those of params.yaml are not in the way."""
    planned("shapes")
    planned("voc8", "--output", "studies/other.yaml", "--set", "model.weights=null")
    (planned.folder / "results" / "shapes" / "shapes-s0").mkdir(parents=True)
    before = planned.files()
    assert "102 runs" in planned("--check", "--output", "studies/other.yaml")
    assert planned.files() == before
    planned("--check", "--output", str(planned.file))
    assert (planned.folder / ".data" / "checked").is_file()


def test_the_plan_leaves_the_document_alone():
    document = YAML().load(paths.project() / "params.yaml")
    before = copy.deepcopy(document)
    plan.plan(document, plan.Request("shapes", "4-4", "overlapped", methods=["mib"], seeds=[0], fresh=True))
    assert document == before


def test_coefficients_that_nobody_edited_follow_the_benchmark(planned):
    """Those of another benchmark's preset are not taken along; numbers of one's own, and others' benchmarks, stay."""
    planned("shapes", "--methods", "mbs", "gsc")
    assert planned.config.methods["mbs"]["distillation"] == 25
    planned("ade20k", "100-50", "--preset", "mbs", "--methods", "mbs", "--set", "model.pretrained=false", "--add")
    assert planned.config.methods["mbs"]["distillation"] == 25, "shapes needs it"
    planned("ade20k", "100-50", "--preset", "mbs", "--methods", "mbs", "--set", "model.pretrained=false")
    assert planned.config.methods["mbs"]["distillation"] == 50
    planned.edit("distillation: 50.0", "distillation: 49.0")
    planned("shapes", "--methods", "mbs")
    assert planned.config.methods["mbs"]["distillation"] == 49


def test_a_comment_above_the_first_benchmark_goes_with_it(planned):
    planned("shapes", "--methods", "finetune")
    planned.edit("benchmarks:\n", "benchmarks:\n  # my drawings\n")
    planned("voc8", "--methods", "finetune", "--add")
    assert "  # my drawings\n  shapes:" in planned.text
    planned("voc8", "--methods", "finetune")
    assert "my drawings" not in planned.text and "voc8:" in planned.text


def test_an_old_name_of_a_variant(planned):
    out = planned("voc8", "--methods", "gsc-paper", "--seeds", "0", "--no-joint")
    assert out.startswith("gsc-paper is now called gsc-source: ")
    assert [run.method for run in planned.config.chain.values()] == 4 * ["gsc-source"]


def test_the_next_command_of_another_file(planned):
    """`dvc repro` reads `params.yaml` only."""
    assert "Next: ciss train --config other.yaml (the pipeline" in planned("shapes", "--output", "other.yaml")
    assert planned("shapes", "--output", str(planned.file)).endswith("Next: dvc repro\n")


def test_orders_bring_other_classes_in_some_step(planned):
    """Of `6-2` there are 28 (which two classes come last); a shuffle within a step is no other order."""
    planned("shapes", "6-2", "--orders", "28", "--methods", "mib", "--no-joint")
    orders = [benchmark.order or tuple(range(1, 9)) for benchmark in planned.config.benchmarks.values()]
    assert len({frozenset(order[6:]) for order in orders}) == 28
    assert "has only 28 orders whose steps differ. Ask for at most 28." in planned.fails(
        "shapes", "6-2", "--orders", "29"
    )


@pytest.mark.parametrize("words", [["--orders", "2"], ["--order", *"12345678"]])
def test_domains_have_no_order_of_classes(planned, words):
    assert f"{words[0]}: in the domain setting" in planned.fails("cityscapes", "11-5", "--setting", "domain", *words)


@coefficients
class OwnBase(Method):
    """A method that trains its base step, too, unless it is told to share one."""

    share: bool = False

    @property
    def own_base(self):
        return None if self.share else "apart"


@pytest.fixture
def apart(planned, monkeypatch):
    OwnBase.presets = {"shared": {"share": True}}
    monkeypatch.setitem(METHODS, "apart", OwnBase)
    monkeypatch.setattr(plan, "INCREMENTAL", [*plan.INCREMENTAL, "apart"])
    return planned


def test_a_base_step_of_its_own(apart):
    apart("shapes", "--methods", "mib", "apart", "apart-shared", "--no-joint", "--seeds", "0", "1")
    settings = apart.config
    bases = ["shapes-s0", "shapes-s0-apart", "shapes-s1", "shapes-s1-apart"]
    assert list(settings.bases) == bases
    assert [settings.bases[name].code for name in bases[:2]] == ["finetune", "apart"]
    starts = [settings.path(f"shapes-s0-{method}")[0] for method in ("mib", "apart", "apart-shared")]
    assert starts == ["shapes-s0", "shapes-s0-apart", "shapes-s0"]
    titles = [resolve(settings, f"shapes-s1-{method}-2").title for method in ("mib", "apart", "apart-shared")]
    assert titles == ["mib", "apart (own base)", "apart-shared"]
    apart("shapes", "--methods", "apart", "--no-joint")
    assert list(apart.config.bases) == ["shapes-s0-apart"], "no base step that nothing continues"


def test_the_base_step_fits_the_method(apart):
    apart("shapes", "--methods", "mib", "apart", "--no-joint")
    apart.edit("shapes-s0-apart-1: {after: shapes-s0-apart", "shapes-s0-apart-1: {after: shapes-s0")
    with pytest.raises(ConfigError, match="chain.shapes-s0-apart-1.after: shapes-s0 is a base step of finetune, but"):
        runs_check.check(apart.config)
    apart("shapes", "--methods", "mib", "apart", "--no-joint", "--fresh")
    apart.edit("shapes-s0-mib-1: {after: shapes-s0,", "shapes-s0-mib-1: {after: shapes-s0-apart,")
    with pytest.raises(ConfigError, match="shapes-s0-apart is a base step of apart, but only apart"):
        runs_check.check(apart.config)


def test_fusion_is_listed_only_where_a_variant_has_it(planned):
    planned("shapes", "--methods", "mib", "mib-ewf")
    methods = planned.config.methods
    assert list(methods["mib"]) == ["distillation", "alpha", "divisor", "initialisation"]
    assert methods["mib-ewf"] == {**methods["mib"], "fusion": "classes", "old_rows": "frozen"}


def test_variants_with_stored_images(planned):
    """Beside the methods without, in one table; with the published recipes, and more images on ADE20K."""
    said = planned("shapes", "--methods", "mib", "mib-memory", "mib-released-memory", "dkd-memory", "--no-joint")
    methods = planned.config.methods
    assert "memory" not in methods["mib"] and methods["mib-memory"] == {**methods["mib"], "memory": {"images": 100}}
    assert methods["mib-released-memory"] == {**methods["mib-memory"], "divisor": "all"}
    recipe = {"mix": "append", "labels": "step", "threshold": 0.9}
    assert methods["dkd-memory"]["memory"] == {"images": 100, **recipe}
    assert planned.config.chain["shapes-s0-dkd-memory-1"].after == "shapes-s0-dkd"
    titles = [resolve(planned.config, f"shapes-s0-{name}-1").title for name in ("mib", "mib-memory", "dkd-memory")]
    assert titles == ["mib", "mib-M (100 stored images)", "dkd-M (own base, 100 stored images)"]
    assert said.count(f"{BREAKS_PROTOCOL}: 100 stored images of earlier steps (") == 3
    planned("ade20k", "--methods", "mib-memory", "--no-joint")
    assert planned.config.methods["mib-memory"]["memory"] == {"images": 300}


def test_methods_with_a_base_step_of_their_own(planned):
    planned("shapes", "--methods", "dkd", "ssul-saliency", "fixbc", "fixbc-no-allocation", "--no-joint")
    first = {name.removesuffix("-1"): run.after for name, run in planned.config.chain.items() if run.step == 1}
    assert first == {
        "shapes-s0-dkd": "shapes-s0-dkd",
        "shapes-s0-ssul-saliency": "shapes-s0-ssul-saliency",
        "shapes-s0-fixbc": "shapes-s0-fixbc",
        "shapes-s0-fixbc-no-allocation": "shapes-s0",
    }
    assert "usual" not in planned.config.methods["dkd"] and planned.config.methods["dkd"]["positive"] == 2.0
