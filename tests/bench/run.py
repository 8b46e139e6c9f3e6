"""`make bench`: compare this gateway with vLLM's two front ends, `vllm serve` in Python and `vllm-rs` in Rust.

The servers run in turns, on the same checkpoint with the same engine flags. A lower bound is the bare engine client AsyncLLM without HTTP.
The output is a table of medians, spreads and ratios. Options write the figures as JSON and as a plot.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from bench import decisions, images, mixed, report, text
from bench.chat_requests import Row
from bench.peers import ENVIRONMENT, GATEWAY, HERE, RUST, VLLM, Peer, gateway, vllm_rs, vllm_serve
from bench.report import FLOOR, Line
from bench.vllm_rs import find

PARTS: dict[str, Callable[[Peer, argparse.Namespace], Iterator[Row]]] = {
    "text": lambda peer, options: text.rows(peer, options.seconds),
    "images": lambda peer, options: images.rows(peer, options.samples),
    "chats": lambda peer, options: images.chats(peer, options.samples),
    "decisions": lambda peer, options: decisions.rows(peer, options.samples),
    "mixed": lambda peer, options: mixed.rows(peer, options.seconds),
}
"""The rows of a part, by its name. The part `start` has only the rows that every run has."""
Start = Callable[[], AbstractContextManager[Peer]]


def main() -> None:
    """Run the benchmark."""
    options = _parser().parse_args()
    parts = options.only or list(PARTS)
    lines: dict[str, Line] = defaultdict(Line)
    peers = _peers(options.peers)
    for turn in range(options.rounds):
        for name, start in peers.items():
            begin = time.monotonic()
            with start() as peer:
                for row in _rows(peer, parts, options):
                    for unit, value in row.figures.items():
                        line = lines[f"{row.name}, {unit}"]
                        line.samples.setdefault(name, []).append(value)
                        if row.fault:
                            line.faults[name] = row.fault
            print(f"turn {turn + 1}: {name} was measured in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        if "text" in parts:
            for title, value in _floor(options.seconds):
                lines[title].samples.setdefault(FLOOR, []).append(value)
    print(report.table(lines))
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": _machine(),
        "samples": {row: line.samples for row, line in lines.items()},
        "faults": {row: line.faults for row, line in lines.items() if line.faults},
    }
    if options.distinct:
        with gateway() as peer:
            before, after = images.memory_after_new_images(peer, options.distinct)
        print(f"RSS of the front end after {options.distinct} distinct images: {after >> 20} MiB ({before >> 20} MiB after 20)")
        result["memory"] = {"images": options.distinct, "before": before, "after": after}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        report.plot(lines, options.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=5, help="requests for each row of images in a turn (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="duration of each load in a turn (default: %(default)s)")
    parser.add_argument("--distinct", type=int, default=0, metavar="N", help="also measure the gateway's memory after N new images")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "start"), help="measure only these rows")
    parser.add_argument(
        "--peers", nargs="+", choices=(VLLM, RUST, GATEWAY), default=[VLLM, RUST, GATEWAY], help="measure only these servers"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this file, SVG or PNG; needs llava-gateway[bench]")
    return parser


def _peers(names: list[str]) -> dict[str, Start]:
    """Return how to start each server. Without the program vllm-rs its column is left out, and the reason is printed."""
    peers: dict[str, Start] = {VLLM: vllm_serve, GATEWAY: gateway}
    if RUST in names:
        program = find()
        if isinstance(program, Path):
            peers[RUST] = partial(vllm_rs, program)
        else:
            print(f"{RUST} is left out: {program}")
    return {name: peers[name] for name in (VLLM, RUST, GATEWAY) if name in names and name in peers}


def _rows(peer: Peer, parts: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one turn of a server."""
    yield Row("start", {"s to ready": peer.seconds_to_ready})
    yield Row("idle", {"MiB of all processes": peer.rss_of_all() / (1 << 20), "MiB of the front end": peer.rss() / (1 << 20)})
    for name, rows in PARTS.items():
        if name in parts:
            yield from rows(peer, options)
    yield Row(
        "after all rows above", {"MiB of all processes": peer.rss_of_all() / (1 << 20), "MiB of the front end": peer.rss() / (1 << 20)}
    )
    if "text" in parts:
        yield Row(f"{text.IDLE} streams that wait", {"more MiB of the front end": text.idle_streams(peer)})


def _floor(seconds: float) -> Iterator[tuple[str, float]]:
    """Yield the titles and values of AsyncLLM's rows, measured in a process of its own. Raises RuntimeError."""
    command = [sys.executable, str(HERE / "floor.py"), "--seconds", str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT)
    if ended.returncode != 0:
        raise RuntimeError(f"AsyncLLM failed:\n{ended.stderr[-3000:]}")
    for row, values in json.loads(ended.stdout.splitlines()[-1]).items():
        yield from ((f"{row}, {unit}", value) for unit, value in values.items())


def _machine() -> str:
    model = next((line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.machine()}"


if __name__ == "__main__":
    main()
