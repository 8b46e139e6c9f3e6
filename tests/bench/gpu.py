"""`make bench-gpu`: compare this gateway with `vllm serve` and `vllm-rs` on a GPU, with requests that each have a new image.

All servers serve a checkpoint in the shapes of LLaVA-1.5-7B with random weights, with the same engine flags. Each figure is written to
DIR/results.jsonl as soon as it is measured, so a run that is cut off leaves its figures. DIR/table.txt and DIR/plot.svg follow at the end;
`--read DIR` makes them again. With `--device cpu` a small model is served, which shows that the benchmark itself works.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import report
from bench.chat_requests import CHAT, Row, answer_all, chat, prompt_tokens, user
from bench.engine_load import EngineLoad
from bench.peers import GATEWAY, RUST, VLLM, Peer, Served, gateway, vllm_rs, vllm_serve
from bench.pictures import MEDIUM, new_pictures
from bench.report import Line
from bench.run import Start
from bench.text import stream_row, wrong_length
from bench.vllm_rs import find
from helpers.gpu import Device, find_device, utilisation, vllm_version
from helpers.llava_15_shapes import FLAGS, write_checkpoint

from llava_gateway.demo import MODEL_NAME
from llava_gateway.loadtest.bodies import chat_bodies
from llava_gateway.loadtest.client import LoadTarget
from llava_gateway.loadtest.run import LoadResult, run_load_test

ENGINE_FLAGS = {
    "cuda": (*FLAGS, "--max-num-seqs", "256"),
    "cpu": (
        *FLAGS,
        "--max-num-seqs",
        "64",
        "--enforce-eager",
        "--kv-cache-memory-bytes",
        str(512 << 20),
        "--mm-processor-cache-gb",
        "0.25",
    ),
}
SIZES = {"cuda": "LLaVA-1.5-7B's shapes", "cpu": "a small LLaVA-1.5"}
WARM_UP_STREAMS, WARM_UP_REQUESTS = 8, 32
WITH_IMAGES = "with a new 2 MP JPEG"
RESULTS = "results.jsonl"
PANELS = (
    (WITH_IMAGES, "requests/s"), (WITH_IMAGES, "first token p99 ms"), (WITH_IMAGES, "requests outside of the engine, mean"),
    ("of text", "front end CPU us per token"), (WITH_IMAGES, "front end CPU ms per image"), (WITH_IMAGES, "GPU idle %"),
)  # fmt: skip
"""The plots: the kind of requests, and the figure."""


@dataclass(frozen=True)
class Plan:
    """The loads of each server."""

    streams: tuple[int, ...]
    tokens: int
    """Tokens of each answer."""
    seconds: float
    """The time in which the requests of a load start."""


PLANS = {"cuda": Plan((1, 32, 128, 256), 128, 20), "cpu": Plan((1, 4), 16, 5)}


def main() -> None:
    """Run the benchmark, or show the figures of an earlier run."""
    options = _parser().parse_args()
    if options.read:
        _show(options.read)
        return
    device = find_device(options.device)
    usual = PLANS[device.kind]
    plan = Plan(tuple(options.streams or usual.streams), options.tokens or usual.tokens, options.seconds or usual.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (options.out / RESULTS).open("w") as results:

        def write(**entry: object) -> None:
            print(json.dumps(entry), file=results, flush=True)
            print(json.dumps(entry), file=sys.stderr, flush=True)

        checkpoint = Path(folder) / MODEL_NAME
        write_checkpoint(checkpoint, "7b" if device.kind == "cuda" else "small")
        flags = ENGINE_FLAGS[device.kind]
        date, vllm = time.strftime("%Y-%m-%d"), vllm_version()[0]
        write(date=date, device=device.name, vllm=vllm, model=SIZES[device.kind], flags=flags, plan=vars(plan))
        for name, start in _peers(options.peers, Served(lambda: nullcontext(checkpoint), flags)).items():
            if isinstance(start, str):
                write(server=name, left_out=start)
                continue
            try:
                with start() as peer:
                    for row in rows(peer, checkpoint, plan, device):
                        write(server=name, row=row.name, figures=row.figures, fault=row.fault)
            except (RuntimeError, AssertionError, OSError) as error:  # the other servers are still measured
                write(server=name, left_out=str(error)[-2000:])
    _show(options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--streams", type=int, nargs="+", help="numbers of streams at the same time (1 32 128 256; on a CPU 1 4)")
    parser.add_argument("--tokens", type=int, help="tokens of each answer (128; on a CPU 16)")
    parser.add_argument("--seconds", type=float, help="time in which the requests of a load start (20; on a CPU 5)")
    parser.add_argument("--peers", nargs="+", choices=(VLLM, RUST, GATEWAY), default=[GATEWAY, VLLM, RUST], help="the servers, in order")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), metavar="DIR", help="directory for the results (%(default)s)")
    parser.add_argument("--read", type=Path, metavar="DIR", help="measure nothing; make the table and the plot of an earlier run")
    return parser


def _peers(names: list[str], served: Served) -> dict[str, Start | str]:
    """Return how to start each server, or the reason why it is left out."""
    starts: dict[str, Start | str] = {GATEWAY: partial(gateway, served=served), VLLM: partial(vllm_serve, served)}
    if RUST in names:
        program = find()
        starts[RUST] = partial(vllm_rs, program, served) if isinstance(program, Path) else program
    return {name: starts[name] for name in names}


def rows(peer: Peer, checkpoint: Path, plan: Plan, device: Device) -> Iterator[Row]:
    """Yield the rows of one server: its start, and loads of text and of images for each number of streams."""
    yield Row("start", {"s until ready": peer.seconds_to_ready})
    fault = _wrong_prompt(peer, checkpoint)
    # The first requests fill caches and compile kernels.
    asyncio.run(_load(peer, WARM_UP_STREAMS, plan.tokens, images=1, requests=WARM_UP_REQUESTS))
    for streams in plan.streams:
        text = _row(peer, streams, plan, device, fault, images=0)
        yield text
        with_images = _row(peer, streams, plan, device, fault, images=1)
        of_tokens = text.figures["front end CPU us per token"] * plan.tokens / 1000
        with_images.figures["front end CPU ms per image"] = with_images.figures["front end CPU ms per request"] - of_tokens
        yield with_images


def _wrong_prompt(peer: Peer, checkpoint: Path) -> str:
    """Return a sentence if the prompt of a chat with an image has a wrong number of tokens, or nothing."""
    messages = [user("Describe this image.", next(new_pictures(MEDIUM)))]
    ((outcome,), _), expected = asyncio.run(answer_all(peer, [chat(peer, messages).body])), prompt_tokens(messages, checkpoint)
    return "" if outcome.prompt_tokens == expected else f"the prompt has {outcome.prompt_tokens} tokens instead of {expected}"


def _row(peer: Peer, streams: int, plan: Plan, device: Device, fault: str, *, images: int) -> Row:
    """Return the figures of a load in which each client sends its next request when its last one is answered."""
    engine, cpu, own = EngineLoad(peer), peer.cpu(), time.process_time()
    with utilisation(device) as busy:
        result = asyncio.run(_load(peer, streams, plan.tokens, images=images, seconds=plan.seconds))
    cpu, own = peer.cpu() - cpu, time.process_time() - own
    if result.errors:
        raise RuntimeError(f"{len(result.errors)} of {len(result.outcomes)} requests failed: {result.errors[0]}")
    answered = len(result.answered)
    first = sorted(outcome.first * 1000 for outcome in result.answered if outcome.first is not None) or [0.0]
    figures = {
        "requests/s": answered / result.seconds,
        "tokens/s": result.tokens / result.seconds,
        "first token p50 ms": first[len(first) // 2],
        "first token p99 ms": first[int(len(first) * 0.99)],
        "front end CPU ms per request": cpu / answered * 1000,
        "client CPU, cores": own / result.seconds,
        **engine.figures(streams, result.seconds),
    }
    if not images:
        figures["front end CPU us per token"] = cpu / result.tokens * 1e6
    if (share := busy.mean()) is not None:
        figures["GPU idle %"] = 100 - share
    kind = WITH_IMAGES if images else "of text"
    return Row(f"{stream_row(streams)} {kind}", figures, fault or wrong_length(result, plan.tokens))


async def _load(peer: Peer, streams: int, tokens: int, *, images: int, seconds: float = 600, requests: int = 1_000_000) -> LoadResult:
    bodies = chat_bodies(MODEL_NAME, max_tokens=tokens, images=images, image_size=MEDIUM.size, ignore_eos=True, **peer.fields)
    bodies = itertools.chain([next(bodies)], bodies)  # the first one draws the photograph, which is not a part of the load
    return await run_load_test(LoadTarget(f"{peer.url}/v1"), CHAT, bodies, streams, requests, deadline=time.monotonic() + seconds)


def _show(folder: Path) -> None:
    """Print the table of a run and write it beside the results, with a plot if matplotlib is installed."""
    entries = [json.loads(line) for line in (folder / RESULTS).read_text().splitlines() if line.endswith("}")]
    about, lines = entries[0], _lines(entries)
    left_out = [f"{entry['server']} was left out: {entry['left_out']}" for entry in entries if "left_out" in entry]
    head = f"{about['date']}, {about['device']}, vLLM {about['vllm']}, {about['model']}\nflags: {' '.join(about['flags'])}\n{about['plan']}"
    text = "\n".join([head, report.table(lines), *left_out])
    (folder / "table.txt").write_text(text + "\n")
    print(text)
    try:
        _plot(lines, about["plan"]["streams"], f"{about['model']}, {about['device']}", folder / "plot.svg")
    except ImportError:
        print("there is no plot: install llava-gateway[bench] for matplotlib")


def _lines(entries: list[dict[str, Any]]) -> dict[str, Line]:
    lines: dict[str, Line] = defaultdict(Line)
    for entry in entries:
        for unit, value in entry.get("figures", {}).items():
            line = lines[f"{entry['row']}, {unit}"]
            line.samples.setdefault(entry["server"], []).append(value)
            if entry["fault"]:
                line.faults[entry["server"]] = entry["fault"]
    return lines


def _plot(lines: dict[str, Line], streams: list[int], title: str, path: Path) -> None:
    """Draw figures by the number of streams, with a line for each server. Raises ImportError without matplotlib."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(14, 8))
    for axes, (kind, unit) in zip(panels.flat, PANELS, strict=True):
        for server in (VLLM, RUST, GATEWAY):
            found = {number: lines.get(f"{stream_row(number)} {kind}, {unit}", Line()).samples.get(server) for number in streams}
            points = [(number, values[0]) for number, values in found.items() if values]
            axes.plot([number for number, _ in points], [value for _, value in points], marker="o", label=server)
        axes.set_title(f"{unit}, {kind}", fontsize=10)
        axes.set_xlabel("streams")
        axes.set_xscale("log", base=2)
        axes.set_xticks(streams, list(map(str, streams)))
        axes.set_ylim(bottom=0)
    panels[0][0].legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
