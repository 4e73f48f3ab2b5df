"""Old names of commands: `python -m ciss.plan` runs `ciss plan`, and names it. This file goes with version 0.3."""

from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

NEW = {name: name for name in ("plan", "train", "predict", "report", "execute", "probe", "source")}
NEW |= {"engine": "train", "tuning": "tune", "data.__main__": "data"}

PROGRAM = """
if __name__ == "__main__":  # a loader process runs this file, too
    import sys
    from ciss.cli import main
    print({notice!r}, file=sys.stderr)
    main([{new!r}, *sys.argv[1:]])
"""


class OldNames:
    """A finder and loader for `python -m`. None of its modules can be imported."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        known = name.startswith("ciss.") and name.removeprefix("ciss.") in NEW
        return ModuleSpec(name, cls) if known else None

    @staticmethod
    def get_code(name: str) -> CodeType:
        """The program of `python -m NAME`: it prints the new command and runs it."""
        new = NEW[name.removeprefix("ciss.")]
        notice = f"python -m {name.removesuffix('.__main__')} is now: ciss {new}"
        return compile(PROGRAM.format(notice=notice, new=new), name, "exec")

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Part of the interface of a loader; never called."""
