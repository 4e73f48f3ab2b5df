"""Runs opened to be looked into: what is read from them, of every kind of run and network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ciss.analysis.exploring.prototypes import drift_table, nearest_confusions, relabel_table
from ciss.analysis.forgetting.gradients import gradient_conflict, gradients_by_class, gradients_by_step
from ciss.config import ConfigError
from ciss.inspection.chain import ALONE, Explorer, RunChain
from ciss.inspection.step import MOMENTS, layer_groups
from ciss.inspection.trained import OpenedRun, explain
from ciss.models import create_network
from ciss.store.files import CheckpointError
from ciss.training import loop

END, START = MOMENTS


@pytest.fixture
def explorer(finished):
    """opens(run) -> an Explorer of the finished project."""
    finished.write()
    return lambda run="", compared="": Explorer("params.yaml", run, compared)


@pytest.fixture
def trained(finished_copy):
    """trained(run, method, **values) -> its RunChain: after an epoch on the base step, which `values` may change."""
    project = finished_copy

    def make(name: str, method: str, **values) -> RunChain:
        project.set("methods", {"finetune": {}, "joint": {}, method: {}})
        project.set("chain", {name: {"benchmark": "tiny", "method": method, "seed": 0, "after": "base", "step": 1}})
        project.set("ends", {})
        epochs = {"train.increment.epochs": 1} | ({"train.base.epochs": 1} if values else {})
        for key, value in {**epochs, **values}.items():
            project.set(key, value)
        project.prepare()
        for run in ("base", name):
            loop.train(project.run(run))
        project.write()
        found = Explorer("params.yaml", name, ALONE)
        return found.open(name)

    return make


# --- which runs there are


def test_the_run_that_is_shown_first(explorer, finished):
    found = explorer()
    assert found.first == "mib-1", "the last increment, where there is none of GSC"
    assert set(found.runs) == set(finished.config.runs()) and next(iter(found.runs)) == "mib-1"
    assert explorer("all").first == "all"


def test_runs_are_named_in_words(explorer):
    words = {name: words for words, name in explorer().names()}
    assert words["mib-1"] == "tiny: mib, step 1, seed 0" and words["all"] == "tiny: joint training, seed 0"
    assert words["base"] == "tiny: base step, seed 0"


def test_runs_that_can_stand_beside_another(explorer):
    """Of the same benchmark and step: the images, classes and steps are the same."""
    found = explorer()
    names = lambda run: [name for _, name in found.comparable(run)]  # noqa: E731
    assert names("mib-1") == ["tune-1", ALONE] and names("tune-2") == [ALONE] and names("all") == [ALONE]
    assert next(iter(explorer("tune-1", "mib-1").runs)) == "tune-1"


def test_runs_that_are_not_trained_are_not_offered(project):
    project.write()
    found = Explorer("params.yaml")
    assert list(found.runs) == ["mib-1"], "the one that was asked for, which says what is missing"
    with pytest.raises(CheckpointError, match=r"there is no such checkpoint. Train it: ciss train mib-1|base"):
        found.open("mib-1")


def test_unknown_run_and_broken_pipeline(explorer, finished):
    with pytest.raises(ConfigError, match="there is no run 'mib-7'"):
        explorer("mib-7")
    own = finished.folder / "own.yaml"
    own.write_text((finished.folder / "params.yaml").read_text())
    (finished.folder / "params.yaml").write_text("nonsense: 1")
    try:
        assert len(Explorer("own.yaml").runs) == 5, "what params.yaml says is another's trouble"
    finally:
        finished.write()
        own.unlink()


def test_a_person_sees_the_trained_runs_of_the_pipeline_first(finished, monkeypatch):
    """And nothing is trained for that. Without a person, as in tests, only the runs of the file are offered."""
    finished.write()
    own, text = finished.folder / "own.yaml", (finished.folder / "params.yaml").read_text()
    own.write_text(f"output: elsewhere\ncomplete: true\n{text}")
    try:
        with monkeypatch.context() as person:
            person.setattr("ciss.inspection.chain.runs_by_hand", lambda: True)
            person.setattr("ciss.inspection.chain.loop.complete", lambda *_: pytest.fail("trained"))
            found = Explorer("own.yaml")
            assert found.first == "mib-1" and set(found.runs) == set(finished.config.runs())
        monkeypatch.setattr("ciss.inspection.chain.loop.complete", lambda *_: None)
        assert list(Explorer("own.yaml").runs) == ["mib-1", "tune-1"], "its own two, which are not trained"
    finally:
        own.unlink()


def test_missing_runs_are_trained_where_the_file_says_so(project):
    project.set("complete", True)
    project.set("train.base.epochs", 1)
    project.set("train.increment.epochs", 1)
    project.write()
    found = Explorer("params.yaml", "tune-1", ALONE)
    assert (project.run("tune-1").folder / "weights.safetensors").is_file()
    assert not project.run("mib-1").folder.exists(), "only what is asked for"
    assert list(found.runs) == ["tune-1", "base"]
    assert list(Explorer("params.yaml", "tune-1").runs) == ["tune-1", "mib-1", "base"]
    assert (project.run("mib-1").folder / "weights.safetensors").is_file(), "and the one beside it"


# --- a line


def test_steps_of_a_line_share_their_images(explorer, finished):
    line = explorer("tune-2").open("tune-2")
    index = finished.run("tune-2").index()
    assert [run.name for run in line.runs] == ["base", "tune-1", "tune-2"] and line.steps() == [2, 1, 0]
    assert line.held_out and sorted(line.numbers) == index.holdout
    for step in line.steps():
        truth = [seen.truth for seen in (line.at(step).arrays(k) for k in range(4))]
        shapes = [picture.shape[:2] for picture in line.pictures]
        assert shapes == [array.shape for array in truth]
        for array, number in zip(truth, line.numbers, strict=True):
            raw = line.classes.raw
            assert {raw[p] for p in np.unique(array) if p != 255} == set(index.classes["train"][number])


def test_without_a_hold_out_the_step_has_images_itself(trained):
    line = trained("gsc-1", "gsc", **{"benchmarks.tiny.holdout": 0})
    assert not line.held_out and set(line.numbers) <= set(line.runs[-1].images(line.index))


def test_classes_known_after_each_step(explorer):
    line = explorer("tune-1").open("tune-1")
    assert [position for _, position in line.known(1)] == [5, 6, 1, 2, 3, 4, 0], "new ones first"
    assert [position for _, position in line.known(0)] == [1, 2, 3, 4, 0]


# --- pixels


def test_gradients_of_pixels_are_those_of_the_loss(explorer):
    line = explorer("mib-1").open("mib-1")
    step, seen = line.at(1), line.at(1).arrays(0)
    batch, _, _ = step.batches[0]
    row = step.rows[0][1]
    logits = step.trained.student(batch.images).upsample(batch.size).detach()[row].requires_grad_()
    labels = batch.labels[row]
    F.cross_entropy(logits[None], labels[None], ignore_index=255, reduction="sum").backward()
    pull = logits.grad.abs().numpy()
    for position in range(step.channels):
        assert seen.class_gradient(position) == pytest.approx(pull[position], abs=1e-5)
    own = np.take_along_axis(pull, np.where(labels == 255, 0, labels)[None], axis=0)[0]
    assert seen.gradient == pytest.approx(np.where(labels == 255, 0, own), abs=1e-5)


def test_an_image_alone_is_what_it_is_in_its_batch(explorer):
    line = explorer("mib-1").open("mib-1")
    step = line.at(1)
    for k in range(len(line.numbers)):
        batch, truth, _ = next(step.trained.learnt([line.numbers[k]]))
        assert (step.arrays(k).truth == truth[0].numpy()).all()
        said = step.trained.student(batch.images).upsample(batch.size).softmax(dim=1)[0]
        assert step.arrays(k).probabilities == pytest.approx(said.detach().numpy(), abs=1e-5)


def test_weights_are_the_methods_own_or_what_they_would_be(trained):
    line = trained("gsc-1", "gsc", methods={"finetune": {}, "joint": {}, "gsc": {"clamp": [1.0, 1.0]}})
    assert line.at(1).own_weights and not line.at(0).own_weights
    for step in (0, 1):
        weights = np.concatenate([weight.ravel() for weight in line.at(step).pixel_gradients()[1]])
        assert set(np.unique(weights)) == {0, 1}, "clamped, and in the base step nothing is old"
    other = trained("finetune-1", "finetune").at(1)
    table = gradients_by_class(*other.pixel_gradients(), other.introduced, range(other.channels))
    assert not other.own_weights
    assert gradients_by_step(table)["weight"].tolist() == pytest.approx([1, 1], abs=1e-4)


def test_a_method_of_weights_of_its_own_is_asked(trained):
    """GSC and MBS together weigh objects only, within bounds."""
    step = trained("gsc_mbs-1", "gsc_mbs", **{"methods.gsc_mbs": {"clamp": [1.5, 1.5]}}).at(1)
    assert step.own_weights
    _, weights, labels = step.pixel_gradients()
    for weight, label in zip(weights, labels, strict=True):
        assert (weight[label == 0] == 1).all() and (weight[(label > 0) & (label < 255)] == 1.5).all()


def test_gradient_that_arrives_at_a_layer(explorer):
    """Of one place's features, by finite differences: the classifier is linear in them."""
    line = explorer("mib-1").open("mib-1")
    step = line.at(1)
    position = int(np.unique(step.arrays(0).labels)[0])
    found = step.feature_gradient(0, position, "features")
    batch, labels = step._one(0)
    network = step.trained.student
    with torch.no_grad():
        features = network(batch.images).features.double()
        head = network.decoder.classifier.double()
        chosen = labels.masked_fill(labels != position, 255)

        def loss(moved):
            logits = F.interpolate(head(moved), batch.size, mode="bilinear", align_corners=False)
            return F.cross_entropy(logits, chosen, ignore_index=255, reduction="sum").item()

        row, column = np.unravel_index(found.argmax(), found.shape)
        slopes = []
        for width in range(features.shape[1]):
            up, down = features.clone(), features.clone()
            up[0, width, row, column] += 1e-4
            down[0, width, row, column] -= 1e-4
            slopes.append((loss(up) - loss(down)) / 2e-4)
        head.float()
    assert found.max() == pytest.approx(np.linalg.norm(slopes), rel=1e-3)
    assert step.layer_names()[0] == "features"
    assert not step.feature_gradient(0, 5, "stage 1").any() or 5 in step.arrays(0).labels, "no pixel"


