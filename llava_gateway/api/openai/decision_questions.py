"""The prompts of questions, and the tokens that answer them.

An answer is scored by the tokens with which the model may begin it, so each question ends with a sentence on the form of the answer. It is
the last text of the user's turn. The input before it is the same for all questions, so the engine's prefix cache has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_gateway.api.openai.decision_input import to_input_messages, to_part
from llava_gateway.api.openai.decision_request import (
    AnyQuestion,
    Choice,
    ChoiceQuestion,
    DecisionRequest,
    Predicate,
    option_text,
)
from llava_gateway.api.openai.messages import to_parts
from llava_gateway.errors import InvalidRequest
from llava_gateway.prompts.answer_tokens import AnswerTokens
from llava_gateway.types import MAX_LOGPROB_TOKEN_IDS, ChatRequest, Message, SamplingParams, Text

YES_OR_NO = "Is this statement true? Please answer yes or no."
ONE_OF = "Answer with one of these: {}."
LETTER = "Answer with the option's letter from the given choices directly."
"""The sentence that LLaVA-1.5 was trained with."""
MAX_NAMED, MAX_NAME_CHARS, MAX_NAME_WORDS = 26, 32, 3
"""Upper bounds of choices that are named in one sentence, and of each of their names."""
MAX_PROMPT_CHARS = 8 << 20
"""The upper bound of characters in the prompts of all questions: the time to tokenize them grows with it."""


@dataclass(frozen=True, slots=True)
class PosedQuestion:
    """A question as the model reads it."""

    message: Message
    answers: tuple[frozenset[int], ...]
    """The tokens that stand for each answer, in the order of the choices or levels; for a predicate those of yes and of no."""


def pose_all(questions: Sequence[AnyQuestion], tokens: AnswerTokens) -> list[PosedQuestion]:
    """Return the questions of a request with their tokens, in order. Raises InvalidRequest."""
    return [pose(question, tokens, f"questions[{index}]") for index, question in enumerate(questions)]


def pose(question: AnyQuestion, tokens: AnswerTokens, path: str) -> PosedQuestion:
    """Return a question with its tokens. `path`: of the question in the client's request. Raises InvalidRequest."""
    if isinstance(question, Predicate):
        form, answers = YES_OR_NO, tokens.apart([("yes", "Yes"), ("no", "No")], usual_space=False)
        if not answers:
            raise InvalidRequest(f"{path}: this model's tokenizer cannot tell yes from no.", param=path)
    elif isinstance(question, ChoiceQuestion):
        _check_unique(question.choices, f"{path}.choices")
        form, answers = _pose_choice(question.choices, tokens, f"{path}.choices")
    else:
        levels = [(level.label, level.description) for level in question.levels]
        form, answers = _pose_letters(levels, tokens, f"{path}.levels")
    return PosedQuestion(_message(question, form, path), tuple(answers))


def to_chats(request: DecisionRequest, posed: Sequence[PosedQuestion]) -> list[tuple[int, ChatRequest]]:
    """Return the gateway's requests, each with the number of its question. Raises InvalidRequest.

    A question has one request for every `MAX_LOGPROB_TOKEN_IDS` tokens. Requests of one question have the same prompt.
    """
    messages = to_input_messages(request.input)
    numbered = [(number, token_ids) for number, each in enumerate(posed) for token_ids in _chunks(each)]
    _check_length(messages, [posed[number].message for number, _ in numbered])
    return [
        (
            number,
            ChatRequest(
                model=request.model,
                messages=(*messages, posed[number].message),
                param="input",
                image_aspect_ratio=request.image_aspect_ratio,
                cache_salt=request.cache_salt,
                sampling=SamplingParams(
                    max_tokens=1, temperature=0, logprobs=len(token_ids), logprob_token_ids=token_ids, include_stop_token=True
                ),
            ),
        )
        for number, token_ids in numbered
    ]


def _chunks(posed: PosedQuestion) -> list[tuple[int, ...]]:
    token_ids = sorted(frozenset[int]().union(*posed.answers))
    return [tuple(token_ids[start : start + MAX_LOGPROB_TOKEN_IDS]) for start in range(0, len(token_ids), MAX_LOGPROB_TOKEN_IDS)]


def _pose_choice(choices: Sequence[Choice], tokens: AnswerTokens, path: str) -> tuple[str, list[frozenset[int]]]:
    """Return the form of the answer and its tokens. Short names that begin with different tokens are the answers; else letters are."""
    names = [option_text(choice.value) for choice in choices]
    if len(names) <= MAX_NAMED and all(map(_is_short, names)) and not any(choice.description for choice in choices):
        answers = tokens.apart([(name, name[:1].upper() + name[1:]) for name in names])
        if answers:
            return ONE_OF.format(", ".join(names)), answers
    return _pose_letters(list(zip(names, (choice.description for choice in choices), strict=True)), tokens, path)


def _is_short(name: str) -> bool:
    return len(name) <= MAX_NAME_CHARS and len(name.split()) <= MAX_NAME_WORDS and not any(each in name for each in ",\n")


def _pose_letters(options: Sequence[tuple[str, str | None]], tokens: AnswerTokens, path: str) -> tuple[str, list[frozenset[int]]]:
    """Return a list of the options, each with a letter, and the letters' tokens. Raises InvalidRequest for too many options."""
    labels = tokens.labels(len(options))
    if len(labels) < len(options):
        message = f"{path}: has {len(options)} options, and this model can tell {len(labels)} apart; ask with fewer options."
        raise InvalidRequest(message, param=path)
    lines = [
        f"{letter}. {name}: {description}" if description else f"{letter}. {name}"
        for (letter, _), (name, description) in zip(labels, options, strict=True)
    ]
    return "\n".join((*lines, LETTER)), [tokens_of_letter for _, tokens_of_letter in labels]


def _message(question: AnyQuestion, form: str, path: str) -> Message:
    parts = to_parts(question.instructions, f"{path}.instructions", to_part)
    texts = [part.text for part in parts if isinstance(part, Text)]
    return Message("user", (*(part for part in parts if not isinstance(part, Text)), Text("\n".join((*texts, form)))))


def _check_unique(choices: Sequence[Choice], path: str) -> None:
    """Raise InvalidRequest for the first choice that equals an earlier one. A text and a boolean are different."""
    seen = set[tuple[type, str | bool]]()
    for index, choice in enumerate(choices):
        key = type(choice.value), choice.value
        if key in seen:
            param = f"{path}[{index}].value"
            raise InvalidRequest(f"{param}: {option_text(choice.value)[:50]!r} is there twice; choices must differ.", param=param)
        seen.add(key)


def _check_length(messages: Sequence[Message], questions: Sequence[Message]) -> None:
    shared, own = _chars(messages), _chars(questions)
    if shared * len(questions) + own > MAX_PROMPT_CHARS:
        raise InvalidRequest(
            f"Each of the {len(questions)} questions reads the input of {shared} characters, which is more than {MAX_PROMPT_CHARS} in all; "
            "ask fewer questions in one request.",
            param="questions",
        )


def _chars(messages: Sequence[Message]) -> int:
    return sum(len(part.text) for message in messages for part in message.content if isinstance(part, Text))
