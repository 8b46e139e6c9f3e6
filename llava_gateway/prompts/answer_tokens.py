"""The tokens with which a model's answer may begin, for scoring given answers by the probability of their first token."""

import string
from collections.abc import Sequence
from itertools import product

from llava_gateway.tokenizer import Tokenizer

TAIL = 32
"""Characters at the end of a prompt that decide how the tokenizer spells an answer after it."""
MAX_SPELLINGS = 4096
"""Upper bound of the texts whose tokens are remembered."""


class AnswerTokens:
    """The first tokens of answers, as the tokenizer spells them after the prompts of one chat template.

    A model begins its answer with a space, unless the prompt ends with one. Some models do it the other way round, so both spellings count
    if they can be told apart. May be used from several threads:

        tokens = AnswerTokens(tokenizer, "USER: Is it red? ASSISTANT:")
        yes, no = tokens.apart([("yes", "Yes"), ("no", "No")])
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        """`prompt`: any rendered prompt of the template."""
        self._tokenizer = tokenizer
        self._tail = prompt[-TAIL:]
        self._spaces = ("", " ") if prompt[-1:].isspace() else (" ", "")
        """The space before an answer, the usual one first."""
        self._spellings: dict[str, list[int]] = {}
        self._prefixes: dict[str, list[int]] = {}
        self._labels: list[str] = []

    def apart(self, answers: Sequence[Sequence[str]], *, usual_space: bool = True) -> list[frozenset[int]]:
        """Return the first tokens of each answer, or an empty list if two answers begin with the same token.

        `answers`: for each answer its forms, such as "yes" and "Yes". `usual_space`: whether the answers must differ after the usual space.
        If not, it is enough that they differ after the other one.
        """
        found: list[frozenset[int]] = []
        for space in self._spaces:
            tokens = [frozenset(ids[0] for form in forms if (ids := self._spell(space, form))) for forms in answers]
            merged = [first | then for first, then in zip(found, tokens, strict=True)] if found else tokens
            if all(tokens) and len(frozenset[int]().union(*merged)) == sum(map(len, merged)):
                found = merged
            elif usual_space and not found:
                return []
        return found

    def labels(self, count: int) -> list[tuple[str, frozenset[int]]]:
        """Return `count` labels with their tokens, or fewer if the model has fewer: the letters A to Z, then those of AA to ZZ that are one
        token."""
        labels = list(string.ascii_uppercase)
        if count > len(labels):
            self._labels = self._labels or [pair for pair in map("".join, product(labels, labels)) if self._spaces_of([pair])]
            labels += self._labels
        labels = labels[:count]
        spaces = self._spaces_of(labels)
        while labels and not spaces:  # a pair may be one token only after a space, and another only without one
            labels.pop()
            spaces = self._spaces_of(labels)
        return [(label, frozenset(self._spell(space, label)[0] for space in spaces)) for label in labels]

    def _spaces_of(self, labels: Sequence[str]) -> list[str]:
        """Return the spaces after which each label is one token."""
        return [space for space in self._spaces if all(len(self._spell(space, label)) == 1 for label in labels)]

    def _spell(self, space: str, text: str) -> list[int]:
        """Return the token ids of `text` after a prompt and a space. Empty: the tokenizer never spells it like this."""
        spelled = space + text
        found = self._spellings.get(spelled)
        if found is None:
            if len(self._spellings) >= MAX_SPELLINGS:
                self._spellings.clear()
            found = self._spellings[spelled] = self._after(self._tail, spelled) or self._after("\n", spelled)
        return found

    def _after(self, before: str, text: str) -> list[int]:
        """Return the token ids of `text` after the text `before`. Empty: a token spans both."""
        prefix = self._prefixes.get(before)
        if prefix is None:
            prefix = self._prefixes[before] = self._tokenizer.encode(before, add_special_tokens=False).ids
        token_ids = self._tokenizer.encode(before + text, add_special_tokens=False).ids
        return token_ids[len(prefix) :] if token_ids[: len(prefix)] == prefix else []
