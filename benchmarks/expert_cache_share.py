"""The share of missed experts to copy where the CPU computes the others: the simulator's choice for a recording."""

import numpy as np
from expert_cache_setting import ON_CPU, Setting, policy_of

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
    return {share: simulated_seconds(mode, setting, simulator, share) for share in SHARES}


def simulated_seconds(mode: str, setting: Setting, simulator: Simulator, share: float = 1.0) -> float:
    """Of one share; of a mode without a cache, whatever is chosen."""
    context = float(np.mean(setting.prompt_lens)) + setting.gen_len / 2
    policy = policy_of(mode, setting, share)
    cached = policy.schedule == "expert_cache"
    stats = routed_cache_stats(recorded(setting), simulator.rates.sizes, policy) if cached else None
    return simulator.pass_seconds(policy, decode_slice(policy, context), stats)


def simulated_best(mode: str, setting: Setting, simulator: Simulator) -> dict[str, float]:
    """A decode pass, with the share of missed experts copied at which it is fastest."""
    on_cpu = mode.endswith(ON_CPU)
    shares = (
        simulated_shares(mode, setting, simulator) if on_cpu else {1.0: simulated_seconds(mode, setting, simulator)}
    )
    best = min(shares, key=lambda share: shares[share])
    seconds = shares[best]
    return {"experts_on_gpu": best, "simulated_seconds": seconds, "tokens_per_s": setting.batch / seconds}


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
