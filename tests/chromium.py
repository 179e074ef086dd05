"""Drive a headless Chromium over its debugging pipe, to look at pages as a reader sees them."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 120.0
OWN = ("file:", "data:", "blob:", "about:", "chrome:")  # addresses that leave no machine


def chromium_path() -> str | None:
    """Path of the browser; None without one, or without the shell that opens its pipe."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found if shutil.which("bash") else None


class Chromium:
    """One page of a browser, with what it complained of and what it asked for.

    Attributes:
        problems: errors of the console, and exceptions.
        requests: addresses outside of this machine that the page asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded, self._number, self._rest = False, 0, b""
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (*os.pipe(), *os.pipe())]
        read_in, self._write, self._read, write_out = ends
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--enable-unsafe-swiftshader", "--hide-scrollbars", "--disable-dev-shm-usage"]
        options += ["--disable-background-networking", "--disable-component-update"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        command = f'exec "$@" 3<&{read_in} 4>&{write_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", str(chromium_path()), *options],
            pass_fds=(read_in, write_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_in)
        os.close(write_out)
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._read)
        os.close(self._write)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        """Return the next message; remember what events tell."""
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        method, values = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(values["exceptionDetails"])[:2000])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.problems.append(json.dumps(values["args"])[:2000])
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.problems.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = values["request"]["url"]
            if not url.startswith(OWN):
                self.requests.append(url)
        return message

    def open(self, path: Path, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it is drawn."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._loaded = False
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._next()
        self.run("new Promise((end) => requestAnimationFrame(() => requestAnimationFrame(end)))")

    def run(self, script: str) -> Any:
        """Return the value of an expression of JavaScript."""
        result = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(data["data"]))
