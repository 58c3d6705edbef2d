"""Which number format each kind of tensor is stored in."""

from dataclasses import dataclass

from hrm.errors import ProfileError
from hrm.spec.dtypes import bytes_per_element
from hrm.spec.hardware import HardwareProfile
from hrm.spec.model import ModelSpec


@dataclass(frozen=True)
class Precision:
    """Storage formats, and from them bytes per element (scales of block formats included).

    Arithmetic runs in `activations`: weights in a narrower format are dequantised on arrival.
    """

    weights: str
    expert_weights: str
    kv_cache: str
    activations: str

    @property
    def weight_bytes(self) -> float:
        """Bytes per element of every weight except routed experts."""
        return bytes_per_element(self.weights)

    @property
    def expert_weight_bytes(self) -> float:
        """Bytes per element of routed-expert weights."""
        return bytes_per_element(self.expert_weights)

    @property
    def kv_bytes(self) -> float:
        """Bytes per element of the KV cache."""
        return bytes_per_element(self.kv_cache)

    @property
    def activation_bytes(self) -> float:
        """Bytes per element of hidden states, queries and attention output."""
        return bytes_per_element(self.activations)


def choose_precision(
    model: ModelSpec,
    profile: HardwareProfile,
    weights: str | None = None,
    kv_cache: str | None = None,
) -> Precision:
    """Formats for running `model` on `profile`'s GPU.

    Arithmetic is in the checkpoint's own dtype where the GPU has a peak for it, else in fp16 (a bf16 checkpoint on a
    T4 or V100 has to be cast; the byte count is the same). `weights` overrides the format of all weights, `kv_cache`
    that of the KV cache; otherwise weights and KV are in the arithmetic's dtype, except what the checkpoint stores
    natively in another format: experts in MXFP4 (gpt-oss), every linear in fp8 (DeepSeek-V3).

    Raises:
        ProfileError: the GPU states a peak for neither the checkpoint's dtype nor fp16.
        UnknownNameError: an unknown format.
    """
    compute = next((d for d in (model.dtype, "fp16", "fp32") if profile.has_peak("gpu", d)), None)
    if compute is None:
        raise ProfileError(
            f"{profile.name}: gpu.peak_flops has neither {model.dtype} (the dtype of {model.name}) nor fp16; add one"
        )
    stored = weights or ("fp8" if model.expert_dtype == "fp8" else compute)
    experts = weights or model.expert_dtype or stored
    chosen = Precision(stored, experts, kv_cache or compute, compute)
    for dtype in (chosen.weights, chosen.expert_weights, chosen.kv_cache):
        bytes_per_element(dtype)
    return chosen


def cpu_compute_dtype(profile: HardwareProfile, precision: Precision) -> str:
    """The CPU's arithmetic dtype: that of the activations where the CPU states a peak for it, else fp32.

    Raises:
        ProfileError: the CPU states a peak for neither.
    """
    for dtype in (precision.activations, "fp32"):
        if profile.has_peak("cpu", dtype):
            return dtype
    raise ProfileError(f"{profile.name}: cpu.peak_flops has neither {precision.activations} nor fp32; add one")
