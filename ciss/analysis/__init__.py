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

__all__ = [
    "FLOW_GROUPS",
    "ProvenanceError",
    "background_table",
    "by_convention",
    "confusion_rates",
    "conventions_table",
    "curves_table",
    "flows",
    "forgetting_table",
    "iou_by_step",
    "made_with",
    "methods_table",
    "metrics_document",
    "ours",
    "pace_table",
    "runs_table",
]
