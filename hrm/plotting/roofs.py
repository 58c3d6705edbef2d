"""Log-log axes with the roofs of a machine."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from hrm.plotting.label_spots import along_slope, on_flat
from hrm.plotting.labels import Label
from hrm.plotting.style import COLOURS, light_grid, plain_log_ticks
from hrm.roofline.chart import Roof
from hrm.spec.units import format_flops_rate, format_rate

LEFT_OF_DATA, RIGHT_OF_DATA = 8.0, 6.0
BELOW_DATA, ABOVE_ROOFS = 3.5, 4.0
MARKERS = {"gpu": "o", "cpu": "s", "htod": "D", "disk": "v", "gpu_to_gpu": "^"}


def roof_axes(ax: Axes, roofs: tuple[Roof, ...], intensities: Sequence[float], rates: Sequence[float]) -> None:
    """Sets limits around the data and the ridge points, and draws every roof: datasheet dashed, measured solid."""
    ridges = [_ceiling(r, roofs).peak / r.value for r in roofs if not r.is_compute]
    low, high = min([*intensities, *ridges]) / LEFT_OF_DATA, max([*intensities, *ridges]) * RIGHT_OF_DATA
    slowest = min(r.value for r in roofs if not r.is_compute and r.level != "disk")
    bottom = min([*rates, slowest * low * 10]) / BELOW_DATA
    top = max(r.peak for r in roofs if r.is_compute) * ABOVE_ROOFS
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    ax.set_xlabel("operational intensity (flops per byte moved at that level)")
    ax.set_ylabel("performance (flop/s)")
    plain_log_ticks(ax)
    light_grid(ax)
    for roof in roofs:
        if roof.achieved is not None:
            _draw(ax, roof, roof.peak, roofs, thin=True)
        _draw(ax, roof, roof.value, roofs, thin=False)


def roof_labels(ax: Axes, roofs: tuple[Roof, ...]) -> list[Label]:
    """A label for every roof: its name and its value, the measured one where there is one."""
    labels = []
    for roof in roofs:
        colour = COLOURS[roof.level]
        if roof.is_compute:
            text = f"{roof.label}  {format_flops_rate(roof.value)}"
            labels.append(on_flat(ax, text, colour, roof.peak, roof.value, _start(roof, roof.value, roofs, ax)))
        else:
            text, end = f"{roof.label}  {format_rate(roof.value)}", _ceiling(roof, roofs).value / roof.value
            labels.append(along_slope(ax, text, colour, roof.peak, roof.value, end))
    return labels


def _draw(ax: Axes, roof: Roof, value: float, roofs: tuple[Roof, ...], thin: bool) -> None:
    """A datasheet roof is dashed, thin where a measured one stands beside it."""
    low, high = ax.get_xlim()
    if roof.is_compute:
        xs, ys = [_start(roof, value, roofs, ax), high], [value, value]
    else:
        end = _ceiling(roof, roofs).peak / value
        xs, ys = [low, end], [value * low, value * end]
    measured = roof.achieved is not None and not thin
    kind = "measured" if measured else "datasheet"
    ax.plot(xs, ys, color=COLOURS[roof.level], linestyle="-" if measured else (0, (4, 2)), zorder=2,
            linewidth=1.4 if thin else 2.6, label=f"{roof.label}, {kind}", solid_capstyle="butt")  # fmt: skip


def _start(roof: Roof, value: float, roofs: tuple[Roof, ...], ax: Axes) -> float:
    """Intensity at which a flat roof begins: the ridge of its own memory's datasheet slope."""
    own = [r.peak for r in roofs if not r.is_compute and r.level == roof.level]
    return value / max(own) if own else ax.get_xlim()[0]


def _ceiling(roof: Roof, roofs: tuple[Roof, ...]) -> Roof:
    """The compute roof that limits a slope: the CPU's for CPU memory, else the GPU's."""
    level = "cpu" if roof.level == "cpu" else "gpu"
    return next(r for r in roofs if r.is_compute and r.level == level)
