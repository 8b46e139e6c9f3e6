"""The tokenizer of an original checkpoint, with the tokens that LLaVA's own code adds and those that the hub's layout needs."""

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import Replace as ReplaceInText
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer

from llava_gateway.convert.source import ConvertError

IMAGE, PAD = "<image>", "<pad>"
IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"
CHATML = ("<|im_start|>", "<|im_end|>")
"""The tokens around a message of ChatML. LLaVA-1.6 34B, on Yi, was trained with them."""
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

    @property
    def is_chatml(self) -> bool:
        """Whether answers end as in ChatML."""
        return self.special["eos_token"] == CHATML[1]

    def id_of(self, name: str) -> int:
        """Return the id of a token. `name`: of a special token, such as `bos_token`, or the token's text."""
        return self.tokenizer.get_vocab()[self.special.get(name, name)]


def load_tokens(directory: Path, llava: dict[str, Any]) -> Tokens:
    """Load the tokenizer in `directory` and add the tokens. `llava`: the checkpoint's config.json. Raises ConvertError."""
    config = _read_json(directory / "special_tokens_map.json") | _read_json(directory / "tokenizer_config.json")
    special = {name: _text(config.get(name)) or default for name, default in LLAMA.items()}
    begins = special["bos_token"] if config.get("add_bos_token", True) else ""
    tokenizer = _tokenizer(directory, begins, _declared(directory, config) | set(special.values()))
    _add_numbered(tokenizer, directory / "added_tokens.json")
    if llava.get("mm_use_im_patch_token", True):
        _add(tokenizer, IM_PATCH)
    if llava.get("mm_use_im_start_end"):
        _add(tokenizer, IM_START, IM_END)
    # Single tokens of ChatML become special, so that a client's text cannot contain them.
    _add(tokenizer, *(text for text in CHATML if tokenizer.encode(text, add_special_tokens=False).tokens == [text]))
    _add(tokenizer, IMAGE, PAD)
    if missing := [text for text in special.values() if tokenizer.token_to_id(text) is None]:
        raise ConvertError(f"{directory}: the tokenizer has no {missing[0]}")
    if begins and tokenizer.encode(IMAGE).tokens[0] != begins:
        raise ConvertError(f"{directory}: the tokenizer does not begin a text with {begins}, as LLaVA's prompts do")
    return Tokens(tokenizer, {**special, "pad_token": PAD})


def _declared(directory: Path, config: dict[str, Any]) -> set[str]:
    """Return the tokens that the small files name. `config`: tokenizer_config.json with special_tokens_map.json."""
    decoder, more = config.get("added_tokens_decoder"), config.get("additional_special_tokens")
    listed = [*config.values(), *(decoder.values() if isinstance(decoder, dict) else ()), *(more if isinstance(more, list) else ())]
    return {_text(token) for token in listed} | _read_json(directory / "added_tokens.json").keys()


def _tokenizer(directory: Path, begins: str, declared: Set[str]) -> Tokenizer:
    """Read tokenizer.json or tokenizer.model. Raises ConvertError.

    `begins`: the token before each text, or an empty string. `declared`: the tokens that may stand in a text.
    """
    try:
        if (directory / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
        if not (directory / "tokenizer.model").is_file():
            raise ConvertError(f"{directory} has no tokenizer: neither tokenizer.model nor tokenizer.json is there")
        pieces = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        tokenizer = _without_controls(LlamaTokenizer.from_pretrained(directory).backend_tokenizer, pieces, declared)
    except ConvertError:
        raise
    except Exception as error:  # the libraries raise plain Exception
        raise ConvertError(f"the tokenizer of {directory} cannot be read: {' '.join(str(error).split())}") from error
    tokenizer.pre_tokenizer = None
    if pieces.encode("a", out_type=str)[0].startswith("▁"):
        # SentencePiece puts a space before each text. LLaVA tokenizes the text before an image and the text after it separately.
        tokenizer.normalizer = Sequence([Prepend("▁"), Replace(" ", "▁")])
    else:  # Yi's has no such space, so decoding removes none
        tokenizer.normalizer = Replace(" ", "▁")
        tokenizer.decoder = DecoderSequence([ReplaceInText("▁", " "), ByteFallback(), Fuse()])
    begin_id = tokenizer.token_to_id(begins)
    tokens = [(begins, begin_id)] if begins and begin_id is not None else []
    tokenizer.post_processor = TemplateProcessing(single=f"{begins} $A" if tokens else "$A", special_tokens=tokens)
    return tokenizer


def _without_controls(tokenizer: Tokenizer, pieces: SentencePieceProcessor, declared: Set[str]) -> Tokenizer:
    """Return the tokenizer without control tokens that are not declared.

    SentencePiece and LLaVA read such a token in a text as ordinary characters, and transformers 5 as the token.
    """
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token
        for token in state["added_tokens"]
        if token["content"] in declared or token["id"] >= pieces.get_piece_size() or not pieces.is_control(token["id"])
    ]
    return Tokenizer.from_str(json.dumps(state))


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
