"""The policies under which the published systems ran."""

from hrm.errors import PolicyError
from hrm.report.published_rows import PublishedRow, published_data, published_rows, system_facts
from hrm.spec.policy import Policy
from hrm.spec.workload import Workload, make_workload


def published_workload(row: PublishedRow) -> Workload:
    """The prompts and generation length of a row."""
    lengths = published_data()["workloads"][row.workload]
    return make_workload(row.gen_len, lengths["prompt_len"], lengths["prompt_len_max"], row.padded, row.workload)


def published_policy(row: PublishedRow) -> Policy:
    """Batch sizes as published, or by the rule stated for the system; places as the system's code has them."""
    mu, n = _batch_sizes(row)
    facts = system_facts()["systems"][row.system]
    on_gpu = row.schedule in ("flexgen", "layer_streaming")
    resident = float(row.schedule == "layer_streaming")
    return Policy(
        schedule=row.schedule,
        batch_size=mu * n,
        micro_batch_size=mu,
        ffn_batch_size=mu,
        attention_on_gpu=float(on_gpu),
        experts_on_gpu=1.0,
        weights_on_gpu=0.0,
        kv_on_gpu=resident,
        dense_weights_on_gpu=facts["dense_weights_on_gpu"],
        weights_on_disk=0.0,
        attention_place="resident" if resident else "streamed" if on_gpu else "cpu",
        ffn_batching="micro_batch",
        mixed_prefill=False,
        prefill_chunk_tokens=round(mu * published_workload(row).prompt_len),
        page_pool_bytes=0.0,
        tensor_parallel_size=1,
        hidden_states_by="copy_engine",
        host_weights=facts["host_weights"],
        weight_prefetch=facts.get("weight_prefetch", "always"),
    )


def _batch_sizes(row: PublishedRow) -> tuple[int, int]:
    if row.micro_batch_size is not None and row.num_micro_batches is not None:
        return row.micro_batch_size, row.num_micro_batches
    facts = system_facts()["systems"][row.system]
    if "policy_of" in facts:
        return _batch_sizes(_other(row.case, facts["policy_of"]))
    workload = facts.get("same_prompt_tokens_as")
    for other in published_rows():
        if (other.setting, other.system, other.workload) == (row.setting, row.system, workload):
            tokens = _batch_sizes(other)[0] * published_workload(other).prompt_len
            return int(tokens // published_workload(row).prompt_len), 1
    raise PolicyError(f"published {row.system} on {row.setting}: no batch size is published, and no rule gives one")


def _other(case: tuple[str, str, int], system: str) -> PublishedRow:
    return next(row for row in published_rows() if (row.case, row.system) == (case, system))
