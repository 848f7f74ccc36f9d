"""What parameters allow each other: relations that params.SCHEMA, a value at a time, cannot state.

`rules` is the table, a line a relation. They are checked with the profile, before anything runs: no
value that passes asks for more problems than there are, outgrows the memory or the model's
context, or is left out in silence.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from locksmith import tasks
from locksmith.errors import BadInput

FAMILIES = ("countdown", "chain")  # the tasks whose generators a profile states
TRAINING = ("problems", "first_test", "model", "families", "twin", "pretrain", "rl", "ladders",
            "distill")
WEIGHTS = 1_000_000_000  # of a lab model, which trains on CPUs
ANSWERS, TOKENS = 1_000_000, 500_000_000  # at once: some 6 GB of ids and log-probabilities
# Two parameters of a section whose product is a number of answers sampled at once.
_TOGETHER = (("problems", "samples"), ("n_problems", "n_samples"), ("rl_problems", "rl_samples"),
             ("pool_problems", "pool_samples"), ("start_problems", "start_samples"),
             ("n_problems", "resample_samples"),
             ("n_problems", "matched_samples"), ("n_problems", "curve_samples"),
             ("n_problems", "power_chains"), ("seed_problems", "n_candidates"),
             ("read_problems", "documents"), ("read_problems", "own_samples"),
             ("n_problems", "base_samples"), ("depth_problems", "base_samples"),
             ("depth_problems", "edge_samples"))
# The first of two parameters of a chapter is at most the second.
_WITHIN = (("few_problems", "seed_problems"), ("seed_problems", "pool_problems"),
           ("traces_per_problem", "n_samples"))
# What a chapter takes of a split of the lab's problems.
_OF_SPLIT = {"n_problems": "test", "step_problems": "test", "entropy_problems": "test",
             "n_validation": "validation", "read_problems": "validation", "n_traces": "train"}
TOY = (2, 4096)  # blocks and context of `packaged.toy`, which takes torch to ask

Rule = tuple[str, bool, str]  # dotted path of a parameter, whether it may be so, what is allowed


def check(profile: str, own: dict, lab: dict | None) -> None:
    """BadInput about the first relation that a profile breaks.

    own: its parameters, which obey the schema; lab: those of the profile whose models it reads
    (own, where it trains them itself), checked before; None where there is no such profile.
    """
    for path, holds, allowed in rules(own, lab):
        if not holds:
            value = own
            for name in path.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            raise BadInput(f"{profile}.{path} is {value!r:.200}; allowed is {allowed}.")


def rules(own: dict, lab: dict | None) -> Iterator[Rule]:
    """All relations of a profile, as for `check`; earlier ones make later ones computable."""
    yield "seeds", "seeds" in own, "a list of seeds, which every profile states"
    yield most("seeds", own["seeds"], 1_000_000, "from which the seeds of samples are made")
    trains = [name for name in TRAINING if name in own]
    for name in TRAINING:
        yield name, not trains or name in own, (
            f"to state it, as the profile trains models and states {', '.join(trains)}")
    if trains:
        yield "checkpoints", "checkpoints" not in own or lab is own, (
            "to leave it out, as the profile trains models of its own")
        yield from _generators(own["families"])
        yield from _training(own)
        yield from _ladders(own, own["ladders"])
    elif "checkpoints" in own:
        yield "checkpoints", lab is not None, "a profile that trains models"
        yield "seeds", set(own["seeds"]) <= set(lab["seeds"]), (
            f"a list of seeds that checkpoints of {own['checkpoints']} have, {lab['seeds']}")
    if "real" in own:
        yield from _real(own["real"])
    for name, section in own.get("chapters", {}).items():
        for path, holds, allowed in _chapter(name, section, lab):
            yield f"chapters.{name}.{path}", holds, allowed


def most(path: str, value: int | float | list, bound: float, why: str) -> Rule:
    """The rule that a value, or the largest of a list, is at most a bound."""
    largest = max(value) if isinstance(value, list) else value
    return path, largest <= bound, f"at most {max(bound, 0)}, {why}"


@cache
def _count(family, split, depth, settings):
    """How many different problems of a split there are; settings: the generator's items."""
    return tasks.load(family).count(split, dict(settings), depth)


