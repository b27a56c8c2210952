"""The HTML report in a real browser, at desktop and phone width, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from actbench.report import formats
from actbench.report.phrases import Language
from tests.report.browser import Browser
from tests.report.records import compared, measured
from tests.report.test_formats import hostile, papers
from tests.report.test_page import LANGUAGES

DESKTOP, PHONE = (1280, 900), (375, 812)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module", params=LANGUAGES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    language: Language = request.param
    path = tmp_path_factory.mktemp("page") / "report.html"
    records = measured()
    records.append(records[3] | {"seed": 9, "status": "oom", "metrics": None, "epoch_seconds": []})
    path.write_text(formats.report_html(compared(records) + papers(), language), encoding="utf-8")
    return path


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_window_and_stays_in_its_file(
    browser: Browser, page: Path, size: tuple[int, int], dark: bool
) -> None:
    browser.open(page, *size, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    # All that can be opened is open, so that nothing hides a width.
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    root = "document.documentElement"
    assert browser.evaluate(f"{root}.scrollWidth") <= browser.evaluate(f"{root}.clientWidth")
    assert browser.evaluate(f"{root}.clientWidth") >= 0.95 * size[0]


def test_a_print_holds_every_column_and_what_is_closed(browser: Browser, page: Path) -> None:
    """A4 upright at 96 dots an inch, within margins of 1 cm: what a table scrolls to on a screen would be cut off."""
    browser.open(page, 718, 1047)
    browser.call("Emulation.setEmulatedMedia", media="print")
    wide = "[...document.querySelectorAll('.scroll, pre')].filter((each) => each.scrollWidth > each.clientWidth)"
    assert browser.evaluate(f"{wide}.map((each) => each.textContent.trim().slice(0, 40))") == []
    parts = "[...document.querySelectorAll('details > :not(summary)')]"
    assert browser.evaluate(f"{parts}.length") > 2
    assert browser.evaluate(f"{parts}.every((each) => each.checkVisibility({{contentVisibilityAuto: true}}))")
    assert browser.evaluate(f"{parts}.every((each) => each.getBoundingClientRect().height > 0)")


def test_text_and_charts_are_readable_in_light_and_dark(browser: Browser, page: Path) -> None:
    """The contrast of text and of the charts' axes with the page is WCAG's 7 : 1 at least."""
    for dark in (False, True):
        browser.open(page, *DESKTOP, dark=dark)
        luminance = """((colour) => {
          const channels = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
          return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2];
        })"""
        paper = browser.evaluate(f"{luminance}(getComputedStyle(document.body).backgroundColor)")
        assert (paper < 0.1) == dark
        for text in ("document.body", "document.querySelector('figure svg text')"):
            found = browser.evaluate(f"{luminance}(getComputedStyle({text}).{'fill' if 'svg' in text else 'color'})")
            assert (max(found, paper) + 0.05) / (min(found, paper) + 0.05) >= 7


def test_a_click_sorts_and_what_is_unknown_comes_last(browser: Browser, page: Path) -> None:
    browser.open(page, *DESKTOP)
    first = "[...document.querySelectorAll('table.sortable')[0].tBodies[0].rows].map((row) => row.cells[0].innerText)"
    head = "document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells"
    assert browser.evaluate(first) == ["fp32", "exact", "blockwise"]

    def click(column: int) -> list[str]:
        browser.evaluate(f"{head}[{column}].querySelector('button').click()")
        found: list[str] = browser.evaluate(first)
        return found

    activation, difference = 3, 2
    assert click(activation) == ["blockwise", "exact", "fp32"]
    assert browser.evaluate(f"{head}[{activation}].getAttribute('aria-sort')") == "ascending"
    assert click(activation) == ["fp32", "exact", "blockwise"]
    # The reference has no difference to itself.
    assert click(difference) == ["exact", "blockwise", "fp32"]
    assert click(difference) == ["blockwise", "exact", "fp32"]
    assert click(0) == ["blockwise", "exact", "fp32"]
    assert browser.complaints() == []


def test_links_lead_to_the_rows(browser: Browser, page: Path) -> None:
    browser.open(page, *DESKTOP)
    links = "[...document.querySelectorAll('a')].filter((a) => !document.getElementById(a.hash.slice(1))).length"
    assert browser.evaluate("document.querySelectorAll('a').length") > 6
    assert browser.evaluate(links) == 0


def test_it_looks_like_something(browser: Browser, page: Path) -> None:
    """A blank window compresses to next to nothing."""
    for size in (DESKTOP, PHONE):
        browser.open(page, *size)
        assert len(browser.screenshot()) > 20_000


def test_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(formats.report_html(hostile(), "ja"), encoding="utf-8")
    browser.open(path, *PHONE)
    assert browser.complaints() == []
    assert not any(event["method"] == "Page.javascriptDialogOpening" for event in browser.events)
    assert browser.evaluate("document.scripts.length") == 1
    root = "document.documentElement"
    assert browser.evaluate(f"{root}.scrollWidth") <= browser.evaluate(f"{root}.clientWidth")
