"""What every command shares: how errors reach the user."""

import os
import sys
import traceback

from blip import distributed
from blip.errors import BlipError

REPORT = (
    "\nThis is a defect of blip, not a mistake in what it was given. Please report it, with the command and the "
    "traceback above, in the issue tracker of the repository that blip was installed from."
)


class user_errors:
    """Within this block, errors that a user can mend end the program with one message and status 1.

    These are `BlipError`, and what the operating system says of a file that it names (no such file, permission denied,
    disk full). Any other exception is a defect: its traceback is shown, and where to report it; the status is 1 too.
    BLIP_DEBUG=1 in the environment shows every traceback.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        distributed.stop()
        if not isinstance(error, Exception) or os.environ.get("BLIP_DEBUG"):
            return
        if message := user_message(error):
            print(f"error: {message}", file=sys.stderr)
        elif type(error).__module__.partition(".")[0] in ("typer", "click"):  # the command line's own errors
            return
        else:
            traceback.print_exception(error)
            print(REPORT, file=sys.stderr)
        raise SystemExit(1) from None


def user_message(error: Exception) -> str | None:
    """The message of an error that a user can mend, or None for a defect."""
    if isinstance(error, BlipError):
        # a loader's worker sends its traceback as part of the message
        return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None