def count(families: dict, family: str, split: str, depth: int | None = None) -> int:
    """How many different problems of a split a family's generator gives, at a depth of its own or
    another."""
    settings = tuple((name, tuple(value) if isinstance(value, list) else value)
                     for name, value in families[family].items())
    return _count(family, split, depth, settings)


def _generators(families):
    for family in FAMILIES:
        path = f"families.{family}"
        yield path, family in families, "to state it, as the pipeline trains on both families"
        generator = families[family]
        yield most(f"{path}.reviews", generator["reviews"], round(1 - generator["facts"], 9),
                   f"as {path}.facts is {generator['facts']}")
    bounds = families["countdown"]["expressions"]
    yield ("families.countdown.expressions", len(bounds) == 2 and bounds[0] <= bounds[1],
           "[least, most], two numbers in order")


def _training(p):
    model, rl, pretrain, distill = (p[name] for name in ("model", "rl", "pretrain", "distill"))
    head = model["hidden"] / model["heads"]
    yield "model.heads", head % 2 == 0, (
        f"what divides model.hidden, {model['hidden']}, into heads of an even size")
    weights = model["layers"] * model["hidden"] * (4 * model["hidden"] + 3 * model["mlp"])
    yield "model", weights <= WEIGHTS, f"what has at most {WEIGHTS:,} weights"
    for name, section in (("pretrain", pretrain), ("rl", rl)):
        yield most("model.context", model["context"], section["micro_tokens"],
                   f"{name}.micro_tokens, so that a text fits into a batch")
    room = model["context"] - longest_prompt(p)
    yield most("rl.max_new_tokens", rl["max_new_tokens"], room,
               f"which prompts leave of model.context, {model['context']}")
    for family in p["families"]:
        have = {split: count(p["families"], family, split) for split in p["problems"]}
        for split, n in p["problems"].items():
            yield most(f"problems.{split}", n, have[split],
                       f"as many different ones as families.{family} gives")
        yield most("rl.steps", rl["steps"], have["train"] // rl["problems"],
                   f"with {rl['problems']} new ones a step of the {have['train']} different "
                   f"training problems that families.{family} gives")
        yield most("distill.problems", distill["problems"], have["train"],
                   f"as many different training problems as families.{family} gives")
    yield most("first_test", p["first_test"], p["problems"]["test"] - 1,
               "before the last of problems.test")
    yield from _together("rl", rl)
    steps = pretrain["tokens"] // (pretrain["micro_tokens"] * pretrain["micro_batches"])
    yield most("pretrain.checkpoints", pretrain["checkpoints"], steps,
               "the steps that pretrain.tokens, micro_tokens and micro_batches make")
    yield most("rl.checkpoints", rl["checkpoints"], rl["steps"] - 1,
               "as the last step's is kept anyway")
    yield most("distill.rank", distill["rank"], model["hidden"], "model.hidden")
    yield most("distill.evaluations", distill["evaluations"],
               distill["epochs"] * distill["problems"], "one for each problem of each epoch")
    yield most("distill.validation", distill["validation"], p["problems"]["validation"],
               "problems.validation")


