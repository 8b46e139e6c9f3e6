"""A script that checks answer formats: it reads a format from each line of its input, as JSON, and writes what is wrong with the format.

It is a process of its own, because a regular expression or a grammar of a few hundred bytes can keep a compiler busy for minutes, make it
panic, or make every token of the answer slow. A format has `CPU_SECONDS` to be compiled and to be followed for `STEPS` tokens. The system
ends the process that takes longer. The first line of the input is an object with the model's tokenizer and `any_whitespace`.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from typing import Literal

import llguidance

Kind = Literal["json", "json_object", "regex", "choice", "grammar"]
CPU_SECONDS = 0.2
"""The CPU time for one format, in seconds: twenty times as much as a schema of 16,000 characters takes."""
VALIDATION_SECONDS = 0.04
"""The CPU time for the validation alone, in seconds. vLLM repeats the validation on the gateway's event loop."""
STEPS = 64
"""Tokens that are drawn. The parser's work for an ambiguous grammar grows with their square, or faster, so it shows within these."""
MEMORY = 2 << 30
"""The limit on the address space, in bytes."""
NICENESS = 10
"""The gateway, and an engine on the CPU, get CPU time before this process."""


def error(tokenizer: llguidance.LLTokenizer, any_whitespace: bool, kind: Kind, spec: str) -> str:
    """Return what is wrong with a format, or an empty text. The grammar is compiled as vLLM compiles it.

    `any_whitespace`: whether JSON may have optional white space. `kind`, `spec`: as in `StructuredOutput`.
    """
    try:
        if kind == "json" or kind == "json_object":
            schema = spec or '{"type": "object"}'
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": any_whitespace})
        else:
            grammar = llguidance.grammar_from(kind, spec)
        start = time.thread_time()
        fault = str(llguidance.LLMatcher.validate_grammar(grammar, None))
        if time.thread_time() - start > VALIDATION_SECONDS:
            return "it is too complicated"
        return fault or _follow(tokenizer, grammar)
    except Exception as failure:
        return str(failure) or "it cannot be compiled"
    except BaseException:  # a panic in Rust
        return "it cannot be compiled"


def _follow(tokenizer: llguidance.LLTokenizer, grammar: str) -> str:
    """Draw `STEPS` tokens at random, as a model might, and return the parser's error or an empty text.

    The token that ends the answer is not drawn, so the answer ends only where no other token is allowed.
    """
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    generator = random.Random(len(grammar))
    for _ in range(STEPS):
        mask = bytearray(matcher.compute_bitmask())
        mask[tokenizer.eos_token // 8] &= ~(1 << tokenizer.eos_token % 8)
        start = generator.randrange(len(mask))
        byte = next((at % len(mask) for at in range(start, start + len(mask)) if mask[at % len(mask)]), None)
        if matcher.is_stopped() or byte is None:
            break
        bits = [bit for bit in range(8) if mask[byte] >> bit & 1]
        matcher.consume_token(8 * byte + generator.choice(bits))
    return matcher.get_error().partition("\n")[0]


def main() -> None:
    """Read the options, write "ready", and answer each format with a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.nice(NICENESS)
    options = json.loads(sys.stdin.readline())
    tokenizer = llguidance.LLTokenizer(options["tokenizer"])
    _write("ready")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        verdict = error(tokenizer, options["any_whitespace"], **json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(verdict[:2000])


def _write(value: str) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
