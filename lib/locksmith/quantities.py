"""The closed vocabulary of facts: what can be measured, and under which conditions.

A fact's name is its quantity with what it was measured at in brackets, `pass_at_k[k=256]`; rules,
pages and metrics write it so. Without a condition it is the setting that counts: all test
problems, temperature 1, the strength and the threshold chosen on validation problems, the headline
behaviour of the family.
"""

import difflib
import math
import re
from collections.abc import Iterable

from locksmith import errors

# What a value may be, both ends included.
ANY = (-math.inf, math.inf)
POSITIVE = (0, math.inf)
SHARE = (0, 1)
CHANGE = (-1, 1)  # of a share

# condition -> (type, range of a number, what it says)
CONDITIONS = {
    "k": (int, (1, math.inf), "samples of which one must be right"),
    "depth": (int, (1, math.inf), "steps a chain"),
    "position": (str, None, "where in a text: which attempt or moment, how long before a place"),
    "behaviour": (str, None, "which behaviour, where it is not the family's headline behaviour"),
    "against": (str, None, "arm that it is compared with"),
    "on": (str, None, "model that is steered, read or handed the arm"),
    "step": (int, POSITIVE, "how far into training: a base model in tokens, after that RL steps"),
    "strength": (float, ANY, "of steering, in units of the vector or shares of the stream's norm"),
    "temperature": (float, POSITIVE, "at which was sampled"),
    "learning_rate": (float, POSITIVE, "of the training"),
    "examples": (int, POSITIVE, "solved problems shown or trained on"),
    "variant": (str, None, "what else is special: a word, a tool, a kind of text or of vector"),
    "exposure": (float, SHARE, "how often pre-training showed the behaviour where it could have"),
    "pretraining": (float, SHARE, "share of pre-training that the base had had"),
}

