"""What each process of torchrun does in test_torchrun.py: trains runs and notes what it had and said."""

import sys
from pathlib import Path

import torch
from torch import nn

from ciss import config, distributed
from ciss.labels.entropy import EntropyMedians
from ciss.labels.prototypes import ClassPrototypes
from ciss.methods import GSC, Batch
from ciss.models import Output
from ciss.runs.run import Run, resolve
from ciss.training import loop
from ciss.training.log import LossLog


def note_methods(made: dict, replace=setattr) -> None:
    """Keeps the method that trains each run, by the run's name."""
    prepare = loop.prepare_training

    def prepared(run, index):
        setup = prepare(run, index)
        made[run.name] = setup.method
        return setup

    replace(loop, "prepare_training", prepared)


def note_images(images: list, replace=setattr) -> None:
    """Adds the image ids of each batch of every update."""
    update = loop.train_update

    def noted(setup, batches, log):
        images.append([batch.ids for batch in batches])
        update(setup, batches, log)

    replace(loop, "train_update", noted)


def state_of(method) -> dict:
    """What `before_step` left: prototypes, counts, thresholds."""
    return {name: value for name, value in vars(method).items() if isinstance(value, torch.Tensor)}


def compensate(rank: int, world: int, **coefficients) -> dict:
    """Weights and gradient of one update by GSC, of this process's half of four images or, alone, of all of them."""
    numbers = torch.Generator().manual_seed(0)
    features, teacher = (torch.randn(4, n, 6, 6, generator=numbers) for n in (5, 3))
    given = torch.randint(0, 5, (4, 6, 6), generator=numbers)
    given[0, :4] = 255  # so that the halves have other numbers of pixels to learn from
    given[3, 2:] = 4
    mine = slice(4 // world * rank, 4 // world * (rank + 1))
    features, teacher, given = features[mine], teacher[mine], given[mine]
    torch.manual_seed(1)
    classifier = nn.Conv2d(5, 5, 1)
    method = GSC(relabelling="argmax", **coefficients)

    def output(logits):
        return Output(logits, features, [features], logits.mean(dim=(2, 3))[..., None], logits.mean(dim=(0, 2, 3)))

    old = output(teacher)
    batch = Batch(features, given, given, [], 1, 3, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 4]))
    batch.labels = method.labels(batch, old)
    new = output(classifier(features))
    weights = method.pixel_weights(new.upsample(batch.size), batch)
    sum(method.losses(new, old, batch).values()).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in classifier.parameters()])
    return {"weights": weights, "gradient": distributed.all_sum(gradient) / world}


def collect(rank: int) -> dict:
    """What a method collects of its part of the data, and what it logs."""
    centres = ClassPrototypes(2, 3)
    centres.update(torch.full((1, 3, 1, 2), 1.0 + rank), torch.tensor([[[0, rank]]]))
    medians = EntropyMedians(2, 3, bins=4)
    medians.update(torch.zeros(1, 1, 2, dtype=torch.int64), torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0 * rank]]]]))
    log = LossLog()
    log.add({"a": torch.tensor(1.0 + rank)}, ["x"], {"b": torch.tensor(float("nan") if rank else 5.0)})
    means, _ = log.epoch_means(nn.Linear(1, 1))
    return {
        "centres": centres.all_reduce().state_dict(),
        "many": gathered(range(rank, 7, 2)).all_reduce().state_dict(),
        "histograms": medians.all_reduce().histograms,
        "means": means,
    }


def gathered(batches) -> ClassPrototypes:
    """Prototypes of some batches of features, large and small."""
    centres = ClassPrototypes(4, 3)
    for number in batches:
        numbers = torch.Generator().manual_seed(number)
        features = torch.randn(2, 3, 5, 4, generator=numbers) * 10.0**number
        centres.update(features, torch.randint(0, 4, (2, 5, 4), generator=numbers))
    return centres


def talk(rank: int) -> dict:
    """What the processes tell each other before they train."""
    said = {"first": distributed.broadcast_result(lambda: f"the answer of {rank}")}
    distributed.check_equal({"same": 1, "in": {"side": [1, 2]}}, "run")
    for name, value in {
        "plain": rank,
        "sections": {"train": {"batch": 2 + rank, "crop": 32}, "key": "abc"},
        "missing": {"train": {"batch": 2, **({"crop": 32} if rank else {})}},
    }.items():
        try:
            distributed.check_equal(value, "run")
        except ValueError as error:
            said[name] = str(error)
    distributed.check_equal("as before", "run")  # nobody is left behind
    return said


def main() -> None:
    evaluate, write, made = loop.evaluate, loop.write, {}

    def evaluated(run, network, loader):
        total = evaluate(run, network, loader)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        mine = {"state": state, "total": total, "batches": len(loader), "training": network.training}
        torch.save(mine, f"{run.name}-evaluated-{distributed.rank()}.pt")
        return total

    def written(run, *arguments):
        Path(f"{run.name}-written-{distributed.rank()}").touch()
        write(run, *arguments)

    loop.evaluate, loop.write = evaluated, written
    # The test gives both trainings one teacher, made with another `accumulate`, which the engine would refuse.
    loop.require_current = lambda *_: None
    Run.differences = lambda *_: []
    note_methods(made)
    note_images(images := [])
    settings = config.load("params.yaml")
    with distributed.session():
        rank = distributed.rank()
        for name in sys.argv[1:]:
            loop.train(resolve(settings, name))
            torch.save(state_of(made[name]), f"{name}-method-{rank}.pt")
            torch.save(images, f"{name}-images-{rank}.pt")
            images.clear()
        for name, coefficients in COMPENSATIONS.items():
            torch.save(compensate(rank, 2, **coefficients), f"{name}-compensated-{rank}.pt")
        torch.save(collect(rank), f"collected-{rank}.pt")
        torch.save(talk(rank), f"talk-{rank}.pt")


COMPENSATIONS = {
    "global": {"statistics": "global", "divisor": "all"},
    "valid": {"statistics": "global", "divisor": "valid"},
    "process": {"statistics": "process", "divisor": "all"},
}

if __name__ == "__main__":
    main()
