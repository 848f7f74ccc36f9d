"""Every chapter of CHAPTERS walks on pairs that no lab made: the toy, and a user's own folder."""

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from locksmith import packaged
from locksmith.experiments import word_traces
from repository import ROOT, environment
from transformers import Qwen2Config, Qwen2ForCausalLM

LITTLE = ["n_problems=4", "steps=2", "target_tokens=24", "rl_steps=2", "rl_problems=2",
          "rl_samples=2", "pool_problems=4", "pool_samples=2"]
CHAPTERS = {
    "01_hybrid_steering": [
        "n_problems=2", "n_validation=2", "n_traces=16", "latents=[3]", "layers=[0,1]",
        "strengths=[1.0]", "thresholds=[0.3]", "fit_steps=2", "max_new_tokens=48"],
    "02_base_model_sampling": [
        "n_problems=4", "n_samples=4", "max_new_tokens=16", "resample_samples=4", "matched_samples=4",
        "entropy_problems=2", "power_block=8", "power_steps=1", "power_chains=1"],
    "03_one_problem": [
        *LITTLE, "n_samples=2", "seed_problems=2", "few_problems=1", "n_candidates=4",
        "other_lrs=[0.001]", "curve_samples=2", "max_new_tokens=64"],
    "04_latent_vectors": [
        "n_problems=2", "read_problems=24", "own_samples=1", "max_new_tokens=16", "word_sums=8",
        "word_samples=2", "word_tokens=4"],
    "05_cheaper_keys": [*LITTLE, "n_samples=1", "rounds=2", "solved=[1]", "max_new_tokens=24"]}
ONE = "02_base_model_sampling"


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
         "--profile", profile, *given], cwd=root, env=environment(ROOT), capture_output=True, text=True)
    if done.returncode:
        return done.stderr, None, None
    page = nbformat.read(root / "build/notebooks" / profile / f"{chapter}.ipynb", as_version=4)
    said = "\n".join(str(cell.source) + json.dumps(cell.get("outputs", "")) for cell in page.cells)
    return done.stderr, json.loads((root / f"results/{profile}/{chapter[:2]}.json").read_text()), said


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_toy_pair_in_words_walks(home, chapter):
    _, record, _ = run(home, chapter, "toy")
    families = {fact["family"] for fact in record["facts"]}
    assert families - {word_traces.FAMILY} == {"sums"}
    assert {"base", "thinking"} <= {fact["model"] for fact in record["facts"]}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_pair_in_local_folders_runs_under_paper(home, chapter):
    said, record, _ = run(home, chapter, "paper", "seeds=[0]", "tasks=[sums]", "base_model=base",
                          "thinking_model=thinking", "thinking_chat=true", *CHAPTERS[chapter])
    assert "tokens a second" in said and "GiB of weights" in said
    assert record["provenance"]["parameters"]["chapter"]["base_model"] == "base"
    assert {"base", "thinking"} <= {fact["model"] for fact in record["facts"]}


def test_without_a_thinking_model_its_arms_leave_the_page(home):
    _, record, page = run(home, ONE, "paper", "seeds=[0]", "tasks=[sums]", "base_model=base",
                          *CHAPTERS[ONE])
    assert {fact["model"] for fact in record["facts"]} == {"base", "guess"}
    assert page.count("Left out: this profile has no thinking model.") > 3


@pytest.mark.parametrize("change, sentence", [
    ("base_model=Qwen/Qwen2.5-0.5B", "a hub model is named with its full commit"),
    ("tasks=[gsm8k]", "gsm8k needs nowhere/test.jsonl, which is not there")])
def test_what_cannot_run_is_told_before_anything_does(home, monkeypatch, change, sentence):
    monkeypatch.setenv("LOCKSMITH_GSM8K", "nowhere")
    said, _, _ = run(home, ONE, "paper", "tasks=[sums]", "base_model=base", change)
    cells = nbformat.read(ROOT / f"chapters/{ONE}.ipynb", as_version=4).cells
    first = next(i for i, cell in enumerate(cells) if "parallel.workers" in cell.source)
    assert sentence in said and int(re.search(r"failed in cell (\d+)", said)[1]) < first
