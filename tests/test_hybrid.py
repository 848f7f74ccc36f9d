"""Reading along and hybrid decoding, against plain forward passes, enumeration and a model whose
answer to steering is known by construction."""

import gc
import math
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from locksmith import cache, drawing, engine, errors, loading, params, tasks, vocabulary
from locksmith.engine import Control, Moment, Steer, sample
from locksmith.experiments import hybrid, taxonomy
from scipy.stats import binomtest, chisquare
from sklearn.linear_model import LogisticRegression
from test_engine import PROMPTS, D, V, gemma3, gpt_neox, llama, plain_logits, plain_steered, qwen2
from transformers import LlamaConfig, LlamaForCausalLM

STOP = {2, *range(27, 36)}
TABLE = torch.full((V,), -1)
TABLE[[5, 9, 12]], TABLE[[7, 20]] = 0, 1  # words that open steps of two categories
TELL = taxonomy.Openings(TABLE)


def made(build, seed):
    torch.manual_seed(seed)
    return build().eval()


@pytest.fixture
def base():
    return made(llama, 0)


@pytest.fixture
def thinking():
    return made(llama, 1)


class Recorder:
    """A logits processor that changes nothing and writes down what it sees."""

    def __init__(self):
        self.seen = []

    def __call__(self, logits, moment):
        self.seen.append((logits, moment))
        return logits

    def rows(self, what):
        """row -> what(logits, moment) of that row at each step."""
        out = {}
        for logits, moment in self.seen:
            for i, row in enumerate(moment.rows.tolist()):
                out.setdefault(row, []).append(what(logits, moment)[i])
        return out


def moment_of(logits, u=None, tokens=None, hidden=None, **change):
    """A Moment with q = 1 whose guides have these logits (or pairs of logits and hidden)."""
    guides = [x if isinstance(x, tuple) else (x, None) for x in logits]
    n = len(guides[0][0]) if guides else len(u)
    u = torch.full((n,), 0.5, dtype=torch.float64) if u is None else u
    tokens = torch.zeros(n, 1, dtype=torch.int64) if tokens is None else tokens
    return Moment(**(dict(layer=0, rows=torch.arange(n), tokens=tokens, hidden=hidden, u=u,
                          positions=torch.zeros(n, 1, dtype=torch.int64), guides=guides,
                          prompt_lengths=torch.ones(n, dtype=torch.int64)) | change))


# --- reading along --------------------------------------------------------------------------------

@pytest.mark.parametrize("look_every", [1, 8])
@pytest.mark.parametrize("build", [llama, qwen2, gemma3, gpt_neox], ids=lambda f: f.__name__)
def test_companions_equal_their_plain_forward(build, look_every, monkeypatch):
    """Unequal prompts, several batches, rows that end early, a steered base that also reads along
    with itself: every guide's logits and stream are those of a forward of its own."""
    monkeypatch.setattr(engine, "LOOK_EVERY", {"cpu": look_every})
    steered, other, recorder = made(build, 0), made(llama, 1), Recorder()
    vector = 3 * torch.randn(D, generator=torch.Generator().manual_seed(2))
    out = sample(steered, PROMPTS, 3, max_new_tokens=14, stop=STOP, seed=5, batch_size=7,
                 control=Control([Steer(1, vector)], [(other, 1), steered, (steered, 2)],
                                 recorder))
    assert len(set(out.lengths.tolist())) > 3
    logits = [recorder.rows(lambda _, m, i=i: m.guides[i][0]) for i in range(3)]
    stream = [recorder.rows(lambda _, m, i=i: m.guides[i][1]) for i in (0, 2)]
    for row, ids in enumerate(out.ids()):
        prompt = PROMPTS[out.prompt[row]]
        for model, layer, got, hidden in ((other, 1, logits[0], stream[0]),
                                          (steered, 2, logits[1], stream[1]),
                                          (steered, 2, logits[2], stream[1])):
            streams, want = plain_steered(model, prompt + ids[:-1], [])
            n = len(ids)
            assert torch.allclose(torch.stack(got[row][:n]), want[-n:], atol=1e-4)
            assert torch.allclose(torch.stack(hidden[row][:n]), streams[layer, -n:], atol=1e-4)


