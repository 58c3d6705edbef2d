"""What experts in slots add to the hidden states, step by step. T tokens, H hidden_size, k top_k, R rows in slots."""

import torch
from torch import Tensor

from hrm.roofline.sizes import EXPERT_PIECE_BYTES
from runtime.kernels.few_rows import add_few_rows, bring_few_rows, compute_few_rows, takes_few_rows
from runtime.kernels.slot_ffn import DeviceRows, bring_over, fill_step, weighted_sum
from runtime.kernels.slot_rows import rows_by_step, steps_of
from runtime.tasks.layer_plan import LayerPlan, slots_of
from runtime.tasks.state import PassState


def compute_step(state: PassState, under_way: LayerPlan, step: int) -> None:
    """What a step's experts give for every micro-batch, once they are in their slots."""
    slots, placed = slots_of(state), tuple(slot for _, slot in under_way.steps[step])
    if not placed:
        return
    if not (under_way.rows or under_way.few):
        _begin(state, under_way)
    slots.await_copies(state.device, placed)
    for j, few in under_way.few.items():
        compute_few_rows(_normed(state, j), few, step, slots.storage.matrices)
    for j, rows in under_way.rows.items():
        if j in under_way.each:
            fill_step(under_way.each[j], under_way.inputs[j], rows, step, slots.storage.weights)
        elif rows.spans[step]:
            _add(state, under_way, j, _outputs(state, j, rows, step))
    slots.note_use(state.device, placed)


def finish_sums(state: PassState, under_way: LayerPlan, layer: int) -> None:
    """Adds everything but what the CPU computes to the hidden states; the layer's slots may go to others."""
    for j, each in under_way.each.items():
        _add(state, under_way, j, each.index_select(0, under_way.rows[j].places))
    for j, few in under_way.few.items():
        state.hidden[j] = add_few_rows(state.hidden[j], few, _gates(state, j))
    for j in state.members(None):
        if j in under_way.sums:
            state.hidden[j] = state.hidden[j] + under_way.sums.pop(j).to(state.hidden[j].dtype)
        if not state.uses_cpu_experts(layer, j):
            del state.routed[j]
    under_way.rows, under_way.inputs, under_way.each, under_way.few = {}, {}, {}, {}
    slots_of(state).complete(under_way.place)


def _begin(state: PassState, under_way: LayerPlan) -> None:
    """Indices of all steps to the device; where their outputs are little memory, also all rows, in order of steps."""
    config, slots = state.memory.config, slots_of(state)
    sizes = {j: chosen.size for j, chosen in under_way.experts.items()}
    staging = state.memory.staging(f"slots of layer {under_way.place}", None)
    pairs, touched = sum(sizes.values()), sum(len(step) for step in under_way.steps) + len(under_way.plan.on_cpu)
    little = pairs * config.hidden_size * torch.float32.itemsize <= EXPERT_PIECE_BYTES
    if little and takes_few_rows(state.torch_device, config.dtype, pairs, touched):
        given = under_way.experts, under_way.steps, config.num_experts, slots.storage.matrices
        under_way.few = bring_few_rows(*given, staging)
        return
    steps = steps_of(under_way.steps, config.num_experts)
    rows = {j: rows_by_step(chosen, steps, len(slots.memory)) for j, chosen in under_way.experts.items()}
    under_way.rows = bring_over(rows, sizes, staging, state.torch_device)
    if not little:
        return
    for j, own in under_way.rows.items():
        under_way.inputs[j] = _normed(state, j).index_select(0, own.tokens)
        under_way.each[j] = _empty_rows(state, len(own.pairs), len(own.pairs) < sizes[j])


def _empty_rows(state: PassState, count: int, zero: bool) -> Tensor:
    """[count, H] fp32 to be filled; zero: and one of zeros behind them, for pairs that others compute."""
    shape = count + zero, state.memory.config.hidden_size
    rows = torch.empty(shape, dtype=torch.float32, device=state.torch_device)
    if zero:
        rows[count:].zero_()
    return rows


def _outputs(state: PassState, j: int, rows: DeviceRows, step: int) -> Tensor:
    """Of one step, [T k, H] fp32; zeros for the pairs of others."""
    start, stop = rows.rows.borders[step : step + 2].tolist()
    x = _normed(state, j).index_select(0, rows.tokens[start:stop])
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    fill_step(out, x, rows, step, slots_of(state).storage.weights, start)
    each = torch.zeros((len(rows.places), x.shape[1]), dtype=torch.float32, device=x.device)
    return each.index_copy_(0, rows.pairs[start:stop].long(), out)


def _normed(state: PassState, j: int) -> Tensor:
    normed = state.routed[j].normed
    assert normed is not None
    return normed


def _gates(state: PassState, j: int) -> Tensor:
    gates = state.routed[j].weights
    assert gates is not None
    return gates


def _add(state: PassState, under_way: LayerPlan, j: int, each: Tensor) -> None:
    """each [T k, H] fp32."""
    added = weighted_sum(each, _gates(state, j).float())
    under_way.sums[j] = under_way.sums[j] + added if j in under_way.sums else added
