"""Kills, corrupts and starves the pipeline in copies, and counts what it survives.

    python tests/torture.py [--only kill corrupt starve] [--n 240] [--seed 0] [--folder FOLDER]
    python tests/torture.py --again FOLDER/faults.jsonl --folder OTHER   # after mending

One run of the smoke profile, undisturbed, is the measure. Each fault gets a copy of it, is injected
into a command, and every byte that the pipeline keeps is compared afterwards:

    survived  exit code 0 and the bytes of the undisturbed run; or a sentence that names what is
              wrong, another exit code, and once the fault is undone the same command, or `dvc
              repro` after a kill, gives those bytes. After a kill the tracked files are there
              at once.
    lost      something that was whole is gone or changed, or the pipeline does not go on
    wrong     exit code 0, and what is shown or kept differs
    untidy    nothing lost or wrong, but a traceback, a sentence that does not name the cause, or a
              process or a half-written file that stays

A line a fault says how it went. What is done is kept in FOLDER, so that a run which was ended goes
on where it stopped. All of it goes into results/torture.json, which a page of the book shows; what
was not survived at first, and then mended and injected again, with what it was at first. Needs
Linux; a full or read-only folder and a missing network need root. The repository is only read,
that one file aside.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import injections
import psutil
from locksmith.book import endurance
from repository import ROOT, copy, environment, git

GRACE = 5  # seconds that a process may take to end after what started it
LIMIT = 900  # seconds after which a command hangs
HALF = re.compile(r"\.partial|\.half|\.tmp$|\.staged|~$")  # names of what is half-written
PASSING = ("build/asm", "build/site", "build/staging", ".dvc/tmp", ".git", "lib", "tests")
CACHES = (".dvc/cache", ".dvcstore")  # may grow, and hold nothing that a page shows

RUN = "python -m locksmith.book.notebooks run chapters/{}.ipynb --profile smoke"
CHECK = "python -m locksmith.params check"
FACTS = "python -m locksmith.results facts"
STORED = "python -m locksmith.book.integrity"
SITE = "python -m locksmith.book.site build"
POST = "python -m locksmith.book.post build"
PULL, REPRO = "dvc pull --allow-missing", "dvc repro --allow-missing"
LAB, SAMPLING = RUN.format("00_the_lab"), RUN.format("02_base_model_sampling")
VERDICT = RUN.format("verdict")
CLONE = "rm -rf data checkpoints .dvc/cache"  # what a clone lacks before `dvc pull`


@dataclass
class Fault:
    """One fault: its kind, what it hits, how, and the commands that meet it, in this order."""

    kind: str
    what: str
    how: str
    commands: tuple[str, ...]
    group: str = ""  # a line of the page's table
    draw: int = 0  # number among those that are alike
    damage: Callable[[Path], None] | None = None  # to a file that `what` fits
    names: str = ""  # regular expression of what a refusal must say

    @property
    def name(self) -> str:
        return " / ".join([self.kind, self.what, self.how, self.commands[-1], str(self.draw)])


@dataclass
class Met:
    """How commands met a fault: last exit code, all that they said, files that were damaged, and
    what is left of them: processes, as text."""

    code: int
    said: str
    damaged: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------
# A book to be hurt


def picture(book: Path) -> dict[str, str]:
    """{path: SHA-256} of every file of a book that lasts."""
    found = {}
    for folder, folders, files in os.walk(book):
        here = Path(folder).relative_to(book).as_posix()
        folders[:] = [f for f in folders if f != "__pycache__"
                      and (f if here == "." else f"{here}/{f}") not in PASSING]
        for file in files:
            path = Path(folder) / file
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[path.relative_to(book).as_posix()] = digest
    return found


def prepare(base: Path) -> None:
    """Makes the undisturbed smoke run in `base`: every stage, the pages, the store, a commit."""
    copy(base)
    params = base / "params.yaml"
    params.write_text(params.read_text().replace("profile: lab", "profile: smoke", 1))
    (base / "data").mkdir(exist_ok=True)
    for command in ("dvc repro", SITE, POST, "dvc push"):
        print(f"undisturbed: {command}", flush=True)
        met = run(base, command, limit=10 * LIMIT)
        if met.code:
            sys.exit(f"{command} failed undisturbed:\n{met.said[-2000:]}")
    git(base, "add", "-A")
    git(base, "add", "-f", ".dvcstore")
    git(base, "commit", "-q", "-m", "smoke")


def sources() -> str:
    """SHA-256 of what decides the undisturbed run: what git has, but for tests and benchmarks."""
    digest = hashlib.sha256()
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if not name.startswith(("tests/", "benchmarks/", endurance.FILE.as_posix(), "README")) \
                and (ROOT / name).is_file():
            digest.update(name.encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()


def start(book: Path, command: str, **how: object) -> subprocess.Popen:
    """Starts a command in a book as the leader of a process group; stdout and stderr together."""
    variables = {**environment(book), "DVC_SITE_CACHE_DIR": str(book.parent / "dvc"),
                 "TORTURE": str(book)}
    for name, value in how.pop("env", {}).items():
        variables[name] = value and value.format(room=book.parent)
    variables = {name: value for name, value in variables.items() if value is not None}
    return subprocess.Popen(command.split(), cwd=book, env=variables, text=True, errors="replace",
                            start_new_session=True, stdin=subprocess.DEVNULL,
                            stderr=subprocess.STDOUT, **({"stdout": subprocess.PIPE} | how))


def run(book: Path, *commands: str, limit: float = LIMIT, **how: object) -> Met:
    """Runs commands until one fails; one that takes more than `limit` seconds has."""
    code, said = 0, ""
    for command in commands:
        process = start(book, command, **how)
        try:
            said += process.communicate(timeout=limit)[0] or ""
            code = process.returncode
        except subprocess.TimeoutExpired:
            end(book)
            process.communicate()
            code, said = 124, f"{said}Traceback: {command} hung for {limit} s"
        if code:
            break
    return Met(code, said)


def alive(book: Path) -> list[psutil.Process]:
    """Processes that commands in this book started, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TORTURE") == str(book):
                found.append(process)
        except (psutil.Error, OSError):
            pass  # it ended meanwhile, or is not ours
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def told(process: psutil.Process) -> str:
    """A process's command line, or nothing if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end(book: Path, grace: float = 0) -> list[str]:
    """Ends what a book's commands left running after `grace` seconds; returns what that was."""
    deadline = time.monotonic() + grace
    while alive(book) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = alive(book)
    commands = [told(process)[:80] for process in left]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=GRACE)
    return commands


