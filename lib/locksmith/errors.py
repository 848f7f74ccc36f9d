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
    """Runs a command line's `main`; BadInput ends it with its sentence and exit code 2, a worker
    process that was killed with one and exit code 1."""
    try:
        sys.exit(main())
    except BrokenProcessPool:
        print("error: a worker process was killed, as the system does when memory runs out",
              file=sys.stderr)
        sys.exit(1)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
