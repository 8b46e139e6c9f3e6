"""Chooses the chat template of a converted checkpoint: the one that the model was trained with, among the built-in ones."""

import json
from collections.abc import Mapping
from typing import Any

from llava_gateway.convert.config import is_next, language_of
from llava_gateway.convert.source import ConvertError
from llava_gateway.convert.tokens import Tokens
from llava_gateway.prompts.templates import BUILT_IN

FLAG = "--template"


def choose_template(llava: Mapping[str, Any], tokens: Tokens, name: str, *, is_delta: bool) -> str:
    """Return the name of a built-in template. LLaVA's own code goes by the checkpoint's name, too (`llava/eval/run_llava.py`).

    `llava`: the checkpoint's config.json. `name`: of its directory, or on the hub. Raises ConvertError if the template cannot be known.
    """
    name = name.lower()
    if tokens.is_chatml:
        return "chatml"
    if language_of(llava) == "mistral":
        if is_next(llava):
            return "mistral_instruct"
        raise ConvertError(f"a LLaVA-1.5 on Mistral may have any chat template; give {FLAG} vicuna_v1 (BakLLaVA) or mistral_instruct")
    if "llama-2" in name:
        return "llava_llama_2"
    if is_delta and "v1" not in name:
        if "v0" in name:
            return "llava_v0"
        raise ConvertError(f"the name {name} does not say whether the delta is v0 or v1; give {FLAG} llava_v0 or vicuna_v1")
    return "vicuna_v1"


def chat_template(name: str) -> str:
    """Return a built-in template in Jinja, which adds the template's system message if the messages have none."""
    template = BUILT_IN[name]
    if not template.system:
        return template.jinja
    system = json.dumps([{"role": "system", "content": [{"type": "text", "text": template.system}]}])
    begin = f"{{%- if not messages or messages[0].role != 'system' -%}}{{%- set messages = {system} + messages -%}}{{%- endif -%}}\n"
    return begin + template.jinja


def serve_flags(name: str, tokens: Tokens) -> list[str]:
    """Return the flags that `serve` needs for a template with stop strings: a checkpoint can only name a token that ends answers."""
    return [FLAG, name] if set(BUILT_IN[name].stop) - {tokens.special["eos_token"]} else []
