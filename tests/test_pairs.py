"""Every chapter that profile toy names walks on pairs that no lab made: the toy's, and a user's own
folders under the profile paper."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from locksmith import packaged, params
from locksmith.book import notebooks
from locksmith.experiments import forecast
from repository import ROOT, environment
from transformers import Qwen2Config, Qwen2ForCausalLM

TOY = params.load("toy", ROOT / "params.yaml")["chapters"]
CHAPTERS = [path.stem for path in sorted((ROOT / "chapters").glob("0[1-5]*.ipynb"))
            if params.chapter_key(notebooks.number(path)) in TOY]
ONE = "02_base_model_sampling"


def small(*chapters):
    """Settings that make a run under paper as small as the toy's, with its task."""
    given = {name: value for chapter in chapters
             for name, value in TOY[params.chapter_key(notebooks.number(chapter))].items()}
    return ["seeds=[0]", *(f"{name}={json.dumps(value)}" for name, value in given.items()
                           if not name.endswith("_model"))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with what chapters read, and in it a base and a thinking model as a user has them:
    Qwen2-shaped, with random weights, the toy's tokenizer and chat template."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("params.yaml", "arms.yml", "claims.yml", "_config.yml", "references.bib"):
        shutil.copy(ROOT / name, root)
    for name in ("chapters", "_static"):
        shutil.copytree(ROOT / name, root / name)
    for seed, name in enumerate(("base", "thinking")):
        torch.manual_seed(seed)
        Qwen2ForCausalLM(Qwen2Config(
            vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
            bos_token_id=None, eos_token_id=1, pad_token_id=1)).save_pretrained(root / name)
        packaged.toy()[1].save_pretrained(root / name)
    (root / "models").mkdir()  # as bring.md calls them
    for name, given in (("base", "my-base"), ("thinking", "my-base-after-rl")):
        (root / "models" / given).symlink_to(root / name)
    return root


def command(root, module, *words):
    return subprocess.run([sys.executable, "-m", f"locksmith.book.{module}", *words], cwd=root,
                          env=environment(ROOT), capture_output=True, text=True)


def run(root, chapter, profile, *changes):
    """(what the process says, the chapter's facts, its page's text)."""
    given = [word for change in changes for word in ("--set", change)]
    done = command(root, "notebooks", "run", f"chapters/{chapter}.ipynb", "--profile", profile,
                   *given)
    if done.returncode:
        return done.stderr, None, None
    page = nbformat.read(root / "build/notebooks" / profile / f"{chapter}.ipynb", as_version=4)
    said = "\n".join(str(cell.source) + json.dumps(cell.get("outputs", "")) for cell in page.cells)
    record = json.loads((root / f"results/{profile}/{chapter[:2]}.json").read_text())
    return done.stderr, record, said


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_toy_pair_in_words_walks(home, chapter):
    _, record, _ = run(home, chapter, "toy")
    families = {fact["family"] for fact in record["facts"]}
    assert families == {"sums"}
    assert {"base", "thinking"} <= {fact["model"] for fact in record["facts"]}


def test_one_command_runs_chapters_on_a_pair_and_one_makes_their_pages(home):
    """The commands of bring.md, with two of the chapters made small. A setting of one of these goes
    to that one; `layers` is none of the second's."""
    chapters, told = CHAPTERS[:2], (ROOT / "bring.md").read_text()
    make, = re.findall(r"^make pair SET=.*$", told, re.M)
    said = subprocess.run([*shlex.split(make), "-n"], cwd=ROOT, env={"PATH": os.environ["PATH"]},
                          capture_output=True, text=True, check=True).stdout
    run_them, build = (shlex.split(line)[2:] for line in said.splitlines()[-2:])
    assert run_them[:5] == ["locksmith.book.notebooks", "run", "chapters/0[1-5]_*.ipynb",
                            "--profile", "paper"]
    done = command(home, "notebooks", "run", *(f"chapters/{x}.ipynb" for x in chapters),
                   *run_them[3:], *small(*chapters), "max_new_tokens=32", "thinking_chat=true")
    assert done.returncode == 0, done.stderr
    own = [json.loads((home / f"results/paper/{x[:2]}.json").read_text()) for x in chapters]
    given = [record["provenance"]["parameters"]["chapter"] for record in own]
    assert [g["thinking_model"] for g in given] == ["models/my-base-after-rl"] * 2
    assert given[0]["layers"] == [0, 1] and "layers" not in given[1]

    assert build == ["locksmith.book.pages", "build", "--profile", "paper"]
    done = command(home, "pages", *build[1:])
    assert done.returncode == 0, done.stderr
    first = Path(done.stdout.strip())
    assert first == home / "build/pages/paper/index.html"
    assert "<td><p><code" in first.read_text() and "thinking" in first.read_text()
    for chapter in chapters:
        page = first.with_name(f"{chapter}.html").read_text()
        assert f'href="{chapter}.html"' in first.read_text()
        assert "verdict.ipynb" not in page and page.count("<img") >= 1
    damaged = home / f"results/paper/{chapters[0][:2]}.json"
    whole = damaged.read_bytes()
    damaged.write_text("{}")
    done = command(home, "pages", "build", "--profile", "paper")
    assert done.returncode == 2 and "is not the one with which" in done.stderr
    damaged.write_bytes(whole)  # later chapters read it
    assert first.exists()


def test_two_toy_models_walk_from_their_rl_to_the_page(home):
    done = subprocess.run(
        [sys.executable, "-m", "locksmith.experiments.real_rl", "--profile", "toy"], cwd=home,
        env=environment(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, record, _ = run(home, "06_real_weights", "toy")
    families = {fact["family"] for fact in record["facts"]}
    assert families == {"sums", "sums_thinking", "gsm_symbolic", "chat"}
    arms = {fact["model"] for fact in record["facts"] if fact["family"] == "sums"}
    assert arms == {"base", "thinking", "random-reward", "format-reward", "rl-one-problem"}
    assert len(record["provenance"]["checkpoints"]) == 5
    drawn = {path.stem for path in (home / "results/toy/figures").glob("06_*.png")}
    assert drawn == {"06_steps_present", "06_steps_absent", "06_when_how", "06_tools"}


@pytest.mark.parametrize("chapter", CHAPTERS[2:])
def test_a_pair_in_local_folders_runs_under_paper(home, chapter):
    said, record, _ = run(home, chapter, "paper", *small(chapter), "base_model=base",
                          "thinking_model=thinking", "thinking_chat=true")
    assert "tokens a second" in said and "GiB of weights" in said
    assert record["provenance"]["parameters"]["chapter"]["base_model"] == "base"
    assert {"base", "thinking"} <= {fact["model"] for fact in record["facts"]}


def test_the_recipe_has_the_table_of_pairs_with_whole_commits(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert forecast.table() in (ROOT / "bring.md").read_text()
    for base, thinking, _ in forecast.PAIRS:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", base)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+(@[0-9a-f]{40})?", thinking)


def test_a_forecast_is_the_slowest_of_what_a_step_needs():
    """A big model on a slow card reads or multiplies; a tiny one waits for its kernels."""
    tiny, big = forecast.Shape(0.001, 10, 0), forecast.Shape(100, 10, 0)
    def hours(shape, answers):
        return forecast.hours(shape, "H100", answers, 3600)

    assert hours(tiny, forecast.ROWS) == pytest.approx(10 * forecast.LAUNCH)
    # 76.8 TFLOP a step at 30 % of 989 TFLOP a second; 200 GB at 30 % of 3,350 GB a second are less.
    assert hours(big, forecast.ROWS) == pytest.approx(76.8 / 296.7, rel=1e-3)
    assert hours(big, 2 * forecast.ROWS + 1) == pytest.approx(3 * 76.8 / 296.7, rel=1e-3)
    for size in {size for *_, size in forecast.PAIRS}:
        assert forecast.memory(size, "ch01", 1000) > forecast.memory(size, "ch02", 1000)


def test_what_a_model_of_70_billion_needs_is_worked_out_by_hand():
    """141 GB of weights, 151 GB of cache: eight cards. Reading them takes 29 ms a token, starting
    the kernels of 80 blocks 80 ms, for 1,334 batches of 384 answers."""
    assert forecast.SHAPE_70B.cache == 2 * 2 * 80 * 8 * 128  # keys, values; bytes; blocks; heads
    found = forecast.need()
    assert found.gigabytes == pytest.approx(141.2 + 151.0 + 0.9, abs=0.1) and found.cards == 8
    assert found.hours == pytest.approx(1334 * 1000 * 0.080 / 3600)
    assert found.dollars == pytest.approx(8 * found.hours * 3.9)
    assert 900 < found.dollars < 950


def test_a_need_grows_with_what_is_asked():
    whole, half = forecast.need(samples=768), forecast.need(samples=384)
    assert whole.hours == pytest.approx(2 * half.hours) and whole.cards == half.cards
    small = forecast.need(forecast.PAIRS[0][2])
    assert small.cards == 1 and small.hours < whole.hours and small.dollars < whole.dollars
    longer, cheaper = forecast.need(new_tokens=16_384), forecast.need(dollars=1.95)
    assert longer.cards == 32 and cheaper.dollars == pytest.approx(forecast.need().dollars / 2)
    # With so many more answers at once the card's arithmetic counts, shared by eight.
    big = forecast.Shape(1000, 80, 0)
    assert forecast.hours(big, "H100", forecast.ROWS, 3600, 8) == pytest.approx(
        2 * 1000 * 384 / (0.3 * 8 * 989e3), rel=1e-6)


def test_without_a_thinking_model_its_arms_leave_the_page(home):
    _, record, page = run(home, ONE, "paper", *small(ONE), "base_model=base")
    assert {fact["model"] for fact in record["facts"]} == {"base", "guess"}
    assert page.count("Left out: this profile has no thinking model.") > 3


@pytest.mark.parametrize("change, sentence", [
    ("base_model=Qwen/Qwen2.5-0.5B", "a hub model is named with its full commit"),
    ("tasks=[gsm8k]", "gsm8k needs nowhere/test.jsonl, which is not there")])
def test_what_cannot_run_is_told_before_anything_does(home, monkeypatch, change, sentence):
    monkeypatch.setenv("LOCKSMITH_GSM8K", "nowhere")
    said, _, _ = run(home, ONE, "paper", *small(ONE), "base_model=base", change)
    cells = nbformat.read(ROOT / f"chapters/{ONE}.ipynb", as_version=4).cells
    first = next(i for i, cell in enumerate(cells) if "parallel.workers" in cell.source)
    assert sentence in said and int(re.search(r"failed in cell (\d+)", said)[1]) < first
