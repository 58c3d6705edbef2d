"""Reads a line of an OpenAI batch file, as vLLM's run-batch does: custom_id, method, url, body."""

import reprlib
from collections.abc import Mapping
from typing import Any

from runtime.requests.entry import Chat, Entry, Form, Prompt
from runtime.requests.json_fields import JsonFields
from runtime.requests.plain_line import read_tokens
from runtime.requests.request import Sampling
from runtime.requests.sampling_fields import SAMPLING_FIELDS, read_sampling

FORMS: Mapping[str, Form] = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}
LINE_FIELDS = ("custom_id", "method", "url", "body")
PROMPT_FIELD: Mapping[Form, str] = {"chat": "messages", "completion": "prompt"}
WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier")
# What the runtime does not do: taken only with a value that asks for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
}


def read_batch_line(fields: JsonFields, defaults: Sampling) -> Entry:
    """A request of a batch file.

    Raises:
        RequestError: a missing or unknown field, a wrong value, or one that asks for what the runtime does not do.
    """
    fields.refuse_unknown(LINE_FIELDS)
    request_id, url = fields.required_text("custom_id"), fields.required_text("url")
    if fields.required_text("method") != "POST":
        raise fields.error("method", f"must be POST, not {reprlib.repr(fields.get('method'))}")
    if url not in FORMS:
        raise fields.error("url", f"{reprlib.repr(url)} is not served; give {' or '.join(FORMS)}")
    form, body = FORMS[url], fields.nested("body")
    known = (PROMPT_FIELD[form], "model", "max_completion_tokens", *SAMPLING_FIELDS, *WITHOUT_EFFECT, *NEUTRAL)
    body.refuse_unknown(known)
    _refuse_unsupported(body)
    prompt = _chat(body) if form == "chat" else _completion_prompt(body)
    sampling = read_sampling(_one_limit(body), request_id, defaults)
    return Entry(fields.where, request_id, form, prompt, sampling, body.text("model"))


def _refuse_unsupported(body: JsonFields) -> None:
    for field, neutral in NEUTRAL.items():
        value = body.get(field)
        if value is not None and not any(_same(value, n) for n in neutral):
            allowed = " or ".join(repr(n) for n in neutral)
            wrong = f"{reprlib.repr(value)} is not supported; leave it out" + (f", or give {allowed}" * bool(neutral))
            raise body.error(field, wrong)


def _same(value: Any, neutral: Any) -> bool:
    """Equal as JSON: false is not 0."""
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _one_limit(body: JsonFields) -> JsonFields:
    """max_completion_tokens is the newer name of max_tokens."""
    newer, older = body.get("max_completion_tokens"), body.get("max_tokens")
    if newer is None:
        return body
    if older is not None and not _same(newer, older):
        raise body.error("max_tokens", "and max_completion_tokens differ; give one of them")
    return JsonFields({**body.values, "max_tokens": newer}, body.where)


def _completion_prompt(body: JsonFields) -> Prompt:
    value = body.get("prompt")
    if isinstance(value, list) and value and not isinstance(value[0], int):
        raise body.error("prompt", "holds several prompts; give each a line of its own")
    return read_tokens(body, "prompt", value) if isinstance(value, list) else body.required_text("prompt")


def _chat(body: JsonFields) -> Chat:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise body.error("messages", f"must be a list of messages, not {reprlib.repr(messages)}")
    return Chat(tuple(_message(body, i, message) for i, message in enumerate(messages)))


def _message(body: JsonFields, index: int, message: Any) -> Mapping[str, str]:
    where = f"{body.where}: messages[{index}]"
    if not isinstance(message, dict):
        raise body.error(f"messages[{index}]", f"must be an object, not {reprlib.repr(message)}")
    fields = JsonFields(message, where)
    fields.refuse_unknown(("role", "content", "name"))
    name = fields.text("name")
    return {"role": fields.required_text("role"), "content": _content(fields)} | ({"name": name} if name else {})


def _content(fields: JsonFields) -> str:
    """Text, or text parts, which are joined by line feeds as vLLM does."""
    value = fields.get("content")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise fields.error("content", f"must be text or a list of text parts, not {reprlib.repr(value)}")
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
    if not all(isinstance(text, str) for text in texts):
        raise fields.error("content", "holds a part that is not text; only text is supported")
    return "\n".join(text for text in texts if text is not None)
