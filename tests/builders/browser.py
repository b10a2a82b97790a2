"""A headless Chromium, driven through chromedriver by the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.builders.processes import HANG_SECONDS, running

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
CHROMEDRIVER = shutil.which("chromedriver")

_ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """One window.

    Args:
        address: Of the running chromedriver.
        profile: A folder of its own.
    """

    def __init__(self, address: str, profile: str) -> None:
        self._address = address
        options = {
            "binary": CHROMIUM,
            "args": [*_ARGUMENTS, f"--user-data-dir={profile}"],
            "perfLoggingPrefs": {"enableNetwork": True, "enablePage": False},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self._ask("session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"session/{answer['sessionId']}"

    def open(
        self, path: Path, *, width: int = 1280, dark: bool = False, script: bool = True
    ) -> None:
        """Show a file on a screen that is so wide, by day or by night."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Emulation.setScriptExecutionDisabled", value=not script)
        self._ask(f"{self._session}/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a function body of JavaScript returns."""
        return self._ask(f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def command(self, name: str, **parameters: object) -> Any:
        """Return what the DevTools protocol answers."""
        body = {"cmd": name, "params": parameters}
        return self._ask(f"{self._session}/goog/cdp/execute", body)

    def complaints(self) -> list[str]:
        """Return what the console has said since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def forget(self) -> None:
        """Forget what was said and asked for until now, such as the browser's own first page."""
        self.complaints()
        self.requests()

    def read_aloud(self) -> str:
        """Return what is in the page for those who have it read to them; runs no script."""
        nodes = self.command("Accessibility.getFullAXTree")["nodes"]
        return "\n".join(str(node.get("name", {}).get("value", "")) for node in nodes)

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._ask(self._session, method="DELETE")

    def _log(self, kind: str) -> list[Any]:
        entries: list[Any] = self._ask(f"{self._session}/se/log", {"type": kind})
        return entries

    def _ask(self, path: str, body: object = None, method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"{self._address}/{path}",
            data=None if method == "DELETE" else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        # Nothing but this machine is asked, whatever proxy the environment names.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=HANG_SECONDS) as answer:
            return json.load(answer)["value"]


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Start a browser, and end it."""
    assert CHROMEDRIVER
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        running(
            [CHROMEDRIVER, "--port=0"],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "no_proxy": "*"},
        ) as driver,
    ):
        assert driver.stdout
        said = next(line for line in driver.stdout if "successfully on port" in line)
        port = re.findall(r"on port (\d+)", said)[0]
        browser = Browser(f"http://127.0.0.1:{port}", profile)
        try:
            yield browser
        finally:
            browser.close()
