"""The tokenizer of an original checkpoint, with the tokens that LLaVA's own code adds and those that the hub's layout needs."""

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
    """A tokenizer and its special tokens."""

    tokenizer: Tokenizer
    special: dict[str, str]
    """The texts of `bos_token`, `eos_token`, `unk_token` and `pad_token`."""

    @property
    def size(self) -> int:
        """The greatest token id plus 1."""
        return max(self.tokenizer.get_vocab().values()) + 1

    def id_of(self, name: str) -> int:
        """Return the id of a token. `name`: of a special token, such as `bos_token`, or the token's text."""
        return self.tokenizer.get_vocab()[self.special.get(name, name)]


def load_tokens(directory: Path, llava: dict[str, Any]) -> Tokens:
    """Load the tokenizer in `directory` and add the tokens. `llava`: the checkpoint's config.json. Raises ConvertError."""
    config = _read_json(directory / "tokenizer_config.json")
    tokenizer = _tokenizer(directory)
    _add_numbered(tokenizer, directory / "added_tokens.json")
    if llava.get("mm_use_im_patch_token", True):
        _add(tokenizer, IM_PATCH)
    if llava.get("mm_use_im_start_end"):
        _add(tokenizer, IM_START, IM_END)
    _add(tokenizer, IMAGE, PAD)
    special = {name: _text(config.get(name)) or default for name, default in LLAMA.items()}
    if missing := [text for text in special.values() if tokenizer.token_to_id(text) is None]:
        raise ConvertError(f"{directory}: the tokenizer has no {missing[0]}")
    if tokenizer.encode(IMAGE).tokens[0] != special["bos_token"]:
        raise ConvertError(f"{directory}: the tokenizer does not begin a text with {special['bos_token']}, as LLaVA's prompts do")
    return Tokens(tokenizer, {**special, "pad_token": PAD})


def chat_template(llava: dict[str, Any]) -> str:
    """Return the chat template that LLaVA v1 and v1.5 were trained with, in Jinja.

    The template adds LLaVA's system prompt if the messages have none.
    """
    template = BUILT_IN["vicuna_v1"]
    system = json.dumps([{"role": "system", "content": [{"type": "text", "text": template.system}]}])
    begin = f"{{%- if not messages or messages[0].role != 'system' -%}}{{%- set messages = {system} + messages -%}}{{%- endif -%}}\n"
    jinja = template.jinja
    if llava.get("mm_use_im_start_end"):
        jinja = jinja.replace(IMAGE, f"{IM_START}{IMAGE}{IM_END}")
    return begin + jinja


def _tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json or tokenizer.model. Raises ConvertError."""
    try:
        if (directory / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
        if not (directory / "tokenizer.model").is_file():
            raise ConvertError(f"{directory} has no tokenizer: neither tokenizer.model nor tokenizer.json is there")
        tokenizer: Tokenizer = LlamaTokenizer.from_pretrained(directory).backend_tokenizer
    except ConvertError:
        raise
    except Exception as error:  # both libraries raise plain Exception
        raise ConvertError(f"the tokenizer of {directory} cannot be read: {error}") from error
    # SentencePiece puts a space before each text. LLaVA tokenizes the text before an image and the text after it separately.
    tokenizer.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    bos = LLAMA["bos_token"]
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    return tokenizer


def _add_numbered(tokenizer: Tokenizer, path: Path) -> None:
    """Add the tokens of added_tokens.json, whose ids are given there. Raises ConvertError if an id differs."""
    added = _read_json(path)
    if not all(isinstance(token_id, int) for token_id in added.values()):
        raise ConvertError(f"{path} is no JSON object of token ids")
    _add(tokenizer, *sorted(added, key=added.__getitem__))
    for text, token_id in added.items():
        if (actual := tokenizer.token_to_id(text)) != token_id:
            raise ConvertError(f"{path} has {text} as {token_id}, and the tokenizer as {actual}")


def _add(tokenizer: Tokenizer, *texts: str) -> None:
    """Add the tokens that are new. They get the next ids."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])


def _text(token: Any) -> str:
    """Return the text of a token in tokenizer_config.json, which is a string or an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in the file, or an empty dictionary if the file does not exist. Raises ConvertError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path} is no JSON object")
    return value
