"""The closed vocabulary of facts: what can be measured, and under which conditions.

A fact's name is its quantity with what it was measured at in brackets, `pass_at_k[k=256]`; rules,
pages and metrics write it so. Without a condition it is the setting that counts: all test
problems, temperature 1, the strength and the threshold chosen on validation problems, the headline
behaviour of the family.
"""

import difflib
import re
from collections.abc import Iterable

from locksmith import errors

# condition -> (type, what it says)
CONDITIONS = {
    "k": (int, "samples of which one must be right"),
    "depth": (int, "steps a chain"),
    "position": (str, "where in a text: which attempt, which moment, how long before a place"),
    "behaviour": (str, "which behaviour, where it is not the family's headline behaviour"),
    "against": (str, "arm that it is compared with"),
    "on": (str, "model that is steered, read or handed the arm"),
    "step": (int, "how far into training: of a base model in tokens, after that in RL steps"),
    "strength": (float, "of steering, in units of the vector or shares of the stream's norm"),
    "temperature": (float, "at which was sampled"),
    "learning_rate": (float, "of the training"),
    "examples": (int, "solved problems shown or trained on"),
    "variant": (str, "what else is special: a word, a tool, a kind of text or of vector"),
}

QUANTITIES = {
    # outcome
    "pass_at_k": "share of problems with a right answer among k samples",
    "trace_pass_at_k": "share of problems with a sound trace among k samples",
    "gain": "accuracy minus the base's, or minus that of the arm it is against",
    "gap_recovered": "share of the gap between base and thinking model",
    "gap_difference": "share of the gap minus that of the arm it is against, paired",
    "gain_when": "part of the gain that comes from taking the strategy more often",
    "gain_how": "part of the gain that comes from taking it better",
    "strategy_share": "share of answers that take the strategy",
    "accuracy_change": "accuracy minus that without steering",
    "accuracy_minus_thinking": "accuracy on validation problems minus the thinking model's",
    "training_accuracy": "share of right rollouts in the last steps of RL",
    "training_loss": "nats a token at the end of pre-training",
    # skill and deployment
    "valid_attempts": "share of attempts that are valid",
    "correct_checks": "share of checks whose value and verdict are true",
    "attempts": "attempts a problem, or a document",
    "checks": "checks a problem",
    "backtracks": "backtracks a problem, or a document",
    "truncated": "share of answers that did not end by themselves",
    "right_verdicts": "share of reviews with the right verdict",
    # what the models read
    "decision_share": "share of tokens that open a behaviour",
    "several_attempts": "share of documents with more than one attempt",
    "failed_checks": "failed checks a document",
    "hand_overs": "changes of author a document",
    "words_per_document": "words a document",
    "words_95": "words that 95 % of documents do not exceed",
    # cost
    "tokens_per_answer": "tokens generated for an answer",
    "calls_per_answer": "calls of the model for an answer",
    "tokens_change": "tokens an answer minus those without steering",
    "log10_flops": "power of ten of the operations spent once",
    "steered_share": "share of tokens chosen at a steered position",
    # two models side by side
    "cell_both": "share of problems that both solve",
    "cell_base_only": "share of problems that the base alone solves",
    "cell_thinking_only": "share of problems that the thinking model alone solves",
    "cell_thinking_only_resampled": "the same after many more samples of the base",
    "cell_neither": "share of problems that neither solves",
    "trace_cell_both": "share of problems with a sound trace by both",
    "trace_cell_base_only": "share of problems with a sound trace by the base alone",
    "trace_cell_thinking_only": "share of problems with a sound trace by the thinking model alone",
    "trace_cell_neither": "share of problems with a sound trace by neither",
    "crossing_k": "samples at which the base overtakes the thinking model",
    "trace_crossing_k": "the same, counting sound traces",
    "large_k_lead": "the base's pass@k at the largest k minus the thinking model's pass@1",
    "trace_large_k_lead": "the same, counting sound traces",
    "trace_matches": "share of traces found word for word among the base's samples",
    "behaviour_sequence_matches": "share of behaviour sequences found among the base's samples",
    "logprob_per_token": "log-probability under the base, nats a token",
    "logprob_difference": "log-probability under the base minus that of the real trace, nats",
    "likeliest_token_share": "share of tokens that the base held likeliest",
    "expected_base_samples": "base samples among which one such trace is expected, median",
    "entropy": "of the next token, nats",
    "matched_temperature": "temperature at which the entropies are equal",
    "acceptance": "share of power sampling's moves that were accepted",
    "moved": "share of power sampling's moves that changed the trace",
    # directions
    "probe_auroc": "area under the ROC curve of a probe for a behaviour or an error",
    "correctness_auroc": "area under the ROC curve of a probe for a right answer",
    "calibration_error": "mean distance of the probe's probability from the share right",
    "cosine": "between two models' vectors of a behaviour",
    "vector_length": "of the behaviour's vector, as a share of the stream's norm",
    "behaviour_rate": "share of steps that are the behaviour, unsteered",
    "behaviour_slope": "change of the behaviour's share or probability a unit of strength",
    "free_rate": "share of sentences that are the behaviour in text written freely",
    "change_after_error": "probability that the behaviour opens after an error minus after none",
    "stable_share": "share of places from which nearly all continuations show the behaviour",
    # speed
    "hybrid_cost_ratio": "seconds a token of the hybrid over those of both models alone",
    "speedup_vs_hooks": "against the same hybrid by forward hooks",
    "speedup_vs_nnsight": "against the same hybrid by nnsight",
    "tokens_per_second": "of generation or training",
    "speedup_vs_generate": "against transformers' generate",
    "speedup_vs_autocast": "against a step under autocast",
    "speedup_vs_trl": "against a step of TRL",
    "gemm_teraflops": "operations a second of a square product, 10^12",
    "shape_teraflops": "operations a second of a product in the model's shape, 10^12",
    "share_of_gemm_peak": "share of the square product's speed",
    "share_of_shape_peak": "share of the speed in the model's shape",
}


NEEDS = {"pass_at_k": "k", "trace_pass_at_k": "k"}  # a condition without which it says nothing


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


def typed(of: str, conditions: dict) -> dict:
    """The conditions of a quantity or an arm, each as its type; BadInput for an unknown one."""
    for key in conditions:
        if key not in CONDITIONS:
            raise errors.BadInput(unknown("Condition", key, CONDITIONS))
    try:
        return {key: CONDITIONS[key][0](value) for key, value in conditions.items()}
    except ValueError as error:
        raise errors.BadInput(f"{of}: a condition has the wrong type: {error}.") from None


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One sentence that names what is unknown and the known names nearest to it."""
    near = difflib.get_close_matches(given, known, 3, 0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}."
    return f"{what} {given!r} is unknown{hint}"


def plain(value: object) -> str:
    """A condition's value as names and tables write it: 256, 0.3, 5e-05, thinking."""
    return f"{value:g}" if isinstance(value, float) else str(value)
