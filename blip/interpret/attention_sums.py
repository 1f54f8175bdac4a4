"""Sums over a data set of what the heads of one attention did, and the facts that follow from them.

Shapes: R texts, T rows (tokens or queries), n rows that are not padding, H heads of width d, 1+N keys (CLS and N
patches), C classes of rows.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HeadSums:
    """Sums over a data set of what the heads of one attention did."""

    def __init__(self) -> None:
        self.rows = 0  # tokens or queries so far
        self.tensors: dict[str, Tensor] = {}

    def add(self, pattern: Tensor, z: Tensor, classes: Tensor | None) -> None:
        """Adds a batch: patterns (R, H, T, 1+N), results of heads z (R, H, T, d), the classes (R, T', C) of rows.

        A row of padding is of no class. Of T' rows only the first T have patterns, where a layer ran for them alone.
        None: each of the T rows is a class of its own.
        """
        count = pattern.shape[2]
        classes = torch.eye(count).expand(len(pattern), -1, -1) if classes is None else classes[:, :count]
        classes = classes.to(pattern)
        real = classes.sum(dim=2) > 0  # (R, T)
        p = pattern.double().transpose(1, 2)[real]  # (n, H, 1+N)
        read = z.double().transpose(1, 2)[real]  # (n, H, d)
        of_class = classes.double()[real]  # (n, C)
        entropy = -torch.xlogy(p, p).sum(dim=2) / np.log(2)  # (n, H)
        self._sum("entropy", entropy.sum(dim=0))
        self._sum("on_cls", p[..., 0].sum(dim=0))
        self._sum("maps", torch.einsum("nc,nhk->chk", of_class, p))
        self._sum("of_class", of_class.sum(dim=0))
        middle = (p[:, :, None] + p[:, None]) / 2  # (n, H, H, 1+N)
        of_middle = -torch.xlogy(middle, middle).sum(dim=3) / np.log(2)
        divergence = of_middle - (entropy[:, :, None] + entropy[:, None]) / 2  # Jensen and Shannon's, in bits, 0 to 1
        self._sum("agreement", (1 - divergence).sum(dim=0))
        flat = read.flatten(1)  # (n, H*d)
        self._sum("read", flat.sum(dim=0))
        self._sum("products", flat.T @ flat)
        self.rows += len(p)

    def _sum(self, name: str, value: Tensor) -> None:
        self.tensors[name] = self.tensors[name] + value if name in self.tensors else value

    def mean(self, name: str) -> NDArray:
        """The mean over rows of `entropy`, `on_cls` or `agreement`."""
        return (self.tensors[name] / self.rows).cpu().numpy()

    def maps(self) -> NDArray:
        """(C, H, N): the average attention to patches of each class, NaN for a class without rows."""
        count = self.tensors["of_class"][:, None, None]
        means = self.tensors["maps"][..., 1:] / count
        return means.masked_fill(count == 0, float("nan")).cpu().numpy()

    def similarity(self) -> NDArray:
        """(H, H): linear CKA (Kornblith et al. 2019) of what heads read, from their covariances."""
        heads = self.tensors["entropy"].shape[0]
        mean = self.tensors["read"] / self.rows
        covariance = self.tensors["products"] / self.rows - mean[:, None] * mean  # (H*d, H*d)
        squares = covariance.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).square().sum(dim=(1, 3))  # (H, H)
        size = squares.diagonal().clamp(min=1e-30).sqrt()
        return (squares / (size[:, None] * size)).cpu().numpy()
