from collections import Counter

import numpy as np
import pytest
import torch
from locksmith import decoding
from locksmith.engine import Rollouts, sample
from transformers import LlamaConfig, LlamaForCausalLM

BOS, EOS, LONGEST, ALPHA = 0, 3, 4, 2.5


@pytest.fixture(scope="module")
def model():
    """A random model of 4 tokens. Of 60 seeds this one has a p^alpha far from low temperature and
    spread over several sequences, about half of them stopped, so that a wrong sampler shows."""
    torch.manual_seed(15)
    config = LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
        initializer_range=0.35, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def next_logprobs(model, ids, temperature=1.0):
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    return (logits / temperature).log_softmax(-1).numpy()


def states(model, prompt, horizon, alpha=ALPHA):
    """Every sequence that stops within the horizon or reaches it: [(ids, log p, log q)]."""
    found = []

    def grow(ids, log_p, log_q):
        if len(ids) == horizon or (ids and ids[-1] == EOS):
            found.append((tuple(ids), np.array(log_p), np.array(log_q)))
            return
        p = next_logprobs(model, prompt + ids)
        q = next_logprobs(model, prompt + ids, 1 / alpha)
        for token in range(4):
            grow(ids + [token], log_p + [p[token]], log_q + [q[token]])

    grow([], [], [])
    return found


def power(model, prompt, horizon, alpha=ALPHA):
    """The exact target p^alpha, normalised over all states."""
    listed = states(model, prompt, horizon, alpha)
    weight = np.exp([alpha * log_p.sum() for _, log_p, _ in listed])
    return {ids: w / weight.sum() for (ids, *_), w in zip(listed, weight, strict=True)}


def total_variation(samples, target):
    counts = Counter(map(tuple, samples))
    assert set(counts) <= set(target)
    return 0.5 * sum(abs(counts[x] / len(samples) - p) for x, p in target.items())


def move_matrix(listed, log_acceptance):
    """The whole transition matrix of one move: sum over cuts of cut x proposal x acceptance."""
    n = len(listed)
    moves = np.zeros((n, n))
    for i, (x, p, q) in enumerate(listed):
        for cut in range(len(x)):
            for j, (y, new_p, new_q) in enumerate(listed):
                if x[:cut] == y[:cut] and len(y) > cut:
                    ratio = log_acceptance(ALPHA * p - q, ALPHA * new_p - new_q, cut)
                    moves[i, j] += np.exp(new_q[cut:].sum() + min(0.0, ratio)) / len(x)
    moves[np.diag_indices(n)] += 1 - moves.sum(1)  # rejected: stay
    return moves


def test_one_move_leaves_the_power_distribution_unchanged(model):
    """Exactly, over all states, stopped ones and cut ones; and leaving 1/length out does not."""
    listed = states(model, [BOS], 3)
    target = np.array(list(power(model, [BOS], 3).values()))
    moves = move_matrix(listed, decoding.log_acceptance)
    assert moves.min() > -1e-12
    assert np.abs(target @ moves - target).max() < 1e-10
    flow = target[:, None] * moves
    assert np.abs(flow - flow.T).max() < 1e-10  # detailed balance, stronger than stationarity

    def without_lengths(old, new, cut):
        return new[cut:].sum() - old[cut:].sum()

    def over_the_shorter_length(old, new, cut):
        end = min(len(old), len(new))
        return new[cut:end].sum() - old[cut:end].sum()

    for wrong in (without_lengths, over_the_shorter_length):
        assert np.abs(target @ move_matrix(listed, wrong) - target).max() > 1e-3


@pytest.fixture(scope="module")
def chains(model):
    n = 1500
    return decoding.power_sampling(
        model, [[BOS]] * n, alpha=ALPHA, max_new_tokens=LONGEST, block=2, steps=40, stop=EOS,
        seed=1, batch_size=n,
    )


def test_power_sampling_reaches_the_enumerated_target(model, chains):
    target = power(model, [BOS], LONGEST)
    noise = 0.5 * sum(np.sqrt(2 / np.pi * p * (1 - p) / 1500) for p in target.values())
    assert total_variation(chains.continuations, target) < 2 * noise
    # the same distance sees at once that plain low temperature is another distribution
    cold = decoding.low_temperature(
        model, [[BOS]] * 1500, 1 / ALPHA, max_new_tokens=LONGEST, stop=EOS, batch_size=1500
    )
    assert total_variation(cold.continuations, target) > 5 * noise


