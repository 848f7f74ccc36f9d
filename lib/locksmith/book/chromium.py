"""Chromium without a window, asked through the pipe of its DevTools protocol."""

import base64
import json
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from locksmith import errors

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE = 600  # seconds without a word
# The protocol is heard on file 3 and answered on file 4.
PIPE = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowDown": 40}


class NoBrowser(errors.BadInput):
    """No Chromium on this machine; the message says so in one sentence."""


def find() -> str:
    """Path of the machine's Chromium or Chrome; NoBrowser where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise NoBrowser(f"No browser to look at pages with: none of {', '.join(NAMES)} is installed "
                    "(on Debian: `apt-get install chromium`).")


@contextmanager
def opened(width: int = 1280, height: int = 900) -> Iterator["Tab"]:
    """A tab of so many pixels, in a browser with a profile of its own; both end with the context.
    NoBrowser where there is none."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["sh", "-c", PIPE, "sh", find(), "--headless=new", "--no-sandbox",
                   "--disable-gpu", "--no-first-run", "--disable-background-networking",
                   "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        with subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as process:
            try:
                tab = Tab(process)
                tab.size(width, height)
                yield tab
            finally:
                process.terminate()


class Tab:
    """One tab: `open` shows a page, `evaluate` runs JavaScript in it, `press` presses a key."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.rest, self.number, self.session, self.events = process, b"", 0, {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.call("Page.enable")

    def call(self, method: str, **given: Any) -> dict:
        """Result of a method of the protocol; RuntimeError where it refuses."""
        self.number += 1
        said = {"id": self.number, "method": method, "params": given, **self.session}
        with suppress(BrokenPipeError):  # a browser that has ended has no answer either
            self.process.stdin.write(json.dumps(said).encode() + b"\0")
        while (answer := self._hear()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _hear(self):
        """The browser's next message, an answer or an event; BadInput where there is none."""
        parts = [self.rest]
        while b"\0" not in parts[-1]:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            parts.append(self.process.stdout.read(2**16) if ready else b"")
            if not parts[-1]:
                raise errors.BadInput(f"{self.process.args[4]} has ended, or said nothing for "
                                      f"{PATIENCE} seconds.")
        message, _, self.rest = b"".join(parts).partition(b"\0")
        message = json.loads(message)
        self.events.append(message.get("method"))
        return message

    def size(self, width: int, height: int) -> None:
        """Have the window so many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)

    def theme(self, name: str) -> None:
        """Have the reader prefer "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, page: Path) -> None:
        """Show a file, and wait until all of it is there."""
        self.events.clear()
        if problem := self.call("Page.navigate", url=page.resolve().as_uri()).get("errorText"):
            raise errors.BadInput(f"The browser could not open {page}: {problem}.")
        while "Page.loadEventFired" not in self.events:
            self._hear()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, of a promise once it is kept; RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:60]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press a key of KEYS, which may write a text, and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=KEYS[key],
                      **({"text": text} if text and kind == "keyDown" else {}))

    def print(self, path: Path) -> None:
        """Print the page as a PDF with its headings as bookmarks."""
        printed = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True,
                            generateDocumentOutline=True)
        path.write_bytes(base64.b64decode(printed["data"]))
