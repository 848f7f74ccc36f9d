"""Chapters: executing one into build/notebooks/<profile>/, and checking them as they stand in git.

papermill passes misspelt names and wrong types on in silence, and its output differs from run to
run. So parameters are checked first, and the executed copy is normalised (no times, paths or random
ids; the injected cell hidden): the same run gives the same bytes. It takes its place together with
the chapter's results and figures when all are there; a run that fails, or is ended, leaves those of
the last good one as they were.
"""

import argparse
import ast
import contextlib
import glob
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
import papermill
import psutil
from nbclient.exceptions import DeadKernelError

from locksmith import errors, params, plain_yaml, staging
from locksmith.book import colab, integrity

ADDRESSES = 3 * 2**30  # bytes that a kernel maps with torch and the smallest models
LONGEST_CELL = 20
LONGEST_PARAMETERS = 25  # a literal a line, and not on the page
# A kernel looks once a second whether its parent is there, but not while a long call lets no thread
# run: prctl's PR_SET_PDEATHSIG has Linux kill it then too.
ENDS_WITH_PARENT = ["--IPKernelApp.exec_lines=__import__('ctypes').CDLL(None).prctl(1, 9)"
                    ] if sys.platform == "linux" else []


class ChapterFailed(RuntimeError):
    """A cell raised; the message says which and what, in one sentence."""


def run(notebook: str | Path, profile: str) -> Path:
    """Executes a chapter under a profile's parameters and returns the path of the executed copy.

    Raises BadInput for parameters the chapter does not have or cannot take, ChapterFailed if a
    cell raises, ends the notebook, or loses its kernel. Either leaves the results, figures and
    executed copy that were there.
    """
    notebook = Path(notebook)
    values = parameters(notebook, profile)
    _check_room()
    output = Path("build/notebooks") / profile / notebook.name
    chapter, folder = glob.escape(number(notebook)), f"results/{glob.escape(profile)}"
    own = [f"{folder}/{chapter}.json", f"{folder}/figures/{chapter}_*"]
    staging.settle()
    with staging.whole(f"{profile}/{notebook.stem}", own):
        made_with = integrity.inputs(notebook, profile)
        executed = _executed(notebook, values)
        made_with |= integrity.outputs()
        integrity.stamp(executed, output.as_posix(), made_with)
        nbformat.write(executed, staging.path(output))
    return output


def _check_room():
    """A kernel that runs out of addresses hangs, or says anything but that."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if resource.RLIM_INFINITY != limit < ADDRESSES:
        raise errors.BadInput(f"This shell allows a process {limit / 2**30:.1f} GiB of memory "
                              f"(ulimit -v); allowed for a chapter is {ADDRESSES / 2**30:.0f} GiB "
                              "or more.")


def _executed(notebook, values):
    """The notebook after its run, normalised."""
    for name in ("papermill", "traitlets", "asyncio"):  # they print what ends a run a second time
        logging.getLogger(name).setLevel(logging.CRITICAL)
    at = None

    def start(cell, cell_index):
        nonlocal at
        at = cell_index

    def end(cell, cell_index, execute_reply):
        if any(asked["source"] == "ask_exit" for asked in execute_reply["content"]["payload"]):
            raise ChapterFailed(f"{notebook} ended early: cell {cell_index} leaves the kernel")

    try:
        executed = papermill.execute_notebook(
            notebook, None, values, kernel_name="python3", progress_bar=False,
            stderr_file=sys.stderr,  # as it comes: estimates, progress, warnings
            on_cell_start=start, on_cell_executed=end, extra_arguments=ENDS_WITH_PARENT,
        )
    except papermill.PapermillExecutionError as error:
        what = " ".join(f"{error.ename}: {error.evalue}".split()).removesuffix(":")
        raise ChapterFailed(f"{notebook} failed in cell {error.cell_index}: {what}") from None
    except DeadKernelError:
        raise ChapterFailed(f"{notebook} failed in cell {at}: its kernel died (killed, by the "
                            "system too if memory ran out, or ended by the code)") from None
    except RuntimeError as error:
        if at is not None:
            raise
        raise ChapterFailed(f"{notebook} failed before its first cell: {error}") from None
    for i, cell in enumerate(executed.cells):
        if cell.metadata.papermill["exception"]:  # papermill lets sys.exit(0) pass
            raise ChapterFailed(f"{notebook} ended early: cell {i} exits")
    _normalise(executed)
    return executed


def number(notebook: str | Path) -> str:
    """What results call a chapter: chapters/02_base_model_sampling.ipynb -> "02"."""
    return Path(notebook).stem.split("_")[0]


def parameters(notebook: str | Path, profile: str) -> dict:
    """Checked parameters of a chapter under a profile: {"profile": ..., name: value, ...}."""
    defaults = _defaults(_read(notebook), notebook)
    key = params.chapter_key(number(notebook))
    chapters = params.load(profile).get("chapters", {})
    if key not in chapters:
        raise errors.BadInput(
            f"Profile {profile} has no parameters for {notebook} ({profile}.chapters.{key})."
        )
    values = {"profile": profile, **chapters[key]}
    for name, value in values.items():
        if name not in defaults:
            raise errors.BadInput(
                f"{notebook} has no parameter {name!r}; it has {', '.join(defaults)}."
            )
        default = defaults[name]
        number_for_float = type(default) is float and type(value) is int
        if default is not None and type(value) is not type(default) and not number_for_float:
            raise errors.BadInput(
                f"Parameter {name} of {notebook} is {value!r}; "
                f"allowed is a value of type {type(default).__name__}."
            )
    return values


def changes(texts: Iterable[str]) -> dict:
    """{name: value} of texts such as "tasks=[sums]"; the value is read as YAML."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        wrong = f"--set is {text!r}; allowed is name=value, as in tasks=[sums]"
        if not equals or not name.isidentifier():
            raise errors.BadInput(f"{wrong}.")
        if name in found:
            print(f"--set gives {name} more than once; the last counts.", file=sys.stderr)
        try:
            found[name] = plain_yaml.parse(value, "its value")
        except errors.BadInput as error:
            raise errors.BadInput(f"{wrong}; {error}") from None
    return found


