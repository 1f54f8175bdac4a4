"""What each process of test_exchange.py does: every exchange of rows, and its twin, which gathers everything."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip import distributed
from blip.models import momentum
from blip.models.matching import HardNegatives, match_logits
from blip.models.momentum import Entries, Queue
from blip.models.retrieval import RetrievalModel
from blip.network.pictures import Pictures, PictureStates, States, beside_one_another, padded_pictures, present_of
from blip.train.parallel import data_parallel
from blip.train.state import State
from helpers.running import join
from helpers.tiny import specials_of, spread, tiny_text, tiny_vit

BATCH, EMBED = 3, 8
MOST = (1, 2, 4, 5, 6, 9, 100)  # rows that are gathered


class Gathered(torch.autograd.Function):
    """Rows of all processes; the gradients of all with respect to this process's rows are summed on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return distributed.all_gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.all_reduce(gradient, "sum").chunk(distributed.world_size())[distributed.rank()]


class GatheringRetrieval(RetrievalModel):
    """The model that gathers the states of all images to take a few of them."""

    def _match_over_processes(self, states: States, ids: Tensor, lengths: Tensor, negatives: HardNegatives) -> Tensor:
        hard_states = self.gathered(states, negatives.image)
        all_lengths = distributed.all_gather(lengths)
        wide = F.pad(ids, (0, int(all_lengths.max()) - ids.shape[1]), value=self.specials.pad)
        ids = torch.stack([wide, distributed.all_gather(wide)[negatives.text]], dim=1).flatten(0, 1)
        own_lengths = torch.stack([lengths, all_lengths[negatives.text]], dim=1).flatten()
        keys, hard_keys = (self.text_encoder.image_keys(s) for s in (states, hard_states))
        own = match_logits(self.text_encoder, self.itm_head, ids, lengths=own_lengths, keys=keys)
        matched, with_text = own.unflatten(0, (len(lengths), 2)).unbind(dim=1)
        with_image = match_logits(self.text_encoder, self.itm_head, wide, lengths=lengths, keys=hard_keys)
        return torch.cat([matched, with_image, with_text])

    def gathered(self, states: States, wanted: Tensor) -> States:
        """The states of the images that are wanted, where all processes have one picture an item or several."""
        own = torch.ones(BATCH, dtype=torch.int64) if isinstance(states, Tensor) else states.counts
        counts = distributed.all_gather(own)
        if int(counts.max()) == 1:
            return Gathered.apply(states)[wanted]
        most = Gathered.apply(padded_pictures(states, int(counts.max())))
        return PictureStates(most[wanted], present_of(counts[wanted], most.shape[1]))


def model(kind: type[RetrievalModel]) -> RetrievalModel:
    torch.manual_seed(0)
    text = tiny_text()
    return spread(kind(tiny_vit(), text, specials_of(text), embed_dim=EMBED), 0.3)  # type: ignore[return-value]


