"""A browser to look at pages with: Chromium, asked through the pipe of its DevTools protocol."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One tab. `open` shows a file, `evaluate` runs JavaScript in it, `press` presses a key."""

    def __init__(self, folder, width=1280, height=800):
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (*os.pipe(), *os.pipe())]
        theirs, self.write, self.read, other = high[0], high[1], high[2], high[3]

        def attach():
            os.dup2(theirs, 3)
            os.dup2(other, 4)
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--remote-debugging-pipe",
             f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(3, 4), preexec_fn=attach, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(other)
        self.rest, self.number, self.session, self.events = b"", 0, {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        self.call("Page.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)

    def call(self, method, **given):
        """Result of a method of the protocol."""
        self.number += 1
        said = {"id": self.number, "method": method, "params": given, **self.session}
        os.write(self.write, json.dumps(said).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer.get("method"))

    def next(self, seconds=240):
        """The next message."""
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0, end - time.monotonic()))
            part = os.read(self.read, 2**16) if ready else b""
            assert part, "the browser has ended, or says nothing"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self.events:
            self.events.append(self.next().get("method"))

    def evaluate(self, expression):
        """The value of an expression, of a promise once it is kept."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, text=""):
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowDown": 40}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      **({"text": text} if text and kind == "keyDown" else {}))

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        os.close(self.write)
        os.close(self.read)
