"""Draw the action units of a face: a panel of bars, or a line of text."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

COLORS = ("#9db8d2", "#1f5f99")
"""Colors of values below `THRESHOLD`, and of the others."""

THRESHOLD = 0.5
"""The decision boundary of py-feat's classifiers."""

MIN_BARS = 20
"""The bars of fewer action units leave the rest of the panel empty instead of becoming thicker."""

TOP_COUNT = 4
"""Number of action units in a line of text."""


def draw_action_units(panel: Axes, names: Sequence[str], values: NDArray[np.float32]) -> None:
    """Draw one bar from 0 to 1 for each action unit, the first on top, with name and value."""
    places = np.arange(len(names))
    panel.barh(places, np.ones(len(names)), color="0.95")
    panel.barh(places, values, color=[COLORS[int(value >= THRESHOLD)] for value in values])
    bottom = max(len(names), MIN_BARS) - 0.5
    panel.set(xlim=(0, 1), ylim=(bottom, -0.5), xticks=(0, THRESHOLD, 1))
    panel.xaxis.tick_top()
    panel.set_yticks(places, names)
    panel.tick_params(length=0, labelsize=9)
    panel.spines[:].set_visible(False)
    values_axis = panel.secondary_yaxis("right")
    values_axis.set_yticks(places, [f"{value:.2f}" for value in values])
    values_axis.tick_params(length=0, labelsize=9)
    values_axis.spines[:].set_visible(False)


def top_action_units(names: Sequence[str], values: NDArray[np.float32]) -> str:
    """Return the largest values with their names, and how many others are at least `THRESHOLD`."""
    order = np.argsort(-values, kind="stable")
    top = [f"{names[index]} {values[index]:.2f}" for index in order[:TOP_COUNT]]
    further = int((values[order[TOP_COUNT:]] >= THRESHOLD).sum())
    return "   ".join([*top, f"+{further}"] if further else top)
