"""Pages in a browser: needs Chromium, its driver and selenium; tests are skipped, saying so, where one is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = [
    name
    for name, found in (
        ("a Chromium binary", CHROMIUM),
        ("chromedriver", DRIVER),
        ("the selenium package", importlib.util.find_spec("selenium")),
    )
    if not found
]
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"the page is checked in a browser: missing {', '.join(MISSING)}"),
]
"""What a file of such tests has as ``pytestmark``."""

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1440,1000"
)
SECONDS = 60.0


@contextmanager
def started_browser(profile: Path) -> Iterator[Any]:
    """A browser without a window whose files are in ``profile``."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@contextmanager
def opened(browser: Any, path: Path, title: str) -> Iterator[Any]:
    """The page at ``path``, ready; afterwards, nothing may have run, failed or been fetched."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready") == "true")
    assert browser.title == title
    yield browser
    assert browser.title == title
    assert browser.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
        and message["params"]["documentURL"].startswith("file:")  # not the browser's own first page
    ]
    assert all(url.startswith(("file:", "data:")) for url in requests), requests
    assert sum(url.startswith("file:") for url in requests) <= 1
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.scripts.length") == 2  # the data block is removed once read


def wait(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit, "the page did not get there in time"
        time.sleep(0.02)


def texts(page: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent)"
    return page.execute_script(script, selector)


def click(page: Any, selector: str) -> None:
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def keys(page: Any, *pressed: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(*pressed).perform()


def prefer(page: Any, scheme: str) -> None:
    """``light`` or ``dark``."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def colours(page: Any, *names: str) -> list[str]:
    """Of the page's variables, ``#rrggbb`` each."""
    script = "return arguments[0].map(name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"
    return page.execute_script(script, names)


def luminance(colour: str) -> float:
    channels = [int(colour[1 + 2 * i : 3 + 2 * i], 16) / 255 for i in range(3)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
