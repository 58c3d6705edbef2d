"""Routing traces: which experts a model's routers chose, token by token, as recorded on real prompts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """The experts that each token was routed to. As a file, an .npz archive of arrays of these names.

    model: name of the model (a string). num_experts: routed experts per layer (one whole number).
    experts: integers [tokens, layers, top_k]; MoE layers only, in the order of the model.
    prompt: integers [tokens], the prompt that a token belongs to.
    step: integers [tokens]; 0 for a prefill token, k for the token of a prompt's k-th decode step (1, 2, 3, ...).
    gate_weights: floats as `experts`, or absent.
    tokens: integers [tokens], the token ids, or absent. A row's experts are those that this token chose as input. With
    ids, the rows of a prompt go from its first token to its last (rows of prompts may alternate).
    """

    model: str
    num_experts: int
    experts: NDArray[np.integer[Any]]
    prompt: NDArray[np.integer[Any]]
    step: NDArray[np.integer[Any]]
    gate_weights: NDArray[np.floating[Any]] | None = None
    tokens: NDArray[np.integer[Any]] | None = None
