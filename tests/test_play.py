"""The lab's models in a browser, against the engine's logits and tokens; the page around them."""

import base64
import csv
import json
import random
import re
import shutil
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from locksmith import corpus, engine, errors, lab, model, params, stats, steering, vocabulary
from locksmith.book import play
from locksmith.experiments import browser, hybrid, taxonomy
from locksmith.loading import Pair
from locksmith.tasks import countdown
from repository import ROOT, smoke_lab

PROMPTS = 20
EDGE = 1e-5  # of probability: as near to a draw two roundings may part
SETUPS = {
    "base": {"writer": "base", "decides": False, "strength": 0, "when": "moments"},
    "twin": {"writer": "twin", "decides": False, "strength": 0, "when": "moments"},
    "decides": {"writer": "base", "decides": True, "strength": 0, "when": "moments"},
    "moments": {"writer": "base", "decides": False, "strength": 2, "when": "moments"},
    "random": {"writer": "twin", "decides": False, "strength": 1, "when": "random"},
}


@contextmanager
def random_lab(root):
    """A folder with the smoke profile's models, whose weights are random, and large enough for
    logits that differ."""
    with smoke_lab(root, ["countdown"], browser.MODELS):
        for which in browser.MODELS:
            path = lab.folder("smoke", "countdown", which, 0)
            net = model.load(path)
            for p in net.parameters():
                p.data *= 10 if p.dim() == 2 else 1
            model.save(net, path)
        yield


@contextmanager
def trained_lab():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        if not lab.folder("lab", "countdown", "twin", 0).is_dir():
            pytest.skip("needs the lab's checkpoints: `dvc pull` brings them")
        yield


def written(folder, tab):
    """The page in `folder`, whose scripts are laid out, shown in the tab."""
    blocks = re.findall(r"```\{raw\} html\n(.*?)```", (ROOT / "play.md").read_text(), re.S)
    path = folder / "play.html"
    path.write_text('<!doctype html><html data-theme="dark"><meta charset="utf-8"><meta '
                    'name="viewport" content="width=device-width">' + "".join(blocks))
    tab.open(path)


def laid_out(pair, chapter, root, tab):
    """Exports a pair as the profile `lab` of a book at `root`, beside the real facts."""
    shutil.copytree(ROOT / "play", root / "play")
    for name in ("arms.yml", "results/facts.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    browser.export(pair, chapter, root / "build" / "play" / "lab")
    play.lay_out("lab", root, root / "site" / "play")
    written(root / "site", tab)


def at(page):
    """The tab, with the page in it."""
    if page.tab.evaluate("location.href") != (page.root / "site/play.html").as_uri():
        written(page.root / "site", page.tab)
    return page.tab


def opened(profile, root, tab):
    """A pair, its models in float32 by role, and a page with them in the tab."""
    config = params.load(profile)
    chapter = config["chapters"]["ch01"] | {"n_traces": 8, "n_validation": 2, "layers": [1],
                                            "n_problems": 4, "max_new_tokens": 48}
    pair = Pair(profile, "countdown", 0)
    laid_out(pair, chapter, root, tab)
    return SimpleNamespace(
        pair=pair, tab=tab, root=root, models={
            role: pair.load(role, exact=True) for role in browser.MODELS},
        header=json.loads((root / "build/play/lab/header.json").read_text()),
        problems=countdown.problems("test", PROMPTS, 0, config["families"]["countdown"]))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, tab):
    with random_lab(tmp_path_factory.mktemp("lab")):
        yield opened("smoke", tmp_path_factory.mktemp("book"), tab)


@pytest.fixture(scope="module")
def real(tmp_path_factory, tab):
    with trained_lab():
        yield opened("lab", tmp_path_factory.mktemp("book"), tab)


def vectors(page, role):
    """Exported vectors (kinds, width), read as the page reads them."""
    rows = np.frombuffer(base64.b64decode(page.header["vectors"]["of"][role]), "<f4")
    return torch.tensor(rows.reshape(len(countdown.OPENINGS), -1))