@pytest.mark.parametrize("prompts", [PROMPTS, [[1], [3]], [[1], [1, 4, 5]]], ids=str)
def test_who_reads_along_changes_nothing(base, thinking, prompts):
    how = dict(max_new_tokens=14, stop=STOP, seed=3)
    control = Control([Steer(0, torch.ones(D), positions=[0, 2, 5])], read=[1])
    alone = sample(base, prompts, 4, **how, control=control)
    both = sample(base, prompts, 4, **how, control=replace(control, guides=[thinking],
                                                           logits_processor=Recorder()))
    assert alone.ids() == both.ids()
    assert torch.allclose(alone.logprobs, both.logprobs, atol=1e-5)
    assert torch.allclose(alone.reads[1], both.reads[1], atol=1e-5)
    assert torch.equal(alone.steered_at, both.steered_at) and alone.steered == both.steered
    thinking.train()
    sample(base, prompts, max_new_tokens=2, stop=(), control=Control(guides=[thinking]))
    assert thinking.training and not base.training


def test_a_logits_processor_sees_tokens_and_the_numbers_behind_them(base, thinking):
    recorder = Recorder()
    out = sample(base, PROMPTS, 3, max_new_tokens=9, stop=STOP, seed=5, keys=[4, 5, 6, 7],
                 control=Control(guides=[thinking], logits_processor=recorder))
    seen = recorder.rows(lambda _, m: list(zip(m.tokens.tolist(), m.u.tolist(), strict=True)))
    for row, ids in enumerate(out.ids()):
        prompt = PROMPTS[out.prompt[row]]
        for step, (past, u) in enumerate(seen[row][:len(ids)]):
            assert [*prompt, *ids[:step]] == past[len(past) - len(prompt) - step:]
            place = len(prompt) + step
            assert u == drawing.uniforms(5, 4 + int(out.prompt[row]), int(out.sample[row]), place)


def test_without_guides_a_logits_processor_works_too(base):
    """Prefill shared, q = width at the first step: the processor still gets one row a rollout."""
    def only_even(logits, moment):
        assert len(logits) == len(moment.rows) == len(moment.tokens) == len(moment.positions)
        return logits.masked_fill(torch.arange(V) % 2 == 1, -torch.inf)
    out = sample(base, PROMPTS, 3, max_new_tokens=9, stop=STOP,
                 control=Control(logits_processor=only_even))
    assert (out.tokens % 2 == 0).all()


@pytest.mark.parametrize("build", [llama, gemma3], ids=lambda f: f.__name__)
def test_no_circle_of_references_keeps_a_cache(build, monkeypatch):
    made_runners, runner = [], cache.runner

    def kept(*how):
        out = runner(*how)
        made_runners.append(weakref.ref(out))
        return out
    monkeypatch.setattr(cache, "runner", kept)
    gc.disable()
    try:
        sample(made(build, 0), PROMPTS, max_new_tokens=3, stop=(),
               control=Control([Steer(1, torch.ones(D))], [(made(llama, 1), 1)]))
        assert len(made_runners) == 2 and not any(ref() for ref in made_runners)
    finally:
        gc.enable()


# --- several vectors and a gate -------------------------------------------------------------------

@pytest.mark.parametrize("build", [llama, gemma3], ids=lambda f: f.__name__)
def test_steered_positions_are_the_oracles_and_the_logits_a_plain_forwards(build, thinking):
    """The hybrid's log-probabilities are those of a cache-free forward with the vectors of the
    thinking model's own draws added by hand; counted = intended, at the last positions only."""
    model, vectors = made(build, 0), torch.randn(2, D, generator=torch.Generator().manual_seed(3))
    gate = hybrid.Gate(hybrid.Oracle(TELL), 2, strength=1.5)
    out = sample(model, PROMPTS, 10, max_new_tokens=14, stop=STOP, seed=5,
                 control=Control([Steer(1, vectors, gate=gate)], [thinking]))
    which = gate.table(out.tokens)
    assert which.max() == 1 and out.steered > 10
    n_intended = 0
    for row, ids in enumerate(out.ids()):
        prompt, adds = PROMPTS[out.prompt[row]], []
        guide_logits = plain_logits(thinking, prompt + ids[:-1])[-len(ids):]
        u = drawing.uniforms(5, int(out.prompt[row]), int(out.sample[row]),
                            len(prompt) + torch.arange(len(ids)))
        for step, token in enumerate(hybrid.draw(guide_logits, u).tolist()):
            category = TABLE[token].item()
            assert which[row, step] == category
            assert out.steered_at[row, step] == (category >= 0)
            if category >= 0:
                adds.append((1, len(prompt) - 1 + step, 1.5 * vectors[category]))
        _, logits = plain_steered(model, prompt + ids[:-1], adds)
        want = logits.log_softmax(-1)[-len(ids):][range(len(ids)), ids]
        assert torch.allclose(out.logprobs[row, :len(ids)], want, atol=1e-4)
        n_intended += len(adds)
    assert out.steered == n_intended


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_vectors_change_no_logit_bit(base, thinking, dtype):
    seen = []
    for vectors in (None, torch.zeros(3, D)):
        recorder = Recorder()
        steer = () if vectors is None else [
            Steer(1, vectors, gate=hybrid.Gate(hybrid.Always(1), 3, 2.0))]
        sample(base.to(dtype), PROMPTS, 3, max_new_tokens=9, stop=STOP,
               control=Control(steer, [thinking.to(dtype)], recorder))
        seen.append([logits for logits, _ in recorder.seen])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_gates_of_prompts_only_reach_the_last_position(base):
    """A gate without guides is called with the whole prompt, and steers its last token only."""
    gate = hybrid.Gate(hybrid.Always(0), 1)
    out = sample(base, PROMPTS, 2, max_new_tokens=6, stop=STOP,
                 control=Control([Steer(1, torch.ones(1, D), gate=gate)]))
    assert out.steered == int(out.lengths.sum()) == int(out.steered_at.sum())


