import itertools

import pytest
import yaml
from locksmith import arms, quantities
from locksmith.errors import BadInput

# What may stand in one figure, chapter by chapter.
TOGETHER = (
    "base thinking guess entropy-matched-thinking",
    "base thinking greedy low-temperature majority best-of-n cot-decoding power-sampling",
    "thinking-traces base-traces shuffled-traces corrupted-traces",
    "hybrid oracle probe network difference-of-means ceiling reranking reranking-alone bias-only "
    "one-vector other-category random-vectors random-positions twin-vectors untrained-vectors "
    "unrelated-vectors true-kinds twin-vectors-true-kinds logit-push one-percent-vectors "
    "hybrid-lower untrained-vectors-lower untrained-vectors-last",
    "base thinking twin untrained distilled taught guess",
    "base-vector thinking-vector own-vector base-point-vector wrong-behaviour wrong-point-vector "
    "noise",
    "correctness-direction noise-direction",
    "backtracking-vector uncertainty-vector error-vector noise",
    "base thinking critiques",
    "critiques flipped-critiques shuffled-critiques working-alone verdict-alone format-only "
    "many-critiques critiques-and-answers format-and-answers sft-right sft-wrong rl-one-problem "
    "rl-same-budget format-reward random-reward entropy-alone",
)


def test_every_arm_says_what_it_is_and_looks_like_no_other_of_its_figure():
    known = arms.load()
    for arm in known.values():
        assert arm.says.endswith(".") and 20 < len(arm.says) < 140, arm.id
        assert len(arm.label) < 45, arm.id
    assert len({arm.label for arm in known.values()}) == len(known)
    for names in TOGETHER:
        for a, b in itertools.combinations(names.split(), 2):
            assert (known[a].colour, known[a].line) != (known[b].colour, known[b].line), (a, b)
    markers = {arm.role: arm.marker for arm in known.values()}
    assert sorted(markers) == ["bound", "ceiling", "control", "method"]
    assert len(set(markers.values())) == 4


def test_an_unknown_arm_is_refused_with_those_that_are_near():
    with pytest.raises(BadInput, match="arm 'random-vector' is unknown; .*random-vectors"):
        arms.get("random-vector")


@pytest.mark.parametrize("change, said", [
    ({"role": "contrl"}, "role 'contrl' is unknown; did you mean control"),
    ({"look": "mauve"}, "look is 'mauve'; allowed is one of blue"),
    ({"look": "blue wavy"}, "look is 'blue wavy'"),
    ({"colour": "blue"}, "needed are role, look and says"),
    ({"id": "Bias only"}, "made of lower-case letters"),
])
def test_an_entry_that_cannot_be_used_is_refused(tmp_path, change, said):
    entry = {"role": "control", "look": "blue", "says": "A test."} | change
    book = {"roles": yaml.safe_load(open("arms.yml"))["roles"],
            "arms": {entry.pop("id", "bias-only"): entry}}
    (tmp_path / "arms.yml").write_text(yaml.safe_dump(book))
    with pytest.raises(BadInput, match=said):
        arms.load(tmp_path / "arms.yml")


def test_the_name_of_a_fact_is_read_back_as_it_was_written():
    given = {"temperature": 0.3, "k": 256}
    name = quantities.name("pass_at_k", given)
    assert name == "pass_at_k[k=256, temperature=0.3]"
    assert quantities.parse(name) == ("pass_at_k", given)
    assert quantities.parse("attempts") == ("attempts", {})
    assert quantities.parse("cosine[against=twin]") == ("cosine", {"against": "twin"})
    assert quantities.name("cosine", {"step": 7_000_000}) == "cosine[step=7000000]"


@pytest.mark.parametrize("name, said", [
    ("pass_at_n[k=1]", "'pass_at_n' is unknown; did you mean pass_at_k"),
    ("pass_at_k[n=1]", "'n' is unknown"),
    ("pass_at_k[k=many]", "k is .many.; allowed is a whole number of at least 1"),
    ("pass@1", "is no name; written is"),
])
def test_a_name_outside_the_vocabulary_is_refused(name, said):
    with pytest.raises(BadInput, match=said):
        quantities.parse(name)
