"""The corpus against a second reading of it, and the tokenizer against `AutoTokenizer`."""

import hashlib
import random

import numpy as np
import pytest
from locksmith import corpus, grammar, params, vocabulary
from locksmith.tasks import countdown
from transformers import AutoTokenizer

FAMILIES = params.load("lab")["families"]
both = pytest.mark.parametrize("family", list(corpus.FAMILIES))


def texts(family, n_tokens=30_000, seed=0, **changes):
    """A small corpus as a list of documents in words, and the counts that came with it."""
    generator = {**FAMILIES[family], **changes}
    ids, counts = corpus.write(corpus.FAMILIES[family], generator, n_tokens, seed)
    words = " ".join(vocabulary.VOCABULARY[i] for i in ids)
    return [d.strip() for d in words.replace("<bos>", "\n<bos>").splitlines()[1:]], counts


def test_words_come_back_from_auto_tokenizer_as_they_went(tmp_path):
    vocabulary.tokenizer().save_pretrained(tmp_path)
    hub = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(0)
    words = [rng.choice(vocabulary.VOCABULARY) for _ in range(500)] + list(vocabulary.VOCABULARY)
    assert hub(" ".join(words))["input_ids"] == vocabulary.encode(words)
    assert hub.decode(vocabulary.encode(words)).split() == words
    assert vocabulary.decode(vocabulary.encode(words)) == [w for w in words if w != "<pad>"]
    assert (hub.pad_token_id, hub.bos_token_id, hub.eos_token_id) == \
        (vocabulary.PAD, vocabulary.BOS, vocabulary.EOS)
    with pytest.raises(KeyError):
        vocabulary.encode(["locksmith"])


def test_every_behaviour_has_four_openings_whose_first_word_is_its_own():
    words = [w for openings in grammar.OPENINGS.values() for opening in openings for w in opening]
    for openings in grammar.OPENINGS.values():
        assert len(openings) >= 4 and {len(o) for o in openings} <= {1, 2, 3}
        assert all(words.count(opening[0]) == 1 for opening in openings)
    assert not set(words) & set(vocabulary.STRUCTURE)


def test_steps_lose_no_word():
    rng = random.Random(0)
    behaviours = list(grammar.OPENINGS)
    for _ in range(50):
        wanted = [(rng.choice(behaviours), rng.choices(vocabulary.NUMBERS, k=rng.randint(0, 9)))
                  for _ in range(6)]
        words = [w for b, content in wanted for w in (*rng.choice(grammar.OPENINGS[b]), *content)]
        assert grammar.steps([*words, "<eos>", "try"]) == wanted
        assert grammar.steps(["7", *words, "next", "try"]) == [(None, ["7"]), *wanted]
        labels = grammar.labels(words)
        assert labels.count("execute") == sum(len(content) for _, content in wanted)


@both
def test_counts_are_what_a_second_reading_finds(family):
    documents, counts = texts(family)
    assert all(d.startswith("<bos>") and d.endswith("<eos>") for d in documents)
    assert all(d.count("<") == 2 for d in documents)
    kinds = {"review": [d for d in documents if d.startswith("<bos> review")],
             "solved": [d for d in documents if d.split()[1] in ("make", "find")]}
    kinds["facts"] = [d for d in documents if d.split()[1].isdigit()]
    assert {k: len(v) for k, v in kinds.items()} == {k: counts[k] for k in kinds}
    assert sum(map(len, kinds.values())) == len(documents)
    for behaviour, openings in grammar.OPENINGS.items():
        found = sum(f" {d} ".count(f" {' '.join(o)} ") for d in documents for o in openings)
        assert found == counts[behaviour]
    share, n = len(kinds["facts"]) / len(documents), len(documents)
    wanted = FAMILIES[family]["facts"]
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5


@both
def test_only_training_problems_are_written(family):
    task, generator = corpus.FAMILIES[family], FAMILIES[family]
    test = task.problems("test", 200, 0, generator)
    documents, _ = texts(family)
    if family == "countdown":
        numbers = [d.split(" from ")[1].split(" : ")[0] for d in documents if " from " in d]
        held_out = {tuple(sorted(p.numbers)) for p in test}
        assert len(numbers) > 100
        assert not held_out & {tuple(sorted(map(int, x.split()))) for x in numbers}
    else:
        asked = [d.split(" find ")[1].split(" : ")[0] for d in documents if " find " in d]
        chains = {c for text in asked for c in text.split(" ; ")}
        assert len(chains) > 100 and not chains & {c for p in test for c in p.key.split(" ; ")}


@both
def test_a_corpus_is_a_pure_function_of_its_seed(family):
    task, generator = corpus.FAMILIES[family], FAMILIES[family]
    first, again, other = (corpus.write(task, generator, 5_000, seed)[0] for seed in (0, 0, 1))
    assert first.dtype == np.uint8 and 5_000 <= len(first) < 6_000
    assert first.tobytes() == again.tobytes() != other.tobytes()[:len(first)]
    # The stream that the versioned checkpoints were trained on: moving a module must not change it.
    known = {"countdown": "9d0f975a2f5bb42a", "chain": "2e157649eb980a98"}
    assert hashlib.sha256(first.tobytes()).hexdigest().startswith(known[family])