def test_the_coefficient_network_sets_all_strengths(base, thinking):
    """Against steering with the network's sum of vectors by a gate of one vector at a time."""
    net = torch.nn.Sequential(torch.nn.Linear(D, 2), torch.nn.Softplus()).requires_grad_(False)
    vectors = torch.randn(2, D, generator=torch.Generator().manual_seed(3))
    gate = hybrid.Gate(hybrid.Oracle(TELL), 2, 0.5, net)
    how = dict(max_new_tokens=9, stop=STOP)
    out = sample(base, PROMPTS, 4, **how,
                 control=Control([Steer(1, vectors, gate=gate)], [thinking]))
    # Before either is added both must read the same stream: the first gate keeps it.
    kept = {}

    def one(k):
        def gate(moment):
            hidden = kept.setdefault("hidden", moment.hidden) if k == 0 else kept.pop("hidden")
            on = hybrid.Oracle(TELL)(moment) >= 0
            return 0.5 * (net(hidden[:, -1])[:, k] * on)[:, None]
        return Steer(1, vectors[k], gate=gate)
    same = sample(base, PROMPTS, 4, control=Control([one(0), one(1)], [thinking]), **how)
    assert out.ids() == same.ids() and same.steered == 2 * out.steered > 0
    assert torch.allclose(out.logprobs, same.logprobs, atol=1e-5)


# --- a model with a known answer ------------------------------------------------------------------

LAST, WAIT = 5, 6  # ordinary words count 0 1 2 3 4 5 0 1 ...; WAIT opens a step


def clockwork(after_last):
    """Two layers that write nothing; direction 7 of the residual stream is WAIT and nothing else.

    A word's embedding is a unit vector, its follower's head row the same times 9; `after_last` is
    what the head says after the word LAST. WAIT is followed by 0.
    """
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=64, tie_word_embeddings=False))
    eye = torch.eye(8)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(eye[:7])
        head = torch.zeros(7, 8)
        for word in range(7):
            follower = {LAST: after_last, WAIT: 0}.get(word, word + 1)
            head[follower, word] = 9.0
        head[WAIT, 7] += 9.0
        model.lm_head.weight.copy_(head)
    return model.eval()


@pytest.mark.parametrize("layer", [0, 1])
def test_dose_response_is_exact(layer):
    """p(WAIT) after the word 1 at each strength s: h = e1 + s e7, logits 9 h / rms."""
    model, recorder = clockwork(0), Recorder()
    direction = torch.eye(8)[7]
    for s in (-2.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0):
        gate = hybrid.Gate(hybrid.Always(0), 1, s)
        sample(model, [[0, 1]], max_new_tokens=1, stop=(), control=Control(
            [Steer(layer, direction[None], gate=gate)], logits_processor=recorder))
        rms = math.sqrt((1 + s * s) / 8)
        wait, two = math.exp(9 * s / rms), math.exp(9 / rms)
        got = recorder.seen[-1][0].softmax(-1)[0, WAIT].item()
        assert got == pytest.approx(wait / (wait + two + 5), rel=1e-4)


