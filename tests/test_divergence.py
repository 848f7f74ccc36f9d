"""KL between a base and a thinking model, against torch's own on each answer read alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from locksmith import errors, loading, rollouts
from locksmith.experiments import divergence
from repository import smoke_lab
from torch.distributions import Categorical, kl_divergence

PAIRS = [loading.Pair("smoke", "countdown", 0),
         loading.Pair("toy", "sums", 0, "toy", "toy/thinking")]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


def answers_of(pair, texts):
    """Two problems with their answers, given as texts; all but the last ended by themselves."""
    model, problems = pair.load("thinking"), pair.problems(2)
    ids = [[model.encode(text) for text in row] for row in texts]
    stopped = np.array([[True] * len(texts[0]), [True] * (len(texts[1]) - 1) + [False]])
    return rollouts.Answers(pair.task, problems, [], ids, texts, [], stopped)


TEXTS = {
    "countdown": [["try 9 * 3 = 27 what about 27 <eos>", "so 1 <eos>"],
                  ["maybe 3 check 3 no <eos>", "try 9 * 3"]],
    "sums": [[" 5 + 7 = 12. The answer is 12.\n", " The answer is 3.\n"],
             [" 5 + 7 = 12.\n", " 12 - 3 ="]]}
# Tokens with which a step opens or the answer ends, by hand: words of the lab, and bytes. That of
# "what about" is its first word.
OPEN = {"countdown": [[[0, 6, 9], [0, 2]], [[0, 2, 5], [0]]],
        "sums": [[[0, 12, 30], [0, 17]], [[0, 12], [0]]]}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.task)
def test_nats_are_torchs_and_places_are_found(pair):
    answers = answers_of(pair, TEXTS[pair.task])
    found = divergence.kl(pair, answers)
    lengths = np.array([[len(ids) for ids in row] for row in answers.ids])
    assert (sum(x.tokens for x in found.values()) == lengths.sum(1)).all()

    models = [pair.load(role, exact=True) for role in ("thinking", "base")]
    for i, row in enumerate(answers.ids):
        nats, change, tokens = ({True: 0, False: 0} for _ in range(3))
        for s, ids in enumerate(row):
            both = []
            for model in models:
                prompt = model.ask(pair.rules, answers.problems[i])
                with torch.no_grad():
                    logits = model.net(torch.tensor([prompt + ids])).logits[0]
                both.append(Categorical(logits=logits[len(prompt) - 1:-1]))
            for t, value in enumerate(kl_divergence(*both).tolist()):
                opens = t in OPEN[pair.task][i][s]
                nats[opens] += value
                change[opens] += (both[0].entropy() - both[1].entropy())[t].item()
                tokens[opens] += 1
        for position, inside in zip(divergence.POSITIONS, (True, False)):
            assert found[position].nats[i] == pytest.approx(nats[inside], rel=1e-3)
            assert found[position].entropy[i] == pytest.approx(change[inside], rel=1e-3, abs=1e-4)
            assert found[position].tokens[i] == tokens[inside]


def test_a_model_is_no_way_from_itself_and_a_chunk_changes_nothing(monkeypatch):
    pair = PAIRS[1]
    answers = answers_of(pair, TEXTS["sums"])
    assert all((x.nats == 0).all() for x in divergence.kl(pair._replace(thinking="toy"),
                                                          answers).values())
    whole = divergence.kl(pair, answers)
    monkeypatch.setattr(divergence, "MOST_LOGITS", 1)
    for position, part in divergence.kl(pair, answers).items():
        assert part.nats == pytest.approx(whole[position].nats, rel=1e-4)


def test_tokenizers_that_differ_are_refused():
    pair = PAIRS[0]._replace(base="toy", thinking="lab/thinking")
    answers = replace(answers_of(PAIRS[0], TEXTS["countdown"]))
    with pytest.raises(errors.BadInput, match="tokenizer is not that of toy"):
        divergence.kl(pair, answers)


def test_answers_are_those_that_a_chapter_samples():
    pair = PAIRS[1]
    drawn = rollouts.answer(pair.load("thinking"), pair.rules, pair.problems(3), 2,
                            max_new_tokens=12, seed=0)
    found, again = divergence.of_answers(pair, 3, 2, 12), divergence.kl(pair, drawn)
    for position in divergence.POSITIONS:
        assert (found[position].nats == again[position].nats).all()
    assert sum(x.tokens.sum() for x in found.values()) == drawn.lengths.sum()
