"""The tuned lens (Belrose et al. 2023): decoder layers as words, each through an affine map that was trained for it.

A layer writes in a basis of its own; the plain logit lens reads it in that of the last layer, and underrates it. The
map h + A h + b, zero at the start, is trained so that the word head predicts what the whole decoder predicts.

Shapes: R texts, T tokens, D width, V words, N tokens of all shards.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from blip.errors import InputError
from blip.files import write_whole
from blip.inference.predictor import Predictor
from blip.interpret.causes.labelled import Labelled
from blip.interpret.features.states import Cached, Tokens
from blip.interpret.recording import Trace, TraceError
from blip.network.med import TextDecoder


class TunedLens(nn.Module):
    """Affine maps of the states behind every decoder layer but the last, which needs none.

    Args:
        points: `decoder.0.out` and so on; the last is the decoder's own.
        width: of the decoder.
    """

    divergence: Labelled | None = None  # after training: KL to the decoder's own words by layer, of both lenses

    def __init__(self, points: list[str], width: int):
        super().__init__()
        self.points = points
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in points[:-1])
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def states(self, number: int, x: Tensor) -> Tensor:
        """States of layer `number` as the last layer would have them, of the device and the type of x."""
        if number == len(self.maps):
            return x
        weight, bias = (parameter.to(x) for parameter in self.maps[number].parameters())
        return x + F.linear(x, weight, bias)

    @torch.no_grad()
    def forward(self, t: Trace) -> dict[str, Tensor]:
        """Next-token log-probabilities (R, T, V) by point, as `logit_lens` gives them.

        Raises:
            TraceError: `t` is of a model without a decoder, or of another width, or lacks a layer.
        """
        decoder = getattr(t.model, "text_decoder", None)
        width = self.maps[0].in_features if len(self.maps) else None
        if not isinstance(decoder, TextDecoder) or width not in (None, decoder.config.width):
            raise TraceError(f"this lens is of a text decoder of width {width}, and the model has no such decoder")
        found = {}
        for number, point in enumerate(self.points):
            found[point] = decoder.head(self.states(number, t[point])).float().log_softmax(dim=-1)
        return found

    def save(self, path: str | Path) -> None:
        """Writes the lens as safetensors."""
        metadata = {"points": json.dumps(self.points)}
        write_whole(path, save({name: x.contiguous() for name, x in self.state_dict().items()}, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "TunedLens":
        """A lens that `save` wrote.

        Raises:
            InputError: the file is none.
        """
        try:
            with safe_open(path, "pt") as file:
                points = json.loads((file.metadata() or {})["points"])
            tensors = load_file(path)
            lens = cls(points, len(next(iter(tensors.values()), ())))  # of a decoder of one layer there are no maps
            lens.load_state_dict(tensors)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{path} is no tuned lens: {error}") from None
        return lens


def tuned_lens(
    m: Predictor,
    shards: str | Path,
    *,
    steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> TunedLens:
    """Trains a tuned lens on activations at `decoder.*.out` of this model.

    Every fifth image is held out with its records; `divergence` of the result has the Kullback-Leibler divergence on
    these, in nats a token, of the plain logit lens and of the tuned one.

    Args:
        m: what `blip.load` returns, with a text decoder.
        shards: what `blip activations DATA --points "decoder.*.out" --task caption --out SHARDS` wrote.
        steps, batch_size: of training, in tokens.
        learning_rate: of Adam, falling linearly to 0.

    Raises:
        ActivationError: the shards are missing, lack a layer, or hold one record.
        InputError: the model has no decoder, the shards are of another width, or options cannot be used.

    Example:
        >>> from pathlib import Path
        >>> from blip.interpret.activations import Capture, capture
        >>> from blip.interpret.explain_files import find_pairs
        >>> m = blip.load("checkpoint")
        >>> points = [name for name in blip.names(m) if name.startswith("decoder") and name.endswith("out")]
        >>> texts = [f"{size} {side} effusion" for size in ("small", "large", "") for side in ("left", "right")]
        >>> pairs = list(find_pairs("chest.png", texts))  # as `blip activations` does
        >>> problems = capture(m, pairs, Capture("", "", points, "caption"), Path("shards"))
        >>> lens = blip.tuned_lens(m, "shards", steps=20)
        >>> print(lens.divergence)
    """
    decoder = getattr(m.model, "text_decoder", None)
    if not isinstance(decoder, TextDecoder):
        raise InputError("this model has no text decoder: a tuned lens reads captions or answers")
    if steps < 0 or batch_size < 1 or learning_rate <= 0:
        raise InputError(f"steps is {steps}, batch_size {batch_size} and learning_rate {learning_rate}: too small")
    cached = Cached(shards)
    points = cached.matching([f"decoder.{number}.out" for number in range(len(decoder.layers))])
    tokens = cached.tokens(points)
    width = tokens.states[points[-1]].shape[1]
    if width != decoder.config.width:
        raise InputError(f"the activations have width {width}, the decoder {decoder.config.width}: of another model?")
    held = tokens.held_out()
    lens = TunedLens(points, width).to(m.device)
    _train(
        lens, decoder, tokens, (~held).nonzero().squeeze(1), steps=steps, batch_size=batch_size,
        learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
    lens.divergence = _table(lens, decoder, tokens, held.nonzero().squeeze(1))
    return lens


@torch.enable_grad()
def _train(
    lens: TunedLens,
    decoder: TextDecoder,
    tokens: Tokens,
    rows: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Steps of Adam on the tokens `rows`, all layers at once."""
    parameters = list(lens.parameters())
    if not parameters:  # of a decoder of one layer
        return
    optimizer = torch.optim.Adam(parameters, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        chosen = rows[torch.randint(len(rows), (batch_size,), generator=generator)]
        loss = torch.stack([d.mean() for d in _divergences(lens, decoder, tokens, chosen)]).sum()
        grads = torch.autograd.grad(loss, parameters)  # the model's parameters get none
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.step()


def _divergences(lens: TunedLens, decoder: TextDecoder, tokens: Tokens, chosen: Tensor) -> list[Tensor]:
    """KL (n,) of the words that the whole decoder predicts to those of each layer but the last."""
    device = decoder.head.bias.device
    states = [tokens.states[point][chosen].to(device) for point in lens.points]
    with torch.no_grad():
        own = decoder.head(states[-1]).float().log_softmax(dim=-1)
    read = [decoder.head(lens.states(number, x)).float().log_softmax(dim=-1) for number, x in enumerate(states[:-1])]
    return [F.kl_div(words, own, log_target=True, reduction="none").sum(dim=1) for words in read]


@torch.no_grad()
def _table(lens: TunedLens, decoder: TextDecoder, tokens: Tokens, rows: Tensor) -> Labelled:
    """The mean divergence of each layer on held-out tokens, of the plain lens and of the trained one."""
    plain = TunedLens(lens.points, decoder.config.width).to(decoder.head.bias.device)
    means = []
    for one in (plain, lens):
        sums = torch.zeros(len(lens.maps), dtype=torch.float64)
        for part in rows.split(1024):
            sums += torch.tensor([float(d.sum()) for d in _divergences(one, decoder, tokens, part)]).double()
        means.append(sums / len(rows))
    labels = {"layer": lens.points[:-1], "lens": ["logit lens", "tuned lens"]}
    return Labelled(torch.stack(means, dim=1).numpy(), ("layer", "lens"), labels, "divergence", "nats a token")