def _ladders(p, own):
    """Rules of chapter 7's models."""
    yield most("ladders.seeds", own["seeds"], 1_000_000, "from which the seeds of samples are made")
    yield from _together("ladders", own)
    rl, families = p["rl"], p["families"]
    chain = families["chain"]
    yield most("ladders.easier.chain", own["easier"]["chain"], chain["depth"],
               "families.chain.depth")
    yield most("families.chain.depths", chain["depths"], 8, "as chapter 7 asks for one link more")
    edge = tasks.load("chain").prompt_length(max(chain["depths"]) + 1)
    yield most("rl.max_new_tokens", rl["max_new_tokens"], p["model"]["context"] - edge,
               f"which prompts of one more link leave of model.context, {p['model']['context']}")
    step = rl["problems"] * rl["steps"]
    needed = {"train": step, "validation": own["start_problems"], "test": p["first_test"]
              + p.get("chapters", {}).get("ch07", {}).get("n_problems", 1)}
    for family, generator in families.items():
        for times in ("plateau", "most_drawn"):
            yield most(f"ladders.{times}", own[times], count(families, family, "train") // step,
                       f"with {step} different training problems of families.{family} each time")
        for how in ("easier", "harder"):
            for n in own[how][family]:
                changes = getattr(tasks.load(family), how)(generator, n)
                changed = {family: {**generator, **changes}}
                for split, least in needed.items():
                    have = count(changed, family, split, changes.get("depth"))
                    yield (f"ladders.{how}.{family}", have >= least, "a list of settings with "
                           f"{least} different {split} problems each; {n} gives {have}")


def _real(p):
    """Rules of RL on two models that others pre-trained."""
    yield "real.absent.model", p["absent"]["model"] != p["present"]["model"], (
        "another model than real.present has")
    for role in ("present", "absent"):
        asked = p[role]["sums"]
        yield most(f"real.{role}.sums.worked", asked["worked"], 4 - asked["direct"],
                   f"as there are four examples, {asked['direct']} of them direct")
        shares = [int(arm[-1]) for arm in p[role]["arms"] if arm.startswith("direct-")]
        yield f"real.{role}.arms", max(shares, default=0) <= asked["direct"] + asked["worked"], (
            "a list with at most as many direct examples as there are examples, "
            f"{asked['direct'] + asked['worked']}")
    yield from _together("real", p)


def longest_prompt(p: dict) -> int:
    """Tokens of the longest prompt in RL: of any family, at the depth of its problems."""
    return max(tasks.load(family).prompt_length(generator.get("depth"))
               for family, generator in p["families"].items())


