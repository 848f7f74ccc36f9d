"""Every chapter that profile toy names walks on pairs that no lab made: the toy's, and a user's own
folders under the profile paper."""

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from locksmith import packaged, params
from locksmith.book import notebooks
from locksmith.experiments import word_traces
from repository import ROOT, environment
from transformers import Qwen2Config, Qwen2ForCausalLM

TOY = params.load("toy", ROOT / "params.yaml")["chapters"]
CHAPTERS = [path.stem for path in sorted((ROOT / "chapters").glob("0*.ipynb"))
            if params.chapter_key(notebooks.number(path)) in TOY]
ONE = "02_base_model_sampling"


def small(chapter):
    """Settings that make a run under paper as small as the toy's, with its task."""
    given = TOY[params.chapter_key(notebooks.number(chapter))]
    return ["seeds=[0]", *(f"{name}={json.dumps(value)}" for name, value in given.items()
                           if not name.endswith("_model"))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with what chapters read, and in it a base and a thinking model as a user has them:
    Qwen2-shaped, with random weights, the toy's tokenizer and chat template."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("params.yaml", "arms.yml", "claims.yml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "chapters", root / "chapters")
    for seed, name in enumerate(("base", "thinking")):
        torch.manual_seed(seed)
        Qwen2ForCausalLM(Qwen2Config(
            vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
            bos_token_id=None, eos_token_id=1, pad_token_id=1)).save_pretrained(root / name)
        packaged.toy()[1].save_pretrained(root / name)
    return root


def run(root, chapter, profile, *changes):
    """(what the process says, the chapter's facts, its page's text)."""
    given = [word for change in changes for word in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "locksmith.book.notebooks", "run", f"chapters/{chapter}.ipynb",
         "--profile", profile, *given], cwd=root, env=environment(ROOT), capture_output=True,
                          text=True)
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
    assert families - {word_traces.FAMILY} == {"sums"}
    assert {"base", "thinking"} <= {fact["model"] for fact in record["facts"]}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_pair_in_local_folders_runs_under_paper(home, chapter):
    said, record, _ = run(home, chapter, "paper", *small(chapter), "base_model=base",
                          "thinking_model=thinking", "thinking_chat=true")
    assert "tokens a second" in said and "GiB of weights" in said
    assert record["provenance"]["parameters"]["chapter"]["base_model"] == "base"
    assert {"base", "thinking"} <= {fact["model"] for fact in record["facts"]}


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
