"""How the verbs print: names and texts of files reach the terminal in a form that it can only show."""

from __future__ import annotations

import sys

from monosema.core.console import print_error
from monosema.core.printable import encodable, terminal_text


def show(result: object = "", *, end: str = "\n") -> None:
    """Print ``result`` on standard output."""
    print(encodable(terminal_text(str(result)), sys.stdout.encoding), end=end)


def show_error(message: object) -> None:
    """Print ``message`` on standard error."""
    print_error(str(message))
