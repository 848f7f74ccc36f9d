"""YAML read as DVC reads it; what readers take for different values, or what hides one, refused."""

import math
from pathlib import Path

import pytest
from dvc.utils.serialize import loads_yaml
from locksmith import errors, params, plain_yaml

ROOT = Path(params.__file__).parents[2]


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml", "open/dvc.yaml", "arms.yml",
                                  "claims.yml", "_config.yml", "_toc.yml"])
def test_the_books_own_files_are_read_as_dvc_reads_them(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert plain_yaml.read(ROOT / file) == loads_yaml(text) != {}


NUMBERS = {"2e-05": 2e-5, "2e-4": 2e-4, "2E5": 2e5, "1.e3": 1e3, ".5": 0.5, "5.": 5.0, "+5": 5,
           "-0": 0, "0": 0, "0.00002": 2e-5, "1e999": math.inf, "-.inf": -math.inf,
           "9" * 300: int("9" * 300)}
OTHERS = {"true": True, "FALSE": False, "~": None, "null": None, "": None, "'010'": "010",
          "y": "y", "1,000": "1,000", "1/2": "1/2", "50%": "50%", "١٢": "١٢",
          "2001-1-1": "2001-1-1", '"yes"': "yes", "yes please": "yes please", "v010": "v010"}


@pytest.mark.parametrize("written, value", [*NUMBERS.items(), *OTHERS.items()])
def test_a_value_is_what_it_is_to_dvc(written, value):
    read = plain_yaml.parse(f"a: {written}\n", "x")["a"]
    assert (type(read), read) == (type(value), value)
    assert loads_yaml(f"a: {written}\n")["a"] == read


@pytest.mark.parametrize("written", [
    "010", "08", "00", "00.5", "-010", "0x10", "0o10", "0b11", "1_000", "1__0", "1.5_0", "_",
    "1:30", "190:20:30", "1:30.5", "yes", "No", "on", "OFF", "2001-01-01",
    "2001-01-01T00:00:00Z", "9" * 301])
def test_what_readers_take_for_different_values_is_refused(written):
    for text in (f"b: 1\na: {written}\n", f"b: 1\na: [{written}]\n", f"b: 1\n{written}: a\n"):
        with pytest.raises(errors.BadInput, match=r"x.yml, line 2 has `") as raised:
            plain_yaml.parse(text, "x.yml")
        assert written[:40] in str(raised.value) and "\n" not in str(raised.value)


REFUSED = {
    "b: 1\na: 2\na: 3\n": 'x.yml is not valid YAML at line 3: found duplicate key "a".$',
    "a: 2\n'a': 3\n": "line 2: found duplicate key",
    "a: {b: 1, c: {d: 2}, b: 3}": "found duplicate key \"b\"",
    "b: &b {a: 1}\nc: {<<: *b, <<: *b}": "line 2: found duplicate merge key",
    "a: {<<: 3}": "expected a mapping",
    "a: &a [*a]": r"line 1 has the alias \*a inside what it stands for",
    "a: &a\n  b: {<<: *a}": r"line 2 has the alias \*a",
    "a: &x 1\nb: &x 2": "line 2 has the anchor &x for a second time",
    "a: *b": "line 1: found undefined alias",
    "[" * 100_000: "line 1 has more than 40 levels",
    "{a: " * 5000: "more than 40 levels",
    "- " * 5000: "more than 40 levels",
    "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)): "is too large",
    "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 30)):
        "more than 40 levels or 100000 values",
    "a:\n\tb: 1": r"line 2: found character '\\t'",
    "a: 1\nb: \x00": r"line 2: it has the character '\\x00'",
    "a: \udcff": "line 1: it has the character",
    "a: [0": "line 1: expected",
    "a: b: c": "line 1: mapping values are not allowed",
    "a: 1\n---\nb: 1": "line 2: but found another document",
    "%YAML 1.1\n---\na: 1": "line 2 has a %YAML directive",
    "a: !!int '3'": "line 1 has the tag .*int",
    "a: !!int ''": "the tag",
    "a: !!python/object/apply:os.system ['true']": "the tag",
    "a: !!set {b}": "the tag",
    "a: =": "line 1: could not determine a constructor",
    "1: a": "has the key 1; allowed is text",
    "? [1, 2]\n: a": "has the key",
    "? {b: 1}\n: a": "unhashable key",
}


@pytest.mark.parametrize("text", REFUSED, ids=[text[:20] for text in REFUSED])
def test_what_cannot_be_read_is_one_sentence(text):
    with pytest.raises(errors.BadInput, match=REFUSED[text]) as raised:
        plain_yaml.parse(text, "x.yml")
    assert "\n" not in str(raised.value) and str(raised.value).startswith("x.yml")


def test_merge_keys_work_and_what_stands_beside_them_wins():
    assert plain_yaml.parse("a: &a {b: 1, c: 2}\nd: {<<: *a, b: 3}\ne: {b: 4, <<: *a}\n", "x") == {
        "a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": {"b": 4, "c": 2}}
    assert plain_yaml.parse("a: &a [1]\nb: *a\n", "x") == {"a": [1], "b": [1]}
    assert plain_yaml.parse("\ufeffa: 1\r\nb: 2\r\n", "x") == {"a": 1, "b": 2}


@pytest.mark.parametrize("content, sentence", [
    ("profile: lab\nä: 1\n".encode("latin-1"), "params.yaml is not UTF-8 at line 2."),
    ("profile: lab\n".encode("utf-16"), "params.yaml is not UTF-8 at line 1."),
    ("profile: lab\n".encode("utf-16-le"), "params.yaml is no text: it has a null byte at line 1."),
    (b"profile: lab\nlab: {seeds: [0], seeds: [1]}\n", "params.yaml is not valid YAML at line 2: "
                                                       "found duplicate key \"seeds\"."),
    (b"lab: " + b"[" * 9999, "params.yaml, line 1 has more than 40 levels of mappings and lists."),
    (b"", "params.yaml has no `profile`, the name of the profile to run."),
])
def test_the_check_says_it_in_one_sentence(tmp_path, monkeypatch, capsys, content, sentence):
    (tmp_path / "params.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["params", "check"])
    with pytest.raises(SystemExit) as ended:
        errors.run(params.main)
    assert (ended.value.code, capsys.readouterr().err) == (2, f"error: {sentence}\n")


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "absent.yml", tmp_path / ("x" * 300)):
        with pytest.raises(errors.BadInput, match="cannot be read"):
            plain_yaml.read(path)
