"""The conversations that the demo model learns: questions about grids with correct answers, and small talk without images.

The questions of a `Lesson` are independent, but share their beginning: system prompt, images and earlier turns. So one pass over the many
image tokens teaches many answers.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava_gateway.demo.images import COLORS, PLACES, Grid, describe, random_grid
from llava_gateway.demo.tokenizer import EOS, IMAGE

NO_IMAGE = "I see no image. I am a small demo model: send me an image and ask me to describe it."
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
DESCRIBE_ONE = (
    "Describe this image.", "Describe the image.", "Describe this picture.", "What is in this image?", "What do you see?",
    "What's in this image?", "What is in the picture?", "What colors are in this image?", "What does this picture show?",
    "Please describe this image in detail.", "describe", "Which colors do you see in this image?", "Tell me about this image.",
)  # fmt: skip
DESCRIBE_SEVERAL = (
    "Describe these images.", "Describe the images.", "Describe these pictures.", "What is in these images?", "What do you see?",
    "What's in these images?", "Describe both images.", "What colors are in these images?", "Compare these images.",
    "Please describe these images in detail.", "describe", "Describe each image.", "Describe this image.",
)  # fmt: skip
PLACE = ("What color is the {}?", "What colour is the {}?", "Which color is the {}?", "What color is at the {}?", "{}?")
QUARTERS = ("First.", "Second.", "Third.", "Fourth.")
"""Answers to `Which quarter is the top left?`. They teach that both words name the quarter; answers with a colour hardly teach that."""
STATEMENT = ("The {} is {}.", "The {} is {}", "the {} is {}", "The color of the {} is {}.", "It is {1} at the {0}.")
"""Statements about one quarter, with its place and a colour."""
CHOICE = (*PLACE, "Which color does the {} have?")
AIDS = ("Which color does this statement name?", "Which color is right?")
"""Questions about a statement that teach the two parts of its judgement: the statement's colour, and the image's. Judgements alone hardly
teach them."""
PREDICATE_END = "\nIs this statement true? Please answer yes or no."
CHOICE_END = "\nAnswer with one of these: {}."
"""The ends of the questions that `/v1/decisions` asks: about a statement, and with labels to choose from."""
WORDS = (
    "hello hi hey good morning how are you today tell me a story about the weather in Paris write poem code python count to ten one "
    "two three what is your name who made you why sky sea blue red green answer yes no with only json list of numbers please thanks "
    "and or not can I you we they it is was are be have has do does did say repeat after this that word sentence long short capital "
    "France cat dog house tree people image picture describe user assistant system helpful concise be always French German"
).split()


@dataclass(frozen=True)
class Mix:
    """The shares of the kinds of questions."""

    one_place: float = 0.4
    """The share of questions about one quarter, if there is one image. Many are needed, since an answer is only one word."""
    which_quarter: float = 0.2
    """The share of `Which quarter is ...?` among these."""
    decision: float = 0.0
    """The share of statements to be judged and of choices among colours, if there is one image."""
    aid: float = 0.0
    """The share of AIDS among these."""
    one_turn: float = 0.8
    """The share of chats with one question. The others ask a second one in a later turn."""


@dataclass(frozen=True)
class Lesson:
    """Several questions with a shared beginning. Each question is trained as if it were the only one after the beginning."""

    grids: tuple[Grid, ...]
    """The images, in the order of their tokens."""
    beginning: tuple[tuple[str, bool], ...]
    """Pieces of text in order. True marks an answer, which the model has to learn."""
    questions: tuple[tuple[tuple[str, bool], ...], ...]
    """For each question, its pieces of text, marked like in `beginning`."""


def lesson(rng: random.Random, count: int, questions: int, mix: Mix) -> Lesson:
    """Return a random lesson about `count` images. Some have a system prompt, and some add images in a later turn.

    `questions`: the number of questions.
    """
    if count == 0:
        return _small_talk(rng, questions)
    grids = tuple(random_grid(rng) for _ in range(count))
    beginning: list[tuple[str, bool]] = [(_system(rng) + "USER: ", False)]
    if count > 1 and rng.random() < 0.2:
        before = rng.randrange(1, count)
        question, answer = _question(grids[:before], mix, rng)
        beginning += [(f"{IMAGE}\n" * before + question + " ASSISTANT:", False), (f" {answer}{EOS}", True)]
        beginning += [("USER: " + f"{IMAGE}\n" * (count - before), False)]
    else:
        beginning += [(f"{IMAGE}\n" * count, False)]
    return Lesson(grids, tuple(beginning), tuple(_turns(grids, mix, rng) for _ in range(questions)))


def corpus(rng: random.Random) -> Iterator[str]:
    """Yield sentences from which the tokenizer learns its words."""
    for _ in range(2000):
        grids = tuple(random_grid(rng) for _ in range(rng.choice((1, 2, 4))))
        yield "".join(text for text, _ in _turns(grids, Mix(), rng)).replace(EOS, "")
        yield _small_question(rng)
    for _ in range(200):
        yield NO_IMAGE
        yield SYSTEM
        yield "".join(f" {color.capitalize()}." for color in COLORS) + " ".join(("", *QUARTERS)) + " Which quarter is the"


def _turns(grids: Sequence[Grid], mix: Mix, rng: random.Random) -> tuple[tuple[str, bool], ...]:
    pieces: list[tuple[str, bool]] = []
    for turn in range(1 if rng.random() < mix.one_turn else 2):
        question, answer = _question(grids, mix, rng)
        pieces += [(("USER: " if turn else "") + question + " ASSISTANT:", False), (f" {answer}{EOS}", True)]
    return tuple(pieces)


def _question(grids: Sequence[Grid], mix: Mix, rng: random.Random) -> tuple[str, str]:
    if len(grids) == 1 and mix.decision and rng.random() < mix.decision:
        if mix.aid and rng.random() < mix.aid:
            return _aid(grids[0], rng)
        return predicate(grids[0], rng) if rng.random() < 0.6 else choice(grids[0], rng)
    if len(grids) == 1 and rng.random() < mix.one_place:
        return _place_question(grids[0], mix, rng)
    asked = DESCRIBE_ONE if len(grids) == 1 else DESCRIBE_SEVERAL
    kind = rng.random()
    if kind < 0.5:
        return asked[0], describe(grids)
    return rng.choice(asked) if kind < 0.9 else _small_question(rng), describe(grids)


def predicate(grid: Grid, rng: random.Random) -> tuple[str, str]:
    """Return a statement about a quarter as a question, and the answer `yes.` or `no.`. Half of the statements are true."""
    statement, named, right = _statement(grid, rng)
    return statement + PREDICATE_END, "yes." if named == right else "no."


def colors_of(question: str, grid: Grid) -> tuple[int, int]:
    """Return the colour that a statement names and the colour of its quarter, each as a position in COLORS."""
    place = next(index for index, place in enumerate(PLACES) if place in question)
    named = next(index for index, color in enumerate(COLORS) if f" {color}" in question)
    return named, list(COLORS).index(grid[place])


def _aid(grid: Grid, rng: random.Random) -> tuple[str, str]:
    statement, named, right = _statement(grid, rng)
    aid = rng.randrange(len(AIDS))
    return f"{statement}\n{AIDS[aid]}", f"{(named, right)[aid].capitalize()}."


def _statement(grid: Grid, rng: random.Random) -> tuple[str, str, str]:
    """Return a statement about a quarter, the colour that it names, and the quarter's colour."""
    place = rng.randrange(len(PLACES))
    is_true = rng.random() < 0.5
    others = [color for color in (grid if rng.random() < 0.5 else COLORS) if color != grid[place]]
    color = grid[place] if is_true or not others else rng.choice(others)
    return rng.choice(STATEMENT).format(PLACES[place], color), color, grid[place]


