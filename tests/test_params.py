"""params.yaml and its checks: wrong input gives one sentence naming it and what is allowed."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml
from locksmith import bounds, errors, packaged, params
from locksmith.tasks import chain, countdown

FILE = Path(params.__file__).parents[2] / "params.yaml"


@pytest.fixture
def changed(tmp_path):
    """Writes params.yaml with one value replaced (path of names) and returns the file."""

    def change(*names, value):
        values = copy.deepcopy(yaml.safe_load(FILE.read_text()))
        place = values
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return change


def test_every_profile_is_valid():
    for profile in params.PROFILES:
        assert params.load(profile, FILE)["profile"] == profile


def test_default_profile_is_the_books():
    assert params.load(None, FILE) == params.load("lab", FILE)


def test_checkpoints_default_to_the_profiles_own():
    assert params.load("lab", FILE)["checkpoints"] == "lab"
    assert params.load("colab", FILE)["checkpoints"] == "lab"


def leaves(values, path=""):
    if not isinstance(values, dict):
        return {path: values}
    return {k: v for key, value in values.items()
                for k, v in leaves(value, f"{path}.{key}").items()}


def test_an_override_of_dvc_survives_merge_keys_and_stays_in_its_profile(tmp_path):
    """`dvc exp run -S` rewrites params.yaml by this function of DVC."""
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text())
    changes = {"smoke.twin.backtrack": 0.5, "smoke.rl.lr": 0.5, "colab.chapters.ch06.rounds": 5,
               "smoke.families.chain.slip": 0.25}
    apply_overrides(path, [f"{name}={value}" for name, value in changes.items()])
    before, after = (yaml.safe_load(file.read_text()) for file in (FILE, path))
    assert {name[1:]: value for name, value in leaves(after).items()
            if value != leaves(before)[name]} == changes
    assert "rl: {<<: *rl" in path.read_text()
    assert params.load("smoke", path)["rl"]["steps"] == params.load("smoke", FILE)["rl"]["steps"]


@pytest.mark.parametrize("written", ["0.00002", "2e-5", "2E-5"])
def test_a_small_rate_survives_an_override_of_dvc(tmp_path, written):
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text())
    apply_overrides(path, [f"lab.rl.lr={written}", "smoke.chapters.ch03.rl_lr=1e-4"])
    assert "2e-05" in path.read_text()
    assert params.load("lab", path)["rl"]["lr"] == 2e-5
    assert params.load("smoke", path)["chapters"]["ch03"]["rl_lr"] == 1e-4
    assert load_yaml(path)["lab"]["rl"]["lr"] == 2e-5  # what a stage's `params` compare


def test_profiles_share_no_mapping():
    """An override through a shared one would change them both."""
    def mappings(values):
        return [values] * bool(values) + [m for v in values.values() if isinstance(v, dict)
                                          for m in mappings(v)]

    found = mappings(yaml.safe_load(FILE.read_text()))
    assert len(found) > 40 and len({id(mapping) for mapping in found}) == len(found)


def test_what_load_returns_is_the_callers_own():
    first = params.load("smoke", FILE)
    first["rl"]["steps"] = first["seeds"][0] = 99
    assert params.load("smoke", FILE)["rl"]["steps"] == 2
    assert params.load("smoke", FILE)["seeds"][0] == 0


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(errors.BadInput, match="'labb'.*smoke, lab, open, colab, toy, paper"):
        params.load("labb", FILE)


@pytest.mark.parametrize(
    "names, value, sentence",
    [
        (["lab", "rl", "stepz"], 3, "lab.rl has an unknown parameter 'stepz'; allowed are .*steps"),
        (["lab", "sedes"], [0], "lab has an unknown parameter 'sedes'; allowed are .*seeds"),
        (
            ["lab", "families", "contdown"],
            {},
            "unknown parameter 'contdown'; allowed are countdown, chain",
        ),
        (["lba"], {}, "unknown entry 'lba'"),
        (["lab", "rl", "steps"], "many", "lab.rl.steps is 'many'; allowed is int at least 1"),
        (["lab", "rl", "steps"], 2.0, "lab.rl.steps is 2.0"),
        (["lab", "rl", "steps"], True, "lab.rl.steps is True"),
        (["lab", "rl", "steps"], 0, "lab.rl.steps is 0; allowed is int at least 1"),
        (
            ["lab", "families", "chain", "facts"],
            1.01,
            "lab.families.chain.facts is 1.01; .*at least 0 and at most 1",
        ),
        (["lab", "families", "chain", "facts"], float("nan"), "lab.families.chain.facts is nan"),
        (["lab", "seeds"], [], r"lab.seeds is \[\]; .* each at least 0, at least one"),
        (["lab", "seeds"], [0, 1, 0],
         r"lab.seeds is \[0, 1, 0\]; .* at least one, none of them twice.$"),
        (["lab", "chapters", "ch01", "layers"], [1, 1], "layers is .*, none of them twice"),
        (["lab", "chapters", "ch02", "tasks"], ["chain"] * 2, "tasks is .*, none of them twice"),
        (["lab", "seeds"], [0, -1], r"lab.seeds\[1\] is -1"),
        (["lab", "seeds"], 3, "lab.seeds is 3; allowed is a list of int, each at least 0"),
        (["lab", "rl"], None, "lab.rl is None; allowed is a mapping"),
        (
            ["lab", "checkpoints"],
            "elsewhere",
            "lab.checkpoints is 'elsewhere'; allowed is smoke or lab",
        ),
    ],
)
def test_wrong_values_are_named(changed, names, value, sentence):
    with pytest.raises(errors.BadInput, match=sentence) as raised:
        path = changed(*names, value=value)
        params.load("lab", path)
    assert "\n" not in str(raised.value)


def test_a_missing_parameter_is_named(changed):
    values = yaml.safe_load(FILE.read_text())["lab"]["rl"]
    first = next(iter(values))
    path = changed("lab", "rl", value={k: v for k, v in values.items() if k != first})
    with pytest.raises(errors.BadInput, match=f"lab.rl lacks {first}"):
        params.load("lab", path)


def test_broken_yaml_is_one_sentence(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("profile: lab\nlab: {seeds: [0\n")
    with pytest.raises(errors.BadInput, match="not valid YAML"):
        params.load("lab", path)
    with pytest.raises(errors.BadInput, match="cannot be read"):
        params.load("lab", tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "rule, good, bad",
    [
        ("int ..9", [-5, 9], [10, 1.0]),
        ("float 0..", [0, 3.5], [-0.1, float("inf"), "1"]),
        ("bool", [True, False], [1, "true"]),
        ("text", [""], [None, 3]),
        ("list of int 1..", [[1], [2, 3, 3]], [[], [0], [1.0], 1]),
        ("set of int 1..", [[1], [2, 3]], [[], [0], [1.0], 1, [2, 3, 2]]),
        ("set of a|b", [["a"], ["b", "a"]], [["a", "a"], ["c"], "a"]),
    ],
)
def test_rules(rule, good, bad):
    for value in good:
        params.check_value("x", value, rule)
    for value in bad:
        with pytest.raises(errors.BadInput):
            params.check_value("x", value, rule)


def test_command_line(changed):
    def check(folder):
        return subprocess.run(
            [sys.executable, "-m", "locksmith.params", "check"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    assert check(FILE.parent).returncode == 0
    done = check(changed("smoke", "rl", "steps", value="1e-3").parent)
    assert done.returncode == 2
    assert done.stderr == "error: smoke.rl.steps is 0.001; allowed is int at least 1.\n"


# --- relations ------------------------------------------------------------------------------------

HUGE = 10**12
BOOK = params.plain_yaml.read(FILE)


@pytest.fixture
def read(monkeypatch):
    """Loads a profile, by default the changed one, with a value replaced, by its dotted path from
    the profile on; the file's own text is read but once."""
    def load(name, value, profile=None):
        *names, last = name.split(".")
        everything = place = copy.deepcopy(BOOK)
        for step in names:
            place = place[step]
        place[last] = value
        monkeypatch.setattr(params, "_parsed", lambda *_: everything)
        params._checked.cache_clear()
        return params.load(profile or names[0], FILE)

    yield load
    params._checked.cache_clear()


