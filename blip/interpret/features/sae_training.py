"""How sparse autoencoders are trained on cached states, and what a model loses with their states in place of its own.

Shapes: N states, D width, F features, R records.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blip.evaluation.bootstrap import Floats, Interval, bootstrap_sums
from blip.inference.files import readable_items
from blip.inference.predictor import Predictor
from blip.interpret.explain_files import Wanted
from blip.interpret.features.sae import SaeError, SparseAutoencoder, splice
from blip.interpret.features.states import Tokens
from blip.interpret.hooks import Edit
from blip.interpret.objectives import Objective, completed_answers, explained
from blip.interpret.trace import trace


@dataclass(frozen=True)
class SaeSettings:
    """How an autoencoder is trained.

    Args:
        features: how many there are.
        kind, k: as in `SparseAutoencoder`.
        sparsity: of `gated`, the weight of the gates.
        steps, batch_size: of Adam, in states.
        learning_rate: at the start; it falls to 0 over the last fifth.
        revive_every: after so many steps, features that were not active in them start anew.
        seed: of everything drawn.
    """

    features: int = 1024
    kind: str = "topk"
    k: int = 16
    sparsity: float = 0.2
    steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-3
    revive_every: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """An autoencoder on held-out states: share of the variance explained, active features a state, and the share of
    features that no held-out state activates."""

    explained: float
    active: float
    dead: float
    states: int


@torch.enable_grad()
def train_sae(tokens: Tokens, point: str, settings: SaeSettings) -> tuple[SparseAutoencoder, dict[str, Any]]:
    """Trains on the states of four of five images -> the autoencoder, and what is known of it.

    That is its quality on the fifth, `held_out`, the records about it, and how many features were revived.

    Raises:
        SaeError: settings that cannot be trained.
        ActivationError: there is one record.
    """
    if min(settings.steps, settings.batch_size, settings.revive_every) < 1 or settings.learning_rate <= 0:
        raise SaeError("steps, batch_size, revive_every and learning_rate are above 0")
    if settings.sparsity < 0:
        raise SaeError(f"sparsity is {settings.sparsity}: it is 0 or more")
    states, held = tokens.states[point], tokens.held_out()
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        sae = SparseAutoencoder(states.shape[1], settings.features, kind=settings.kind, k=settings.k)
    training = states[~held]
    sae.fit_scale(training)
    optimizer = torch.optim.Adam(sae.parameters(), settings.learning_rate)
    revived, active = 0, torch.zeros(settings.features, dtype=torch.bool)
    for step in range(1, settings.steps + 1):
        x = training[torch.randint(len(training), (settings.batch_size,), generator=generator)]
        loss, codes = sae.loss(x, settings.sparsity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            sae.directions.copy_(F.normalize(sae.directions, dim=1))
        active |= (codes > 0).any(dim=0)
        if step % settings.revive_every == 0 and step <= 0.8 * settings.steps:  # what comes later could not settle
            revived += _revive(sae, optimizer, ~active, x, generator)
            active.zero_()
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, 5 * (1 - step / settings.steps))
    sae.eval()
    records = np.unique(tokens.records[held.numpy()]).tolist()
    found = {"quality": asdict(quality(sae, states[held])), "revived": revived, "held_out": records}
    return sae, {**found, "settings": asdict(settings)}


@torch.no_grad()
def _revive(
    sae: SparseAutoencoder, optimizer: torch.optim.Adam, dead: Tensor, x: Tensor, generator: torch.Generator
) -> int:
    """Turns dead features to what is missed of states x (N, D), the likelier the larger -> their number."""
    places = dead.nonzero().squeeze(1)
    errors = x - sae(x)
    sizes = errors.square().sum(dim=1)
    if len(places) == 0 or float(sizes.sum()) == 0:
        return 0
    chosen = errors[torch.multinomial(sizes, len(places), replacement=True, generator=generator)]
    directions = F.normalize(chosen, dim=1)
    alive = sae.encoder.weight[~dead].norm(dim=1).mean() if (~dead).any() else torch.ones(())
    sae.directions[places], sae.encoder.weight[places] = directions, directions * alive
    for name in ("encoder.bias", "gain", "offset"):
        if name in dict(sae.named_parameters()):
            sae.get_parameter(name)[places] = 0
    for parameter in sae.parameters():  # Adam remembers the features that were there before
        if len(parameter) == sae.features and parameter is not sae.centre:
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[parameter][moment][places] = 0
    return len(places)


@torch.no_grad()
def quality(sae: SparseAutoencoder, states: Tensor) -> Quality:
    """What an autoencoder makes of states (N, D)."""
    error = spread = active = 0.0
    used = torch.zeros(sae.features, dtype=torch.bool)
    mean = states.mean(dim=0)
    for x in states.split(4096):
        codes = sae.codes(x)
        error += float((sae(x) - x).square().sum())
        spread += float((x - mean).square().sum())
        active += float((codes > 0).sum())
        used |= (codes > 0).any(dim=0)
    return Quality(1 - error / max(spread, 1e-12), active / len(states), 1 - float(used.float().mean()), len(states))


# ---- in the model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Downstream:
    """The model's loss as it is, with the autoencoder's states, and with the mean state everywhere; nats a record.

    `recovered` is the share of what the mean state costs that the autoencoder saves: 1 loses nothing, 0 is no better.
    """

    task: str
    original: float
    spliced: float
    mean_state: float
    recovered: Interval


def downstream(
    m: Predictor,
    sae: SparseAutoencoder,
    point: str,
    *,
    wanted: Sequence[Wanted],
    task: str = "",
    first_only: bool = False,
    batch_size: int = 32,
) -> Downstream:
    """Runs the model over records three times; the intervals are over images.

    Args:
        task: `match`, where each image is shown with its own text and with the next record's if that is another;
            `caption` or `answer`; the checkpoint's usual one unless given.
        first_only: the autoencoder is of first tokens alone.

    Raises:
        SaeError: no image could be read, or the point changes nothing in this task.
    """
    objective = explained(m, task)

    def mean_state(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, : 1 if first_only else None] = sae.mean.to(x)
        return x

    edits: list[dict[str, Edit]] = [{}, {point: splice(sae.to(m.device), first_only)}, {point: mean_state}]
    losses: list[np.ndarray] = []
    names: list[str] = []
    pairs = list(zip(wanted, [*wanted[1:], *wanted[:1]], strict=True))
    for batch, images, _ in readable_items(pairs, batch_size, lambda pair: pair[0].paths, limits=m.limits):
        if batch:
            losses.append(np.stack([_losses(m, objective, batch, images, edit=edit) for edit in edits], axis=1))
            names += [one.name for one, _ in batch]
    if not losses:
        raise SaeError("no image could be read: there is nothing to run the model on")
    table = np.concatenate(losses)
    original, spliced, ablated = table.mean(axis=0).tolist()
    if abs(ablated - original) < 1e-9:
        raise SaeError(f"{point} changes nothing in the task {objective.name}: choose another task")
    return Downstream(objective.name, original, spliced, ablated, bootstrap_sums(table, _recovered, names))


@torch.no_grad()
def _losses(
    m: Predictor, objective: Objective, batch: Sequence[tuple[Wanted, Wanted]], images: list, *, edit: dict[str, Edit]
) -> np.ndarray:
    """Nats of each record (R,), which stands with the next one."""
    texts, answers = [one.text for one, _ in batch], [one.answer for one, _ in batch]
    next_texts = [other.text for _, other in batch]
    if objective.has_answers:
        answers = completed_answers(m, images, texts, answers=answers)
    with trace(m, edit=edit):
        if objective.name != "match":
            return -objective.scores(m, images, texts, answers=answers).sum(dim=1).cpu().double().numpy()
        own = F.log_softmax(m.match_logits(images, texts, len(texts)), dim=1)[:, 1]
        others = F.log_softmax(m.match_logits(images, next_texts, len(texts)), dim=1)[:, 0]
    different = torch.tensor([a != b for a, b in zip(texts, next_texts, strict=True)], device=own.device)
    return -torch.where(different, (own + others) / 2, own).cpu().double().numpy()


def _recovered(sums: Floats) -> Floats:
    """Sums (R, 3) of the three losses -> shares recovered (R,)."""
    original, spliced, ablated = sums.T
    gap = ablated - original
    return (ablated - spliced) / np.where(np.abs(gap) < 1e-12, np.nan, gap)
