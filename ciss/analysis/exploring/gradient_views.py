"""The figures of `explore_gradients`, each of one view: two methods beside each other with the same scales."""

import numpy as np
from matplotlib.figure import Figure

from ciss.analysis.exploring.figures import conflict_bars, cosine_map, gradient_bars, side_by_side
from ciss.analysis.exploring.pictures import method_pictures
from ciss.analysis.exploring.views import View
from ciss.analysis.forgetting.gradients import gradient_conflict, gradients_by_class, gradients_by_step, term_cosines
from ciss.inspection.step import Step


def pixel_gradients(view: View) -> Figure:
    """Labels, prediction, and gradients of the pixels of one image."""
    rows, name = {}, view.class_name
    for title, step_of_run in view.steps.items():
        arrays = step_of_run.arrays(view.image, view.moment)
        labelled = arrays.labels == view.position
        of_features = step_of_run.feature_gradient(view.image, view.position, view.layer, view.moment)
        rows[_with_weights(title, step_of_run)] = [
            ("learnt labels", arrays.labels),
            ("prediction", arrays.probabilities.argmax(axis=0), arrays.truth),
            ("gradient magnitude", arrays.gradient, "|∂CE/∂z|", 1),
            ("pixel weight", arrays.weight, "weight", None),
            (f"at the logit of {name}", arrays.class_gradient(view.position), "|∂CE/∂z|", 1, labelled),
            (f"of {name}, {view.layer_words}", of_features, "|∂L/∂f|", None, labelled),
        ]
    return method_pictures(view.image_panels(), rows, view.first.classes)


def class_gradients(view: View) -> Figure:
    """Gradients and weights of the pixels of each class, over all images."""
    tables = {}
    for title, step_of_run in view.steps.items():
        pixels = step_of_run.pixel_gradients(view.moment)
        tables[_with_weights(title, step_of_run)] = gradients_by_class(*pixels, step_of_run.introduced, view.names)
    return gradient_bars(tables)


def layer_conflicts(view: View) -> Figure:
    """Cosine of the gradients of two losses in every layer."""
    tables, (first, second) = {}, view.losses
    for title, step_of_run in view.steps.items():
        gradients = step_of_run.gradients(view.moment)
        table = gradient_conflict(gradients[first], gradients[second])
        single = table["cosine"][:-1].dropna()
        table["layer"] = [parameter_words(layer) for layer in table["layer"]]
        losses = f"{first} and {second}".replace("_", " ")
        tables[f"{title}: {losses},\n{(single < 0).sum()} of {len(single)} layers below 0"] = table
    rows = max(map(len, tables.values()))
    return side_by_side(conflict_bars, tables, 0.18 * rows + 1.1)


def loss_cosines(view: View) -> Figure:
    """Cosines of the gradients of all losses, over all parameters."""
    tables = {}
    for title, step_of_run in view.steps.items():
        table = term_cosines(step_of_run.gradients(view.moment))
        words = [name.replace("_", " ") for name in table]
        tables[title] = table.set_axis(words, axis=0).set_axis(words, axis=1)
    return side_by_side(cosine_map, tables, 0.34 * max(map(len, tables.values())) + 2.1)


def _with_weights(title: str, step_of_run: Step) -> str:
    """The title of a method, which says if the pixel weights are those of GSC, because the method has none."""
    return title if step_of_run.own_weights else f"{title}, weights of gsc"


def parameter_words(layer: str) -> str:
    """A module with parameters in words: "classifier, step 1" for the rows of the classes of step 1."""
    if layer.startswith("decoder.classifier.groups."):
        return f"classifier, step {layer.rpartition('.')[2]}"
    return layer.replace(".", " ").replace("_", " ")


def checks(view: View) -> str:
    """What holds for the gradients of every run at its step, a line each."""
    step_of_run = next(iter(view.steps.values()))
    table = gradients_by_class(*step_of_run.pixel_gradients(), step_of_run.introduced, view.names)
    cosines = term_cosines(step_of_run.gradients(view.moment)).to_numpy()
    old = gradients_by_step(table)[:-1].dropna()
    lines = {
        "mean weight of every earlier step is 1": bool(np.allclose(old["weight"], 1, atol=1e-3)),
        "shares add up": bool(np.isclose(table["share"].sum(), 1)),
        "cosines within -1 and 1": bool(np.nanmax(np.abs(cosines)) <= 1),
        "terms of the method": ", ".join(name for name in step_of_run.terms if "method" in name),
        "classes": f"{len(table)} of steps {sorted(set(table['introduced'].tolist()))}",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
