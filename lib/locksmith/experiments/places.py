"""Chapter 4's texts, and the places in them at which its questions are asked.

All models read the same texts, token by token, so a pair shares one vocabulary:

    documents   worked answers to held-out problems. In the lab by corpus authors; in words the
                task's own right steps, each once as it is and once with a wrong result (a minimal
                pair: the text ends there, and one number differs). Of a task whose answers may be
                worked out or given at once, also prompts, with what the base does next
    traces      the thinking model's own answers

A *place* is the token before a step may open. What opens there is a kind of step where the task
knows kinds. In words they are not known, but whether a written equation holds is: a place there is
the end of a step, and it "opens" an `error` (the equation just written is wrong), a `conclude` (it
holds, and the answer comes next) or a `step` (it holds, and another step comes). Another is the end
of a prompt, which opens `work` (the answer begins with the first step) or an `answer`.

A *choice* is a place at which the behaviour competes with another step after the same kind of
token.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from locksmith import corpus, grammar, prose, rollouts, vocabulary
from locksmith.errors import BadInput
from locksmith.experiments import next_words
from locksmith.loading import Model, Pair
from locksmith.tasks import name_of
from locksmith.words import WordProblem

# What is asked about each task, stated before any run (the chapter says why): the first is the
# headline. In words, `error` is a state of the text and no step: what should follow it is going
# back, which opens with these words.
BEHAVIOURS = {"countdown": ("wait", "check"), "chain": ("check", "wait"), "sums": ("work", "error")}
IN_WORDS = ("error", "conclude")
OPENINGS_IN_WORDS = {"error": ("Wait", "Hmm", "No"), "conclude": ("The answer", "So the answer")}
PROMPTS, DRAWN = 4, 16  # prompts a problem that is read, and outcomes of each
SLIPS = (-10, -2, -1, 1, 2, 10)  # wrong results are off by one of these
ANOTHER = {"wait": "check", "check": "try", "error": "conclude", "work": "error"}  # as a control
CONCLUDED = re.compile(r"answer is:?\s*(?=\S)")
_TABLE = {name: torch.tensor([word in words for word in vocabulary.VOCABULARY]) for name, words in {
    "number": vocabulary.NUMBERS, "operator": vocabulary.OPERATORS, "equals": ("=",), "no": ("no",),
    "before": ("yes", "no", ":", "next"),
    "concluding": [opening[-1] for opening in grammar.OPENINGS["conclude"]]}.items()}


def behaviours(task: ModuleType) -> tuple[str, ...]:
    """The behaviours that the chapter asks about in a task, its headline first."""
    return BEHAVIOURS.get(name_of(task), IN_WORDS)


def headline(task: ModuleType) -> str:
    return behaviours(task)[0]


def contrasts(task: ModuleType) -> list[tuple[str, str]]:
    """All (kind, behaviour) that a vector can be made of; "try" and "step" stand for going on."""
    if task.OPENINGS:
        return [("choice", "wait"), ("choice", "check"), ("choice", "try"),
                *(("point", b) for b in task.OPENINGS)]
    asked = dict.fromkeys((*behaviours(task), *IN_WORDS))
    return [*(("choice", b) for b in asked), *(("point", b) for b in (*asked, "step"))]


class Sizes(NamedTuple):
    """How much is read: validation problems, documents (or own answers) a problem, and the cap of
    a trace in tokens."""
    n_problems: int
    documents: int
    max_new_tokens: int


# --- texts ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Text:
    """ids: prompt and answer; start: length of the prompt; problem: its index; habits: the chances,
    equally likely, with which its author, hidden or the base, may do a behaviour; last: of a text
    that is read at its end alone, what opens there: once, or as often as it was drawn."""
    ids: list
    start: int
    problem: int
    habits: dict = field(default_factory=dict)
    last: tuple[str, ...] = ()


def documents(pair: Pair, model: Model, n_problems: int, each: int,
              split: str = "validation") -> list[Text]:
    """Worked answers to held-out problems, up to `each` a problem, in the model's tokens."""
    problems, generator = pair.problems(n_problems, split), pair.generator
    if pair.rules.OPENINGS:
        return [text for i, problem in enumerate(problems)
                for text in _by_authors(pair, model, problem, i, each, generator)]
    pairs = [text for i, problem in enumerate(problems)
             for text in _minimal_pairs(pair, model, problem, i, each)]
    if "work" not in behaviours(pair.rules):
        return pairs
    return pairs + [_prompt(pair, model, problem, i // PROMPTS, i)
                    for i, problem in enumerate(pair.problems(PROMPTS * n_problems, split))]


def _by_authors(pair, model, problem, i, each, generator):
    """One document by each of as many hidden authors."""
    habits = {"wait": [one * generator["backtrack"] for one in generator["persistence"]],
              "check": [one * generator.get("check_steps", 1) for one in generator["check"]]}
    for j in range(each):
        rng = random.Random(f"probe {pair.task} {problem.key} {j}")
        author = corpus.author(rng, generator)
        words = pair.rules.document(rng, problem, author, generator)
        yield Text([*model.ask(pair.rules, problem), *model.encode(" ".join(words))],
                   len(problem.prompt), i, habits)


def _prompt(pair, model, problem, block, i):
    """A prompt, worked examples last, and what the model does DRAWN times: drawn by its exact
    chance. Where the worked example stands decides most of that; here it is the same for all."""
    problem = replace(problem, examples=tuple(sorted(problem.examples, key=lambda x: bool(x[1]))))
    ids = model.ask(pair.rules, problem)
    [chance] = next_words.chances(model, asked(model, pair.rules, problem, "work"))
    drawn = np.random.default_rng([pair.seed, i]).random(DRAWN) < chance
    return Text(ids, len(ids), block, {"work": [chance]},
                tuple("work" if works else "answer" for works in drawn))


def asked(model: Model, task: ModuleType, problem: WordProblem, behaviour: str) -> next_words.Asked:
    """Where the text of a problem in words has come to, and which words open the behaviour there:
    the first equation up to its "=" behind the prompt ("work"), or the openings behind a first step
    that is wrong ("error") or behind the last right one ("conclude")."""
    prompt = model.ask(task, problem)
    if behaviour == "work":
        *forced, last = model.encode(f" {problem.working[:problem.working.index('=') + 1]}")
        return next_words.Asked(prompt, len(prompt), forced, [last])
    written = prose.equations(problem.working)
    chosen = written[0 if behaviour == "error" else -1]
    said = problem.working[:_end(task, problem, chosen)]
    if behaviour == "error":
        said = _slip(random.Random(f"slip {problem.key}"), said, chosen)
    return next_words.Asked([*prompt, *model.encode(f" {said}")], len(prompt), [],
                            opening_ids(model, task, behaviour))


def _end(task, problem, equation):
    """Where the step ends in a problem's working that an equation of it stands in."""
    return next(step.end for step in task.steps(problem.working) if step.end >= equation.end)


def _minimal_pairs(pair, model, problem, i, each):
    """The right steps up to each equation, as it is and with a wrong result."""
    rng = random.Random(f"probe {pair.task} {problem.key}")
    prompt = model.ask(pair.rules, problem)
    written = prose.equations(problem.working)
    right = [equation for equation in written if equation.holds]  # some are not as simple as read
    for equation in right[:each // 2]:
        opens = "conclude" if equation == written[-1] else "step"
        upto = problem.working[:_end(pair.rules, problem, equation)]
        for text, last in ((upto, opens), (_slip(rng, upto, equation), "error")):
            yield Text([*prompt, *model.encode(f" {text}")], len(prompt), i, last=(last,))


def _slip(rng, text, equation):
    """The text with another result in an equation (its last number), no nearer than one."""
    result = list(re.finditer(r"[0-9]+", text[:equation.end]))[-1]
    wrong = abs(int(result[0]) + rng.choice(SLIPS))
    wrong += wrong == int(result[0])
    return text[:result.start()] + str(wrong) + text[result.end():]


def traces(model: Model, task: ModuleType, problems: list, each: int,
           **how: object) -> tuple[list[Text], rollouts.Answers]:
    """A model's own answers, `each` a problem, problem-major: (texts, `rollouts.Answers`)."""
    found = rollouts.answer(model, task, problems, each, **how)
    return [Text([*prompt, *ids], len(prompt), i)
            for i, (prompt, row) in enumerate(zip(found.prompts, found.ids)) for ids in row], found


def check_vocabularies(first: Model, second: Model) -> None:
    """BadInput unless both models read the same tokens; special ones may have other meanings, as
    where a thinking model got a chat template that its base lacks."""
    both = [model.tokenizer for model in (first, second)]
    special = {token for one in both for token in (*one.get_added_vocab(), *one.all_special_tokens)}
    one, other = ({token: i for token, i in tokenizer.get_vocab().items() if token not in special}
                  for tokenizer in both)
    if one != other:
        raise BadInput(f"{first.name} and {second.name} have different vocabularies; allowed in "
                       "this chapter is a pair that shares one, whose models read the same tokens.")


def check_alike(first: Model, second: Model) -> None:
    """BadInput unless both models read the same tokens into residual streams of one shape."""
    check_vocabularies(first, second)
    shapes = [(model.depth, model.net.config.get_text_config().hidden_size)
              for model in (first, second)]
    if shapes[0] != shapes[1]:
        raise BadInput("{} has {} blocks of {} dimensions and {} has {} of {}; allowed in this "
                       "chapter are models of one shape, whose directions can be compared.".format(
                           first.name, *shapes[0], second.name, *shapes[1]))


# --- places ---------------------------------------------------------------------------------------

@dataclass
class Places:
    """N places of the texts: text, place, problem (N,) int; opens (N,) str; choice: behaviour ->
    (N,) bool, places where it is a choice."""
    text: np.ndarray
    place: np.ndarray
    problem: np.ndarray
    opens: np.ndarray
    choice: dict

    def positions(self, n_texts: int,
                  rows: Bool[np.ndarray, " places"] | slice = slice(None)) -> list[list[int]]:
        """One list of places a text, as `activations.residuals` takes them; rows: of which."""
        out = [[] for _ in range(n_texts)]
        for t, p in zip(self.text[rows], self.place[rows], strict=True):
            out[t].append(int(p))
        return out

    def sides(self, behaviour: str, kind: str = "choice") -> tuple[np.ndarray, np.ndarray]:
        """(up, down), (N,) bool, of a contrast: "choice" sets the behaviour against what else came
        at its places, "point" against all places. Going on (`try`) is a choice where `check` is
        one."""
        mine = self.opens == behaviour
        if kind == "point":
            return mine, np.ones_like(mine)
        here = self.choice["check" if behaviour == "try" else behaviour]
        return mine & here, ~mine & here

    def chosen(
        self, behaviour: str, kind: str = "choice",
    ) -> tuple[Bool[np.ndarray, " places"], Bool[np.ndarray, " chosen"],
               Int[np.ndarray, " chosen"]]:
        """(rows, labels, problems) of a contrast's places."""
        up, down = self.sides(behaviour, kind)
        return up | down, up[up | down], self.problem[up | down]


def places(task: ModuleType, model: Model, texts: list[Text]) -> Places:
    """The `Places` of texts, in their order."""
    rows = [(i, place, text.problem, opens, choices) for i, text in enumerate(texts)
            for place, opens, choices in (_by_grammar(task, text) if task.OPENINGS else
                                          _in_words(task, model, text))]
    columns = zip(*rows, strict=True) if rows else [[]] * 5
    *known, choices = columns
    names = ("wait", "check") if task.OPENINGS else ("work", *IN_WORDS)
    return Places(*map(np.array, known),
                  {b: np.array([b in here for here in choices], bool) for b in names})


def _by_grammar(task, text):
    """(place, what opens, behaviours for which it is a choice) of a lab's text.

    `wait` is a choice after a check that said no, against concluding; `check` after a finished
    attempt, against going on or concluding, but not where a chain's step was written again: no
    author checks that.
    """
    before = None
    ids = torch.tensor(text.ids)
    here = boundaries(task, ids)
    here[:text.start - 1] = False
    done, failed = finished(task, ids), _TABLE["no"][ids]
    for p in here[:-1].nonzero()[:, 0].tolist():
        opens = grammar.BEHAVIOUR.get(vocabulary.VOCABULARY[text.ids[p + 1]])
        if opens:
            again = before == "wait" and name_of(task) == "chain"
            yield p, opens, ({"wait"} if failed[p] else {"check"} if done[p] and not again
                             else set())
            before = opens


_CHOICES = {"work": {"work"}, "answer": {"work"}, "error": {"error"},
            "step": {"error", "conclude"}, "conclude": {"error", "conclude"}}  # what opens there


def _in_words(task, model, text):
    """(place, what opens, behaviours for which it is a choice) of a text in words: at its end where
    that is known, or at the prompt's and at steps with an equation."""
    for opens in text.last:
        yield len(text.ids) - 1, opens, _CHOICES[opens]
    if text.last:
        return
    if "work" in behaviours(task):
        opens = "work" if works_out(task, model.decode(text.ids[text.start:])) else "answer"
        yield text.start - 1, opens, _CHOICES[opens]
    for place, holds, concludes in steps_in_words(task, model, text):
        opens = ("conclude" if concludes else "step") if holds else "error"
        yield place, opens, _CHOICES[opens]


def works_out(task: ModuleType, text: str) -> bool:
    """Whether an answer in words begins with an equation."""
    first = next(iter(task.steps(text)), None)
    return first is not None and bool(prose.equations(text[first.start:first.end]))


def steps_in_words(task: ModuleType, model: Model, text: Text) -> list[tuple[int, bool, bool]]:
    """(place of its last token, whether the equation holds, whether the answer comes next) of
    every step of an answer that ends an equation."""
    ids = text.ids[text.start:]
    said, ends = model.decode(ids), [end for _, end in model.spans(ids)]
    steps, out = task.steps(said), []
    for step, after in zip(steps, [*steps[1:], None]):
        inside = [e for e in prose.equations(said) if step.start <= e.start and e.end <= step.end]
        token = next((k for k, end in enumerate(ends) if end >= step.end), None)
        if inside and token is not None:
            last = after is not None and CONCLUDED.search(said[after.start:after.end])
            out.append((text.start + token, inside[-1].holds, bool(last)))
    return out


def boundaries(task: ModuleType, ids: torch.Tensor) -> torch.Tensor:
    """Where a step of a lab's trace may open next: ids (..., T) int64 -> (..., T) bool, read from
    the grammar alone. True at the end of the prompt, after a verdict, a finished attempt and
    (countdown) an answer."""
    def back(k):  # the token k places earlier, <pad> before the start
        return F.pad(ids, (k, 0))[..., :ids.shape[-1]]

    def kind(name, k):
        return _TABLE[name].to(ids.device)[back(k)]

    after = finished(task, ids) | kind("before", 0)
    if name_of(task) == "countdown":
        after = after | (kind("number", 0) & kind("operator", 1) & kind("number", 2)
                         & kind("operator", 3) & kind("number", 4) & kind("concluding", 5))
    return after


def finished(task: ModuleType, ids: torch.Tensor) -> torch.Tensor:
    """Where an attempt of a lab's trace ends with its result: ids (..., T) int64 -> (..., T)
    bool."""
    table = {name: t.to(ids.device) for name, t in _TABLE.items()}
    back = [F.pad(ids, (k, 0))[..., :ids.shape[-1]] for k in (1, 5)]
    end = table["number"][ids] & table["equals"][back[0]]
    # An attempt in countdown has two operations, `a op b = r op c = s`.
    return end & table["equals"][back[1]] if name_of(task) == "countdown" else end


# --- while a model writes -------------------------------------------------------------------------

def gate(model: Model, task: ModuleType, behaviour: str, where: str,
         strengths: Float[Tensor, " rows"]) -> Callable:
    """A gate of `steering.Steer`: strengths for output rows, at the places `where` names.

    where: "all" from the end of the prompt on (the published way), or "choice", the places where
    the behaviour is a choice, read from the tokens so far (in words: the end of the prompt for
    working out, or where a sentence may end).
    """
    ends = None if task.OPENINGS else sentence_ends(model)

    def weigh(moment):
        q, ids = moment.positions.shape[1], moment.tokens
        on = moment.positions >= moment.prompt_lengths[:, None] - 1
        if where == "choice" and behaviour == "work":
            on = moment.positions == moment.prompt_lengths[:, None] - 1
        elif where == "choice":
            if ends is not None:
                at = ends.to(ids.device)[ids]
                on = moment.positions >= moment.prompt_lengths[:, None]
            else:
                at = (finished(task, ids) if behaviour == "check" else
                      _TABLE["no"].to(ids.device)[ids])
            on = on & at[:, -q:]
        return on * strengths.to(ids.device)[moment.rows][:, None]
    return weigh


def sentence_ends(model: Model) -> torch.Tensor:
    """(V,) bool: the tokens that may end a sentence. (A decimal point is one of them too.)"""
    size = model.net.get_input_embeddings().num_embeddings
    ends = torch.zeros(size, dtype=torch.bool)
    for token in set(model.tokenizer.get_vocab().values()):
        if token < size and model.decode([token]).rstrip().endswith((".", "!", "?", ";")):
            ends[token] = True
    return ends


def opening_ids(model: Model, task: ModuleType, behaviour: str) -> list[int]:
    """The tokens that open a behaviour."""
    if task.OPENINGS:
        return [model.encode(opening[0])[0] for opening in task.OPENINGS[behaviour]]
    return sorted({model.encode(f" {opening}")[0] for opening in OPENINGS_IN_WORDS[behaviour]})


def attempts(task: ModuleType, text: str) -> list:
    """What an answer tried: the contents of its attempts, or its equations, as they are
    written."""
    if task.OPENINGS:
        return [tuple(said) for kind, said in grammar.steps(grammar.words(text))
                if kind in ("try", "wait")]
    return [text[one.start:one.end] for one in prose.equations(text)]
