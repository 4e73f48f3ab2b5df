"""SSUL and FixBC: released predictions and losses, what learns, whole chains through the training."""

import dataclasses

import pytest
import torch

from ciss.methods import SSUL, FixBC
from ciss.models import Output
from ciss.models.prediction import fold
from ciss.runs import results as runs_results
from ciss.training import loop
from tests.helpers.batches import make_batch
from tests.helpers.golden import case, close
from tests.helpers.training import weights

VOID = 255


def pixels(*rows):
    return torch.tensor(rows, dtype=torch.float64).T[None, :, None].contiguous()


def bare(raw: torch.Tensor, extra: int, name: str) -> Output:
    """An output whose rows at full resolution are `raw`, the extra ones first."""
    tokens = raw.mean(dim=(2, 3))
    return Output(raw[:, extra:], raw, [raw], tokens, tokens, extras={name: raw[:, :extra]})


# --- SSUL


def test_the_released_prediction():
    values = case("ssul.predict")
    assert fold("folded", values["logits"], 1).argmax(dim=1).equal(values["labels"])


def test_scores_by_hand():
    """Pixels 2, 3 and 6 of the worked example: s = 1.122459, .646482, 1.231059."""
    raw = pixels((0.5, 0, 0.3, -1, -1.5), (-0.5, -1, 0.9, -2, -1), (0, 1, -1, -2, -2.5))
    folded = fold("folded", raw, 1)
    assert raw[:, :2].sigmoid().sum(1).flatten().tolist() == pytest.approx([1.122459, 0.646482, 1.231059], abs=1e-6)
    assert folded[:, 0].flatten().tolist() == pytest.approx([10_000, 0.603611, 10_000], abs=1e-5)
    assert folded.argmax(dim=1).flatten().tolist() == [0, 1, 0]
    assert raw[:, 1:].argmax(dim=1).flatten().tolist()[0] == 1, "without the unknown class"


@pytest.mark.parametrize("name", ["pseudo_plain", "pseudo_saliency"])
def test_the_released_labels_and_loss_as_a_method(name):
    """The method's labels have no unknown class: what the released code calls unknown or background is 0."""
    values = case(f"ssul.{name}")
    given = torch.where(values["given"] == VOID, VOID, (values["given"] - 1).clamp(min=0))
    batch = dataclasses.replace(make_batch(4, 2, size=tuple(given.shape[-2:])), given=given, labels=given)
    teacher = bare(values["teacher"], 1, "unknown")
    batch.labels = SSUL().labels(batch, teacher)
    released = torch.where(values["labels"] == VOID, VOID, (values["labels"] - 1).clamp(min=0))
    assert batch.labels.equal(released)
    if name == "pseudo_plain":
        student = bare(values["logits"].requires_grad_(), 1, "unknown")
        loss = SSUL().losses(student, teacher, batch)["cross_entropy"]
        close(loss, values["loss"])
        loss.backward()
        close(values["logits"].grad, values["grad"])


def plan(project, method, shared=False):
    """A chain of two steps after a base step of the method's own."""
    document = project.document
    document["methods"][method] = {"base": "shared"} if shared else {}
    base = "base" if shared else f"base-{method}"
    if not shared:
        document["bases"][base] = {"benchmark": "tiny", "method": method, "seed": 0}
    step = {"benchmark": "tiny", "method": method, "seed": 0}
    document["chain"][f"{method}-1"] = {**step, "after": base, "step": 1}
    document["chain"][f"{method}-2"] = {**step, "after": f"{method}-1", "step": 2}
    return [project.run(name) for name in (base, f"{method}-1", f"{method}-2")]


def changed(before, after):
    states = weights(before), weights(after)
    return {name for name in states[0] if name not in states[1] or not states[0][name].equal(states[1][name])}


def test_only_new_and_unknown_rows_change(project):
    """Encoder, pyramid, statistics and old rows keep their bits although `norm` is that of a batch."""
    runs = plan(project, "ssul")
    for run in runs:
        loop.train(run)
    assert len(changed(runs[0], runs[0])) == 0
    unknown = {"decoder.extras.unknown.weight", "decoder.extras.unknown.bias"}
    assert changed(*runs[:2]) == unknown
    assert changed(*runs[1:]) == unknown
    end = weights(runs[2])
    assert [end[f"decoder.classifier.groups.{g}.weight"].shape[0] for g in range(3)] == [5, 2, 2]
    result = runs_results.read(runs[2])
    assert result["confusion"].shape[1] == 9, "the unknown class is never predicted"
    assert runs[2].title == "ssul (own base, no saliency maps)"


