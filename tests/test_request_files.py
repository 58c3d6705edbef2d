"""Files of requests and of results: what is read, what is refused, and what survives a kill or a full disk."""

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.errors import RequestError
from runtime.requests.chat_template import ChatTemplate, load_chat_template
from runtime.requests.entry import Chat, Entry
from runtime.requests.identity import RunIdentity, hash_prompts, hash_sampling, identity_path
from runtime.requests.input_file import read_input
from runtime.requests.output_file import Mode, OutputFile
from runtime.requests.random_prompts import default_lengths, random_requests, read_prompt_lengths
from runtime.requests.request import Completion, Refusal, Request, Sampling
from runtime.requests.result_line import result_line
from runtime.requests.tokenise import tokenise

DEFAULTS = Sampling(16, seed=7)
IDENTITY = RunIdentity("input", "sampling", "model", "fp32", "cpu", {"batch_size": 8, "weights_on_gpu": 0.1})


def batch(body: dict[str, Any], **changes: Any) -> str:
    """A line of a batch file."""
    url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body} | changes)


def read(tmp_path: Path, *lines: str) -> tuple[Entry, ...]:
    path = tmp_path / "input.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return read_input(path, DEFAULTS)


def test_plain_lines(tmp_path: Path) -> None:
    stated = {"id": "x", "prompt_tokens": [3, 4], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 1,
              "stop": "end", "ignore_eos": True}  # fmt: skip
    first, second = read(tmp_path, '{"prompt": "Hello"}', json.dumps(stated), "", "  ")
    assert (first.request_id, first.form, first.prompt, first.where) == (
        "line-1",
        "plain",
        "Hello",
        f"{tmp_path}/input.jsonl:1",
    )
    assert first.sampling.max_tokens == 16 and first.sampling.temperature == 0.0
    assert (second.request_id, second.prompt) == ("x", (3, 4))
    assert second.sampling == Sampling(5, 0.5, 0.9, 1, ("end",), True)


def test_batch_lines(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    harmless = {"n": 1, "stream": False, "logprobs": None, "logit_bias": {}, "top_k": -1, "user": "u", "metadata": {}}
    chat = {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]}
    read_back = read(
        tmp_path,
        batch(chat | harmless | {"max_completion_tokens": 9, "stop": ["a", "b"]}),
        batch({"model": "m", "prompt": "Hi", "max_tokens": 3}, custom_id="b"),
        batch({"prompt": [1, 2]}, custom_id="c"),
    )
    assert [entry.form for entry in read_back] == ["chat", "completion", "completion"]
    assert read_back[0].prompt == Chat(({"role": "system", "content": "s"}, {"role": "user", "content": "one\ntwo"}))
    assert read_back[0].sampling.max_tokens == 9 and read_back[0].sampling.stop == ("a", "b")
    assert (read_back[1].prompt, read_back[1].sampling.max_tokens, read_back[2].prompt) == ("Hi", 3, (1, 2))


def test_requests_without_seed_get_their_own(tmp_path: Path) -> None:
    first, second = read(tmp_path, '{"prompt": "same"}', '{"prompt": "same"}')
    assert first.sampling.seed != second.sampling.seed
    assert (first, second) == read(tmp_path, '{"prompt": "same"}', '{"prompt": "same"}')
    other = read_input(tmp_path / "input.jsonl", Sampling(16, seed=8))
    assert other[0].sampling.seed != first.sampling.seed


CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
BAD_LINES = [
    ("", "is empty"),
    ("{", "is not JSON"),
    ("[1]", "must be a JSON object"),
    ('{"prompt": "a", "prompt": "b"}', "given twice"),
    ('{"prompt": "\\ud800"}', "surrogate"),
    ('{"prompt": ""}', "prompt must be text that is not empty"),
    ('{"prompt": 3}', "prompt must be text"),
    ("{}", "prompt and prompt_tokens: give one of them"),
    ('{"prompt": "a", "prompt_tokens": [1]}', "give one of them"),
    ('{"prompt_tokens": []}', "must be a list of token ids"),
    ('{"prompt_tokens": [1, -1]}', "holds -1, which is no token id"),
    ('{"prompt_tokens": [true]}', "no token id"),
    ('{"prompt": "a", "max_token": 3}', "unknown field 'max_token'; did you mean max_tokens?"),
    ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be a whole number from 1"),
    ('{"prompt": "a", "max_tokens": 2.5}', "max_tokens must be a whole number"),
    ('{"prompt": "a", "temperature": NaN}', "temperature must be a finite number"),
    ('{"prompt": "a", "temperature": -1}', "temperature must be zero"),
    ('{"prompt": "a", "top_p": 0}', "top_p must lie in (0, 1]"),
    ('{"prompt": "a", "seed": -1}', "seed must be a whole number from 0"),
    ('{"prompt": "a", "stop": [""]}', "stop must be text or a list of texts"),
    ('{"prompt": "a", "ignore_eos": 1}', "ignore_eos must be true or false"),
    ('{"prompt": "a", "id": 5}', "id must be text"),
    ('{"prompt": "a", "id": "line-1"}', "id 'line-1' was given before, at"),
    (batch(CHAT, method="GET"), "method must be POST"),
    (batch(CHAT, url="/v1/embeddings"), "is not served"),
    (batch(CHAT, custom_id=None), "custom_id is missing"),
    (batch(CHAT).replace(json.dumps(CHAT), "null"), "body is missing"),
    (batch(CHAT, extra=1), "unknown field 'extra'"),
    (batch(CHAT | {"n": 2}), "n 2 is not supported"),
    (batch(CHAT | {"logprobs": True}), "logprobs True is not supported"),
    (batch({"prompt": "a", "logprobs": 0}), "logprobs 0 is not supported"),
    (batch(CHAT | {"tools": [{}]}), "tools [{}] is not supported"),
    (batch(CHAT | {"mystery": 1}), "unknown field 'mystery'"),
    (batch(CHAT | {"max_tokens": 1, "max_completion_tokens": 2}), "differ"),
    (batch({"messages": []}), "messages must be a list"),
    (batch({"messages": [{"role": "user"}]}), "messages[0]: content must be text"),
    (batch({"messages": [{"content": "a"}]}), "messages[0]: role is missing"),
    (batch({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "only text is supported"),
    (batch({"prompt": ["a", "b"]}), "several prompts"),
    ('{"prompt": ' + "[" * 100_000, "is not JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path, '{"prompt": "good"}', line, '{"prompt": "good too"}')
    assert str(caught.value).startswith(f"{tmp_path}/input.jsonl:2: ")
    assert message in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    for content, message in ((b"\n \n", "holds no requests"), (b'{"prompt": "\xff"}', ":1: is not text")):
        path.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            read_input(path, DEFAULTS)
    with pytest.raises(RequestError, match="no such file"):
        read_input(tmp_path / "none.jsonl", DEFAULTS)
    with pytest.raises(RequestError, match="cannot be read"):
        read_input(tmp_path, DEFAULTS)
    with pytest.raises(RequestError, match=r":2: model 'n', but .*:1 asks for 'm'"):
        read(tmp_path, batch({"model": "m", "prompt": "a"}), batch({"model": "n", "prompt": "a"}, custom_id="b"))


def test_line_separators_within_text_end_no_line(tmp_path: Path) -> None:
    (entry,) = read(tmp_path, json.dumps({"prompt": "a\u2028b\u0085c"}, ensure_ascii=False))
    assert entry.prompt == "a\u2028b\u0085c"


class Words:
    """A tokenizer of letters; 1 is its BOS."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(letter) for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join(map(chr, ids))


def chat_entry(*messages: tuple[str, str]) -> Entry:
    return Entry("f:1", "a", "chat", Chat(tuple({"role": r, "content": c} for r, c in messages)), DEFAULTS)


def test_chat_template_writes_the_prompt_with_its_own_special_tokens() -> None:
    source = (
        "{{ bos_token }}\n{% for m in messages %}\n[{{ m.role }}]{{ m.content }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}\n>\n{% endif %}"
    )
    template = ChatTemplate(source, {"bos_token": "^"}, "dir")
    (request,) = tokenise([chat_entry(("system", "s"), ("user", "u"))], Words(), template, 1000)
    assert isinstance(request, Request)
    assert request.prompt == tuple(map(ord, "^\n[system]s\n[user]u\n>\n"))


def test_chat_without_template_is_one_user_message_or_refused() -> None:
    single, several = tokenise(
        [chat_entry(("user", "u")), chat_entry(("user", "u"), ("user", "v"))], Words(), None, 1000
    )
    assert isinstance(single, Request) and single.prompt == (1, ord("u"))
    assert isinstance(several, Refusal) and "no chat template" in several.reason


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('roles must alternate') }}", "{% for %}", "{{ messages[7].x.y }}"]
)
def test_a_template_that_fails_refuses_its_request(source: str) -> None:
    (refused,) = tokenise([chat_entry(("user", "u"))], Words(), ChatTemplate(source, {}, "dir"), 1000)
    assert isinstance(refused, Refusal) and "the chat template of dir refuses" in refused.reason


def test_template_files(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config.write_text(json.dumps({"chat_template": named, "bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    template = load_chat_template(tmp_path)
    assert template is not None and template.source == "D"
    assert template.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("J")
    template = load_chat_template(tmp_path)
    assert template is not None and template.source == "J"
    config.write_text("{")
    with pytest.raises(RequestError, match="is not JSON"):
        load_chat_template(tmp_path)


def test_what_has_no_tokens_of_the_model() -> None:
    tokens = Entry("f:1", "a", "plain", (5, 99), DEFAULTS)
    (refused,) = tokenise([tokens], None, None, 50)
    assert isinstance(refused, Refusal) and "token id 99 is beyond the model's vocabulary of 50" in refused.reason
    with pytest.raises(RequestError, match="f:9: text needs a tokenizer"):
        tokenise([tokens, Entry("f:9", "b", "plain", "text", DEFAULTS)], None, None, 50)
    with pytest.raises(RequestError, match="text needs a tokenizer"):
        tokenise([Entry("f:1", "a", "plain", (5,), Sampling(1, stop=("x",)))], None, None, 50)


def completion(name: str = "a") -> Completion:
    return Completion(Request(name, (1, 2, 3), DEFAULTS), (4, 5), "snow\u2028man \u2603", "stop")


def test_result_lines() -> None:
    plain = json.loads(result_line("plain", completion(), "m", 5))
    assert plain == {
        "id": "a", "prompt_tokens": 3, "text": "snow\u2028man \u2603", "tokens": [4, 5], "finish_reason": "stop",
    }  # fmt: skip
    line = result_line("chat", completion(), "m", 5)
    assert line.isascii() and line.endswith(b"\n") and line.count(b"\n") == 1
    chat = json.loads(line)
    body = chat["response"]["body"]
    assert (chat["custom_id"], chat["error"], chat["response"]["status_code"]) == ("a", None, 200)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "snow\u2028man \u2603"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "m", 5)
    text = json.loads(result_line("completion", completion(), "m", 5))["response"]["body"]
    assert text["object"] == "text_completion" and text["choices"][0]["text"].startswith("snow")
    refused = Refusal(Request("a", (), DEFAULTS), "too long")
    error = {"code": "refused", "message": "too long"}
    assert json.loads(result_line("plain", refused, "m", 5)) == {"id": "a", "error": error}
    answer = json.loads(result_line("chat", refused, "m", 5))
    assert answer["response"] is None and answer["error"] == error


def write(path: Path, names: list[str], mode: Mode = "new", identity: RunIdentity = IDENTITY) -> None:
    with OutputFile(path, mode) as output:
        output.begin(identity)
        for name in names:
            if name not in output.finished:
                output.append(result_line("plain", completion(name), "m", 5))


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def test_a_file_cut_at_any_byte_is_continued(tmp_path: Path) -> None:
    path, names = tmp_path / "out.jsonl", ["a", "b", "c"]
    write(path, names)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        write(path, names, "resume")
        assert path.read_bytes() == whole


@given(st.binary(max_size=60).filter(lambda b: b"\n" not in b))
def test_whatever_follows_the_last_whole_line_is_cut(tail: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "out.jsonl"
        write(path, ["a"])
        whole = path.read_bytes()
        path.write_bytes(whole + tail)
        write(path, ["a"], "resume")
        assert path.read_bytes() == whole


def test_existing_results_are_kept_or_replaced_on_request(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ["a", "b"])
    with pytest.raises(RequestError, match="holds results already; continue with --resume"):
        write(path, ["c"])
    assert ids(path) == ["a", "b"]
    other = RunIdentity("other", "sampling", "model", "fp32", "cpu", {})
    write(path, ["c"], "overwrite", other)
    assert ids(path) == ["c"]
    write(path, ["d"], "resume", other)
    assert ids(path) == ["c", "d"]


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ["a"])
    before = path.read_bytes() + b'{"id": "torn'
    path.write_bytes(before)
    changed = RunIdentity("input", "other", "model", "fp32", "cpu", {"batch_size": 9})
    with pytest.raises(RequestError, match=r"belongs to a run with another sampling, policy \(see .*out.jsonl.meta\)"):
        write(path, ["b"], "resume", changed)
    identity_path(path).write_text("{}")
    with pytest.raises(RequestError, match="not written by this version"):
        write(path, ["b"], "resume")
    identity_path(path).unlink()
    with pytest.raises(RequestError, match="is missing, which says what it belongs to"):
        write(path, ["b"], "resume")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [(b'{"id": "a"}\n', "id 'a' is there twice"), (b"{}\n", "has no id"), (b"nonsense\n", ":2: is not JSON")],
)
def test_foreign_lines_are_told(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ["a"])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(RequestError, match=message):
        write(path, ["b"], "resume")


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with OutputFile(path, "new"), pytest.raises(RequestError, match="another run is writing it"):
        OutputFile(path, "resume")
    write(path, ["a"], "resume")


def test_places_that_hold_no_results(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be written"):
        OutputFile(tmp_path / "none" / "out.jsonl", "new")
    with pytest.raises(RequestError, match="cannot be written"):
        OutputFile(tmp_path, "new")
    with pytest.raises(RequestError, match="is not a plain file"):
        OutputFile(Path("/dev/full"), "new")


def test_a_full_disk_costs_the_line_it_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, left = tmp_path / "out.jsonl", os.write, [150]

    def write_until_full(fd: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, bytes(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_until_full)
    with pytest.raises(RequestError, match=r"out.jsonl: cannot be written \(No space left on device\); finished req"):
        write(path, ["a", "b", "c"])
    monkeypatch.undo()
    assert ids(path) == ["a"] and path.read_bytes().endswith(b"\n")
    write(path, ["a", "b", "c"], "resume")
    assert ids(path) == ["a", "b", "c"]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ["a"])
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20,) * 2)
        try:
            write(path, ["b"], "resume")
        except RequestError as error:
            os._exit(0 if "File too large" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert ids(path) == ["a"] and path.read_bytes().endswith(b"\n")


def test_hashes_see_prompts_and_sampling_apart(tmp_path: Path) -> None:
    one = read(tmp_path, '{"prompt": "a", "seed": 1}', batch(CHAT))
    two = read(tmp_path, '{"prompt":  "a", "seed": 2}', batch(CHAT))
    three = read(tmp_path, '{"prompt": "b", "seed": 1}', batch(CHAT))
    assert hash_prompts(one) == hash_prompts(two) != hash_prompts(three)
    assert hash_sampling(one) != hash_sampling(two) and hash_sampling(one) == hash_sampling(three)


def test_random_requests_have_the_lengths_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"turns": ["12345678", "x"]}\n{"prompt": "123456789012"}\n')
    assert read_prompt_lengths(path) == (2, 3)
    entries = random_requests((2, 3), 5, 50, DEFAULTS)
    prompts = [entry.prompt for entry in entries]
    assert [len(prompt) for prompt in prompts if isinstance(prompt, tuple)] == [2, 3, 2, 3, 2]
    assert entries == random_requests((2, 3), 5, 50, DEFAULTS)
    assert len({entry.sampling.seed for entry in entries}) == 5
    assert len(random_requests(default_lengths(), None, 50, DEFAULTS)) == 80
    path.write_text('{"question": "?"}\n')
    with pytest.raises(RequestError, match=r'texts.jsonl:1: needs "prompt"'):
        read_prompt_lengths(path)
