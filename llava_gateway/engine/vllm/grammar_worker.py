"""Compiles the forms that clients ask answers to have, one for each line of JSON on its input, and says what is wrong with it.

A script of its own: a few hundred bytes of regular expressions can keep a compiler busy for minutes, or make it panic, and in here that
hurts nobody. Each form has `CPU_SECONDS` and `MEMORY`; the system ends the process that takes more, and the next form gets a new one.
"""

import json
import resource
import signal
import sys
from typing import Literal

import llguidance

Kind = Literal["json", "json_object", "regex", "choice", "grammar"]
CPU_SECONDS = 0.25
"""Fifty times what a schema of 16,000 characters takes."""
MEMORY = 1 << 30


def error(kind: Kind, spec: str) -> str:
    """What is wrong with the form; empty if nothing is. The grammar is made as vLLM makes it."""
    try:
        if kind == "json" or kind == "json_object":
            grammar = llguidance.LLMatcher.grammar_from_json_schema(spec or '{"type": "object"}', defaults={"whitespace_flexible": False})
        else:
            grammar = llguidance.grammar_from(kind, spec)
        return str(llguidance.LLMatcher.validate_grammar(grammar, None))
    except Exception as failure:
        return str(failure) or "it cannot be compiled"
    except BaseException:  # a panic in Rust
        return "it cannot be compiled"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        verdict = error(**json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(verdict[:2000]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