def test_the_gate_fires_where_it_must_and_the_hybrid_is_the_thinking_model():
    base, thinking = clockwork(0), clockwork(WAIT)
    table = torch.full((7,), -1)
    table[WAIT] = 0
    gate = hybrid.Gate(hybrid.Oracle(taxonomy.Openings(table)), 1, strength=4.0)
    how = dict(max_new_tokens=20, stop=(), seed=1)
    out = sample(base, [[0], [4, 5], [2, 3, 4]], 2, **how,
                 control=Control([Steer(0, torch.eye(8)[7:], gate=gate)], [thinking]))
    assert out.ids() == sample(thinking, [[0], [4, 5], [2, 3, 4]], 2, **how).ids()
    assert out.ids() != sample(base, [[0], [4, 5], [2, 3, 4]], 2, **how).ids()
    assert torch.equal(out.steered_at, out.tokens == WAIT)
    assert out.steered == int((out.tokens == WAIT).sum()) == 2 * (3 + 3 + 3)


# --- who decides, who executes --------------------------------------------------------------------

DECISION, INSIDE = torch.zeros(V, dtype=torch.bool), torch.zeros(V, dtype=torch.bool)
DECISION[[2, 5, 6, 7, 30, 31]], INSIDE[[5, 6]] = True, True  # "5 6 7" is an opening of three words


def by_definition(decides, executes, last):
    """The swap's distribution (V,) of probabilities, token by token."""
    p_d, p_e = decides.double().softmax(-1), executes.double().softmax(-1)
    if INSIDE[last]:
        return p_d
    left = 1 - p_d[DECISION].sum()
    return torch.stack([p_d[t] if DECISION[t] else left * p_e[t] / p_e[~DECISION].sum()
                        for t in range(V)])


def test_the_swap_of_a_model_with_itself_is_its_own_distribution(base):
    """All 40 + 40 x 40 continuations of two tokens."""
    process = hybrid.swap(taxonomy.Decisions(True, DECISION, INSIDE))
    tails = [[], *([t] for t in range(V))]
    logits = torch.stack([plain_logits(base, PROMPTS[0] + tail)[-1] for tail in tails])
    past = torch.tensor([(PROMPTS[0] + tail)[-1:] for tail in tails])
    mixed = process(logits, moment_of([logits], tokens=past))
    assert torch.allclose(mixed.softmax(-1), logits.softmax(-1), atol=1e-7)
    own, how = sample(base, PROMPTS, 8, max_new_tokens=14, stop=STOP), dict(stop=STOP)
    both = sample(base, PROMPTS, 8, max_new_tokens=14, **how,
                  control=Control(guides=[base], logits_processor=process))
    assert own.ids() == both.ids() and torch.allclose(own.logprobs, both.logprobs, atol=1e-5)


def test_the_swap_of_two_models_is_its_definition(base, thinking):
    process = hybrid.swap(taxonomy.Decisions(True, DECISION, INSIDE))
    forced = [[1, 5], [1, 5, 6], [1, 5, 6, 7], [1, 9, 8]]  # inside, inside, behind, outside
    out = sample(base, forced, 30, max_new_tokens=6, stop=STOP, control=Control(
        guides=[thinking], logits_processor=process))
    for row, ids in enumerate(out.ids()):
        text = forced[out.prompt[row]] + ids
        d, e = (plain_logits(m, text[:-1])[-len(ids):] for m in (thinking, base))
        for step, token in enumerate(ids):
            p = by_definition(d[step], e[step], text[len(text) - len(ids) + step - 1])
            assert p.sum().item() == pytest.approx(1, abs=1e-9)
            assert out.logprobs[row, step].item() == pytest.approx(p[token].log().item(), abs=1e-4)


def test_in_words_the_decider_writes_what_follows_an_end_and_the_executor_the_rest(base, thinking):
    """Whole sentences of one model after a first token of the other: nothing else is a decision."""
    ends = torch.zeros(V, dtype=torch.bool)
    ends[[8, 9]] = True
    process = hybrid.swap(taxonomy.Decisions(False, torch.zeros(V, dtype=torch.bool), ends))
    out = sample(base, PROMPTS, 20, max_new_tokens=8, stop=(), control=Control(
        guides=[thinking], logits_processor=process))
    decided = 0
    for row, ids in enumerate(out.ids()):
        text = PROMPTS[out.prompt[row]] + ids
        for step, token in enumerate(ids):
            first = step == 0 or ends[ids[step - 1]]
            p = plain_logits(thinking if first else base, text[:len(text) - len(ids) + step])[-1]
            want = p.log_softmax(-1)[token].item()
            assert out.logprobs[row, step].item() == pytest.approx(want, abs=1e-4)
            decided += first and step > 0
    assert decided > 3