def drawn(page, setup, seed):
    """The engine's tokens for a set-up: a list of ids a problem."""
    writer, thinking = page.models[setup["writer"]], page.models["thinking"]
    prompts = [vocabulary.encode(problem.prompt) for problem in page.problems]
    guides, process, steers, exported = [], None, [], page.header["vectors"]
    if setup["decides"]:
        guides = [thinking.net]
        process = hybrid.swap(taxonomy.decisions(writer, countdown))
    elif setup["strength"]:
        rows = vectors(page, setup["writer"])
        choose = hybrid.RandomPositions(exported["rate"], exported["frequencies"])
        if setup["when"] == "moments":
            tell = taxonomy.Openings(taxonomy.by_kind(writer, countdown))
            choose, guides = hybrid.Disagreement(tell), [thinking.net, writer.net]
        gate = hybrid.Gate(choose, len(rows), setup["strength"])
        steers = [steering.Steer(exported["layer"], rows, gate=gate)]
    return engine.sample(
        writer.net, prompts, max_new_tokens=48, stop=set(vocabulary.STOP), seed=seed,
        control=steering.Control(steers, guides, process)).ids()


def shown(page, setup, seed):
    """The page's tokens: {tokens, margins} a problem."""
    puzzles = [{"numbers": p.numbers, "targets": p.targets} for p in page.problems]
    return at(page).evaluate(f"""(async () => {{
        const setup = {json.dumps(setup)}, e = locksmith.engine, nets = await locksmith.nets(setup);
        return {json.dumps(puzzles)}.map((puzzle, key) => {{
            const sampler = new e.Sampler(nets, setup, e.prompt(puzzle), {{ seed: {seed}, key }});
            const drawn = [];
            while (sampler.texts.length) drawn.push(...sampler.step());
            return {{ tokens: drawn.map((x) => x.token), margins: drawn.map((x) => x.margin) }};
        }});
    }})()""")


def parted(page, name):
    """At how many of the problems the page's first other token lies within rounding of an edge; an
    AssertionError for one that does not."""
    within = 0
    for mine, theirs in zip(drawn(page, SETUPS[name], 3), shown(page, SETUPS[name], 3),
                            strict=True):
        other = [i for i, (a, b) in enumerate(zip(mine, theirs["tokens"])) if a != b]
        if other:
            assert theirs["margins"][other[0]] < EDGE, (name, other[0])
        else:
            assert mine == theirs["tokens"]
        within += bool(other)
    return within


def apart(page):
    """The largest difference of the page's logits from the model's own, over 20 traces."""
    setup, largest = SETUPS["base"], 0
    texts = [vocabulary.encode(p.prompt) + ids
             for p, ids in zip(page.problems, drawn(page, setup, 0))]
    answers = at(page).evaluate(f"""(async () => {{
        const e = locksmith.engine, {{ base }} = await locksmith.nets({json.dumps(setup)});
        const reader = new e.Reader(base, 1);
        return {json.dumps(texts)}.map((text) => text.map((token, place) =>
            [...reader.read([{{ slot: 0, token, place }}])]));
    }})()""")
    for text, logits in zip(texts, answers, strict=True):
        with torch.no_grad():
            own = page.models["base"].net(torch.tensor([text])).logits[0]
        assert own.std() > 0.5
        largest = max(largest, float((own - torch.tensor(logits)).abs().max()))
    return largest


# --- the models ---------------------------------------------------------------------------------


def test_a_model_is_one_small_file_that_rounds_nothing(smoke):
    for role in browser.MODELS:
        path = smoke.root / "build/play/lab" / f"{role}.bin"
        high, low = np.frombuffer(zlib.decompress(path.read_bytes()), np.uint8).reshape(2, -1)
        numbers = (high.astype(np.uint32) << 24 | low.astype(np.uint32) << 16).view(np.float32)
        for name, shape in smoke.header["tensors"]:
            own = browser.tensors(smoke.models[role].net)[name].detach().numpy()
            part, numbers = np.split(numbers, [own.size])
            assert (part.reshape(shape) == own).all(), (role, name)
        assert not len(numbers)


def test_the_exports_of_the_lab_are_under_two_megabytes(real):
    for role in browser.MODELS:
        for path in (real.root / f"build/play/lab/{role}.bin", real.root / f"site/play/{role}.js"):
            assert path.stat().st_size < 2e6, path


def test_logits_are_the_models_own(smoke):
    assert apart(smoke) < 1e-3