# ------------------------------------------------------------------------------------------------
# Kills

KILLED = {  # command: (victims, how many moments of each)
    "dvc repro -f -s pretrain@chain": ("group stage dvc", 1),
    "dvc repro -f -s rl@chain": ("group stage", 1),
    "dvc repro -f -s distill@chain": ("group stage", 1),
    "dvc repro -f -s data": ("group stage dvc", 1),
    "dvc repro -f -s chapter-02": ("group kernel", 1),
    "dvc repro -f -s facts": ("group stage dvc", 1),
    "dvc repro -f -s verdict": ("group kernel stage dvc", 1),
    LAB: ("group kernel", 1),
    FACTS: ("group", 3),
    SITE: ("group", 2),
    POST: ("group", 1),
    PULL: ("group", 3),
    LAB.replace("smoke", "colab"): ("group kernel stage worker", 1),
}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
VICTIMS = {  # what they are, and what stands in their command lines
    "group": ("all processes of a run", ""), "dvc": ("DVC alone", "bin/dvc "),
    "stage": ("a stage or a chapter alone", r"^\S*python\S* -m locksmith"),
    "kernel": ("a chapter's kernel", "ipykernel"), "worker": ("a process of a pool", "spawn_main")}
POOL = """colab: {checkpoints: smoke, seeds: [0, 1], chapters: {ch00: {<<: *ch00, problems: 8}}}
"""  # a profile whose chapters work in a pool, from the smoke profile's checkpoints


