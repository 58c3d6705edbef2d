"""CGOPipe and the schedules it is compared with: micro-batches through a layer one after the other.

All are one function. What distinguishes them is how weights share the copy queue with the small copies:

    cgopipe (MoE-Lightning, arXiv 2411.11217, Algorithm 1)   weights in pages between the small copies
    fastdecode (S2 of its Fig. 6; arXiv 2403.11421)          a layer's weights in one piece before them
    layer_streaming (ZeRO-Inference, accelerate)             the same with one micro-batch, attended on the GPU
"""

import math

from hrm.schedule.builder import PassBuilder
from hrm.schedule.steps import Steps


def pipelined(build: PassBuilder, paged: bool, ring: bool = False, ahead: bool = True) -> None:
    """Emits a pass in which each micro-batch goes through attention and experts of a layer before the next one does.

    CPU attention of the next `attention_lookahead` micro-batches is under way (two in Algorithm 1). With `ring`,
    pages are fetched as soon as a slot is free, not during the layer before; without `ahead`, each layer's when the
    one before is done.
    """
    steps, n = Steps(build), len(build.slice.micro_batches)
    places = [(layer, j) for layer in range(build.num_layers) for j in range(n)]
    lookahead = min(build.policy.attention_lookahead, n)
    for place in places[:lookahead]:
        steps.enter(*place)
    steps.fetch_kv(*places[0])
    for k, (layer, j) in enumerate(places):
        if j == 0:
            build.begin_block()
            build.fetch_dense(layer + 1)
            build.fetch_pages(build.plan.first[layer + 1])  # what no earlier layer has fetched of this one
        if ahead and not paged:
            _fetch(build, layer, j, n, ring)
        steps.load_attention(layer, j)
        if k + 1 < len(places):
            steps.fetch_kv(*places[k + 1])
        if ahead and paged:
            _fetch(build, layer, j, n, ring)
        _compute(build, steps, layer, j)
        if k + lookahead < len(places):
            steps.enter(*places[k + lookahead])
        if not ahead and j == n - 1:
            build.synchronise()


def _compute(build: PassBuilder, steps: Steps, layer: int, j: int) -> None:
    steps.attend(layer, j)
    steps.experts(layer, j, steps.post(layer, j))
    if layer == build.num_layers - 1:
        steps.head(j)


def _fetch(build: PassBuilder, layer: int, j: int, n: int, ring: bool) -> None:
    """Fetches of step (layer, j): the next layer's pages in n equal parts, or whatever has a free slot."""
    plan = build.plan
    if ring:
        build.fetch_pages(plan.per_pass + plan.ahead)
        return
    following = (layer + 1) % build.num_layers
    begin = plan.first[layer + 1] if following else plan.per_pass
    build.fetch_pages(begin + math.ceil(plan.per_layer[following] * (j + 1) / n))
