"""Training little: budgets by count, arms against the corpus' own documents,
what stays as it was."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from locksmith import (
    corpus,
    device,
    engine,
    model,
    params,
    rewards,
    rl,
    vocabulary,
)
from locksmith.experiments import critics, tuning
from locksmith.loading import Pair
from locksmith.tasks import chain, countdown
from repository import ROOT, smoke_lab

FAMILIES = {"countdown": countdown, "chain": chain}
CHAIN = Pair("smoke", "chain", 0)
TOY = Pair("smoke", "sums", 0, "toy", "toy/thinking")
SIZE = tuning.Size(4, 2, 24)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with smoke_lab(tmp_path_factory.mktemp("lab")) as root:
        yield root


def generator(family):
    return params.load("smoke", ROOT / "params.yaml")["families"][family]


def reviews(family, n):
    """(problem, an author's answer, the review document) as the corpus writes them."""
    task, rng, out = FAMILIES[family], random.Random(0), []
    while len(out) < n:
        problem = task.sample(rng, "train", generator(family))
        author = corpus.author(rng, generator(family))
        words = task.document(rng, problem, author, generator(family))
        if "next" not in words:
            document = ["<bos>", "review", *problem.prompt[1:], *words[:-1], ";",
                        *task.judge(problem, words[:-1]), "<eos>"]
            out.append((problem, " ".join(words), " ".join(document)))
    return out


# --- arms -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_exact_critiques_end_as_the_corpus_review_documents_do(family):
    task = FAMILIES[family]
    for problem, text, document in reviews(family, 20):
        (given, wanted), = tuning.critique_pairs(task, problem, [
            tuning.Solution(text, True)], critics.exact, random.Random(0))
        assert document.startswith(f"{given} ") and given.endswith(" ;")
        verdict = document.split()[-2:]
        assert wanted.split()[-2:] == verdict == task.judgement(problem, text).split()
        work, said = task.working(problem).split()[:-1], task.critique(problem, text).split()
        assert said[-2 - len(work):-2] == work
        assert set(wanted.split()) <= set(vocabulary.VOCABULARY)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_working_of_critiques_is_a_sound_solution_that_takes_the_strategy(family):
    task, rng = FAMILIES[family], random.Random(0)
    backtracks = 0
    for problem, _, _ in reviews(family, 30):
        for text in (task.working(problem), critics.working(task, problem, "", rng)):
            found = task.grade(problem, text)
            assert found.trace and task.strategy(problem, text)
            backtracks += found.backtracks
        assert found.backtracks <= 2 * 2  # two misses at each of two targets
    assert (backtracks > 30) == (family == "countdown")


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_critiques_as_solutions_are_different_texts(family):
    """In the chain most solutions of one problem differ in their openings alone."""
    task, made = FAMILIES[family], params.load("lab", ROOT / "params.yaml")["families"][family]
    problem, = task.problems("train", 1, 0, made)
    rng, written = random.Random(0), {}
    while len(written) < 500:
        words = task.document(rng, problem, corpus.author(rng, made), made)
        if "next" not in words:
            written[tuning.Solution(" ".join(words), True)] = True
    said = tuning.critique_pairs(task, problem, list(written), critics.exact, random.Random(0))
    assert len({wanted for _, wanted in said}) == len({given for given, _ in said}) == 500
    # but for the openings' wording they are the exact critique
    first = {" ".join(o): some[0][0] for some in task.OPENINGS.values() for o in some}
    for one, (_, wanted) in zip(written, said):
        for words, plain in first.items():
            wanted = f" {wanted} ".replace(f" {words} ", f" {plain} ").strip()
        assert wanted == task.critique(problem, one.text)


def test_a_critique_goes_through_the_steps_of_its_answer():
    """Each step is quoted, with what it gives, worked out here by Python's own arithmetic."""
    for problem, text, _ in reviews("chain", 40):
        said = chain.critique(problem, text)
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)(?= check)", said)
        assert re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", text) == steps
        for (a, op, b, result), (truth, judged) in zip(
                steps, re.findall(r"check (\d+) (yes|no)", said), strict=True):
            assert eval(f"{a} {op} {b}") == int(truth)
            assert (judged == "yes") == (truth == result)
    for problem, text, _ in reviews("countdown", 40):
        said = countdown.critique(problem, text).partition(" try ")[0]
        tried = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+) ([-+*]) (\d+) = (\d+) (yes|no)", said)
        assert len(tried) == len(re.findall(r"= \d+ [-+*] \d+ = \d+", text))
        for a, op, b, _, other, c, value, judged in tried:
            assert eval(f"({a} {op} {b}) {other} {c}") == int(value)
            assert sorted(map(int, (a, b, c))) == sorted(problem.numbers)
            if judged == "yes":
                assert int(value) in problem.targets


