"""Tokenizers and chat templates as other families have them: where a prompt ends, what ends an
answer, and how a conversation is put to a template that does not take it."""

import types

import pytest
import torch
from locksmith import chats, loading, tasks, vocabulary
from locksmith.errors import BadInput
from locksmith.experiments import chat_tools, places, tuning
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SUMS = tasks.load("sums")
PROBLEM = SUMS.problems("test", 1, 0, SUMS.GENERATOR)[0]
SPECIAL = ("<pad>", "<eos>", "<bos>", "<end_of_turn>", "<unk>", "<sep>")


def pieces(added=SPECIAL, around=None, chat=None, more=()):
    """A tokenizer of SentencePiece's kind: pieces with a mark for a space, bytes for the rest.

    around: what its post-processor writes, such as "<bos> $A <eos>".
    """
    letters = [chr(i) for i in range(33, 127) if chr(i) != "~"]
    vocab = dict.fromkeys([*added, *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters, *more])
    vocab = {token: i for i, token in enumerate(vocab)}
    core = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                            normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return finished(core, added, around, chat)


def letters(added=SPECIAL, around=None, chat=None, more=()):
    """A tokenizer of GPT-2's kind, over bytes; more: further tokens, which are merged whole."""
    vocab = {t: i for i, t in enumerate([*added, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = []
    for token in more:
        for k in range(2, len(token) + 1):
            if token[:k] not in vocab:
                vocab[token[:k]] = len(vocab)
                merges.append((token[:k - 1], token[k - 1]))
    core = Tokenizer(models.BPE(vocab, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return finished(core, added, around, chat)


def finished(core, added, around, chat):
    core.add_special_tokens(list(added))
    if around:
        core.post_processor = processors.TemplateProcessing(single=around, special_tokens=[
            (token, core.token_to_id(token)) for token in added if token in around])
    known = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")
             if f"<{name}>" in added}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **known)
    tokenizer.chat_template = chat
    return tokenizer


def tiny(tokenizer, **config):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4096,
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **config})).eval()


def model_of(tokenizer, **options):
    return loading.Model("tiny", tiny(tokenizer), tokenizer, frozenset({1}), **options)


def stops(folder, tokenizer, generation=None, chat=False, **config):
    """What ends an answer of a model that was saved and is loaded by its folder, as text."""
    net = tiny(tokenizer, **config)
    if generation is not None:
        net.generation_config.eos_token_id = generation
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loading.load(str(folder), chat=chat).stop


# --- where a prompt ends --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pieces, letters])
@pytest.mark.parametrize("around", ["$A <eos>", "<bos> $A <eos>", "<bos> $A <sep> <eos>",
                                    "$A <sep>", "<bos> <sep> $A", "<bos> $A"])
def test_a_prompt_has_nothing_behind_it(make, around):
    """`begin` is what the tokenizer puts first and then the text, whatever it puts behind."""
    model, plain = model_of(make(around=around)), model_of(make())
    for text in ("Q: a", "Q: a\n", "é", "ends in <eos>", "<bos>begins"):
        own = plain.tokenizer(text, add_special_tokens=False).input_ids
        first = [SPECIAL.index(token) for token in around.split("$A")[0].split()]
        assert model.begin(text) == first + own
        assert model.encode(text) == plain.encode(text) == (
            own[1:] if plain.tokenizer.convert_ids_to_tokens(own[0]) == "▁" else own)


@pytest.mark.parametrize("make", [pieces, letters])
def test_a_continuation_begins_as_it_is_written(make):
    """SentencePiece puts a space before every text; the middle of one has none there."""
    model = model_of(make(around="<bos> $A <eos>"))
    for text in ("Q: a b", "12-15\nIt is"):
        for cut in range(1, len(text)):
            joined = model.begin(text[:cut]) + model.encode(text[cut:])
            assert joined == model.begin(text) and model.decode(joined) == text
    first = places.opening_ids(model, tasks.load("sums"), "error")
    assert model.encode("That is right. Wait")[14] in first
    chat = model_of(make(chat=TURNS), chat=True)
    assert chat.converse(SAID[1:]) == chat.tokenizer(chats.text(chat.tokenizer, SAID[1:])).input_ids


def test_a_tokenizer_that_marks_every_text_does_not_mark_what_is_continued():
    """It ends, or begins and ends, texts even where it is asked for no special tokens."""
    inner = letters()
    for before, behind in (([], [1]), ([2], [1]), ([2], [])):
        class Marks:
            eos_token_id = 1

            def __call__(self, text, before=before, behind=behind, **how):
                ids = inner(text, add_special_tokens=False).input_ids
                return types.SimpleNamespace(input_ids=[*before, *ids, *behind])
        model = loading.Model("marks", None, Marks(), frozenset())
        own = inner("Q: a").input_ids
        assert model.encode("Q: a") == own and model.begin("Q: a")[-len(own):] == own


