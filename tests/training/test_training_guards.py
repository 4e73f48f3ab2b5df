"""What a training refuses before it starts, and what it keeps while it runs."""

import json
import math
import re
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from ciss import cli, config
from ciss.config import ConfigError, Model
from ciss.data import DataError, loaders, processes
from ciss.inspection import probe
from ciss.inspection.trained import OpenedRun
from ciss.losses import compensation_weights
from ciss.methods import METHODS, Batch, Finetune, Frozen
from ciss.models import WeightsError, create_encoder, create_network, needs_two_images, set_norm_mode
from ciss.runs import check as runs_check
from ciss.runs import results as runs_results
from ciss.runs import run as runs_run
from ciss.runs.check import check
from ciss.runs.results import read
from ciss.runs.run import Run, resolve
from ciss.store.code import Closure
from ciss.store.files import CheckpointError
from ciss.training import batches as training_batches
from ciss.training import loop

# --- a teacher of other values


def test_a_stale_teacher_is_refused(project):
    """The engine alone, without the pipeline, trained on the old base step and recorded the new parameters."""
    loop.train(project.run())
    project.set("train.base.epochs", 1)
    with pytest.raises(CheckpointError) as caught:
        loop.train(project.run("tune-1"))
    said = str(caught.value)
    assert "base/weights.safetensors: made with other parameters (benchmark.train.base.epochs 2, now 1)" in said
    assert "ciss train base" in said
    assert not project.run("tune-1").results.exists()
    loop.train(project.run())
    loop.train(project.run("tune-1"))
    assert runs_results.read(project.run("tune-1"))["benchmark"]["train"]["base"]["epochs"] == 1


def test_what_does_not_make_the_teacher_may_change(project):
    loop.train(project.run())
    project.set("train.increment.epochs", 1)
    project.set("train.curve", [1.0])
    project.set("benchmarks.tiny.evaluation.batch", 5)
    loop.train(project.run("tune-1"))


@pytest.mark.parametrize("kind", ["code", "data"])
def test_a_teacher_of_other_code_or_data_is_refused(project, monkeypatch, kind):
    loop.train(project.run())
    run = project.run("tune-1")
    if kind == "code":
        other = property(lambda _: "0" * 64, lambda *_: None)
        monkeypatch.setattr(Closure, "digest", other, raising=False)
    index = run.index()
    if kind == "data":
        monkeypatch.setattr(runs_run.Run, "index", lambda _: replace(index, fingerprint="0" * 64))
    with pytest.raises(CheckpointError, match=rf"base was trained with other values \({kind}"):
        loop.train(run)


def test_analyses_refuse_networks_of_other_parameters(finished):
    settings = finished.config
    run = finished.run("tune-1")
    changed = replace(run.settings, train=replace(run.settings.train, weight_decay=0.5))
    benchmarks = {"tiny": changed}
    other = replace(settings, benchmarks=benchmarks)
    message = "made with other parameters .*weight_decay 0.0001, now 0.5"
    with pytest.raises(CheckpointError, match=message):
        probe.probe(other, "tune-1")
    with pytest.raises(CheckpointError, match=message):
        OpenedRun(resolve(other, "tune-1"))


# --- the one way to open a trained run


def test_a_trained_run_opens_without_the_encoders_weight_file(project, tmp_path):
    """Nor does an increment need it, whose every weight comes from its predecessor."""
    file = tmp_path / "encoder.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), file)
    released = METHODS["plop"].presets["released"]
    project.document["methods"]["plop"] = {**released, "pod": 0.001}
    project.document["chain"]["plop-1"] = {**project.document["chain"]["mib-1"], "method": "plop"}
    project.set(
        "benchmarks.tiny.model", {"encoder": "resnet10t", "output_stride": 16, "width": 8, "weights": str(file)}
    )
    project.set("train.base.epochs", 1)
    project.set("train.increment.epochs", 1)
    loop.train(project.run())
    file.unlink()
    with pytest.raises(WeightsError):
        project.run().build_network()
    loop.train(project.run("plop-1"))
    opened = OpenedRun(project.run("plop-1"))
    batch, _, teacher = next(opened.learnt(opened.index.holdout[:2]))
    losses = opened.method.losses(opened.student(batch.images), teacher, batch)
    assert losses["pod"].isfinite(), "the teacher's outputs have what this run's method reads"


@pytest.mark.parametrize("encoder", ["resnet10t", "test_vit"])
def test_random_numbers_do_not_depend_on_starting_weights(project, tmp_path, encoder):
    """So that new classes start alike, whether the encoder's weight file was read before or not."""
    file = tmp_path / "encoder.safetensors"
    save_file(timm.create_model(encoder).state_dict(), file)
    project.set("benchmarks.tiny.model", {"encoder": encoder, "output_stride": 16, "width": 8, "weights": str(file)})
    states = []
    for starting_weights in (True, False):
        torch.manual_seed(0)
        project.run("tune-1").build_network(0, starting_weights=starting_weights)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# --- batches of one image


