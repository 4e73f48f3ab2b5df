"""Figures that are drawn without being shown."""

import matplotlib.pyplot as plt


def draw(figure=None) -> None:
    (figure or plt.gcf()).canvas.draw()