class Told:
    """The lab's openings with a script of three steps."""
    OPENINGS = tasks.load("chain").OPENINGS

    @staticmethod
    def script(problem, text):
        return ["try", "try", "so", "<eos>"][sum(text.split().count(x) for x in ("try", "so"))]


def test_where_openings_tell_the_script_says_which_and_the_model_when():
    """Every opening is the script's; between them the tokens are the model's own draws."""
    model = Built().load("base")
    processor = hybrid.Script(model, Told, ["a"] * 40)
    recorder, prompt = Recorder(), vocabulary.encode(["<bos>", "find", "3", ":"])

    def process(logits, moment):
        recorder(logits.clone(), moment)
        return processor(logits, moment)
    out = sample(model.net, [prompt] * 20, 2, max_new_tokens=60, stop=vocabulary.STOP,
                 keys=range(20), control=Control(logits_processor=process))
    own, ended = recorder.rows(lambda logits, m: hybrid.draw(logits, m.u)), 0
    decision = taxonomy.decisions(model, Told).decision
    for row, ids in enumerate(out.ids()):
        opened = [x for x in vocabulary.decode(ids) if x in ("try", "so", "<eos>", "next")]
        assert opened == ["try", "try", "so", "<eos>"][:len(opened)]
        ended += opened[-1:] == ["<eos>"]
        for token, drawn in zip(ids, own[row]):
            assert decision[token] if decision[drawn] else token == drawn
    assert ended > 3


def test_in_words_the_script_opens_every_sentence_and_the_model_executes(monkeypatch):
    """sums over bytes: the first term, then the last number written, then the conclusion; what is
    between is drawn from the model without line ends."""
    monkeypatch.setattr(loading.device, "pick", lambda: (torch.device("cpu"), torch.float32))
    pair = loading.Pair("toy", "sums", 0, base="toy", thinking="toy/thinking")
    model, problems = pair.load("base"), pair.problems(8)
    run = hybrid.run(pair, {0: hybrid.Intervention(decides=hybrid.SCRIPT)}, 8, 1, 40)[0]
    ends = taxonomy.decisions(model, pair.rules).owned
    sentences = 0
    for problem, (ids,) in zip(problems, run.ids):
        assert model.decode(ids).startswith(f" {problem.question.split()[1]}")
        starts = [i for i in range(len(ids)) if i and ends[ids[i - 1]]]
        for i in starts:
            said = pair.rules.script(problem, model.decode(ids[:i]))
            assert model.decode(ids[i:i + len(said)]) == said[:len(ids) - i]
        opened = {j for i in [0, *starts] for j in range(i, i + 9)}
        assert not any(x in model.stop for j, x in enumerate(ids) if j not in opened)
        sentences += len(starts)
    assert sentences > 3


# --- ceiling and reranking ------------------------------------------------------------------------

def test_with_every_token_put_in_the_ceiling_is_the_thinking_model(base, thinking):
    gate = hybrid.Gate(hybrid.Always(0), 1)
    how = dict(max_new_tokens=20, stop=STOP, seed=9)
    out = sample(base, PROMPTS, 6, control=Control(
        [Steer(1, torch.randn(1, D), gate=gate)], [thinking], hybrid.ceiling(gate)), **how)
    want = sample(thinking, PROMPTS, 6, **how)
    assert out.ids() == want.ids() != sample(base, PROMPTS, 6, **how).ids()
    assert torch.allclose(out.logprobs, want.logprobs, atol=1e-5)
    assert out.steered == int(out.lengths.sum())


def test_the_ceiling_puts_tokens_in_where_the_gate_fires_and_nowhere_else(base, thinking):
    gate, recorder = hybrid.Gate(hybrid.Oracle(TELL), 2), Recorder()

    def process(logits, moment):
        recorder(logits, moment)
        return hybrid.ceiling(gate)(logits, moment)
    out = sample(base, PROMPTS, 6, max_new_tokens=20, stop=STOP, control=Control(
        [Steer(1, torch.zeros(2, D), gate=gate)], [thinking], process))
    which = gate.table(out.tokens)
    own = recorder.rows(lambda logits, m: hybrid.draw(logits, m.u))
    for row, ids in enumerate(out.ids()):
        for step, token in enumerate(ids):
            category = which[row, step].item()
            assert TABLE[token] == category if category >= 0 else token == own[row][step]
    assert (which >= 0).any()