def test_a_batch_of_one_is_refused_by_the_check(project):
    project.set("train.batch", 1)
    with pytest.raises(ConfigError) as caught:
        runs_check.check(project.config)
    assert str(caught.value) == (
        "params.yaml: benchmarks.tiny.train.batch: 1 image has no batch statistics in the pooled branch of deeplabv3. "
        "Use 2 or more, or train.base.norm: frozen and train.increment.norm: frozen."
    )
    project.set("train.base.norm", "frozen")
    with pytest.raises(ConfigError, match=r"Use 2 or more, or train\.increment\.norm: frozen\.$"):
        runs_check.check(project.config)
    project.set("train.increment.norm", "frozen")
    check(project.config)


@pytest.mark.parametrize(
    ("model", "crop", "layer"),
    [
        ({}, 32, "the pooled branch of deeplabv3"),
        ({"encoder": "vit_tiny_patch16_224", "output_stride": 16}, 32, "the pooled branch of deeplabv3"),
        ({"decoder": "mask_transformer"}, 5, None),
        ({"decoder": "mask_transformer"}, 4, "the last stage of ciss_tiny, of 1 x 1 pixel"),
        ({"decoder": "mask_transformer", "encoder": "vit_tiny_patch16_224", "output_stride": 16}, 16, None),
    ],
)
def test_which_networks_need_two_images(model, crop, layer):
    """As torch has it: with one image it refuses these, and only these."""
    section = Model(width=8, **({"heads": 1} if "decoder" in model else {}), **model)
    assert needs_two_images(section, crop) == layer
    network = create_network(section, [3]).train()
    images = torch.randn(1, 3, crop, crop)
    if layer is None:
        network(images)
    else:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            network(images)
    network(images.expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("images", "batch", "accumulate", "world", "smallest"),
    [(9, 4, 1, 1, 4), (1, 4, 1, 1, 1), (3, 2, 1, 1, 2), (3, 2, 2, 1, 1), (2, 4, 1, 2, 2), (5, 4, 1, 2, 4)],
)
def test_the_smallest_batch(monkeypatch, images, batch, accumulate, world, smallest):
    monkeypatch.setattr(loaders.distributed, "world", lambda: world)
    sampler = loaders.ShuffledBatches(list(range(images)), batch, accumulate, 0)
    assert sampler.smallest == smallest
    monkeypatch.setattr(loaders.distributed, "world", lambda: 1)
    assert smallest == min(map(len, loaders.ShuffledBatches(list(range(images)), batch, accumulate, 0)))


def test_a_step_of_one_image_is_refused_before_training(project, monkeypatch):
    loop.train(project.run())
    run = project.run("tune-1")
    index = run.index()
    one = replace(index, steps=[index.steps[0], index.steps[1][:1], *index.steps[2:]])
    monkeypatch.setattr(Run, "index", lambda _: one)
    monkeypatch.setattr(loop, "require_current", lambda *_: None)
    with pytest.raises(DataError) as caught:
        loop.train(run)
    said = str(caught.value)
    assert said.startswith("tune-1: step 1 has 1 training image, and with train.batch 4 a batch of one image")
    assert "Set benchmarks.tiny.train.increment.norm: frozen" in said and "Expected more than 1 value" not in said
    project.set("train.increment.norm", "frozen")
    loop.train(project.run("tune-1"))


# --- domains


