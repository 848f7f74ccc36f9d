"""Damage to each file that a book is made of ends in one sentence that names it."""

import hashlib
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from dvc.repo import Repo
from injections import BY_KIND, FILES
from locksmith import corpus, errors, lab, model, params, plain_yaml, results
from locksmith.book import integrity, notebooks, site
from repository import ROOT, git
from test_book import keep, repository
from test_claims import record

BASE = "checkpoints/lab/countdown/base"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book that can be built, with checkpoints and data, as DVC and the records state them."""
    root = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository(root))
        for seed in (0, 1):
            net = model.build(params.load("smoke")["model"], seed)
            model.save(net, f"{BASE}/seed{seed}", seed=seed, family="countdown")
        corpus.run("smoke")
        Path("data/smoke").rename("data/lab")
        sums = Path("results/smoke/data.sha256").read_text()
        results.save("results/lab/data.sha256", sums.replace("smoke", "lab"))
        shutil.rmtree("results/smoke")
        for name in ("chain_rl", "countdown_rl"):
            made = json.loads(record("lab", f"train/{name}", [], []))
            made["provenance"]["checkpoints"][f"{BASE}/seed0"] = model.checksum(f"{BASE}/seed0")
            results.save(f"results/lab/train/{name}.json", json.dumps(
                {**made, "extra": {"curve": [1, 2], "family": name}}))
        first = "build/notebooks/lab/00_the_lab.ipynb"
        keep(nbformat.read(first, 4), "00_the_lab", root, "results/lab/00.json",
             "results/lab/train/countdown_rl.json")
        with Repo.init(no_scm=True) as repo:
            repo.add(["data", BASE])
        stated = plain_yaml.read(f"{BASE}.dvc")["outs"][0]
        results.save("dvc.lock", json.dumps({"schema": "2.0", "stages": {"pretrain": {"outs": [
            {**stated, "path": BASE}]}}}))
    return root


@pytest.fixture
def damaged(book):
    """A function that damages a file of the book and gives its path; afterwards it is whole."""
    before = {}

    def damage(path, how):
        path = book / path
        before[path] = path.read_bytes()
        how(path)
        return path
    yield damage
    for path, content in before.items():
        path.write_bytes(content)


def test_an_undamaged_book_is_assembled_and_its_checkpoint_and_data_are_read(book, monkeypatch):
    assert (site.assemble("lab", book, book / "build" / "asm") / "index.md").is_file()
    integrity.check("lab", book, whole=True)
    monkeypatch.chdir(book)
    lab.load("lab", "countdown", "base", 0)


@pytest.mark.parametrize("kind", BY_KIND)
def test_damage_is_refused_in_one_sentence_that_names_the_file(kind, book, damaged):
    path = FILES[kind].format(profile="lab")
    named = {"manifest": BASE, "weights": BASE, "data": "data"}.get(kind, Path(path).stem)
    content, accepted = (book / path).read_bytes(), []
    for name, how in BY_KIND[kind].items():
        damaged(path, how)
        try:
            site.assemble("lab", book, book / "build" / "asm")
            accepted.append(name)
        except errors.BadInput as error:
            assert named in str(error) and "\n" not in str(error), (name, str(error))
        (book / path).write_bytes(content)
    assert accepted == []


# Sound by themselves: another run may have written them. That they are not those of the page shows.
SOUND = {"gone", "a fact gone", "all facts gone", "one digit of a value"}


@pytest.mark.parametrize("name", BY_KIND["record"])
def test_a_record_is_checked_where_it_is_read_and_a_sound_one_must_be_the_pages(
        name, book, damaged, monkeypatch):
    """Also where the table of facts is written anew, so that it cannot differ."""
    monkeypatch.chdir(book)
    path = FILES["record"].format(profile="lab")
    for table in ("results/facts.csv", *map(str, Path("results/metrics").iterdir())):
        damaged(table, lambda file: None)  # is put back
    damaged(path, BY_KIND["record"][name])
    if name not in SOUND:
        with pytest.raises(errors.BadInput, match=path) as caught:
            results.facts()
        assert "\n" not in str(caught.value)
    else:
        results.facts()
        with pytest.raises(errors.BadInput, match=r"(02.json|facts.csv) .* made"):
            site.assemble("lab", book, book / "build" / "asm")


def test_the_line_of_a_fact_is_named(book, damaged, monkeypatch):
    monkeypatch.chdir(book)
    path = damaged("results/lab/02.json", lambda file: file.write_text(
        file.read_text().replace('"facts": [', '"facts": [\n').replace("}, {", "},\n{")))
    *facts, last = path.read_text().partition('"facts"')[2].splitlines()
    bad = last.replace('"n_problems": ', '"n_problems": -')
    path.write_text(path.read_text().replace(last, bad))
    line = path.read_text().splitlines().index(bad[:-1] if bad not in path.read_text() else bad) + 1
    with pytest.raises(errors.BadInput, match=rf"02.json, line {line}: .* n_problems is -"):
        results.read("lab", "02")


@pytest.mark.parametrize("name", BY_KIND["manifest"])
def test_a_damaged_manifest_never_loads(name, book, damaged):
    damaged(FILES["manifest"].format(profile="lab"), BY_KIND["manifest"][name])
    with pytest.raises(errors.BadInput, match="seed0"):
        model.load(book / BASE / "seed0")


@pytest.mark.parametrize("name", BY_KIND["data"])
def test_damaged_problems_are_never_asked(name, book, damaged, monkeypatch):
    monkeypatch.chdir(book)
    monkeypatch.setattr(lab, "config", lambda profile: {**params.load("smoke"), "profile": "lab"})
    n = params.load("smoke")["problems"]["test"]
    assert len(lab.problems("lab", "countdown", n)) == n
    damaged(FILES["data"].format(profile="lab"), BY_KIND["data"][name])
    with pytest.raises(errors.BadInput, match="countdown_test.jsonl"):
        lab.problems("lab", "countdown", n)


def test_a_sound_checkpoint_in_anothers_place_is_named(book, damaged, monkeypatch):
    monkeypatch.chdir(book)
    for file in sorted(Path(BASE, "seed1").iterdir()):
        damaged(f"{BASE}/seed0/{file.name}", lambda path, file=file: shutil.copy(file, path))
    model.load(f"{BASE}/seed0")
    with pytest.raises(errors.BadInput, match="seed0 is another model: its manifest says seed 1"):
        lab.load("lab", "countdown", "base", 0)
    with pytest.raises(errors.BadInput, match="seed0/model.safetensors is not the model that"):
        integrity.check("lab", book)


# ---- what a run leaves


CHAPTER = """
from locksmith import results, staging
for name in ("02.json", "figures/02_curve.png"):
    results.save(staging.path(f"results/smoke/{name}"), "of this run")