QUANTITIES = {  # name -> (range, what it says)
    # outcome
    "pass_at_k": (SHARE, "share of problems with a right answer among k samples"),
    "trace_pass_at_k": (SHARE, "share of problems with a sound trace among k samples"),
    "gain": (CHANGE, "accuracy minus the base's, or minus that of the arm it is against"),
    "gap_recovered": (ANY, "share of the gap between base and thinking model"),
    "gap_difference": (ANY, "share of the gap minus that of the arm it is against, paired"),
    "gain_when": (CHANGE, "part of the gain that comes from taking the strategy more often"),
    "gain_how": (CHANGE, "part of the gain that comes from carrying it out better"),
    "gain_lead": (CHANGE, "gain minus that of the arm it is against, paired"),
    "gain_share": (ANY, "gain as a share of RL's where pre-training showed the behaviour in full"),
    "gain_slope": (ANY, "what each tenfold of exposure adds to gain_share"),
    "trace_gain": (CHANGE, "share of answers with a sound trace minus the base's"),
    "trace_gain_share": (ANY, "the same as a share of RL's where pre-training showed all"),
    "strategy_share": (SHARE, "share of answers that take the strategy"),
    "accuracy_change": (CHANGE, "accuracy minus that without steering"),
    "accuracy_minus_thinking": (CHANGE,
                                "accuracy on validation problems minus the thinking model's"),
    "training_accuracy": (SHARE, "share of right rollouts in the last steps of RL"),
    "late_gain": (CHANGE,
                  "training accuracy in the last fifth of RL's steps minus the fifth before"),
    "training_loss": (POSITIVE, "nats a token at the end of pre-training"),
    # skill and deployment
    "valid_attempts": (SHARE, "share of attempts that are valid"),
    "valid_attempts_change": (CHANGE, "share of attempts that are valid minus the base's, paired"),
    "correct_checks": (SHARE, "share of checks whose value and verdict are true"),
    "attempts": (POSITIVE, "attempts a problem, or a document"),
    "checks": (POSITIVE, "checks a problem"),
    "backtracks": (POSITIVE, "backtracks a problem, or a document"),
    "truncated": (SHARE, "share of answers that did not end by themselves"),
    "unread_share": (SHARE, "share of answers with the behaviour that the exposure is of"),
    "unread_change": (CHANGE, "the same minus the base's, paired"),
    "invented_share": (SHARE, "share of answers that get without it what it is for"),
    "invented_change": (CHANGE, "the same minus the base's, paired"),
    "contrast_share": (SHARE, "share of groups of RL's size that hold right and wrong answers"),
    "right_verdicts": (SHARE, "share of reviews with the right verdict"),
    "verdicts_over_constant": (CHANGE,
                               "share of right verdicts minus that of always giving the commoner"),
    "attempt_hits": (SHARE, "share of attempts that reach what they seek"),
    "went_on": (SHARE, "share of places where one could stop too early at which it goes on"),
    "kl": (POSITIVE, "KL divergence of the thinking model from the base, nats a token"),
    "kl_per_answer": (POSITIVE, "the same, nats an answer"),
    "entropy_change": (ANY, "the thinking model's entropy minus the base's, nats an answer"),
    # what the models read
    "decision_share": (SHARE, "share of tokens that open a behaviour"),
    "several_attempts": (SHARE, "share of documents with more than one attempt"),
    "failed_checks": (POSITIVE, "failed checks a document"),
    "hand_overs": (POSITIVE, "changes of author a document"),
    "words_per_document": (POSITIVE, "words a document"),
    "words_95": (POSITIVE, "words that 95 % of documents do not exceed"),
    # cost
    "tokens_per_answer": (POSITIVE, "tokens generated for an answer"),
    "calls_per_answer": (POSITIVE, "calls of the model for an answer"),
    "tokens_change": (ANY, "tokens an answer minus those without steering"),
    "log10_flops": (POSITIVE, "power of ten of the operations spent once"),
    "gate_bits": (POSITIVE, "bits that a gate hands over from the thinking model for an answer"),
    "answer_bits": (POSITIVE, "bits that an answer holds, by the chance that a guess is right"),
    "steered_share": (SHARE, "share of tokens chosen at a steered position"),
    # two models side by side
    "cell_both": (SHARE, "share of problems that both solve"),
    "cell_base_only": (SHARE, "share of problems that the base alone solves"),
    "cell_thinking_only": (SHARE, "share of problems that the thinking model alone solves"),
    "cell_thinking_only_resampled": (SHARE, "the same after many more samples of the base"),
    "solved_alone": (SHARE, "share of problems that an arm solves, and neither many samples of the "
                            "base nor fine-tuning on the same problems"),
    "cell_neither": (SHARE, "share of problems that neither solves"),
    "trace_cell_both": (SHARE, "share of problems with a sound trace by both"),
    "trace_cell_base_only": (SHARE, "share of problems with a sound trace by the base alone"),
    "trace_cell_thinking_only": (SHARE,
                                 "share of problems with a sound trace by the thinking model only"),
    "trace_cell_neither": (SHARE, "share of problems with a sound trace by neither"),
    "crossing_k": ((1, math.inf), "samples at which the base overtakes the thinking model"),
    "trace_crossing_k": ((1, math.inf), "the same, counting sound traces"),
    "large_k_lead": (CHANGE,
                     "the base's pass@k at the largest k minus the thinking model's pass@1"),
    "trace_large_k_lead": (CHANGE, "the same, counting sound traces"),
    "trace_matches": (SHARE, "share of traces found word for word among the base's samples"),
    "behaviour_sequence_matches": (SHARE,
                                   "share of behaviour sequences found among the base's samples"),
    "logprob_per_token": ((-math.inf, 0), "log-probability under the base, nats a token"),
    "logprob_difference": (ANY,
                           "log-probability under the base minus that of the real trace, nats"),
    "logprob_lead": (ANY, "log-probability a token under the base minus that of the traces it is "
                          "against, of the same problem, nats"),
    "likeliest_token_share": (SHARE, "share of tokens that the base held likeliest"),
    "expected_base_samples": (POSITIVE,
                              "base samples among which one such trace is expected, median"),
    "entropy": (POSITIVE, "of the next token, nats"),
    "matched_temperature": (POSITIVE, "temperature at which the entropies are equal"),
    "acceptance": (SHARE, "share of power sampling's moves that were accepted"),
    "moved": (SHARE, "share of power sampling's moves that changed the trace"),
    # directions
    "probe_auroc": (SHARE, "area under the ROC curve of a probe for a behaviour or an error"),
    "auroc_difference": (CHANGE, "the probe's area minus that of the arm it is against, paired"),
    "decodable_share": (ANY, "the probe's area above one half as a share of the ceiling's"),
    "correctness_auroc": (SHARE, "area under the ROC curve of a probe for a right answer"),
    "calibration_error": (SHARE, "mean distance of the probe's probability from the share right"),
    "cosine": (CHANGE, "between two models' vectors of a behaviour"),
    "corrected_cosine": (ANY, "the same across halves of the problems, over the cosines within"),
    "vector_length": (POSITIVE, "of the behaviour's vector, as a share of the stream's norm"),
    "behaviour_rate": (SHARE, "share of steps that are the behaviour, unsteered"),
    "behaviour_slope": (ANY, "change of the behaviour's share or probability a unit of strength"),
    "slope_difference": (ANY, "the slope minus that of the arm it is against, paired"),
    "free_rate": (SHARE, "share of sentences that are the behaviour in text written freely"),
    "change_after_error": (CHANGE,
                           "probability that the behaviour opens after an error minus after none"),
    "stable_share": (SHARE,
                     "share of places from which nearly all continuations show the behaviour"),
    # speed
    "hybrid_cost_ratio": (POSITIVE,
                          "seconds a token of the hybrid over those of both models alone"),
    "speedup_vs_hooks": (POSITIVE, "against the same hybrid by forward hooks"),
    "speedup_vs_nnsight": (POSITIVE, "against the same hybrid by nnsight"),
    "tokens_per_second": (POSITIVE, "of generation or training"),
    "speedup_vs_generate": (POSITIVE, "against transformers' generate"),
    "speedup_vs_autocast": (POSITIVE, "against a step under autocast"),
    "speedup_vs_trl": (POSITIVE, "against a step of TRL"),
    "seconds": (POSITIVE, "CPU seconds of a part of a training step"),
    "wait": (POSITIVE, "seconds by the clock until a command has ended"),
    "peak_gib": (POSITIVE, "most memory that a process held, 2^30 bytes"),
    "left_out": (SHARE, "probability on tokens that a model over few of them lacks"),
    "gemm_teraflops": (POSITIVE, "operations a second of a square product, 10^12"),
    "shape_teraflops": (POSITIVE, "operations a second of a product in the model's shape, 10^12"),
    "share_of_gemm_peak": ((0, 2), "share of the square product's speed"),
    "share_of_shape_peak": ((0, 2), "share of the speed in the model's shape"),
}


