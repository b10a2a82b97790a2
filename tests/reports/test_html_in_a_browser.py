"""A report opened in a real browser: no complaint, no request, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from frozenbn_cli import cli
from tests.builders.browser import CHROMEDRIVER, CHROMIUM, Browser, running_browser
from tests.builders.files import save
from tests.reports.test_report_file import HOSTILE_NAME
from tests.reports.test_terminal import broken, many_layers

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER),
    reason="needs Chromium and chromedriver (Debian: chromium, chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    state = many_layers()
    state |= {
        name.replace("layer3.bn", HOSTILE_NAME): tensor
        for name, tensor in state.items()
        if name.startswith("layer3.bn")
    }
    path = folder / "report.html"
    save(folder / "model.pt", state)
    assert cli.run(["inspect", str(folder / "model.pt"), "--report", str(path), "--quiet"]) == 0
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_opens_without_complaint_or_request(
    browser: Browser, report: Path, width: int, dark: bool
) -> None:
    browser.forget()
    browser.open(report, width=width, dark=dark)

    assert browser.complaints() == []
    assert browser.requests() == [report.as_uri()]
    # Nothing is wider than the screen.
    assert browser.run("return document.documentElement.scrollWidth") <= width
    shown = browser.run(
        "return [...document.querySelectorAll('svg')].filter(svg => svg.checkVisibility()).length"
    )
    assert shown == 2


def test_reads_the_same_by_night_in_other_colours(browser: Browser, report: Path) -> None:
    def colours(dark: bool) -> list[int]:
        browser.open(report, dark=dark)
        colours = "return ['body', 'svg text'].map(name => getComputedStyle(document.querySelector("
        both = browser.run(colours + "name))[name === 'body' ? 'backgroundColor' : 'fill'])")
        return [sum(map(int, found[4:-1].split(","))) for found in both]

    page, words = colours(dark=False)
    assert page > words + 250
    page, words = colours(dark=True)
    assert page < words - 250


def test_names_are_shown_and_not_run(browser: Browser, report: Path) -> None:
    browser.open(report)

    assert HOSTILE_NAME in browser.run("return document.querySelector('table.rows').innerText")
    assert browser.run("return document.scripts.length") == 1


NUMBERS = """
return [...document.querySelectorAll('table.rows tbody tr')]
    .filter(row => row.checkVisibility()).map(row => Number(row.cells[0].textContent))"""


def test_layers_can_be_sorted(browser: Browser, report: Path) -> None:
    browser.open(report)
    click = "document.querySelectorAll('table.rows th button')[arguments[0]].click()"
    cells = "return [...document.querySelectorAll(`table.rows td:nth-child(${arguments[0]})`)]"

    browser.run(click, 2)
    channels = browser.run(f"{cells}.map(cell => parseInt(cell.textContent))", 3)
    assert channels == sorted(channels)
    browser.run(click, 2)
    assert browser.run(f"{cells}.map(cell => parseInt(cell.textContent))", 3) == channels[::-1]
    browser.run(click, 1)
    names = browser.run(f"{cells}.map(cell => cell.textContent.trim())", 2)
    assert names.index("layer2.bn") < names.index("layer10.bn")
    browser.run(click, 0)
    numbers = browser.run(NUMBERS)
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("width", [1280, 390])
def test_layers_can_be_filtered(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width=width)
    everything = browser.run(NUMBERS)
    type_words = (
        "const field = document.querySelector('[type=search]'); field.value = arguments[0];"
        "field.dispatchEvent(new Event('input'))"
    )

    assert browser.run("return document.querySelector('output').value") == "22 of 22 layers"
    browser.run(type_words, "eps LAYER4")
    assert browser.run(NUMBERS) == [5]
    assert browser.run("return document.querySelector('output').value") == "1 of 22 layers"
    browser.run(type_words, "")
    assert browser.run(NUMBERS) == everything
    browser.run("document.querySelector('[type=checkbox]').click()")
    assert 5 in browser.run(NUMBERS)
    assert len(browser.run(NUMBERS)) < len(everything)


def test_can_be_read_where_no_script_runs(browser: Browser, report: Path) -> None:
    browser.open(report, script=False)
    try:
        text = browser.read_aloud()
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)

    assert "layer19.bn" in text
    assert "Filter" not in text


def test_a_report_of_a_difference_opens_as_well(browser: Browser, tmp_path: Path) -> None:
    first, second = save(tmp_path / "a.pt", many_layers()), save(tmp_path / "b.pt", broken())
    path = tmp_path / "report.html"
    assert cli.run(["verify", str(first), str(second), "--report", str(path), "--quiet"]) == 1
    browser.forget()

    browser.open(path, width=390)

    assert (browser.complaints(), browser.requests()) == ([], [path.as_uri()])
    assert "Failed" in browser.run("return document.body.innerText")


@pytest.fixture(scope="module")
def overview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of several files, one of which differs from what it was made of."""
    folder = tmp_path_factory.mktemp("overview")
    for name in ("a rather long name of a file.pt", "b.pt"):
        save(folder / name, many_layers())
    path = folder / "report.html"
    assert cli.run(["inspect", str(folder), "--report", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report on values that differ, whose table is as wide as any."""
    folder = tmp_path_factory.mktemp("numbers")
    state = {f"backbone.with.a.long.name.{name}": value for name, value in many_layers().items()}
    save(folder / "a.pt", state)
    for name, value in state.items():
        state[name] = value + 1e-4 if name.endswith("bias") else value
    path = folder / "report.html"
    arguments = ["verify", folder / "a.pt", save(folder / "b.pt", state), "--report", path]
    assert cli.run([*map(str, arguments), "--quiet"]) == 1
    return path


@pytest.mark.parametrize("page", ["overview", "numbers", "report"])
def test_no_column_is_cut_off_on_a_desk(
    browser: Browser, page: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(page), width=1280)

    wider = "[...document.querySelectorAll('.scroll, td, th')].filter(e => e.checkVisibility())"
    assert browser.run(f"return {wider}.filter(e => e.scrollWidth > e.clientWidth + 1).length") == 0


@pytest.mark.parametrize("page", ["overview", "numbers"])
def test_what_may_scroll_is_reached_by_the_keyboard_and_named(
    browser: Browser, page: str, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(page))

    scrollers = (
        "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).overflowX === 'auto')"
    )
    assert browser.run(f"return {scrollers}.length") > 0
    assert browser.run(f"return {scrollers}.every(e => e.tabIndex === 0 && e.ariaLabel)")


def test_rows_of_the_overview_lead_to_their_sections(browser: Browser, overview: Path) -> None:
    browser.open(overview)

    found = "[...document.querySelectorAll('.overview a')].map(a => document.querySelector(a.hash))"
    titles = browser.run(f"return {found}.map(e => e.querySelector('h1').textContent)")
    assert titles == ["a rather long name of a file.pt", "b.pt"]


def test_on_paper_it_is_a_page_of_its_own_kind(browser: Browser, report: Path) -> None:
    browser.open(report, width=700, dark=True)
    browser.command("Emulation.setEmulatedMedia", media="print", features=[])
    try:
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        found = {
            (name, what): browser.run(style, name, what)
            for name, what in (
                ("h2", "breakAfter"), ("figure", "breakInside"), (".keys i", "printColorAdjust"),
                (".narrow", "display"), (".controls", "display"), (".rows thead", "display"),
                ("th button", "display"),
            )
        }  # fmt: skip
    finally:
        browser.command("Emulation.setEmulatedMedia", media="")

    assert list(found.values()) == [
        "avoid", "avoid", "exact", "none", "none", "table-header-group", "contents",
    ]  # fmt: skip
