"""report.html in Chromium, as a reader meets it: `make test-browser`. Screenshots go to reports/screenshots/."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from audit.machine.plan import plan
from audit.pipeline.loop import execute
from audit.publish.report import write_report

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="Chromium and its driver are not installed"),
]

SCREENSHOTS = Path(__file__).parents[2] / "reports" / "screenshots"
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "hide-scrollbars")  # fmt: skip
LIGHT = {"name": "prefers-color-scheme", "value": "light"}
DARK = {"name": "prefers-color-scheme", "value": "dark"}


def shown(summary: pd.DataFrame) -> pd.DataFrame:
    return summary[~summary["reduction"].isin(["sum", "mean"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole quick report whose table is as long as the standard audit's on two devices."""
    audit = execute(plan("quick", devices="cpu"))
    summary = audit.tables["summary"]
    copies = [summary.assign(device=f"cuda:{i}") for i in range(11_300 // len(shown(summary)))]
    tables = {**audit.tables, "summary": pd.concat([summary, *copies], ignore_index=True)}
    out = tmp_path_factory.mktemp("browser") / "latest"
    write_report(tables, {**audit.environment, "command": "python -m audit run --profile quick"}, out)
    return out


@pytest.fixture
def browser(tmp_path: Path, folder: Path) -> Iterator[Any]:
    """Chromium with a profile of its own, showing the report."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.get("about:blank")
    driver.get_log("performance")  # of the browser's own first page
    driver.get(f"file://{folder}/report.html")
    yield driver
    driver.quit()


def show(browser: Any, width: int, height: int, scheme: dict[str, str] = LIGHT, media: str = "screen") -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})


def screenshot(browser: Any, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    size = browser.execute_script("const r = document.documentElement; return [r.clientWidth, r.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


def column(browser: Any, name: str) -> list[str]:
    """The shown cells of a column of the summary."""
    return browser.execute_script(
        """const table = document.querySelector("#summary");
        const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].textContent);""",
        name,
    )


def head(browser: Any, name: str) -> Any:
    return browser.find_element("xpath", f'//table[@id="summary"]//button[text()="{name}"]')


def choose(browser: Any, name: str, value: str) -> None:
    browser.find_element("xpath", f'//label[starts-with(., "{name}")]/select/option[text()="{value}"]').click()


def test_no_error_and_no_request_leaves_the_page(browser: Any, folder: Path) -> None:
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert f"file://{folder}/report.html" in asked
    assert all(url.startswith("data:") or url == f"file://{folder}/report.html" for url in asked)


def test_a_report_on_two_devices_is_small_and_soon_ready(browser: Any, folder: Path) -> None:
    assert (folder / "report.html").stat().st_size < 2_000_000
    ready = []
    for _ in range(5):
        browser.refresh()
        ready.append(browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    # Half a second is the aim, and what an idle machine takes; others may be at work beside a test.
    assert min(ready) < 2_000, ready


@pytest.mark.parametrize("name", ["scaled_error_max", "n", "case"])
def test_a_column_sorts_both_ways_with_empty_fields_last(browser: Any, name: str) -> None:
    before = column(browser, name)
    head(browser, name).send_keys("\n")  # by keyboard
    up = column(browser, name)
    assert head(browser, name).find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    head(browser, name).click()
    down = column(browser, name)
    assert sorted(before) == sorted(up) == sorted(down)
    filled = [value for value in up if value]
    assert up == filled + [""] * (len(up) - len(filled)) and down[: len(filled)] != up[: len(filled)]
    keys = [float(v) for v in filled] if name != "case" else [v.lower() for v in filled]
    if name != "case":  # a browser's collation is its own
        assert keys == sorted(keys) and [float(v) for v in down if v] == sorted(keys, reverse=True)
    assert down[0] == filled[-1] or float(down[0]) == keys[-1]


def test_rows_are_filtered_by_case_path_dtype_and_device_and_counted(browser: Any, folder: Path) -> None:
    summary = shown(pd.read_csv(folder / "summary.csv", keep_default_na=False))
    wanted = {"case": "near_1e-04", "path": "log_softmax", "dtype": "float32", "device": "cpu"}
    left = summary
    for name, value in wanted.items():
        choose(browser, name, value)
        left = left[left[name] == value]
        assert len(column(browser, name)) == len(left)
        assert set(column(browser, name)) == {value}
    output = browser.find_element("css selector", ".filters output")
    assert output.text == f"{len(left)} of {len(summary):,} rows"
    browser.find_element("css selector", ".filters button").click()
    assert len(column(browser, "case")) == len(summary)


def luminance(browser: Any, selector: str, quality: str) -> float:
    colour = browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, quality
    )
    red, green, blue = (float(c) / 255 for c in colour[colour.index("(") + 1 : -1].split(",")[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(browser: Any, text: str, ground: str) -> float:
    """WCAG's contrast ratio of a text's colour and a background's."""
    a, b = luminance(browser, text, "color"), luminance(browser, ground, "backgroundColor")
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize(("name", "scheme"), [("light", LIGHT), ("dark", DARK)])
def test_text_plots_and_links_are_legible_in_light_and_dark(browser: Any, name: str, scheme: dict[str, str]) -> None:
    show(browser, 1200, 900, scheme)
    assert (luminance(browser, "body", "backgroundColor") < 0.1) == (name == "dark")
    for text in ("body", "figure svg", "nav a", "h1", ".ran"):
        assert contrast(browser, text, "body") > 4.5, text
    for i in range(5):
        assert contrast(browser, f".scale .s{i}", f".scale .s{i}") > 4.5
    fill = browser.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")
    assert fill == browser.execute_script("return getComputedStyle(document.body).color")
    screenshot(browser, name)


def test_the_shades_grow_darker_step_by_step_for_grey_prints(browser: Any) -> None:
    shades = [luminance(browser, f".scale .s{i}", "backgroundColor") for i in range(5)]
    assert all(a > 1.5 * b for a, b in pairwise(shades))


def test_a_phone_stacks_the_matrix_and_names_each_cell(browser: Any) -> None:
    show(browser, 390, 800)
    cell = browser.find_element("css selector", ".matrix td")
    script = "return [getComputedStyle(arguments[0]).display, getComputedStyle(arguments[0], '::before').content]"
    display, named = browser.execute_script(script, cell)
    assert display == "block" and "float" in named
    assert not browser.find_element("css selector", ".matrix thead").is_displayed()


def test_a_phone_scrolls_tables_but_not_the_page(browser: Any) -> None:
    show(browser, 390, 800)
    browser.refresh()
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390
    regions = browser.find_elements("css selector", ".wide")
    assert regions and all(region.get_attribute("tabindex") == "0" for region in regions)
    screenshot(browser, "phone")


def test_print_leaves_out_what_only_a_screen_can_use(browser: Any) -> None:
    show(browser, 900, 1200, media="print")
    for selector in ("nav", ".filters", "#summary-rows"):
        assert not browser.find_element("css selector", selector).is_displayed()
    assert browser.find_element("css selector", ".matrix").is_displayed()
    screenshot(browser, "print")


def test_all_is_there_with_scripts_off(browser: Any, folder: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.refresh()
    assert not browser.find_element("css selector", ".filters").is_displayed()
    assert not browser.find_elements("css selector", "th button")
    assert len(browser.find_elements("css selector", "figure svg")) == len(list(folder.glob("*.svg"))) >= 4
    rows = shown(pd.read_csv(folder / "summary.csv"))
    assert len(browser.find_elements("css selector", "#summary tbody tr")) == len(rows)
    assert browser.find_element("css selector", "h1").text.endswith(("problems", "problem"))