@pytest.mark.parametrize("names, value, sentence", [
    ("lab.problems.test", HUGE, "at most 2396, as many different ones as families.countdown gives"),
    ("lab.problems.validation", 981, "at most 980, as many"),
    ("lab.first_test", 500, "lab.first_test is 500; allowed is at most 499, before the last of"),
    ("lab.first_test", 301, "ch00.problems is 200; allowed is at most 199, .*first_test, 301, on"),
    ("smoke.first_test", 11, "ch00.problems is 8; allowed is at most 5, problems.test from"),
    ("lab.rl.steps", 10**9, "at most 680, with 24 new ones a step of the 16340 different"),
    ("lab.rl.problems", 10**9, "lab.rl.steps is 60; allowed is at most 0"),
    ("lab.ladders.plateau", 12, "at most 11, with 1440 different training problems of"),
    ("lab.ladders.easier.countdown", [4], "1440 different train problems each; 4 gives 0"),
    ("lab.ladders.easier.chain", [4], "at most 3, families.chain.depth"),
    ("lab.families.chain.depths", [9], "at most 8, as chapter 7 asks for one link more"),
    ("lab.rl.samples", 10**9, "at most 41666, with problems 24, as 1000000 answers at once fit"),
    ("lab.rl.max_new_tokens", 400, "at most 366, which prompts leave of model.context, 384"),
    ("lab.rl.checkpoints", [10, 60], "at most 59"),
    ("lab.rl.micro_tokens", 383, "lab.model.context is 384; allowed is at most 383, rl.micro_t"),
    ("lab.pretrain.checkpoints", 10**6, "at most 569, the steps that"),
    ("lab.pretrain.tokens", HUGE, "at most 1000000000"),
    ("lab.distill.problems", HUGE, "at most 16340"),
    ("lab.distill.validation", 501, "at most 500, problems.validation"),
    ("lab.distill.rank", 129, "at most 128, model.hidden"),
    ("lab.distill.evaluations", 3001, "at most 3000"),
    ("lab.model.heads", 3, "what divides model.hidden, 128, into heads of an even size"),
    ("lab.model.heads", 128, "heads of an even size"),
    ("lab.model.layers", HUGE, "at most 256"),
    ("lab.model.hidden", 16384, "lab.model is .* at most 1,000,000,000 weights"),
    ("lab.families.countdown.expressions", [12], r"\[least, most\]"),
    ("lab.families.countdown.expressions", [16, 12], r"\[least, most\]"),
    ("lab.families.countdown.expressions", [99, 99], "lab.problems.train is 4000; .* at most 0"),
    ("lab.families.chain.reviews", 0.8, "at most 0.75, as families.chain.facts is 0.25"),
    ("lab.families", {}, "lab.families.countdown is None; allowed is to state it"),
    ("lab.seeds", [0, 1, 1], "none of them twice"),
    ("lab.seeds", list(range(101)), "lab.seeds has 101 values; allowed are at most 100"),
    ("lab.seeds", [HUGE], "at most 1000000"),
    ("lab.rl.lr", 10**400, "lab.rl.lr is 1000000000.{,300} at most 1.$"),
    ("lab.rl.lr", 0, "lab.rl.lr is 0; allowed is float at least 1e-9"),
    ("lab.rl.lr", float("inf"), "lab.rl.lr is inf"),
    ("toy.chapters.ch03.lrs", [0.1, 0], r"lrs\[1\] is 0; allowed is .* at least 1e"),
    ("lab.chapters.ch00.problems", 501, "at most 500, problems.test"),
    ("lab.chapters.ch01.layers", [7], "at most 3, the last block of lab/base"),
    ("toy.chapters.ch01.layers", [0, 7], "at most 1, the last block of toy"),
    ("toy.chapters.ch02.max_new_tokens", 4096, "at most 4095, as toy reads 4096 tokens"),
    ("lab.chapters.ch01.n_validation", 501, "at most 500, problems.validation"),
    ("lab.chapters.ch01.n_traces", 4001, "at most 4000, problems.train"),
    ("lab.chapters.ch02.max_new_tokens", 367, "at most 366, as lab/base reads 384 tokens"),
    ("lab.chapters.ch02.n_problems", 401, "at most 400, a tenth of problems.train"),
    ("lab.chapters.ch02.resample_samples", 10001, "at most 10000, with n_problems 100"),
    ("lab.chapters.ch02.traces_per_problem", 257, "at most 256, n_samples"),
    ("lab.chapters.ch03.few_problems", 9, "at most 4, seed_problems"),
    ("lab.chapters.ch03.seed_problems", 61, "at most 60, pool_problems"),
    ("lab.chapters.ch03.rl_steps", 2043, "at most 2042, with 8 new ones a step of the 16340"),
    ("lab.chapters.ch04.strengths", [-1.0, 1.0], "a list with 0 and other strengths"),
    ("lab.chapters.ch04.strengths", [0], "a list with 0 and other strengths"),
    ("lab.chapters.ch07.n_problems", 501, "at most 500, problems.test"),
    ("lab.chapters.ch07.edge_samples", 10001, "at most 10000, with depth_problems 100"),
    ("lab.chapters.ch05.prefixes", ["try", " First"], "a list of the lab's words"),
    ("lab.checkpoints", "smoke", "to leave it out, as the profile trains models of its own"),
    ("colab.checkpoints", "toy", "a profile that trains models"),
    ("colab.checkpoints", "colab", "a profile that trains models"),
    ("smoke.chapters.ch03.n_problems", 17, "at most 16, problems.(validation|test)"),
    ("colab.seeds", [0, 7], r"a list of seeds that checkpoints of lab have, \[0, 1, 2\]"),
    ("colab.chapters.ch01.layers", [4], "at most 3, the last block of lab/base"),
    ("toy.chapters.ch02.base_model", "lab/base", "another value, or `checkpoints` in the profile"),
    ("toy.chapters.ch02.tasks", ["chain"], "another value, or `checkpoints` in the profile"),
    ("toy.chapters.ch02.n_problems", HUGE, "at most 10000"),
    ("smoke.rl", {}, "smoke.rl lacks steps"),
])
def test_what_would_hang_or_die_late_is_refused_at_once(read, names, value, sentence):
    profile = names.partition(".")[0]
    with pytest.raises(errors.BadInput, match=sentence) as raised:
        read(names, value)
    assert str(raised.value).startswith(f"{profile}.") and len(str(raised.value)) < 400


