"""Images inside of tar files, read one by one in any order: the reference SHARD.tar#OFFSET+LENGTH in place of a path.

`blip data shard` writes such references into the `annotations.jsonl` beside its shards. Where the content of a file
begins and how many bytes it has is all that reading it takes; its header, the 512 bytes before it, is compared with the
reference, so that a shard that was written anew is not read by old annotations.
"""

import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from blip.errors import InputError
from blip.files import open_regular

REFERENCE = re.compile(r"(?P<file>.+\.tar)#(?P<offset>\d{1,18})\+(?P<length>\d{1,18})", re.DOTALL | re.IGNORECASE)
BLOCK = tarfile.BLOCKSIZE
MAGIC, LENGTH = slice(257, 262), slice(124, 136)  # of a header: the mark of a tar file, and the file's length


@dataclass(frozen=True)
class Member:
    """Where the content of a file lies in a tar file, in bytes."""

    offset: int
    length: int

    def reference(self, shard: str) -> str:
        """What names it in place of the path of an image."""
        return f"{shard}#{self.offset}+{self.length}"


def members(path: Path) -> dict[str, Member]:
    """The regular files of an uncompressed tar file by name."""
    with tarfile.open(path, "r:") as tar:
        return {one.name: Member(one.offset_data, one.size) for one in tar if one.isreg()}


def parsed(reference: re.Match[str]) -> tuple[str, Member]:
    """The tar file that a match of `REFERENCE` names, and where in it the content lies."""
    return reference["file"], Member(int(reference["offset"]), int(reference["length"]))


def read_member(file: str, member: Member) -> bytes:
    """The content of a file in a tar file.

    Raises:
        InputError: there is none of this length at this place.
        ReadError, OSError: the tar file cannot be read.
    """
    with open_regular(file) as tar:
        size = os.fstat(tar.fileno()).st_size
        if member.offset >= BLOCK and member.offset + member.length <= size:
            tar.seek(member.offset - BLOCK)
            header, content = tar.read(BLOCK), tar.read(member.length)
            if header[MAGIC] == b"ustar" and _length(header) == member.length == len(content):
                return content
    raise InputError(
        f"{file} has no file of {member.length:,} bytes at byte {member.offset:,}: these annotations belong to other "
        "shards; write both anew with `blip data shard`"
    )


def _length(header: bytes) -> int:
    digits = header[LENGTH].strip(b"\0 ")
    return int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else -1
