"""Imports run one way through the layers, and nothing heavy is loaded before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("errors", "spec", "roofline", "schedule", "predict", "search", "plotting", "report", "cli")
SOURCES = sorted((ROOT / "hrm").rglob("*.py"))
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "pulp", "highspy", "scipy", "numpy", "pydantic", "rich.table")


def imported_modules(source: Path) -> set[str]:
    """Every module that a file imports, at any depth of the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(source: Path) -> None:
    parts = source.relative_to(ROOT / "hrm").with_suffix("").parts
    if parts[0] not in LAYERS:
        return
    own = LAYERS.index(parts[0])
    for module in imported_modules(source):
        pieces = module.split(".")
        assert pieces[0] != "runtime", f"{source} imports {module}: hrm never imports runtime"
        assert pieces[0] != "torch", f"{source} imports {module}: hrm runs without torch"
        if pieces[0] == "hrm" and len(pieces) > 1 and pieces[1] in LAYERS:
            assert LAYERS.index(pieces[1]) <= own, f"{source} imports {module}, a later layer"


@pytest.mark.parametrize("module", ["hrm.cli.main", "hrm.errors"])
def test_nothing_heavy_is_imported_early(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_library_use_does_not_load_plotting_or_torch() -> None:
    code = "import sys, hrm.search.search; print([m for m in ('torch', 'matplotlib', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
