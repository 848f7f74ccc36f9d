"""How long a reader waits for the book's own commands, by the clock, each in a process of its own.

    import        every module of the library, in one process
    ours          of that, what the library's own modules take (`python -X importtime`); the rest
                  is torch, transformers and what else they stand on
    nothing to do  `dvc repro --allow-missing` where nothing changed
    build         `python -m locksmith.book.site build`, chapters executed before

Run it where `make book` has ended. Value is the median of the repeats, low and high their extremes.
Writes results/<profile>/bench_waiting.json.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from locksmith import results

LIBRARY = Path(results.__file__).parents[1]


def modules():
    """Names of all modules of the library."""
    return sorted(".".join(path.relative_to(LIBRARY).with_suffix("").parts)
                  for path in LIBRARY.rglob("*.py") if path.stem != "__init__")


def timed(*command):
    """(seconds, output, standard error) of a command that ends well."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False,
                          env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout, done.stderr


def own(told):
    """Seconds in modules of the library, of what `-X importtime` told."""
    found = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+locksmith(?:\.|\s|$)", told, re.M)
    return sum(map(int, found)) / 1e6


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--repeats", type=int, default=5)
    args.add_argument("--profile", default="lab")
    args = args.parse_args()
    if "Running stage" in timed("-m", "dvc", "repro", "--dry", "--allow-missing")[1]:
        sys.exit("error: `dvc repro` has something to do here; allowed is a book that is made.")
    everything = "import " + ", ".join(modules())
    waits = {"import": [], "ours": [], "nothing to do": [], "build": []}
    for _ in range(args.repeats):
        waits["import"].append(timed("-c", everything)[0])
        waits["ours"].append(own(timed("-X", "importtime", "-c", everything)[2]))
        waits["nothing to do"].append(timed("-m", "dvc", "repro", "-q", "--allow-missing")[0])
        waits["build"].append(timed("-m", "locksmith.book.site", "build")[0])
    record = results.Recorder(args.profile, "bench_waiting", seeds=range(args.repeats))
    for what, seconds in waits.items():
        found = record.fact("book", "waiting", f"wait[variant={what}]",
                            (statistics.median(seconds), min(seconds), max(seconds)))
        print("{:16} {:7.2f} s ({:.2f} to {:.2f})".format(what, *found))
    print(record.write())


if __name__ == "__main__":
    main()
