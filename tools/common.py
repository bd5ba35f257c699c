"""What every tool needs: importing this module puts the project on the path."""
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from util.errors import UserError  # noqa: E402 - the line above makes it findable


def run_tool(main: Callable[..., int | None], *arguments: Any) -> NoReturn:
    """Ends the program with the exit code that main(*arguments) returns; a user's mistake is printed without a
    traceback."""
    try:
        sys.exit(main(*arguments))
    except UserError as error:
        sys.exit(f"error: {error}")
