"""Demand-fetched experts: what the router chose and the cache lacks is copied, or computed on the CPU, after routing.

ExpertFlow's and Mixtral-offloading's baseline (arXiv 2410.17954), and Fiddler (arXiv 2402.07033) where the CPU computes
misses.
"""

from hrm.schedule.builder import PassBuilder
from hrm.schedule.steps import Steps
from hrm.schedule.task import Kind, Resource, Work


def on_demand(build: PassBuilder) -> None:
    """Emits a pass whose expert pages are fetched only once their layer's router has run."""
    steps = Steps(build)
    for layer in range(build.num_layers):
        build.begin_block()
        build.fetch_dense(layer + 1)
        routed = []
        for j in range(len(build.slice.micro_batches)):
            steps.enter(layer, j)
            steps.fetch_kv(layer, j)
            steps.load_attention(layer, j)
            steps.attend(layer, j)
            routed.append(steps.post(layer, j))
        if build.has_experts(layer):
            build.wait_for_routing(routed[-1])
            build.fetch_pages(build.plan.first[layer + 1])
        for j, done in enumerate(routed):
            _experts(build, steps, layer, j, done)
    for j in range(len(build.slice.micro_batches)):
        steps.head(j)


def _experts(build: PassBuilder, steps: Steps, layer: int, j: int, routed: int) -> None:
    """Hits first, then each missed page as it arrives, for every micro-batch in turn; misses on the CPU beside them."""
    mb = build.slice.micro_batches[j]
    if not build.has_experts(layer):
        build.outputs[layer, j] = steps.all_reduce(layer, j, (routed,))
        return
    share, hit_rate = build.experts_on_gpu, build.hit_rate[layer]
    pages, last = build.plan.of_layer(layer), routed
    hits = min(share, hit_rate)
    if hits > 0 or not pages:
        work = Work(mb.sequences, mb.prompt_tokens, hits)
        last = build.add(Kind.EXPERT_FFN, layer, j, Resource.GPU, work, (routed,))
    for page in pages:
        one = range(page, page + 1)
        work = Work(mb.sequences, mb.prompt_tokens, (share - hits) / len(pages), (page, page + 1))
        last = build.add(Kind.EXPERT_FFN, layer, j, Resource.GPU, work, (routed, *build.reads_pages(one)))
        build.note_reader(one, last)
    done: tuple[int, ...] = (last,)
    if share < 1:
        done = (*done, steps.cpu_experts(layer, (j,), (routed,), 1 - share))
    build.outputs[layer, j] = steps.all_reduce(layer, j, done)
