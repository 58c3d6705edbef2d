"""The share of missed experts to copy where the CPU computes the others: the simulator's choice for a recording."""

import numpy as np
from expert_cache_setting import Setting, policy_of

from hrm.predict.path_predictions import joined
from hrm.predict.routing_source import Routing, routed_cache_stats
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.simulate import Simulator
from hrm.schedule.slice import decode_slice

SHARES = tuple(i / 16 for i in range(17))


def simulated_shares(mode: str, setting: Setting, simulator: Simulator) -> dict[float, float]:
    """Seconds of a decode pass by the share of missed experts that is copied, in the middle of the requests.

    Counts come from a replay of the routing that the run will follow; the simulator does the rest, from the profile.
    """
    routing, sizes = recorded(setting), simulator.rates.sizes
    context = float(np.mean(setting.prompt_lens)) + setting.gen_len / 2
    found = {}
    for share in SHARES:
        policy = policy_of(mode, setting, share)
        stats = routed_cache_stats(routing, sizes, policy)
        found[share] = simulator.pass_seconds(policy, decode_slice(policy, context), stats)
    return found


def recorded(setting: Setting) -> Routing:
    """The decode steps of the first batch, and what is predicted of them."""
    experts, predicted, prompts, steps = [], [], [], []
    names = [str(i) for i in range(setting.batch)]
    for name, length in zip(names, setting.prompt_lens, strict=False):
        rows = setting.replay.experts[name][length : length + setting.gen_len]
        experts.append(rows)
        prompts += [int(name)] * len(rows)
        steps += range(1, len(rows) + 1)
        if setting.replay.predictions is not None:
            predicted.append(setting.replay.predictions[name].rows(slice(length, length + setting.gen_len)))
    config = setting.model.config
    trace = RoutingTrace(
        config.name, config.num_experts, np.concatenate(experts).astype(np.int16), np.array(prompts), np.array(steps)
    )
    return Routing(trace=trace, predictions=joined(predicted) if predicted else None)
