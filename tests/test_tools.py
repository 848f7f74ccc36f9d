"""The cognitive tools against a scripted model whose every answer is known."""

import pytest
from locksmith import loading, model, params, vocabulary
from locksmith.errors import BadInput
from locksmith.experiments import tools
from locksmith.loading import Model, Pair
from locksmith.tasks import chain, countdown, sums

LAB = Model("lab/base", model.build(params.load("smoke")["model"] | {"context": 384}, 0),
            vocabulary.tokenizer(), frozenset(vocabulary.STOP), special=True)
TOY = Pair("smoke", "sums", 0, "toy", "toy/thinking")
PROBLEM = countdown.Problem((3, 7, 9), (30, 60))
FIRST = "try 3 * 7 = 21 + 9 = 30"
SECOND = "try 7 * 9 = 63 - 3 = 60"
MISS = "try 7 + 9 = 16 * 3 = 48"


class Script:
    """A model that says what it is told to: the texts of each kind of call, one after another, the
    last of them from then on. Facts are right but for `facts`. seen: all prompts, in order."""

    def __init__(self, draft=(), review=(), first=FIRST[4:], facts=None):
        self.draft, self.review = list(draft), list(review)
        self.first, self.facts, self.seen, self.written, self.batches = first, facts or {}, [], 0, 0

    def __call__(self, prompts, rooms, stop, temperature, keys):
        assert len(set(keys)) == len(keys)
        self.batches += 1
        prompts, stop = [vocabulary.decode(p) for p in prompts], vocabulary.decode(stop)
        return [vocabulary.encode(self.say(p, room, stop))
                for p, room in zip(prompts, rooms, strict=True)]

    def say(self, prompt, room, stop):
        self.seen.append(" ".join(prompt))
        if prompt[1] == "review":
            words = self._next(self.review)
        elif prompt[-1] == "=":
            a, op, b = prompt[-4:-1]
            words = [self.facts.get(f"{a} {op} {b}") or str(countdown.apply(int(a), op, int(b)))]
        elif "try" in stop:  # the first step alone ends with the next one's opening
            words = [*self.first.split(), "check"]
        else:
            words = self._next(self.draft)
        self.written += len(words[:room])
        return words[:room]

    @staticmethod
    def _next(texts):
        return (texts.pop(0) if len(texts) > 1 else texts[0]).split()

    def calls(self, start):
        return [p for p in self.seen if p.startswith(start)]


def solve(script, problems=(PROBLEM,), **options):
    return tools.solve(script, LAB, countdown, list(problems), **{"max_new_tokens": 200, **options})


def trace(work):
    return LAB.decode(work.ids)


RIGHT = f"{FIRST} check 30 yes so 3 * 7 + 9 {SECOND} check 60 yes so 7 * 9 - 3 <eos>"
PROMPT = "<bos> make 30 and 60 from 3 7 9 :"


def test_without_tools_one_draft_is_the_answer():
    script = Script([RIGHT])
    (work,) = solve(script, tools=())
    assert trace(work) == RIGHT and script.seen == [PROMPT]
    assert (work.tokens, work.calls) == (len(RIGHT.split()), 1)
    assert countdown.grade(PROBLEM, trace(work)).trace


def test_understand_works_out_the_first_step_alone():
    script = Script(["check 30 yes so 3 * 7 + 9 <eos>"])
    (work,) = solve(script, tools=("understand",))
    assert script.seen == [f"{PROMPT} try", f"{PROMPT} {FIRST}"]
    assert trace(work) == f"{FIRST} check 30 yes so 3 * 7 + 9 <eos>"
    # the forced word, the step's nine with the one that ended the call, and the draft's ten
    assert (work.tokens, work.calls) == (1 + 9 + 1 + 10, 2)


