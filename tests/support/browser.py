# SPDX-License-Identifier: Apache-2.0
"""A real browser for the tests of the page: Debian's chromium, without a screen.

Owns its process and its profile, a new one each time.  It is offered no network use
of its own: what it loads are files.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from needs import require

ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # as root it does not start with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A selenium driver; the console's messages are kept for `get_log("browser")`."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    require(chromium and driver, "chromium and chromedriver (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(executable_path=str(driver)))
    try:
        yield found
    finally:
        found.quit()


def resize(driver: Any, width: int, height: int = 900) -> None:
    """The viewport, in CSS pixels: a window has a least width of its own."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def prefer(driver: Any, scheme: str = "light", media: str = "") -> None:
    """What the reader's system prefers, `light` or `dark`; `media` print, or nothing for the screen."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})
