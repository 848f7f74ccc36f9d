"""What the page on speed shows: tables of what the benchmarks measured on a CPU and on GPUs.

`benchmarks/engine.py`, `train.py` and `trl_step.py` write results/lab/bench_*.json, facts like any
others. `benchmarks/gpu.py` writes results/gpu/<card>/<part>.json in a form of its own; its
rehearsals (`--tiny`) and what it measured on a CPU are left out.
"""

import json
from collections import Counter
from pathlib import Path

import jsonschema

from locksmith import arms, errors, plain_yaml, quantities, results
from locksmith.book import formats

# Type, condition, how answers end, and how many times as fast as `generate` it is meant to be.
CASES = [(dtype, *case) for dtype in ("float32", "bfloat16") for case in (
    ("", "natural length", 8), ("[variant=fixed length]", "equal length", 2),
    ("[variant=batch1]", "one alone", None))]
TRAINING = {"tokens_per_second": "tokens/s",
            "speedup_vs_autocast": "ratio to transformers' own pass",
            "gemm_teraflops": "peak for square matrices, 10¹² operations/s",
            "share_of_gemm_peak": "share of that peak",
            "shape_teraflops": "peak for the model's shapes, 10¹² operations/s",
            "share_of_shape_peak": "share of that peak"}
# Models that others trained, and the goal for the engine over few tokens.
TRAINED = {"sums": "Qwen2.5-Coder-0.5B-Instruct", "sums_gemma": "Gemma 3 270M"}
GOAL_TRAINED = 4
# What a reader waits for, and the goal in seconds.
WAITS = {"import": ("importing the library", None),
         "ours": ("of that, its own modules", 1),
         "nothing to do": ("`dvc repro`, nothing to do", 4),
         "build": ("building the book, chapters executed before", 15)}
WAYS = {"trl-fp32": "weights in float32", "trl-bf16": "weights in bfloat16",
        "trl-fp32-engine": "float32, answers by our engine"}
# What a table on a GPU shows of the facts of a part: key -> head. All have the first two.
_DECODE = {"shape": "model", "batch": "at once", "engine_tokens_per_s": "engine, tokens/s",
           "cpu": "on the CPU, tokens/s", "generate_tokens_per_s": "`generate`, tokens/s",
           "speedup": "ratio", "engine_share_of_floor": "share of the bound",
           "engine_peak_gib": "GiB"}
PARTS = {
    "decode": ("Writing, against `generate` as it is", _DECODE),
    "compiled": ("Writing, against `generate` compiled", _DECODE),
    "steering": ("Steering", {
        "shape": "model", "batch": "at once", "steered_over_base": "steered / unsteered time",
        "hybrid_over_sum": "hybrid / sum of both models' time"}),
    "train": ("Pre-training the lab's model", {
        "tokens_a_step": "tokens a step", "seeds": "models at once", "tokens_per_s": "tokens/s",
        "cpu": "on the CPU, tokens/s", "peak_gib": "GiB"}),
    "rl": ("A step of RL with LoRA", {
        "shape": "model", "step": "step", "rollouts": "answers", "new_tokens": "tokens each",
        "merge_s": "merging, s", "sampling_s": "writing, s", "update_s": "update, s",
        "peak_gib": "GiB"}),
    "tests": ("Tests", {"test": "test", "outcome": "outcome"})}
NONE = ("**Not yet measured on a GPU.** This command measures it on one card, in a few minutes:\n\n"
        "```sh\nsh benchmarks/gpu.sh\n```")
_TEXT = {"type": "string"}
_SCHEMA = {
    "type": "object", "required": ["part", "card", "tiny", "complete", "torch", "at", "facts"],
    "properties": {
        "part": {"enum": [*PARTS]}, **dict.fromkeys(("card", "torch", "at"), _TEXT),
        **dict.fromkeys(("tiny", "complete"), {"type": "boolean"}),
        "facts": {"type": "array", "items": {
            "type": "object", "additionalProperties": {"type": ["number", "null"]},
            "properties": {"generate": {"type": ["string", "object"]}, **dict.fromkeys(
                ("shape", "step", "test", "outcome", "said", "engine_error", "generate_error"),
                _TEXT)}}}}}


class Benchmark:
    """results/<profile>/bench_<name>.json. BadInput where it is missing or not what `results`
    writes."""

    def __init__(self, root: Path, name: str, profile: str = "lab"):
        self.path = root / "results" / profile / f"bench_{name}.json"
        self.record = results.load(self.path, profile, f"bench_{name}",
                                   arms.load(root / "arms.yml"))
        self.facts = {(fact["family"], fact["model"], quantities.name(fact["quantity"], fact)): fact
                      for fact in self.record["facts"]}

    def fact(self, *name: str) -> dict:
        """The fact of this family, model and quantity. BadInput where there is none."""
        if name not in self.facts:
            raise errors.BadInput(f"{self.path} lacks the fact {' / '.join(name)}; `git checkout` "
                                  "brings back a versioned record.")
        return self.facts[name]

    def text(self, *name: str) -> str:
        """Its value, low and high, as the book writes them."""
        form = formats.percents if name[-1].startswith("share_") else formats.interval
        return form([self.fact(*name)[end] for end in ("value", "low", "high")])