def _together(path, section):
    cap = min(ANSWERS, TOKENS // section.get("max_new_tokens", 1))
    for first, second in _TOGETHER:
        if first in section and second in section:
            n = section[first]
            yield most(f"{path}.{second}".lstrip("."), section[second], cap // max(n, 1),
                       f"with {first} {n}, as {cap} answers at once fit into memory")


def _chapter(name, s, lab):
    """Rules of a chapter's section s, with paths within it."""
    yield from _together("", s)
    for small, large in _WITHIN:
        if small in s and large in s:
            yield most(small, s[small], s[large], large)
    if "rl_steps" in s:
        yield most("rl_steps", s["rl_steps"], ANSWERS // s["rl_problems"],
                   f"with {s['rl_problems']} new problems a step")
    if "strengths" in s and name == "ch04":  # what a vector does is compared with its absence
        yield "strengths", {0} < set(s["strengths"]), "a list with 0 and other strengths"
    models = [s.get("base_model", ""), s.get("thinking_model", "")]
    every = name in ("ch00", "ch07")  # which name no models: they read those of the lab
    read = every or any(model.startswith("lab/") for model in models)
    families = FAMILIES if every else [t for t in FAMILIES if t in s.get("tasks", ())]
    for parameter, needs in (("base_model", read), ("tasks", families)):
        yield parameter, lab is not None or not needs, (
            "another value, or `checkpoints` in the profile that name one which trains models")
    if read:
        yield from _with_lab(name, s, lab)
    for model in filter(None, models):
        blocks, context = _shape(model, lab)
        prompt = longest_prompt(lab) if families else 1
        if blocks and "layers" in s:
            yield most("layers", s["layers"], blocks - 1, f"the last block of {model}")
        if context and "max_new_tokens" in s:
            yield most("max_new_tokens", s["max_new_tokens"], context - prompt,
                       f"as {model} reads {context} tokens, prompt included")
    for family in families:
        have = count(lab["families"], family, "train")
        why = f"of the {have} different training problems that families.{family} gives"
        if "rl_steps" in s:
            yield most("rl_steps", s["rl_steps"], have // s["rl_problems"],
                       f"with {s['rl_problems']} new ones a step {why}")
        if "pool_problems" in s:
            yield most("pool_problems", s["pool_problems"], have - s.get("n_candidates", 0), why)
        for depth in s["depths"] if name == "ch00" else ():
            have = count(lab["families"], family, "test", depth) - lab["first_test"]
            yield most("problems", s["problems"], have,
                       f"the different test problems of families.{family} from first_test on"
                       + f" at depth {depth}" * (family == "chain"))


def _shape(name, lab):
    """(blocks, tokens of context) of a model, as far as is known before it is loaded, else None."""
    if name.startswith("lab/"):
        return lab["model"]["layers"], lab["model"]["context"]
    if name in ("toy", "toy/thinking"):
        return TOY
    for folder in (name, name.partition("+")[0]):  # behind the sign stands an adapter
        try:
            stated = dict(json.loads(Path(folder, "config.json").read_text(encoding="utf-8")))
            stated = dict(stated.get("text_config", stated))
        except (OSError, ValueError, TypeError):
            continue  # no folder, or a damaged one, of which loading says what is wrong
        found = stated.get("num_hidden_layers"), stated.get("max_position_embeddings")
        return tuple(n if type(n) is int else None for n in found)
    return None, None


def _left(lab, split):
    """(how many problems of a split chapters may ask, why)."""
    skipped = lab["first_test"] if split == "test" else 0
    return lab["problems"][split] - skipped, f"problems.{split}" + (
        f" from first_test, {skipped}, on" if skipped else "")


def _with_ladders(s, lab):
    """Rules of chapter 7, which asks the models of the ladders."""
    first, families, own = lab["first_test"], lab["families"], lab["ladders"]
    yield most("n_problems", s["n_problems"], *_left(lab, "test"))
    yield most("depth_problems", s["depth_problems"], *_left(lab, "test"))
    for family, generator in families.items():
        for how in ("easier", "harder"):
            for n in own[how][family]:
                changes = getattr(tasks.load(family), how)(generator, n)
                have = count({family: {**generator, **changes}}, family, "test",
                             changes.get("depth"))
                yield most("n_problems", s["n_problems"], have - first, "the different test "
                           f"problems from first_test on that ladders.{how}.{family} {n} gives")
    longest = tasks.load("chain").prompt_length(max(families["chain"]["depths"]) + 2)
    room = lab["model"]["context"] - longest
    yield "depth_problems", lab["rl"]["max_new_tokens"] <= room, (
        f"a model.context that leaves room for rl.max_new_tokens, {lab['rl']['max_new_tokens']}, "
        f"behind problems two links deeper than families.chain.depths, not {room}")


def _with_lab(name, s, lab):
    """Rules of a chapter that reads the models of the lab."""
    model, rl = lab["model"], lab["rl"]
    if name == "ch00":
        yield most("problems", s["problems"], *_left(lab, "test"))
        longest = tasks.load("chain").prompt_length(max(s["depths"]))
        yield "depths", longest + rl["max_new_tokens"] <= model["context"], (
            f"what leaves room for rl.max_new_tokens, {rl['max_new_tokens']}, in model.context, "
            f"{model['context']}")
        return
    if name == "ch07":
        yield from _with_ladders(s, lab)
        return
    from locksmith import vocabulary  # a second of imports, which profiles without a lab save

    words = set(" ".join(s.get("prefixes", ())).split())
    yield "prefixes", words <= {*vocabulary.VOCABULARY}, "a list of the lab's words"
    if not (s["base_model"].startswith("lab/") and s["thinking_model"].startswith("lab/")):
        return
    for parameter in _OF_SPLIT.keys() & s.keys():
        split = _OF_SPLIT[parameter]
        yield most(parameter, s[parameter], *_left(lab, split))
    validation = lab["problems"]["validation"]
    if name in ("ch03", "ch05"):  # as many choose rates, and in chapter 5 among methods
        yield most("n_problems", s["n_problems"], validation, "problems.validation")
    if name == "ch02":  # a guess draws on ten training problems for each test problem
        yield most("n_problems", s["n_problems"], lab["problems"]["train"] // 10,
                   "a tenth of problems.train")