def test_the_leak_takes_the_thinking_models_favourite_of_m():
    """P(the favourite among 3 draws is the r-th best) = F(r)^3 - F(r - 1)^3, F the tail sums of the
    steered distribution in the thinking model's order."""
    n, m = 20_000, 3
    steered, theirs = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    u = drawing.uniforms(0, torch.arange(n), 0, 0)
    moment = moment_of([theirs.expand(n, 6)], u)
    gate = hybrid.Gate(hybrid.Always(0), 1)
    gate.which = torch.where(torch.arange(n) % 5 > 0, 0, -1)
    mixed = hybrid.rerank(gate, m)(steered.expand(n, 6), moment)
    off = gate.which < 0
    assert torch.equal(mixed[off], steered.expand(n, 6)[off])
    drawn = hybrid.draw(mixed, u)[~off]
    worst_first = theirs.argsort()
    below = steered.double().softmax(-1)[worst_first].cumsum(0)
    want = below**m - torch.cat([torch.zeros(1), below[:-1]])**m
    count = torch.bincount(drawn, minlength=6)[worst_first]
    assert chisquare(count, want / want.sum() * len(drawn)).pvalue > 0.001


# --- choosers -------------------------------------------------------------------------------------

def says(*words):
    """Logits (R, V) that leave no other word than these."""
    return torch.nn.functional.one_hot(torch.tensor(words), V).float() * 100


def test_oracle_and_disagreement():
    moment = moment_of([says(5, 7, 9, 3, 3), says(5, 3, 7, 5, 4)])
    assert hybrid.Oracle(TELL)(moment).tolist() == [0, 1, 0, -1, -1]
    assert hybrid.Disagreement(TELL)(moment).tolist() == [-1, 1, 0, -1, -1]
    # Another word of the same category is no disagreement.
    assert hybrid.Disagreement(TELL)(moment_of([says(5), says(12)])).tolist() == [-1]


def test_equal_distributions_never_disagree(base):
    """The same number is behind both draws, so two copies of a model always say the same."""
    gate = hybrid.Gate(hybrid.Disagreement(TELL), 2)
    out = sample(base, PROMPTS, 8, max_new_tokens=14, stop=STOP,
                 control=Control([Steer(1, torch.ones(2, D), gate=gate)], [base, base]))
    assert out.steered == 0


def test_where_no_opening_tells_another_token_is_a_disagreement():
    """The category is the strongest latent of the thinking model's stream, whatever the token; the
    oracle asks for it where a step begins: at the first token, and behind an end."""
    ends = torch.zeros(V, dtype=torch.bool)
    ends[6] = True
    tell = taxonomy.Latents(torch.zeros(3), taxonomy.Autoencoder(3, 3, 1, 0), 1,
                            taxonomy.Decisions(False, torch.zeros(V, dtype=torch.bool), ends))
    with torch.no_grad():
        tell.autoencoder.encoder.copy_(torch.eye(3))
    hidden = torch.eye(3)[[2, 0, 1, 2]] * 5
    how = dict(tokens=torch.tensor([[6], [1], [6], [1]]),
               prompt_lengths=torch.tensor([9, 9, 9, 1]))
    moment = moment_of([(says(5, 5, 7, 3), hidden), says(5, 9, 3, 3)], **how)
    assert hybrid.Disagreement(tell)(moment).tolist() == [-1, 0, 1, -1]
    assert hybrid.Oracle(tell)(moment).tolist() == [2, -1, 1, 2]
    assert hybrid.Disagreement(tell).layer == hybrid.Oracle(tell).layer == 1


def test_probe_is_the_logistic_regression_of_scikit_learn():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3] + 0.5 * torch.randn(300, 3, generator=torch.Generator().manual_seed(1))).argmax(1)
    fit = LogisticRegression().fit(x, y)
    weight, intercept = (torch.tensor(a, dtype=torch.float32)
                         for a in (fit.coef_, fit.intercept_))
    hidden = torch.stack([torch.full_like(x, 9), x], 1)  # (R, q = 2, D): the last one counts
    got = hybrid.Probe(weight, intercept, 0.6)(moment_of([], hidden=hidden, u=x[:, 0].double()))
    p = fit.predict_proba(x)
    want = [int(row[:2].argmax()) if row[:2].max() > 0.6 else -1 for row in p]
    assert got.tolist() == want and len(set(want)) == 3


