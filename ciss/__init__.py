"""A reproducible laboratory for class-incremental semantic segmentation."""

import sys
import warnings
from importlib.util import find_spec

from ciss import processor, without_compiler
from ciss.old_names import OldNames

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
