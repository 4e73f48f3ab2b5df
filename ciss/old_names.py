"""Old names of commands: `python -m ciss.plan` runs `ciss plan`, and says so. This file goes with version 0.3."""

import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

NEW = {
    "plan": "plan",
    "train": "train",
    "engine": "train",
    "tuning": "tune",
    "predict": "predict",
    "report": "report",
    "doctor.__main__": "doctor",
    "data.__main__": "data",
    "execute": "execute",
    "probe": "probe",
    "source": "source",
}


class OldNames:
    """A finder and loader of the modules that `python -m` asks for; it knows no module that can be imported."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        known = name.startswith("ciss.") and name.removeprefix("ciss.") in NEW
        return ModuleSpec(name, cls) if known else None

    @staticmethod
    def get_code(name: str) -> CodeType:
        return compile(f"from ciss import old_names\nold_names.run({name.removeprefix('ciss.')!r})", name, "exec")

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Never reached, but part of what a loader has."""


def run(old: str) -> None:
    """Runs the command that a module is now, with the arguments of the command line."""
    from ciss.cli import main

    print(f"python -m ciss.{old.removesuffix('.__main__')} is now: ciss {NEW[old]}", file=sys.stderr)
    main([NEW[old], *sys.argv[1:]])