def test_random_positions_and_categories_have_their_rates_and_know_nothing_of_the_draw():
    n = 40_000
    u = drawing.uniforms(0, torch.arange(n), 0, 0)
    which = hybrid.RandomPositions(0.1, [1, 2, 5])(moment_of([], u))
    fired = which >= 0
    assert binomtest(int(fired.sum()), n, 0.1).pvalue > 0.001
    counts = torch.bincount(which[fired])
    assert chisquare(counts, int(fired.sum()) * torch.tensor([1, 2, 5]) / 8).pvalue > 0.001
    assert abs(torch.corrcoef(torch.stack([u, fired.double()]))[0, 1]) < 0.02
    assert torch.equal(which, hybrid.RandomPositions(0.1, [1, 2, 5])(moment_of([], u)))


def test_other_category_keeps_the_time_and_changes_the_category():
    u = drawing.uniforms(0, torch.arange(9000), 0, 0)
    first = torch.arange(9000) % 4 - 1
    which = hybrid.OtherCategory(lambda moment: first, 3)(moment_of([], u))
    assert torch.equal(which >= 0, first >= 0) and not (which == first)[first >= 0].any()
    for k in range(3):
        counts = torch.bincount(which[first == k], minlength=3)
        assert chisquare([c for i, c in enumerate(counts.tolist()) if i != k]).pvalue > 0.001


def test_bits_handed_over():
    which = torch.tensor([-1] * 12 + [0, 0, 1, 1]).numpy()
    entropy = -(0.75 * math.log2(0.75) + 2 * 0.125 * math.log2(0.125))
    assert hybrid.handed_over(which) == pytest.approx(entropy / 0.25)
    assert hybrid.handed_over(which[:12]) == 0


def test_logit_push_is_the_direction_that_raises_a_categorys_words_most(base):
    push, rows = hybrid.logit_push(base, TABLE, 3), base.lm_head.weight
    assert push.shape == (3, D) and torch.allclose(push.norm(dim=-1), torch.tensor([1.0, 1, 0]))
    others = torch.nn.functional.normalize(
        torch.randn(200, D, generator=torch.Generator().manual_seed(0)), dim=-1)
    for k in range(2):
        raised = (rows[TABLE == k] @ torch.cat([push[k:k + 1], others]).T).mean(0)
        assert raised.argmax() == 0


# --- one arm --------------------------------------------------------------------------------------

class Built:
    """Tiny random models of the lab's vocabulary and chain problems, as a `loading.Pair`."""
    seed, rules = 0, tasks.load("chain")

    def __init__(self):
        self.models = {name: loading.Model(name, made(lambda: LlamaForCausalLM(LlamaConfig(
            vocab_size=len(vocabulary.VOCABULARY), hidden_size=16, intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
            initializer_range=0.4, pad_token_id=0)), i), vocabulary.tokenizer(),
            frozenset(vocabulary.STOP), special=True)
            for i, name in enumerate(("base", "thinking"))}

    def load(self, role):
        return self.models[role]

    def problems(self, n, split):
        return self.rules.problems(split, n, 0, params.load("smoke")["families"]["chain"])


@pytest.fixture(scope="module")
def answer():
    pair = Built()
    return lambda **how: hybrid.run(pair, {0: hybrid.Intervention(**how)}, 6, 2, 30)[0]


KINDS = taxonomy.Openings(taxonomy.by_kind(Built().load("base"), Built.rules))
ZERO, RANDOM = torch.zeros(4, 16), torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
ORACLE = dict(gate=hybrid.Oracle(KINDS), layer=0)
GATES = {"oracle": ORACLE["gate"], "disagreement": hybrid.Disagreement(KINDS),
         "other": hybrid.OtherCategory(hybrid.Disagreement(KINDS), 4),
         "probe": hybrid.Probe(torch.randn(5, 16), torch.zeros(5), 0.2),
         "random": hybrid.RandomPositions(0.2, [1.0] * 4), "always": hybrid.Always(2)}