def test_gradients_are_logged_with_more_domains_than_channels():
    """No class is new in a domain: whatever the step, every class is of step 0."""
    labels = torch.tensor([[[0, 1], [2, 255]]]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    student = create_network(Model(width=8), [3])(torch.randn(2, 3, 8, 8))
    student.logits = logits
    steps = torch.zeros(3, dtype=torch.int64)
    batch = Batch(logits, labels, labels, ["a"], 7, 3, steps, torch.arange(0))
    weights = compensation_weights(logits, labels, steps)
    batch.log_weights(weights)
    assert torch.equal(weights, (labels != 255).float())
    batch.log_gradients(student)
    assert [name for name in batch.logs if name.startswith("gradient/step")] == ["gradient/step0"]
    assert all(math.isfinite(batch.logs[name]) for name in ("gradient/step0", "compensated/step0"))


# --- frozen features


@pytest.mark.parametrize("decoder", ["deeplabv3", "mask_transformer"])
def test_frozen_features_do_not_change_by_dropout(project, decoder):
    options = {"deeplabv3": {"dropout": 0.5}, "mask_transformer": {"drop_path": 0.5, "heads": 1}}
    torch.manual_seed(0)
    network = create_network(Model(width=8, decoder=decoder, **options[decoder]), [5])
    set_norm_mode(network, "frozen")
    images = torch.randn(4, 3, 32, 32)
    first, second = (network(images).features for _ in range(2))
    assert not torch.equal(first, second), "without freezing they are noisy"
    parameters = loop.choose_trainable(Frozen(), network, project.run("tune-1"))
    first, second = (network(images).features for _ in range(2))
    assert torch.equal(first, second)
    network.train()
    assert torch.equal(first, network(images).features), "freezing survives train()"
    assert {id(p) for p in parameters} == {id(p) for p in network.parameters() if p.requires_grad}
    classifier = network.decoder.classifier if decoder == "deeplabv3" else network.decoder
    assert classifier.training, "what learns stays in training mode"
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_methods_that_train_everything_keep_their_modes(project):
    network = set_norm_mode(create_network(Model(width=8, dropout=0.5), [5]), "batch")
    loop.choose_trainable(Finetune(), network, project.run("tune-1"))
    assert all(module.training for module in network.modules())


# --- float16


def test_the_schedule_waits_for_an_update(project, monkeypatch):
    """Gradients that overflow give no update in float16; the learning rate then stays."""
    rates, losses = [], Finetune.losses
    project.set("train.precision", "float16")
    project.set("train.base.epochs", 1)

    def overflowing(self, student, teacher, batch):
        found = losses(self, student, teacher, batch)
        rates.append(optimisers[0].param_groups[0]["lr"])
        scale = 1e37 if len(rates) == 1 else 1e-6
        return {name: value * scale for name, value in found.items()}

    optimisers, make = [], loop.make_optimiser
    monkeypatch.setattr(loop, "make_optimiser", lambda *a: optimisers.append(make(*a)) or optimisers[0])
    monkeypatch.setattr(Finetune, "losses", overflowing)
    loop.train(project.run())
    assert len(rates) > 2
    assert rates[0] == rates[1] > rates[2]


def test_the_rate_of_every_update_is_positive_and_ends_at_zero():
    options = config.Train(base=config.Phase(epochs=1, lr=1), increment=config.Phase(epochs=1, lr=1), crop=8, batch=1)
    for power in (0.9, 0.0, 2.5):
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = loop.make_schedule(optimiser, 5, replace(options, power=power))
        rates = []
        for _ in range(5):
            rates.append(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
        assert rates == pytest.approx([(1 - k / 5) ** power for k in range(5)])
        assert isinstance(schedule.get_last_lr()[0], float)


# --- memory


def test_a_cache_that_does_not_fit_is_left_out(project, monkeypatch, capsys):
    run = project.run()
    index, loaded = run.index(), []
    images = [*run.images(index), *index.holdout]
    assert loaders.cache_size(run.settings, index, images) == len(images) * 4 * 64 * 64
    four = replace(run.settings, train=replace(run.settings.train, workers=4))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "available_cores", lambda: 4)
        assert loaders.cache_size(four, index, images) == 4 * len(images) * 4 * 64 * 64, "each process has its own"
    make = loop.training_loader
    monkeypatch.setattr(loop, "training_loader", lambda *a: loaded.append(make(*a)) or loaded[-1])
    monkeypatch.setattr(training_batches, "available_memory", lambda: 2 * len(images) * 4 * 64 * 64 - 1)
    loop.train(run)
    assert "train.cache would take" in capsys.readouterr().out and loaded[-1].dataset.cache is None
    assert read(run)["identity"]["parameters"] == json.loads(json.dumps(run.description()))
    project.set("train.base.epochs", 1)
    monkeypatch.setattr(training_batches, "available_memory", lambda: 2 * len(images) * 4 * 64 * 64)
    loop.train(project.run())
    assert "train.cache" not in capsys.readouterr().out and loaded[-1].dataset.cache


def test_a_container_has_less_memory_than_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "Path", lambda *parts: tmp_path / parts[-1])
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert loaders.available_memory() == 3_000
    (tmp_path / "memory.max").write_text("max\n")
    assert loaders.available_memory() > 3_000


# --- sizes


def test_a_transformer_sees_images_of_another_shape():
    encoder = create_encoder("test_vit", 16, image_size=96).eval()
    for size in ((96, 192), (64, 512), (50, 70)):
        stages = encoder(torch.randn(1, 3, *size))
        assert tuple(stages[-1].shape[-2:]) == tuple(-(-side // 16) for side in size)
        assert stages[-1].isfinite().all()


def test_a_longer_training_says_what_changed(project, capsys):
    loop.train(project.run())
    project.set("train.base.epochs", 3)
    capsys.readouterr()
    loop.train(project.run())
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"base: trained before with other values \(.*base\.epochs 2, now 3\); again\.", first)


def test_the_check_names_the_runs_that_train_again(finished_copy, capsys):
    finished_copy.set("methods.mib.distillation", 3.0)
    finished_copy.write()
    cli.main(["plan", "--check"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "trained again" in line]
    names = re.findall(r"(\S+) \(parameters\.coefficients\.distillation 10\.0, now 3\.0\)", note)
    assert names == [name for name, run in finished_copy.config.chain.items() if run.method == "mib"] and names
    assert note.count("(") == len(names), "no other run"
