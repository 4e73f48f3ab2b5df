"""Old names of commands: `python -m ciss.plan` runs `ciss plan`, and says so. This file goes with version 0.3."""

from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

NEW = {
    "plan": "plan",
    "train": "train",
    "engine": "train",
    "tuning": "tune",
    "predict": "predict",
    "report": "report",
    "data.__main__": "data",
    "execute": "execute",
    "probe": "probe",
    "source": "source",
}

PROGRAM = """
if __name__ == "__main__":  # not in a loader process, which runs the program of its parent
    import sys
    from ciss.cli import main
    print({notice!r}, file=sys.stderr)
    main([{new!r}, *sys.argv[1:]])
"""


def program(name: str, new: str) -> CodeType:
    """What `python -m NAME` runs: the command `new`, named in one line."""
    notice = f"python -m {name.removesuffix('.__main__')} is now: ciss {new}"
    return compile(PROGRAM.format(notice=notice, new=new), name, "exec")


class OldNames:
    """A finder and loader of the modules that `python -m` asks for; it knows no module that can be imported."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        known = name.startswith("ciss.") and name.removeprefix("ciss.") in NEW
        return ModuleSpec(name, cls) if known else None

    @staticmethod
    def get_code(name: str) -> CodeType:
        return program(name, NEW[name.removeprefix("ciss.")])

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Never reached, but part of what a loader has."""