def test_arms_are_paired_and_counted(answer):
    plain, zero = answer(), answer(vectors=ZERO, **ORACLE)
    assert plain.ids == zero.ids and plain.n_steered == 0 and plain.bits == 0
    assert answer(decides="base").ids == plain.ids != answer(decides="thinking").ids
    assert answer(vectors=ZERO + 1, strength=0.0, **ORACLE).n_steered == 0
    fired = sum(k >= 0 for row in zero.which for ids in row for k in ids)
    assert zero.n_steered == fired > 0 and zero.bits > 0
    rows = zero.frame()
    for p in range(6):
        ids = zero.ids[p]
        assert [len(x) for x in ids] == zero.tokens[p].tolist() == [len(x) for x in zero.which[p]]
        steered = sum(k >= 0 for x in zero.which[p] for k in x)
        assert zero.steered[p] == steered == rows["steered"][p]
        assert rows["drawn"][p] == 2 * rows["tokens"][p] == sum(map(len, ids))
        assert rows["truncated"][p] == sum(x[-1] not in vocabulary.STOP for x in ids) / 2
        grades = [Built.rules.grade(Built().problems(6, "test")[p],
                                    " ".join(vocabulary.decode(x))) for x in ids]
        assert rows["attempts"][p] == sum(g.attempts for g in grades)
        assert rows["correct"][p] == sum(g.correct for g in grades) / 2
    assert pickle.loads(pickle.dumps(zero)).ids == zero.ids


@pytest.mark.parametrize("gate, processor", [
    *((gate, None) for gate in GATES), ("oracle", hybrid.ceiling), ("oracle", hybrid.rerank)])
def test_every_gate_and_processor_runs_and_counts(answer, gate, processor):
    arm = dict(gate=GATES[gate], vectors=RANDOM + 1, layer=0, strength=2.0, processor=processor)
    travelled = pickle.loads(pickle.dumps(hybrid.Intervention(**arm)))  # to another process
    assert travelled.strength == 2.0
    run = answer(**arm)
    fired = sum(k >= 0 for row in run.which for ids in row for k in ids)
    assert run.n_steered == fired > 0 and run.ids != answer().ids
    assert (run.bits > 0) == (gate not in ("probe", "random", "always"))


def test_in_words_the_hybrid_is_a_plain_forward_with_the_vectors_added(monkeypatch):
    """A toy pair over bytes: where it steers, which vector, and the text, by definition."""
    monkeypatch.setattr(loading.device, "pick", lambda: (torch.device("cpu"), torch.float32))
    pair = loading.Pair("toy", "sums", 3, base="toy", thinking="toy/thinking")
    base, thinking = pair.load("base"), pair.load("thinking")
    tell = taxonomy.Latents(torch.zeros(32), taxonomy.Autoencoder(32, 3, 1, 0), 0,
                            taxonomy.decisions(base, pair.rules))
    vectors = 3 * torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    arm = hybrid.Intervention(gate=hybrid.Disagreement(tell), vectors=vectors, layer=1,
                              strength=0.5)
    run = hybrid.run(pair, {0: arm}, 2, 1, 20)[0]
    for i, problem in enumerate(pair.problems(2)):
        prompt, ids = base.ask(pair.rules, problem), run.ids[i][0]
        text, adds = [*prompt, *ids[:-1]], []
        u = drawing.uniforms(3, i, 0, len(prompt) + torch.arange(len(ids)))
        streams, theirs = plain_steered(thinking.net, text, [])
        own = hybrid.draw(plain_logits(base.net, text)[-len(ids):], u)
        theirs = hybrid.draw(theirs[-len(ids):], u)
        for step, hidden in enumerate(streams[0, -len(ids):]):
            scores = tell.autoencoder.encoder @ (hidden / hidden.norm())
            k = int(scores.argmax()) if own[step] != theirs[step] else -1
            assert run.which[i][0][step] == k
            adds += [(1, len(prompt) - 1 + step, 0.5 * vectors[k])] if k >= 0 else []
        _, logits = plain_steered(base.net, text, adds)
        assert hybrid.draw(logits[-len(ids):], u).tolist() == ids and adds


@pytest.mark.parametrize("how, sentence", [
    (dict(gate=ORACLE["gate"], vectors=ZERO), "layer None; allowed is a gate with vectors and"),
    (dict(vectors=ZERO), "gate is None and layer None; allowed is a gate with vectors"),
    (dict(processor=hybrid.ceiling), "gate is None, decides None and processor"),
    (dict(ORACLE, vectors=ZERO, decides="thinking"), "decides 'thinking' and processor None")])
def test_bad_arms_are_one_sentence(how, sentence):
    with pytest.raises(errors.BadInput, match=sentence):
        hybrid.Intervention(**how)
