"""One kind of error for what a user can mend: a single clear line and an exit code."""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake that the user can mend; `main.py` prints it as one line.

    The text says what came, what was expected and what to type. `code` is the exit code:
    2 for usage and configuration, 4 when something exists already or is in use.
    """

    def __init__(self, text: str, code: int = 2):
        super().__init__(text)
        self.text = text  # gin adds its own lines to str(error)
        self.code = code


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint such as " - did you mean 'batch_size'? (known: a, b)", to end an error line."""
    options = sorted(options)
    folded = {option.lower(): option for option in reversed(options)}
    name = str(name).lower()
    close = [option for option in folded if len(name) > 2 and option.startswith(name)]
    close = close or difflib.get_close_matches(name, folded, n=1, cutoff=0.5)
    hint = f" - did you mean '{folded[close[0]]}'?" if close else ""
    listed = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"{hint} (known: {listed})" if options else hint


def printable(text: object) -> str:
    """`text` on one line without control characters, so that no name can drive a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))


def cause(error: BaseException) -> str:
    """Why something failed, in one line."""
    if isinstance(error, UserError):
        return printable(error.text)
    lines = str(error).strip().splitlines()
    return printable(f"{type(error).__name__}: {lines[0] if lines else ''}")


def reports_errors(main: Callable[..., int | None]) -> Callable[..., None]:
    """Wrap a command's `main`: exit with its code, and show a `UserError` as one line."""

    @functools.wraps(main)
    def run(*args) -> None:
        try:
            code = main(*args)
        except UserError as error:
            print(f"error: {printable(error.text)}", file=sys.stderr)
            code = error.code
        except BrokenPipeError:  # the reader of our output went away (| head)
            sys.stderr.close()
            code = 0
        except KeyboardInterrupt:
            code = 130
        sys.exit(code or 0)

    return run
