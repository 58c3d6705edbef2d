"""SIGKILL at random moments: what `--resume` completes equals a run that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_engine import write_checkpoint, write_policy

KILLS = 24
HERE = Path(__file__).parent


def answers(path: Path) -> dict[str, Any]:
    """What every request got, by id; each once. The time at which a line was written is left out."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    found = {line.get("custom_id", line["id"]): line for line in lines}
    assert len(found) == len(lines)
    for line in found.values():
        if line.get("response"):
            del line["response"]["body"]["created"]
    return found


def write_requests(path: Path) -> int:
    """Both forms, greedy and sampled, of different lengths, and one that is refused; how many."""
    rows: list[dict[str, Any]] = [{"id": "beyond", "prompt_tokens": [500]}]
    for i in range(60):
        row: dict[str, Any] = {"prompt": " ".join(f"w{(i * j) % 100}" for j in range(1, 3 + i % 9))}
        row |= {"max_tokens": 3 + i % 11, "temperature": 0.8 * (i % 2)}
        if i % 3 == 0:
            row = {"custom_id": f"batch-{i}", "method": "POST", "url": "/v1/completions", "body": row}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


@pytest.mark.slow
def test_resumed_results_equal_an_uninterrupted_run(tmp_path: Path) -> None:
    count = write_requests(tmp_path / "input.jsonl")
    model, policy = write_checkpoint(tmp_path / "model"), write_policy(tmp_path / "policy.yaml")
    options = ["--model", str(model), "--policy", str(policy), "--input", str(tmp_path / "input.jsonl")]
    (tmp_path / "options.json").write_text(json.dumps([*options, "--device", "cpu"]))
    command = [sys.executable, str(HERE / "kill_loop.py"), str(tmp_path), str(KILLS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["stood"]) == KILLS
    assert len({n for n in report["stood"] if 0 < n < count}) >= 3  # kills in the middle, at different places
    whole = answers(tmp_path / "whole.jsonl")
    assert len(whole) == count
    for i in range(report["rounds"]):
        assert answers(tmp_path / f"killed-{i}.jsonl") == whole
