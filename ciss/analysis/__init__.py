"""Arrays in, tidy tables out: what the notebooks show."""

from ciss.analysis.background import FLOW_GROUPS, background_table, confusion_rates, flows
from ciss.analysis.compare import (
    ProvenanceError,
    by_convention,
    conventions_table,
    curves_table,
    made_with,
    methods_table,
    metrics_document,
    ours,
    runs_table,
)
from ciss.analysis.forgetting import forgetting_table, iou_by_step, pace_table
from ciss.analysis.gradients import gradient_conflict, gradient_table, gradients_by_step, term_cosines
from ciss.analysis.prototypes import (
    FATES,
    distance_maps,
    distances,
    drift_table,
    nearest_confusions,
    principal_components,
    projection_table,
    relabel_table,
    relabelled,
    tsne,
)

__all__ = [
    "FATES",
    "FLOW_GROUPS",
    "ProvenanceError",
    "background_table",
    "by_convention",
    "confusion_rates",
    "conventions_table",
    "curves_table",
    "distance_maps",
    "distances",
    "drift_table",
    "flows",
    "forgetting_table",
    "gradient_conflict",
    "gradient_table",
    "gradients_by_step",
    "iou_by_step",
    "made_with",
    "methods_table",
    "metrics_document",
    "nearest_confusions",
    "ours",
    "pace_table",
    "principal_components",
    "projection_table",
    "relabel_table",
    "relabelled",
    "runs_table",
    "term_cosines",
    "tsne",
]
