"""Tries the forms that clients ask answers to have, one for each line of JSON on its input, and says what is wrong with it.

A script of its own: a few hundred bytes of regular expression or grammar can keep a compiler busy for minutes, have it panic, or make every
token of the answer slow, and in here that hurts nobody. Each form has `CPU_SECONDS` to be compiled and followed for `STEPS` tokens; the
system ends the process that takes more. The first line of the input is the model's tokenizer.
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
"""Twenty times what a schema of 16,000 characters takes."""
VALIDATION_SECONDS = 0.04
"""Of CPU. vLLM repeats this part on the gateway's event loop."""
STEPS = 64
"""Tokens after which an ambiguous grammar has shown itself: its parser's work grows with the square of them, or faster."""
MEMORY = 2 << 30
NICENESS = 10
"""Where there is not CPU time for all, the gateway and an engine on the CPU go first."""


def error(tokenizer: llguidance.LLTokenizer, kind: Kind, spec: str) -> str:
    """What is wrong with the form; empty if nothing is. The grammar is made as vLLM makes it."""
    try:
        if kind == "json" or kind == "json_object":
            grammar = llguidance.LLMatcher.grammar_from_json_schema(spec or '{"type": "object"}', defaults={"whitespace_flexible": False})
        else:
            grammar = llguidance.grammar_from(kind, spec)
        begin = time.thread_time()
        fault = str(llguidance.LLMatcher.validate_grammar(grammar, None))
        if time.thread_time() - begin > VALIDATION_SECONDS:
            return "it is too complicated"
        return fault or _follow(tokenizer, grammar)
    except Exception as failure:
        return str(failure) or "it cannot be compiled"
    except BaseException:  # a panic in Rust
        return "it cannot be compiled"


def _follow(tokenizer: llguidance.LLTokenizer, grammar: str) -> str:
    """Draw tokens at random, as a model might; the end only where nothing else can come."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    chance = random.Random(len(grammar))
    for _ in range(STEPS):
        mask = bytearray(matcher.compute_bitmask())
        mask[tokenizer.eos_token // 8] &= ~(1 << tokenizer.eos_token % 8)
        start = chance.randrange(len(mask))
        place = next((at % len(mask) for at in range(start, start + len(mask)) if mask[at % len(mask)]), None)
        if matcher.is_stopped() or place is None:
            break
        bits = [bit for bit in range(8) if mask[place] >> bit & 1]
        matcher.consume_token(8 * place + chance.choice(bits))
    return matcher.get_error().partition("\n")[0]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.nice(NICENESS)
    tokenizer = llguidance.LLTokenizer(json.loads(sys.stdin.readline()))
    _answer("ready")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        verdict = error(tokenizer, **json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(verdict[:2000])


def _answer(value: str) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