def kills() -> Iterator[Fault]:
    for command, (victims, n) in KILLED.items():
        for victim in victims.split():
            for name in SIGNALS:
                for i in range(n):
                    yield Fault("kill", victim, name, (command,), VICTIMS[victim][0], i)


def kill(fault: Fault, book: Path, base: Path) -> Met | None:
    """Sends the signal at a random moment of the command; None if it had ended before."""
    command, length = fault.commands[0], lasts(fault.commands[0], base)
    ready(book, command)
    process = start(book, command, stdout=(log := tempfile.TemporaryFile("w+", errors="replace")))
    moment, victims = time.monotonic() + random.uniform(0, length), []
    while time.monotonic() < moment or not victims:
        time.sleep(0.02)
        if process.poll() is not None:
            return None
        if time.monotonic() >= moment:
            victims = [p.pid for p in alive(book) if re.search(VICTIMS[fault.what][1], told(p))]
    number = getattr(signal, fault.how)
    if fault.what == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(victims[0], number)
    with suppress(subprocess.TimeoutExpired):  # a signal to one process need not end the others
        process.wait(length * 3 + GRACE)
    left = end(book, GRACE + length * (fault.what == "dvc"))
    process.wait()
    log.seek(0)
    return Met(process.returncode, log.read(), left=left)


def ready(book: Path, command: str) -> None:
    """What a command needs besides the undisturbed run to have something to do."""
    if command == PULL:
        run(book, CLONE)
    if "--profile colab" in command:
        text = (book / "params.yaml").read_text()
        text = re.sub(r"^colab:\n(?:[ #].*\n)+", POOL, text, flags=re.M)
        (book / "params.yaml").write_text(text)


def lasts(command: str, base: Path) -> float:
    """Seconds that a command takes undisturbed, measured once."""
    kept = base.parent / "lasts.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if command not in known:
        with copied(base) as book:
            ready(book, command)
            began = time.monotonic()
            met = run(book, command)
            if met.code:
                sys.exit(f"{command} failed undisturbed:\n{met.said[-2000:]}")
            known[command] = time.monotonic() - began
            other = differing(picture(book), picture(base), Fault("", "", "", (command,)))
            if other:
                sys.exit(f"{command} gives other bytes undisturbed: {', '.join(other[:5])}")
        kept.write_text(json.dumps(known))
    return known[command]


# ------------------------------------------------------------------------------------------------
# Corruption


def bit_anywhere(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def cut_anywhere(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:random.randrange(1, len(data) - 1)])


def digit_anywhere(path: Path) -> None:
    """Another digit somewhere after a decimal point."""
    data = path.read_text(encoding="utf-8")
    at = random.choice([m.start(1) for m in re.finditer(r"\d\.\d*(\d)", data)])
    new = (int(data[at]) + random.randint(1, 9)) % 10
    path.write_text(f"{data[:at]}{new}{data[at + 1:]}", encoding="utf-8")


def another(path: Path) -> None:
    """The content of another file of the same kind, of this folder or one beside it."""
    beside = sorted(p for p in path.parent.parent.rglob(f"*{path.suffix}") if p.is_file())
    others = [data for p in beside if (data := p.read_bytes()) != path.read_bytes()]
    path.write_bytes(random.choice(others))


# Who reads a kind of `injections`; others the build.
READ_BY = {"record": (FACTS, SITE), "training record": (FACTS, SITE), "manifest": (LAB,),
           "weights": (LAB,), "data": (STORED,)}
