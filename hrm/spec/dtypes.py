"""Bytes that one element of a tensor takes in memory, block scales included."""

from collections.abc import Mapping
from types import MappingProxyType

from hrm.spec.suggest import unknown_name

DTYPE_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 4.0,
        "bf16": 2.0,
        "fp16": 2.0,
        # E4M3, one fp32 scale per 128 x 128 block of a weight (DeepSeek-V3 technical report, section 3.3.2).
        "fp8": 1.0 + 4.0 / (128 * 128),
        # Symmetric, one fp16 scale per group of 128 along the input dimension; no zero point is stored.
        "int8": 1.0 + 2.0 / 128,
        # As int8, two elements to a byte (the group size that GPTQ and AWQ checkpoints use).
        "int4": 0.5 + 2.0 / 128,
        # OCP Microscaling Formats v1.0: E2M1 elements, one 8-bit E8M0 scale per block of 32.
        "mxfp4": 0.5 + 1.0 / 32,
    }
)


def bytes_per_element(dtype: str) -> float:
    """Average bytes per element, scales included; edges of a tensor that a block does not fill are left out.

    Raises UnknownNameError, with the closest names, for a dtype that is not in DTYPE_BYTES.
    """
    if dtype not in DTYPE_BYTES:
        raise unknown_name("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]