def test_recall_replaces_the_first_result_that_is_otherwise():
    slip = "try 3 * 7 = 22 + 9 = 31 so 3 * 7 + 9 <eos>"
    script = Script([slip, "+ 9 = 30 so 3 * 7 + 9 <eos>"])
    (work,) = solve(script, tools=("recall",))
    assert script.calls("<bos> make")[1] == f"{PROMPT} try 3 * 7 = 21"
    assert trace(work) == "try 3 * 7 = 21 + 9 = 30 so 3 * 7 + 9 <eos>" and work.replaced == 1
    assert [p for p in script.seen if p.endswith("=")] == ["<bos> 3 * 7 =", "<bos> 22 + 9 ="]
    assert (work.tokens, work.calls) == (17 + 2 + 11, 4)  # two drafts, two facts of one word


def test_recall_asks_once_for_each_fact_and_ignores_what_is_no_number():
    text = f"{FIRST} {FIRST} so 3 * 7 + 9 <eos>"
    script = Script([text], facts={"3 * 7": "right"})
    (work,) = solve(script, tools=("recall",))
    assert trace(work) == text and work.calls == 1 + 2 and work.replaced == 0
    # in the second round the same attempt stands once more, and nothing is asked again
    script = Script([text], ["wrong <eos>"])
    solve(script, tools=("recall", "examine"), rounds=2)
    assert len(script.calls("<bos> make")) == 2 and len(set(script.seen)) == 4
    assert len([p for p in script.seen if p.endswith("=")]) == 2


def test_examine_reviews_the_trace_and_begins_anew_where_it_says_wrong():
    script = Script([f"{MISS} so 7 + 9 * 3 <eos>", RIGHT], ["30 no wrong <eos>", "right <eos>"])
    (work,) = solve(script, tools=("examine",))
    assert script.calls("<bos> review") == [
        f"<bos> review {PROMPT[6:]} {text} ;" for text in (f"{MISS} so 7 + 9 * 3", RIGHT[:-6])]
    assert trace(work) == RIGHT and work.verdict == "right" and work.wrong == 1
    assert script.calls("<bos> make") == [PROMPT, PROMPT]
    assert (work.tokens, work.calls) == (script.written, 4)


@pytest.mark.parametrize("review, kept", [
    ("3 yes 4 no wrong <eos>", f"{FIRST} check 30 yes so 3 * 7 + 9 {MISS} check 48 no"),
    ("3 no 4 no wrong <eos>", f"{FIRST} check 30 yes"),
    ("wrong <eos>", f"{FIRST} check 30 yes so 3 * 7 + 9 {MISS} check 48 no"),
])
def test_backtrack_goes_on_before_the_conclusion_that_the_review_denies(review, kept):
    wrong = f"{FIRST} check 30 yes so 3 * 7 + 9 {MISS} check 48 no so 7 + 9 * 3 <eos>"
    rest = f"{SECOND[4:]} check 60 yes so 7 * 9 - 3 <eos>"
    script = Script([wrong, rest], [review, "right <eos>"])
    (work,) = solve(script, tools=("examine", "backtrack"))
    opening = "wait" if kept.endswith("no") else "try"
    assert script.calls("<bos> make")[1] == f"{PROMPT} {kept} {opening}"
    assert trace(work) == f"{kept} {opening} {rest}"
    assert work.tokens == script.written + 1  # the opening was forced


def test_backtrack_takes_a_hand_over_back_and_an_answer_without_any_attempt():
    script = Script([f"{MISS} check 48 no so 7 + 9 * 3 next", f"{SECOND[4:]} so 7 * 9 - 3 <eos>"],
                    ["no wrong <eos>", "right <eos>"])
    (work,) = solve(script, tools=("examine", "backtrack"))
    assert trace(work) == f"{MISS} check 48 no wait {SECOND[4:]} so 7 * 9 - 3 <eos>"
    script = Script(["so 3 4 <eos>", f"{FIRST[4:]} <eos>"], ["wrong <eos>", "right <eos>"])
    (work,) = solve(script, tools=("examine", "backtrack"))
    assert trace(work) == f"{FIRST} <eos>"


