"""Headless Chromium for the tests of pages: fixtures `browser` and `browser_page` of tests/conftest.py."""
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

# No sandbox: containers and root have none. The rest keeps Chromium from asking for anything beyond the page.
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
             "--mute-audio"]


@dataclass
class BrowserPage:
    """A Playwright page and what went wrong on it. errors: uncaught ones and those of the console; requests: the
    addresses that the page asked for, itself among them."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Skips the test where Chromium or Playwright is missing."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()