def test_what_text_is_worth_is_not_measured_on_the_tokenizers_own_end():
    """The mean loss on texts is that of their tokens, with <eos> behind them or not."""
    plain, ended = model_of(letters(around="<bos> $A")), model_of(letters(around="<bos> $A <eos>"))
    texts = ["Calculate 1 + 2.", "A film"]
    assert tuning.text_loss(plain, texts) == tuning.text_loss(ended, texts)


# --- what ends an answer --------------------------------------------------------------------------


def test_every_end_that_a_model_states_ends_an_answer(tmp_path):
    tokenizer = pieces()
    assert {1, 3} <= stops(tmp_path / "list", tokenizer, [1, 3])
    assert {1, 5} <= stops(tmp_path / "one", tokenizer, 5)
    assert {1, 3, 5} <= stops(tmp_path / "config", tokenizer, eos_token_id=[3, 5])
    folder = tmp_path / "config alone"
    assert 5 in stops(folder, tokenizer, eos_token_id=5)
    (folder / "generation_config.json").unlink()
    assert {1, 5} <= loading.load(str(folder)).stop
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert {1, 3, 5} <= loading.load(str(folder)).stop
    assert 999_999 not in stops(tmp_path / "beyond", tokenizer, [1, 999_999])


@pytest.mark.parametrize("name", [
    "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<|END_OF_TURN_TOKEN|>",
    "<|end_of_turn|>", "[|endofturn|]", "<|eom_id|>", "<end_of_utterance>", "[EOT]",
    "<|endoftext|>"])
def test_a_turns_end_is_known_by_its_name(tmp_path, name):
    tokenizer = letters(added=("<pad>", "<eos>", name))
    assert {1, 2} <= stops(tmp_path, tokenizer)
    assert stops(tmp_path, letters(added=("<pad>", "<eos>", "<tool>"))) == {1, *newlines(tmp_path)}


def newlines(folder):
    model = loading.load(str(folder))
    return {i for i in range(len(model.tokenizer)) if "\n" in model.tokenizer.decode([i])}


def test_a_turns_end_is_what_the_template_writes_behind_an_answer(tmp_path):
    """<turn|> has no name that is known, nor has <|user|>, which opens the next turn."""
    closing = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
               "{% if m.role == 'assistant' %}\n<turn|>\n{% endif %}{% endfor %}")
    added = ("<pad>", "<eos>", "<|user|>", "<|assistant|>", "<turn|>")
    assert stops(tmp_path, letters(added=added, chat=closing), chat=True) == {1, 4}
    opening = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    assert stops(tmp_path, letters(added=added, chat=opening), chat=True) == {1, 2}
    worded = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert stops(tmp_path, letters(added=added, chat=worded), chat=True) == {1}
    refused = "{{ raise_exception('never') }}"
    assert stops(tmp_path, letters(added=added, chat=refused), chat=True) == {1}


@pytest.mark.parametrize("make, more", [
    (pieces, ()), (pieces, ("\n", "\n\n", ".\n")), (letters, ()),
    (letters, ("Ċ", ".Ċ", "ĊĊ", "čĊ", ":ĊĊ"))])
def test_every_token_with_a_line_break_ends_a_plain_answer(tmp_path, make, more):
    tokenizer = make(more=more)
    found = stops(tmp_path, tokenizer)
    assert found - {1, 3} == newlines(tmp_path) and len(newlines(tmp_path)) >= max(1, len(more))
    assert tokenizer("a\n").input_ids[-1] in found
    assert not newlines(tmp_path) & stops(tmp_path, make(more=more, chat="{{ messages }}"),
                                          chat=True)


def test_a_latin_letter_is_no_line_break(tmp_path):
    """Ċ stands for a line break among bytes alone; in Maltese it is a letter."""
    tokenizer = pieces(more=("Ċ", "▁Ċ"))
    assert not set(tokenizer("Ċ", add_special_tokens=False).input_ids) & stops(tmp_path, tokenizer)


# --- chats ----------------------------------------------------------------------------------------

NO_SYSTEM = ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
             "{% endif %}")
ALTERNATE = ("{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
             "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}")
NO_TOOL = ("{% for m in messages %}{% if m.role not in ['user', 'assistant', 'system'] %}"
           "{{ raise_exception('unknown role') }}{% endif %}{% endfor %}")
TURNS = ("{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}")
DROPS = TURNS.replace("messages %}[", "messages if m.role != 'system' %}[")
SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
CALLED = [*SAID, {"role": "assistant", "content": "Hm."}, {"role": "tool", "content": "It is\n2."}]


