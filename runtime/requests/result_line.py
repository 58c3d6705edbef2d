"""A finished or refused request as the line that goes into the output file."""

import hashlib
import json
from typing import Any

from runtime.requests.entry import Form
from runtime.requests.request import Completion, Refusal, Request

REFUSED = "refused"


def result_line(form: Form, result: Completion | Refusal, model: str, created: int) -> bytes:
    """One line of JSON in ASCII, its line feed included: no reader splits it anywhere else.

    form: as the request was written. model: name stated in batch lines. created: seconds since 1970.
    """
    data = _plain(result) if form == "plain" else _batch(form, result, model, created)
    return json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n"


def result_id(line: dict[str, Any]) -> object:
    """The id of the request that a parsed output line answers."""
    return line.get("custom_id", line.get("id"))


def _plain(result: Completion | Refusal) -> dict[str, Any]:
    request = result.request
    if isinstance(result, Refusal):
        return {"id": request.request_id, "error": _error(result)}
    return {
        "id": request.request_id,
        "prompt_tokens": len(request.prompt),
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish_reason,
    }


def _batch(form: Form, result: Completion | Refusal, model: str, created: int) -> dict[str, Any]:
    own_id = _short_hash(result.request)
    response, error = None, None
    if isinstance(result, Refusal):
        error = _error(result)
    else:
        body = _body(form, result, own_id, model, created)
        response = {"status_code": 200, "request_id": own_id, "body": body}
    return {"id": own_id, "custom_id": result.request.request_id, "response": response, "error": error}


def _body(form: Form, result: Completion, own_id: str, model: str, created: int) -> dict[str, Any]:
    chat, prompt, generated = form == "chat", len(result.request.prompt), len(result.tokens)
    choice: dict[str, Any] = {"index": 0, "finish_reason": result.finish_reason, "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": result.text}} if chat else {"text": result.text}
    choice["token_ids"] = list(result.tokens)
    return {
        "id": own_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated},
    }


def _error(refusal: Refusal) -> dict[str, str]:
    return {"code": REFUSED, "message": refusal.reason}


def _short_hash(request: Request) -> str:
    return "hrm-" + hashlib.sha256(request.request_id.encode()).hexdigest()[:24]
