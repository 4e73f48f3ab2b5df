"""The methods side by side."""

from collections.abc import Iterable
from itertools import cycle, product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ciss.analysis.figures.style import is_joint, method_styles, note_in, step_ticks

# from a mark to its label: first beside, over and under it, then askew
SIDES = [(np.cos(turn), np.sin(turn)) for turn in np.pi / 8 * np.array([0, 8, 4, 12, 2, 6, 14, 10, 1, 7, 15, 9, 3, 5])]
AWAY = (8, 14, 24, 36, 52, 70, 90)  # points
RADIUS = {"mean": 6, "joint": 8, "run": 4}  # points that a mark covers around its place
REFERENCES = ("finetune", "mib")  # what differences are shown to


def method_lines(ax: Axes, table: pd.DataFrame, x: str, y: str, methods: list[str] | None = None) -> None:
    """A line a method: mean over seeds and orders, whiskers of one standard deviation where there are several."""
    methods = methods or list(dict.fromkeys(table["method"]))
    styles = method_styles(methods)
    for k, method in enumerate(methods):
        groups = table[table["method"] == method].groupby(x)[y]
        mean, spread = groups.mean(), groups.std().fillna(0)
        several = bool(spread.any())
        ax.errorbar(
            mean.index + (0.03 * (k - (len(methods) - 1) / 2) if several else 0),  # whiskers beside each other
            mean,
            yerr=spread if several else None,
            label=method,
            ms=5,
            mew=0.5,
            capsize=2,
            **styles[method],
        )
    ax.set(xlabel=x, ylabel=y)


def score_curves(axes: Iterable[Axes], table: pd.DataFrame, title: str = "") -> None:
    """Three axes: mIoU of all, old and new classes after every step, joint training as a dotted line.

    `table`: columns method, step, all, old, new, a row a run and step. One scale for the three.
    """
    if table[["all", "old", "new"]].isna().all(axis=None):
        for ax in axes:
            note_in(ax, "No score is defined." if len(table) else "No run has a score.")
        return
    methods = [method for method in dict.fromkeys(table["method"]) if not is_joint(method)]
    joint = {name: rows for name, rows in table.groupby("method", sort=False) if is_joint(name)}
    top = _top(table[["all", "old", "new"]])
    handles, labels = [], []
    names = {"all": "all: every class so far", "old": "old: base classes", "new": "new: later classes"}
    for ax, (score, name) in zip(axes, names.items(), strict=True):
        method_lines(ax, table[table["method"].isin(methods)], "step", score, methods)
        for (method, rows), dash in zip(joint.items(), cycle((":", "-.", "--")), strict=False):
            if np.isfinite(rows[score]).any():
                ax.axhline(rows[score].mean(), color="black", ls=dash, lw=1.2, label=f"{method} (all at once)")
        if table[score].isna().all():
            ax.text(0.5, 0.5, f"no {score} classes", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
        steps = sorted(int(step) for step in table["step"].unique())
        ax.set(
            ylim=(0, top),
            xlim=(steps[0] - 0.3, steps[-1] + 0.3),
            xlabel="after step",
            ylabel="mIoU" if score == "all" else "",
        )
        step_ticks(ax, steps)
        ax.set_title(f"{title}: {name}" if title and score == "all" else name, fontsize=9, loc="left")
        handles, labels = (a + b for a, b in zip((handles, labels), ax.get_legend_handles_labels(), strict=True))
    found = dict(zip(labels, handles, strict=True))  # joint training may have a score in one of the panels only
    handles, labels = list(found.values()), list(found)
    last = sorted(range(len(labels)), key=lambda k: labels[k].endswith("(all at once)"))
    ax.legend(
        [handles[k] for k in last], [labels[k] for k in last],
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1),
    )  # fmt: skip


