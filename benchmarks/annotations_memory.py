"""Memory of a million annotations in the main process, and how much of it four loader workers copy.

    python benchmarks/annotations_memory.py [--pairs 1000000] [--workers 4]

Linux only: it reads /proc. The last line is one JSON object; memory in MB (10^6 bytes).
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from blip.data.order import EpochOrder
from blip.data.pairs import Pairs, read_pairs

# as long as a caption of a figure in an article often is
CAPTION = (
    "Axial CT of the abdomen in a patient of {} years shows a lesion of {} mm in the right lobe of the liver ({})."
)


def memory(field: str) -> float:
    """A line of this process's smaps_rollup, such as Rss or Private_Dirty, in MB."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def write(path: Path, count: int) -> None:
    with open(path, "w") as file:
        for i in range(count):
            caption = CAPTION.format(20 + i % 70, i % 90, i)
            file.write(json.dumps({"image": f"figures/{i % 997:03}/PMC{i:08}_g001.jpg", "caption": caption}) + "\n")


def worker(pairs: Pairs, order: EpochOrder, connection: Connection) -> None:
    """Reads every record in an epoch's order, as a loader's worker does, and sends its growth of private memory."""
    before = memory("Private_Dirty")
    total = 0
    for position in range(order.per_rank):
        index = order.index(0, position)
        total += len(pairs.captions(index)[0]) + len(pairs.image_path(index))
    connection.send((memory("Private_Dirty") - before, total))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    before = memory("Rss")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        write(path, options.pairs)
        size = path.stat().st_size / 1e6
        started = time.perf_counter()
        pairs = read_pairs([str(path)])
        seconds = time.perf_counter() - started
    after = memory("Rss")
    print(f"file {size:.0f} MB, read in {seconds:.1f} s by process {os.getpid()}")
    print(f"resident: {before:.0f} MB before, {after:.0f} MB after; arrays {pairs.nbytes / 1e6:.0f} MB")

    context = multiprocessing.get_context("fork")
    order = EpochOrder(len(pairs), seed=0)
    pipes = [context.Pipe(duplex=False) for _ in range(options.workers)]
    processes = [context.Process(target=worker, args=(pairs, order, send)) for _, send in pipes]
    for process in processes:
        process.start()
    growth = [receive.recv()[0] for receive, _ in pipes]
    for process in processes:
        process.join()
    print("growth of each worker after an epoch: " + ", ".join(f"{mb:.0f}" for mb in growth) + " MB")
    result = {
        "name": "annotations_memory",
        "pairs": len(pairs),
        "rss_mb": round(after - before, 1),
        "worker_growth_mb": round(max(growth), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
