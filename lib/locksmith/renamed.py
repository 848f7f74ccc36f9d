"""Names that facts had before arms.yml, as they are called now.

Chapters 1, 3, 4 and 5 still record the old ones; this file goes with the last of them.
"""

import re

import seaborn as sns

MODELS = {
    "RL": "thinking", "twin after RL": "twin-after-rl", "RL, same budget": "rl-same-budget",
    "RL on one problem": "rl-one-problem",
    "RL, higher rate": "rl-higher-rate", "corpus": "corpus-of-base",
    "corpus of the base": "corpus-of-base", "corpus of the twin": "corpus-of-twin",
    "leak": "reranking", "leak alone": "reranking-alone", "low_temperature": "low-temperature",
    "embeddings alone": "embeddings", "base, own forecast": "own-forecast",
    "knows the author": "author", "other problem": "other-problem",
    "none": "no-tools", "model": "tools-offered", "listed": "tools-listed", "fixed": "tools-fixed",
    "dummy": "dummy-notes", "vote": "matched-vote",
}
QUANTITIES = {
    "thinking_trace_logprob_per_token": "logprob_per_token",
    "logprob_against_thinking_trace": "logprob_difference",
    "honest_checks": "correct_checks", "temperature": "matched_temperature",
    "persists": "strategy_share",
    "works_out": "strategy_share", "failed checks": "failed_checks", "hand-overs": "hand_overs",
    "several attempts": "several_attempts", "words": "words_per_document",
    "95 % have at most": "words_95",
    "key AUROC": "probe_auroc", "key cosine to final": "cosine", "key length": "vector_length",
    "key rate": "behaviour_rate", "key slope": "behaviour_slope",
}


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def renamed(model: str, quantity: str, low_temperature: str) -> tuple[str, str, dict]:
    """(model, quantity, conditions) of a fact under its old names."""
    model, of_model = _model(model, quantity)
    quantity, of_quantity = _quantity(quantity, low_temperature)
    if "model" in of_quantity:
        of_quantity["on"], model = model, of_quantity.pop("model")
    if quantity == "behaviour_slope" and "step" in of_model:
        of_model["on"], model = model, "own-vector"
    if quantity == "cosine" and "step" in of_model:
        of_model["against"] = "base"
    if quantity == "behaviour_slope" and model == "noise":
        of_model.setdefault("on", "thinking")
    return model, quantity, of_model | of_quantity


def _model(name, quantity):
    patterns = (
        (r"(base|thinking) at (\d+) (?:tokens|RL steps)", lambda m, n: (m, {"step": int(n)})),
        (r"temperature ([\d.]+)", lambda t: ("low-temperature", {"temperature": float(t)})),
        (r"few-shot (\d+)", lambda n: ("few-shot", {"examples": int(n)})),
        (r"SFT on (\d+)", lambda n: ("sft-solved", {"examples": int(n)})),
        (r"(.*), rate ([\d.e-]+)", lambda m, r: (slug(m), {"learning_rate": float(r)})),
        (r"prefix (\w+)", lambda w: ("prefix", {"variant": w})),
        (r"(understand|recall|examine|backtrack) alone",
         lambda t: ("cognitive-tools", {"variant": t})),
        (r"(examine), (backtrack)", lambda a, b: ("cognitive-tools", {"variant": f"{a}+{b}"})),
        (r"last vector, (.*) only", lambda p: ("last-vector-rl", {"position": p})),
        (r"(base), split halves", lambda m: (m, {"against": m, "variant": "halves"})),
        (r"(.*) vs (\w+)(?:, (point|crossed halves)(?: vector)?)?", lambda a, b, form: (
            slug(a), {"against": b} | ({"variant": form.split()[-1]} if form else {}))),
        (r"noise(?: \d)? vector in (\w+)", lambda on: ("noise", {"on": on})),
        (r"none vector in (\w+)", lambda on: ("unsteered", {"on": on})),
        (r"stable base vector in (\w+)", lambda on: ("stable-vector", {"on": on})),
        (r"(.*) in (\w+)", lambda m, on: (slug(m), {"on": on})),
    )
    if name in MODELS:
        of = {"on": "base"} if name in ("embeddings alone", "base, own forecast") else {}
        return MODELS[name], of
    if name == "shuffled labels":
        return "shuffled-labels", {"on": "base"}
    for pattern, build in patterns:
        if match := re.fullmatch(pattern, name):
            return build(*match.groups())
    return slug(name), {}


