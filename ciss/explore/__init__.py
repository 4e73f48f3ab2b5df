"""Runs opened to be looked into: gradients and features of the same images after every step, kept in memory, so that a
question is answered at once."""

from ciss.explore.lines import Explorer, Line
from ciss.explore.step import LOT, MOMENTS, Seen, Step, layer_groups

__all__ = ["LOT", "MOMENTS", "Explorer", "Line", "Seen", "Step", "layer_groups"]
