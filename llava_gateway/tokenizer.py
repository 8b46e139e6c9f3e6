"""The tokenizer of a model: text to token ids and back, and the exact bytes of each token."""

import json
import re
from collections.abc import Sequence

import tokenizers

from llava_gateway.errors import InvalidRequest


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte for each character of byte-level BPE, as GPT-2 defines it.

    Printable Latin-1 characters stand for themselves. The other bytes are the characters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_LEVEL = _byte_level_alphabet()
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""SentencePiece's token for a byte of a character that its vocabulary does not have."""


class Tokenizer:
    """A Hugging Face fast tokenizer.

    Any checkpoint's `tokenizer.json` will do:

        tokenizer = Tokenizer(Path("tokenizer.json").read_text())
        tokenizer.encode("Hello!", add_special_tokens=True).ids
    """

    def __init__(self, tokenizer: str) -> None:
        """`tokenizer`: the JSON of a `tokenizer.json`."""
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer)["decoder"])
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self.control_tokens = {token.content for token in added.values() if token.special}
        """The special tokens as texts, such as `<s>`, `</s>` and `<image>`. No client's text may become one of them."""
        tokens = self._tokenizer.get_vocab()
        self.size = max(tokens.values()) + 1
        """The number of token ids, which start at 0."""
        self.longest_token = max(map(len, tokens))
        """The length of the longest token in the vocabulary, in characters."""
        self._bytes: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str]]:
        """Pickle the tokenizer as its JSON. A model's description goes from the engine's process to the gateway's."""
        return Tokenizer, (self.to_json(),)

    def to_json(self) -> str:
        """Return the content of a `tokenizer.json`."""
        return self._tokenizer.to_str()

    def encode(self, text: str, *, add_special_tokens: bool) -> tokenizers.Encoding:
        """Return the token ids of `text`, and each token's position in it. A control token's text becomes that token."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens included."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it, or None."""
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str:
        """Return the token as the vocabulary writes it, such as `▁Hello` or `<0x0A>`; empty for an unknown id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text, in UTF-8. They may be an incomplete character."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._added.get(token_id) or self._bytes_of(self.token(token_id))
        return found

    def token_texts(self) -> list[str | None]:
        """Return the text that each token adds to an answer, by its id. A control token adds nothing.

        None: the text depends on the tokens around it, as for a part of a character, so the tokens must be decoded together.
        """
        before, after = (self._last_token(text) for text in ("a", "."))
        start, end = self._texts([[before]])[0], self._texts([[before, after]])[0]
        alone = self._texts([[before, token] for token in range(self.size)])
        between = self._texts([[before, token, after] for token in range(self.size)])
        return [
            text[len(start) :] if longer == text + end[len(start) :] and not self._is_byte(token) and "\ufffd" not in text else None
            for token, (text, longer) in enumerate(zip(alone, between, strict=True))
        ]

    def check(self, token_ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequest for the first id that is not one of the model's. Its field is `param[index]`."""
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < self.size:
                raise self.refusal(token_id, f"{param}[{index}]")

    def refusal(self, token_id: int, param: str) -> InvalidRequest:
        """Return the error for a token id that is not one of the model's."""
        return InvalidRequest(f"{param}: {token_id} is not a token id of this model; its token ids are 0 to {self.size - 1}.", param=param)

    def _is_byte(self, token_id: int) -> bool:
        return BYTE_TOKEN.fullmatch(self.token(token_id)) is not None

    def _last_token(self, text: str) -> int:
        return self.encode(text, add_special_tokens=False).ids[-1]

    def _texts(self, sequences: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(sequences, skip_special_tokens=True)

    def _bytes_of(self, token: str) -> bytes:
        """Return the bytes of a token as the vocabulary writes it."""
        if self._byte_level:
            return bytes(BYTE_LEVEL[character] for character in token)
        if byte := BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace("▁", " ").encode()