def test_a_short_run_has_exactly_the_law_that_the_algorithm_gives_it(model):
    """Two blocks, one move each, long before convergence: extension and moves, state by state."""
    found = decoding.power_sampling(
        model, [[BOS]] * 2000, alpha=ALPHA, max_new_tokens=3, block=2, steps=1, stop=EOS,
        seed=3, batch_size=2000,
    )
    first, last = states(model, [BOS], 2), states(model, [BOS], 3)
    law = np.exp([q.sum() for *_, q in first]) @ move_matrix(first, decoding.log_acceptance)
    law = {ids: p for (ids, *_), p in zip(first, law, strict=True)}
    extended = [law[x] if len(x) < 3 else law[x[:2]] * np.exp(q[2]) for x, _, q in last]
    predicted = np.array(extended) @ move_matrix(last, decoding.log_acceptance)
    predicted = {ids: p for (ids, *_), p in zip(last, predicted, strict=True)}
    noise = 0.5 * sum(np.sqrt(2 / np.pi * p * (1 - p) / 2000) for p in predicted.values())
    assert total_variation(found.continuations, predicted) < 1.6 * noise


def test_power_sampling_with_unequal_prompts_and_a_set_of_stops(model):
    prompts = [[BOS, 1, 2, 1], [BOS], [BOS, 2]]
    n = 600
    found = decoding.power_sampling(
        model, prompts * n, alpha=ALPHA, max_new_tokens=3, block=3, steps=16, stop={EOS},
        batch_size=3 * n,
    )
    for i, prompt in enumerate(prompts):
        target = power(model, prompt, 3)
        noise = 0.5 * sum(np.sqrt(2 / np.pi * p * (1 - p) / n) for p in target.values())
        assert total_variation(found.continuations[i::3], target) < 2 * noise


def test_cuts_are_uniform_over_a_stopped_sequence(monkeypatch, model):
    """Every sequence is 1 2 3, stopped at half the horizon: cuts fall on 0, 1, 2 alike."""
    cuts = []

    def fixed(model, prompts, **_):
        rest = [[1, 2, 3][len(p) - 1 :] for p in prompts]
        cuts.extend(len(p) - 1 for p in prompts)
        tokens = torch.tensor([r + [0] * (3 - len(r)) for r in rest])
        return Rollouts(
            tokens, torch.tensor([len(r) for r in rest]), torch.zeros(tokens.shape),
            torch.ones(len(rest)) > 0, torch.arange(len(rest)), torch.zeros(len(rest)),
        )

    monkeypatch.setattr(decoding, "sample", fixed)
    monkeypatch.setattr(decoding, "score", lambda m, p, c, **_: [torch.zeros(len(x)) for x in c])
    found = decoding.power_sampling(
        model, [[BOS]] * 1000, alpha=4.0, max_new_tokens=6, block=6, steps=3, stop=EOS
    )
    counts = np.bincount(cuts[1000:], minlength=6)
    assert counts[3:].sum() == 0 and np.abs(counts[:3] - 1000).max() < 110  # 4 sigma
    assert (found.log["acceptance"] == 1).all() and (found.log["moved"] == 0).all()
    assert found.tokens.sum() == 3000 + (3 - np.array(cuts[1000:])).sum()


def test_power_sampling_counts_and_is_reproducible(model, chains):
    assert ((0 <= chains.log["moved"]) & (chains.log["moved"] <= chains.log["acceptance"])).all()
    assert 0.1 < chains.log["acceptance"].mean() < 1
    moves = 80
    assert (chains.tokens > moves).all() and (chains.tokens <= LONGEST + moves * LONGEST).all()
    alone = decoding.power_sampling(
        model, [[BOS]] * 3, alpha=ALPHA, max_new_tokens=LONGEST, block=2, steps=40, stop=EOS,
        seed=1, keys=[7, 8, 9],
    )
    assert alone.continuations == chains.continuations[7:10]
    assert alone.tokens.tolist() == chains.tokens[7:10].tolist()
    plain = decoding.power_sampling(
        model, [[BOS]] * 9, alpha=1.0, max_new_tokens=LONGEST, block=LONGEST, steps=0, stop=EOS
    )
    assert plain.tokens.tolist() == [len(c) for c in plain.continuations]
    assert np.isnan(plain.log["acceptance"]).all()
    with pytest.raises(ValueError, match="alpha"):
        decoding.power_sampling(model, [[BOS]], alpha=0, max_new_tokens=2, block=1, steps=1, stop=3)


