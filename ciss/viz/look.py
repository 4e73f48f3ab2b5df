"""What all figures share. Colours are told apart by the colour-blind and in grey: markers, hatches or numbers go with
them."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

# Okabe and Ito's colours, dark and light in turn
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"


def style() -> None:
    """Matplotlib's settings for every figure of the project."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.parse_math": False,  # class names may have any characters
        }
    )


def note(text: str) -> Figure:
    """A figure that says why there is none."""
    figure, ax = plt.subplots(figsize=(6, 0.8))
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    ax.set_axis_off()
    return figure
