"""Who may use the page: users and their passwords, which never stand on a command line."""

import os
from collections.abc import Sequence
from pathlib import Path

from blip.errors import InputError
from blip.files import read_text

SHORTEST = 8  # characters of a password
VARIABLE = "env:"
LIMIT = 4096  # bytes of a file with a password


def passwords(given: Sequence[str]) -> list[tuple[str, str]]:
    """(user, password) of each `USER:FILE` or `USER:env:VARIABLE`.

    The password is the first line of the file, or the value of the environment variable.

    Raises:
        InputError: there is no such variable, or a password is too short; the message never has the password.
        ReadError: the file cannot be read.
    """
    found: dict[str, str] = {}
    for one in given:
        user, _, place = one.partition(":")
        if not user.strip() or not place:
            raise InputError("--auth takes USER:FILE or USER:env:VARIABLE, where the password is")
        if place.startswith(VARIABLE):
            variable = place.removeprefix(VARIABLE)
            if variable not in os.environ:
                raise InputError(f"--auth: there is no environment variable {variable}")
            password = os.environ[variable]
        else:
            password = next(iter(read_text(Path(place), LIMIT).splitlines()), "")
        if len(password) < SHORTEST:
            raise InputError(f"--auth: the password of {user} is shorter than {SHORTEST} characters")
        if user in found:
            raise InputError(f"--auth: {user} is given twice")
        found[user] = password
    return list(found.items())
