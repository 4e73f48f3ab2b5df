"""Figures: `f(ax, arrays)`, or a figure of its own where panels belong together."""

from ciss.viz.background import FLOWS, flow_bars, flow_legend
from ciss.viz.compare import cost_bars, method_lines, method_styles, score_curves, stability_scatter, step_strips
from ciss.viz.forgetting import forgetting_bars, iou_heatmap, pace_panels
from ciss.viz.look import COLOURS, MARKERS, note, style
from ciss.viz.pictures import DOTS, OVERLAY, VOID, class_legend, colour, overlay, percent, show, strips
from ciss.viz.training import TRACES, iou_bars, loss_curve, token_angles, trace_panels

__all__ = [
    "COLOURS",
    "DOTS",
    "FLOWS",
    "MARKERS",
    "OVERLAY",
    "TRACES",
    "VOID",
    "class_legend",
    "colour",
    "cost_bars",
    "flow_bars",
    "flow_legend",
    "forgetting_bars",
    "iou_bars",
    "iou_heatmap",
    "loss_curve",
    "method_lines",
    "method_styles",
    "note",
    "overlay",
    "pace_panels",
    "percent",
    "score_curves",
    "show",
    "stability_scatter",
    "step_strips",
    "strips",
    "style",
    "token_angles",
    "trace_panels",
]