@pytest.mark.parametrize("family", FAMILIES)
def test_critics(family):
    task, verdicts = FAMILIES[family], set()
    for problem, text, _ in reviews(family, 200):
        exact, turned, formal = (  # in the same words
            critic(task, problem, text, random.Random(text)).split()[:-1]
            for critic in (critics.exact, critics.flipped, critics.form))
        right = task.grade(problem, text).correct
        assert exact[-1] == ("right" if right else "wrong") != turned[-1]
        assert [w for w in exact if w.isdigit()] == [w for w in turned if w.isdigit()]
        assert len(formal) == len(exact)
        assert [w.isdigit() for w in formal] == [w.isdigit() for w in exact]
        verdicts.add(formal[-1])
    assert verdicts == {"right", "wrong"}


def test_shuffling_gives_every_input_anothers_target():
    pairs = [([i], [100 + i]) for i in range(30)]
    mixed = tuning.shuffle_targets(pairs, random.Random(0))
    assert [given for given, _ in mixed] == [given for given, _ in pairs]
    assert all(a != b for (_, a), (_, b) in zip(pairs, mixed, strict=True))
    assert sorted(b for _, b in mixed) == sorted(b for _, b in pairs)


def test_every_input_gets_the_target_of_another_problem():
    pairs, others = [([i], [i]) for i in range(5)], [([i], [100 + i]) for i in range(3)]
    mixed = tuning.foreign_targets(pairs, others, random.Random(0))
    assert [given for given, _ in mixed] == [given for given, _ in pairs]
    targets = [b[0] for _, b in mixed]
    assert set(targets[:3]) == {100, 101, 102} and targets[3:] == targets[:2]


def test_single_problems_are_spread_over_the_difficulty_range():
    rates = np.array([0, 0.5, 0.1, 0, 0.9, 0.3, 0.7])
    assert tuning.spread(rates, 3) == [4, 1, 2]
    for n in range(5, 9):  # one alone is the middle one of three
        assert tuning.spread(rates[:n], 1) == tuning.spread(rates[:n], 3)[1:2]
    assert tuning.spread(np.zeros(4), 2) == [0, 3]  # nothing solved: any


# --- training -------------------------------------------------------------------------------------

def small(**recipe):
    return {"steps": 3, "problems": 2, "samples": 4, "lr": 0.01, "max_new_tokens": 24,
            "micro_tokens": 512} | recipe


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def reinforced(trained, **options):
    """(net to sample from, steers, curve) after a little RL on the chain."""
    recipe = small(**{key: options.pop(key) for key in ("lr",) if key in options})
    curve = tuning.reinforce(trained, CHAIN, tuning.pool(CHAIN, 6), recipe, **options)
    asked, steer = trained.ask()
    return asked.net, steer, curve


def test_a_reward_without_contrast_changes_nothing(home):
    net, steer, curve = reinforced(tuning.all_weights(CHAIN), reward="none")
    before = weights(CHAIN.load("base").net)
    assert steer == [] and len(curve) == 3
    assert all(torch.equal(before[name], value) for name, value in weights(net).items())
    net, _, _ = reinforced(tuning.all_weights(CHAIN), reward="random")
    assert any(not torch.equal(before[name], value) for name, value in weights(net).items())


def test_vector_rl_leaves_every_weight_as_it_was(home):
    net, steer, _ = reinforced(tuning.vectors(CHAIN), lr=0.3, reward="random")
    before = weights(CHAIN.load("base").net)
    assert all(torch.equal(before[name], value) for name, value in weights(net).items())
    assert [s.layer for s in steer] == [0, 1] and all(s.vector.norm() > 0 for s in steer)


def test_an_adapter_changes_what_is_sampled(home):
    net, steer, _ = reinforced(tuning.adapter(CHAIN, rank=2), lr=0.05, reward="random")
    before = weights(CHAIN.load("base").net)
    changed = {name for name, value in weights(net).items() if not torch.equal(before[name], value)}
    assert steer == [] and changed and not any("embed" in name for name in changed)


def test_an_adapter_is_sampled_as_merged_and_its_base_stays_as_it_is(home):
    trained, base = tuning.adapter(CHAIN, rank=2), CHAIN.load("base", exact=True).net
    frozen = {name: value.clone() for name, value in trained.net.named_parameters()
              if "lora" not in name}
    for scale in (0.2, 0.1):  # the second must not lie on the first
        for name, weight in trained.net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=scale)
        exact = copy.deepcopy(trained.net)
        for name, module in exact.get_base_model().named_modules():
            if name.endswith("_proj"):
                module.get_base_layer().weight.data = base.get_submodule(name).weight.data.clone()
        wanted = exact.merge_and_unload().to(device.pick()[1])
        found = trained.ask()[0].net
        assert all(torch.equal(value, found.state_dict()[name])
                   for name, value in wanted.state_dict().items())
    assert all(torch.equal(value, frozen[name]) for name, value in trained.net.named_parameters()
               if name in frozen)


