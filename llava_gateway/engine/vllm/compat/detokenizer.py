"""The text of an answer's tokens, read from a table. Importing this file imports vLLM.

vLLM decodes each token with a `DecodeStream` of the library tokenizers, which it first gives the whole prompt: about a microsecond for each
of its tokens, on the event loop. Most tokens have the same text wherever they stand, so a table has it. The others, such as the parts of a
character, are decoded by a `DecodeStream` that gets only the last tokens before them.

Read in vLLM 0.32.0.
"""

from collections.abc import Sequence
from itertools import chain, takewhile

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, FastIncrementalDetokenizer

CONTEXT = 16
"""Tokens before a token that its text may depend on. A character has at most four."""


class TableDetokenizer(FastIncrementalDetokenizer):  # type: ignore[misc]  # vLLM has no types
    """Decodes the answer to one request, like vLLM's own class, if control tokens are left out of the text.

    Touches: `BaseIncrementalDetokenizer.__init__`, which reads the stop strings and sets `token_ids`, and the attributes `request_id`,
    `tokenizer`, `skip_special_tokens`, `spaces_between_special_tokens` and `stream`, which `_protected_step` and `decode_next` read.
    Without it: vLLM's class gives the same texts, and takes more of the event loop's time.
    """

    def __init__(self, tokenizer: Tokenizer, request: EngineCoreRequest, texts: Sequence[str | None]) -> None:
        """`tokenizer`: the model's. `texts`: see `llava_gateway.tokenizer.Tokenizer.token_texts`."""
        BaseIncrementalDetokenizer.__init__(self, request)
        self.request_id = request.request_id
        self.tokenizer = tokenizer
        self.skip_special_tokens = True
        self.spaces_between_special_tokens = True
        self.texts = texts
        self.stream: DecodeStream | None = None
        self._prompt = request.prompt_token_ids or ()
        context = self._context()
        if not context or self._text(context[-1]) is None:
            # The first token's text may begin with a space that is left out, or may end a character that the prompt has begun. In this
            # case vLLM's own class would repeat the whole prompt.
            begun = list(takewhile(lambda token_id: self._text(token_id) is None, reversed(context)))
            self.stream = DecodeStream(ids=begun[::-1], skip_special_tokens=True)

    def add(self, token_id: int) -> str:
        """Append a token to the answer, and return its text."""
        self.token_ids.append(token_id)
        return self.decode_next(token_id)

    def decode_next(self, next_token_id: int) -> str:
        """Return the text of the token that has just been appended to `token_ids`. Empty: the text comes with a later token."""
        known = self._text(next_token_id)
        if self.stream is None:
            if known is not None:
                return known
            self.stream = DecodeStream(ids=self._context(), skip_special_tokens=True)
        text: str = self._protected_step(next_token_id) or ""
        if text and known is not None:
            self.stream = None
        return text

    def _text(self, token_id: int) -> str | None:
        return self.texts[token_id] if token_id < len(self.texts) else None  # a model may have more ids than its tokenizer has tokens

    def _context(self) -> list[int]:
        """Return the last tokens before the current one, without those that have no text."""
        context: list[int] = []
        for token_id in chain(reversed(self.token_ids[-CONTEXT - 1 : -1]), reversed(self._prompt)):
            if self._text(token_id) != "":
                context.append(token_id)
                if len(context) == CONTEXT:
                    break
        return context[::-1]
