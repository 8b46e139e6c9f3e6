"""`make bench`: this gateway beside `vllm serve`, on the same checkpoint with the same engine flags, in one run, in turns (A B A B); and
bare AsyncLLM, with no HTTP around it, as the floor. Prints a table of medians, spreads and ratios; writes them as JSON and as a plot."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench import decisions, images, text
from bench.peers import HERE, PEERS, Peer, gateway

VLLM, GATEWAY, FLOOR = "vllm serve", "gateway", "AsyncLLM"
TARGETS = {
    "32 streams, front end CPU us per token": 0.45,
    "128 streams, front end CPU us per token": 0.45,
    "32 streams, tokens/s": -1.25,
    "text, max_tokens 1, front end CPU ms": 0.6,
    "32 streams, first token p99 ms": 0.9,
    "new 12 MP JPEG, ms": 0.4,
    "known 12 MP JPEG, ms": 0.4,
    "eight new 12 MP JPEGs at once, ms": 0.25,
    "second turn of a chat with 4 images of 2 MP, front end CPU ms": 0.25,
    "start, s to ready": 0.6,
    "idle, MiB of all processes": 0.9,
}
"""Ratios to `vllm serve`, at most; at least, where negative."""

Figures = dict[str, dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server")
    parser.add_argument("--samples", type=int, default=5, help="requests for an image's row in each turn")
    parser.add_argument("--seconds", type=float, default=10, help="for each row of streams in each turn")
    parser.add_argument("--distinct", type=int, default=0, help="also: memory after so many distinct images")
    parser.add_argument("--only", choices=("text", "images"), help="these rows alone")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the ratios here, as SVG or PNG; needs llava-gateway[bench]")
    options = parser.parse_args()
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for turn in range(options.rounds):
        for name, start in PEERS.items():
            with start() as peer:
                for row, value in _rows(peer, options):
                    figures[row][name].append(value)
            print(f"turn {turn + 1}: {name} is measured", file=sys.stderr, flush=True)
        if options.only != "images":
            for row, value in _floor(options.seconds):
                figures[row][FLOOR].append(value)
    _print(figures)
    result = {"date": time.strftime("%Y-%m-%d"), "machine": _machine(), "samples": figures}
    if options.distinct:
        with gateway() as peer:
            before, after = images.memory_after_distinct_images(peer, options.distinct)
        print(f"RSS of the front end after {options.distinct} distinct images: {after >> 20} MiB ({before >> 20} MiB after 20)")
        result["memory"] = {"images": options.distinct, "before": before, "after": after}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        _plot(figures, options.plot)


def _rows(peer: Peer, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    yield "start, s to ready", peer.seconds_to_ready
    yield "idle, MiB of all processes", peer.rss_of_all() / (1 << 20)
    if options.only != "images":
        for row, values in text.rows(peer, options.seconds):
            yield from ((f"{row}, {unit}", value) for unit, value in values.items())
    if options.only != "text":
        for row, values in (*images.rows(peer, options.samples), *decisions.rows(peer, options.samples)):
            yield from ((f"{row}, {unit}", value) for unit, value in values.items())
    yield "after all that, MiB of all processes", peer.rss_of_all() / (1 << 20)
    if options.only != "images":
        yield f"{text.IDLE} streams that wait, more MiB of the front end", text.idle_streams(peer)


def _floor(seconds: float) -> Iterator[tuple[str, float]]:
    command = [sys.executable, str(HERE / "floor.py"), "--seconds", str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"AsyncLLM failed:\n{ended.stderr[-3000:]}")
    for row, values in json.loads(ended.stdout.splitlines()[-1]).items():
        yield from ((f"{row}, {unit}", value) for unit, value in values.items())


def _ratio(peers: dict[str, list[float]]) -> float:
    return statistics.median(peers[GATEWAY]) / statistics.median(peers[VLLM])


def _print(figures: Figures) -> None:
    width = max(map(len, figures))
    print(f"{'':{width}}  {VLLM:>18}  {GATEWAY:>18}  {FLOOR:>9}  {'ratio':>6}  target")
    for row, peers in figures.items():
        cells = [f"{statistics.median(values):10.1f} ±{(max(values) - min(values)) / 2:6.1f}" for values in (peers[VLLM], peers[GATEWAY])]
        floor = f"{statistics.median(peers[FLOOR]):9.1f}" if peers.get(FLOOR) else " " * 9
        print(f"{row:{width}}  {cells[0]}  {cells[1]}  {floor}  {_ratio(peers):6.2f}  {_verdict(row, _ratio(peers))}")


def _verdict(row: str, ratio: float) -> str:
    target = TARGETS.get(row)
    if target is None:
        return ""
    met = ratio >= -target if target < 0 else ratio <= target
    return f"{'at least' if target < 0 else 'at most'} {abs(target)}: {'met' if met else 'NOT MET'}"


def _machine() -> str:
    model = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.machine()}"


def _plot(figures: Figures, path: Path) -> None:
    """A bar for each target: the gateway's share of what `vllm serve` takes, of rates the inverse, so that shorter is always better."""
    import matplotlib.pyplot as plt

    rows = [row for row in TARGETS if row in figures]
    ratios = [_ratio(figures[row]) if TARGETS[row] > 0 else 1 / _ratio(figures[row]) for row in rows]
    marks = [TARGETS[row] if TARGETS[row] > 0 else -1 / TARGETS[row] for row in rows]
    names = [row if TARGETS[row] > 0 else f"time for each of: {row}" for row in rows]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1))
    axes.barh(names, ratios, color="#3b7dd8", height=0.6)
    for place, mark in enumerate(marks):
        axes.plot([mark, mark], [place - 0.38, place + 0.38], color="#d8483b", linewidth=2)
    axes.axvline(1, color="#888888", linewidth=1)
    for place, ratio in enumerate(ratios):
        axes.text(ratio + 0.01, place, f"{ratio:.2f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.1, *ratios))
    axes.set_xlabel("share of what vllm serve takes; red: the target")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
