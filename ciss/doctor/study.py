"""What `params.yaml` needs: that it can be read, data, the encoders' weights."""

import os
from collections.abc import Iterator
from pathlib import Path

from ciss import paths
from ciss.doctor.base import Finding, Setup, fail, note, ok, short


def parameters(setup: Setup) -> Iterator[Finding]:
    from ciss import config
    from ciss.runs.check import check

    try:
        settings = config.load(setup.file)
        check(settings)
    except config.ConfigError as error:
        for line in str(error).splitlines():
            yield fail(line, f"correct it, then: ciss plan --check --output {setup.file}")
        return
    yield ok(f"{setup.file}: {', '.join(settings.benchmarks)}; {len(settings.runs())} runs")


def data(setup: Setup) -> Iterator[Finding]:
    from ciss.data import DATASETS, DataError, Index, data_set
    from ciss.data.notes import data_notes, list_notes
    from ciss.documents import ConfigError
    from ciss.runs.run import index_folder

    named = os.environ.get("CISS_DATA")
    if named and not Path(named).expanduser().is_dir():
        yield fail(f"CISS_DATA is {named}: there is no such folder", "correct or unset CISS_DATA")
    else:
        yield ok(f"CISS_DATA is {named}" if named else f"CISS_DATA is not set: {setup.root / 'data'} is searched")
    used = {benchmark.dataset: name for name, benchmark in setup.benchmarks.items()}
    for name in dict.fromkeys([*DATASETS, *used]):
        try:
            dataset = data_set(name)
            folder = paths.data_root(dataset.folder[0]).joinpath(*dataset.folder[1:])
            if name in used:
                images = {split: len(dataset.pairs(folder, split)) for split in ("train", "val")}
                yield ok(f"{name}: {folder}, {images['train']} training and {images['val']} validation images")
            else:
                yield ok(f"{name}: {folder} (not needed by {setup.file})")
        except (ConfigError, DataError) as error:
            yield fail(f"{name}: {short(error)}", f"correct it, or take {used[name]} out of {setup.file}")
        except FileNotFoundError as error:
            if name not in used:
                yield ok(f"{name}: not there (not needed by {setup.file})")
            elif dataset.draw:
                yield ok(f"{name}: not there; drawn when it is needed")
            else:
                yield fail(f"{name}: {short(error)}", f"put it there, or take {used[name]} out of {setup.file}")
    for name, benchmark in setup.benchmarks.items():
        try:
            index = Index.load(index_folder(setup.output, name), benchmark)
            yield ok(f"{name}: prepared, {len(index.steps)} steps")
            errors, notes = [], data_notes(benchmark, index)
        except DataError as error:
            text, _, remedy = str(error).partition(" Run: ")
            yield note(text, remedy or f"dvc repro prepare@{name}")
            errors, notes = list_notes(benchmark)
        yield from (fail(f"{name}: {text}", f"change benchmarks.{name} in {setup.file}") for text in errors)
        for text in notes:
            if not text.startswith("The data of "):  # said above
                text, _, command = text.partition(" Run `")
                yield note(f"{name}: {text}", command.rstrip("`."))


def weights(setup: Setup) -> Iterator[Finding]:
    """What encoders start from."""
    from ciss.models import WeightsError
    from ciss.models.encoders import check_weights
    from ciss.runs.run import weight_file

    for name, benchmark in setup.benchmarks.items():
        model = benchmark.model
        try:
            if model.weights:
                check_weights(model.encoder, file := weight_file(benchmark))
                yield ok(f"{name}: {file}")
            elif model.pretrained and not (file := _fetched(model.encoder)):
                remedy = "be online at the first training, or name a local file in model.weights"
                yield note(f"{name}: timm's weights of {model.encoder} are not here yet", remedy)
            else:
                yield ok(f"{name}: {file if model.pretrained else 'none needed'}")
        except (WeightsError, ValueError) as error:
            yield fail(f"{name}: {short(error)}", f"put the file there, or change benchmarks.{name}.model.weights")


def _fetched(encoder: str) -> str | None:
    import timm
    from huggingface_hub import try_to_load_from_cache

    source = timm.get_pretrained_cfg(encoder)
    found = source and source.hf_hub_id and try_to_load_from_cache(source.hf_hub_id, "model.safetensors")
    return found if isinstance(found, str) else None
