"""Kills `hrm run` again and again, resuming each time. Run as a script by test_kill_resume.py: WORK_DIR KILLS.

The parent imports everything once and forks a child per attempt, which then costs milliseconds instead of seconds. It
must have started no threads by then, so it is a process of its own and touches no tensor.
"""

import json
import os
import random
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import runtime.cli.run as run_module
from hrm.cli.main import app, run

EARLY = (  # what a run imports on its way
    "rich.progress", "runtime.checkpoint.checkpoint", "runtime.checkpoint.synthetic", "runtime.checkpoint.tokenizer",
    "runtime.cli.run_report", "runtime.cli.run_search", "runtime.engine", "runtime.requests.chat_template",
    "runtime.requests.output_file", "runtime.requests.tokenise",
)  # fmt: skip
LATEST = 0.6  # of a whole run, when the last kills come: most outputs then take several
LONGEST_ATTEMPT = 60.0  # seconds: beyond it something hangs


def attempt(work: Path, output: Path) -> int:
    """A child that runs `hrm run --resume`; its process id."""
    pid = os.fork()
    if pid:
        return pid
    with Path(os.devnull).open("w") as nowhere, (work / "errors.txt").open("a") as errors:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    sys.argv = ["hrm", "run", *json.loads((work / "options.json").read_text()), "--output", str(output), "--resume"]
    code = 1
    try:
        run()
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        os._exit(code)


def ended(pid: int, delay: float) -> int | None:
    """Waits up to `delay` seconds; the child's status if it ended by then."""
    until = time.monotonic() + delay
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.0005)
    return None


def finish(work: Path, output: Path) -> float:
    """Runs to the end without a kill; the seconds it took."""
    begin = time.monotonic()
    status = ended(attempt(work, output), LONGEST_ATTEMPT)
    if status != 0:
        raise SystemExit(f"attempt ended with status {status}: {(work / 'errors.txt').read_text()}")
    return time.monotonic() - begin


def lines(output: Path) -> int:
    """Whole lines written so far."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def kill_some(work: Path, output: Path, most: int, seconds: float, chance: random.Random) -> list[int]:
    """Attempts on one output, each killed at a random moment, until one ends or `most` were killed.

    Returns the whole lines that stood after each kill.
    """
    stood: list[int] = []
    while len(stood) < most:
        pid = attempt(work, output)
        if (status := ended(pid, chance.uniform(0.0, seconds))) is not None:
            if status != 0:
                raise SystemExit(f"attempt ended with status {status}: {(work / 'errors.txt').read_text()}")
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        stood.append(lines(output))
    return stood


def main(work: Path, kills: int) -> None:
    """Prints the lines that stood after every kill, and how many rounds (outputs) there were."""
    for module in EARLY:
        import_module(module)
    if not any(command.name == "run" for command in app.registered_commands):
        app.command("run")(run_module.run)
    chance, stood, rounds = random.Random(0), list[int](), 0
    seconds = finish(work, work / "whole.jsonl")
    while len(stood) < kills:
        output = work / f"killed-{rounds}.jsonl"
        stood += kill_some(work, output, kills - len(stood), LATEST * seconds, chance)
        finish(work, output)
        rounds += 1
    print(json.dumps({"stood": stood, "rounds": rounds, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