def substitutions(root: str | Path = ".") -> dict:
    """What the page may write between double braces: `speed` (words and counts), and the Markdown
    of `speed_engine`, `speed_trained`, `speed_train`, `speed_trl`, `speed_waiting`,
    `speed_records` and `speed_gpu`."""
    root = Path(root)
    engine, train, trl, waiting = (Benchmark(root, name)
                                   for name in ("engine", "train", "trl", "waiting"))
    trained = Benchmark(root, "open", "open")
    step, extra = trl.fact("rl", "trl-fp32", "speedup_vs_trl"), trl.record["extra"]
    counts = {"problems": step["n_problems"], "samples": step["n_samples"],
              **{key: extra.get(key) for key in ("max_new_tokens", "steps")}}
    if odd := [key for key, value in counts.items() if type(value) is not int]:
        raise errors.BadInput(f"{trl.path}: {odd[0]} is {counts[odd[0]]!r}; allowed is a count.")
    options = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in counts.items())
    repeats = len(engine.fact("engine", "float32", "speedup_vs_generate")["seeds"])
    made = [("writing", f"engine.py --repeats {repeats}", repeats, engine),
            ("pre-training", "train.py", "not recorded", train),
            ("a step of RL", f"trl_step.py {options}", counts["steps"], trl),
            *((what, f"{of.path.stem.removeprefix('bench_')}.py",
               len(of.fact(*next(iter(of.facts)))["seeds"]), of)
              for what, of in (("writing, trained models", trained), ("waiting", waiting)))]
    old = ", ".join(what for what, *_, of in made if not of.record["provenance"]["rules"])
    return {
        "speed": {**counts, "trl": extra.get("trl", "(version not recorded)"),
                  "goals": goals(engine), "age": old and (
                      f"The book's first edition measured these figures: {old}. The code has "
                      "changed since, and they were not measured again.")},
        "speed_engine": writing(engine),
        "speed_trained": trained_models(trained),
        "speed_train": _table(["", "Countdown", "chain"], (
            [says, *(train.text(family, "base", name) for family in ("countdown", "chain"))]
            for name, says in TRAINING.items())),
        "speed_trl": _table(["TRL with", "TRL, tokens/s", "ours, tokens/s", "ratio"], (
            [says, *(trl.text("rl", way, name) for name in (
                "tokens_per_second", "tokens_per_second[variant=ours]", "speedup_vs_trl"))]
            for way, says in WAYS.items())),
        "speed_waiting": waits(waiting),
        "speed_records": _table(["figures", "command", "repeats", "software"], (
            [what, f"`python benchmarks/{command}`", n, ", ".join(
                f"{name} {x}" for name, x in of.record["provenance"]["versions"].items())]
            for what, command, n, of in made)),
        "speed_gpu": gpu(root, engine, train)}


def writing(engine: Benchmark) -> str:
    """A Markdown table: the engine against `generate`, in all CASES."""
    rows = []
    for dtype, variant, ends, goal in CASES:
        ratio = ("engine", dtype, f"speedup_vs_generate{variant}")
        met = "not reached" if goal and engine.fact(*ratio)["value"] < goal else "reached"
        rows.append([dtype, ends, engine.fact(*ratio)["n_samples"],
                     engine.text("engine", dtype, f"tokens_per_second{variant}"),
                     engine.text(*ratio), f"{goal}, {met}" if goal else "none"])
    return _table(["numbers", "answers", "at once", "engine, tokens/s", "ratio", "goal"], rows)


def trained_models(trained: Benchmark) -> str:
    """A Markdown table: the engine against the quicker `generate` on trained models, 64 answers at
    once and one, in each type of numbers that was measured."""
    rows = []
    for family, called in TRAINED.items():
        for dtype in sorted({arm for of, arm, _ in trained.facts if of == family}):
            for at_once, alone in ((64, ""), (1, " alone")):
                def text(quantity, way, alone=alone, of=(family, dtype)):
                    return trained.text(*of, f"{quantity}[variant={way}{alone}]")
                few = trained.fact(family, dtype, f"speedup_vs_generate[variant=engine few tokens"
                                                 f"{alone}]")["value"]
                rows.append([called, dtype, at_once, text("tokens_per_second", "engine few tokens"),
                             text("speedup_vs_generate", "engine"),
                             text("speedup_vs_generate", "engine few tokens"),
                             f"{GOAL_TRAINED}, {'not ' * (few < GOAL_TRAINED)}reached"])
    return _table(["model", "numbers", "at once", "engine over few tokens, tokens/s",
                   "ratio, all tokens", "ratio, few tokens", "goal"], rows)


