"""What is said to a person whose input cannot be used."""

import math
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import NoReturn


class BadInput(ValueError):
    """Input that cannot be used; the message is one sentence for the person who gave it."""


def finite(value: float, what: str) -> None:
    """BadInput, before a training step is taken, where a number of it is not finite."""
    if not math.isfinite(value):
        raise BadInput(f"{what} is {value}, so this step is not taken and the weights are those "
                       "before it; allowed are finite numbers: a smaller learning rate, weights "
                       "without NaN.")


def run(main: Callable[[], object]) -> NoReturn:
    """Runs a command line's `main`; BadInput ends it with its sentence and exit code 2, what the
    system refuses (space, memory, a folder, a process) with one and exit code 1."""
    try:
        sys.exit(main())
    except BrokenProcessPool:
        print("error: a worker process was killed, as the system does when memory runs out",
              file=sys.stderr)
        sys.exit(1)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"error: memory ran out: {str(error) or 'less is free than it needs'}",
              file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {refused(error)}", file=sys.stderr)
        sys.exit(1)


def refused(error: OSError) -> str:
    """What the system refused, for people: "results/facts.csv: No space left on device"."""
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([" to ".join(named) or "a file", error.strerror or str(error)])
