"""The table and the plot of the benchmark: medians, ratios to the better server, and targets."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers import GATEWAY, RUST, VLLM

FLOOR = "AsyncLLM"
BETTER = "the better"
"""As `Target.peer`: the server with the better median among those whose answers are true."""
CPU, PER_TOKEN = "front end CPU ms", "front end CPU us per token"
START, MEMORY = "start, s to ready", "idle, MiB of all processes"


@dataclass(frozen=True)
class Target:
    """A bound of the gateway's figure, relative to another server's figure in the same run."""

    bound: float
    """The highest ratio. For rates, where more is better: the lowest ratio."""
    peer: str = BETTER
    """The other server."""


TARGETS: dict[str, tuple[Target, ...]] = {
    f"1 stream, {PER_TOKEN}": (Target(1.3, RUST),),
    f"32 streams, {PER_TOKEN}": (Target(1.0, RUST), Target(0.35, VLLM)),
    f"128 streams, {PER_TOKEN}": (Target(1.0, RUST), Target(0.35, VLLM)),
    "32 streams, tokens/s": (Target(1.0),),
    f"text, max_tokens 1, {CPU}": (Target(2.0, RUST), Target(0.4, VLLM)),
    f"new 0.1 MP JPEG, {CPU}": (Target(0.9),),
    f"new 2 MP JPEG, {CPU}": (Target(0.75),),
    f"eight new 2 MP JPEGs at once, {CPU}": (Target(0.6),),
    f"new 12 MP JPEG, {CPU}": (Target(0.3),),
    f"eight new 12 MP JPEGs at once, {CPU}": (Target(0.3),),
    f"known 0.1 MP JPEG, {CPU}": (Target(0.4),),
    f"known 2 MP JPEG, {CPU}": (Target(0.4),),
    f"known 12 MP JPEG, {CPU}": (Target(0.4),),
    f"second turn of a chat with 4 images of 2 MP, {CPU}": (Target(0.15),),
    "new 2 MP JPEG, ms": (Target(0.8),),
    START: (Target(0.4, VLLM),),
    MEMORY: (Target(0.65, VLLM),),
}


@dataclass
class Line:
    """A line of the table: one figure of all servers."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    """One value for each turn, by server."""
    faults: dict[str, str] = field(default_factory=dict)
    """By server, if its answers are not true."""


def more_is_better(row: str) -> bool:
    """Return whether a row has a rate, such as tokens/s."""
    return row.endswith("/s")


def ratio(row: str, line: Line, peer: str = BETTER) -> float | None:
    """Return the gateway's median divided by another server's median.

    None: the gateway or the other server was not measured, or the answers of one of them are not true.
    """
    true = {
        name: statistics.median(line.samples[name]) for name in (VLLM, RUST, GATEWAY) if name in line.samples and name not in line.faults
    }
    own = true.pop(GATEWAY, None)
    best = max if more_is_better(row) else min
    other = best(true.values(), default=None) if peer == BETTER else true.get(peer)
    return own / other if own is not None and other else None


def verdict(row: str, line: Line) -> str:
    """Return the targets of a row and whether they are met. Empty: the row has no target."""
    verdicts = []
    for target in TARGETS.get(row, ()):
        value = ratio(row, line, target.peer)
        said = "not measured"
        if value is not None:
            met = value >= target.bound if more_is_better(row) else value <= target.bound
            said = f"{value:.2f} {'met' if met else 'NOT MET'}"
        verdicts.append(f"{'at least' if more_is_better(row) else 'at most'} {target.bound:g} of {target.peer}: {said}")
    return "; ".join(verdicts)


def table(lines: Mapping[str, Line]) -> str:
    """Return the table: for each line, medians with half of their range, the ratio to the better server, and the targets.

    A figure of a server whose answers are not true has a `!`. Notes below the table name the faults.
    """
    names = [name for name in (VLLM, RUST, GATEWAY) if any(name in line.samples for line in lines.values())]
    width = max(map(len, lines), default=0)
    rows = [f"{'':{width}}  {'  '.join(f'{name:>18}' for name in names)}  {FLOOR:>9}  {'ratio':>6}  target"]
    for row, line in lines.items():
        cells = "  ".join(f"{_cell(line, name):>18}" for name in names)
        floor = f"{statistics.median(line.samples[FLOOR]):9.1f}" if FLOOR in line.samples else " " * 9
        value = ratio(row, line)
        shown = f"{value:6.2f}" if value is not None else f"{'-':>6}"
        rows.append(f"{row:{width}}  {cells}  {floor}  {shown}  {verdict(row, line)}".rstrip())
    return "\n".join(rows + notes(lines))


def notes(lines: Mapping[str, Line]) -> list[str]:
    """Return a line for each fault, with the rows that it concerns."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row, line in lines.items():
        for name, fault in line.faults.items():
            rows.setdefault((name, fault), []).append(row)
    return [f"! {name}: {fault}. Rows: {'; '.join(concerned)}" for (name, fault), concerned in rows.items()]


def plot(lines: Mapping[str, Line], path: Path) -> None:
    """Draw a bar for each row with a target: the gateway's share of the other server's cost. Of rates it is the inverse."""
    import matplotlib.pyplot as plt

    bars = []
    for row in (row for row in TARGETS if row in lines):
        for target in TARGETS[row]:
            value = ratio(row, lines[row], target.peer)
            if value is None:
                continue
            name = f"{row} / {target.peer}"
            bars.append((f"time for each of: {name}", 1 / value, 1 / target.bound) if more_is_better(row) else (name, value, target.bound))
    figure, axes = plt.subplots(figsize=(10, 0.42 * len(bars) + 1))
    axes.barh([name for name, _, _ in bars], [share for _, share, _ in bars], color="#3b7dd8", height=0.6)
    for place, (_, share, bound) in enumerate(bars):
        axes.plot([bound, bound], [place - 0.38, place + 0.38], color="#d8483b", linewidth=2)
        axes.text(share + 0.01, place, f"{share:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(0, max([1.1, *(share for _, share, _ in bars)]))
    axes.set_xlabel("share of the other server's cost; red: the target")
    figure.tight_layout()
    figure.savefig(path)


def _cell(line: Line, name: str) -> str:
    values = line.samples.get(name)
    if not values:
        return ""
    median, spread = statistics.median(values), (max(values) - min(values)) / 2
    digits = 1 if median >= 10 else 2
    return f"{median:.{digits}f}{'!' if name in line.faults else ''} ±{spread:6.{digits}f}"
