"""Where the pixels of background, old and new classes go."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from ciss.viz.look import legend_below, lowest, mark, method_styles, note, panels

FLOWS = {"background": ("#BBBBBB", ""), "right": ("#009E73", ""), "old": ("#56B4E9", "//"), "new": ("#D55E00", "xx")}
CALLED = {"background": "background", "right": "its own class", "old": "another old class", "new": "another new class"}
ERRORS = {
    "old called background": ("#56B4E9", "//"),
    "new called background": ("#D55E00", "xx"),
    "background called old": ("#0072B2", ".."),
    "background called new": ("#E69F00", "\\\\"),
}


def flow_panels(found: list[tuple[str, int, pd.DataFrame]]) -> Figure:
    """`flow_ribbons` of several methods (columns) after several steps (rows); `found`: method, step, `flows`."""
    methods, steps = (list(dict.fromkeys(each[k] for each in found)) for k in (0, 1))
    size = (1.55 * len(methods) + 0.8, 2.1 * len(steps) + 0.4)
    widths = {"width_ratios": [1.4] + [1.0] * (len(methods) - 1)}  # the first one has the names
    options = {"squeeze": False, "layout": "constrained", "gridspec_kw": widths}
    figure, axes = plt.subplots(len(steps), len(methods), figsize=size, **options)
    for ax in axes.flat:
        ax.set_axis_off()
    for method, step, table in found:
        column = methods.index(method)
        flow_ribbons(axes[steps.index(step), column], table, f"{method}, step {step}", names=column == 0)
    handles = [Patch(fc=face, hatch=hatch, ec="white", label=CALLED[part]) for part, (face, hatch) in FLOWS.items()]
    legend_below(figure, handles, "called")
    return figure


def flow_ribbons(ax: Axes, table: pd.DataFrame, title: str = "", names: bool = True) -> None:
    """Where pixels go: from each group of truth on the left, equally high, to what the network calls them on the right.

    `table`: see `ciss.analysis.flows`; groups without pixels are left out. Numbers: shares of the group, from 0.1.
    """
    table = table.dropna(how="all")
    gap = 0.25
    starts = {group: k * (1 + gap) for k, group in enumerate(table.index)}
    height = max(starts.values(), default=0) + 1
    totals = table[list(FLOWS)].sum()
    pad = (height - totals.sum()) / max(1, (totals > 0).sum() - 1)
    tops, at = {}, 0.0
    for part in FLOWS:
        tops[part] = at
        at += totals[part] + (pad if totals[part] > 0 else 0)
    reach = dict(tops)  # how far each name's bar is filled
    for group, start in starts.items():
        ax.add_patch(Rectangle((0, start), 0.05, 1, fc="#444444", ec="none"))
        if names:
            ax.text(-0.03, start + 0.5, group, ha="right", va="center", fontsize=8)
        for part, (face, hatch) in FLOWS.items():
            share = float(table.loc[group, part])
            if share > 0:
                _ribbon(ax, start, reach[part], share, face, hatch)
                if share >= 0.1:
                    box = {"fc": "white", "ec": "none", "pad": 0.4, "alpha": 0.8}
                    ax.text(0.09, start + share / 2, f"{share:.2f}", va="center", fontsize=6.5, bbox=box)
                start, reach[part] = start + share, reach[part] + share
    for part, (face, hatch) in FLOWS.items():
        if totals[part] > 0:
            style = {"fc": face, "hatch": hatch, "ec": "white"}
            ax.add_patch(Rectangle((0.95, tops[part]), 0.05, totals[part], **style))
    ax.set(xlim=(-0.45 if names else -0.02, 1.02), ylim=(height, -0.02))
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()


def _ribbon(ax: Axes, left: float, right: float, width: float, face: str, hatch: str) -> None:
    """A band from (0.05, left) to (0.95, right), `width` high."""
    (a, b), middle = (0.05, 0.95), 0.5
    upper = [(a, left), (middle, left), (middle, right), (b, right)]
    lower = [(b, right + width), (middle, right + width), (middle, left + width), (a, left + width)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*upper, *lower, (a, left)], codes)
    ax.add_patch(PathPatch(path, fc=face, hatch=hatch, ec="white", lw=0.4, alpha=0.65))


def class_rate_map(ax: Axes, table: pd.DataFrame, column: str, title: str = "") -> None:
    """Share of each class's pixels that goes one way, by method; mean over seeds. `table`: `ciss.analysis.class_rates`
    of one step and the classes wanted, `column`: one of its shares."""
    shares = table.pivot_table(index="class", columns="method", values=column, sort=False, dropna=False)
    sns.heatmap(
        shares, ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7},
        linewidths=0.5, cbar_kws={"label": "share of the class's pixels"},
    )  # fmt: skip
    ax.set(xlabel="", ylabel="", title=title)
    ax.tick_params(axis="y", rotation=0)
    ax.set_xticks(np.arange(shares.shape[1]) + 0.5, shares.columns, rotation=30, ha="right")


def error_bars(ax: Axes, table: pd.DataFrame) -> None:
    """What the background's errors consist of: a bar a method, mean over seeds. `table`:
    `ciss.analysis.background_errors` of one step."""
    shares = table.pivot_table(index="method", columns="error", values="share", sort=False, dropna=False)[::-1]
    start = np.zeros(len(shares))
    for error, (face, hatch) in ERRORS.items():
        values = np.nan_to_num(shares[error].to_numpy(float))
        ax.barh(shares.index, values, left=start, color=face, hatch=hatch, edgecolor="white", label=error)
        for k, value in enumerate(values):
            if value >= 0.06:
                box = {"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.75}
                ax.text(start[k] + value / 2, k, f"{value:.2f}", ha="center", va="center", fontsize=7, bbox=box)
        start += values
    ax.set(xlim=(0, 1), xlabel="share of the background's errors")
    ax.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=8)


def reliability(ax: Axes, table: pd.DataFrame, methods: list[str]) -> None:
    """Of the pixels that get the background with some probability, the share that is background (or a future class,
    which the step teaches as such). `table`: `ciss.analysis.calibration_table` of one step."""
    ax.plot([0, 1], [0, 1], color="#888888", lw=1, ls=":", label="calibrated")
    styles = method_styles(methods)
    for method in methods:
        mine = table[(table["method"] == method) & (table["pixels"] > 0)]
        weights = mine["pixels"].groupby(mine["low"]).sum()
        right = ((mine["background"] + mine["future"]) * mine["pixels"]).groupby(mine["low"]).sum() / weights
        believed = (mine["probability"] * mine["pixels"]).groupby(mine["low"]).sum() / weights
        ax.plot(believed, right, **styles[method], ms=4, lw=1.2, label=method, clip_on=False)
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the background", ylabel="share that is background")
    ax.set_aspect("equal")


def belief_map(ax: Axes, table: pd.DataFrame) -> None:
    """Mean probability of the background on pixels of each kind, by method; `table`: `ciss.analysis.background_belief`
    of one step."""
    means = table.pivot_table(index="method", columns="kind", values="probability", sort=False)
    sns.heatmap(
        means, ax=ax, vmin=0, vmax=1, cmap="cividis", annot=True, fmt=".2f", annot_kws={"fontsize": 7},
        linewidths=0.5, cbar_kws={"label": "mean probability of the background"},
    )  # fmt: skip
    ax.set(xlabel="pixels that are", ylabel="")
    ax.tick_params(axis="y", rotation=0)


def rule_points(ax: Axes, table: pd.DataFrame) -> None:
    """Precision and recall of each rule's labels for the background: small, of one teacher; large, their mean.

    `table`: `ciss.analysis.label_rules`.
    """
    for k, (rule, mine) in enumerate(table.groupby("rule", sort=False)):
        look = {**mark(k), "edgecolors": "white", "clip_on": False}
        ax.scatter(mine["recall"], mine["precision"], s=22, alpha=0.55, lw=0.4, **look)
        ax.scatter(mine["recall"].mean(), mine["precision"].mean(), s=110, lw=0.8, zorder=3, label=rule, **look)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall of old classes", ylabel="precision")
    ax.set_aspect("equal")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def angle_panels(table: pd.DataFrame, methods: list[str]) -> Figure:
    """Angles of new class tokens, or classifier rows, over each step: to the background's and the nearest old class's.

    `table`: `ciss.analysis.token_angles_table`; mean over seeds.
    """
    if table.empty:
        return note("no new classes: there are no angles")
    pairs, steps = {"background": "to the background's", "old": "to the nearest old class's"}, table["step"].unique()
    styles = method_styles(methods)
    figure, axes = panels(len(pairs) * len(steps), (2.9, 2.1), len(steps), sharey="row")
    for line, (pair, name) in zip(np.reshape(axes, (len(pairs), -1)), pairs.items(), strict=True):
        for ax, step in zip(line, steps, strict=True):
            mine = table[(table["pair"] == pair) & (table["step"] == step)]
            for method in methods:
                means = mine[mine["method"] == method].groupby("epochs")["angle"].mean()
                ax.plot(means.index, means, **styles[method], ms=4, lw=1.2, label=method)
            ax.set(title=f"step {step}: {name}")
        line[0].set_ylabel("angle (degrees)")
    for ax in lowest(axes):
        ax.set_xlabel("epochs into the step")
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure
