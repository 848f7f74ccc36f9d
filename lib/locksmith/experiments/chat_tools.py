"""Cognitive tools on real instruct weights: calls of the same model through its chat template.

Ebouky et al. (arXiv 2506.12115, section 3) give a model four tools, each a call of that model with
a prompt of its own: understand the question, recall what is related, examine the answer, backtrack.
Here a tool is a function (question, work) -> the messages of a fresh conversation; work is the text
so far, "" at the start. What the model says there comes back to the main conversation. The first
line of a tool's docstring is what the main model reads about it. A new one:

    def simplify(question, work):
        '''Says the question in simpler words.'''
        return conversation("Say the question in simpler words. Do not solve it.", question, work)

    TOOLS["simplify"] = simplify

The paper's models choose their tools ("model"). Small ones may never do so, or copy calls that were
put into their own turns; a fixed schedule, not in the paper, therefore makes the calls for them and
shows the results as notes in the user's turns ("fixed"). Controls: the question alone ("none"),
tools listed but never carried out ("listed"), notes on another problem ("dummy"), and as many plain
answers as there were calls, of which the most frequent wins (`vote`).

Problems and grades are those of `locksmith.words`: words.grade(work.problem, final(work)).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from locksmith import engine, loading, words
from locksmith.errors import BadInput
from locksmith.loading import Model

SCHEDULES = ("none", "model", "listed", "fixed", "dummy")
BEFORE, AFTER = ("understand", "recall"), ("examine", "backtrack")  # the draft, in "fixed"
# With "The answer is N." a small model writes an N.
FINAL = 'Now give the final answer: "The answer is" and the number.'


@dataclass
class Conversation:
    """One problem's main conversation. messages: [{"role", "content"}]; answer: the text of its
    last assistant message; calls of the model and tokens generated, stop tokens included, both with
    those of the tools; called: names of the tools that the model itself called, in order, and
    malformed: how many calls could not be read (for both, in the main conversation)."""
    problem: words.WordProblem
    messages: list = field(default_factory=list)
    answer: str = ""
    calls: int = 0
    tokens: int = 0
    called: list = field(default_factory=list)
    malformed: int = 0


# --- the tools ------------------------------------------------------------------------------------

def conversation(system: str, question: str, work: str) -> list[dict]:
    """The messages of a tool's own conversation."""
    user = f"Question: {question}" + f"\n\nWork so far:\n{work}" * bool(work)
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def understand(question: str, work: str) -> list[dict]:
    """Says what is asked, which numbers are given and which steps lead to the answer."""
    return conversation("You help to understand a question. Say in one or two sentences which "
                        "numbers it gives and which operation it asks for. Do not solve it.",
                        question, work)


def recall(question: str, work: str) -> list[dict]:
    """Recalls a similar question together with its solution."""
    return conversation("You recall what helps with a question. Write one similar question with "
                        "other numbers, and its solution step by step.", question, work)


def examine(question: str, work: str) -> list[dict]:
    """Checks the work so far and says whether its answer is right."""
    return conversation("You check the work on a question. Work out the result yourself, then say "
                        "whether the answer in the work is right or wrong.", question, work)


def backtrack(question: str, work: str) -> list[dict]:
    """Goes back to the first step that is wrong and takes another way from there."""
    return conversation("You find the first wrong step in the work on a question, if there is one, "
                        "and solve the question in another way from there.", question, work)


TOOLS = {"understand": understand, "recall": recall, "examine": examine, "backtrack": backtrack}


# --- how a model calls them -----------------------------------------------------------------------

def parse(text: str) -> tuple[list[str], int]:
    """(names, malformed): the tools called in a message, in order, and how many calls are no call.

    A call is <tool_call>{"name": "recall"}</tool_call>, the form of SmolLM2, Qwen and Hermes;
    "arguments" may be there and are not read. Malformed: not closed, no JSON object, other entries
    or an unknown tool.
    """
    names, malformed = [], 0
    for part in text.split("<tool_call>")[1:]:
        body, closed, _ = part.partition("</tool_call>")
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            call = None
        if (closed and isinstance(call, dict) and set(call) <= {"name", "arguments"}
                and isinstance(call.get("name"), str) and call["name"] in TOOLS
                and isinstance(call.get("arguments", {}), dict)):
            names.append(call["name"])
        else:
            malformed += 1
    return names, malformed


def _about(name):
    return TOOLS[name].__doc__.splitlines()[0]


def tool_listing(tokenizer: PreTrainedTokenizerBase) -> tuple[list[dict], list[dict] | None]:
    """(messages, schemas): how a conversation begins in which the model may call tools.

    Schemas (JSON, for the template's `tools`) where the template shows them, else a system message.
    """
    schemas = [{"type": "function", "function": {
        "name": name, "description": _about(name),
        "parameters": {"type": "object", "properties": {}}}} for name in TOOLS]
    hello = [{"role": "user", "content": "?"}]
    try:
        if (tokenizer.apply_chat_template(hello, tools=schemas, tokenize=False)
                != tokenizer.apply_chat_template(hello, tokenize=False)):
            return [], schemas
    except TemplateError:
        pass  # a template that refuses tools does not show them either
    text = "\n".join(["You solve problems. You may use these tools before you answer:",
                      *(f"- {name}: {_about(name)}" for name in TOOLS),
                      "To use one, write a line such as",
                      '<tool_call>{"name": "recall"}</tool_call>',
                      "and you will be given its result."])
    return [{"role": "system", "content": text}], None


# --- schedules ------------------------------------------------------------------------------------

def _asking(model, max_new_tokens, temperature, seed):
    """`ask(works, conversations, tools=None)` -> texts: one batch of calls,
    paid for by works[i]."""
    def ask(works, conversations, tools=None):
        prompts, keys = [], []
        for work, messages in zip(works, conversations, strict=True):
            prompts.append(model.converse(messages, tools))
            # By question and call: independent of the order, and no call repeats another's numbers.
            name = f"{work.problem.key} {work.calls}"
            keys.append(int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))
            work.calls += 1
        longest = max(map(len, prompts), default=0)
        if longest + max_new_tokens > model.context:
            raise BadInput(f"max_new_tokens is {max_new_tokens}, but a conversation of {longest} "
                           f"tokens leaves {max(model.context - longest, 0)} of the model's "
                           f"{model.context}.")
        rows = prompts and engine.sample(model.net, prompts, max_new_tokens=max_new_tokens,
                                         stop=model.stop, temperature=temperature, seed=seed,
                                         keys=keys).ids()
        for work, row in zip(works, rows, strict=True):
            work.tokens += len(row)
        return [model.decode(row).strip() for row in rows]
    return ask


def _turn(ask, works, users, tools=None):
    """The user's messages (None: nothing is said), then the model's."""
    for work, user in zip(works, users, strict=True):
        work.messages += [{"role": "user", "content": user}] * (user is not None)
    for work, text in zip(works, ask(works, [w.messages for w in works], tools), strict=True):
        work.messages.append({"role": "assistant", "content": text})
        work.answer = text


def _choose(ask, works, tools, rounds):
    """The model's own calls are carried out, each tool once a message, `rounds` times at most."""
    users = [w.problem.question for w in works]
    for left in reversed(range(rounds + 1)):
        _turn(ask, works, users, tools)
        uses = []
        for work in works:
            names, malformed = parse(work.answer)
            work.called, work.malformed = work.called + names, work.malformed + malformed
            uses += [(work, name) for name in dict.fromkeys(names)]
        if not left or not uses:
            return
        found = ask([w for w, _ in uses],
                    [TOOLS[name](w.problem.question, _so_far(w)) for w, name in uses])
        for (work, _), text in zip(uses, found, strict=True):
            work.messages.append({"role": "tool", "content": text})
        works = [w for w in works if w.messages[-1]["role"] == "tool"]
        users = [None] * len(works)


def _so_far(work):
    """What the model and its tools have said, without the calls."""
    said = [m["content"] for m in work.messages if m["role"] in ("assistant", "tool")]
    return re.sub(r"(?s)<tool_call>.*?(</tool_call>|$)", "", "\n".join(said)).strip()


def _fixed(ask, works, shift):
    """Understand, recall, a draft, examine, backtrack, the answer: six calls whatever they say.

    Always to backtrack keeps the calls the same for all problems and for "dummy".
    """
    notes = _notes(ask, works, BEFORE, [""] * len(works), shift)
    _turn(ask, works, [f"{w.problem.question}\n\n{note}" for w, note in zip(works, notes)])
    notes = _notes(ask, works, AFTER, [w.answer for w in works], shift)
    _turn(ask, works, [f"{note}\n\n{w.problem.question}\n{FINAL}" for w, note in zip(works, notes)])


def _notes(ask, works, names, texts, shift):
    """Notes by the tools on texts[i]; none sees another's, which a small model would only copy. The
    main conversation is given the notes of the problem `shift` places further on."""
    notes = [""] * len(works)
    for name in names:
        found = ask(works, [TOOLS[name](w.problem.question, text) for w, text in zip(works, texts)])
        notes = [f"{note}\nNotes ({name}): {text}".strip() for note, text in zip(notes, found)]
    return notes[shift:] + notes[:shift]


def solve(model: Model, problems: Sequence[words.WordProblem], *, schedule: str,
          max_new_tokens: int = 64, rounds: int = 3, temperature: float = 0.0,
          seed: int = 0) -> list[Conversation]:
    """Works on `words.WordProblem`s by one of SCHEDULES; returns a list of `Conversation`.

    model: one that is asked through its chat template. max_new_tokens: of every call. rounds: how
    often "model" may call tools before its answer. BadInput for an unknown schedule, rounds below
    1, "dummy" without another problem, and for a conversation that leaves no room for
    max_new_tokens in the model's context.
    """
    for name, value, ok, allowed in (
            ("schedule", schedule, schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
            ("rounds", rounds, rounds >= 1, "at least 1"),
            ("problems", len(problems), schedule != "dummy" or len(problems) != 1,
             "2 or more for dummy")):
        if not ok:
            raise BadInput(f"{name} is {value!r}; allowed: {allowed}.")
    works = [Conversation(problem) for problem in problems]
    ask = _asking(model, max_new_tokens, temperature, seed)
    if schedule == "none":
        _turn(ask, works, [w.problem.question for w in works])
    elif schedule in ("model", "listed"):
        messages, tools = tool_listing(model.tokenizer)
        for work in works:
            work.messages += messages
        _choose(ask, works, tools, rounds if schedule == "model" else 0)
    else:  # the notes of half a list away are on another problem
        _fixed(ask, works, len(works) // 2 if schedule == "dummy" else 0)
    return works


# --- answers --------------------------------------------------------------------------------------

def vote(model: Model, problems: Sequence[words.WordProblem], calls: Sequence[int], *,
         max_new_tokens: int = 64, temperature: float = 0.6, seed: int = 0) -> list[Conversation]:
    """Self-consistency with calls[i] plain answers to problem i; returns a list of `Conversation`.

    The answer is the first text with the most frequent value, of equally frequent ones the first
    to appear; texts without one have no vote, and if none has one, the first text stands.
    BadInput unless there is one count a problem, each at least 1.
    """
    calls = [int(c) for c in calls]
    if len(calls) != len(problems) or min(calls, default=1) < 1:
        raise BadInput(f"calls is {calls}; allowed: one count for each of {len(problems)} "
                       "problems, at least 1.")
    works = [Conversation(p, [{"role": "user", "content": p.question}]) for p in problems]
    rows = [work for work, n in zip(works, calls) for _ in range(n)]
    texts = iter(_asking(model, max_new_tokens, temperature, seed)(
        rows, [w.messages for w in rows]))
    for work, n in zip(works, calls):
        mine = [next(texts) for _ in range(n)]
        values = [_value(text) for text in mine]
        counts = Counter(v for v in values if v is not None)  # keeps the order of appearance
        work.answer = mine[values.index(max(counts, key=counts.get))] if counts else mine[0]
        work.messages.append({"role": "assistant", "content": work.answer})
    return works


def final(work: Conversation) -> str:
    """The line of the answer for words.grade, which reads only one: the last in which "answer is"
    is followed by something, else the last with a number, else ""."""
    return _final(work.answer)


def told(works: list[Conversation]) -> dict:
    """What a page tells of a schedule: calls the model made itself, malformed ones, the first
    problem's messages."""
    return {"called": sum(len(work.called) for work in works), "messages": works[0].messages,
            "malformed": sum(work.malformed for work in works)}


def _final(text):
    lines = text.splitlines()[::-1]
    said = [line for line in lines if "answer is" in line and words.extract(line)]
    return next(iter(said + [line for line in lines if re.search("[0-9]", line)]), "")


def _value(text):
    """The answer in a text, so written that equal ones are equal, or None."""
    said = words.extract(_final(text))
    return said and words.canonical(re.sub("[,$£€]", "", said)).strip("*. ")


# --- the work of one process ---------------------------------------------------------------------

def job(name: str, problems: Sequence[words.WordProblem], schedule: str, max_new_tokens: int,
        rounds: int, votes: Sequence[int] | None = None,
        accept_terms: bool = False) -> list[Conversation]:
    """`solve`, or with `votes` (a count a problem) `vote`, by the model of a name
    (`loading.load`)."""
    model = loading.load(name, chat=True, accept_terms=accept_terms)
    if votes:
        return vote(model, problems, votes, max_new_tokens=max_new_tokens)
    return solve(model, problems, schedule=schedule, max_new_tokens=max_new_tokens,
                 rounds=rounds)
