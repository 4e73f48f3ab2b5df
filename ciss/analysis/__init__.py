"""Arrays in, tidy tables out: what the notebooks show."""

from ciss.analysis.background import (
    FLOW_GROUPS,
    background_belief,
    background_errors,
    background_table,
    calibration_errors,
    calibration_table,
    class_rates,
    confusion_rates,
    flows,
    label_rules,
)
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
from ciss.analysis.findings import background_findings, forgetting_findings
from ciss.analysis.forgetting import forgetting_summary, forgetting_table, group_table, iou_by_step, pace_table
from ciss.analysis.pace import FACTORS, interval, pace_factors, prototype_cosines, rank_correlations
from ciss.analysis.traces import gradient_table, imbalance, token_angles_table

__all__ = [
    "FACTORS",
    "FLOW_GROUPS",
    "ProvenanceError",
    "background_belief",
    "background_errors",
    "background_findings",
    "background_table",
    "by_convention",
    "calibration_errors",
    "calibration_table",
    "class_rates",
    "confusion_rates",
    "conventions_table",
    "curves_table",
    "flows",
    "forgetting_findings",
    "forgetting_summary",
    "forgetting_table",
    "gradient_table",
    "group_table",
    "imbalance",
    "interval",
    "iou_by_step",
    "label_rules",
    "made_with",
    "methods_table",
    "metrics_document",
    "ours",
    "pace_factors",
    "pace_table",
    "prototype_cosines",
    "rank_correlations",
    "runs_table",
    "token_angles_table",
]
