"""Arrays in, tidy tables out: what the notebooks show."""

from ciss.analysis.background import FLOW_GROUPS, background_table, confusion_rates, flows
from ciss.analysis.compare import (
    ProvenanceError,
    by_convention,
    check_equal,
    conventions_table,
    curves_table,
    made_with,
    ours,
    runs_table,
)
from ciss.analysis.forgetting import forgetting_table, iou_by_step, pace_table
from ciss.analysis.pictures import Pictures, known, predictions, sample_pictures, shown_steps, telling
from ciss.analysis.tables import (
    SCORES,
    by_benchmark,
    convention_means,
    cost_table,
    families,
    family_tables,
    methods_table,
    metrics_document,
)

__all__ = [
    "FLOW_GROUPS",
    "SCORES",
    "Pictures",
    "ProvenanceError",
    "background_table",
    "by_benchmark",
    "by_convention",
    "check_equal",
    "confusion_rates",
    "convention_means",
    "conventions_table",
    "cost_table",
    "curves_table",
    "families",
    "family_tables",
    "flows",
    "forgetting_table",
    "iou_by_step",
    "known",
    "made_with",
    "methods_table",
    "metrics_document",
    "ours",
    "pace_table",
    "predictions",
    "runs_table",
    "sample_pictures",
    "shown_steps",
    "telling",
]
