"""BLIP-2 against the published composition, by parts.

    python benchmarks/blip2.py --part stage1 --precision fp32
    python benchmarks/blip2.py --part caption --precision fp32

`stage1`: a training step of the first stage, ViT-B/16 at 224 px and a Q-Former of BERT-base's size; see
`blip2_stage1.py`. `caption`: captions by a language model of OPT-125M's sizes; see `blip2_caption.py`. The last line
printed is one JSON object, also in a file under `benchmarks/results/`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import blip2_caption, blip2_stage1, harness

PARTS = {"stage1": blip2_stage1, "caption": blip2_caption}


def main() -> None:
    parser = harness.options(__doc__, repeats=7)
    parser.add_argument("--part", choices=list(PARTS), default="stage1")
    parser.add_argument("--batch", type=int, default=8, help="images of a step of stage1")
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    harness.start(args)
    part = PARTS[args.part]
    if args.memory_of:
        part.memory_of(args)
    else:
        harness.report(args, f"blip2_{args.part}", part.measure(args))


if __name__ == "__main__":
    main()
