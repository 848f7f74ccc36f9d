"""Word problems: splits that hold, a grader that cannot be fooled or hung, the guess control in
closed form against draws, and tiny models of both shapes through the whole sampling path."""

import random
import re
from fractions import Fraction

import numpy as np
import pytest
import reasoning_gym
import torch
from locksmith import engine, loading, words
from locksmith.words import WordProblem, grade
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SMALL = {"basic_arithmetic": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2,
                                  operators=("+", "-"), allow_parentheses=False,
                                  allow_negation=False)}
MIXED = {**SMALL, "gsm_symbolic": {}}


# --- problems -------------------------------------------------------------------------------------

def test_neighbouring_seeds_share_questions_but_the_splits_do_not():
    questions = [{x["question"] for x in reasoning_gym.create_dataset(
        "basic_arithmetic", seed=seed, size=300, **SMALL["basic_arithmetic"])} for seed in (42, 43)]
    assert len(questions[0] & questions[1]) > 250  # the trap is real

    splits = {split: [p for seed in (42, 43) for p in words.problems(split, 60, seed, MIXED)]
              for split in words.SPLITS}
    keys = {split: {p.key for p in found} for split, found in splits.items()}
    for a in words.SPLITS:
        for b in words.SPLITS:
            assert a == b or not keys[a] & keys[b]
    for split, found in splits.items():
        assert len({p.key for p in found[:60]}) == 60  # no question twice in one call
        assert {words.split_of(p.question) for p in found} == {split}
        assert [p.task for p in found[:4]] == ["basic_arithmetic", "gsm_symbolic"] * 2


def test_the_canonical_question_ignores_spacing_and_case():
    assert words.canonical("Calculate 3 + 4.") == words.canonical(" calculate  3+4.")
    assert words.canonical("Calculate 3 + 4.") != words.canonical("Calculate 3 + 5.")


@pytest.mark.parametrize("task, options", [
    ("basic_arithmetic", {}), ("basic_arithmetic", {"whitespace": "random"}),
    ("basic_arithmetic", {"allow_parentheses": False, "max_terms": 5}),
    ("basic_arithmetic", {"allow_parentheses": False, "operators": ("/",)}),
    ("chain_sum", {"allow_negation": True})])
def test_golds_are_exact(task, options):
    """By Python's own fractions: every number of the question becomes one."""
    changed, items = 0, reasoning_gym.create_dataset(task, seed=7, size=3000, **options)
    given = {words.canonical(x["question"]): x["answer"] for x in items}
    for p in words.problems("test", 300, 7, {task: options}):
        text = re.search(r"(?:Calculate|problem:) (.*?)(?: =|\.)$", p.question)[1]
        value = eval(re.sub(r"[0-9]+", r"Fraction(\g<0>)", text))
        assert Fraction(p.answer) == value
        assert ("/" in p.answer) == (10**60 % value.denominator != 0)
        changed += p.answer != given[p.key]
    assert (changed > 0) == (task == "basic_arithmetic")  # the generator's own are not


def test_a_gold_that_divided_without_rest():
    item = {"metadata": {"expression": "-91 / -( -( 52 - 34 ) + -17 )"}}
    assert words._gold("basic_arithmetic", item) == "-2.6"
    assert words._gold("basic_arithmetic", {"metadata": {"expression": "4 / ( 3 - 3 )"}}) == ""


def test_word_problems_whose_own_working_fails_are_not_drawn():
    cut = []  # 17 tubes, half of them: 8
    for item in reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=1200):
        half = re.search(r"\b(\d+)\*0\.5=(\d+)", item["metadata"]["answer_cot"])
        question = item["question"].removesuffix(words._INSTRUCTION)
        if half and int(half[1]) != 2 * int(half[2]) and words.split_of(question) == "test":
            cut.append(words.canonical(question))
    asked = {p.key for p in words.problems("test", 250, 0, {"gsm_symbolic": {}})}
    assert cut and not asked & set(cut)


def test_problems_repeat_and_are_right():
    found = words.problems("validation", 20, 5, SMALL)
    assert found == words.problems("validation", 20, 5, SMALL)
    assert found[:7] == words.problems("validation", 7, 5, SMALL)
    for p in found:
        expression = p.question.removeprefix("Calculate ").removesuffix(".")
        assert int(p.answer) == eval(expression)  # our own digits and + - only


def test_examples_of_the_prompt_are_never_asked():
    shown = {words.canonical(q) for shots in words._SHOTS.values() for q, _, _ in shots}
    tiny = {"basic_arithmetic": dict(SMALL["basic_arithmetic"], operators=("*",), max_digits=1)}
    split = words.split_of("Calculate 7 * 4.")
    asked = {p.key for p in words.problems(split, 15, 0, tiny)}
    assert words.canonical("Calculate 7 * 4.") in shown and not asked & shown


def test_examples_of_the_prompt_are_right():
    for shots in words._SHOTS.values():
        for question, working, answer in shots:
            for step in working.rstrip(".").split(". "):
                left, right = step.split(" = ")
                assert eval(left) == int(right)
            assert grade(WordProblem("", question, answer), working).correct


