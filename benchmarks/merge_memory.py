"""Memory and time of `blip capfilt merge` on ten million scored texts.

    python benchmarks/merge_memory.py [--pairs 10000000] [--folder /tmp]

Every second text passes, by a share, which takes two readings. It needs about 4 GB of disk. The last line is one JSON
object; memory in MB (10^6 bytes), the highest that the process reached.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.annotations_memory import CAPTION
from blip.capfilt.merge import Rule, merge
from blip.data.jsonl_shards import Line, write_jsonl_shards

SHARD = 100_000  # texts


def lines(block: int, count: int) -> Iterator[Line]:
    for i in range(block * SHARD, min(count, (block + 1) * SHARD)):
        text = CAPTION.format(20 + i % 70, i % 90, i)
        about = {"image": f"/data/figures/{i % 997:03}/PMC{i // 2:08}_g001.jpg", "text": text}
        yield about | {"source": ("web", "synthetic")[i % 2], "round": i % 2, "match": i * 0.61803 % 1, "itc": 0.3,
                       "model": "0123456789ab"}  # fmt: skip


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the shards are written meanwhile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        scored, out = Path(place) / "scored", Path(place) / "merged.jsonl"
        blocks = -(-options.pairs // SHARD)
        for _ in write_jsonl_shards(
            scored, {"step": "score"}, blocks, make_lines=lambda block: lines(block, options.pairs)
        ):
            pass
        before = peak_mb()
        started = time.perf_counter()
        found = merge([scored], out, Rule(fraction=0.5))
        seconds = time.perf_counter() - started
        written = out.stat().st_size / 1e6
    kept = sum(found.kept.values())
    print(f"{options.pairs} texts, {kept} kept, {written:.0f} MB written in {seconds:.0f} s")
    result = {"name": "merge_memory", "pairs": options.pairs, "kept": kept, "peak_mb": round(peak_mb(), 1)}
    print(json.dumps({**result, "before_mb": round(before, 1), "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
