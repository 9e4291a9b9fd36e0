"""The report in a real browser: no console errors, and its controls change what they should."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from geophone.core import table as tables
from geophone.report import write_report

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
    *("--disable-component-update", "--disable-sync", "--window-size=1280,1000"),
)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    out = tmp_path_factory.mktemp("report")
    tables.write(synthetic.make_table(), out / "table" / "all.parquet")
    (out / "provenance.json").write_text(json.dumps({"title": "Browser test"}))
    browser = _open(webdriver, tmp_path_factory.mktemp("profile"))
    try:
        browser.get(write_report(out).as_uri())
        _until(browser, "return document.documentElement.dataset.ready === 'yes'")
        yield browser
    finally:
        browser.quit()


def _open(webdriver: Any, profile: Path) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def _until(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda b: b.execute_script(script))


def _choose(browser: Any, select: str, text: str) -> None:
    """Choose an option as a reader does, and wait for the chart to be drawn anew."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    chart = select.split("-")[0]
    before = browser.execute_script(f"return Number(document.getElementById('{chart}').dataset.drawn)")
    Select(browser.find_element(By.ID, select)).select_by_visible_text(text)
    _until(browser, f"return Number(document.getElementById('{chart}').dataset.drawn) > {before}")


def _svg(browser: Any, chart: str) -> str:
    return str(browser.execute_script(f"return document.querySelector('#{chart} svg').outerHTML"))


def test_opens_without_console_messages(page: Any) -> None:
    assert page.get_log("browser") == []
    assert page.execute_script("return document.querySelectorAll('.chart svg').length") == 12
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_measure_perturbation_and_level_change_the_profile(page: Any) -> None:
    first = _svg(page, "profile")
    assert "Normalised distance: LinfPGD(steps=20) at 8/255" in first
    _choose(page, "profile-measure", "Class selectivity")
    second = _svg(page, "profile")
    assert "Class selectivity: LinfPGD(steps=20) at 8/255" in second
    _choose(page, "profile-perturbation", "GaussianNoise")
    assert "Class selectivity: GaussianNoise at 0.2" in _svg(page, "profile")
    _choose(page, "profile-level", "0.05")
    last = _svg(page, "profile")
    assert "Class selectivity: GaussianNoise at 0.05" in last
    assert len({first, second, last}) == 3
    assert "answers alike to all" in page.execute_script("return document.getElementById('profile-about').textContent")
    assert page.get_log("browser") == []


def test_only_levels_with_layers_are_offered(page: Any) -> None:
    """LinfPGD has ten radii on its curve; layers were recorded at three."""
    _choose(page, "profile-perturbation", "LinfPGD(steps=20)")
    script = "return [...document.getElementById('profile-level').options].map((o) => o.text)"
    assert page.execute_script(script) == ["2/255", "4/255", "8/255"]
    _choose(page, "profile-perturbation", "fog")
    assert page.execute_script(script) == ["1", "2", "3", "4", "5"]
    assert "fog at severity 5" in _svg(page, "profile")


def test_score_can_be_chosen(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    bodies = "[...document.querySelectorAll('[data-score]')]"
    shown = f"return {bodies}.filter((body) => body.offsetHeight).map((body) => body.dataset.score)"
    assert page.execute_script(shown) == ["corruption_accuracy"]
    Select(page.find_element(By.ID, "score")).select_by_visible_text("Above chance")
    assert page.execute_script(shown) == ["corruption_accuracy_above_chance"]
    assert page.get_log("browser") == []


def test_relation_changes_with_its_measures(page: Any) -> None:
    text = "return document.getElementById('relation-text').textContent"
    before = page.execute_script(text)
    _choose(page, "relation-geometry", "Class selectivity")
    after = page.execute_script(text)
    assert before != after
    assert after.startswith("Spearman’s ρ = ")
    assert "14 networks, 2 seeds" in after
    assert "Class selectivity" in _svg(page, "relation")


def test_a_recipe_can_be_hidden_and_search_narrows(page: Any) -> None:
    marks = "return document.querySelectorAll('#accuracy-0 .mark-symbol path').length"
    every = page.execute_script(marks)
    page.execute_script("document.querySelector('[data-series=Standard]').click()")
    _until(page, f"return document.querySelectorAll('#accuracy-0 .mark-symbol path').length === {every - 4}")
    assert page.execute_script("return document.querySelectorAll('[data-series=Standard]:checked').length") == 0
    page.execute_script(
        "const s = document.getElementById('search'); s.value = 'standard cka block2.relu2 fgsm';"
        "s.dispatchEvent(new Event('input'))"
    )
    assert page.execute_script("return document.getElementById('rows').rows.length") == 3
    assert page.get_log("browser") == []
