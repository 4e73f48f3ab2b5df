"""How tests are shared out over the workers of pytest-xdist: a file at a time, the long ones first."""

import pytest

TOGETHER = {  # files of one worker, because they share what takes long to make
    "notebooks/": "notebooks",  # the smoke runs, which one process trains
    "tests/study/test_pipeline.py": "study",
    "tests/study/test_queue.py": "study",
    "tests/study/test_remotes.py": "study",
    "tests/study/test_reproducible.py": "study",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """Two where everything runs, none where files are named: a worker takes seconds to start."""
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            """What a test's worker has as a whole."""
            file = nodeid.partition("::")[0]
            return next((group for start, group in TOGETHER.items() if file.startswith(start)), file)

    return Scheduler(config, log)


def pytest_collection_modifyitems(config, items) -> None:
    if hasattr(config, "workerinput"):  # in a worker; `--no-loadscope-reorder` keeps this order
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: 0 if item.path.suffix == ".ipynb" else 1 if item.path in slow else 2)
