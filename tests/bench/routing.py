"""What image affinity is worth: chats with images on a simulated cluster, with the routing that the gateway has and without it. Prints
tables, and draws docs/pictures/routing.svg (needs llava-gateway[bench]). Some minutes of one core.

    python tests/bench/routing.py
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.routing_cluster import ROUTINGS, Cluster
from bench.routing_model import KV_IMAGES, Seen, Users, gather_limited

from llava_gateway.cluster import router as affinity

IMAGE = Path(__file__).parents[2] / "docs" / "pictures" / "routing.svg"
SIZES = (2, 4, 8, 16, 64)
WARM_UP = 120.0
"""Seconds that are not counted: six times as long as users think, so that the memories are full."""
REQUESTS = 20_000
"""About how many are counted in each row."""
SEEDS = (1, 2, 3)
PATIENCE = 1.0
"""Seconds that 99 of 100 first tokens may take."""
LOOKS = {
    "random": ("#888888", ":"),
    "less of two": ("#888888", "-"),
    "affinity, unbounded": ("#d8483b", "--"),
    "affinity": ("#3b7dd8", "-"),
}

SEEN = ("KV hits", "known images", "first token p50", "p99", "imbalance")

Results = dict[str, dict[int, Seen]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--plot", type=Path, default=IMAGE, help="draw here, as SVG or PNG")
    options = parser.parse_args()
    results: Results = {name: {} for name in ROUTINGS}
    _head("Replicas", *SEEN)
    for size in SIZES:
        for name in ROUTINGS:
            seen = results[name][size] = _measured(size, name)
            _row(f"{size}, {name}", seen)
    _draw(results, options.plot)
    _head(f"Requests/s of a replica with p99 <= {PATIENCE} s, 8 replicas", "")
    for kv in (KV_IMAGES // 2, KV_IMAGES, KV_IMAGES * 2):
        for name in ("random", "less of two", "affinity"):
            _cells(f"{kv} images in KV, {name}", f"{_capacity(name, kv):.1f}")
    _head("What ingresses know of the load", *SEEN)
    for size in SIZES[-2:]:
        for ingresses in (0, size // 4, size):
            label = f"{ingresses} ingresses" if ingresses else "everything"
            _row(f"{size} replicas, {label}", _measured(size, "affinity", ingresses=ingresses))
    _head("The bound, 16 replicas", *SEEN)
    for factor, spare in ((1.0, 0), (1.0, 4), (1.25, 0), (1.25, 4), (1.25, 8), (1.5, 4), (2.0, 4)):
        for label, users in (("", Users()), (", much load", Users(rate=8)), (", little", Users(rate=1))):
            with patch.multiple(affinity, FACTOR=factor, SPARE=spare):
                _row(f"{factor} x mean + {spare}{label}", _measured(16, "affinity", users))
    _head("A change among 8 replicas", *SEEN)
    for change in ("one is added", "one dies"):
        for name in ("less of two", "affinity"):
            for label, found in _changed(name, change).items():
                _row(f"{change}, {name}, {label}", gather_limited(found))


def _measured(size: int, name: str, users: Users | None = None, *, seeds: Sequence[int] = SEEDS, **more: int) -> Seen:
    """Of some clusters that differ by chance alone, together."""
    found = []
    for seed in seeds:
        cluster = Cluster(size, ROUTINGS[name], users, seed=seed, **more)
        cluster.run(WARM_UP)
        found.append(cluster.run(max(REQUESTS / len(seeds) / (cluster.users.rate * size), WARM_UP / 2)))
    return gather_limited(found)


def _capacity(name: str, kv: int) -> float:
    """Of what is tried, the last before the first that asks for too much patience."""
    most = 0.0
    for tenths in range(40, 200, 2):
        if _measured(8, name, Users(rate=tenths / 10), kv=kv).wait(99) > PATIENCE:
            break
        most = tenths / 10
    return most


def _changed(name: str, change: str) -> dict[str, list[Seen]]:
    found = defaultdict(list)
    for seed in SEEDS:
        cluster = Cluster(8, ROUTINGS[name], seed=seed)
        cluster.run(WARM_UP)
        found["the minute before"].append(cluster.run(60))
        if change == "one is added":
            cluster.add()
        else:
            cluster.kill(cluster.names[0])
        for start, end in ((0, 10), (10, 30), (30, 90)):
            found[f"{start} to {end} s after"].append(cluster.run(end - start))
    return found


def _head(*cells: str) -> None:
    print()
    _cells(*cells)


def _row(label: str, seen: Seen) -> None:
    waits = [f"{seen.wait(percent) * 1000:,.0f} ms" for percent in (50, 99)]
    _cells(label, f"{seen.kv:.0%}", f"{seen.prepared:.0%}", *waits, f"{seen.imbalance:.2f}")


def _cells(label: str, *cells: str) -> None:
    print(f"{label:52}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def _draw(results: Results, path: Path) -> None:
    """For each routing, how it goes as replicas become more."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator, PercentFormatter

    figure, (hits, waits, imbalances) = plt.subplots(1, 3, figsize=(11, 3.6))
    for name, seen in results.items():
        color, style = LOOKS[name]
        look: Any = {"color": color, "linestyle": style, "marker": "o", "markersize": 3, "label": name}
        hits.plot(SIZES, [seen[size].kv for size in SIZES], **look)
        waits.plot(SIZES, [seen[size].wait(99) for size in SIZES], **look)
        imbalances.plot(SIZES, [seen[size].imbalance for size in SIZES], **look)
    hits.set_title("images whose tokens are in the KV cache", fontsize=9)
    hits.yaxis.set_major_formatter(PercentFormatter(1))
    hits.set_ylim(0, 1)
    waits.set_title("first token p99, seconds", fontsize=9)
    _logarithmic(waits, (0.3, 1, 3, 10, 30))
    imbalances.set_title("busiest replica's requests / mean", fontsize=9)
    _logarithmic(imbalances, (1, 2, 4, 8, 16))
    for axes in (hits, waits, imbalances):
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("replicas")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*hits.get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def _logarithmic(axes: Any, marks: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_yscale("log")
    axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes.yaxis.set_minor_locator(NullLocator())


if __name__ == "__main__":
    main()