SMOKE = "^smoke:\n  seeds: \\[0, 1\\]"
PARAMETERS = {text: injections.swap(old, text) for old, text in [
    ("validation: 16, test: 16", "validation: 16, test: 1000000000000"),
    (r"\*rl, steps: 2,", "*rl, steps: 1000000000,"), (r"\*rl, steps: 2,", "*rl, stepz: 2,"),
    (r"\*rl, steps: 2,", "*rl, steps: -1,"), (r"\*rl, steps: 2,", "*rl, steps: 2.5,"),
    (r"\*rl, steps: 2,", "*rl, steps: 010,"), (r"\*rl, steps: 2,", "*rl, steps: 1:30,"),
    (r"\*rl, steps: 2,", "*rl, steps: 2, steps: 3,"), (r"checkpoints: \[1\]", "checkpoints: [9]"),
    ("decay: 0.0, checkpoints: 2", "decay: .nan, checkpoints: 2"),
    ("decay: 0.0, checkpoints: 2", "decay: 0.0, checkpoints: 1000000"),
    ("problems: 4, samples: 4", "problems: 4, samples: 1000000000"),
    (SMOKE, "smoke:\n  seeds: [0, 0]"), (SMOKE, "smoke:\n  seeds: []"), (SMOKE, "smoke:"),
    (SMOKE, "smoke:\n  seeds: yes"), ("^smoke:", "smoek:"),
    ("n_samples: 8, max_new_tokens: 48", "n_samples: 8, max_new_tokens: 100000"),
    (r"layers: \[0, 1\], strengths", "layers: [7], strengths"),
    ("profile: smoke", "profile: smoke\nprofile: lab"), ("profile: smoke", "profile: smok")]}
BYTES = {"bit": bit_anywhere, "cut": cut_anywhere, "empty": injections.empty,
         "gone": injections.gone, "another": another}
THERE = {how: damage for how, damage in BYTES.items() if how != "gone"}  # pages need no weights
TEXT = {**injections.TEXT, "list": injections.text("[]\n"), "number": injections.text("3\n"),
        "nested too deep": injections.text("[" * 100_000)}

# What, files, how many of them are drawn, ways of damage, and the commands that read them.
DIGIT = {"digit": digit_anywhere}
DAMAGED = [
    ("parameters", "params.yaml", 1, TEXT | PARAMETERS, (CHECK,)),
    ("chapter", "chapters/00_the_lab.ipynb", 1, TEXT, (LAB,)),
    ("data", "data/smoke/c*.jsonl", 2, BYTES, (STORED,)),
    ("data", "data/smoke/c*.jsonl", 1, BYTES, (PULL, STORED, REPRO, SITE)),
    ("data", "results/smoke/data.sha256", 1, BYTES, (STORED,)),
    ("weights", "checkpoints/smoke/c*/*/seed?/model.safetensors", 2, THERE, (SITE,)),
    ("weights", "checkpoints/smoke/c*/rl/seed?/model.safetensors", 1, BYTES, (LAB,)),
    ("configuration", "checkpoints/smoke/c*/base/seed?/*.json", 2, BYTES, (LAB,)),
    ("record", "results/*/0[0-5].json", 2, BYTES | DIGIT, (FACTS, SITE)),
    ("record", "results/lab/bench_*.json", 1, BYTES | DIGIT, (FACTS, SITE)),
    ("training record", "results/smoke/train/*.json", 1, BYTES | DIGIT, (FACTS, SITE)),
    ("facts", "results/facts.csv", 2, DIGIT | {"bit": bit_anywhere}, (SITE,)),
    ("metrics", "results/metrics/*.yaml", 1, BYTES, (FACTS,)),
    ("notebook", "build/notebooks/smoke/*.ipynb", 2, BYTES | DIGIT, (SITE,)),
    ("figure", "results/smoke/figures/0*.png", 2, BYTES, (SITE,)),
    ("dvc.lock", "dvc.lock", 1, TEXT, (STORED, SITE)),
    ("data.dvc", "data.dvc", 1, TEXT, (PULL, STORED, REPRO, SITE)),
    ("DVC's store", ".dvcstore/files/md5/??/*", 3, BYTES, (CLONE, PULL, STORED, REPRO, SITE)),
    ("DVC's cache", ".dvc/cache/files/md5/??/*", 3, BYTES,
     ("rm -rf data checkpoints", PULL, STORED, REPRO, SITE)),
]
SOURCES = ("params.yaml", "chapters/*", *(injections.FILES[kind] for kind in (
    "claims", "arms", "post", "references", "contents", "settings", "first page")))


