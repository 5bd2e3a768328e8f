"""Headless Chromium over the DevTools protocol: enough of a browser for the dashboard's tests.

One page, driven from Python through ``websockets`` (which uvicorn brings along), so that the
tests of a Python package need neither Node nor a browser download.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import Request, urlopen

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--disable-background-networking",
    "--remote-debugging-port=0",
)
ERRORS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


def find() -> str | None:
    """Path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A tab: go, evaluate, wait for something to be true, take a picture, list complaints."""

    def __init__(self, port: int) -> None:
        """Opens in the browser that listens on ``port``."""
        self.complaints: list[str] = []
        self._ids = itertools.count(1)
        self._stack = ExitStack()
        request = Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        target = json.load(urlopen(request, timeout=10))
        address = target["webSocketDebuggerUrl"]
        self._socket = self._stack.enter_context(connect(address, max_size=None))
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        # As if each tab had a window of its own: a hidden page rests.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def close(self) -> None:
        """As somebody closes a tab; nothing more can be asked of it."""
        self.call("Page.close")
        self._stack.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command and its result; events that arrive meanwhile are noted."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method not in ERRORS:
            return
        kind = params.get("type") or params.get("entry", {}).get("level")
        if method == "Runtime.exceptionThrown" or kind in ("error", "assert"):
            self.complaints.append(json.dumps(params)[:600])

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def scheme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def network(self, offline: bool = False, latency_ms: float = 0) -> None:
        """The line to the service: cut, slow, or as it is."""
        self.call(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=latency_ms,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def click(self, words: str, within: str = "body") -> None:
        """Wait for a button or link that says exactly this, or is labelled so, and click it."""
        one = (
            f"[...document.querySelectorAll({(within + ' :is(a, button)')!r})].find(b =>"
            f" !b.disabled && (b.ariaLabel ?? b.innerText).trim() === {words!r})"
        )
        self.wait(one)
        self.evaluate(f"{one}.click()")

    def fill(self, selector: str, text: str) -> None:
        """Put text into a field as typing would."""
        self.wait(f"document.querySelector({selector!r})")
        self.evaluate(
            f"(field => {{ field.value = {text!r};"
            " for (const kind of ['input', 'change'])"
            " field.dispatchEvent(new Event(kind, {bubbles: true})); })"
            f"(document.querySelector({selector!r}))"
        )

    def says(self, text: str, within: str = "main") -> str:
        """Wait until this part of the page shows the text; all that it shows then."""
        found: str = self.wait(
            f"(t => t?.includes({text!r}) && t)(document.querySelector({within!r})?.innerText)"
        )
        return found

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:600])
        return answer["result"].get("value")

    def wait(self, expression: str, limit: float = 30) -> Any:
        """Poll until the expression is truthy; its value."""
        end = time.monotonic() + limit
        asked = f"(found => found instanceof Node ? true : found)({expression})"
        while True:
            if value := self.evaluate(asked):
                return value
            if time.monotonic() > end:
                body = self.evaluate("document.body.innerText.slice(0, 800)")
                raise AssertionError(f"never true: {expression}\nThe page says:\n{body}")
            time.sleep(0.1)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def press(self, key: str, code: str | None = None, text: str | None = None) -> None:
        common = {"key": key, "code": code or key}
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {})
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, file: Path, full: bool = True) -> Path:
        """A PNG of the page, as a whole or as the window shows it."""
        # What was drawn last is on the screen after two frames, however busy the machine is.
        self.evaluate("new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")
        more: dict[str, Any] = {}
        if full:
            box = self.call("Page.getLayoutMetrics")["cssContentSize"]
            more = {"captureBeyondViewport": True, "clip": {**box, "scale": 1}}
        data = self.call("Page.captureScreenshot", format="png", **more)["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(data))
        return file


class Page(Tab):
    """The first tab of a browser of its own, which ends with it."""

    def __init__(self, executable: str, profile: Path) -> None:
        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._browser = self._port(profile / "DevToolsActivePort")
            super().__init__(self._browser)
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tab(self) -> Tab:
        """Another tab of the same browser."""
        return Tab(self._browser)

    def _port(self, file: Path, limit: float = 30) -> int:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if file.exists() and (text := file.read_text()).count("\n"):
                return int(text.split()[0])
            if self._process.poll() is not None:
                raise RuntimeError(f"Chromium ended at once with code {self._process.returncode}")
            time.sleep(0.05)
        raise TimeoutError("Chromium did not open its DevTools port")
