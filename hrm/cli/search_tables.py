"""The tables of `hrm search`."""

from hrm.cli.crossover_tables import print_cache_choice
from hrm.cli.output import print_table, print_text
from hrm.cli.refined_table import print_refined
from hrm.predict.prediction import MemoryPrediction
from hrm.report.explain import describe_assumptions, describe_binding, describe_policy, describe_upgrade
from hrm.search.crossover import Crossover
from hrm.search.refine import Refined
from hrm.search.search import Candidate, SearchResult, Verification
from hrm.search.sensitivity import LABELS, Sensitivity
from hrm.spec.units import format_bytes, format_seconds

_RESOURCES = {
    "gpu": "GPU",
    "cpu": "CPU",
    "htod": "HTOD link",
    "dtoh": "DTOH link",
    "disk": "disk",
    "gpu_to_gpu": "GPU-GPU link",
    "cpu_memory_bandwidth": "CPU memory bandwidth",
}


def print_search(
    result: SearchResult,
    rows: tuple[Sensitivity, ...],
    verification: Verification | None,
    refined: tuple[Refined, ...] = (),
    choice: Crossover | None = None,
) -> None:
    """Everything about a search, for people."""
    _print_policy(result)
    print_text(_sentence(describe_policy(result.policy)))
    print_text(_sentence(describe_binding(result.best)) + "\n")
    _print_resources(result, rows)
    print_text(describe_upgrade(rows) + "\n")
    _print_memory(result.best)
    if len(result.candidates) > 1:
        _print_runner_ups(result)
    if refined:
        print_refined(refined)
    if choice is not None:
        print_cache_choice(choice)
    solver = result.solver
    print_text(
        f"Proven optimal in {solver.seconds:.2f} s: {solver.boxes_bounded} boxes bounded, {solver.cells_solved} cells "
        f"solved, MILP over the best {solver.milp_cells}, relative gap {solver.relative_gap:g}."
    )
    if verification is not None:
        verdict = "agrees" if verification.agrees else "DISAGREES"
        print_text(f"Enumeration of all {verification.enumerated_cells:,} cells {verdict}.")
    print_text(describe_assumptions(result))


def _print_policy(result: SearchResult) -> None:
    policy, prediction, rates = result.policy, result.prediction, result.rates
    work = rates.workload
    title = (
        f"{rates.model.name} in {rates.machine.precision.expert_weights} on {rates.machine.profile.title}\n"
        f"prompts {work.prompt_len_avg:g} tokens (max {work.prompt_len_max}), {work.gen_len} generated"
        + (", padded" if work.padded else "")
    )
    rows = [
        ("generation throughput", f"{prediction.generation_throughput:,.1f} tokens/s"),
        ("decode throughput", f"{prediction.decode_throughput:,.1f} tokens/s"),
        ("prefill + decode", f"{format_seconds(prediction.prefill_seconds) if prediction.prefill_seconds else '0 s'} + "
         f"{format_seconds(prediction.decode_seconds)} per batch"),
        ("schedule", policy.schedule),
        ("batch N = n x mu", f"{policy.batch_size:,} = {policy.num_micro_batches} x {policy.micro_batch_size}"),
        ("ffn_batch_size", f"{policy.ffn_batch_size:,}"),
        ("attention_on_gpu A_g", f"{policy.attention_on_gpu:.3f}"),
        ("experts_on_gpu F_g", f"{policy.experts_on_gpu:.3f}"),
        ("weights_on_gpu r_w", f"{policy.weights_on_gpu:.3f}"),
        ("kv_on_gpu r_c", f"{policy.kv_on_gpu:.3f}"),
        ("dense_weights_on_gpu", f"{policy.dense_weights_on_gpu:.3f}"),
        ("weights_on_disk", f"{policy.weights_on_disk:.3f}"),
        ("page pool", format_bytes(policy.page_pool_bytes) if policy.page_pool_bytes else "none"),
        ("bottleneck", prediction.bottleneck),
    ]  # fmt: skip
    print_table(title, ("", ""), rows)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _print_resources(result: SearchResult, rows: tuple[Sensitivity, ...]) -> None:
    busy = result.prediction.utilisation
    print_table("Time each resource is busy", ("resource", "utilisation"),
                [(_RESOURCES[name], f"{share:.1%}") for name, share in busy.items() if share > 0])  # fmt: skip
    print_table(
        "Gain from 10 % more of each resource (policy searched again)",
        ("resource", "tokens/s", "gain"),
        [(LABELS[r.resource], f"{r.generation_throughput:,.1f}", f"{r.relative_gain:+.2%}") for r in rows],
    )


def _print_memory(candidate: Candidate) -> None:
    gpu, cpu = candidate.prediction.gpu_memory, candidate.prediction.cpu_memory
    names = list(dict.fromkeys([*gpu.parts, *cpu.parts]))
    rows = [(n.replace("_", " "), _part(gpu, n), _part(cpu, n)) for n in names]
    rows = [row for row in rows if row[1:] != ("-", "-")]
    rows.append(("total", format_bytes(gpu.total_bytes), format_bytes(cpu.total_bytes)))
    rows.append(("usable", format_bytes(gpu.usable_bytes), format_bytes(cpu.usable_bytes)))
    print_table("Peak memory by part", ("part", "GPU", "CPU"), rows)


def _part(memory: MemoryPrediction, name: str) -> str:
    size = memory.parts.get(name, 0.0)
    return format_bytes(size) if size >= 1 else "-"


def _print_runner_ups(result: SearchResult) -> None:
    best = result.prediction.generation_throughput
    rows = [
        (
            c.policy.schedule,
            describe_policy(c.policy),
            f"{c.policy.batch_size:,}",
            f"{c.policy.micro_batch_size:,}",
            f"{c.prediction.generation_throughput:,.1f}",
            f"{c.prediction.generation_throughput / best - 1:+.1%}",
        )
        for c in result.candidates
    ]
    columns = ("schedule", "what runs where", "N", "mu", "tokens/s", "")
    print_table("Best policies that differ in kind", columns, rows, numeric_from=2)
