"""Figures: `f(ax, arrays)`, or a figure of its own where panels belong together."""

from ciss.viz.background import FLOWS, flow_bars, flow_legend
from ciss.viz.compare import method_lines
from ciss.viz.exploring import (
    FATE_COLOURS,
    MOST,
    conflict_bars,
    conflict_figure,
    confusion_bars,
    cosine_heatmap,
    drift_heatmap,
    fate_handles,
    fate_picture,
    gradient_bars,
    panels,
    projection,
    relabel_bars,
)
from ciss.viz.forgetting import forgetting_bars, iou_heatmap, pace_panels
from ciss.viz.look import COLOURS, MARKERS, note, style
from ciss.viz.pictures import DOTS, OVERLAY, VOID, class_legend, colour, overlay, percent, show, strips
from ciss.viz.training import TRACES, iou_bars, loss_curve, token_angles, trace_panels

__all__ = [
    "COLOURS",
    "DOTS",
    "FATE_COLOURS",
    "FLOWS",
    "MARKERS",
    "MOST",
    "OVERLAY",
    "TRACES",
    "VOID",
    "class_legend",
    "colour",
    "conflict_bars",
    "conflict_figure",
    "confusion_bars",
    "cosine_heatmap",
    "drift_heatmap",
    "fate_handles",
    "fate_picture",
    "flow_bars",
    "flow_legend",
    "forgetting_bars",
    "gradient_bars",
    "iou_bars",
    "iou_heatmap",
    "loss_curve",
    "method_lines",
    "note",
    "overlay",
    "pace_panels",
    "panels",
    "percent",
    "projection",
    "relabel_bars",
    "show",
    "strips",
    "style",
    "token_angles",
    "trace_panels",
]
