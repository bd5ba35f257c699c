"""Packages that only some of the programs need."""
import importlib.util

from util.errors import UserError


def require(*packages: str) -> None:
    """Raises UserError that names the packages which are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"this needs {' and '.join(missing)}: pip install {' '.join(missing)}")
