"""A pass over the layers by what it carries, and a generation as a list of passes."""

from dataclasses import dataclass

from hrm.spec.workload import Workload


@dataclass(frozen=True)
class PassShape:
    """`count` passes in which `decode_share` of the batch decodes one token and `prefill_share` prefills a prompt."""

    name: str
    count: float
    decode_share: float
    prefill_share: float

    def tokens_per_sequence(self, workload: Workload) -> float:
        """Tokens that a pass carries per sequence in flight."""
        return self.decode_share + self.prefill_share * workload.prompt_len


def generation_passes(workload: Workload, mixed_prefill: bool) -> tuple[PassShape, ...]:
    """The passes in which a batch generates `gen_len` tokens each; prefill yields the first token.

    Unmixed: one prefill pass, then gen_len - 1 decode passes, all at the mean context (leaves out that the busiest
    resource may change as the context grows). Mixed: gen_len equal passes in the steady state, where 1 / gen_len of
    the batch is being replaced in each (leaves out the first and the last gen_len passes of a run).
    """
    steps = workload.gen_len
    if mixed_prefill:
        return (PassShape("mixed", steps, (steps - 1) / steps, 1 / steps),)
    prefill = PassShape("prefill", 1, 0.0, 1.0)
    return (prefill,) if steps == 1 else (prefill, PassShape("decode", steps - 1, 1.0, 0.0))


def cached_tokens(workload: Workload, mixed_prefill: bool) -> float:
    """Tokens of KV cache to hold per sequence in flight at the peak, on average over the batch.

    Unmixed, all sequences are longest at the same time; mixed, their ages are spread evenly.
    """
    return workload.mean_context_len if mixed_prefill else workload.final_context_len
