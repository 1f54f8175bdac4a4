"""Fingerprints of weights: the same for the same numbers, whatever the format of the file that they are from."""

import hashlib
from collections.abc import Iterable

from torch import Tensor

ENDS = 2048  # numbers at either end of a tensor that a fingerprint covers


def fingerprint_of(tensors: Iterable[Tensor]) -> str:
    """12 hexadecimal digits from the shapes and numbers of weights; of a large tensor, of its ends.

    The names, the order, the type of number (where it holds the values exactly) and weights that are held twice make no
    difference: another format of the same weights has the same fingerprint.
    """
    return combined(digest_of(tuple(tensor.shape), ends_of(tensor)) for tensor in tensors)


def ends_of(tensor: Tensor) -> list[Tensor]:
    """The numbers of a tensor that a fingerprint covers."""
    flat = tensor.detach().reshape(-1)
    return [flat] if len(flat) <= 2 * ENDS else [flat[:ENDS], flat[-ENDS:]]


def digest_of(shape: tuple[int, ...], ends: Iterable[Tensor]) -> bytes:
    """The digest of one tensor from its shape and the result of `ends_of`."""
    digest = hashlib.sha256(repr(shape).encode())
    for part in ends:
        digest.update(part.float().contiguous().cpu().numpy().tobytes())
    return digest.digest()


def combined(digests: Iterable[bytes]) -> str:
    """The fingerprint of tensors from their digests."""
    return hashlib.sha256(b"".join(sorted(set(digests)))).hexdigest()[:12]
