"""The runs of a plan: base steps, the chain of increments, joint training, and the ends."""

import json
from collections.abc import Sequence

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from ciss import config
from ciss.methods import METHODS, code_of


def add_runs(
    document: CommentedMap, benchmark: str, seed: int, steps: int, methods: Sequence[str], *, joint: bool
) -> None:
    """Adds base steps, increments, joint training and ends of a benchmark and seed.

    Args:
        steps: number of steps, the base step included.
    """
    base = f"{benchmark}-s{seed}"
    start = {"benchmark": benchmark, "method": "finetune", "code": "finetune", "seed": seed}
    own_bases = {method: own_base(document["methods"], method) for method in methods}
    if None in own_bases.values() or not own_bases:
        document["bases"][base] = flow(start)
    for method, own in own_bases.items():
        after = base
        if own:
            after = f"{base}-{own}"
            document["bases"][after] = flow({**start, "method": own, "code": code_of(own)})
        for step in range(1, steps):
            run = f"{base}-{method}-{step}"
            values = {"method": method, "code": code_of(method), "step": step, "benchmark": benchmark, "seed": seed}
            document["chain"][run] = flow({"after": after, **values})
            after = run
        document["ends"][f"{base}-{method}"] = flow({"run": after, "benchmark": benchmark})
    if joint:
        document["joints"][f"{base}-joint"] = flow({**start, "method": "joint", "code": "joint"})
        document["ends"][f"{base}-joint"] = flow({"run": f"{base}-joint", "benchmark": benchmark})
    elif not methods:  # the base step alone is a study, too
        document["ends"][base] = flow({"run": base, "benchmark": benchmark})


def own_base(sections: CommentedMap, method: str) -> str | None:
    """`Method.own_base` of a section under `methods`. Raises ConfigError."""
    values = json.loads(json.dumps(sections[method]))
    return config.validate(METHODS[code_of(method)], values, "plan", f"methods.{method}").own_base


def flow(value):
    """A list or mapping on one line; a long mapping on a line for each key."""
    if isinstance(value, dict) and len(value) > 8:
        return CommentedMap({key: flow(v) if isinstance(v, list) else v for key, v in value.items()})
    node = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
    node.fa.set_flow_style()
    return node
