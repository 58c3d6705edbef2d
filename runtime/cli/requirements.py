"""What the runtime's subcommands need beyond the toolkit itself."""

from importlib.util import find_spec

from hrm.errors import HrmError

PACKAGES = ("torch", "safetensors", "tokenizers")


def require_runtime() -> None:
    """Returns where everything is installed; looks without importing.

    Raises:
        HrmError: names what is missing and how to install it.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise HrmError(f'this command needs {", ".join(missing)}: pip install "hrm[runtime]"')
