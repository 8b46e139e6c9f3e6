"""Built-in chat templates by name, for models without a template and for APIs whose requests name one.

They are written like Hugging Face's: Jinja over `messages`, with the roles system, user and assistant, and content as parts of type text,
image and video. Their formats are LLaVA's own (`llava/conversation.py`), except for Hugging Face's `llava-hf`, `llava-hf-eos` and
`llava-interleave`, and SambaStudio's `llava-sn`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_gateway.errors import InvalidRequest
from llava_gateway.files import read_file
from llava_gateway.settings import SettingsError

MAX_BYTES = 1 << 20
"""The upper bound of a template file, in bytes."""
CURIOUS_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CURIOUS_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
LANGUAGE_AND_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

_PARTS = """\
{%- macro images(message) -%}
{%- for part in message.content if part.type != 'text' -%}{{ '<' + part.type + '>\\n' }}{%- endfor -%}
{%- endmacro -%}
{%- macro text(message) -%}
{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') }}
{%- endmacro -%}
"""

_HUGGING_FACE = """\
{%- for message in messages -%}
{%- if message.role != 'system' -%}{{ message.role.upper() + ': ' }}{%- endif -%}
{%- for part in message.content if part.type != 'text' -%}{{ '<' + part.type + '>\\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text + ' ' }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_VICUNA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ images(message) + text(message) + ' ' }}
{%- elif message.role == 'user' -%}{{ 'USER: ' + images(message) + text(message) + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + images(message) + text(message) + '</s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_LLAVA_V0 = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'Human: ' }}{%- elif message.role != 'system' -%}{{ 'Assistant: ' }}{%- endif -%}
{{ images(message) + text(message) + '###' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

_SAMBANOVA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ images(message) + text(message) + '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ '### Human: ' + text(message) + '\\n' + images(message) + '\\n' }}
{%- else -%}{{ '### Assistant: ' + images(message) + text(message) + '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '###' }}{%- endif -%}
"""

_LLAMA_2 = """\
{%- set ns = namespace(system='', turns=0) -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set ns.system = '<<SYS>>\\n' + images(message) + text(message) + '\\n<</SYS>>\\n\\n' -%}
{%- elif message.role == 'user' -%}
{{ (begin if ns.turns else '') + '[INST] ' + ns.system + images(message) + text(message) + ' [/INST]' }}
{%- set ns.system = '' -%}{%- set ns.turns = ns.turns + 1 -%}
{%- else -%}
{{ ('[INST] ' + ns.system + '[/INST]' if ns.system else '') + ' ' + images(message) + text(message) + ' </s>' }}
{%- set ns.system = '' -%}
{%- endif -%}
{%- endfor -%}
{%- if ns.system -%}{{ '[INST] ' + ns.system + '[/INST]' }}{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + images(message) + text(message) + '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_INTERLEAVE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- for part in message.content if part.type != 'text' -%}{{ '<' + part.type + '>' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ '\\n' + part.text }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_PLAIN = "{%- for message in messages -%}{{ images(message) + text(message) + '\\n' }}{%- endfor -%}"


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template: its Jinja source, its system message and its stop strings."""

    jinja: str
    system: str = ""
    """The system message for chats that have none. Empty: no system message."""
    stop: tuple[str, ...] = ()
    """The strings that end an answer, besides the model's end-of-sequence token."""


BUILT_IN = {
    "llava-hf": Template(_HUGGING_FACE),
    "llava-hf-eos": Template(_PARTS + _VICUNA),
    "llava-interleave": Template(_INTERLEAVE, stop=("<|im_end|>",)),
    "llava_v0": Template(_PARTS + _LLAVA_V0, CURIOUS_HUMAN, stop=("###",)),
    "vicuna_v1": Template(_PARTS + _VICUNA, CURIOUS_USER),
    "llava_v1": Template(_PARTS + _VICUNA, CURIOUS_HUMAN),
    "llava-sn": Template(_PARTS + _SAMBANOVA, CURIOUS_HUMAN, stop=("###",)),
    "llava_llama_2": Template("{%- set begin = '<s>' -%}" + _PARTS + _LLAMA_2, LANGUAGE_AND_VISION),
    "mistral_instruct": Template("{%- set begin = '' -%}" + _PARTS + _LLAMA_2),
    "chatml": Template(_PARTS + _CHATML, "Answer the questions.", stop=("<|im_end|>",)),
    "plain": Template(_PARTS + _PLAIN),
}


def built_in(name: str, param: str) -> Template:
    """Return the built-in template of this name. Raises InvalidRequest, with `param` as its field, if there is none."""
    if name not in BUILT_IN:
        raise InvalidRequest(f"{param}: there is no template {name[:50]!r}; there are {', '.join(BUILT_IN)}.", param=param)
    return BUILT_IN[name]


def chosen(name_or_file: str) -> Template:
    """Return the template of the setting `template`: a built-in one by name, one from a Jinja file, or Jinja itself, as vLLM takes it.

    Raises SettingsError.
    """
    if name_or_file in BUILT_IN:
        return BUILT_IN[name_or_file]
    try:
        return Template(read_file(Path(name_or_file), MAX_BYTES).decode())
    except (OSError, UnicodeDecodeError):
        if "{{" in name_or_file or "{%" in name_or_file:
            return Template(name_or_file)
        raise SettingsError(f"template {name_or_file} is neither a file nor one of {', '.join(BUILT_IN)}") from None


def aliases(given: Sequence[str]) -> dict[str, str | None]:
    """Return the aliases of the setting `model_alias`, each with the name of its built-in template. None: the server's template.

    `given`: each is `NAME` or `NAME=TEMPLATE`. Raises SettingsError.
    """
    found: dict[str, str | None] = {}
    for alias in given:
        name, _, template = alias.partition("=")
        if not name or (template and template not in BUILT_IN):
            raise SettingsError(f"model_alias {alias} is not NAME or NAME=TEMPLATE, with one of {', '.join(BUILT_IN)}")
        found[name] = template or None
    return found