@pytest.mark.parametrize("arguments, message", [
    (("dev", 3, 0, SMALL), "split is 'dev'; allowed are train, validation, test"),
    (("test", 3, 0, {"sudoku": {}}), "sudoku"),
    (("test", 3, 0, {}), "none"),
    (("test", 3, 0, {"basic_arithmetic": {"terms": 3}}), "generator of basic_arithmetic .*terms"),
    (("test", 3, 0, {"basic_arithmetic": {"operators": ("%",)}}), "unsupported operator"),
    (("test", 3, 0, {"basic_arithmetic": {"max_digits": "2"}}), "generator of basic_arithmetic"),
    (("test", 500, 0, {"basic_arithmetic": dict(SMALL["basic_arithmetic"], max_digits=1)}),
     "n is 500, but basic_arithmetic .* has only"),
])
def test_bad_problem_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        words.problems(*arguments)


def test_prompt():
    p = WordProblem("basic_arithmetic", "Calculate 1 + 1.", "2")
    assert words.prompt(p, shots=0) == "Q: Calculate 1 + 1.\nA:"
    assert words.prompt(p, shots=2).count("Q: ") == 3
    assert "6 + 8 = 14" in words.prompt(p) and "6 + 8 = 14" not in words.prompt(p, steps=False)
    with pytest.raises(ValueError, match="shots is 9; allowed are 0 to 4"):
        words.prompt(p, shots=9)


# --- grading --------------------------------------------------------------------------------------

@pytest.mark.parametrize("gold, text, outcome, answer", [
    ("1234", " 1000 + 234 = 1234. The answer is 1,234.", "right", "1234"),
    ("1234", " The answer is 1234 apples.\nQ: 2", "right", "1234"),
    ("1234", " The answer is $1,234.00.", "right", "1234"),
    ("1234", " So it is 1234", "right", "1234"),
    ("1234", " 1000 + 234 = 1234", "right", "1234"),
    ("-7", " The answer is -7.", "right", "-7"),
    ("1/2", " The answer is 0.5.", "right", "0.5"),
    ("1/2", " The answer is 2/4.", "right", "0.5"),
    ("1/2", " The answer is \\frac{1}{2}.", "right", "0.5"),
    ("0.25", " The answer is 1/4.", "right", "0.25"),
    ("8/3", " The answer is 16/6.", "right", "8/3"),
    ("1234", " The answer is 5. The answer is 1234.", "right", "1234"),
    ("2", " 1, 2", "wrong", "2"),  # which of them?
    ("1234567.5", " It costs $1,234,567.50", "right", "1234567.5"),
    ("1234", " 1234. The answer is 5.", "wrong", "5"),
    ("7", " The answer is -7.", "wrong", "-7"),
    ("1234", " The answer is 1235.", "wrong", "1235"),
    ("1234", "\nThe answer is 1235.\nThe answer is 1234.", "right", "1234"),
    ("1234", "\nThe answer is 1235.\nQ: And?\nA: The answer is 1234.", "wrong", "1235"),
    # What an outsider found.
    ("5", "The answer is not 5.", "wrong", None),
    ("5", "The answer is minus 5.", "wrong", "-5"),
    ("6", "The answer is 5 or 6.", "wrong", None),
    ("-15", "Total: 12-15 dollars", "wrong", None),
    ("-5", "The answer is \u22125.", "right", "-5"),
    ("-5", "The answer is (-5).", "right", "-5"),
    ("18", "The answer is +18.", "right", "18"),
    ("18", "The answer is \\$18.", "right", "18"),
    ("1/2", "The answer is ½.", "right", "0.5"),
    # Repeating the question is not an answer, although it has the right value.
    ("1234", " The answer is 1000 + 234.", "wrong", None),
    ("1234", " The answer is 1000+234.", "wrong", None),
    ("12", " The answer is 24 / 2.", "wrong", None),
    ("-79", " The answer is 13 - 92.", "wrong", None),
    ("1", " The answer is (3 - 2).", "wrong", None),
    ("1", " The answer is 9**9**9.", "wrong", None),
    ("4", " The answer is \u07c4.", "right", "4"),  # a four where N'Ko is written
    ("4", " The answer is ④.", "wrong", None),
    ("1", " The answer is one.", "right", "1"),
    ("1", " The answer is", "wrong", None),
    ("1", " I do not know.", "wrong", None),
    ("1", "", "wrong", None),
])
def test_grades(gold, text, outcome, answer):
    found = grade(WordProblem("", "", gold), text)
    assert found.outcome == outcome and found.correct == (outcome == "right")
    if answer is not None:
        assert found.answer == answer


def test_the_question_again_is_no_answer_even_as_a_quotient():
    asked = WordProblem("", "Calculate 26 / 10.", "2.6")
    assert not grade(asked, " The answer is 26 / 10.").correct
    assert grade(asked, " The answer is 13/5.").correct and grade(asked, "26 / 10 = 2.6").correct
    assert grade(WordProblem("", "Calculate 1 / 2.", "0.5"), " The answer is 1/2.").correct