def test_logits_of_the_lab_are_its_own(real):
    assert apart(real) < 1e-3


@pytest.mark.parametrize("name", SETUPS)
def test_a_seed_gives_the_engines_tokens(name, smoke):
    assert parted(smoke, name) <= 1


@pytest.mark.parametrize("name", ["base", "moments"])
def test_a_seed_gives_the_engines_tokens_in_the_lab(name, real):
    assert parted(real, name) <= 1


def test_workers_draw_what_the_page_draws(smoke):
    """Whichever worker and slot a sample falls to."""
    setup, puzzle = SETUPS["moments"], {"numbers": [3, 7, 9], "targets": [40, 63]}
    many, one = at(smoke).evaluate(f"""(async () => {{
        const setup = {json.dumps(setup)}, puzzle = {json.dumps(puzzle)};
        const how = {{ seed: 5, key: 1, samples: 9, slots: 2 }}, e = locksmith.engine;
        const many = await locksmith.samples(setup, puzzle, how), one = [];
        for (let first = 0; first < 9; first++) {{
            const sampler = new e.Sampler(await locksmith.nets(setup), setup, e.prompt(puzzle),
                                          {{ ...how, first, samples: 1 }});
            one.push([]);
            while (sampler.texts.length) one.at(-1).push(sampler.step()[0].token);
        }}
        return [many.map((row) => row.tokens), one];
    }})()""")
    assert many == one and len(set(map(tuple, one))) > 5


def test_traces_are_graded_as_the_task_does(smoke):
    """Documents of the corpus, and documents that lost, doubled or changed a word."""
    draw, generator = random.Random(0), params.load("smoke")["families"]["countdown"]
    cases, own = [], []
    for i in range(300):
        problem = smoke.problems[i % PROMPTS]
        words = list(countdown.document(draw, problem, corpus.author(draw, generator), generator))
        j = draw.randrange(len(words))
        words[j:j + 1] = [[words[j]], [], [words[j]] * 2,
                          [draw.choice(vocabulary.VOCABULARY)]][i % 4]
        cases.append([{"numbers": problem.numbers, "targets": problem.targets},
                      vocabulary.encode(words)])
        grade = countdown.grade(problem, words)
        own.append({"solved": grade.correct, "attempts": grade.attempts,
                    "backtracks": grade.backtracks})
    assert at(smoke).evaluate(
        f"{json.dumps(cases)}.map((x) => locksmith.engine.grade(...x))") == own
    assert 10 < sum(grade["solved"] for grade in own) < 290


def test_the_interval_is_wilsons(smoke):
    for solved in (0, 1, 17, 50):
        low, high = at(smoke).evaluate(f"locksmith.wilson({solved}, 50)")
        assert (low, high) == pytest.approx(stats.wilson(solved, 50)[1:], abs=1e-9)


# --- the page -----------------------------------------------------------------------------------


def text(tab, name):
    return tab.evaluate(f"document.getElementById('locksmith-{name}').textContent")


def focus(tab, name):
    tab.evaluate(f"document.getElementById('locksmith-{name}').focus()")


def wait(tab, condition):
    assert tab.evaluate(f"""new Promise((done) => {{
        const end = Date.now() + 120000;
        const look = () => {condition} ? done(true) : Date.now() > end ? done(false)
            : setTimeout(look, 20);
        look();
    }})"""), condition