def inputs(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, ids and lengths; the texts of each process have another width."""
    torch.manual_seed(rank)
    width = 6 + 2 * rank
    lengths = torch.tensor([width, 4, 5])
    ids = torch.randint(1, 40, (BATCH, width)).masked_fill(torch.arange(width) >= lengths[:, None], 0)
    return torch.randn(BATCH, 3, 32, 32), ids, lengths


PICTURES = ((2, 1, 2), (1, 1, 1), (1, 3, 1))  # of the items of each process, in a batch of several pictures


def studies(rank: int) -> Tensor | Pictures:
    """Items of several pictures, of one in the second process."""
    torch.manual_seed(rank)
    items = [torch.randn(count, 3, 32, 32) for count in PICTURES[rank]]
    return beside_one_another([item[0] if len(item) == 1 else item for item in items])


def losses(kind: type[RetrievalModel], *, bf16: bool, several: bool = False) -> dict[str, Tensor]:
    """Losses and gradients of a batch whose hard negatives come from all processes."""
    rank, world = distributed.rank(), distributed.world_size()
    made, queue = model(kind), Queue(4, EMBED)
    torch.manual_seed(rank)
    features = (F.normalize(torch.randn(BATCH, EMBED), dim=1) for _ in range(2))
    found = momentum.candidates(Entries(*features, *torch.arange(2 * BATCH).view(2, BATCH) + 100 * rank), queue)
    others = torch.zeros(BATCH, world * BATCH, dtype=torch.bool)
    others[:, rank * BATCH : (rank + 1) * BATCH].fill_diagonal_(True)

    def draw(weights: Tensor) -> tuple[Tensor, Tensor]:
        return weights.argmax(dim=1), weights.sum(dim=1) > 0

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        images, *texts = inputs(rank)
        out = made(studies(rank) if several else images, *texts, found, 0.4, others=others, draw=draw)
    (out.itc + out.itm).backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    return {"itc": out.itc, "itm": out.itm, "logits": out.match_logits, **gradients}


def rows(world: int) -> dict[str, tuple[Tensor, Tensor]]:
    """(what is fetched, what a gather finds) of rows and of their gradients; in the second case one process gives
    nothing, and another row is wanted by all."""
    rank, found = distributed.rank(), {}
    generator = torch.Generator().manual_seed(7)
    some = torch.randint(0, world * BATCH, (world, 5), generator=generator)
    for name, wanted in {"some": some, "of the first": torch.tensor([[0, 1, 0, 0]] * world)}.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            torch.manual_seed(rank)
            x = torch.randn(BATCH, 2, 4).to(dtype).requires_grad_()
            twin = x.detach().clone().requires_grad_()
            weights = torch.randn(wanted.shape[1], 2, 4).to(dtype)
            fetched, gathered = distributed.fetch_rows(x, wanted), Gathered.apply(twin)[wanted[rank]]
            (fetched * weights).sum().backward()
            (gathered * weights).sum().backward()
            assert x.grad is not None and twin.grad is not None
            found[f"{name} {dtype}"] = fetched.detach(), gathered.detach()
            found[f"{name} {dtype} gradient"] = x.grad, twin.grad
    return found


def last(rank: int) -> dict[int, tuple[list[Tensor], list[Tensor]]]:
    """(what is gathered of the last rows, what a gather of all finds)."""
    torch.manual_seed(rank)
    columns = [torch.randn(BATCH, 5), torch.randint(0, 99, (BATCH,)), torch.randn(BATCH, 2, 3).bfloat16()]
    columns.append(torch.randn(7, BATCH).T > 0)  # not contiguous
    twins = [distributed.all_gather(c.byte() if c.dtype == torch.bool else c) for c in columns[:2]]
    twins += [distributed.all_gather(columns[2].float()).bfloat16(), distributed.all_gather(columns[3].byte()).bool()]
    return {most: (distributed.gather_last(columns, most), [t[-most:] for t in twins]) for most in MOST}


def queues(rank: int) -> dict[int, tuple[dict, dict]]:
    """(a queue after three pushes, one into which every entry was put by itself), for several sizes."""
    found = {}
    for size in (2, 4, 5, 7, 20):
        torch.manual_seed(0)
        queue, plain = Queue(size, EMBED), Queue(size, EMBED)
        plain.load_state_dict(queue.state_dict())
        for step in range(3):
            torch.manual_seed(10 * step + rank)
            entries = Entries(*torch.randn(2, BATCH, EMBED), *torch.randint(0, 99, (2, BATCH)))
            queue.push(entries)
            for image, text, caption, image_id in zip(*map(distributed.all_gather, entries), strict=True):
                place = int(plain.pointer)
                plain.images[:, place], plain.texts[:, place] = image, text
                plain.caption_ids[place], plain.image_ids[place] = caption, image_id
                plain.pointer.fill_((place + 1) % size)
        # oldest first: a batch larger than the queue leaves the pointer elsewhere
        found[size] = tuple(
            {n: getattr(q, n).roll(-int(q.pointer), -1) for n in ("images", "texts", "caption_ids", "image_ids")}
            for q in (queue, plain)
        )
    return found


def averaged(compression: str) -> dict[str, Tensor]:
    """A layer's gradients of each process's own inputs, averaged over the processes."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    torch.manual_seed(distributed.rank())
    parallel = data_parallel(layer, torch.device("cpu"), compression)
    parallel(torch.randn(4, 6)).square().sum().backward()
    return {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}


def shared(folder: Path) -> dict[str, Any]:
    """A file that only the main process reads, on every process."""
    reads = []

    def read() -> Any:
        reads.append(1)
        torch.manual_seed(5)
        large = {
            "weights": torch.randn(300, 400),
            "half": torch.randn(40_000).bfloat16(),
            "mask": torch.rand(90_000) > 0.5,
        }
        state = State(
            {"queue": OrderedDict(large), "step": 3, "list": [torch.arange(9), (torch.randn(200, 100).T, "x")]}, folder
        )
        return state, {"info": None}

    found, info = distributed.tensors_from_main(read)
    assert type(found) is State and found.path == folder and type(found["queue"]) is OrderedDict
    return {"reads": len(reads), "found": dict(found), "info": info, "wanted": dict(read()[0])}


def process(rank: int, port: int, folder: Path, world: int) -> None:
    join(rank, port, world)
    found: dict[str, Any] = {"rows": rows(world), "last": last(rank), "queues": queues(rank), "losses": {}}
    found["shared"] = shared(folder)
    found["averaged"] = {kind: averaged(kind) for kind in ("none", "bf16")}
    for bf16 in (False, True):
        found["losses"][bf16] = losses(RetrievalModel, bf16=bf16), losses(GatheringRetrieval, bf16=bf16)
    found["several"] = [losses(kind, bf16=False, several=True) for kind in (RetrievalModel, GatheringRetrieval)]
    distributed.stop()
    torch.save(found, folder / f"{rank}.pt")