def corruptions() -> Iterator[Fault]:
    for kind, how, damage in injections.INJECTIONS:
        yield Fault("corrupt", injections.FILES[kind].format(profile="smoke"), how,
                    READ_BY.get(kind, (SITE,)), kind, damage=damage)
    for group, files, n, ways, commands in DAMAGED:
        for how, damage in ways.items():
            for i in range(n):
                yield Fault("corrupt", files, how, commands, group, i + 1, damage)


def corrupt(fault: Fault, book: Path, base: Path) -> Met:
    """Damages a file that fits the pattern, then runs the commands."""
    path = random.choice([p for p in sorted(book.glob(fault.what)) if p.stat().st_size > 2
                       and (".dvcstore" not in p.parts  # the lab's objects are not read
                            or (book / ".dvc/cache" / p.relative_to(book / ".dvcstore")).exists())])
    whole = path.read_bytes()
    path.unlink()  # DVC's objects are read-only
    path.write_bytes(whole)
    fault.damage(path)
    name = path.relative_to(book).as_posix()
    fault.what, fault.names = name, "|".join(re.escape(text) for text in named(path, book))
    met = run(book, *fault.commands)
    met.damaged = {name}
    return met


def named(path: Path, book: Path) -> list[str]:
    """How a sentence may name a file: by its name, as a parameter, by its checkpoint, and an object
    of DVC's by the file that it is brought for."""
    name, folder = path.name, path.relative_to(book).parent.as_posix()
    return [name, *{"params.yaml": ["smoke.", "profile"]}.get(name, []),
            *[folder] * folder.startswith("checkpoints"),
            *["checkpoints/", "data"] * folder.startswith(".dvc")]


# ------------------------------------------------------------------------------------------------
# Starvation


def limit(what: str, amount: float) -> dict:
    """At most so much of a resource, for the command and what it starts."""
    number = getattr(resource, f"RLIMIT_{what}")
    return {"preexec_fn": lambda: resource.setrlimit(number, (int(amount), int(amount)))}


def first_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextmanager
def mounted(book: Path, folder: str, *how: str) -> Iterator[None]:
    """A folder of the book is mounted on itself, read-only, or on a small file system."""
    place, aside = book / folder, book.parent / "aside"
    if how == ("full",):
        shutil.copytree(place, aside)
        size = sum(p.stat().st_size // 4096 * 4 + 4 for p in aside.rglob("*")) + 24
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=True)
        shutil.copytree(aside, place, dirs_exist_ok=True)
        shutil.rmtree(aside)
    else:
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
    try:
        yield
    finally:
        shutil.copytree(place, aside)  # what a full folder holds now, not what is underneath
        subprocess.run(["umount", place], check=True)
        shutil.rmtree(place)
        aside.rename(place)


