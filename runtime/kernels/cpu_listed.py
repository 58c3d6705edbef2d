"""Listed experts of tokens that chose others too, as one call of the compiled kernel of `cpu_experts`.

T tokens, k top_k, E experts, E' listed experts, H hidden_size, I intermediate_size.
"""

import ctypes

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runtime.host_counter import Signal
from runtime.kernels.cpu_experts import listed_experts_kernel
from runtime.kernels.kernel_dtypes import DTYPES

Ints = NDArray[np.int64]


class _Listed(ctypes.Structure):
    """`struct Listed` of cpu_experts.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "gates", "experts", "listed", "weights", "each", "out")),
        *((name, ctypes.c_void_p) for name in ("sure", "done")),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "all", "tokens", "hidden", "intermediate", "top_k", "most_rows")
        ),
        *((name, ctypes.c_int32) for name in ("threads", "dtype", "gate_dtype")),
        ("signal", ctypes.c_uint32),
    )


def all_in_one_call(
    x: Tensor,
    gates: Tensor,
    experts: Ints,
    listed: Ints,
    addresses: Ints,
    intermediate: int,
    each: Tensor,
    out: Tensor,
    threads: int,
    most_rows: int,
    signal: Signal | None = None,
) -> bool:
    """As `listed_experts`, with `each` to work in, [T k, H] fp32; False, with nothing done, where there is no compiled
    kernel, x [T, H] and out have different dtypes, or an expert has more than most_rows rows.

    Raises ValueError for arrays that do not fit together.
    """
    kernel = listed_experts_kernel()
    if kernel is None or x.dtype != out.dtype or not {x.dtype, gates.dtype} <= DTYPES.keys():
        return False
    _check(x, gates, experts, listed, addresses, each, out)
    places = x.data_ptr(), gates.data_ptr(), _at(experts), _at(listed), _at(addresses), each.data_ptr(), out.data_ptr()
    told = (0, 0, 0) if signal is None else (signal.sure, signal.done, signal.value)
    sizes = len(listed), len(addresses), *x.shape, intermediate, experts.shape[1], most_rows
    kinds = threads, DTYPES[x.dtype], DTYPES[gates.dtype]
    found = kernel(ctypes.byref(_Listed(*places, *told[:2], *sizes, *kinds, told[2])))
    if found < 0:
        raise MemoryError(f"no memory for {len(listed)} experts of {len(x)} tokens")
    return bool(found == 0)


def _at(array: Ints) -> int:
    return int(array.ctypes.data)


def _check(x: Tensor, gates: Tensor, experts: Ints, listed: Ints, addresses: Ints, each: Tensor, out: Tensor) -> None:
    tokens, shape = x.shape[0], experts.shape
    fits = gates.shape == shape and out.shape == x.shape and shape[0] == tokens and addresses.shape[1:] == (2,)
    if not fits or each.shape[0] < experts.size or each.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"x {list(x.shape)}, gates {list(gates.shape)}, experts {list(shape)}, each {list(each.shape)}, out "
            f"{list(out.shape)}: expected [T, H], [T, k], [T, k], [T k, H], [T, H]"
        )
    if not all(t.is_contiguous() for t in (x, gates, each, out)) or not experts.flags.c_contiguous:
        raise ValueError("listed experts: every array must be contiguous")
    most = len(addresses)
    if experts.size and not 0 <= experts.min() <= experts.max() < most:
        raise ValueError(f"experts from {experts.min()} to {experts.max()}: there are {most}")
    if len(listed) and not 0 <= listed.min() <= listed.max() < most:
        raise ValueError(f"listed experts from {listed.min()} to {listed.max()}: there are {most}")
