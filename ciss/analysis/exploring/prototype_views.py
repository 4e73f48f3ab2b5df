"""The figures of `explore_prototypes`, each of one view: two methods beside each other with the same scales."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ciss.analysis.exploring.figures import (
    confusion_bars,
    drift_heatmap,
    outcome_handles,
    outcome_picture,
    projection,
    relabel_bars,
    side_by_side,
)
from ciss.analysis.exploring.pictures import method_pictures
from ciss.analysis.exploring.prototypes import (
    OUTCOMES,
    distance_maps,
    drift_table,
    label_outcomes,
    nearest_confusions,
    projection_table,
    relabel_table,
)
from ciss.analysis.exploring.views import View

GRADIENTS = ("gradient", "weight")  # maps of `explore_gradients`
# the probability that a pixel shows an old class, in words that methods share
MAPS = {
    "old, by distance": "old class, by distance",
    "old, by teacher": "old class, by teacher",
    "an old class, by teacher": "old class, by teacher",
}


def plane(view: View) -> Figure:
    """Features and prototypes in two dimensions."""

    def draw(ax: Axes, title: str) -> None:
        prototypes = view.chains[title].prototypes(view.layer, view.step)[:2]
        table, shares = projection_table(*view.steps[title].sample(view.layer), *prototypes, view.projection)
        projection(ax, table, view.names, shares)

    return side_by_side(draw, {title: title for title in view.chains}, 4.6)


def drift(view: View) -> Figure:
    """How far the prototype of each class moved in each step."""
    tables = {
        title: drift_table(*chain.prototypes(view.layer, view.step), view.first.classes)
        for title, chain in view.chains.items()
    }
    largest = np.nan_to_num([table["relative"].max() for table in tables.values()]).max()
    return side_by_side(lambda ax, table: drift_heatmap(ax, table, top=largest or None), tables, _height(view), 3.6)


def nearest_classes(view: View) -> Figure:
    """Shares of the pixels of each class whose nearest prototype is their own, the most confused one, or another."""
    layer = view.layer
    tables = {
        title: nearest_confusions(*step_of_run.points(layer), *step_of_run.known_prototypes(layer), view.names)
        for title, step_of_run in view.steps.items()
    }
    return side_by_side(confusion_bars, tables, _height(view))


def distances(view: View) -> Figure:
    """The distance of each position of one image from prototypes."""
    rows = {}
    for title, step_of_run in view.steps.items():
        arrays = step_of_run.arrays(view.image)
        features, _ = step_of_run.features(view.layer)[view.image]
        maps = distance_maps(features, *step_of_run.known_prototypes(view.layer))
        region = arrays.truth == view.position
        rows[title] = [
            ("prediction", arrays.probabilities.argmax(axis=0), arrays.truth),
            ("nearest prototype", maps.argmin(axis=0)),
            (f"distance to {view.class_name}", maps[view.position], "feature units", None, region),
            ("distance to the nearest", maps.min(axis=0), "feature units", None),
        ]
    return method_pictures(view.image_panels(), rows, view.first.classes)


def background_labels(view: View) -> Figure:
    """What the methods make of the given label background in one image, with their maps."""
    rows = {}
    for title, step_of_run in view.steps.items():
        arrays = step_of_run.arrays(view.image)
        outcomes = label_outcomes(arrays.given, arrays.labels, arrays.truth, step_of_run.old)
        maps = step_of_run.method_maps(view.image).items()
        panels = [
            (MAPS[name], values, "probability", 1) if name in MAPS else (name, values, "", None)
            for name, values in maps
            if name not in GRADIENTS
        ]
        rows[title] = [("learnt labels", arrays.labels), ("outcome", outcome_picture(outcomes)), *panels]
    shared = [*view.image_panels(), ("given labels", arrays.given)]
    return method_pictures(shared, rows, view.first.classes, handles=outcome_handles(OUTCOMES))


def label_shares(view: View) -> Figure:
    """Outcomes of the pixels with the given label background by true class, over all images."""
    tables = {
        title: relabel_table(*step_of_run.labels(), step_of_run.old, view.names)
        for title, step_of_run in view.steps.items()
    }
    return side_by_side(relabel_bars, tables, _height(view))


def all_shares(view: View) -> str:
    """`label_shares` of all pixels, a line for each method."""
    lines = []
    for title, step_of_run in view.steps.items():
        table = relabel_table(*step_of_run.labels(), step_of_run.old, view.names)
        shares = table[list(OUTCOMES[1:])].mul(table["pixels"] / table["pixels"].sum(), axis=0).sum()
        lines.append(f"{title}: " + "; ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    return "\n".join(lines)


def checks(view: View) -> str:
    """What holds for the prototypes of every run at its step, a line each."""
    step_of_run = next(iter(view.steps.values()))
    means, counts = step_of_run.known_prototypes(view.layer)
    table = relabel_table(*step_of_run.labels(), step_of_run.old, view.names).set_index("class")
    moved = drift_table(*view.first.prototypes(view.layer, view.step), view.first.classes).query("step > 0")
    lines = {
        "every prototype moved": bool((moved["drift"].dropna() > 0).all()),
        "shares add up": bool((abs(table[list(OUTCOMES[1:])].sum(axis=1) - 1) < 1e-9).all()),
        "prototypes": f"{means.shape} of classes known: {int((counts > 0).sum())}",
        "given label background": ", ".join(table.index),
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _height(view: View) -> float:
    """Inches of a figure with a row for each class."""
    return 0.32 * len(view.names) + 1.6
