"""Conversations in a model's own chat template, whatever turns it takes: what stands before an
answer, and the token behind one."""

import re
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from locksmith.errors import BadInput

_ANSWER = "answer-5f1c"  # stands for an answer where a template is looked at


def text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict],
         tools: list[dict] | None = None) -> str:
    """A conversation as the chat template writes it, with the model's turn opened.

    What a template refuses, or leaves out, stands in the user's turns: first of system messages,
    then of tools too, with neighbouring turns of one role in one. BadInput where it takes neither.
    """
    for moved in ((), ("system",), ("system", "tool")):
        turns = _turns(messages, moved)
        try:
            found = _opened(tokenizer, turns, tools)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            said = str(error).partition("\n")[0]
            continue
        if all(_shows(found, turn) for turn in turns):
            return found
        said = "it leaves out what they say"
    roles = ", ".join(message["role"] for message in messages)
    raise BadInput(f"the chat template does not take turns of {roles}: {said}; allowed is a model "
                   "whose template does, or plain text.")


def _shows(text, turn):
    """Whether a turn stands in a text: a tool's perhaps quoted, an answer perhaps shortened."""
    if turn["role"] == "tool":
        return all(word in text for word in re.findall(r"\w+", turn["content"]))
    return turn["role"] == "assistant" or "".join(turn["content"].split()) in "".join(text.split())


def _turns(messages, moved):
    """Messages with the roles `moved` said by the user, and then neighbours of one role joined."""
    turns = []
    for message in messages:
        role = "user" if message["role"] in moved else message["role"]
        if moved and turns and turns[-1]["role"] == role:
            before = turns.pop()["content"]
            message = {**message, "content": f"{before}\n\n{message['content']}"}
        turns.append({**message, "role": role})
    return turns


def _opened(tokenizer, turns, tools=None):
    """What stands in a template before the model's next turn."""
    def written(turns, **how):
        return tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, **how)
    text, end = written(turns, add_generation_prompt=True), getattr(tokenizer, "eos_token", None)
    if end and text.rstrip().endswith(end):  # some end every text, also one to be continued
        before, found, _ = written([*turns, {"role": "assistant", "content": _ANSWER}]).partition(
            _ANSWER)
        text = before if found else text
    return text


def turn_end(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The added token that a chat template writes first behind an answer, if there is one."""
    if not tokenizer.chat_template:
        return set()
    said = [{"role": role, "content": x}
            for role, x in (("user", "a"), ("assistant", _ANSWER), ("user", "b"))]
    try:
        _, _, behind = text(tokenizer, said).partition(_ANSWER)
    except BadInput:  # a template that takes no such conversation shows nothing
        return set()
    first = tokenizer(behind.lstrip(), add_special_tokens=False).input_ids[:1]
    return set(first) & set(tokenizer.get_added_vocab().values())
