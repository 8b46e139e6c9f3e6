"""An engine without a model: it says a text that the test gives it, or random tokens that the grammar of the request allows."""

import random
from collections.abc import Callable
from functools import cache

import llguidance
from helpers.silent_engine import SilentEngine

from llava_gateway.demo import CHECKPOINT
from llava_gateway.errors import GatewayError
from llava_gateway.types import Delta, Prompt, SamplingParams, StructuredOutput, Usage

SCHEMA = {"type": "object", "properties": {"at": {"enum": ["top", "bottom"]}}, "required": ["at"]}
"""The arguments of the tool `show`."""
CALL = '<tool_call>\n{"name": "show", "arguments": {"at": "top"}}\n</tool_call>'
"""A call of it, as the model writes it."""
RENDERS_TOOLS = """\
{%- if tools %}{{ 'SYSTEM: ' + tools | tojson + ' ' }}{% endif -%}
{%- for message in messages -%}
{{ message.role.upper() + ': ' }}{% for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}
{%- for call in message.tool_calls %}{{ call.function.arguments.at }}{% endfor %}{{ ' ' }}
{%- endfor -%}
{{ 'ASSISTANT:' }}"""
"""A chat template that shows the tools to the model."""


@cache
def grammar_tokenizer() -> llguidance.LLTokenizer:
    """Return the demo model's tokenizer as llguidance uses it."""
    return llguidance.LLTokenizer((CHECKPOINT / "tokenizer.json").read_text())


def compile_grammar(structured_output: StructuredOutput) -> str:
    """Return the grammar as vLLM compiles it with the server's flags."""
    spec = str(structured_output.spec)
    if structured_output.kind == "json":
        return str(llguidance.LLMatcher.grammar_from_json_schema(spec, defaults={"whitespace_flexible": False}))
    assert structured_output.kind == "grammar"
    return str(llguidance.grammar_from("grammar", spec))


def draw_answer(structured_output: StructuredOutput, seed: int, max_tokens: int = 400) -> list[str] | None:
    """Return the pieces of an answer of random tokens that the grammar allows. None: it has not ended after `max_tokens`."""
    tokenizer, generator = grammar_tokenizer(), random.Random(seed)
    matcher = llguidance.LLMatcher(tokenizer, compile_grammar(structured_output), log_level=0)
    tokens: list[int] = []
    while not matcher.is_stopped() and len(tokens) <= max_tokens:
        assert not matcher.get_error()
        mask = matcher.compute_bitmask()
        allowed = [8 * byte + bit for byte in range(len(mask)) for bit in range(8) if mask[byte] >> bit & 1]
        may_end = tokenizer.eos_token in allowed
        if may_end and generator.random() < 0.5:
            break
        token = generator.choice([token for token in allowed if token != tokenizer.eos_token] or allowed)
        if token == tokenizer.eos_token:
            break
        matcher.consume_token(token)
        tokens.append(token)
    else:
        if not matcher.is_stopped():
            return None
    text = str(tokenizer.decode_str(tokens))
    return [text[start : start + 3] for start in range(0, len(text), 3)]


class ScriptedEngine(SilentEngine):
    """Says `script` in pieces. With a grammar it draws the answer from the grammar instead."""

    def __init__(self, *script: str) -> None:
        self.script = script
        self.sampling: SamplingParams | None = None
        """The parameters of the last request."""

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        self.sampling = sampling
        usage.prompt_tokens = len(prompt.token_ids)
        for index in range(sampling.n):
            pieces = list(self.script)
            if sampling.structured_output:
                pieces = next(found for seed in range(1000) if (found := draw_answer(sampling.structured_output, seed + index)) is not None)
            usage.completion_tokens += len(pieces)
            for position, piece in enumerate(pieces if stream else ()):
                if on_text and position and sampling.n == 1:
                    on_text(piece, 1)
                else:
                    on_delta(Delta(index, piece, 1))
            on_delta(Delta(index, "" if stream else "".join(pieces), 0 if stream else len(pieces), "stop"))


class FailingEngine(ScriptedEngine):
    """Fails after the pieces of its script."""

    def __init__(self, error: GatewayError, *script: str) -> None:
        super().__init__(*script)
        self.error = error

    async def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        stream: bool,
        usage: Usage,
        on_delta: Callable[[Delta], None],
        on_text: Callable[[str, int], None] | None = None,
    ) -> None:
        for piece in self.script:
            on_delta(Delta(0, piece, 1))
        raise self.error
