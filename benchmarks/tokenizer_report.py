"""What one token tells of its map, and discrete against continuous tokens (Fig. 4).

    python benchmarks/tokenizer_report.py --checkpoint DIR --tiles FILE --held-out FILE --out OUT

Discrete tokens are vectors of the codebook, the connector's input. Continuous tokens are the
encoder's features before quantization. Files of tiles are made by `mmsr_edge.training.data.tiles`;
from `--tiles` it is learnt what a code tells, and on `--held-out`, of other photographs, it is
measured. Writes `tokens.csv` and `tokens.png`, with the rows map, what the codes tell and what the
features tell for each kind of map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.tokens import load_tokenizer, report
from PIL import Image

from mmsr_edge.files import write_csv
from mmsr_edge.training.data.tiles import load_tiles


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a checkpoint, or a run of train_tokenizer")
    add("--preset", help="preset of a run; default: nano")
    add("--tiles", type=Path, required=True, help="tiles to learn from what a code tells")
    add("--held-out", type=Path, required=True, help="tiles of other photographs")
    add("--count", type=int, default=256, help="most tiles of each file")
    add("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(args.checkpoint, args.preset)
    found = report(tokenizer, load_tiles(args.tiles), load_tiles(args.held_out), args.count)
    for row in found.rows:
        print(row)
    write_csv(args.out / "tokens.csv", found.rows)
    Image.fromarray(found.picture).save(args.out / "tokens.png")


if __name__ == "__main__":
    main()