def test_the_toy_has_the_shape_it_is_held_to():
    config = packaged.toy()[0].config
    assert bounds.TOY == (config.num_hidden_layers, config.max_position_embeddings)


@pytest.mark.parametrize("sign", ["", "+some/adapter"])
def test_a_local_model_is_held_to_its_own_shape(changed, tmp_path, monkeypatch, sign):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    shape = {"num_hidden_layers": 6, "max_position_embeddings": 512}
    path = changed("paper", "chapters", "ch01", "base_model", value=f"mine{sign}")
    for config in (shape, {"text_config": shape}):
        Path("mine/config.json").write_text(json.dumps(config))
        params._checked.cache_clear()
        with pytest.raises(errors.BadInput, match="layers is .* at most 5, the last block of mine"):
            params.load("paper", path)
    for config in ("", "[]", "{}", "[1]", '"x"', '{"text_config": 3}',
                   '{"num_hidden_layers": "2"}'):  # of which the loader of models speaks
        Path("mine/config.json").write_text(config)
        params._checked.cache_clear()
        assert params.load("paper", path)


@pytest.mark.parametrize("gone", ["seeds", *bounds.TRAINING])
def test_a_profile_without_a_section_is_refused(tmp_path, gone):
    values = yaml.safe_load(FILE.read_text())
    del values["smoke"][gone]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(errors.BadInput, match=f"smoke.{gone} is None; allowed is"):
        params.load("smoke", tmp_path / "params.yaml")


