"""What may be given to the engine as a prompt, and the request that it stands for."""

from collections.abc import Callable, Iterable, Sequence

from hrm.errors import RequestError
from runtime.requests.request import Request, Sampling

Prompt = Request | str | Sequence[int]
Tokenise = Callable[[str], Sequence[int]]


def beyond_vocabulary(request: Request, vocab_size: int) -> str | None:
    """Which token id the model does not have, or None."""
    strange = [token for token in request.prompt if not 0 <= token < vocab_size]
    return f"token id {strange[0]} lies outside the model's vocabulary of {vocab_size:,}" if strange else None


def as_requests(prompts: Iterable[Prompt], sampling: Sampling | None, tokenise: Tokenise | None) -> list[Request]:
    """A request per prompt, in order: itself, or text or token ids with `sampling`, named by its place.

    Raises:
        RequestError: text without a tokenizer, or a plain prompt without `sampling`.
    """
    return [_as_request(i, prompt, sampling, tokenise) for i, prompt in enumerate(prompts)]


def _as_request(place: int, prompt: Prompt, sampling: Sampling | None, tokenise: Tokenise | None) -> Request:
    if isinstance(prompt, Request):
        return prompt
    if sampling is None:
        raise RequestError(
            f"prompt {place}: say how many tokens to generate: generate(prompts, Sampling(max_tokens=...))"
        )
    if isinstance(prompt, str):
        if tokenise is None:
            raise RequestError(f"prompt {place}: is text, and the engine was given no `tokenise`; give token ids")
        prompt = tokenise(prompt)
    return Request(str(place), tuple(prompt), sampling)
