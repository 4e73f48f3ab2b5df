"""Figures: `f(ax, arrays)`, or a figure of its own where panels belong together."""

from ciss.viz.background import (
    ERRORS,
    FLOWS,
    angle_panels,
    belief_map,
    class_rate_map,
    error_bars,
    flow_panels,
    flow_ribbons,
    reliability,
    rule_points,
)
from ciss.viz.compare import method_lines
from ciss.viz.forgetting import (
    forgetting_bars,
    gradient_panels,
    group_panels,
    iou_heatmaps,
    pace_panels,
    pace_scatter,
)
from ciss.viz.look import COLOURS, MARKERS, legend_below, lowest, note, panels, style
from ciss.viz.pictures import DOTS, OVERLAY, VOID, class_legend, colour, overlay, percent, show, strips
from ciss.viz.training import TRACES, iou_bars, loss_curve, token_angles, trace_panels

__all__ = [
    "COLOURS",
    "DOTS",
    "ERRORS",
    "FLOWS",
    "MARKERS",
    "OVERLAY",
    "TRACES",
    "VOID",
    "angle_panels",
    "belief_map",
    "class_legend",
    "class_rate_map",
    "colour",
    "error_bars",
    "flow_panels",
    "flow_ribbons",
    "forgetting_bars",
    "gradient_panels",
    "group_panels",
    "iou_bars",
    "iou_heatmaps",
    "legend_below",
    "loss_curve",
    "lowest",
    "method_lines",
    "note",
    "overlay",
    "pace_panels",
    "pace_scatter",
    "panels",
    "percent",
    "reliability",
    "rule_points",
    "show",
    "strips",
    "style",
    "token_angles",
    "trace_panels",
]