@pytest.mark.parametrize("tail", ["=", " =", " = .", " = 5 =", " = =", " =\n", "$ ="])
def test_an_answer_that_ends_in_an_equals_sign_is_graded_by_its_number(tail):
    asked = WordProblem("", "Calculate 5 + 4 - 2 - 2.", "5")
    assert grade(asked, f" The answer is 5{tail}").correct
    assert not grade(asked, f" The answer is 6{tail}".replace("= 5", "= 6")).correct


# --- the guess control ----------------------------------------------------------------------------

def test_guesses_are_right_as_often_as_training_answers_are():
    # 0: half; 1, 2: a quarter
    train = [WordProblem("a", str(i), str(i % 4 % 3)) for i in range(40)]
    rng = random.Random(0)
    for answer, share in (("0", 0.5), ("2", 0.25), ("5", 0)):
        p = WordProblem("a", "x", answer)
        drawn = [grade(p, words.guess_answer(p, rng, train)).correct for _ in range(1800)]
        assert abs(np.mean(drawn) - share) < 0.04


# --- the whole path on tiny models ----------------------------------------------------------------

@pytest.fixture(scope="module")
def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {x: i for i, x in enumerate(["<pad>", "<eos>", *letters])}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")


def tiny(shape, tokenizer):
    torch.manual_seed(0)
    common = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32,
                  num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                  max_position_embeddings=1024, pad_token_id=0, eos_token_id=1,
                  initializer_range=0.2)
    net = Gemma3ForCausalLM(Gemma3TextConfig(
        head_dim=8, sliding_window=32, layer_types=["sliding_attention", "full_attention"],
        **common)) if shape == "gemma3" else LlamaForCausalLM(LlamaConfig(**common))
    line = tokenizer("\n").input_ids
    return loading.Model(shape, net.eval(), tokenizer, frozenset({tokenizer.eos_token_id, *line}))


@pytest.mark.parametrize("shape", ["gemma3", "llama"])
def test_tiny_models_walk_the_whole_path(shape, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path))
    model = tiny(shape, tokenizer)
    asked = words.problems("test", 5, 0, MIXED)
    options = dict(shots=1, temperature=1.0, max_new_tokens=12, batch_size=8)
    first = words.sample_words(model, asked, 4, **options)
    assert first.correct.shape == first.outcomes.shape == (5, 4)
    assert not (first.outcomes == "error").any()
    assert 20 <= first.tokens <= 20 * 12
    for p, row, outcomes in zip(asked, first.texts, first.outcomes):
        assert len(row) == 4
        assert [grade(p, text).outcome for text in row] == outcomes.tolist()

    # A run that was cut off goes on: finished blocks are read, only the missing one is sampled.
    files = sorted((tmp_path / "rollouts").iterdir())
    assert len(files) == 3 and all(f.suffix == ".safetensors" for f in files)
    files[1].unlink()
    drawn, plain = [], engine.sample
    monkeypatch.setattr(engine, "sample", lambda *a, **k: drawn.append(len(a[1])) or plain(*a, **k))
    again = words.sample_words(model, asked, 4, **options)
    assert again.texts == first.texts and again.tokens == first.tokens and len(drawn) == 1

    # Another seed, and other weights under the same name, never meet these rollouts.
    other = words.sample_words(model, asked, 4, seed=1, **options)
    assert other.texts != first.texts
    with torch.no_grad():
        model.net.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    words.sample_words(model, asked[:1], 4, **options)
    assert len(list((tmp_path / "rollouts").iterdir())) == 7


def test_rollouts_do_not_depend_on_the_block(tokenizer, tmp_path, monkeypatch):
    model = tiny("llama", tokenizer)
    asked = words.problems("test", 3, 0, SMALL)
    texts = []
    for batch_size in (2, 6):
        monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path / str(batch_size)))
        texts.append(words.sample_words(model, asked, 2, temperature=1.0, shots=0,
                                        max_new_tokens=8, batch_size=batch_size).texts)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_knows_is_told_from_one_that_does_not(right, tokenizer, tmp_path, monkeypatch):
    """A stand-in for the engine answers; what is counted is then known."""
    monkeypatch.setenv("LOCKSMITH_CACHE", str(tmp_path))
    asked = words.problems("test", 3, 0, SMALL)
    model = tiny("llama", tokenizer)

    def sample(model, prompts, n, **options):
        answers = {tokenizer.decode(tokenizer(words.prompt(p)).input_ids): p.answer for p in asked}
        rows = [tokenizer(
            f" The answer is {answers[tokenizer.decode(ids)]}{'' if right or i else '1'}.\n"
        ).input_ids for ids in prompts for i in range(n)]
        lengths, number = torch.tensor([len(row) for row in rows]), torch.arange(len(rows))
        tokens = torch.tensor([row + [0] * (int(lengths.max()) - len(row)) for row in rows])
        return engine.Rollouts(tokens, lengths, torch.zeros(tokens.shape), lengths > 0,
                               number // n, number % n)
    monkeypatch.setattr("locksmith.engine.sample", sample)
    got = words.sample_words(model, asked, 2)
    assert got.correct.tolist() == [[right, True]] * 3
    assert [row[1] for row in got.answers] == [p.answer for p in asked]
