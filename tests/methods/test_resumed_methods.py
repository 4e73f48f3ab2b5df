"""Methods with rows or weights of their own continue where they were stopped, with the same bytes at the end."""

import pytest

from ciss.methods import METHODS
from ciss.methods.hosts import EWF
from ciss.training import loop
from tests.helpers.training import left_by, stopped


@pytest.mark.parametrize(("method", "values"), [("dkd", {}), ("ssul", {}), ("fixbc", {}), ("mib-ewf", EWF["ewf"])])
def test_a_stopped_increment_ends_as_a_whole_one(make_project, method, values):
    kind, ends = METHODS[method.partition("-")[0]], []
    for place in ("whole", "stopped"):
        project = make_project(place)
        project.set("train.base.epochs", 1)
        project.set("benchmarks.tiny.model.dropout", 0.3)  # so that random numbers matter
        project.document["methods"][method] = values
        own = kind(**values).own_base
        project.set("bases.own", {"benchmark": "tiny", "method": own or "finetune", "seed": 0})
        step = {"benchmark": "tiny", "method": method, "seed": 0, "after": "own", "step": 1}
        project.document["chain"]["increment"] = step
        loop.train(project.run("own"))
        run = project.run("increment")
        if place == "stopped":
            with stopped(kind, 2):  # in the second epoch of one batch
                loop.train(run)
            assert (run.resume / "state.safetensors").exists()
        loop.train(run)
        ends.append(left_by(run))
    assert ends[0] == ends[1]