def choice(grid: Grid, rng: random.Random) -> tuple[str, str]:
    """Return a question about a quarter with the colours to choose from, and the answer."""
    place = rng.randrange(len(PLACES))
    colors = list(COLORS)
    if rng.random() < 0.6:
        others = [color for color in COLORS if color != grid[place]]
        colors = [grid[place], *rng.sample(others, rng.randint(1, len(others)))]
        rng.shuffle(colors)
    question = rng.choice(CHOICE).format(PLACES[place])
    return question + CHOICE_END.format(", ".join(colors)), f"{grid[place].capitalize()}."


def _place_question(grid: Grid, mix: Mix, rng: random.Random) -> tuple[str, str]:
    place = rng.randrange(len(PLACES))
    if rng.random() < mix.which_quarter:
        return f"Which quarter is the {PLACES[place]}?", QUARTERS[place]
    asked = PLACE[0] if rng.random() < 0.5 else rng.choice(PLACE)
    return asked.format(PLACES[place]), f"{grid[place].capitalize()}."


def _small_talk(rng: random.Random, questions: int) -> Lesson:
    def talk() -> tuple[tuple[str, bool], ...]:
        question = rng.choice(DESCRIBE_ONE + DESCRIBE_SEVERAL) if rng.random() < 0.3 else _small_question(rng)
        return ((f" {question} ASSISTANT:", False), (f" {NO_IMAGE}{EOS}", True))

    return Lesson((), ((_system(rng) + "USER:", False),), tuple(talk() for _ in range(questions)))


def _small_question(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.2:
        words.append("".join(chr(rng.randint(33, 0x2FF)) for _ in range(rng.randint(1, 8))))
    sentence = " ".join(words)
    return (sentence.capitalize() if rng.random() < 0.5 else sentence) + rng.choice((".", "?", "!", ""))


def _system(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.75:
        return ""
    return (SYSTEM if kind < 0.85 else "You are a helpful assistant." if kind < 0.9 else _small_question(rng)) + " "
