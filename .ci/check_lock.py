"""Does the committed `dvc.lock` belong to this code and these parameters? `uv run .ci/check_lock.py`.

A clone has no results to compare, so `dvc status` calls every stage changed. This looks at what a clone does hold: code
(reduced to its meaning), parameters, commands, the committed tables, and whether the stages' hashes fit one another.
"""

import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import Stage
from ruamel.yaml import YAML

from ciss.store.code import write

REMEDY = "Run `uv run dvc repro`, then commit dvc.lock together with reports/."


def problems(root: Path) -> Iterator[str]:
    """One line for everything in which `dvc.lock` and the working tree differ. Raises ValueError, DvcException."""
    lock = root / "dvc.lock"
    if not lock.is_file():
        yield "there is no dvc.lock"
        return
    locked = YAML(typ="safe").load(lock)["stages"]
    write(root)
    with chdir(root), Repo() as repo:  # DVC names files relative to the current folder
        stages = [stage for stage in repo.index.stages if stage.cmd]
        makers = {out.fs_path: (stage, out) for stage in stages for out in stage.outs}
        for stage in stages:
            if stage.name not in locked:
                yield f"{stage.name}: not in dvc.lock"
                continue
            if stage.changed_stage():
                yield f"{stage.name}: another command"
            yield from outputs(stage)
            # What `source` reads changes with every comment; what it writes was made above, and is compared.
            if str(root / ".source") not in {out.fs_path for out in stage.outs}:
                yield from dependencies(stage, makers)


def outputs(stage: Stage) -> Iterator[str]:
    """Outputs that are there and differ. A clone lacks those in DVC's cache and those that stay between runs
    (`persist`); the others must have been committed."""
    for out in stage.outs:
        status = out.workspace_status().get(str(out)) if out.hash_info else "new"
        if status and (status != "deleted" or not (out.use_cache or out.persist)):
            yield f"{stage.name}: output {out} is {status}"


def dependencies(stage: Stage, makers: dict) -> Iterator[str]:
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            status = dep.workspace_status().get(str(dep), {})
            changes = status.items() if isinstance(status, dict) else [(dep, status)]
            yield from (f"{stage.name}: parameter {name} is {change}" for name, change in changes)
            continue
        parts = [out for path, (_, out) in makers.items() if overlap(path, dep.fs_path)]
        comparable = all(out.exists for out in parts)  # else results that a clone does not hold
        status = dep.workspace_status().get(str(dep)) if comparable and dep.hash_info else None
        if status or not dep.hash_info:
            yield f"{stage.name}: dependency {dep} is {status or 'new'}"
        maker, out = makers.get(dep.fs_path, (None, dep))
        if out.hash_info != dep.hash_info:  # a part of the pipeline was run, and not what follows it
            yield f"{stage.name}: was not run after {maker.name} made another {dep}"


def overlap(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def main(root: Path) -> int:
    try:
        found = list(problems(root))
    except (ValueError, DvcException) as error:
        found = [str(error)]
    if found:
        print(*["dvc.lock does not belong to this tree:", *found], sep="\n  ", file=sys.stderr)
        print(REMEDY, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1]))
