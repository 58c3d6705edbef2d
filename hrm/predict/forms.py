"""Linear forms over the quantities that a policy sets: every time and every memory part is one of these.

A form is an array [..., NUM_TERMS] of coefficients of the terms

    ONE, N, N*A_g, N*r_c, r_w, F_g, N*F_g, r_d, r_disk, S

(N batch size; A_g attention_on_gpu; r_c kv_on_gpu; r_w weights_on_gpu; F_g experts_on_gpu; r_d dense_weights_on_gpu;
r_disk weights_on_disk; S page_pool_bytes). Leading axes run over nodes of the search: ranges or single values of
(mu, n). Seconds are linear in the terms at a fixed mu, which is what makes the search a MILP.
"""

from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Form: TypeAlias = NDArray[np.float64]
"""Coefficients, shape [nodes, NUM_TERMS]."""


class Term(IntEnum):
    """Index of each term in a form."""

    ONE = 0
    N = 1
    N_ATTENTION = 2
    N_KV = 3
    WEIGHTS = 4
    EXPERTS = 5
    N_EXPERTS = 6
    DENSE = 7
    DISK = 8
    POOL = 9


NUM_TERMS = len(Term)


def form(nodes: int, **coefficients: "float | NDArray[np.float64]") -> Form:
    """A form from coefficients by term name; each is a number or an array [nodes]."""
    result = np.zeros((nodes, NUM_TERMS))
    for name, value in coefficients.items():
        result[:, Term[name]] = value
    return result


def evaluate(coefficients: Form, terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value of a form at given terms, shapes [nodes, NUM_TERMS] each -> [nodes]."""
    value: NDArray[np.float64] = np.einsum("kt,kt->k", coefficients, np.broadcast_to(terms, coefficients.shape))
    return value