RL = "dvc repro -f -s rl@chain"
SPACE = r"[Nn]o space|too large|read-only|Read-only|[Pp]ermission"
MEMORY = "[Mm]emory|allocat|thread"
STARVED = {  # name: (how a command starts, what a refusal names, commands)
    "1 GB of memory": (limit("AS", 1e9), MEMORY, (FACTS, LAB, SITE)),
    "2 GB of memory": (limit("AS", 2e9), MEMORY, (LAB, RL)),
    "4 GB of memory": (limit("AS", 4e9), MEMORY, (LAB, RL)),
    "files of 4 KB": (limit("FSIZE", 4096), SPACE, (FACTS, LAB, SITE, RL)),
    "files of 64 KB": (limit("FSIZE", 65536), SPACE, (FACTS, LAB, SITE, POST)),
    "24 open files": (limit("NOFILE", 24), "[Tt]oo many open files", (FACTS, VERDICT)),
    "one core": ({"preexec_fn": first_core}, "", (LAB, RL)),
    "niceness 19": ({"preexec_fn": lambda: os.nice(19)}, "", (FACTS, VERDICT)),
    "umask 077": ({"preexec_fn": lambda: os.umask(0o77) and None}, "", (FACTS, VERDICT)),
    "closed stdin": ({"preexec_fn": lambda: os.close(0)}, "", (FACTS, VERDICT, SITE, RL)),
    "no HOME": ({"env": {"HOME": None}}, "HOME", (FACTS, VERDICT, SITE, RL)),
    "a HOME that is not there": ({"env": {"HOME": "{room}/nowhere/home"}}, "home",
                                 (VERDICT, SITE, RL)),
    "a locale of C": ({"env": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0",
                               "PYTHONCOERCECLOCALE": "0"}}, "", (FACTS, VERDICT, SITE, RL)),
    "a TMPDIR that is not there": ({"env": {"TMPDIR": "{room}/nowhere"}}, "", (VERDICT, SITE, RL)),
    "a cache folder that is not there": ({"env": {"LOCKSMITH_CACHE": "{room}/nowhere/cache"}},
                                         "LOCKSMITH_CACHE", (LAB, FACTS)),
    "another time zone and hash seed": ({"env": {"TZ": "Pacific/Chatham", "PYTHONHASHSEED": "7"}},
                                        "", (LAB, FACTS, SITE)),
    "warnings as in development": ({"env": {"PYTHONDEVMODE": "1"}}, "", (FACTS,)),
    "no network": ("unshare -n ", "", (FACTS, LAB, SITE, PULL)),
    "a full results": (("results", "full"), SPACE, (FACTS, LAB, "dvc repro -f -s chapter-02")),
    "a full build": (("build", "full"), SPACE, (VERDICT, SITE, POST)),
    "full checkpoints": (("checkpoints", "full"), SPACE, (RL, "dvc repro -f -s pretrain@chain")),
    "read-only results": (("results", "ro"), SPACE, (FACTS, LAB)),
    "a read-only build": (("build", "ro"), SPACE, (VERDICT, SITE, POST)),
    "read-only checkpoints": (("checkpoints", "ro"), SPACE, (RL,)),
    "a path with spaces": ("a book with spaces", "", (FACTS, VERDICT, SITE, RL)),
    "a path with umlauts": ("ein schönes Büchlein", "", (FACTS, VERDICT, SITE, RL)),
    "a long path": ("/".join(["long" * 10] * 5), "", (FACTS, VERDICT, SITE, RL)),
}


def starvations() -> Iterator[Fault]:
    for name, (_, names, commands) in STARVED.items():
        for command in commands:
            yield Fault("starve", name, "short of it", (command,), name, names=names)


def needs_root(fault: Fault) -> bool:
    how = STARVED[fault.what][0] if fault.kind == "starve" else None
    return isinstance(how, tuple) or how == "unshare -n "


def starve(fault: Fault, book: Path, base: Path) -> Met:
    """Runs the command short of something."""
    how = STARVED[fault.what][0]
    if isinstance(how, tuple):
        with mounted(book, *how):
            return run(book, *fault.commands)
    if isinstance(how, dict):
        return run(book, *fault.commands, **how)
    if how == "unshare -n ":
        return run(book, *(how + command for command in fault.commands))
    return run(book, *fault.commands)  # in the folder that `copied` made


# ------------------------------------------------------------------------------------------------
# Judging


@contextmanager
def copied(base: Path, name: str = "book") -> Iterator[Path]:
    """A copy of the undisturbed book, under a path of the given name."""
    room = base.parent / f"copy-{os.getpid()}"
    shutil.rmtree(room, ignore_errors=True)
    book = room / name
    book.parent.mkdir(parents=True)
    try:
        subprocess.run(["cp", "-a", base, book], check=True)
        yield book
    finally:
        end(book)
        shutil.rmtree(room, ignore_errors=True)