def shares(names: Iterable[str], given: dict) -> dict[str, dict]:
    """{notebook: what is given for it}: each value goes to the chapters that have its parameter,
    one that none has to all, which refuse it by name."""
    own = {name: {"seeds", *params.SCHEMA["chapters"].get(params.chapter_key(number(name)), ())}
           for name in names}
    everywhere = set(given) - set().union(*own.values())
    return {name: {key: value for key, value in given.items() if key in known | everywhere}
            for name, known in own.items()}


def complaints(notebook: str | Path) -> list[str]:
    """What is wrong with a chapter as it stands in git: a list of sentences, or an empty one."""
    nb = _read(notebook)
    code = [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code"]
    found = []
    for i, cell in code:
        if cell.outputs or cell.execution_count is not None:
            found.append(
                f"{notebook}: cell {i} carries outputs (nbstripout {notebook} removes them)."
            )
        given = "parameters" in cell.metadata.get("tags", [])
        longest = LONGEST_PARAMETERS if given else LONGEST_CELL
        if len(cell.source.splitlines()) > longest:
            found.append(f"{notebook}: cell {i} has more than {longest} lines.")
    first = code[0][1] if code else None
    if first is None or first.source != colab.cell(Path(notebook).stem):
        found.append(
            f"{notebook}: the first code cell is not Colab's (python -m locksmith.book.colab "
            "writes it)."
        )
    try:
        defaults = _defaults(nb, notebook)
        page = parameters(notebook, "lab")
    except errors.BadInput as error:
        return [*found, str(error)]
    for name, value in page.items():
        if defaults[name] != value:
            found.append(
                f"{notebook}: {name} defaults to {defaults[name]!r}, "
                f"the page was made with {value!r}."
            )
    return found


def _read(notebook):
    try:
        return nbformat.read(notebook, as_version=4)
    except OSError as error:
        raise errors.BadInput(f"{notebook} cannot be read ({error.strerror}).") from None
    except (ValueError, nbformat.reader.NotJSONError):
        raise errors.BadInput(f"{notebook} is not a notebook.") from None


def _defaults(nb, notebook):
    """{name: value} of the parameters cell, which holds one literal assignment a line."""
    cells = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise errors.BadInput(
            f"{notebook} has {len(cells)} cells tagged parameters; allowed is one."
        )
    try:
        return {
            line.targets[0].id: ast.literal_eval(line.value)
            for line in ast.parse(cells[0].source).body
        }
    except (SyntaxError, ValueError, AttributeError):
        raise errors.BadInput(
            f"The parameters cell of {notebook} may hold nothing but `name = literal`."
        ) from None


def _normalise(nb):
    """Takes out what differs between two runs of a notebook; returns what it put on stderr."""
    chatter = []
    nb.metadata.pop("papermill", None)
    nb.metadata.get("language_info", {}).pop("version", None)
    for i, cell in enumerate(nb.cells):
        cell.id = f"cell-{i}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        if cell.cell_type == "code":
            # Warnings name files by process number; they belong on the terminal, not on the page.
            noise = [o for o in cell.outputs if o.get("name") == "stderr"]
            chatter += [o.text for o in noise]
            cell.outputs = _joined(o for o in cell.outputs if o.get("name") != "stderr")
    return "".join(chatter)


def _joined(outputs):
    """Outputs with neighbouring pieces of stdout as one: where it is cut depends on timing."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main() -> int | None:
    parser = argparse.ArgumentParser(
        prog="python -m locksmith.book.notebooks", description="Runs or checks chapters."
    )
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("run", help=run.__doc__.splitlines()[0])
    one.add_argument("notebook", nargs="+", help="several run one after the other")
    one.add_argument("--profile", required=True)
    one.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                     help="a parameter of the chapters, or seeds, in place of the profile's")
    one.add_argument("--executor", metavar="ADDRESS",
                     help="of a Ray cluster that runs the jobs, such as head:6379 or auto; sets "
                          "LOCKSMITH_EXECUTOR")
    commands.add_parser("check", help="Checks chapters/ as they stand.")
    args = parser.parse_args()
    if args.what == "check":
        found = [
            line
            for notebook in sorted(Path("chapters").glob("*.ipynb"))
            for line in complaints(notebook)
        ]
        print("\n".join(found) or "chapters/ is clean")
        return int(bool(found))
    if args.executor:
        os.environ["LOCKSMITH_EXECUTOR"] = args.executor  # for the kernel
    given = shares(args.notebook, changes(args.set))
    for notebook in args.notebook:  # all are checked before the first runs
        _change(args.profile, notebook, given[notebook])
        parameters(notebook, args.profile)
    for sent in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(sent) != signal.SIG_IGN:  # as for a job in a script's background
            signal.signal(sent, _end)
    try:
        for notebook in args.notebook:
            _change(args.profile, notebook, given[notebook])
            print(run(notebook, args.profile), flush=True)
    except (ChapterFailed, OSError) as error:  # a disk may be full, or not to be written to
        print(f"error: {error}", file=sys.stderr)
        return 1


def _change(profile, notebook, values):
    if values:
        params.change(profile, params.chapter_key(number(notebook)), values)


def _end(number, frame):
    """Ends the run: its kernel and the kernel's workers at once, without a last word of theirs."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    print(f"error: ended by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    errors.run(main)