@pytest.mark.parametrize("broken, sentence", [
    ("lab.rl", "lab.rl is None; allowed is to state it"), ("lab.pretrain", "lab.pretrain is None"),
    ("lab.families.chain", "lab.families.chain is None")])
def test_whoever_reads_checkpoints_hears_what_is_wrong_with_their_profile(read, broken, sentence):
    *names, gone = broken.split(".")[1:]
    lab = place = copy.deepcopy(BOOK["lab"])
    for step in names:
        place = place[step]
    del place[gone]
    for profile in ("lab", "colab"):
        with pytest.raises(errors.BadInput, match=sentence if profile == "lab" else "allowed is"):
            read("lab", lab, profile)


def test_profiles_that_read_each_others_checkpoints_are_refused(read):
    with pytest.raises(errors.BadInput, match="colab.checkpoints is 'lab'; .* that trains models"):
        read("lab.checkpoints", "colab", "colab")


def test_no_number_of_a_profile_can_grow_without_bound(read):
    """Every number of every profile, alone or in a list, grown to a thousand millions."""
    grown = {}
    for name, value in leaves({p: BOOK[p] for p in params.PROFILES}).items():
        first = value[0] if isinstance(value, list) else value
        if type(first) in (int, float):
            large = type(first)(10**9 + first)
            grown[name[1:]] = [large] if isinstance(value, list) else large
    for name, large in grown.items():
        with pytest.raises(errors.BadInput):
            read(name, large)
            pytest.fail(f"{name} may be {large}")
    assert len(grown) > 400


