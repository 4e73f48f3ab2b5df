"""A reproducible laboratory for class-incremental semantic segmentation."""

import sys
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ciss import processor, without_compiler
from ciss.old_names import OldNames

if TYPE_CHECKING:
    from pathlib import Path

    from ciss.inspection.exported import ExportedNetwork

# A stage that starts `python` finds another Python where the environment is not activated. The packages looked for are
# those that no other Python is likely to have. One that is missing alone is the doctor's business.
if not any(find_spec(name) for name in ("timm", "papermill", "safetensors")):
    raise ImportError(
        f"this Python ({sys.executable}) lacks the packages of the project: start DVC by `uv run dvc repro`, or "
        "activate the environment first",
        name=__name__,  # so that `python -m` prints the message without a traceback
    )

# Libraries below look for notebook widgets that this project does without, and would say so in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")

processor.share_cores()  # before torch is imported
without_compiler.install()
sys.meta_path.append(OldNames)  # `python -m ciss.plan` and the like still run


def load(source: "str | Path", *, device: str = "cpu", revision: str | None = None) -> "ExportedNetwork":
    """Opens a trained network that `ciss export` wrote. Calling it with a picture gives labels.

    Args:
        source: the folder, or a repository of the hub: owner/name.
        device: of torch: cpu or cuda.
        revision: branch, tag or commit of the repository.

    Returns: a network to be called with a file, an image of Pillow, or an array (H,W,3) uint8, red first. It returns
        raw class ids (H,W) uint8; `classes` has their names.

    Raises: CheckpointError for a folder or repository that is missing, damaged or no export; ConfigError for a wrong
        config.json.
    """
    from ciss.inspection import exported

    return exported.load(source, device=device, revision=revision)