def stability_scatter(ax: Axes, runs: pd.DataFrame, title: str = "") -> None:
    """What is kept against what is learnt: a large mark for the mean of each method, a small one for each run where
    there are several, grey lines of equal harmonic mean. Labels stand beside the marks, where there is room.

    `runs`: columns method, old, new: mIoU after the last step. Methods without either score are left out. Call it when
    the size of the axes is final: labels are placed by what they cover.
    """
    runs = runs[np.isfinite(runs["old"]) & np.isfinite(runs["new"])]
    top = _top(runs[["old", "new"]])
    ticks = np.arange(0, top + 0.01, 0.2 if top > 0.5 else 0.1 if top > 0.2 else 0.05)
    ax.set(xlim=(0, top), ylim=(0, top), xticks=ticks, yticks=ticks, aspect="equal", title=title)
    ax.set_xlabel("stability: mIoU of the base classes (old)")
    ax.set_ylabel("plasticity: mIoU of the later classes (new)")
    _harmonics(ax, top)
    if runs.empty:
        words = "No method has a score of old and one of new classes."
        ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
        return
    places = {}
    for method, style in method_styles(runs["method"]).items():
        mine = runs[runs["method"] == method]
        if len(mine) > 1:
            small = {**style, "markeredgecolor": "none"}
            ax.plot(mine["old"], mine["new"], ls="", ms=7 if is_joint(method) else 5, alpha=0.7, clip_on=False, **small)
        if len(mine):
            places[method] = (mine["old"].mean(), mine["new"].mean())
            ax.plot(*places[method], ls="", ms=14 if is_joint(method) else 10, clip_on=False, zorder=3, **style)
    covered = [(place, RADIUS["joint" if is_joint(name) else "mean"]) for name, place in places.items()]
    covered += [(place, RADIUS["run"]) for place in zip(runs["old"], runs["new"], strict=True)]
    _label(ax, {f"{name} (upper bound)" if is_joint(name) else name: place for name, place in places.items()}, covered)