def test_frozen_weights_that_are_rounded_once_train_the_same(home, monkeypatch):
    """To the bit what autocast does with weights in float32."""
    monkeypatch.setattr(device, "pick", lambda *_: (torch.device("cpu"), torch.bfloat16))
    found, kept = [], model.round_frozen
    for dtype in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(model, "round_frozen", lambda net, _, dtype=dtype: kept(net, dtype))
        for pair in (CHAIN, TOY):
            trained = tuning.adapter(pair, rank=2)
            linear = trained.net.get_base_model().model.layers[0].mlp.down_proj.get_base_layer()
            assert linear.weight.dtype == dtype
            recipe = {"steps": 2, "problems": 2, "samples": 4, "lr": 0.05, "max_new_tokens": 24}
            tuning.reinforce(trained, pair, pair.problems(4, "train"), recipe, "random")
            found.append([p.detach().clone() for p in trained.net.parameters() if p.requires_grad]
                         + [p.detach().clone() for p in trained.ask()[0].net.parameters()])
    for rounded, whole in zip(found[:2], found[2:], strict=True):
        assert all(map(torch.equal, rounded, whole))


@pytest.mark.parametrize("shared", [0, 1, 30, 45])
@pytest.mark.parametrize("make", [tuning.all_weights, tuning.adapter, tuning.vectors])
def test_what_rows_begin_with_is_read_once_without_a_difference(make, shared, monkeypatch):
    monkeypatch.setattr(device, "pick", lambda *_: (torch.device("cpu"), torch.float32))
    trained = make(TOY).net
    for name, weight in trained.named_parameters():
        if "lora_B" in name or name == "table":
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(2, 258, (5, 60), generator=torch.Generator().manual_seed(0))
    ids[::2, :shared], ids[1::2, :shared] = ids[0, :shared], ids[1, :shared]  # of two problems
    read = []
    trained.register_forward_pre_hook(
        lambda net, _, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    found = []
    for logits in (tuning.shared_prefix_logits(trained, ids, 40),
                   trained(input_ids=ids).logits[:, 40:]):
        trained.zero_grad()
        logits.log_softmax(-1)[..., 7].sum().backward()
        found.append((logits.detach(), torch.cat(
            [p.grad.flatten() for p in trained.parameters() if p.grad is not None])))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
    assert sum(read[:-1]) == (2 if shared >= 40 else 5) * 40 + 5 * 20


def test_logits_of_the_last_positions_make_the_same_policy_gradient_step():
    found, rng = [], random.Random(0)
    rows = [[rng.randrange(2, 258) for _ in range(20 + i)] for i in range(6)]
    lengths = [12 + i % 3 for i in range(6)]
    for row in rows[1::2]:  # three answers to the one prompt of these
        row[:12] = rows[1][:12]
    lengths[1::2] = [12, 12, 12]
    read = []
    for by_prompt, logits in ((True, lambda net, ids: tuning.shared_prefix_logits(net, ids, 11)),
                              (False, lambda net, ids: net(input_ids=ids).logits)):
        trained = model.adapter(TOY.load("base", exact=True).net, 4, 0)
        weight = [p for p in trained.parameters() if p.requires_grad]
        rl.update(trained, torch.optim.SGD(weight, 0.1), rows, lengths,
                  torch.tensor([1.0, -1, 0.5, 0, 2, -1]), 64,
                  lambda net, ids, logits=logits: read.append(len(ids)) or logits(net, ids),
                  by_prompt=by_prompt)
        found.append(torch.cat([p.detach().flatten() for p in weight]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert sorted(read[:4]) == [1, 1, 1, 2] and read[4:] == [2, 2, 1]


def test_vectors_in_training_are_those_in_sampling(home):
    net = CHAIN.load("base", exact=True).net
    vectors = tuning.Vectors(net, [0, 1])
    assert [name for name, _ in vectors.named_parameters()] == ["table"]
    with torch.no_grad():
        vectors.table.normal_(generator=torch.manual_seed(0))
    prompt = [1, 7, 9, 3, 40]
    out = engine.sample(net, [prompt], 6, max_new_tokens=8, stop=(), seed=1,
                        control=engine.Control(vectors.steers(net.lm_head.weight)))
    ids = torch.tensor([prompt + row for row in out.ids()])
    with torch.autocast("cpu", enabled=False):
        logp = vectors(input_ids=ids).logits.float().log_softmax(-1)[:, len(prompt) - 1:-1]
    told = logp.gather(-1, ids[:, len(prompt):, None])[..., 0]
    assert torch.allclose(told, out.logprobs, atol=0.1)
    with torch.no_grad():
        vectors.table.zero_()
    with device.autocast("cpu"):
        plain = net(input_ids=ids, use_cache=False).logits
        found = vectors(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, plain)  # a vector of zeros changes no bit


def test_an_entropy_bonus_raises_entropy(home):
    net = model.build(params.load("smoke")["model"], 0)
    with torch.no_grad():
        net.model.embed_tokens.weight.mul_(20)
    optimizer = torch.optim.AdamW(net.parameters(), 0.003)
    batch = [[1, 5, 9, 30, 31, 2]] * 4, [2] * 4, torch.zeros(4)
    found = [rl.update(net, optimizer, *batch, 512, bonus=1.0)[1] for _ in range(10)]
    assert found[-1] > found[0] + 0.1


def test_rewards_by_hand():
    task, problem = countdown, countdown.Problem((1, 2, 3), (6, 9))
    right = "try 1 + 2 = 3 + 3 = 6 so 1 + 2 + 3 try 1 + 2 = 3 * 3 = 9 so 1 + 2 * 3 <eos>".split()
    wrong = "try 1 + 2 = 3 + 3 = 6 so 1 + 2 + 3 try 1 + 2 = 3 * 3 = 9 so 1 + 2 + 3 <eos>".split()
    cut = right[:-1]
    table = {name: [f(task.grade(problem, w), random.Random(0)) for w in (right, wrong, cut)]
             for name, f in rewards.REWARDS.items() if name != "random"}
    assert table == {"correct": [1, 0, 0], "format": [1, 1, 0], "none": [0, 0, 0],
                     "strategy": [0, 0, 0]}
    rng = random.Random(0)
    drawn = [rewards.coin(task.grade(problem, wrong), rng) for _ in range(1000)]
    assert set(drawn) == {0.0, 1.0} and abs(np.mean(drawn) - 0.5) < 0.05


# --- what came of it ------------------------------------------------------------------------------

def test_loss_on_text_is_that_of_the_uniform_guess_for_a_model_that_knows_nothing(home):
    base = CHAIN.load("base", exact=True)
    base.net.model.embed_tokens.weight.data.zero_()
    found = tuning.text_loss(base, tuning.held_out(CHAIN, 3))
    assert found == pytest.approx(np.log(len(vocabulary.VOCABULARY)), abs=1e-5)
    assert all("?" in text or "." in text for text in tuning.held_out(TOY))


@pytest.mark.parametrize("trains", ["weights", "adapter"])
def test_training_learns_what_it_is_shown_and_counts_its_tokens(home, trains):
    pairs = [("Q: 1 + 1\nA:", " 2.\n"), ("Q: 1 + 2\nA:", " 3.\n")]
    recipe = tuning.Recipe(12, 40, 0.03, trains)
    found = tuning.tuned(TOY, pairs, recipe, SIZE)
    losses = found.log["losses"]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
    assert found.log["read"] == 12 * (40 + 10 * len("Q: 1 + 1\nA:"))  # bytes; ten pairs a step
    assert found.correct.shape == found.strategy.shape == (4, 2)


def test_jobs_on_random_models(home):
    problems = tuning.pool(CHAIN, 3)
    rows, written = tuning.candidates([CHAIN], problems, 5, 24)
    assert len(rows) == 3 and all(len(row) <= 5 for row in rows) and written > 0
    assert all(len({one.text for one in row}) == len(row) for row in rows)
    assert all(one.text.split()[-1] in ("<eos>", "next") for row in rows for one in row)
    pairs = [("<bos> 3 * 7 =", "21 <eos>")]
    validation = SIZE._replace(n_problems=5, split="validation")
    found = tuning.tuned(CHAIN, pairs, tuning.Recipe(2, 6, 0.001), SIZE, pairs, validation)
    assert found.correct.shape == found.strategy.shape == (4, 2)
    assert found.log["text_loss"] > 0 and found.log["verdicts"].shape == (1,)
    right, tokens = found.log["validation"]
    assert right == tuning.validated(CHAIN, pairs, tuning.Recipe(2, 6, 0.001), validation)
    assert 1 <= tokens <= SIZE.max_new_tokens
    apart = tuning.reinforced(CHAIN, problems * 2, small(), SIZE, trains="vectors", layers=[1],
                              apart=True)
    assert apart.log["first token"].shape == apart.log["later tokens"].shape == (4, 2)
    assert tuning.untouched(CHAIN, "thinking", SIZE).tokens.shape == (4, 2)


def test_one_base_of_many_seeds_writes_its_candidates_once():
    pairs = [TOY._replace(seed=seed) for seed in range(3)]
    problems = tuning.pool(TOY, 2)
    assert tuning.candidates(pairs, problems, 4, 8) == tuning.candidates(pairs[:1], problems, 4, 8)
