"""Whose a table's row is, and which results the analyses of steps are about."""

from collections.abc import Iterator


def increments(ends: dict[str, list[dict]]) -> Iterator[tuple[str, dict]]:
    """Every end's incremental steps, with the end's name; base and joint runs are left out."""
    for end, results in ends.items():
        yield from ((end, result) for result in results if result["after"] is not None and result["method"] != "joint")


def whose(end: str, result: dict) -> dict:
    return {"end": end, "method": result["title"], "seed": result["seed"]}


def whose_step(end: str, result: dict) -> dict:
    return {**whose(end, result), "step": result["step"]}