def cost_bars(axes: Iterable[Axes], table: pd.DataFrame, title: str = "") -> None:
    """Three axes: training seconds, peak memory and parameters of each method, means with whiskers of one standard
    deviation where there are several runs; behind each bar its number and how often finetune's it is.

    `table`: see `ciss.analysis.cost_table`, indexed by method.
    """
    if table.empty:
        for ax in axes:
            note_in(ax, "No run has a cost.")
        return
    styles = method_styles(table.index)
    parts = (
        ("training_seconds", "time", 1, "training, own steps, seconds\n(hatched: preparation)"),
        ("peak_memory_mib", "memory", 1024, "peak memory, GiB"),
        ("parameters", "parameters", 1e6, "parameters, millions"),
    )
    for k, (ax, (name, short, unit, label)) in enumerate(zip(axes, parts, strict=True)):
        values, spread = table[name] / unit, table[f"{name}_std"].fillna(0) / unit
        places, reach = np.arange(len(table)), values.fillna(0) + spread
        if values.isna().all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", fontsize=8.5)
        ax.barh(places, values, 0.62, color=[styles[m]["color"] for m in table.index], edgecolor="white")
        if spread.any():
            ax.errorbar(values, places, xerr=spread, ls="", color="#333333", capsize=2, lw=1)
        if name == "training_seconds":
            ready = table["preparation_seconds"]
            ax.barh(places, ready, 0.62, color="none", edgecolor="#222222", hatch="////", lw=0.6)
        for place, method in enumerate(table.index):
            times = table.loc[method, f"relative_{short}"]
            text = f"{values[method]:.3g}" + (f"  (×{times:.2f})" if np.isfinite(times) else "")
            if np.isfinite(values[method]):
                ax.annotate(text, (reach[method], place), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
        ax.set_yticks(places if k == 0 else [], table.index if k == 0 else [])
        ax.set(xlim=(0, 1.5 * (reach.max() or 1)), ylim=(len(table) - 0.4, -0.6))
        ax.set_xlabel(label, fontsize=9)
        ax.set_title(title if k == 0 else "", fontsize=9, loc="left")
        ax.locator_params(axis="x", nbins=5)
        ax.tick_params(axis="x", labelsize=8)


def paired_points(axes: Iterable[Axes], runs: pd.DataFrame, pairs: pd.DataFrame, title: str = "") -> None:
    """Differences in `all` to each of REFERENCES, an axis each and a row a method: a small dot for each seed (and order
    of classes), and where there are several a bar for the 95 % interval of their mean, which is the line in it; behind
    them the mean as a number and how many pairs are above 0. Joint training, which is no competitor, is left out.

    `runs`: columns method, seed, order, all; `pairs`: `ciss.analysis.paired_table` of the same runs. An arrow stands
    where an interval is broader than the axis, which is made for the dots.
    """
    methods = [method for method in dict.fromkeys(runs["method"]) if not is_joint(method)]
    scores = runs.pivot(index=["order", "seed"], columns="method", values="all")
    same = "same seed and order" if runs["order"].nunique() > 1 else "same seed"
    for k, (ax, against) in enumerate(zip(axes, REFERENCES, strict=True)):
        mine = pairs[(pairs["metric"] == "all") & (pairs["against"] == against)].set_index("method")
        apart = {m: (scores[m] - scores[against]).dropna().to_numpy() for m in methods if m in mine.index}
        ax.set_xlim(*_spread(np.concatenate([[0.0], *apart.values()]), mine.loc[list(apart), ["low", "high"]]))
        ax.set(ylim=(len(methods) - 0.4, -0.6), xlabel=f"difference in mIoU, {same}")
        ax.set_yticks(range(len(methods)), methods if k == 0 else [])
        ax.set_title(f"{title}: all, against {against}" if title and k == 0 else f"all, against {against}", loc="left")
        ax.locator_params(axis="x", nbins=5)
        ax.grid(axis="y", color="#E5E5E5", lw=0.6)
        ax.set_axisbelow(True)
        for place, (method, style) in enumerate(zip(methods, method_styles(methods).values(), strict=False)):
            if method in apart:
                _differences(ax, place, apart[method], mine.loc[method], style)
            elif method == against:
                _beside(ax, place, "the reference", color="#666666")
        if apart:
            ax.axvline(0, color="#666666", lw=1, zorder=0)
        else:
            words = f"{against} was not run."
            if against in methods:
                words = f"No other method has a score\nand a seed that {against} has."
            ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center")
            ax.set_xticks([])


def _spread(dots: np.ndarray, ends: pd.DataFrame) -> tuple[float, float]:
    """The ends of an axis that holds all dots, and intervals as far as they leave the dots half of its width."""
    room = float(np.ptp(dots)) or 0.1
    low = max(np.nanmin([dots.min(), *ends["low"]]), dots.min() - room / 2)
    high = min(np.nanmax([dots.max(), *ends["high"]]), dots.max() + room / 2)
    return low - 0.05 * room, high + 0.05 * room


def _differences(ax: Axes, place: int, dots: np.ndarray, row: pd.Series, style: dict) -> None:
    """A row of `paired_points`."""
    several, (left, right) = len(dots) > 1, ax.get_xlim()
    ax.plot(dots, np.full(len(dots), place + 0.27 * several), ls="", ms=4.5, mew=0.5, zorder=3, **style)
    if several:
        dark = {"color": "#222222", "zorder": 3}
        width = row["high"] - row["low"]
        ax.barh(place, width, 0.26, left=row["low"], color=style["color"], edgecolor="#333333", lw=0.5, zorder=2)
        ax.plot(row["mean"], place, ls="", marker="|", ms=10, mew=1.8, **dark)
        for beyond, edge, marker in ((row["low"] < left, left, "<"), (row["high"] > right, right, ">")):
            if beyond:
                ax.plot(edge, place, ls="", marker=marker, ms=6, clip_on=False, **dark)
    counts = f"  {row['above']}/{row['pairs']}" if several else ""
    _beside(ax, place, f"{round(row['mean'], 3) + 0.0:+.3f}{counts}")


def _beside(ax: Axes, place: int, text: str, **options) -> None:
    """Text right of the axes, at the height of a row."""
    ax.annotate(
        text, (1, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
        fontsize=7.5, annotation_clip=False, **options,
    )  # fmt: skip


def step_strips(blocks: list[dict], steps: list[int], size: float = 1.0) -> Figure:
    """The same image after every step: a block for each image, its columns steps, its rows the truth as it is scored
    after the step and what each method says; above them the image.

    A block: `image` (H,W,3), `rows`: name -> pictures (H,W,3) by step; a step that a row lacks stays empty. `size`: a
    cell's width in inches.
    """
    rows = list(dict.fromkeys(name for block in blocks for name in block["rows"]))
    tall = size * min(1.5, max(b["image"].shape[0] / b["image"].shape[1] for b in blocks))
    names, gap, head, room = 1.15, 0.25, 0.26, 0.05
    block_width = len(steps) * (size + room)
    width = names + len(blocks) * block_width + (len(blocks) - 1) * gap
    height = head + (len(rows) + 1) * (tall + room)
    figure = plt.figure(figsize=(width, height))

    def cell(left: float, row: int) -> Axes:
        down = height - (row + 1) * (tall + room) - (head if row else 0)
        ax = figure.add_axes((left / width, down / height, size / width, tall / height))
        ax.set_axis_off()
        return ax

    for k, block in enumerate(blocks):
        start = names + k * (block_width + gap)
        cell(start + (block_width - size - room) / 2, 0).imshow(block["image"], interpolation="nearest")
        if k == 0:
            middle = 1 - tall / 2 / height
            figure.text((names - 0.08 * size) / width, middle, "image", ha="right", va="center", fontsize=9)
        for column, step in enumerate(steps):
            for row, name in enumerate(rows, start=1):
                ax = cell(start + column * (size + room), row)
                if (found := block["rows"].get(name, {}).get(step)) is not None:
                    ax.imshow(found, interpolation="nearest")
                if row == 1:
                    ax.text(0.5, 1.04, f"after step {step}", transform=ax.transAxes, ha="center", fontsize=8)
                if k == column == 0:
                    ax.text(-0.08, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=9)
    return figure


def _top(scores: pd.DataFrame) -> float:
    """The end of an axis of mIoU: the next tenth above the largest, with some room."""
    largest = np.nanmax(scores.to_numpy(float), initial=0)
    return float(min(1.0, max(0.1, np.ceil(10.6 * largest) / 10)))


def _harmonics(ax: Axes, top: float) -> None:
    """Lines of equal 2 old new / (old + new); their values stand at the right edge."""
    for value in np.arange(1, 10) / 10 if top > 0.5 else np.arange(1, 20) / 20:
        if value < 0.98 * top:  # the line meets the edges of the axes
            # new = h old / (2 old - h): at old = top, and at new = top where old is the same
            edge = value * top / (2 * top - value)
            old = np.linspace(edge, top, 100)
            ax.plot(old, value * old / (2 * old - value), color="#BBBBBB", lw=0.7, ls="--", zorder=0)
            ax.annotate(
                f"{value:g}", (top, edge), (3, 0), textcoords="offset points", va="center", fontsize=7, color="#666666"
            )
    ax.annotate(
        "harmonic mean", (1, 0.5), (26, 0), xycoords="axes fraction", textcoords="offset points", rotation=90,
        va="center", ha="center", fontsize=7.5, color="#666666",
    )  # fmt: skip


def _label(ax: Axes, places: dict[str, tuple[float, float]], marks: list[tuple[tuple[float, float], int]]) -> None:
    """Names beside their places: at the first distance and side where they cover no mark, no other name and no edge.
    Sides away from the nearest other place come first, and a thin line leads to a name that stands further away, so
    that nobody takes it for the neighbour's."""
    ax.apply_aspect()
    inside, point, taken = ax.get_window_extent(), ax.figure.dpi / 72, []
    for place, radius in marks:
        (x, y), half = ax.transData.transform(place), radius * point - 1
        taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    centres = ax.transData.transform(list(places.values()))
    for k, (name, place) in enumerate(places.items()):
        others = np.delete(centres, k, axis=0) - centres[k]
        near = others[np.hypot(*others.T).argmin()] if len(others) else np.zeros(2)
        if np.hypot(*near) > 40 * point:
            near = np.zeros(2)  # far enough for every side
        sides = sorted(SIDES, key=lambda side: round(float(np.dot(side, near)), 6))
        for away, (right, up) in product(AWAY, sides):
            label = ax.annotate(
                name, place, (right * away, up * away), textcoords="offset points", fontsize=8.5, zorder=5,
                ha=_towards(right, "left", "right"), va=_towards(up, "bottom", "top"),
            )  # fmt: skip
            box = label.get_window_extent()
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
        else:  # no room anywhere: better covered than missing
            ax.annotate(name, place, (AWAY[0], 0), textcoords="offset points", va="center", fontsize=8.5, zorder=5)
            continue
        if away > AWAY[0]:
            line = {"arrowstyle": "-", "lw": 0.6, "color": "#666666", "shrinkA": 0, "shrinkB": 4}
            ax.annotate("", place, (right * away, up * away), textcoords="offset points", arrowprops=line)


def _towards(part: float, positive: str, negative: str) -> str:
    """How a text is aligned that stands on this side of its place."""
    return "center" if abs(part) < 0.1 else positive if part > 0 else negative