def test_power_sampling_stays_within_the_context(model):
    """Prompt and horizon fill the 32 positions exactly: no chain may ask for a 33rd."""
    found = decoding.power_sampling(
        model, [[BOS] * 20, [BOS] * 26], alpha=1.0, max_new_tokens=6, block=3, steps=4, stop=EOS
    )
    assert max(map(len, found.continuations)) <= 6


def test_greedy_follows_the_likeliest_token(model):
    found = decoding.greedy(model, [[BOS], [BOS, 1]], max_new_tokens=5, stop=EOS)
    for prompt, ids in zip([[BOS], [BOS, 1]], found.continuations, strict=True):
        for i, token in enumerate(ids):
            assert token == next_logprobs(model, prompt + ids[:i]).argmax()
        assert EOS not in ids[:-1] and (len(ids) == 5 or ids[-1] == EOS)
    assert found.tokens.tolist() == [len(c) for c in found.continuations]


# ---- choosing among rollouts ----


def random_rollouts(n_prompts=12, n=9, width=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows = n_prompts * n
    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    logprobs = -torch.rand(rows, width, generator=g)
    return Rollouts(
        tokens=torch.randint(0, 50, (rows, width), generator=g), lengths=lengths, logprobs=logprobs,
        stopped=torch.rand(rows, generator=g) < 0.7,
        prompt=torch.arange(n_prompts).repeat_interleave(n),
        sample=torch.arange(n).repeat(n_prompts),
    )


def row_ids(rollouts, row):
    return rollouts.tokens[row, : rollouts.lengths[row]].tolist()


def test_majority_against_brute_force():
    rollouts = random_rollouts()
    rng = np.random.default_rng(0)
    answers = [None if a == 3 else str(a) for a in rng.integers(0, 4, 12 * 9)]
    answers[9:18] = [None] * 9
    found = decoding.majority(rollouts, answers)
    for i in range(12):
        mine = answers[9 * i : 9 * i + 9]
        votes = {a: mine.count(a) for a in mine if a is not None}
        winners = [j for j, a in enumerate(mine) if a and votes[a] == max(votes.values())]
        assert found.continuations[i] == row_ids(rollouts, 9 * i + (winners[0] if winners else 0))
        assert found.tokens[i] == rollouts.lengths[9 * i : 9 * i + 9].sum()


def test_majority_tie_goes_to_the_first_seen():
    rollouts = random_rollouts(1, 5)
    found = decoding.majority(rollouts, [None, "b", "a", "a", "b"])
    assert found.continuations[0] == row_ids(rollouts, 1)
    found = decoding.majority(rollouts, [None, "b", "a", "a", "b"], rows=[0, 2, 3, 4])
    assert found.continuations[0] == row_ids(rollouts, 2)


@pytest.mark.parametrize("per_token", [False, True])
def test_best_by_likelihood_against_brute_force(per_token):
    rollouts = random_rollouts(seed=1)
    rollouts.stopped[:9] = False
    found = decoding.best_by_likelihood(rollouts, per_token)
    for i in range(12):
        rows = [r for r in range(9 * i, 9 * i + 9) if rollouts.stopped[r] or i == 0]
        values = []
        for r in rows:
            logprobs = rollouts.logprobs[r, : rollouts.lengths[r]].double().numpy()
            values.append(logprobs.mean() if per_token else logprobs.sum())
        assert found.continuations[i] == row_ids(rollouts, rows[int(np.argmax(values))])


def test_within_budget_never_overspends_but_for_the_first():
    rollouts = random_rollouts()
    rows = decoding.within_budget(rollouts, 10)
    for i in range(12):
        mine = [r for r in rows if rollouts.prompt[r] == i]
        spent = sum(int(rollouts.lengths[r]) for r in mine)
        assert mine == list(range(9 * i, 9 * i + len(mine))) and len(mine) >= 1
        assert spent <= 10 or len(mine) == 1
        if len(mine) < 9:
            assert spent + int(rollouts.lengths[mine[-1] + 1]) > 10
    assert decoding.within_budget(rollouts, 10**6) == list(range(108))
    each = decoding.within_budget(rollouts, np.array([1] * 11 + [10**6]))
    assert len(each) == 11 + 9
    with pytest.raises(ValueError, match="prompt 1"):
        decoding.majority(rollouts, [None] * 108, rows=[0, 20])


# ---- CoT-decoding ----


class Bigram(torch.nn.Module):
    """A 'model' whose next token depends on the last one by a given table of probabilities."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table, dtype=torch.float32).log())
        self.device = torch.device("cpu")
        self.config = LlamaConfig(vocab_size=len(table))

    def forward(self, input_ids, **_):
        return type("Output", (), {"logits": self.table[input_ids]})


# tokens: 0 start, 1..3 first words, 4 and 5 answers, 6 end, 7 filler
TABLE = np.full((8, 8), 1e-6)
TABLE[0, [1, 2, 3]] = 0.5, 0.3, 0.2
TABLE[1, [4, 5]] = 0.55, 0.45  # greedy: answers 4, unsure
TABLE[2, [5, 4]] = 0.9, 0.1  # second path: answers 5, sure
TABLE[3, [7, 5]] = 0.7, 0.3  # third path: the longest
TABLE[7, [5, 4]] = 0.8, 0.2
TABLE[4, 6] = TABLE[5, 6] = TABLE[6, 6] = 1.0
TABLE /= TABLE.sum(1, keepdims=True)


def read_answer(i, ids):
    places = [j for j, t in enumerate(ids) if t in (4, 5)]
    return (ids[places[-1]], places[-1:]) if places else (None, [])


def plain_greedy(model, prompts, **options):
    """Stands in for the engine, which needs a transformer: greedy continuation by the table."""
    stop, cap = options["stop"], options["max_new_tokens"]
    rows = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) - len(prompt) < cap and (len(ids) == len(prompt) or ids[-1] != stop):
            ids.append(int(model.table[ids[-1]].argmax()))
        rows.append(ids[len(prompt) :])
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(r) for r in rows])
    return Rollouts(
        tokens, lengths, torch.zeros(tokens.shape), torch.ones(len(rows)) > 0,
        torch.arange(len(rows)), torch.zeros(len(rows)),
    )


def test_cot_decoding_on_a_table_with_a_known_answer(monkeypatch):
    monkeypatch.setattr(decoding, "sample", plain_greedy)
    found = decoding.cot_decoding(
        Bigram(TABLE), [[0], [7, 0]], read_answer, k=3, max_new_tokens=5, stop=6,
        correct=lambda i, ids: ids[0] == 3,
    )
    paths = [[1, 4, 6], [2, 5, 6], [3, 7, 5, 6]]
    for i in range(2):
        assert found["delta"].continuations[i] == paths[1]
        assert found["delta_sum"].continuations[i] == paths[1]  # 5: 0.8 + 0.6 against 4: 0.1
        assert found["longest"].continuations[i] == paths[2]
        assert found["oracle"].continuations[i] == paths[2]
        assert found["random"].continuations[i] in paths
        assert found["delta"].tokens[i] == 10
    assert found["delta"].log["delta"] == pytest.approx([0.8, 0.8], abs=1e-4)


def test_cot_decoding_sums_delta_per_answer(monkeypatch):
    """Two middling paths that agree beat one sure path by the sum, not by the maximum."""
    table = TABLE.copy()
    table[1, [4, 5]] = 0.78, 0.22  # Delta 0.56
    table[2, [5, 4]] = 0.9, 0.1  # Delta 0.8
    table[7, [5, 4]] = 0.3, 0.7  # Delta 0.4, answer 4
    monkeypatch.setattr(decoding, "sample", plain_greedy)
    found = decoding.cot_decoding(
        Bigram(table), [[0]], read_answer, k=3, max_new_tokens=5, stop=6
    )
    assert found["delta"].continuations == [[2, 5, 6]]
    assert found["delta_sum"].continuations == [[1, 4, 6]]
    assert "oracle" not in found


def test_cot_decoding_branches_after_forced_tokens_and_at_a_stop(monkeypatch):
    monkeypatch.setattr(decoding, "sample", plain_greedy)
    found = decoding.cot_decoding(
        Bigram(TABLE), [[0], [0]], read_answer, k=2, max_new_tokens=4, stop=6,
        forced=[[3], [1, 4]],
    )
    # problem 0 branches after 3 into 7 and 5; problem 1 after its answer into the stop and a tail
    assert found["longest"].continuations[0] == [3, 7, 5, 6]
    assert found["delta"].continuations[0] == [3, 7, 5, 6]  # 0.6 against |0.3 - 0.7| at the branch
    assert found["delta"].tokens[0] == 1 + 3 + 2
    assert found["delta"].continuations[1][:2] == [1, 4]
    assert max(map(len, found["longest"].continuations)) <= 4


def test_cot_decoding_walks_the_same_paths_on_a_transformer(model):
    """Branches and Delta against a step by step walk with plain forward passes."""
    prompts = [[BOS], [BOS, 1, 2]]
    found = decoding.cot_decoding(
        model, prompts, lambda i, ids: (ids[-1], [len(ids) - 1]), k=3, max_new_tokens=4, stop=EOS
    )
    for i, prompt in enumerate(prompts):
        deltas, spent = [], 0
        for token in next_logprobs(model, prompt).argsort()[::-1][:3]:
            ids = [int(token)]
            while ids[-1] != EOS and len(ids) < 4:
                ids.append(int(next_logprobs(model, prompt + ids).argmax()))
            p = np.sort(np.exp(next_logprobs(model, prompt + ids[:-1])))
            deltas.append((p[-1] - p[-2], ids))
            spent += len(ids)
        best = max(deltas, key=lambda pair: pair[0])
        assert found["delta"].continuations[i] == best[1]
        assert found["delta"].log["delta"][i] == pytest.approx(best[0], abs=1e-5)
        assert found["delta"].tokens[i] == spent


def test_first_uncertain_token(model):
    prompts, continuations = [[BOS], [BOS, 2]], [[1, 2, 1, 3], [3]]
    for below in (0.05, 0.3, 0.6):
        found = decoding.first_uncertain(model, prompts, continuations, below)
        for prompt, ids, at in zip(prompts, continuations, found, strict=True):
            p = [np.exp(next_logprobs(model, prompt + ids[:i])[t]) for i, t in enumerate(ids)]
            assert at == next((i for i, value in enumerate(p) if value < below), len(ids))


# ---- entropy ----


def test_mean_entropy_is_that_of_the_distributions_drawn_from(model):
    rollouts = sample(
        model, [[BOS], [BOS, 1]], 3000, max_new_tokens=3, stop=EOS, temperature=1.3, batch_size=6000
    )
    total, count = 0.0, 0
    seen = {}
    for row in range(len(rollouts.lengths)):
        context = [[BOS], [BOS, 1]][int(rollouts.prompt[row])]
        for token in row_ids(rollouts, row):
            key = tuple(context)
            if key not in seen:
                q = next_logprobs(model, context, 1.3)
                seen[key] = -(np.exp(q) * q).sum()
            total, count, context = total + seen[key], count + 1, context + [token]
    assert decoding.mean_entropy(rollouts) == pytest.approx(total / count, abs=0.02)


def test_entropy_matched_temperature_finds_a_known_temperature(model):
    """The model matched to its own rollouts at 1.4, drawn with another seed."""
    prompts = [[BOS], [BOS, 1], [BOS, 2]]
    options = dict(max_new_tokens=4, stop=EOS, n=600, batch_size=1800)
    target = decoding.mean_entropy(sample(model, prompts, temperature=1.4, seed=5, **options))
    temperature, reached = decoding.entropy_matched_temperature(model, prompts, target, **options)
    assert abs(temperature - 1.4) < 0.12 and abs(reached - target) < 0.02
    with pytest.raises(ValueError, match="target_entropy"):
        decoding.entropy_matched_temperature(model, prompts, 9.0, **options)


def test_states_of_the_test_itself_sum_to_one(model):
    listed = states(model, [BOS], LONGEST)
    assert sum(np.exp(p.sum()) for _, p, _ in listed) == pytest.approx(1)
    complete = [x for x, *_ in listed if x[-1] == EOS]
    assert len(listed) == 1 + 3 + 9 + 27 * 4 and len(complete) == 1 + 3 + 9 + 27
    assert len({x for x, *_ in listed}) == len(listed)
