"""What several test files share."""

import gc
from collections.abc import Callable

import pytest

from hrm.cli.main import GC_THRESHOLDS, run

gc.set_threshold(*GC_THRESHOLDS)

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hrm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs the `hrm` command in this process: (exit code, stdout, stderr)."""

    def invoke(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hrm", *words])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            run()
        captured = capsys.readouterr()
        code = stopped.value.code
        return (0 if code is None else int(code)), captured.out, captured.err

    return invoke
