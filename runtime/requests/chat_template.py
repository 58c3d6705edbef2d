"""A checkpoint's chat template: messages to the one text that the model was trained to continue."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hrm.errors import RequestError


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the special tokens it may name, such as "bos_token"."""

    source: str
    special_tokens: Mapping[str, str]
    where: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt's text, special tokens included, ending where the assistant begins to speak.

        Raises:
            RequestError: the template refuses the messages.
        """
        try:
            text = self._compiled.render(messages=list(messages), add_generation_prompt=True, **self.special_tokens)
        except RequestError:
            raise
        except Exception as failure:  # a template can fail in any way
            raise RequestError(f"the chat template of {self.where} refuses the messages: {failure}") from None
        return str(text)

    @cached_property
    def _compiled(self) -> Any:
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise RequestError(f"{self.where} has a chat template, which needs jinja2: pip install jinja2") from None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self.source)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Unlike Jinja's own, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise ValueError(message)


def load_chat_template(directory: Path) -> ChatTemplate | None:
    """The template in chat_template.jinja or in tokenizer_config.json (of several, "default"); None without one.

    Raises:
        RequestError: a file that cannot be read.
    """
    config_file, own_file = directory / "tokenizer_config.json", directory / "chat_template.jinja"
    config = _read_config(config_file)
    source, where = _from_config(config), config_file
    if own_file.is_file():
        source, where = _read(own_file), own_file
    return None if source is None else ChatTemplate(source, _special_tokens(config), str(where))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise RequestError(f"{path}: cannot be read ({failure})") from None


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as failure:
        raise RequestError(f"{path}: is not JSON ({failure})") from None
    return config if isinstance(config, dict) else {}


def _from_config(config: Mapping[str, Any]) -> str | None:
    stated = config.get("chat_template")
    if isinstance(stated, list):
        named = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
        stated = named.get("default")
    return stated if isinstance(stated, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Written as text, or as an object with "content"."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found
