"""Labels for the background of an incremental step, from what the teacher sees in it: pure functions of tensors."""

from ciss.labels.patches import patch_weights
from ciss.labels.prototypes import ClassPrototypes
from ciss.labels.relabelling import relabel_background
from ciss.labels.selective import selective_pseudo_labels

__all__ = ["ClassPrototypes", "patch_weights", "relabel_background", "selective_pseudo_labels"]