def test_the_key_is_turned_by_keyboard_and_what_happens_is_said(smoke):
    tab = smoke.tab
    written(smoke.root / "site", tab)
    assert not tab.evaluate("Object.keys(locksmithWeights).length "
                            "+ document.querySelectorAll('script[src*=\"twin.js\"]').length")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    focus(tab, "strength")
    for _ in range(4):
        tab.press("ArrowRight")
    assert "the base, vectors at strength 1 at the moments" in text(tab, "setup")
    focus(tab, "decides")
    tab.press(" ", " ")
    assert "the RL model decides, the base writes" in text(tab, "setup")
    tab.evaluate("document.querySelector('input[value=base]').focus()")
    tab.press("ArrowRight")
    assert "the RL model decides, the twin writes" in text(tab, "setup")
    focus(tab, "one")
    for n in range(1, 4):
        tab.press("Enter", "\r")
        wait(tab, f"document.querySelectorAll('#locksmith-trace span').length === {n}")
    assert tab.evaluate("document.querySelectorAll('script[src*=\"twin.js\"]').length") == 1
    focus(tab, "write")
    tab.press("Enter", "\r")
    wait(tab, "document.getElementById('locksmith-verdict').textContent.includes('olved:')")
    assert "RL model: " in text(tab, "said") and tab.evaluate(
        "document.querySelector('#locksmith-said').getAttribute('aria-live')") == "polite"
    assert tab.evaluate("document.querySelectorAll('#locksmith-trace .by-thinking').length") > 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_fifty_samples_are_listed_with_their_interval(smoke):
    tab = smoke.tab
    written(smoke.root / "site", tab)
    focus(tab, "many")
    tab.press("Enter", "\r")
    wait(tab, "document.querySelectorAll('#locksmith-runs tbody tr').length === 1")
    row = tab.evaluate("document.querySelector('#locksmith-runs tbody tr').innerText")
    low, high = (round(100 * end) for end in stats.wilson(0, 50)[1:])
    assert "the base alone" in row and f"0 % [{low}, {high}]" in row  # random weights
    assert "0 of 50 samples solved" in text(tab, "said")


def test_pass_at_k_is_what_the_facts_say(smoke):
    with (ROOT / "results/facts.csv").open() as file:
        rows = [row for row in csv.DictReader(file)
                if (row["profile"], row["chapter"], row["family"], row["quantity"]) ==
                ("lab", "02", "countdown", "pass_at_k") and row["model"] == "base"
                and not any(row[name] for name in ("temperature", "variant", "step"))]
    first, second = sorted(rows, key=lambda row: int(row["k"]))[:2]
    tab = smoke.tab
    written(smoke.root / "site", tab)
    for row in (first, second):
        told = tab.evaluate("document.querySelector('#locksmith-pass tbody tr').innerText")
        value, low, high = (round(100 * float(row[end])) for end in ("value", "low", "high"))
        assert f"{value} % [{low}, {high}]" in told and text(tab, "k-said").startswith(row["k"])
        focus(tab, "k")
        tab.press("ArrowRight")


def test_where_nothing_was_exported_the_page_says_so(smoke, tmp_path):
    for name in ("play", "results"):
        shutil.copytree(smoke.root / name, tmp_path / name)
    shutil.copy(ROOT / "arms.yml", tmp_path / "arms.yml")
    play.lay_out("lab", tmp_path, tmp_path / "site" / "play")
    written(tmp_path / "site", smoke.tab)
    seen = "[...document.querySelectorAll('#locksmith-missing, #locksmith-form, #locksmith-pass')]"
    assert smoke.tab.evaluate(f"{seen}.map((x) => x.checkVisibility())") == [True, False, True]


def test_an_export_that_is_not_whole_is_named(smoke, tmp_path):
    for name in ("play", "results", "build"):
        shutil.copytree(smoke.root / name, tmp_path / name)
    shutil.copy(ROOT / "arms.yml", tmp_path / "arms.yml")
    (tmp_path / "build/play/lab/twin.bin").unlink()
    with pytest.raises(errors.BadInput, match="build/play/lab is not as the stage `play` left it"):
        play.lay_out("lab", tmp_path, tmp_path / "site")


@pytest.mark.parametrize(("theme", "ground"), [("light", 0xFF), ("dark", 0x12)])
def test_who_decided_is_legible_in_both_themes(theme, ground):
    """At 4.5:1 on the theme's ground (WCAG 2.2, 1.4.3), and told by a line beside the colour."""
    styles = (ROOT / "play/page.css").read_text()
    block = re.findall(r"(?:dark\"\] )?\.locksmith \{(.*?)\}", styles, re.S)[theme == "dark"]

    def luminance(channels):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                  for c in (channel / 255 for channel in channels)]
        return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear))
    lines = set()
    for who in ("writer", "thinking", "vector"):
        colour = bytes.fromhex(re.search(rf"--{who}: #(\w+);", block)[1])
        light, dark = sorted((luminance(colour), luminance([ground] * 3)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (theme, who)
        lines.add(re.search(rf"\.by-{who} \{{.*border-bottom: (.*?);", styles)[1])
    assert len(lines) == 3