def _quantity(name, low_temperature):
    cool = {"k": 1, "temperature": low_temperature}
    moments = "answer, unchecked|answer|first attempt|last attempt|prompt|step"
    patterns = (
        (r"(trace_)?pass@(\d+)( \(middle problem\))?(?: depth (\d))?", lambda t, k, middle, depth: (
            f"{t or ''}pass_at_k", {"k": int(k)} | ({"variant": "middle problem"} if middle else {})
            | ({"depth": int(depth)} if depth else {}))),
        (r"greedy_accuracy", lambda: ("pass_at_k", {"k": 1, "temperature": 0.0})),
        (r"low_temperature_accuracy|pass@1_low_temperature", lambda: ("pass_at_k", cool)),
        (r"gap_recovered_low_temperature",
         lambda: ("gap_recovered", {"temperature": low_temperature})),
        (r"gain_over_vote", lambda: ("gain", {"against": "matched-vote"})),
        (r"(attempts|valid_attempts) depth (\d)", lambda q, d: (q, {"depth": int(d)})),
        (r"valid_attempts position (.*)", lambda p: ("valid_attempts", {"position": p})),
        (rf"(correctness_auroc|calibration_error) ({moments})", lambda q, p: (
            q, {"position": p.replace(",", "")})),
        (r"(probe_auroc|behaviour_slope) (\d+) to (\d+) tokens before", lambda q, a, b: (
            q, {"position": f"{a}-{b} tokens before".replace("0-0", "0")})),
        (r"behaviour_slope everywhere", lambda: ("behaviour_slope", {"position": "everywhere"})),
        (r"behaviour_slope documents", lambda: ("behaviour_slope", {"variant": "documents"})),
        (r"behaviour_slope P\((\w+)\)", lambda b: ("behaviour_slope", {"behaviour": b})),
        (r"P\((\w+)\) after an error minus after none", lambda b: (
            "change_after_error", {"behaviour": b})),
        (r"free rate (\w+) at ([\d.]+)", lambda b, s: (
            "free_rate", {"behaviour": b, "strength": float(s)})),
        (r"(accuracy_change|tokens_change) at (-?[\d.]+)", lambda q, s: (
            q, {"strength": float(s)})),
        (r"probe_auroc (embeddings|shuffled) (\w+)", lambda w, b: (
            "probe_auroc", {"model": {"shuffled": "shuffled-labels"}.get(w, w), "behaviour": b})),
        (r"probe_auroc(?: (check|wait|error|carry))?(?: (point documents|choice traces))?",
         lambda b, v: ("probe_auroc", ({"behaviour": b} if b else {})
                       | ({"variant": v.split()[v.startswith("choice")]} if v else {}))),
        (r"stable_share (documents|traces)(?: (\w+))?", lambda v, b: (
            "stable_share", {"variant": v} | ({"behaviour": b} if b else {}))),
        (r"(behaviour_slope|cosine) (\w+)", lambda q, b: (q, {"behaviour": b})),
        (r"(tokens_per_second|speedup_vs_\w+?)_(batch1|fixed_length|ours)", lambda q, v: (
            q, {"variant": v.replace("_", " ")})),
    )
    for pattern, build in patterns:
        if match := re.fullmatch(pattern, name):
            quantity, of = build(*match.groups())
            return quantity, dict(of)
    return QUANTITIES.get(name, name), {}


PALETTE = sns.color_palette("colorblind")
GREY = (0.45, 0.45, 0.45)
# name -> (colour, line style)
LOOKS = {
    "base": (PALETTE[0], "-"),
    "thinking": (PALETTE[3], "-"),
    "guess": (GREY, ":"),
    "entropy-matched thinking": (PALETTE[1], "--"),
    "greedy": (PALETTE[7], "-"),
    "low_temperature": (PALETTE[9], "--"),
    "majority": (PALETTE[2], "-."),
    "best_of_n": (PALETTE[8], "--"),
    "cot_decoding": (PALETTE[4], "-."),
    "power_sampling": (PALETTE[1], "-"),
    "thinking traces": (PALETTE[3], "-"),
    "shuffled traces": (GREY, "--"),
    "corrupted traces": (PALETTE[5], ":"),
    "hybrid": (PALETTE[2], "-"),
    "oracle": (PALETTE[2], ":"),
    "probe": (PALETTE[9], "-"),
    "network": (PALETTE[9], "--"),
    "difference of means": (PALETTE[9], ":"),
    "ceiling": (PALETTE[3], "--"),
    "leak": (PALETTE[1], "-"),
    "leak alone": (PALETTE[1], ":"),
    "bias only": (PALETTE[4], "-"),
    "one vector": (PALETTE[4], "--"),
    "other category": (PALETTE[6], "-"),
    "random vectors": (GREY, "-"),
    "random positions": (GREY, "--"),
    "twin vectors": (PALETTE[5], "-"),
    "untrained vectors": (PALETTE[5], "--"),
    "unrelated vectors": (PALETTE[5], "-."),
    "true kinds": (PALETTE[2], "--"),
    "twin vectors, true kinds": (PALETTE[5], ":"),
    "logit push": (PALETTE[7], "-."),
    # Chapter 4: which model is read, whose vector steers.
    "twin": (PALETTE[2], "-"),
    "untrained": (GREY, "--"),
    "distilled": (PALETTE[1], "-"),
    "taught": (PALETTE[4], "-"),
    "base vector": (PALETTE[0], "-"),
    "thinking vector": (PALETTE[3], "--"),
    "own vector": (PALETTE[2], "-."),
    "base point vector": (PALETTE[9], "-"),
    "wrong behaviour": (PALETTE[8], "-."),
    "wrong point vector": (PALETTE[5], ":"),
    "noise": (GREY, ":"),
    "correctness": (PALETTE[0], "-"),
    "backtracking": (PALETTE[0], "-"),
    "uncertainty": (PALETTE[4], "-"),
    "error": (PALETTE[3], "--"),
    # Chapter 3: what was trained on.
    "critiques": (PALETTE[2], "-"),
    "flipped critiques": (PALETTE[4], "-"),
    "shuffled critiques": (PALETTE[4], "--"),
    "format only": (GREY, "-"),
    "noisy critiques": (PALETTE[4], ":"),
    "own critiques": (PALETTE[9], "-"),
    "many critiques": (PALETTE[2], "--"),
    "SFT right": (PALETTE[1], "-"),
    "SFT wrong": (PALETTE[1], ":"),
    "RL on one problem": (PALETTE[3], "--"),
    "RL, same budget": (PALETTE[3], "-."),
    "format reward": (PALETTE[5], "-"),
    "random reward": (PALETTE[5], "--"),
    "entropy alone": (PALETTE[5], ":"),
    "gain by when": (PALETTE[0], "-"),
    "gain by how": (PALETTE[1], "-"),
}