# --- parameters


def test_parameter_gradients_add_up(trained):
    """The pixels learnt as background, old and new classes are all: their gradients make that of the whole."""
    line = trained("finetune-1", "finetune", **{"benchmarks.tiny.evaluation.batch": 16})
    step = line.at(1)
    found = step.gradients(END)
    labels = np.concatenate([b.labels.numpy().ravel() for b, *_ in step.batches[: step.first_batches]])
    parts = {"background": (labels == 0), "new classes": (labels >= step.old) & (labels != 255)}
    for layer, whole in found["cross_entropy (method)"].items():
        total = sum(found[name][layer] * mine.sum() for name, mine in parts.items())
        assert total / (labels != 255).sum() == pytest.approx(whole, rel=1e-3, abs=1e-5)
    assert "old classes" not in found, "finetuning learns them as background"
    assert step.terms == list(found)
    assert step.pixel_terms == ["new classes", "old classes, truth", "background"]


def test_the_start_of_a_step_is_the_network_before_it_with_new_classes(explorer):
    line = explorer("mib-1").open("mib-1")
    step = line.at(1)
    network, before = step.network(START), OpenedRun(line.runs[0]).student
    state = network.state_dict()
    for name, value in before.state_dict().items():
        if name != "decoder.classifier.groups.0.bias":  # shared with the new classes
            assert torch.equal(state[name], value), name
    new = state["decoder.classifier.groups.1.weight"]
    assert torch.equal(new, state["decoder.classifier.groups.0.weight"][:1].expand_as(new))
    assert step.network(END) is step.trained.student
    with pytest.raises(ValueError, match="moment is 'later'"):
        step.network("later")