@pytest.mark.parametrize("chat, messages, text", [
    (TURNS, SAID, "[system]Be brief.[/][user]1 + 1?[/][assistant]"),
    (NO_SYSTEM + TURNS, SAID, "[user]Be brief.\n\n1 + 1?[/][assistant]"),
    (DROPS, SAID, "[user]Be brief.\n\n1 + 1?[/][assistant]"),
    (ALTERNATE + TURNS, SAID, "[user]Be brief.\n\n1 + 1?[/][assistant]"),
    (NO_SYSTEM + TURNS, SAID[:1], "[user]Be brief.[/][assistant]"),
    (TURNS, CALLED, "[system]Be brief.[/][user]1 + 1?[/][assistant]Hm.[/][tool]It is\n2.[/]"
                    "[assistant]"),
    (NO_SYSTEM + TURNS, CALLED, "[user]Be brief.\n\n1 + 1?[/][assistant]Hm.[/][tool]It is\n2.[/]"
                                "[assistant]"),
    (ALTERNATE + TURNS, CALLED, "[user]Be brief.\n\n1 + 1?[/][assistant]Hm.[/][user]It is\n2.[/]"
                                "[assistant]"),
    (NO_TOOL + TURNS, CALLED, "[user]Be brief.\n\n1 + 1?[/][assistant]Hm.[/][user]It is\n2.[/]"
                              "[assistant]"),
    (ALTERNATE + TURNS, [SAID[1], SAID[1]], "[user]1 + 1?\n\n1 + 1?[/][assistant]"),
    # A tool's words may be quoted; they are there all the same.
    (TURNS.replace("m.content }}", "m.content | tojson if m.role == 'tool' else m.content }}"),
     CALLED, "[system]Be brief.[/][user]1 + 1?[/][assistant]Hm.[/][tool]\"It is\\n2.\"[/]"
             "[assistant]"),
    # What ends every text does not end one that is to be continued.
    (TURNS + "{{ eos_token }}", SAID, "[system]Be brief.[/][user]1 + 1?[/][assistant]"),
    (TURNS.replace("[/]", "{{ eos_token }}").replace("[assistant]", ""), SAID[1:],
     "[user]1 + 1?<eos>[assistant]"),
])
def test_a_conversation_is_put_as_the_template_takes_it(chat, messages, text):
    model, before = model_of(letters(around="<bos> $A <eos>", chat=chat)), [*map(dict, messages)]
    assert model.tokenizer.decode(model.converse(messages)) == text
    assert messages == before  # they are somebody's


@pytest.mark.parametrize("chat, said", [
    ("{{ raise_exception('never') }}", "system, user: never"),
    ("Hello", "system, user: it leaves out what they say"),
    ("{{ messages[0].content + 1 }}", "system, user: "),
    ("{{ 1 // 0 }}", "system, user: "),
    ("{{ '%(name)s'|format(role='user') }}", "system, user: "),
    ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
     "system, user: it leaves out"),
])
def test_a_template_that_takes_none_is_told_in_a_sentence(chat, said):
    with pytest.raises(BadInput, match="the chat template does not take turns of " + said) as told:
        chats.text(letters(chat=chat), SAID)
    assert "\n" not in str(told.value)


def test_tools_work_with_a_template_that_takes_users_and_answers_alone(tmp_path):
    tokenizer = letters(chat=ALTERNATE + TURNS)
    model = model_of(tokenizer, chat=True)
    problems = [PROBLEM, *SUMS.problems("test", 3, 0, SUMS.GENERATOR)[1:]]
    for schedule in chat_tools.SCHEDULES:
        works = chat_tools.solve(model, problems, schedule=schedule, max_new_tokens=4)
        assert all(work.messages[-1]["role"] == "assistant" for work in works)
    refusing = letters(chat="{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + TURNS)
    messages, schemas = chat_tools.tool_listing(refusing)
    assert messages[0]["role"] == "system" and schemas is None


# --- a task in words that the tokenizer does not have ---------------------------------------------


def test_a_model_without_the_words_of_a_task_is_refused():
    countdown = tasks.load("countdown")
    problem = countdown.Problem((3, 7, 9), (30, 60))
    foreign, whole = model_of(letters()), loading.load("toy")
    for chat in (False, True):
        foreign.chat = chat
        with pytest.raises(BadInput, match="model tiny cannot write '<bos>' of task countdown"):
            foreign.ask(countdown, problem)
    assert whole.decode(whole.ask(countdown, problem)) == countdown.prompt(problem)  # by its bytes
    own = loading.Model("lab/base", None, vocabulary.tokenizer(), frozenset(), special=True)
    assert own.decode(own.ask(countdown, problem)) == countdown.prompt(problem)
    with pytest.raises(BadInput, match="model lab/base cannot write '.*' of task sums, so that no"):
        own.ask(SUMS, PROBLEM)
