"""Tools through a chat template: on a toy, and on a scripted model whose every answer is known."""

import pytest
from locksmith import loading, words
from locksmith.errors import BadInput
from locksmith.experiments import chat_tools

PROBLEMS = [words.WordProblem("basic_arithmetic", f"Calculate {a} + 2.", str(a + 2))
            for a in (11, 22, 33, 44)]
CALL = '<tool_call>{"name": "recall"}</tool_call>'


@pytest.fixture(scope="module")
def toy():
    return loading.load("toy", chat=True)


class Script:
    """In place of engine.sample: say(text of the prompt, number of the call) -> the answer."""

    def __init__(self, tokenizer, say, monkeypatch):
        self.tokenizer, self.say, self.seen, self.keys = tokenizer, say, [], []
        monkeypatch.setattr(chat_tools.engine, "sample", self)

    def __call__(self, model, prompts, *, keys, **_):
        self.keys += keys
        self.rows = []
        for prompt in prompts:
            self.seen.append(self.tokenizer.decode(prompt))
            text = self.say(self.seen[-1], len(self.seen) - 1)
            self.rows.append(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self

    def ids(self):
        return self.rows


def solve(toy, schedule, problems=PROBLEMS, **options):
    return chat_tools.solve(toy, problems, schedule=schedule, max_new_tokens=8, **options)


def test_calls_are_read_strictly():
    parse = chat_tools.parse
    assert parse(f"First {CALL}\n" + CALL.replace("recall", "examine")) == (["recall", "examine"],
                                                                            0)
    with_arguments = '<tool_call>\n{"name": "recall", "arguments": {}}\n</tool_call>'
    assert parse(with_arguments) == (["recall"], 0)
    assert parse('I will use recall: {"name": "recall"}') == ([], 0)
    for bad in ('{"name": "recall"', '"recall"', '{"name": "other"}', '{"name": ["recall"]}',
                '{"name": "recall", "arguments": 3}', '{"name": "recall", "x": 1}', "recall", ""):
        assert parse(f"<tool_call>{bad}</tool_call>") == ([], 1)
    assert parse(CALL + '<tool_call>{"name": "recall"}') == (["recall"], 1)


def test_without_calls_model_equals_listed(toy):
    model, listed = solve(toy, "model"), solve(toy, "listed")
    assert model == listed and {w.calls for w in model} == {1} and all(w.tokens for w in model)
    listing = model[0].messages[0]["content"]
    assert "- recall: Recalls" in listing and CALL in listing
    assert len(solve(toy, "none")[0].messages) == 2


def test_a_call_brings_the_tools_output_into_the_next_turn(toy, monkeypatch):
    def say(prompt, _):
        if "You recall" in prompt:
            return "1 + 2 = 3"
        return "The answer is 13." if "<|im_start|>tool" in prompt else f"Hm.\n{CALL}"
    script = Script(toy.tokenizer, say, monkeypatch)
    (work,) = solve(toy, "model", PROBLEMS[:1])
    assert [m["role"] for m in work.messages] == ["system", "user", "assistant", "tool",
                                                  "assistant"]
    assert work.messages[3]["content"] == "1 + 2 = 3" and work.answer == "The answer is 13."
    assert (work.calls, work.called, work.malformed) == (3, ["recall"], 0)
    assert work.tokens == len(f"Hm.\n{CALL}" + "1 + 2 = 3" + "The answer is 13.")  # bytes
    assert "Work so far:\nHm.<|im_end|>" in script.seen[1]
    assert "<|im_start|>tool\n1 + 2" in script.seen[2]
    assert len(set(script.keys)) == 3


def test_calls_end_after_the_rounds(toy, monkeypatch):
    Script(toy.tokenizer, lambda prompt, _: CALL, monkeypatch)
    (work,) = solve(toy, "model", PROBLEMS[:1], rounds=2)
    assert work.calls == 3 + 2 and work.called == ["recall"] * 3


def test_malformed_calls_are_counted_and_not_carried_out(toy, monkeypatch):
    said = '<tool_call>{"name": "guess"}</tool_call> 13'
    Script(toy.tokenizer, lambda prompt, _: said, monkeypatch)
    (work,) = solve(toy, "model", PROBLEMS[:1])
    assert (work.calls, work.called, work.malformed) == (1, [], 1)


def test_dummy_makes_the_calls_of_fixed_and_shows_notes_on_another_problem(toy, monkeypatch):
    def say(prompt, _):  # a tool names the problem that it sees
        return "about " + prompt.split("Calculate ")[1][:2] if "Question:" in prompt else "12"
    fixed, dummy = [], []
    for schedule, seen in (("fixed", fixed), ("dummy", dummy)):
        script = Script(toy.tokenizer, say, monkeypatch)
        works = solve(toy, schedule)
        assert {w.calls for w in works} == {6} and len(set(script.keys)) == 24 == len(script.seen)
        for i, work in enumerate(works):
            about = PROBLEMS[i if schedule == "fixed" else (i + 2) % 4].question[10:12]
            users = "\n".join(m["content"] for m in work.messages if m["role"] == "user")
            for name in chat_tools.TOOLS:
                assert f"Notes ({name}): about {about}" in users
            assert users.count("about") == 4 and work.answer == "12"
        seen += script.keys
    assert fixed == dummy


@pytest.mark.parametrize("schedule", ["none", "fixed", "dummy"])
def test_the_order_of_the_problems_does_not_matter(toy, schedule):
    works, reverse = solve(toy, schedule), solve(toy, schedule, PROBLEMS[::-1])
    assert [w.answer for w in works] == [w.answer for w in reverse[::-1]]


def test_the_vote_takes_the_most_frequent_answer_and_of_a_tie_the_first(toy, monkeypatch):
    texts = ["12", "The answer is 13.", "I say 13", "7", "8", "none", "neither"]
    script = Script(toy.tokenizer, lambda prompt, i: texts[i], monkeypatch)
    works = chat_tools.vote(toy, PROBLEMS[:3], [3, 2, 2])
    assert [w.answer for w in works] == ["The answer is 13.", "7", "none"]
    assert [w.calls for w in works] == [3, 2, 2] and len(set(script.keys)) == 7
    assert works[1].messages[-1] == {"role": "assistant", "content": "7"}
    with pytest.raises(BadInput, match="one count for each of 4 problems"):
        chat_tools.vote(toy, PROBLEMS, [1])


def test_the_line_that_is_graded():
    def final(text):
        return chat_tools.final(chat_tools.Conversation(PROBLEMS[0], answer=text))
    assert final("2\nThe answer is 13.\nIt took 2 steps.") == "The answer is 13."
    assert final("The answer is:\n13\nDone.") == "13" and final("Well.") == ""


def test_a_template_that_knows_tools_is_given_their_schemas(toy):
    class Native:
        def apply_chat_template(self, messages, tools=None, **_):
            return str(tools)
    messages, schemas = chat_tools.tool_listing(Native())
    assert messages == [] and [s["function"]["name"] for s in schemas] == list(chat_tools.TOOLS)


def test_what_is_not_allowed_is_said_in_a_sentence(toy):
    with pytest.raises(BadInput, match="schedule is 'often'; allowed: one of none, model, listed, "
                                       "fixed, d"):
        solve(toy, "often")
    with pytest.raises(BadInput, match="rounds is 0; allowed: at least 1"):
        solve(toy, "model", rounds=0)
    with pytest.raises(BadInput, match="2 or more for dummy"):
        solve(toy, "dummy", PROBLEMS[:1])
    with pytest.raises(BadInput, match="max_new_tokens is 4096, but a conversation of .* tokens "
                                       "leaves"):
        chat_tools.solve(toy, PROBLEMS, schedule="none", max_new_tokens=4096)
    assert solve(toy, "fixed", []) == []
