"""Chromium without a window: it prints pages, and tells what a script finds in them."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from locksmith import errors

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE = 600  # seconds


class NoBrowser(errors.BadInput):
    """No Chromium on this machine; the message says so in one sentence."""


def find() -> str:
    """Path of the machine's Chromium or Chrome; NoBrowser where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    raise NoBrowser(f"No browser to look at pages with: none of {', '.join(NAMES)} is installed "
                    "(on Debian: `apt-get install chromium`).")


def run(page: Path, *options: str) -> str:
    """Open a page from a file with further options of the command line; returns what it prints.

    Pages from files may read each other, and time passes as fast as scripts allow.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [find(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--allow-file-access-from-files", f"--user-data-dir={profile}",
                   "--virtual-time-budget=10000000", *options, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              timeout=PATIENCE)
    if done.returncode:
        raise errors.BadInput(f"{command[0]} could not open {page}: {done.stderr[-300:]}")
    return done.stdout