def test_a_shared_base_step(project):
    """The unknown row begins as the background's. The first teacher has none."""
    _, run, _ = plan(project, "ssul", shared=True)
    loop.train(project.run("base"))
    loop.train(run)
    assert changed(project.run("base"), run) == set()
    assert "decoder.extras.unknown.weight" in weights(run)


# --- FixBC

TWO = pixels((2, 1, 0.5, -1, 0.3), (0, 1, 3, 0.2, 0.1))  # background, old, new, two future rows


def fixbc_batch(labels, old, new):
    return dataclasses.replace(make_batch(old, new, size=tuple(labels.shape[-2:])), given=labels, labels=labels)


def test_fixbc_by_hand():
    raw = torch.cat([TWO[:, 3:], TWO[:, :3]], dim=1).requires_grad_()
    batch = fixbc_batch(torch.tensor([[[0, 2]]]), 2, 1)
    loss = FixBC().losses(bare(raw, 2, "future"), None, batch)["cross_entropy"]
    assert loss.item() == pytest.approx(0.431923, abs=1e-6)
    without = FixBC().losses(bare(raw[:, 2:], 0, "future"), None, batch)["cross_entropy"]
    assert without.item() == pytest.approx(0.317107, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, raw)
    first = [-0.225799, 0.100873, 0.061183, 0.013652, 0.050092]
    second = [0.019135, 0.052014, -0.115667, 0.023371, 0.021147]
    found = gradient[0, :, 0][[2, 3, 4, 0, 1]].T
    assert found[0].tolist() == pytest.approx(first, abs=1e-6)
    assert found[1].tolist() == pytest.approx(second, abs=1e-6)
    # one step of rate 1 on biases that start at 0, old rows frozen
    assert (-found.sum(0)[2:]).tolist() == pytest.approx([0.054485, -0.037023, -0.071239], abs=1e-6)


def test_the_released_fixbc_loss():
    values = case("fixbc.loss")
    z, given = values["logits"], values["labels"]
    raw = torch.cat([z[:, 6:], z[:, :6]], dim=1).requires_grad_()
    loss = FixBC(divisor="all").losses(bare(raw, 3, "future"), None, fixbc_batch(given, 4, 2))["cross_entropy"]
    close(loss, values["loss"])
    (gradient,) = torch.autograd.grad(loss, raw)
    close(torch.cat([gradient[:, 3:], gradient[:, :3]], dim=1), values["grad"])


def test_predictions_are_among_the_classes_seen():
    raw = pixels((0.9, 0.2, 0.1, 0.5))  # a future row first
    assert fold("learnt", raw, 1).argmax(dim=1).item() == 2


def test_rows_are_handed_over_and_old_ones_stay(project):
    """Weight decay and momentum move no frozen row; the last step has no future rows."""
    project.set("train.weight_decay", 0.1)
    runs = plan(project, "fixbc")
    for run in runs:
        loop.train(run)
    base, first, second = (weights(run) for run in runs)
    future = "decoder.extras.future.weight"
    assert [len(state[future]) if future in state else 0 for state in (base, first, second)] == [4, 2, 0]
    assert changed(*runs[:2]) == {future, "decoder.extras.future.bias"}
    assert changed(*runs[1:]) == {future, "decoder.extras.future.bias"}
    assert not first["decoder.classifier.groups.1.weight"].equal(base[future][:2]), "they learnt on"
    assert runs[1].title == "fixbc (own base, number of classes known)"
    assert FixBC(allocation="none").own_base is None and FixBC(allocation="none").remarks == []


def test_the_start_of_a_step_is_what_the_step_before_left(project):
    base, first, _ = plan(project, "fixbc")
    loop.train(base)
    from ciss.runs.run import starting_network

    student = starting_network(first, first.build_method())
    state = weights(base)
    weight, bias = student.decoder.rows(new=True)
    assert weight.equal(state["decoder.extras.future.weight"][:2])
    assert bias.equal(state["decoder.extras.future.bias"][:2])
    assert student.decoder.extra_rows("future")[0].equal(state["decoder.extras.future.weight"][2:])