def test_backtrack_alone_goes_back_in_every_round_but_the_last():
    script = Script([f"{MISS} check 48 no so 7 + 9 * 3 <eos>", "9 + 7 = 16 so 9 + 7 * 3 <eos>"])
    (work,) = solve(script, tools=("backtrack",), rounds=4)
    said = trace(work).split()
    assert work.calls == 4 and said.count("wait") == 1 and said.count("try") == 3
    assert said.count("so") == 1 and said[-1] == "<eos>"


def test_each_problem_stops_at_its_own_right_and_calls_are_made_in_one_batch():
    other = countdown.Problem((2, 5, 8), (18, 50))
    script = Script([f"{MISS} so 7 + 9 * 3 <eos>"], ["wrong <eos>"])
    script.say = lambda prompt, room, stop, say=script.say: (
        ["right", "<eos>"] if prompt[1] == "review" and "18" in prompt else say(prompt, room, stop))
    first, second = solve(script, [PROBLEM, other], tools=("examine",), rounds=3)
    assert (first.calls, second.calls) == (5, 2) and script.batches == 5
    assert first.wrong == 2 and second.verdict == "right"


def test_the_cap_and_the_context_end_the_work(monkeypatch):
    endless = Script([" ".join([FIRST] * 50)])
    (work,) = solve(endless, tools=("backtrack", "examine"), max_new_tokens=23)
    assert len(work.ids) == work.tokens == 23 and work.calls == 1 and work.full
    # a draft that ends, but leaves the review no room: it stays the answer
    script = Script([RIGHT], ["wrong <eos>"])
    monkeypatch.setattr(LAB.net.config, "max_position_embeddings", len(RIGHT.split()) + 10)
    (work,) = solve(script, tools=("examine", "backtrack"))
    assert trace(work) == RIGHT and work.calls == 1 and work.verdict is None


def test_dummy_tools_make_the_same_calls_to_no_effect():
    draft = "try 3 * 7 = 22 + 9 = 31 so 3 * 7 + 9 <eos>"
    for tool, calls in (("recall", 3), ("understand", 2)):
        script = Script([draft])
        (dummy,) = solve(script, tools=(tool,), dummy=True)
        assert trace(dummy) == draft and dummy.calls == len(script.seen) == calls
        (real,) = solve(Script([draft]), tools=(tool,))
        assert trace(real) != draft and real.calls == calls + real.replaced  # and so a new draft


def test_dummy_verdicts_are_those_on_others():
    """Of four problems the first two are right, so the dummy stops at the other two."""
    problems = [countdown.Problem((3, 7, 9), (t, 60)) for t in (1, 2, 3, 4)]
    made = {}
    for dummy in (False, True):
        script = Script([f"{MISS} so 7 + 9 * 3 <eos>"])
        script.say = lambda prompt, room, stop, say=script.say: (
            ["right" if prompt[3] in "12" else "wrong", "<eos>"] if prompt[1] == "review"
            else say(prompt, room, stop))
        works = solve(script, problems, tools=("examine",), rounds=2, dummy=dummy)
        made[dummy] = [w.calls for w in works]
        assert sum(w.verdict == "right" for w in works) == 2
    assert made == {False: [2, 2, 3, 3], True: [3, 3, 2, 2]}


def test_dummy_and_real_tools_make_equally_many_calls_where_all_is_equally_wrong():
    for dummy in (False, True):
        script = Script([f"check 30 yes so 3 * 7 + 9 {MISS} so 7 + 9 * 3 <eos>",
                         f"{SECOND[4:]} so 7 * 9 - 3 <eos>"], ["yes no wrong <eos>"])
        works = solve(script, [PROBLEM], dummy=dummy, rounds=2)
        kinds = [sum(p.split()[1] == kind for p in script.seen) for kind in ("make", "review")]
        assert kinds == [3, 1] and works[0].tokens == script.written + 2


def test_a_tool_of_five_lines_joins_in(monkeypatch):
    def hurry(call, works):
        so = call.model.encode("so")
        for work, ids in zip(works, call(works, [w.prompt + so for w in works], 9), strict=True):
            work.ids = so + ids
    monkeypatch.setitem(tools.TOOLS, "hurry", hurry)
    monkeypatch.setattr(tools, "DRAFTING", ("hurry", "draft"))
    (work,) = solve(Script(["3 * 7 + 9 <eos>"]), tools=("hurry",), rounds=1)
    assert trace(work) == "so 3 * 7 + 9 <eos>"


