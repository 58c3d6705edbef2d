"""FlexGen (arXiv 2303.06865): S4, and with attention on the CPU S3, of the MoE-Lightning paper's Fig. 6.

Attention of all micro-batches, then experts of all micro-batches, in steps: each step loads what the next one needs
beside its own work, and the next begins when all of that is done (its `sync()` after every layer and batch). The
weights of the next half layer are loaded, in one piece, beside the first step of this one. Pageable memory is staged
by the thread that then launches the step's compute.
"""

from hrm.schedule.builder import PassBuilder
from hrm.schedule.steps import Steps
from hrm.schedule.task import Resource


def flexgen(build: PassBuilder) -> None:
    """Emits a pass; attention runs where the policy puts it, within its step."""
    steps, n = Steps(build), len(build.slice.micro_batches)
    steps.fetch_kv(0, 0)
    build.synchronise()
    for layer in range(build.num_layers):
        build.begin_block()
        routed = []
        for j in range(n):
            if j == 0:
                build.fetch_pages(build.plan.first[layer + 1])
            if j + 1 < n:
                steps.fetch_kv(layer, j + 1)
            build.wait_for(Resource.HOST)
            routed.append(_attention(steps, layer, j))
            build.synchronise()
        for j in range(n):
            if j == 0:
                build.fetch_dense(layer + 1)
                _first_kv(steps, layer + 1)
            steps.experts(layer, j, routed[j])
            if layer == build.num_layers - 1:
                steps.head(j)
            build.synchronise()


def _attention(steps: Steps, layer: int, j: int) -> int:
    steps.enter(layer, j)
    steps.load_attention(layer, j)
    steps.attend(layer, j)
    return steps.post(layer, j)


def _first_kv(steps: Steps, layer: int) -> None:
    if layer < steps.build.num_layers:
        steps.fetch_kv(layer, 0)
