"""Figures of a test are closed after it."""

import matplotlib as mpl
import pytest

from ciss.analysis.figures.style import style

mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _close():
    style()
    yield
    plt.close("all")
