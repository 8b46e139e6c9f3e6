"""`make bench`: this gateway beside `vllm serve`, in one run, in turns (A B A B). Prints a table of medians and ratios, and writes JSON."""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

import images
from peers import PEERS, gateway


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server")
    parser.add_argument("--samples", type=int, default=5, help="requests for a row in each turn")
    parser.add_argument("--distinct", type=int, default=0, help="also: memory after so many distinct images")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        for name, start in PEERS.items():
            with start() as peer:
                for row, values in images.rows(peer, options.samples):
                    for unit, value in values.items():
                        figures[f"{row}, {unit}"][name].append(value)
    medians = {row: {name: statistics.median(values) for name, values in peers.items()} for row, peers in figures.items()}
    width = max(map(len, medians))
    print(f"{'':{width}}  {'vllm serve':>12}  {'gateway':>12}  {'ratio':>6}")
    for row, peers in medians.items():
        print(f"{row:{width}}  {peers['vllm serve']:12.1f}  {peers['gateway']:12.1f}  {peers['gateway'] / peers['vllm serve']:6.2f}")
    result = {"rows": medians, "samples": {row: dict(peers) for row, peers in figures.items()}}
    if options.distinct:
        with gateway() as peer:
            before, after = images.memory_after_distinct_images(peer, options.distinct)
        print(f"RSS of the front end after {options.distinct} distinct images: {after >> 20} MiB ({before >> 20} MiB after 20)")
        result["memory"] = {"images": options.distinct, "before": before, "after": after}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
