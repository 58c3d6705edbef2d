"""MoE-Gen (arXiv 2503.09716): attention in micro-batches, then each expert once over the whole batch.

Pages pass through a ring of slots, so that the copy engine prefetches into the next layer while attention runs.
"""

from hrm.schedule.builder import PassBuilder
from hrm.schedule.steps import Steps
from hrm.schedule.task import Kind, Resource, Work


def module_batched(build: PassBuilder) -> None:
    """Emits a pass in two phases per layer."""
    steps = Steps(build)
    for layer in range(build.num_layers):
        build.begin_block()
        build.fetch_dense(layer + 1)
        build.fetch_pages(build.plan.per_pass + build.plan.ahead)
        routed = _attention_phase(build, steps, layer)
        if build.has_experts(layer):
            _expert_phase(build, steps, layer, routed)
        else:
            for j, done in enumerate(routed):
                build.outputs[layer, j] = steps.all_reduce(layer, j, (done,))
    for j in range(len(build.slice.micro_batches)):
        steps.head(j)


def _attention_phase(build: PassBuilder, steps: Steps, layer: int) -> list[int]:
    """Attention of all micro-batches, the CPU's share of it ahead; the task after which each is routed."""
    n = len(build.slice.micro_batches)
    lookahead = min(build.policy.attention_lookahead, n)
    for j in range(lookahead):
        steps.enter(layer, j)
    steps.fetch_kv(layer, 0)
    routed = []
    for j in range(n):
        steps.load_attention(layer, j)
        if j + 1 < n:
            steps.fetch_kv(layer, j + 1)
        steps.attend(layer, j)
        routed.append(steps.post(layer, j))
        if j + lookahead < n:
            steps.enter(layer, j + lookahead)
    return routed


def _expert_phase(build: PassBuilder, steps: Steps, layer: int, routed: list[int]) -> None:
    """Resident experts first, then each page as it arrives; the CPU's experts beside them."""
    batch, share = build.slice.micro_batches, build.experts_on_gpu
    host = 1 - share
    done: tuple[int, ...] = ()
    tokens = (sum(mb.sequences for mb in batch), sum(mb.prompt_tokens for mb in batch))
    if host > 0:
        done = (steps.cpu_experts(layer, tuple(range(len(batch))), tuple(routed), host),)
    resident = share - build.plan.layer_share[layer]
    last = routed[-1]
    if resident > 0:
        work = Work(*tokens, resident)
        last = build.add(Kind.EXPERT_FFN, layer, None, Resource.GPU, work, (routed[-1],))
    for page in build.plan.of_layer(layer):
        pages = range(page, page + 1)
        build.fetch_pages(page + 1)
        work = Work(*tokens, build.plan.share(page), (page, page + 1))
        last = build.add(Kind.EXPERT_FFN, layer, None, Resource.GPU, work, (routed[-1], *build.reads_pages(pages)))
        build.note_reader(pages, last)
        build.fetch_pages(build.plan.per_pass + build.plan.ahead)
    for j in range(len(batch)):
        build.outputs[layer, j] = steps.all_reduce(layer, j, (last, *done))
