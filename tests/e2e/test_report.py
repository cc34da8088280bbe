"""The report page in a browser: made by the real playbook, seen at two widths, light and dark."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from ansible.module_utils.lora_forge.evaluation.answers import Answer
from delivered import START, cases, deliver, evaluate, workshop
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from .conftest import CONVERGE, PLAYBOOK, ROOT, eventually

LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
# Every text that is seen, with the contrast to what is behind it (WCAG 2.2, 1.4.3: relative luminance).
CONTRASTS = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    if (colour.length === 3) return colour;
    if (colour[3] !== 0) throw new Error('half transparent: ' + element.outerHTML);
  }
  throw new Error('nothing behind');
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const colour = element instanceof SVGElement ? style.fill : style.color;
  const [light, dark] = [luminance(rgb(colour)), luminance(behind(element))].sort((a, b) => b - a);
  found.push([walker.currentNode.data.trim(), (light + 0.05) / (dark + 0.05), style.fontFamily]);
}
return found;
"""


def play(output: pathlib.Path, *arguments: str) -> str:
    """Make the page as a user would; returns what was printed."""
    done = subprocess.run(
        [str(PLAYBOOK), "playbooks/report.yml", "-v", "-e", json.dumps({"output_dir": str(output)}), *arguments],
        cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=CONVERGE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make a page of two agents with six runs, one of them with a NaN, two rehearsals, and three runs under way."""
    output = tmp_path_factory.mktemp("report") / "output"
    workshop(output)
    said = play(output)
    path = output / "report.html"
    assert f"6 adapters of polecat, witness: file://{path}" in said
    assert "changed=1" in said
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Provide Chromium without a screen; it and all that it started end with the module."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    started = psutil.Process(service.process.pid)
    family = [started, *started.children(recursive=True)]
    try:
        yield driver
    finally:
        driver.quit()
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()


def show(browser: webdriver.Chrome, page: pathlib.Path, width: int, scheme: str) -> None:
    """Load the page at a width, in CSS pixels, with a colour scheme, and forget what was logged before."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


def photograph(browser: webdriver.Chrome, width: int) -> bytes:
    """Return the whole page as PNG."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])


def all_of(browser: webdriver.Chrome, selector: str) -> list[Any]:
    found = browser.find_elements(By.CSS_SELECTOR, selector)
    assert found, f"the page has no {selector}"
    return found


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_page_in_a_browser(browser, page, tmp_path, width, scheme):
    show(browser, page, width, scheme)

    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()]
    assert browser.get_log("browser") == []

    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    for box in all_of(browser, ".scroll, figure, h1, h2, h3, p, dl, ul"):
        if box.is_displayed():
            assert box.rect["x"] >= 0
            assert box.rect["x"] + box.rect["width"] <= width, box.text
    if width > 1000:  # nothing is cut there: a table that scrolls is for phones
        boxes = [box for box in all_of(browser, ".scroll") if box.is_displayed()]
        assert [box.accessible_name for box in boxes if box.get_property("scrollWidth") > box.size["width"]] == []
    assert [one.text for one in all_of(browser, "h1")] == ["Adapters"]
    assert all(one.is_displayed() and one.text for one in all_of(browser, "h2, h3"))
    assert all(one.is_displayed() for one in all_of(browser, "section > .scroll > table, section > .scroll caption"))

    charts = all_of(browser, "svg.chart")
    assert len(charts) == 8
    for chart in charts:
        assert chart.rect["width"] > 250
        assert chart.rect["height"] == pytest.approx(chart.rect["width"] * 250 / 420, abs=1)
        assert chart.find_elements(By.TAG_NAME, "text")
        assert chart.find_elements(By.TAG_NAME, "path")

    contrasts = browser.execute_script(CONTRASTS)
    assert len(contrasts) > 200
    assert [(text, ratio) for text, ratio, _ in contrasts if ratio < 4.5] == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 3 * 128) == (scheme == "light")

    shot = photograph(browser, width)
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    assert picture.width == width
    assert picture.height > 3000
    colours = picture.getcolors(maxcolors=1 << 24)
    assert len(colours) > 100
    assert max(count for count, _ in colours) < 0.95 * picture.width * picture.height
    for folder in filter(None, (str(tmp_path), os.environ.get("LORA_FORGE_PICTURES"))):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(folder) / f"report-{width}-{scheme}.png").write_bytes(shot)


def test_lines_are_seen_in_the_colours_of_the_scheme(browser, page):
    drawn = {}
    for scheme in ("light", "dark"):
        show(browser, page, 1280, scheme)
        lines = all_of(browser, "svg.chart path[style*='--run-']")
        drawn[scheme] = {line.value_of_css_property("stroke") for line in lines}
    assert len(drawn["light"]) == len(drawn["dark"]) == 4
    assert not drawn["light"] & drawn["dark"]


def test_a_wide_table_scrolls_by_the_keyboard_on_a_phone(browser, page):
    show(browser, page, 390, "light")
    box = next(one for one in all_of(browser, ".scroll") if "Delivered runs of polecat" in one.text)
    assert box.get_property("scrollWidth") > box.get_property("clientWidth")
    browser.execute_script("arguments[0].focus()", box)
    assert browser.switch_to.active_element == box
    for _ in range(5):
        box.send_keys(Keys.ARROW_RIGHT)
    eventually(lambda: box.get_property("scrollLeft") > 0, "the table moved")
    assert browser.execute_script("return window.scrollX") == 0


def test_the_figures_of_a_picture_open_without_a_script(browser, page):
    show(browser, page, 390, "dark")
    details = all_of(browser, "details")[0]
    rows = details.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert not rows[0].is_displayed()
    details.find_element(By.TAG_NAME, "summary").click()
    eventually(rows[0].is_displayed, "the table is open")
    assert "nan" in details.text
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_answers_of_a_hostile_host_are_texts_in_the_browser(browser, tmp_path):
    said = {
        "<script>document.title = 'taken'</script>": None,
        "<img src=x onerror=\"document.title = 'taken'\">": None,
        "</div></details><h1>taken": None,
        "a\u202egnp.exe\u2066b": "a gnp.exe b",
        "\x1b[31mred\0": " [31mred ",
        "half \ud83d of one": "half   of one",
        "begin" + "x" * 1_000_000: "begin" + "x" * 2995 + " … " + "x" * 3000,
    }
    asked = cases(len(said))
    folder = deliver(tmp_path / "output", "polecat", "polecat-00ff11ee22dd")
    given = [Answer(case.key, text) for case, text in zip(asked.cases, said)]
    evaluate(folder, asked, given, given[:1])
    play(tmp_path / "output")
    for width in (1280, 390):
        show(browser, tmp_path / "output/report.html", width, "light")
        browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        texts = "[...document.querySelectorAll('.answers .said')].map(one => [one.textContent, one.childElementCount])"
        shown = browser.execute_script(f"return {texts}")
        wanted = [seen or text for text, seen in said.items()]
        assert sorted(shown) == sorted([text, 0] for text in [*wanted, wanted[0]])
        count = "return document.querySelectorAll('script, img, h1').length + document.title"
        assert browser.execute_script(count) == "1Adapters · lora-forge"
        assert browser.execute_script("return document.documentElement.scrollWidth") == width
        assert browser.get_log("browser") == []


def test_a_second_run_changes_nothing_and_check_mode_predicts(page):
    before = page.read_bytes(), page.stat().st_mtime_ns
    output = page.parent
    assert "changed=0" in play(output)
    deliver(output, "crew", "crew-00ff11ee22dd", rehearsal=True, finished_at=START)
    try:
        said = play(output, "--check")
        assert "changed=1" in said
        assert "7 adapters of crew, polecat, witness" in said
        assert "(check mode: not written)" in said
        assert (page.read_bytes(), page.stat().st_mtime_ns) == before
    finally:
        shutil.rmtree(output / "adapters/crew")


def test_agents_that_are_meant_and_one_that_is_not_there(page, tmp_path):
    output = tmp_path / "it's 100 % & more"
    workshop(output)
    (output / "adapters/witness/witness-{{ 6 * 7 }}").mkdir()
    said = play(output, "-e", '{"role": "polecat, witness"}')
    assert "6 adapters of polecat, witness: file:///" in said
    assert "/it%27s%20100%20%25%20%26%20more/report.html" in said
    assert f"! {output}/adapters/witness/witness-{{{{ 6 * 7 }}}}/manifest.json is missing" in " ".join(said.split())
    assert "mayor-9a01c2d3e4f5" not in (output / "report.html").read_text()
    everything = play(output, "-e", "role=all")
    assert "changed=1" in everything
    assert "mayor-9a01c2d3e4f5" in (output / "report.html").read_text()


def test_nothing_there_yet_and_a_wrong_name(tmp_path):
    said = play(tmp_path / "output")
    assert "0 adapters yet: file:///" in said
    assert "No adapter has been delivered yet" in (tmp_path / "output/report.html").read_text()
    with pytest.raises(AssertionError, match="there is no agent «witnes»; did you mean «witness»"):
        play(tmp_path / "output", "-e", "role=witnes")