def test_looking_leaves_no_trace(explorer):
    line = explorer("mib-1").open("mib-1")
    step = line.at(1)
    before = {name: value.clone() for name, value in step.trained.student.state_dict().items()}
    state = torch.get_rng_state()
    for moment in MOMENTS:
        step.gradients(moment), step.arrays(0, moment), step.feature_gradient(0, None, "stage 1", moment)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in step.trained.student.state_dict().items())
    assert all(parameter.grad is None for parameter in step.trained.student.parameters())


def test_layers_are_put_together_until_they_fit():
    network = create_network(explore_model(), [5, 2])
    every = layer_groups(network, most=1000)
    assert "decoder.classifier.groups.1" in every and all("weight" not in name for name in every)
    few = layer_groups(network, most=6)
    assert len(few) <= 6 and len(every) > 6
    assert list(layer_groups(network, most=1)) == ["encoder", "decoder"]
    for found in (every, few):
        assert sum(map(len, found.values())) == len(list(network.parameters()))


def explore_model():
    from ciss.config import Model

    return Model(encoder="ciss_tiny", width=8, atrous_rates=(1,))


# --- features


def test_prototypes_are_means_of_the_features(explorer):
    line = explorer("tune-1").open("tune-1")
    points, labels = line.at(1).points("features")
    means, counts, spreads = line.at(1).prototypes("features")
    assert len(counts) == 9, "classes to come have one too"
    for position in range(9):
        mine = points[labels == position]
        assert counts[position] == len(mine)
        if len(mine):
            assert means[position] == pytest.approx(mine.mean(axis=0), abs=1e-5)
            far = np.linalg.norm(mine - mine.mean(axis=0), axis=1)
            assert spreads[position] == pytest.approx(np.sqrt((far**2).mean()), abs=1e-4)
        else:
            assert np.isnan(spreads[position])
    known, seen = line.at(1).known_prototypes("features")
    assert not seen[7:].any() and (seen[:7] == counts[:7]).all() and (known == means).all()
    every = line.prototypes("features", 1)
    assert every[0].shape == (2, *means.shape) and (every[1][1] == counts).all()


