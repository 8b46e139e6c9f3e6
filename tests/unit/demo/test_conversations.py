"""The demo model's questions: answers are correct, and what earlier stages of the training learn does not change."""

import hashlib
import random

import pytest
from tokenizers import Tokenizer

from llava_gateway.demo import CHECKPOINT
from llava_gateway.demo.batches import IGNORE, Lessons, Stage
from llava_gateway.demo.conversations import CHOICE_END, PREDICATE_END, Mix, choice, colors_of, corpus, lesson, predicate
from llava_gateway.demo.images import COLORS, PLACES, random_grid
from llava_gateway.demo.tokenizer import build
from llava_gateway.demo.train import STAGES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(20))
def test_statement_is_answered_with_yes_only_if_it_is_true(seed: int) -> None:
    grid = random_grid(random.Random(seed))
    question, answer = predicate(grid, random.Random(seed))
    statement = question.removesuffix(PREDICATE_END)
    place = next(place for place in PLACES if place in statement)
    color = next(color for color in COLORS if color in statement)
    assert statement != question
    assert answer == ("yes." if grid[PLACES.index(place)] == color else "no.")
    assert colors_of(question, grid) == (list(COLORS).index(color), list(COLORS).index(grid[PLACES.index(place)]))


def test_half_of_the_statements_are_true() -> None:
    rng = random.Random(0)
    answers = [predicate(random_grid(rng), rng)[1] for _ in range(2000)]
    assert 0.45 < answers.count("yes.") / len(answers) < 0.55


@pytest.mark.parametrize("seed", range(20))
def test_choice_offers_its_answer_among_different_colors(seed: int) -> None:
    question, answer = choice(random_grid(random.Random(seed)), random.Random(seed))
    before, after = CHOICE_END.split("{}")
    offered = question.partition(before)[2].removesuffix(after).split(", ")
    assert 2 <= len(set(offered)) == len(offered)
    assert set(offered) <= set(COLORS)
    assert answer[:-1].lower() in offered


def test_checkpoint_still_has_the_tokenizer_that_the_corpus_teaches() -> None:
    assert build(corpus(random.Random(0))).to_str(pretty=True) == (CHECKPOINT / "tokenizer.json").read_text()


@pytest.mark.parametrize(("stage", "digest"), list(enumerate(("edd1a042c9f9e479", "4e4af39b8b4feb08", "5fe7fcb37e58f195"))))
def test_decisions_leave_the_lessons_of_earlier_stages_unchanged(stage: int, digest: str) -> None:
    rng = random.Random(stage)
    lessons = hashlib.sha256()
    for number in range(300):
        lessons.update(repr(lesson(rng, number % 5, 30, STAGES[stage].mix)).encode())
    assert lessons.hexdigest().startswith(digest)


def test_mix_without_decisions_asks_none() -> None:
    rng = random.Random(0)
    text = repr([lesson(rng, 1, 30, Mix(one_place=0.5)) for _ in range(50)])
    assert "Is this statement true" not in text
    assert "Answer with one of these" not in text


def test_no_in_an_answer_without_images_is_no_judgement() -> None:
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    stage = Stage(1, 0, (8,), 0, Mix(decision=1))
    lessons = Lessons(tokenizer, stage, seed=0)
    rng = random.Random(0)
    judgements = [lessons._batch([lesson(rng, count, 30, stage.mix)], 8, rng).named != IGNORE for count in (0, 1)]
    assert [bool(each.any()) for each in judgements] == [False, True]