def test_a_change_for_one_run_is_held_to_the_same_relations(monkeypatch):
    monkeypatch.setenv(params.CHANGES, "")
    params.change("smoke", "ch01", {"layers": [2]})
    with pytest.raises(errors.BadInput, match=r"smoke.chapters.ch01.layers is \[2\].*at most 1"):
        params.load("smoke", FILE)
    params.change("smoke", "ch01", {"layers": [1]})
    assert params.load("smoke", FILE)["chapters"]["ch01"]["layers"] == [1]


@pytest.mark.parametrize("largest, expressions", [(4, [1, 99]), (5, [1, 99]), (7, [10, 16])])
def test_countdown_counts_its_different_problems(largest, expressions):
    """As many can be drawn, and not one more; one more is refused, and a million millions too."""
    generator = {"largest_number": largest, "expressions": expressions}
    n = countdown.count("train", generator)
    assert len({p.key for p in countdown.problems("train", n, 0, generator)}) == n > 10
    for more in (n + 1, HUGE):
        with pytest.raises(errors.BadInput, match=f"hardly {n}"):
            countdown.problems("train", more, 0, generator)


@pytest.mark.parametrize("number, start, depth", [(2, 1, 1), (5, 3, 1), (2, 1, 2), (3, 2, 1)])
def test_chain_gives_as_many_problems_as_it_counts(number, start, depth):
    generator = {"largest_number": number, "largest_start": start, "depth": depth}
    n = chain.count("test", generator)
    assert len({p.key for p in chain.problems("test", n, 0, generator)}) == n > 5


def test_prompts_are_as_long_as_said():
    families = params.load("lab", FILE)["families"]
    for depth in (1, 3, 9):
        problem = chain.problems("train", 1, 0, families["chain"], depth)[0]
        assert len(problem.prompt) == chain.prompt_length(depth)
    problem = countdown.problems("train", 1, 0, families["countdown"])[0]
    assert len(problem.prompt) == countdown.prompt_length()


@pytest.mark.parametrize("text", ["garbage", "{}", "[1, 2]", '["smoke", "ch02", 3, {}]',
                                  '["smoke", [], {}, {}]', '["smoke", "ch02", {}, "n"]',
                                  "[" * 10**5])
def test_changes_that_are_none_are_refused_in_a_sentence(text, monkeypatch):
    monkeypatch.setenv(params.CHANGES, text)
    with pytest.raises(errors.BadInput, match="LOCKSMITH_CHANGES, a .* is .*; allowed is what"):
        params.load("smoke", FILE)
