"""The tokens with which answers begin, with the demo model's tokenizer and with one like LLaMA's, which writes a space as `▁`."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.images import COLORS
from llava_gateway.prompts.answer_tokens import MAX_SPELLINGS, AnswerTokens
from llava_gateway.tokenizer import Tokenizer

DEMO = Tokenizer((CHECKPOINT / "tokenizer.json").read_text())
WORDS = ("Yes", "yes", "No", "no", "red", "Red", "black", "Black", "board", "AB", *"ABC")


def like_llama() -> Tokenizer:
    """Return a tokenizer with `WORDS`, each with and without a space before it, and with every other character as a token."""
    vocabulary = [("▁", -3.0), *((space + word, -1.0) for word in WORDS for space in ("", "▁"))]
    taken = {token for token, _ in vocabulary}
    vocabulary += [(chr(code), -9.0) for code in (*range(33, 127), 10) if chr(code) not in taken]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    return Tokenizer(tokenizer.to_str())


LLAMA = like_llama()


def names(tokenizer: Tokenizer, tokens: frozenset[int]) -> set[str]:
    return {tokenizer.token(token) for token in tokens}


def test_both_spellings_of_an_answer_count() -> None:
    yes, no = AnswerTokens(LLAMA, "USER: Is it? ASSISTANT:").apart([("yes", "Yes"), ("no", "No")])
    assert names(LLAMA, yes) == {"yes", "Yes", "▁yes", "▁Yes"}
    assert names(LLAMA, no) == {"no", "No", "▁no", "▁No"}


def test_space_at_the_end_of_a_prompt_is_not_merged_into_the_answer() -> None:
    """The model continues the space with `Yes`, and never with a token that has a space of its own."""
    yes, no = AnswerTokens(LLAMA, "ASSISTANT: ").apart([("yes", "Yes"), ("no", "No")])
    assert {"yes", "Yes"} <= names(LLAMA, yes)
    assert not yes & no


def test_spelling_in_which_two_answers_begin_alike_does_not_count() -> None:
    """The demo model's tokenizer begins `blue` and `black` with the same token if no space is before them."""
    found = AnswerTokens(DEMO, "USER: Hello ASSISTANT:").apart([(color, color.capitalize()) for color in COLORS])
    assert [names(DEMO, tokens) for tokens in found] == [{f"Ġ{color}", f"Ġ{color.capitalize()}"} for color in COLORS]


def test_answers_that_begin_alike_are_not_told_apart() -> None:
    tokens = AnswerTokens(LLAMA, "ASSISTANT:")
    assert tokens.apart([("black",), ("blackboard",)]) == []
    assert tokens.apart([("red",), ("Red",)]) != []
    assert tokens.apart([("red", "Red"), ("Red",)]) == []


def test_line_break_before_the_answer_makes_the_spelling_without_a_space_the_usual_one() -> None:
    """Without a space, the demo model's tokenizer cannot tell these apart."""
    assert AnswerTokens(DEMO, "<|im_start|>assistant\n").apart([("blue",), ("black",)]) == []
    assert AnswerTokens(DEMO, "<|im_start|>assistant\n").apart([("blue",), ("black",)], usual_space=False) != []


def test_labels_are_letters_and_then_pairs_that_are_one_token() -> None:
    """LLaMA's tokenizer has a token for some pairs."""
    tokens = AnswerTokens(LLAMA, "ASSISTANT:")
    assert [(label, names(LLAMA, ids)) for label, ids in tokens.labels(2)] == [("A", {"A", "▁A"}), ("B", {"B", "▁B"})]
    labels = dict(tokens.labels(255))
    assert list(labels) == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "AB"]
    assert len(frozenset().union(*labels.values())) == sum(map(len, labels.values()))


@pytest.mark.parametrize("tokenizer", [DEMO, LLAMA], ids=["demo", "llama"])
@pytest.mark.parametrize("count", [2, 10, 26, 255])
def test_every_label_has_the_same_number_of_tokens(tokenizer: Tokenizer, count: int) -> None:
    """A label with more spellings than another would be preferred."""
    assert len({len(ids) for _, ids in AnswerTokens(tokenizer, "ASSISTANT:").labels(count)}) == 1


def test_remembered_spellings_are_bounded() -> None:
    tokens = AnswerTokens(LLAMA, "ASSISTANT:")
    for number in range(MAX_SPELLINGS):
        tokens.apart([(str(number),)])
    assert len(tokens._spellings) <= MAX_SPELLINGS
