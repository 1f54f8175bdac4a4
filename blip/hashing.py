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
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.suffix in endings)
    for file in files:
        digest.update(os.fsencode(file.name))
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