def differing(now: dict[str, str], whole: dict[str, str], fault: Fault) -> list[str]:
    """Paths that are gone, changed, or new, but for what a command may add and a clone lacks."""
    free = (*CACHES, "results/colab", "build/notebooks/colab", "build/post")
    cloned = fault.commands[0].startswith("rm ") or fault.commands == (PULL,)
    return sorted(p for p in {*now, *whole} if now.get(p) != whole.get(p)
                  and not (p not in whole and p.startswith(free))
                  and not (p == "params.yaml" and "--profile colab" in fault.commands[-1])
                  and not (cloned and (p.startswith(".dvc/cache") or "_steps/" in p)))


def source(path: str) -> bool:
    """Whether people write the file: then what it says now is what they want."""
    return any(fnmatch.fnmatch(path, pattern) for pattern in SOURCES)


def judged(fault: Fault, met: Met, book: Path, base: Path, whole: dict) -> tuple[str, str]:
    """(outcome, why) of a fault; `whole` is the picture of the undisturbed book."""
    now = picture(book)
    other = [p for p in differing(now, whole, fault) if not (p in met.damaged and source(p))]
    why = []
    if fault.kind == "kill":
        gone = [p for p in other if p in whole and p.startswith(("results/", "build/notebooks/"))]
        if gone:
            return "lost", f"right after the kill: {', '.join(gone[:3])}"
        why += [f"still running: {p}" for p in met.left]
    elif met.code == 0:
        other = [p for p in other if not p.startswith(CACHES)]
        if other:
            return "wrong", f"accepted; differing: {', '.join(other[:3])}"
        return "survived", "the same bytes"
    else:
        if not re.search(fault.names or r"error: ", met.said):
            why.append("the cause is not named")
    ended = fault.kind == "kill" and fault.what not in ("kernel", "worker")  # told to end: it may
    if re.search("^ *Traceback", met.said, re.M) and not ended:
        why.append("a traceback")
    if fault.kind != "corrupt" or set(other) - met.damaged:
        again = recovered(fault, met, book, base, whole)
        if again:
            return "lost", again
    half = [p for p in picture(book) if p not in whole and HALF.search(p)]
    why += [f"left: {p}" for p in half]
    return ("untidy", "; ".join(why)) if why else ("survived", "refused" if met.code else "same")


def recovered(fault: Fault, met: Met, book: Path, base: Path, whole: dict) -> str:
    """What is not as in the undisturbed run after the fault is undone and work goes on, or ""."""
    for path in met.damaged:
        shutil.copy2(base / path, book / path)
    last, commands = fault.commands[-1], fault.commands
    if last.startswith("dvc repro") or "run chapters" in last and "colab" not in last:
        commands = ["dvc repro"]
    again = run(book, *commands)
    if again.code:
        return f"does not go on: {' '.join(again.said.split())[-300:]}"
    other = [p for p in differing(picture(book), whole, fault) if not HALF.search(p)]
    return f"not the same bytes afterwards: {', '.join(other[:3])}" if other else ""