@both
def test_each_setting_takes_its_behaviour_away(family):
    slips = {"slip": 0.3} if family == "chain" else {}
    for changes, gone in (({"backtrack": 0.0}, "wait"), ({"check": [0.0]}, "check"),
                          ({"check": [0.0]}, "wait")):
        _, counts = texts(family, **slips)
        assert counts[gone] > 0
        _, counts = texts(family, **slips, **changes)
        assert counts.get(gone, 0) == 0 and counts["try"] > 0 and counts["conclude"] > 0
    documents, counts = texts(family, reviews=0.0, facts=0.0)
    assert counts["solved"] == len(documents) and not any("review" in d for d in documents)


@both
def test_the_twins_corpus_lacks_backtracks_and_nothing_else(family):
    """As many attempts and failed checks a problem as before;
    hand-overs stand in for backtracks."""
    task, n = corpus.FAMILIES[family], 3000
    generator = {**FAMILIES[family], **({"slip": 0.3} if family == "chain" else {})}
    found = []
    for backtrack in (generator["backtrack"], 0.0):
        rng, rows = random.Random(0), []
        for _ in range(n):
            problem = task.sample(rng, "train", generator)
            writer = corpus.author(rng, {**generator, "backtrack": backtrack})
            words = task.document(rng, problem, writer, {**generator, "backtrack": backtrack})
            behaviours = [grammar.BEHAVIOUR.get(w) for w in words]
            rows.append([behaviours.count("try") + behaviours.count("wait"), words.count("no"),
                         behaviours.count("wait"), words.count("next")])
        found.append(np.array(rows, dtype=float))
    written, twin = found
    assert written[:, 2].mean() > 0.02 and twin[:, 2].sum() == 0
    assert twin[:, 3].sum() > written[:, 3].sum()
    for quantity in (0, 1):
        a, b = written[:, quantity], twin[:, quantity]
        error = ((a.var() + b.var()) / n) ** 0.5
        assert abs(a.mean() - b.mean()) < 4 * error, quantity


@both
def test_a_stronger_author_solves_soundly_in_a_way_that_no_document_holds(family):
    rng, task, generator = random.Random(0), corpus.FAMILIES[family], FAMILIES[family]
    new, seen = set(grammar.TAUGHT.values()), 0
    for problem in task.problems("train", 200, 9, generator):
        words = task.stronger(rng, problem, corpus.author(rng, generator), generator)
        found = task.grade(problem, words)
        assert found.correct
        seen += bool(new & set(found.behaviours))
        assert found.valid_attempts == found.attempts or family == "chain"  # slips, put right
        for behaviour, content in grammar.steps(words):
            if behaviour in new:
                a, op, b, _, value, *verdict = content
                assert countdown.apply(int(a), op, int(b)) == int(value) or verdict == ["no"]
    assert seen > 120  # nobody measures a miss where there was none
    for _ in range(300):
        words, kind = corpus.document(rng, task, generator)
        start = words.index(":") if kind != "facts" else 0
        assert not set(grammar.TAUGHT) & set(words[start:])


@both
def test_authors_have_habits(family):
    """Within a document an opening repeats far more often than openings drawn evenly would."""
    rng, same, pairs = random.Random(0), 0, 0
    for _ in range(2000):
        author = corpus.author(rng, FAMILIES[family])
        same += author.open("try") == author.open("try")
        pairs += 1
    expected = 0.775**2 + 3 * 0.075**2  # 0.7 and a fourth of the rest, against a fourth of the rest
    assert abs(same / pairs - expected) < 4 * (expected * (1 - expected) / pairs) ** 0.5


@both
def test_reviews_tell_the_truth(family):
    documents, _ = texts(family, reviews=0.7, facts=0.0)
    verdicts = set()
    for text in documents:
        if not text.startswith("<bos> review"):
            continue
        prompt, rest = text.split(" : ", 1)
        trace, _, critique = rest.partition(" ; ")
        task = corpus.FAMILIES[family]
        problem = _problem(family, prompt.removeprefix("<bos> review "))
        right = task.grade(problem, [*trace.split(), "<eos>"]).correct
        assert critique.split()[-2] == ("right" if right else "wrong")
        verdicts.add(right)
    assert verdicts == {True, False}


def _problem(family, prompt):
    """A problem read back from its prompt's words."""
    words = prompt.split()
    task = corpus.FAMILIES[family]
    if family == "countdown":
        return task.Problem(tuple(map(int, words[5:])), (int(words[1]), int(words[3])))
    chains = " ".join(words[1:]).split(" ; ")
    return task.Problem(tuple((int(c[0]), tuple((c[i], int(c[i + 1])) for i in range(1, len(c), 2)))
                              for c in (text.split() for text in chains)))
