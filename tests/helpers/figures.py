"""What a figure shows, read back after it is drawn."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def draw(figure: Figure | None = None) -> Figure:
    """Draws a figure, or the current one: layout and text are settled afterwards."""
    figure = figure or plt.gcf()
    figure.canvas.draw()
    return figure


def strings(texts) -> list[str]:
    """The words of text artists, such as tick labels."""
    return [text.get_text() for text in texts]


def words(figure: Figure) -> list[str]:
    """The words that are written into the axes of a figure."""
    return [text for ax in figure.axes for text in strings(ax.texts)]


def legend(figure: Figure) -> list[str]:
    """The entries of a figure's first legend."""
    return strings(figure.legends[0].get_texts())