results.save(staging.path("results/lab/figures/00_a.png"), "drawn again by this run")
print("solved 3 of 4")
"""
PIPELINE = """
stages:
  chapter-02:
    cmd: python -m locksmith.book.notebooks run chapters/02_toy.ipynb --profile ${profile}
    deps: [chapters/02_toy.ipynb, lib/locksmith/stats.py, results/lab/00.json]
    outs:
      - build/notebooks/${profile}/02_toy.ipynb
"""


def test_a_run_marks_its_page_with_what_it_was_made_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(params.SCHEMA["chapters"], "ch02", {"n": "int 1.."})
    Path("params.yaml").write_text(
        "profile: smoke\nsmoke: {seeds: [0], chapters: {ch02: {n: 3}}}\n")
    Path("dvc.yaml").write_text(PIPELINE)
    results.save("results/lab/00.json", record("lab", "00", [], []))
    results.save("results/lab/figures/00_a.png", "of the lab")
    results.save("results/smoke/figures/02_old.png", "of an earlier run")
    parameters = nbformat.v4.new_code_cell("profile = 'lab'\nn = 3",
                                           metadata={"tags": ["parameters"]})
    chapter = nbformat.v4.new_notebook(
        cells=[parameters, nbformat.v4.new_code_cell(CHAPTER)], metadata={"kernelspec": {
            "name": "python3", "display_name": "Python 3", "language": "python"}})
    Path("chapters").mkdir()
    nbformat.write(chapter, "chapters/02_toy.ipynb")
    path = notebooks.run("chapters/02_toy.ipynb", "smoke")
    first = path.read_bytes()
    page = integrity.executed(path.as_posix(), Path())
    assert page["cells"][-1]["outputs"][0]["text"] == ["solved 3 of 4\n"]
    made_with = page["metadata"]["locksmith"]["made_with"]
    assert set(made_with) == {"results/smoke/02.json", "results/smoke/figures/02_curve.png",
                              "results/lab/00.json", "results/lab/figures/00_a.png"}
    for name, sha256 in made_with.items():
        assert hashlib.sha256(Path(name).read_bytes()).hexdigest() == sha256
    assert notebooks.run("chapters/02_toy.ipynb", "smoke").read_bytes() == first
    path.write_text(path.read_text().replace('"solved 3', '"solved 4'))
    with pytest.raises(errors.BadInput, match="02_toy.ipynb is not as its run left it"):
        integrity.executed(path.as_posix(), Path())


def test_what_says_what_the_data_are_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.save("data/smoke/chain_test.jsonl", "{}")
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    shutil.copy(ROOT / "arms.yml", "arms.yml")
    results.facts()
    with pytest.raises(errors.BadInput, match="results/smoke/data.sha256 does not exist"):
        integrity.check("smoke")
    results.save("results/smoke/data.sha256", f"{'0' * 64}  data/smoke/chain_train.jsonl\n")
    with pytest.raises(errors.BadInput, match="data/smoke/chain_train.jsonl is not what"):
        integrity.check("smoke")


# ---- the store


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", integrity.STATED)
def test_a_file_that_states_what_there_is_must_be_there(file, book, damaged):
    damaged(file, Path.unlink)
    with pytest.raises(errors.BadInput, match=f"{file} is missing; `git checkout {file}`"):
        integrity.check("lab", book, whole=True)


@pytest.mark.parametrize("how", ["a file", "a list of files", "another list", "an empty list",
                                 "the cache", "dvc.lock"])
def test_what_a_damaged_store_or_cache_hands_out_is_refused(how, book, tmp_path, monkeypatch):
    root = tmp_path / "clone"
    shutil.copytree(book, root, ignore=shutil.ignore_patterns("build", "tmp"))
    shutil.copy(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    git(root, "init", "-q")
    monkeypatch.chdir(root)
    one, two = (plain_yaml.read(file)["outs"][0]["md5"] for file in ("data.dvc", f"{BASE}.dvc"))
    objects = Path(".dvcstore/files/md5")
    listed, other = (objects / md5[:2] / md5[2:] for md5 in (one, two))
    with Repo() as repo:
        repo.push()
        sums = {entry["relpath"]: entry["md5"] for entry in json.loads(listed.read_text())}
        md5 = sums["lab/countdown_test.jsonl"]
        a_file = objects / md5[:2] / md5[2:]
        for file in objects.rglob("*"):
            file.chmod(0o755)
        if how == "the cache":
            _flip(Path(".dvc/cache/files/md5", *a_file.parts[-2:]))
        else:
            shutil.rmtree(".dvc/cache")
        before = {file: file.read_bytes() for file in objects.rglob("*") if file.is_file()}
        {"a file": lambda: _flip(a_file), "another list": lambda: shutil.copy(other, listed),
         "a list of files": lambda: listed.write_text(listed.read_text().replace("_test", "_tset")),
         "an empty list": lambda: listed.write_text("[]"), "the cache": lambda: None,
         "dvc.lock": lambda: Path("dvc.lock").write_text(
             Path("dvc.lock").read_text().replace(two, one))}[how]()
        shutil.rmtree("data")
        shutil.rmtree(BASE)
        try:
            repo.pull(allow_missing=True)
        except Exception as error:  # DVC's own refusal, of whatever class, is one too
            assert how == "a file", error
    with pytest.raises(errors.BadInput, match="dvc.lock" if how == "dvc.lock" else "data"):
        integrity.check("lab", whole=True)
    if how in ("a list of files", "another list", "an empty list"):  # the way out that is named
        for file, content in before.items():
            file.write_bytes(content)
        for folder in (".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(folder)
        with Repo() as repo:
            repo.pull(force=True, allow_missing=True)
        integrity.check("lab", whole=True)
