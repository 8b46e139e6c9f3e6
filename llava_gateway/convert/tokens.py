"""An original checkpoint's tokenizer, with the tokens that LLaVA's own code adds to it, and those that the hub's layout wants."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer

from llava_gateway.convert.source import ConvertError
from llava_gateway.prompts.templates import BUILT_IN

IMAGE, PAD = "<image>", "<pad>"
IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True, slots=True)
class Tokens:
    tokenizer: Tokenizer
    special: dict[str, str]
    """`bos_token`, `eos_token`, `unk_token`, `pad_token`."""

    @property
    def size(self) -> int:
        """Token ids run from 0 to this, exclusive."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def id_of(self, name: str) -> int:
        """Of a special token by its name, such as `bos_token`, or by its text."""
        return self.tokenizer.get_vocab()[self.special.get(name, name)]


def tokens(directory: Path, llava: dict[str, Any]) -> Tokens:
    """Of the checkpoint in `directory`; `llava` is the original's config.json. Raises ConvertError."""
    config = _read_json(directory / "tokenizer_config.json")
    tokenizer = _tokenizer(directory)
    _add_known(tokenizer, directory / "added_tokens.json")
    if llava.get("mm_use_im_patch_token", True):
        _add(tokenizer, IM_PATCH)
    if llava.get("mm_use_im_start_end"):
        _add(tokenizer, IM_START, IM_END)
    _add(tokenizer, IMAGE, PAD)
    special = {name: _text(config.get(name)) or usual for name, usual in LLAMA.items()}
    if missing := [text for text in special.values() if tokenizer.token_to_id(text) is None]:
        raise ConvertError(f"{directory}: the tokenizer has no {missing[0]}")
    if tokenizer.encode(IMAGE).tokens[0] != special["bos_token"]:
        raise ConvertError(f"{directory}: the tokenizer does not begin a text with {special['bos_token']}, as LLaVA's prompts do")
    return Tokens(tokenizer, {**special, "pad_token": PAD})


def chat_template(llava: dict[str, Any]) -> str:
    """Jinja: the prompt that LLaVA v1 and v1.5 were trained with, and its system prompt where the messages bring none."""
    template = BUILT_IN["vicuna_v1"]
    system = json.dumps([{"role": "system", "content": [{"type": "text", "text": template.system}]}])
    begin = f"{{%- if not messages or messages[0].role != 'system' -%}}{{%- set messages = {system} + messages -%}}{{%- endif -%}}\n"
    jinja = template.jinja
    if llava.get("mm_use_im_start_end"):
        jinja = jinja.replace(IMAGE, f"{IM_START}{IMAGE}{IM_END}")
    return begin + jinja


def _tokenizer(directory: Path) -> Tokenizer:
    try:
        if (directory / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
        if not (directory / "tokenizer.model").is_file():
            raise ConvertError(f"{directory} has no tokenizer: neither tokenizer.model nor tokenizer.json is there")
        tokenizer: Tokenizer = LlamaTokenizer.from_pretrained(directory).backend_tokenizer
    except ConvertError:
        raise
    except Exception as error:  # both libraries raise that very class
        raise ConvertError(f"the tokenizer of {directory} cannot be read: {error}") from error
    # SentencePiece puts a space before each text, and LLaVA tokenizes what stands before and after an image as texts of their own.
    tokenizer.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    bos = LLAMA["bos_token"]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    return tokenizer


def _add_known(tokenizer: Tokenizer, path: Path) -> None:
    """Those that have their ids already. Raises ConvertError."""
    added = _read_json(path)
    if not all(isinstance(token_id, int) for token_id in added.values()):
        raise ConvertError(f"{path} is no JSON object of token ids")
    _add(tokenizer, *sorted(added, key=added.__getitem__))
    for text, token_id in added.items():
        if (there := tokenizer.token_to_id(text)) != token_id:
            raise ConvertError(f"{path} has {text} as {token_id}, and the tokenizer as {there}")


def _add(tokenizer: Tokenizer, *texts: str) -> None:
    """The next ids, for those that are new."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])


def _text(token: Any) -> str:
    """A token as tokenizer_config.json has it: a string or an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path} is no JSON object")
    return value