def waits(waiting: Benchmark) -> str:
    """A Markdown table: what a reader waits for, in seconds, and the goal."""
    rows = []
    for variant, (says, goal) in WAITS.items():
        name = "book", "waiting", f"wait[variant={variant}]"
        met = "reached" if goal and waiting.fact(*name)["value"] < goal else "not reached"
        rows.append([says, waiting.text(*name), f"{goal}, {met}" if goal else "none"])
    return _table(["waiting for", "seconds", "goal, seconds"], rows)


def goals(engine: Benchmark) -> str:
    """A sentence: which goals of CASES the medians do not reach."""
    missed = [f"{dtype} at {ends}" for dtype, variant, ends, goal in CASES if goal and
              engine.fact("engine", dtype, f"speedup_vs_generate{variant}")["value"] < goal]
    return (f"**Not reached** are the goals for {' and for '.join(missed)}." if missed else
            "All goals are reached.")


def gpu(root: Path, engine: Benchmark, train: Benchmark) -> str:
    """Markdown: tables of what benchmarks/gpu.py measured, a card after the other, beside the CPU's
    figures for the lab's model. BadInput for a file of another form."""
    cards = {}
    for path in sorted(root.glob("results/gpu/*/*.json")):
        part = _read(path)
        if not part["tiny"] and part["card"] != "cpu":
            cards.setdefault(part["card"], {})[part["part"]] = part
    said = [] if cards else [NONE]
    for card, parts in cards.items():
        said.append(f"**{card}**")
        for name in (name for name in PARTS if name in parts):
            (title, heads), part = PARTS[name], parts[name]
            facts = [_beside(fact, engine, train) for fact in part["facts"]]
            cut = "" if part["complete"] else " It was stopped before its end."
            rates = [f" A copy moves {formats.number(fact['copy_gb_s'])} GB/s, a matrix product "
                     f"does {formats.number(fact['matmul_tflops'])} · 10¹² operations/s."
                     for fact in facts if "copy_gb_s" in fact]
            said += [f"*{title}*, {part['at']}, torch {part['torch']}.{cut}{''.join(rates)}",
                     _outcomes(facts) if name == "tests" else _table(heads.values(), (
                         [_cell(fact, key) for key in heads]
                         for fact in facts if "copy_gb_s" not in fact))]
    return "\n\n".join(said)


def _read(path):
    try:
        part = json.loads(plain_yaml.text(path))
        jsonschema.validate(part, _SCHEMA)
        json.dumps(part, allow_nan=False)  # ValueError for NaN and infinity
        for fact in part["facts"]:
            lacking = {*list(PARTS[part["part"]][1])[:2]} - {*fact}
            if lacking and not {"copy_gb_s", "matmul_tflops"} <= {*fact}:
                raise ValueError(f"a fact lacks {min(lacking)}")
    except (ValueError, RecursionError, jsonschema.ValidationError) as error:
        said = " ".join(getattr(error, "message", str(error)).split())[:200]
        raise errors.BadInput(f"{path} is not what benchmarks/gpu.py writes: {said}.") from None
    return part


def _beside(fact, engine, train):
    """A fact of a GPU with the CPU's figure of the same work, and with intervals as texts."""
    fact = dict(fact)
    if "tokens_a_step" in fact:
        fact["cpu"] = train.text("countdown", "base", "tokens_per_second")
    elif fact.get("shape") == "lab":
        variant = "batch1" if fact["batch"] == 1 else "fixed length"
        fact["cpu"] = engine.text("engine", "bfloat16", f"tokens_per_second[variant={variant}]")
    for key, ends in (("steered_over_base", "steered"), ("hybrid_over_sum", "hybrid")):
        if key in fact:
            fact[key] = formats.interval([fact[key], fact.get(f"{ends}_low"),
                                          fact.get(f"{ends}_high")])
    return fact


def _cell(fact, key):
    value = fact.get(key)
    if key.endswith("_tokens_per_s") and key.replace("tokens_per_s", "error") in fact:
        return "does not fit"
    if value is None or isinstance(value, str):
        return value or formats.MISSING
    if key.endswith("share_of_floor"):
        return formats.percent(value)
    return f"{value:,}" if isinstance(value, int) else formats.number(value)


def _outcomes(facts):
    counts = Counter(fact["outcome"] for fact in facts)
    bad = [f"`{fact['test']}`" for fact in facts if fact["outcome"] in ("failure", "error")]
    return (", ".join(f"{n} {outcome}" for outcome, n in counts.items()) +
            (f"; not passed: {', '.join(bad)}." if bad else "."))


def _table(heads, rows):
    heads, rows = list(heads), list(rows)
    rule = ["---:" if rows and str(rows[0][i])[:1] in "–0123456789" else "---"
            for i in range(len(heads))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, rule, *rows))
