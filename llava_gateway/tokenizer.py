"""A model's tokens: text to ids and back, and the exact bytes of each token."""

import json
import re
from collections.abc import Sequence

import tokenizers

from llava_gateway.errors import InvalidRequest


def _byte_level_alphabet() -> dict[str, int]:
    """How byte-level BPE writes each byte as a printable character (after GPT-2): printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_LEVEL = _byte_level_alphabet()
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's way to spell a byte that its vocabulary has no character for


class Tokenizer:
    """Wraps a Hugging Face fast tokenizer."""

    def __init__(self, tokenizer: str) -> None:
        """`tokenizer` is the JSON of a `tokenizer.json`."""
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer)["decoder"])
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self.control_tokens = {token.content for token in added.values() if token.special}
        """What the model may see but no client may write: `<s>`, `</s>`, `<image>`, ..."""
        tokens = self._tokenizer.get_vocab()
        self.size = max(tokens.values()) + 1
        """Token ids run from 0 to this, exclusive."""
        self.longest_token = max(map(len, tokens))
        """In characters."""
        self._bytes: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[str]]:
        """Pickled as its JSON: a model's description goes from the engine's process to the gateway's."""
        return Tokenizer, (self.to_json(),)

    def to_json(self) -> str:
        """As in `tokenizer.json`."""
        return self._tokenizer.to_str()

    def encode(self, text: str, *, add_special_tokens: bool) -> tokenizers.Encoding:
        """`text` as token ids, with each token's place in it. Control tokens are recognised where the text spells them."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text, control tokens included."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str:
        """The token as the vocabulary writes it: `▁Hello`, `<0x0A>`."""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text, in UTF-8; half a character if that is what it is."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._added.get(token_id) or self._spell(self.token(token_id))
        return found

    def check(self, token_ids: Sequence[int], param: str) -> None:
        """InvalidRequest, naming the first by `param[index]`, for ids that are not the model's."""
        for index, token_id in enumerate(token_ids):
            if not 0 <= token_id < self.size:
                raise self.refusal(token_id, f"{param}[{index}]")

    def refusal(self, token_id: int, param: str) -> InvalidRequest:
        return InvalidRequest(f"{param}: {token_id} is no token of this model; its token ids are 0 to {self.size - 1}.", param=param)

    def _spell(self, token: str) -> bytes:
        if self._byte_level:
            return bytes(BYTE_LEVEL[character] for character in token)
        if byte := BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace("▁", " ").encode()