def anywhere(text: str) -> str:
    """A text without the folders of this machine."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/'\":]+/)+", "", text)


INJECT = {"kill": kill, "corrupt": corrupt, "starve": starve}


def torture(fault: Fault, seed: int, base: Path, whole: dict) -> dict | None:
    """Injects one fault into a copy and judges it: a row for the JSON."""
    name, began = fault.name, time.monotonic()
    how = STARVED[fault.what][0] if fault.kind == "starve" else ""
    place = how if isinstance(how, str) and how and not how.startswith("unshare") else "book"
    if fault.kind == "kill":
        lasts(fault.commands[0], base)
    for attempt in range(5):
        random.seed(f"{seed} {name} {attempt}")
        with copied(base, place) as book:
            met = INJECT[fault.kind](fault, book, base)
            if met is None:
                continue
            outcome, why = judged(fault, met, book, base, whole)
            said = next((line for line in met.said.splitlines() if "rror" in line), "")
        return {"name": name, "kind": fault.kind, "group": fault.group, "what": fault.what,
                "how": fault.how, "command": fault.commands[-1], "outcome": outcome,
                "why": anywhere(why), "code": met.code, "said": anywhere(said)[:300],
                "seconds": round(time.monotonic() - began, 1)}
    return None


# ------------------------------------------------------------------------------------------------


def drawn(only: list[str], n: int, seed: int) -> list[Fault]:
    """n faults of these kinds, which and in which order a seed decides; half are corruption."""
    every = {"kill": [*kills()], "corrupt": [*corruptions()], "starve": [*starvations()]}
    every["starve"] = [f for f in every["starve"] if os.geteuid() == 0 or not needs_root(f)]
    for faults in every.values():
        random.Random(seed).shuffle(faults)
    found, turns = [], [kind for kind in ("corrupt", "kill", "corrupt", "starve") if kind in only]
    while any(every[kind] for kind in turns):
        found += [every[kind].pop() for kind in turns if every[kind]]
    return found[:n]


def tried(name: str) -> str:
    """A fault's name without the command that meets it, which a mend of this script may change."""
    kind, what, how, _, draw = name.split(" / ")
    return " / ".join((kind, what, how, draw))


def told_so_far(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=endurance.KINDS, default=endurance.KINDS)
    parser.add_argument("--n", type=int, default=10_000, help="at most so many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "torture")
    parser.add_argument("--again", type=Path, help="faults.jsonl of an earlier run: what it did "
                        "not survive is injected again, the rest taken over")
    parser.add_argument("--out", type=Path, default=ROOT / endurance.FILE)
    args = parser.parse_args()
    if os.geteuid() == 0 and "TORTURE" not in os.environ:  # mounts that end with this process
        os.environ["TORTURE"] = "root"
        os.execvp("unshare", ["unshare", "-m", sys.executable, *sys.argv])
    base, log = args.folder / "base", args.folder / "faults.jsonl"
    made, now = args.folder / "sources", sources()
    if made.exists() and made.read_text() != now:
        sys.exit(f"{args.folder} holds a run of other sources; remove it, or give another --folder")
    if not made.exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        prepare(base)
        made.write_text(now)
    whole = picture(base)
    faults, began = drawn(args.only, args.n, args.seed), time.monotonic()
    before = told_so_far(args.again) if args.again else []
    first = {tried(row["name"]): row for row in before if row["outcome"] != "survived"}
    if args.again:
        every = sorted(drawn(args.only, 10_000, args.seed), key=lambda fault: fault.name not in {
            row["name"] for row in before})
        faults = [next(fault for fault in every if tried(fault.name) == name) for name in first]
    for i, fault in enumerate(faults):
        if fault.name in {row["name"] for row in told_so_far(log)}:
            continue  # by an earlier run, or by another process at the same folder
        row = torture(fault, args.seed, base, whole)
        if row is None:
            continue
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (time.monotonic() - began) / (i + 1) * (len(faults) - i - 1) / 60
        print(f"[{i + 1} of {len(faults)}, {left:.0f} min left] {row['outcome']}: {row['kind']} "
              f"{row['what']}, {row['how']}, {row['command']}: {row['why']} ({row['seconds']} s)",
              flush=True)
    rows = told_so_far(log)
    for row in rows:
        if tried(row["name"]) in first:
            earlier = first.pop(tried(row["name"]))
            row["first"] = f"{earlier['outcome']}: {earlier['why']}"
    rows = [*(row for row in before if row["outcome"] == "survived"), *first.values(), *rows]
    for row in rows:
        del row["name"]
    args.out.write_text(json.dumps({"seed": args.seed, "faults": rows}, indent=1) + "\n")
    print(endurance.table(rows))
    return int(any(row["outcome"] != "survived" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
