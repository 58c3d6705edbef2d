"""An operator's path under the roofs as the batch size N and the micro-batch size mu grow."""

import numpy as np
from matplotlib.axes import Axes

from hrm.plotting.label_spots import around
from hrm.plotting.labels import write_labels
from hrm.plotting.page import to_page
from hrm.plotting.roofs import MARKERS, roof_axes, roof_labels
from hrm.plotting.style import COLOURS, fit_title
from hrm.roofline.chart import Trajectory

SIZES = {"htod": 14.0, "gpu": 8.0}  # where N = mu both marks lie on each other
PATHS = {"htod": "over the link: set by N", "gpu": "in GPU memory: set by mu"}
APART = 3.0


def plot_trajectory(trajectory: Trajectory, ax: Axes) -> Axes:
    """Two paths: against bytes over the link (set by N) and against bytes in GPU memory (set by mu).

    Each step is one thin horizontal line between them.
    """
    steps = trajectory.steps
    rates = [s.flops_per_s for s in steps]
    far, near = [s.far_intensity for s in steps], [s.near_intensity for s in steps]
    roof_axes(ax, trajectory.roofs, [*far, *near], rates)
    fit_title(ax, trajectory.title)
    labels, markers = [], []
    for level, xs in (("htod", far), ("gpu", near)):
        ax.plot(xs, rates, "-", marker=MARKERS[level], color=COLOURS[level], markersize=SIZES[level], linewidth=1.6,
                zorder=5, markeredgecolor="white", label=f"path at {level}")  # fmt: skip
        markers += [(*to_page(ax, x, y), SIZES[level] / 2) for x, y in zip(xs, rates, strict=True)]
    for step in steps:
        ends = [step.near_intensity, step.far_intensity]
        ax.plot(ends, [step.flops_per_s] * 2, ":", color=COLOURS["text"], linewidth=1.2, zorder=4)
        text = f"N = {step.batch_size:,}, mu = {step.micro_batch_size:,}"
        labels.append(around(ax, text, COLOURS["text"], max(ends), step.flops_per_s, SIZES["htod"] / 2, (1, 0)))
    apart = [s for s in steps if s.far_intensity > APART * s.near_intensity]
    if apart:
        first, middle = apart[0], apart[len(apart) // 2 - 1 if len(apart) > 1 else 0]
        radius, rate = SIZES["htod"] / 2, first.flops_per_s
        labels.append(around(ax, PATHS["gpu"], COLOURS["gpu"], first.near_intensity, rate, radius, (-1, 0)))
        rate = middle.flops_per_s
        labels.append(around(ax, PATHS["htod"], COLOURS["htod"], middle.far_intensity, rate, radius, (0, -1)))
    boxes = np.array([(x - r, y - r, x + r, y + r) for x, y, r in markers])
    write_labels(ax, [*labels, *roof_labels(ax, trajectory.roofs)], boxes)
    return ax
