"""params.yaml and its checks: wrong input gives one sentence naming it and what is allowed."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from locksmith import errors, params

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
