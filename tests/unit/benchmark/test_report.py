"""The benchmark's table: ratios to the better server whose answers are true, targets, and notes about wrong answers."""

import pytest
from bench.peers import GATEWAY, RUST, VLLM
from bench.report import TARGETS, Line, more_is_better, notes, ratio, table, verdict

NEW = "new 2 MP JPEG, front end CPU ms"
TOKEN = "32 streams, front end CPU us per token"
RATE = "32 streams, tokens/s"


def line(vllm: float | None = 40.0, rust: float | None = 30.0, gateway: float = 15.0, wrong: str = "") -> Line:
    """Return a line with one turn. `wrong`: the server whose answers are wrong."""
    values = {VLLM: vllm, RUST: rust, GATEWAY: gateway}
    samples = {name: [value] for name, value in values.items() if value is not None}
    return Line(samples, {wrong: "one image is missing"} if wrong else {})


def test_ratio_is_to_the_cheaper_server() -> None:
    assert ratio(NEW, line()) == 0.5
    assert ratio(NEW, line(vllm=20.0)) == 0.75


def test_ratio_of_rates_is_to_the_faster_server() -> None:
    assert more_is_better(RATE)
    assert not more_is_better(NEW)
    assert ratio(RATE, line(vllm=100.0, rust=200.0, gateway=300.0)) == 1.5


def test_server_with_wrong_answers_is_not_the_better_one() -> None:
    assert ratio(NEW, line(wrong=RUST)) == 15 / 40


def test_wrong_answers_of_the_gateway_have_no_ratio() -> None:
    wrong = line(wrong=GATEWAY)
    assert ratio(NEW, wrong) is None
    assert verdict(NEW, wrong) == "at most 0.75 of the better: not measured"


def test_ratio_without_other_servers_is_missing() -> None:
    assert ratio(NEW, line(vllm=None, rust=None)) is None


def test_medians_are_compared() -> None:
    samples = {VLLM: [10.0, 20.0, 900.0], GATEWAY: [10.0, 10.0, 10.0]}
    assert ratio(NEW, Line(samples)) == 0.5


@pytest.mark.parametrize(("gateway", "said"), [(7.5, "met"), (30.0, "NOT MET")])
def test_targets_name_their_server(gateway: float, said: str) -> None:
    """A token must cost at most what vllm-rs takes, and 0.35 of what `vllm serve` takes."""
    share = gateway / 30
    expected = f"at most 1 of vllm-rs: {share:.2f} met; at most 0.35 of vllm serve: {gateway / 40:.2f} {said}"
    assert verdict(TOKEN, line(gateway=gateway)) == expected


def test_target_of_an_absent_server_is_not_met_silently() -> None:
    assert verdict(TOKEN, line(rust=None, gateway=7.5)).startswith(
        "at most 1 of vllm-rs: not measured; at most 0.35 of vllm serve: 0.19 met"
    )


def test_target_of_a_rate_is_a_lower_bound() -> None:
    assert verdict(RATE, line(vllm=100.0, rust=200.0, gateway=190.0)) == "at least 1 of the better: 0.95 NOT MET"


def test_table_marks_wrong_answers_and_explains_them() -> None:
    lines = {NEW: line(), "new 2 MP PNG, ms": line()}
    lines["new 2 MP PNG, ms"].faults[RUST] = "the picture is turned"
    lines["new 2 MP PNG, ms"].samples[RUST] = [29.0, 31.0]
    header, first, second, note = table(lines).splitlines()
    assert header.split() == ["vllm", "serve", "vllm-rs", "gateway", "AsyncLLM", "ratio", "target"]
    assert "!" not in first
    assert "at most 0.75 of the better: 0.50 met" in first
    assert "30.0! ±   1.0" in second
    assert "0.38" in second
    assert note == "! vllm-rs: the picture is turned. Rows: new 2 MP PNG, ms"


def test_small_figures_keep_two_decimals() -> None:
    assert "0.24 ±  0.00" in table({"text, max_tokens 1, front end CPU ms": line(rust=0.24)})


def test_table_without_a_server_has_no_column_for_it() -> None:
    lines = {NEW: line(rust=None)}
    assert RUST not in table(lines).splitlines()[0]
    assert notes(lines) == []


def test_every_target_is_a_row_of_the_benchmark() -> None:
    """A renamed row would lose its target without a sign. Rows are named in several modules."""
    from bench.images import CHAT_IMAGES
    from bench.pictures import JPEGS
    from bench.text import SHORT, STREAMS, stream_row

    names = {stream_row(streams) for streams in STREAMS} | {
        SHORT,
        "start",
        "idle",
        f"second turn of a chat with {CHAT_IMAGES} images of 2 MP",
    }
    names |= {title.format(kind.name) for kind in JPEGS for title in ("new {}", "known {}", "eight new {}s at once")}
    assert {row.rpartition(", ")[0] for row in TARGETS} <= names
