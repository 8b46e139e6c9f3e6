"""The tokens with which a model's answer may begin, for scoring given answers by the probability of their first token."""

import string
from collections.abc import Iterator

from llava_gateway.tokenizer import Tokenizer

TAIL = 32
"""Characters at the end of a prompt that decide how the tokenizer spells an answer after it."""
MAX_SPELLINGS = 4096
"""Upper bound of the texts whose tokens are remembered."""


class AnswerTokens:
    """The first tokens of answers, as the tokenizer spells them after the prompts of one chat template.

    A model may begin its answer with a space or without one, so each text has two spellings:

        tokens = AnswerTokens(tokenizer, "USER: Is it red? ASSISTANT:")
        tokens.first("Yes")
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        """`prompt`: any rendered prompt of the template."""
        self._tokenizer = tokenizer
        self._tail = prompt[-TAIL:]
        self._spellings: dict[str, list[list[int]]] = {}
        self._labels: list[tuple[str, frozenset[int]]] | None = None

    def first(self, *texts: str) -> frozenset[int]:
        """Return the first tokens of all spellings of `texts`."""
        return frozenset(spelling[0] for text in texts for spelling in self._spell(text))

    def whole(self, text: str) -> frozenset[int]:
        """Return the tokens that are a whole spelling of `text` each. Empty: every spelling takes several tokens."""
        return frozenset(spelling[0] for spelling in self._spell(text) if len(spelling) == 1)

    def labels(self, count: int) -> list[tuple[str, frozenset[int]]]:
        """Return up to `count` labels with their tokens: the letters A to Z, then those of AA to ZZ that are one token."""
        letters = [(letter, tokens) for letter in string.ascii_uppercase if (tokens := self.whole(letter))]
        if count <= len(letters):
            return letters[:count]
        if self._labels is None:
            self._labels = letters + list(self._pairs())
        return self._labels[:count]

    def _pairs(self) -> Iterator[tuple[str, frozenset[int]]]:
        for first in string.ascii_uppercase:
            for second in string.ascii_uppercase:
                if tokens := self.whole(first + second):
                    yield first + second, tokens

    def _spell(self, text: str) -> list[list[int]]:
        """Return the token ids of `text` after a space and without one."""
        found = self._spellings.get(text)
        if found is None:
            if len(self._spellings) >= MAX_SPELLINGS:
                self._spellings.clear()
            with_space = self._after(self._tail, " " + text)
            without_space = self._after(self._tail, text) or self._after("\n", text)
            found = self._spellings[text] = [spelling for spelling in (with_space, without_space) if spelling]
        return found

    def _after(self, before: str, text: str) -> list[int]:
        """Return the token ids of `text` after the text `before`. Empty: a token spans both."""
        prefix = self._tokenizer.encode(before, add_special_tokens=False).ids
        token_ids = self._tokenizer.encode(before + text, add_special_tokens=False).ids
        return token_ids[len(prefix) :] if token_ids[: len(prefix)] == prefix else []
