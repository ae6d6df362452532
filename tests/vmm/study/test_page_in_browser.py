# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: it opens from a file, and can be read, pressed and printed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from browser import browser, prefer, resize
from compare_sample import sample

from daxfault.vmm.study.page import render

# for each cell: its card's height, then pressed, then pressed again
PRESS_EACH = """
return [...document.querySelectorAll("button.cell")].map((cell) => {
  const card = document.getElementById(cell.getAttribute("aria-controls"));
  const shut = card.getBoundingClientRect().height;
  cell.click();
  const opened = card.getBoundingClientRect().height > 100;
  const expanded = cell.getAttribute("aria-expanded");
  const steps = [card.querySelectorAll(".diagram .step").length, card.textContent.includes("No messages")];
  cell.click();
  return [shut, opened, expanded, steps, card.getBoundingClientRect().height];
});
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Any:
    """The sample's page, just opened, 1400 px wide; no errors in the console when the test is over."""
    file = tmp_path / "page.html"
    file.write_text(render(sample()), encoding="utf-8")
    prefer(driver)
    resize(driver, 1400)
    driver.get_log("browser")
    driver.get(file.as_uri())
    yield driver
    assert driver.get_log("browser") == []


def test_page_every_cell_opens_its_sequence_and_closes_it(page: Any) -> None:
    page.find_element("id", "close-all").click()
    assert not page.find_elements("css selector", ".card:not([hidden])")
    states = page.execute_script(PRESS_EACH)
    assert len(states) == sum(len(row["cells"]) for row in sample()["rows"])
    for shut, opened, expanded, steps, shut_again in states:
        assert (shut, opened, expanded, shut_again) == (0, True, "true", 0)
        assert steps != [0, False]


def test_page_keyboard_moves_between_cells_opens_one_and_comes_back(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.find_element("id", "close-all").click()
    page.execute_script("document.querySelector('button.cell').focus()")
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    cell = page.switch_to.active_element
    assert (cell.get_attribute("data-row"), cell.get_attribute("data-column")) == ("1", "1")
    cell.send_keys(Keys.ENTER)
    card = page.find_element("id", cell.get_attribute("aria-controls"))
    assert card.is_displayed()
    card.find_element("css selector", "button.close").send_keys(Keys.ENTER)
    assert not card.is_displayed()
    assert page.switch_to.active_element == cell


def test_page_titles_open_all_that_is_under_them(page: Any) -> None:
    page.find_element("css selector", "button.all[data-column='1']").click()
    shown = page.find_elements("css selector", ".card:not([hidden])")
    assert [card.get_attribute("id") for card in shown] == [f"s{n}-1" for n in range(len(sample()["rows"]))]
    page.find_element("css selector", "button.all[data-row='0']").click()
    shown = page.find_elements("css selector", ".card:not([hidden])")
    assert [card.get_attribute("id") for card in shown] == [
        f"s0-{n}" for n in range(len(sample()["columns"]))
    ]


def test_page_plots_have_marks(page: Any) -> None:
    found = sample()
    assert len(page.find_elements("css selector", "figure svg[role=img] path.series")) == 4
    assert len(page.find_elements("css selector", "figure path.p50[d^=M]")) >= len(found["latency"])
    assert len(page.find_elements("css selector", "figure circle.dot")) > 100
    looped = [
        c for row in found["rows"] for c in row["cells"].values() if c["outcome"] == "loop" and c["rate"]
    ]
    bars = page.find_elements("css selector", "figure rect.rate")
    assert len(bars) == len(looped)
    for mark in (*page.find_elements("css selector", "path.series"), *bars):
        assert mark.rect["width"] > 0


@pytest.mark.parametrize("width", [320, 390, 701, 1024, 1400, 2200])
def test_page_never_scrolls_sideways(page: Any, width: int) -> None:
    resize(page, width)
    assert page.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_page_has_nothing_that_axe_minds(page: Any, scheme: str, width: int) -> None:
    """axe-core: contrast, names, roles, what belongs to what; WCAG 2.1 AA is among its rules."""
    prefer(page, scheme)
    resize(page, width)
    violations = Axe().run(page)["violations"]
    assert not violations, [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations]


def test_page_scheme_button_changes_the_colours(page: Any) -> None:
    def background() -> str:
        return str(page.execute_script("return getComputedStyle(document.documentElement).backgroundColor"))

    button = page.find_element("id", "scheme")
    light = background()
    button.click()
    assert background() == light
    button.click()
    assert button.text == "Colours: dark"
    assert background() != light
    prefer(page, "dark", media="print")
    assert page.execute_script("return getComputedStyle(document.documentElement).colorScheme") == "light"


def test_page_on_paper_shows_the_whole_table(page: Any) -> None:
    prefer(page, media="print")
    resize(page, 1039)  # A4 across, less its margins, at 96 to the inch
    table, cells = (
        page.find_element("css selector", "table"),
        page.find_elements("css selector", "button.cell"),
    )
    assert table.rect["width"] <= 1039
    boxes = page.execute_script(
        "return arguments[0].map((c) => [c.getBoundingClientRect().right, c.scrollWidth - c.clientWidth])",
        cells,
    )
    assert all(right <= 1039 and over <= 1 for right, over in boxes)


def test_page_without_its_script_shows_every_sequence(page: Any, tmp_path: Path) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        cards = page.find_elements("css selector", ".card")
        assert all(card.is_displayed() for card in cards)
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