NEEDS = {"pass_at_k": "k", "trace_pass_at_k": "k"}  # a condition without which it says nothing
# Means over problems and seeds, and differences of two: they lie in their intervals. A ratio, a
# median, a norm or a cosine need not, as what is not linear shifts.
MEANS = {"pass_at_k", "trace_pass_at_k", "gain", "trace_gain", "strategy_share", "accuracy_change",
         "accuracy_minus_thinking", "right_verdicts", "large_k_lead", "trace_large_k_lead",
         *(name for name in QUANTITIES if name.startswith(("cell_", "trace_cell_")))}
SLACK = 1e-6  # of float32: a cosine of 1 may come out above it


def name(quantity: str, conditions: dict) -> str:
    """`pass_at_k[k=256, temperature=0.3]`: the quantity, its conditions in CONDITIONS' order."""
    told = [f"{key}={plain(conditions[key])}" for key in CONDITIONS if key in conditions]
    return f"{quantity}[{', '.join(told)}]" if told else quantity


def split(text: str) -> tuple[str, dict]:
    """What stands before the brackets, a quantity or an arm, and the conditions within them.

    BadInput in one sentence where the text is not of that form or a condition is unknown.
    """
    match = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?", text)
    if match is None:
        raise errors.BadInput(f"{text!r} is no name; written is quantity[key=value, ...].")
    pairs = [part.partition("=")[::2] for part in match[2].split(", ")] if match[2] else []
    return match[1], typed(match[1], dict(pairs))