@pytest.mark.parametrize("options, named", [
    ({"tools": ("recal",)}, "tools"), ({"rounds": 0}, "rounds")])
def test_bad_input_is_named(options, named):
    with pytest.raises(BadInput, match=f"^{named} is .*allowed"):
        solve(Script([RIGHT]), **options)


def test_reviews_that_the_base_has_read_are_shorter_than_the_limit():
    """The longest there can be: every chain of the deepest problems that a profile may ask for."""
    problem = chain.Problem(tuple((9, (("+", 1),) * 5) for _ in range(2)))
    assert len([*chain.judge(problem, "so 14 14"), "<eos>"]) <= tools.REVIEW


# --- the same tools in words ---------------------------------------------------------------------

def test_facts_are_read_in_words_and_in_the_lab():
    assert tools.facts("try 3 * 7 = 22 + 9 = 31 so") == [
        (("3", "*", "7"), 12, "22"), (("22", "+", "9"), 21, "31")]
    assert tools.facts(" 5 + 7 = 12. 12 - 3 = 9. It is 2.5 + 1 = 3.5, 4 + 4 = x.") == [
        (("5", "+", "7"), 9, "12"), (("12", "-", "3"), 22, "9")]


def test_tools_in_words_repair_cut_and_go_on():
    toy = TOY.load("base")
    problem, = sums.problems("test", 1, 0, sums.GENERATOR)
    written = [" 5 + 7 = 12. junk", " 12 - 3 = 8. The answer is 8.\n",  # understand, draft
               " 12", " 9. The answer", " 12 - 3 = 9. The answer is 9.\n",  # facts, a draft again
               " 12 - 3 = 9, so the answer 9 is wrong.\n",  # the review, which sends it back
               " The answer is 9.\n", " 9", " right.\n"]
    asked = []

    def ask(prompts, rooms, stop, temperature, keys):
        asked.extend(toy.decode(p) for p in prompts)
        texts = [written.pop(0) for _ in prompts]
        return [toy.encode(text)[:room] for text, room in zip(texts, rooms, strict=True)]

    (work,) = tools.solve(ask, toy, sums, [problem], max_new_tokens=200, rounds=2)
    assert asked[1].endswith("A: 5 + 7 = 12.")  # what followed the first step was cut off
    assert [text.rpartition("A:")[2] for text in asked[2:4]] == [" 5 + 7 =", " 12 - 3 ="]
    assert asked[4].endswith("A: 5 + 7 = 12. 12 - 3 = 9") and work.replaced == 1
    assert asked[5].endswith("12 - 3 = 9. The answer is 9.\nReview:") and work.wrong == 1


def test_models_of_any_vocabulary_work_through_the_schedule():
    problems = sums.problems("test", 4, 0, sums.GENERATOR)
    toy = TOY.load("base")
    for dummy in (False, True):
        works = tools.solve(tools.asking(toy, 0), toy, sums, problems, max_new_tokens=12,
                            dummy=dummy)
        assert all(work.calls and 0 < len(work.ids) <= 12 for work in works)


def test_a_cut_leaves_no_half_of_a_character():
    """Wherever an answer is cut, what is left is the text up to there."""
    toy = loading.load("toy")
    call = tools.Call(None, toy, sums, 99)
    for text in ("ab€ = 3 \u2212 é中\U0001f642 ok", "€", "é2", "a\ufffdb"):
        ids = toy.encode(text)
        for place in range(len(text) + 1):
            assert toy.decode(call.cut(ids, place)).strip() == text[:place].strip()
            assert toy.decode(call.cut(ids, place, " 7")) == text[:place] + " 7"
    half = toy.encode("ab€")[:-1]  # an answer whose own last character is not whole
    assert toy.decode(call.cut(half, 2)) == "ab" and call.cut(half, 3) == half