def test_features_have_the_labels_of_their_places(explorer):
    line = explorer("tune-1").open("tune-1")
    features, truth = line.at(1).features("stage 1")[0]
    whole = line.at(1).arrays(0).truth
    assert features.shape[1:] == truth.shape
    factor = whole.shape[0] // truth.shape[0]
    assert (truth == whole[::factor, ::factor]).all()


def test_a_sample_of_each_class(explorer):
    line = explorer("tune-1").open("tune-1")
    points, labels = line.at(1).points("features")
    few, chosen = line.at(1).sample("features", each=3)
    assert np.unique(chosen).tolist() == np.unique(labels).tolist()
    assert np.bincount(chosen).max() == 3
    assert all((points[labels == c] == p).all(axis=1).any() for p, c in zip(few, chosen, strict=True))


# --- every kind of run


def look(line: RunChain, step: int) -> None:
    """All that the notebooks ask."""
    at = line.at(step)
    assert line.known(step)
    for moment in MOMENTS:
        found = at.gradients(moment)
        assert all(np.isfinite(value).all() for layers in found.values() for value in layers.values())
        one, other = at.pixel_terms[0], at.pixel_terms[-1]
        assert gradient_conflict(found[one], found[other])["cosine"].dropna().between(-1, 1).all()
        assert np.isfinite(at.arrays(0, moment).weight).all()
        assert set(at.reached_layers()) <= set(at.layer_names())
        for layer in at.reached_layers():
            assert np.isfinite(at.feature_gradient(0, 1, layer, moment)).all()
    given, labels, truth = at.labels()
    assert len(relabel_table(given, labels, truth, at.old, line.classes.names))
    for layer in at.layer_names():
        drift = drift_table(*line.prototypes(layer, step), line.classes)
        assert len(drift) == (step + 1) * len(line.classes)
        nearest_confusions(*at.points(layer), *at.known_prototypes(layer), line.classes.names)
    assert all(np.isfinite(values).all() for values in at.method_maps(0).values())


@pytest.mark.parametrize("name", ["base", "all", "tune-2"])
def test_base_joint_and_increment(explorer, name):
    line = explorer(name).open(name)
    for step in line.steps():
        look(line, step)
    if name == "all":
        assert line.at(0).channels == 9 and not line.at(0).method_maps(0) and line.at(0).old == 1


@pytest.mark.parametrize(
    ("method", "decoder"), [("gsc", "deeplabv3"), ("mbs", "mask_transformer"), ("plop", "mask_transformer")]
)
def test_methods_and_networks(trained, method, decoder):
    line = trained(f"{method}-1", method, **{"benchmarks.tiny.model.decoder": decoder})
    look(line, 1)
    index = line.index
    shown = explain(line.runs[-1], line.numbers[:2])
    for k in range(2):
        seen = line.at(1).arrays(k)
        assert (seen.given == shown.given[k]).all() and (seen.labels == shown.labels[k]).all(), index.ids["train"][k]
        maps = line.at(1).method_maps(k)
        assert list(maps) == list(shown.maps)
        for name in set(maps) - {"weight"}:  # its means are of the whole batch
            assert maps[name] == pytest.approx(shown.maps[name][k], abs=1e-4)
