"""Whether the hidden states of a pass's prompts stay on the GPU between layers, or wait on the host."""

from hrm.schedule.slice import PassSlice

KEPT_CHUNKS = 8
KEPT_TOKENS = 8192


def kept_prompt_tokens(chunk_tokens: int) -> int:
    """Prompt tokens whose hidden states a pass that decodes too may keep: some chunks, within what is little memory."""
    return max(chunk_tokens, min(KEPT_CHUNKS * chunk_tokens, KEPT_TOKENS))


def keeps_prompts(work: PassSlice, chunk_tokens: int) -> bool:
    """A pass that decodes and takes in few prompts keeps them: sent to the host, each chunk would wait for the one
    before in every layer, and what decodes with it.
    """
    prompts = sum(mb.prompt_tokens for mb in work.micro_batches)
    return bool(work.decodes) and prompts <= kept_prompt_tokens(chunk_tokens)
