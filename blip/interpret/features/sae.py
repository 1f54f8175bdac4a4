"""A sparse autoencoder: states as sums of few directions out of many, which are learnt (Bricken et al. 2023).

Two kinds. `topk` keeps the k largest features of a state (Gao et al. 2024). `gated` decides by one threshold whether a
feature is active and by another how much (Rajamanoharan et al. 2024), and pays for each that is.

Shapes: N states, D width, F features.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from blip.errors import BlipError
from blip.files import ReadError, json_text, read_json, write_whole
from blip.interpret.hooks import Edit
from blip.interpret.points import STATES, is_state

KINDS = ("topk", "gated")
WEIGHTS, ABOUT = "sae.safetensors", "sae.json"
OF_SHARDS = ("task", "pool", "weights", "contents")  # what activations have to share with those it was trained on


class SaeError(BlipError):
    """A sparse autoencoder that cannot be trained, loaded or used here; the message gives the reason."""


class SparseAutoencoder(nn.Module):
    """x -> codes (N, F), few of them above 0 -> codes @ directions + centre.

    States are centred and divided by their root mean square distance from the mean, so that the squared error is the
    share of the variance that is not explained.

    Args:
        width, features: D and F.
        kind: of `KINDS`.
        k: active features of a state, of `topk`.
    """

    mean: Tensor  # (D,) of the training states
    scale: Tensor  # (), their root mean square distance from it

    def __init__(self, width: int, features: int, *, kind: str = "topk", k: int = 16):
        super().__init__()
        if kind not in KINDS:
            raise SaeError(f"kind is {kind!r}; it can be {', '.join(KINDS)}")
        if features < 1:
            raise SaeError(f"there are {features} features: there have to be 1 or more")
        if kind == "topk" and not 1 <= k <= features:
            raise SaeError(f"k is {k} and there are {features} features: k lies between 1 and their number")
        if kind == "topk" and k > width:
            raise SaeError(f"k is {k} and the states have width {width}: more directions than that are not sparse")
        self.kind, self.k = kind, k
        self.directions = nn.Parameter(F.normalize(torch.randn(features, width), dim=1))
        self.encoder = nn.Linear(width, features)
        with torch.no_grad():
            self.encoder.weight.copy_(self.directions)
            self.encoder.bias.zero_()
        self.centre = nn.Parameter(torch.zeros(width))
        if kind == "gated":
            self.gain = nn.Parameter(torch.zeros(features))  # logarithm of the size of a feature
            self.offset = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @property
    def features(self) -> int:
        return len(self.directions)

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> None:
        """Takes mean and scale from states (N, D)."""
        self.mean.copy_(x.mean(dim=0))
        self.scale.copy_((x - self.mean).square().sum(dim=1).mean().sqrt().clamp_min(1e-8))

    def codes(self, x: Tensor) -> Tensor:
        """States (..., D) -> codes (..., F), zero or above."""
        return self._codes(self._scaled(x))[0]

    def forward(self, x: Tensor) -> Tensor:
        """States (..., D) -> what the active features make of them (..., D), of the same type."""
        restored = self._restored(self.codes(x))
        return (restored * self.scale + self.mean).to(x.dtype)

    def loss(self, x: Tensor, sparsity: float = 0.0) -> tuple[Tensor, Tensor]:
        """The loss of states (N, D), and their codes (N, F).

        Of `topk` the squared error alone. Of `gated` also `sparsity` times the sum of the gates, and the error of what
        the gates restore by themselves: without it nothing would teach them.
        """
        scaled = self._scaled(x)
        codes, gates = self._codes(scaled)
        loss = (self._restored(codes) - scaled).square().sum(dim=1).mean()
        if self.kind == "gated":
            alone = gates @ self.directions.detach() + self.centre.detach()
            loss = loss + sparsity * gates.sum(dim=1).mean() + (alone - scaled).square().sum(dim=1).mean()
        return loss, codes

    def _scaled(self, x: Tensor) -> Tensor:
        return (x.to(self.directions.dtype) - self.mean) / self.scale

    def _restored(self, codes: Tensor) -> Tensor:
        return codes @ self.directions + self.centre

    def _codes(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and how far open each gate is; of `topk` both are the same."""
        projected = (scaled - self.centre) @ self.encoder.weight.T
        gates = F.relu(projected + self.encoder.bias)
        if self.kind == "topk":
            values, places = gates.topk(self.k, dim=-1)
            kept = torch.zeros_like(gates).scatter(-1, places, values)
            return kept, kept
        sizes = F.relu(projected * self.gain.exp() + self.offset)
        return sizes * (gates > 0), gates


def splice(sae: SparseAutoencoder, first_only: bool = False) -> Edit:
    """An edit for `blip.trace` that puts what the autoencoder restores in place of the states, or of the first token's.

    The autoencoder moves to the device of the states.

    Example:
        >>> with blip.trace(m, edit={"text.0.out": splice(sae)}):  # doctest: +SKIP
        ...     m.match_probability("chest.png", "small left effusion")
    """

    def edit(x: Tensor) -> Tensor:
        if x.shape[-1] != len(sae.mean):
            raise SaeError(f"the autoencoder is of width {len(sae.mean)}, and the states have width {x.shape[-1]}")
        sae.to(x.device)
        if not first_only:
            return sae(x)
        x = x.clone()
        x[:, 0] = sae(x[:, 0])
        return x

    return edit


def check_point(point: str) -> None:
    """SaeError for a point that has heads: an autoencoder is of states."""
    if not is_state(point):
        raise SaeError(f"{point} is no state: a sparse autoencoder is of points that end in {', '.join(STATES)}")


def save_sae(folder: Path, sae: SparseAutoencoder, about: dict[str, Any]) -> list[str]:
    """Writes the autoencoder and what is known of it -> the names of the files."""
    write_whole(folder / WEIGHTS, save({name: x.contiguous() for name, x in sae.state_dict().items()}))
    sizes = {"width": len(sae.mean), "features": sae.features, "kind": sae.kind, "k": sae.k}
    write_whole(folder / ABOUT, json_text({**sizes, **about}))
    return [WEIGHTS, ABOUT]


def load_sae(folder: str | Path) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """What `save_sae` wrote.

    Raises:
        SaeError: the folder holds no autoencoder.
    """
    folder = Path(folder)
    try:
        about = read_json(folder / ABOUT, dict[str, Any])
        sae = SparseAutoencoder(about["width"], about["features"], kind=about["kind"], k=about["k"])
        sae.load_state_dict(load_file(folder / WEIGHTS))
    except (ReadError, OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        problem = str(error).splitlines()[0]
        raise SaeError(f"{folder} holds no sparse autoencoder ({problem}): blip sae train writes one") from None
    return sae.eval(), about
