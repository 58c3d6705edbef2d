"""Predicted against measured bytes of both memories."""

from collections.abc import Mapping

from hrm.predict.prediction import Prediction
from runtime.validation.measure import MeasuredMemory
from runtime.validation.report import MemoryCheck

REST = "activations"  # what the allocator's peak holds beside the parts that are counted tensor by tensor
SAME_PART = {"dense_buffers": "dense_weights"}  # predicted apart, measured together
CPU_BUFFERS = ("prefill_hidden_states", "transit_buffers")


def gpu_memory_check(prediction: Prediction, measured: MeasuredMemory) -> MemoryCheck:
    """The whole peak on a GPU; without one, the parts whose tensors are known."""
    predicted = _joined(prediction.gpu_memory.parts, SAME_PART)
    found = {name: float(size) for name, size in measured.gpu_parts.items()}
    if measured.gpu_peak is None:
        known = {name: size for name, size in predicted.items() if name in found}
        return _check(known, found, sum(found.values()), None)
    found[REST] = measured.gpu_peak - sum(found.values())
    return _check(predicted, found, float(measured.gpu_peak), float(measured.gpu_reserved or 0))


def cpu_memory_check(prediction: Prediction, measured: MeasuredMemory) -> MemoryCheck:
    """Tensors and buffers, without Python and its libraries."""
    predicted = _joined(prediction.cpu_memory.parts, dict.fromkeys(CPU_BUFFERS, "buffers"))
    found = {name: float(size) for name, size in measured.cpu_parts.items()}
    return _check(predicted, found, sum(found.values()), None)


def _joined(parts: Mapping[str, float], same: Mapping[str, str]) -> dict[str, float]:
    joined: dict[str, float] = {}
    for name, size in parts.items():
        key = same.get(name, name)
        joined[key] = joined.get(key, 0.0) + size
    return joined


def _check(
    predicted: dict[str, float], measured: dict[str, float], total: float, reserved: float | None
) -> MemoryCheck:
    return MemoryCheck(
        predicted=predicted,
        measured=measured,
        predicted_total=sum(predicted.values()),
        measured_total=total,
        reserved=reserved,
    )