def parse(text: str) -> tuple[str, dict]:
    """The quantity and the conditions of a fact's name; BadInput as of `split` and `check`."""
    quantity, conditions = split(text)
    return quantity, check(quantity, conditions)


def check(quantity: str, conditions: dict) -> dict:
    """The conditions, each as its type; BadInput where one, or the quantity, is unknown."""
    if quantity not in QUANTITIES:
        raise errors.BadInput(unknown("Quantity", quantity, QUANTITIES))
    return typed(quantity, conditions)


def complete(quantity: str, conditions: dict) -> None:
    """Raises BadInput where a condition is missing without which a fact says nothing."""
    needed = NEEDS.get(quantity)
    if needed and needed not in conditions:
        raise errors.BadInput(f"Quantity {quantity} is given without {needed}; allowed is "
                              f"{quantity}[{needed}=1] and the like.")


def within(quantity: str, value: float, low: float | None = None,
           high: float | None = None) -> None:
    """Raises BadInput where a value or an end of its interval is none that the quantity can have,
    or where the three are not in order; low and high are both None without an interval."""
    (least, most), slack = QUANTITIES[quantity][0], SLACK * max(1, abs(value))
    for key, x in (("value", value), ("low", low), ("high", high)):
        if x is not None and not (math.isfinite(x) and least - SLACK <= x <= most + SLACK):
            raise errors.BadInput(f"{key} is {x!r}; allowed is {_told(least, most)}.")
    if (low is None) != (high is None) or (low is not None and low > high):
        raise errors.BadInput(f"low is {low} and high {high}; allowed are the two ends of an "
                              "interval in this order, or None for both.")
    if low is not None and quantity in MEANS and not low - slack <= value <= high + slack:
        raise errors.BadInput(f"value is {value}, outside its interval, {low} to {high}.")


def cut(quantity: str, *ends: float | None) -> list[float | None]:
    """Ends of an interval, cut at what the quantity can be: they may reach beyond it."""
    least, most = QUANTITIES[quantity][0]
    return [None if x is None else min(max(x, least), most) for x in ends]


def _told(least, most):
    ends = [f"at least {least:g}"] * math.isfinite(least) + [f"at most {most:g}"] * math.isfinite(
        most)
    return " ".join(["a finite number", *[" and ".join(ends)] * bool(ends)])


def typed(of: str, conditions: dict) -> dict:
    """The conditions of a quantity or an arm, each as its type; BadInput for an unknown one, or a
    value that it cannot have."""
    for key in conditions:
        if key not in CONDITIONS:
            raise errors.BadInput(unknown("Condition", key, CONDITIONS))
    return {key: _typed(of, key, value) for key, value in conditions.items()}


def _typed(of, key, value):
    """A condition as its type: also from a name, where all is text, and from NumPy or a column of
    a table, where whole numbers have a fraction of 0."""
    kind, allowed, _ = CONDITIONS[key]
    right = isinstance(value, (str, int, float)) or hasattr(value, "item")
    try:
        found = kind(value) if right and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        found = None
    if found is not None and kind is not str and (
            not math.isfinite(found) or not allowed[0] <= found <= allowed[1]
            or (not isinstance(value, str) and found != value)):
        found = None
    if found in (None, ""):
        what = {int: "a whole number", float: "a number", str: "a word or more"}[kind]
        least = f" of at least {allowed[0]}" if allowed and math.isfinite(allowed[0]) else ""
        raise errors.BadInput(f"{of}: condition {key} is {value!r}; allowed is {what}{least}.")
    return found


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One sentence that names what is unknown and the known names nearest to it."""
    near = difflib.get_close_matches(given, known, 3, 0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}."
    return f"{what} {given!r} is unknown{hint}"


def plain(value: object) -> str:
    """A condition's value as names and tables write it: 256, 0.3, 5e-05, thinking."""
    return f"{value:g}" if isinstance(value, float) else str(value)
