"""What a stream of documents is said to hold, against counting in its text."""

import numpy as np
import pytest
from locksmith import corpus, params
from locksmith.experiments import documents

FAMILIES = params.load("lab")["families"]


@pytest.mark.parametrize("family", FAMILIES)
def test_habits_are_those_of_the_solved_documents(family):
    generator = FAMILIES[family]
    solved = [words for words, kind in documents.written(family, generator, 300, 2)
              if kind == "solved"]
    found = documents.habits(family, generator, 300)
    assert found["words_per_document"] == np.mean([len(words) for words in solved])
    assert found["failed_checks"] == sum(words.count("no") for words in solved) / len(solved)
    assert found["words_95"] >= found["words_per_document"]
    assert found["attempts"] >= 1 and 0 <= found["several_attempts"] <= 1
    without = documents.habits(family, generator | params.load("lab")["twin"], 300)
    assert without["backtracks"] == 0 and found["backtracks"] > 0
    assert without["hand_overs"] > found["hand_overs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_are_of_every_kind_and_decisions_are_few(family):
    found = documents.examples(family, FAMILIES[family])
    assert set(found) == {"solved, going back", "solved, straight on", "facts", "review"}
    assert 0 < documents.decision_share(family, FAMILIES[family], 100) < 0.5


def test_every_option_of_the_generator_is_explained():
    assert {name for family in FAMILIES.values() for name in family} <= set(documents.OPTIONS)
    assert set(corpus.FAMILIES) == set(FAMILIES)
