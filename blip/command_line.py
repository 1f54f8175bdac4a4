"""What every command shares: option types, and how errors reach the user."""

import os
import sys

from blip import distributed
from blip.errors import BlipError


class user_errors:
    """Within this block, errors that are the person's to mend end the program with a message and status 1.

    BLIP_DEBUG=1 in the environment shows the traceback.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        distributed.stop()
        if isinstance(error, BlipError | ValueError | OSError) and not os.environ.get("BLIP_DEBUG"):
            # a loader's worker sends its traceback as part of the message
            _, _, message = str(error).rpartition(f"{type(error).__name__}: ")
            print(f"error: {message.strip()}", file=sys.stderr)
            raise SystemExit(1) from None
