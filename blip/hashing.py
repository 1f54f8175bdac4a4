"""Numbers and fingerprints that depend on content alone: equal on every machine and in every process."""

import hashlib
import os
from pathlib import Path


def stable_hash(*parts: object) -> int:
    """63-bit number from the text of `parts`, the same on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fingerprint(checkpoint: str | Path) -> str:
    """12 hexadecimal digits from the content of a file, or of the weights, configuration and tokenizer in a folder.

    Raises OSError where a file cannot be read.
    """
    checkpoint, digest = Path(checkpoint), hashlib.sha256()
    files = [checkpoint]
    if checkpoint.is_dir():
        endings = (".safetensors", ".pth", ".bin", ".json", ".txt")
        found = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.suffix in endings)
        files = [path for path in found if not path.name.startswith(".")]  # without records of who wrote the folder
    for file in files:
        digest.update(os.fsencode(file.name))
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


Signature = tuple[int, str]  # size and hash of a file
ENDS = 8 << 20  # bytes at each end of a large file that `signature` reads


def signature(path: Path) -> Signature | None:
    """Size and hash of a file, or None where there is no such file; of a large file, of its first and last 8 MiB."""
    if not os.path.isfile(path):  # nor does one exist whose name is too long
        return None
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(0, size - ENDS))
        digest.update(file.read(ENDS))
    return size, digest.hexdigest()[:16]
