"""The notebook in JupyterLab as a person runs it: opened in a real browser, all cells by the menu."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import nbformat
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[2]
NOTEBOOK = "finetune_phi3_ultrachat.ipynb"
PICTURES = ROOT / "runs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
DRIVER = shutil.which("chromedriver")
SWITCHES = [
    "--headless=new",
    "--no-sandbox",  # a container's root has no sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",  # MLflow's page carries the emulator's own certificate
    "--window-size=1300,10000",  # room for every cell: JupyterLab leaves what is out of sight out of the page
]

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver on the path")


@pytest.fixture(scope="module", autouse=True)
def published() -> bytes:
    """The notebook as it was before the tests."""
    return (ROOT / NOTEBOOK).read_bytes()


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lab") / "log"


@pytest.fixture(scope="module")
def lab(log: Path) -> Iterator[httpx.URL]:
    """The address of the JupyterLab that `make lab` started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --IdentityProvider.token=opened-by-a-test"
    address = httpx.URL(f"http://localhost:{port}/?token=opened-by-a-test")
    with log.open("wb") as opened:
        command = ["make", "lab", f"LAB_OPTIONS={options}"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=opened, stderr=opened, start_new_session=True)
    try:
        wait_for(lambda: answers(address), "JupyterLab", 120)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def copy(lab: httpx.URL, log: Path) -> Path:
    """The notebook that `make lab` opened."""
    return ROOT / re.search(r"^Your copy of the notebook: (.+)$", log.read_text(), re.M)[1]


def answers(address: httpx.URL) -> bool:
    try:
        return httpx.get(address.join("/api")).is_success
    except httpx.TransportError:
        return False


def wait_for(ready: Callable[[], object], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds} s")
        time.sleep(0.5)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in [*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(switch)
    PICTURES.mkdir(parents=True, exist_ok=True)
    opened = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield opened
    opened.quit()


def find(browser: webdriver.Chrome, selector: str, text: str = "", seconds: int = 60) -> WebElement:
    """Return the first visible element that the selector finds and whose text contains `text`."""

    def found(_):
        elements = browser.find_elements(By.CSS_SELECTOR, selector)
        return next(
            (element for element in elements if element.is_displayed() and text in element.text), None
        )

    return WebDriverWait(browser, seconds, ignored_exceptions=[Exception]).until(found, f"{selector} {text}")


def choose(browser: webdriver.Chrome, *path: str) -> None:
    """Choose an entry of the menu bar by the texts that lead to it."""
    bar, *entries = path
    find(browser, ".lm-MenuBar-itemLabel", bar).click()
    for entry in entries:
        find(browser, ".lm-Menu-itemLabel", entry).click()


@pytest.fixture(scope="module")
def executed(lab: httpx.URL, browser: webdriver.Chrome, copy: Path) -> nbformat.NotebookNode:
    """The notebook after "Run All", saved by the browser, which still shows it."""
    browser.get(str(lab.join(f"/lab/tree/{copy.name}").copy_merge_params(lab.params)))
    find(browser, ".jp-KernelName", "Python 3")
    wait_for(lambda: states(lab) == ["idle"], "a kernel that is ready", 60)
    choose(browser, "Run", "Run All Cells")
    wait_for(lambda: states(lab) == ["busy"], "a kernel that works", 60)
    wait_for(lambda: is_idle_for(lab, 3), "the end of the run", 600)
    choose(browser, "File", "Save Notebook")
    wait_for(lambda: last_output(copy), "the saved notebook", 60)
    return nbformat.read(copy, as_version=4)


def states(lab: httpx.URL) -> list[str]:
    """Return what the kernels do: busy or idle."""
    return [
        kernel["execution_state"] for kernel in httpx.get(lab.join("/api/kernels"), params=lab.params).json()
    ]


def is_idle_for(lab: httpx.URL, seconds: int) -> bool:
    """Say whether the kernel has nothing to do for so long: between two cells it is idle for a moment."""
    end = time.monotonic() + seconds
    while idle := states(lab) == ["idle"]:
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return idle


def last_output(notebook: Path) -> str:
    """Return the text that the notebook's last code cell printed."""
    cells = nbformat.read(notebook, as_version=4).cells
    last = [cell for cell in cells if cell.cell_type == "code"][-1]
    return "".join(output.get("text", "") for output in last.outputs)


def contrast(browser: webdriver.Chrome, cell: WebElement) -> float:
    """Return how far a table cell's text stands out from what is behind it: 1 to 21, as WCAG counts it."""
    return browser.execute_script(CONTRAST, cell)


CONTRAST = """
const paint = colour => colour.match(/[\\d.]+/g).map(Number);
let behind = arguments[0];
while ((paint(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
const light = colour => {
  const [r, g, b] = paint(colour).map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
};
const both = [light(getComputedStyle(arguments[0]).color), light(getComputedStyle(behind).backgroundColor)];
return Math.max(...both) / Math.min(...both);
"""


def test_run_all_runs_every_cell_to_the_last(executed, copy):
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert last_output(copy).endswith("Nothing left running.\n")


def test_run_all_leaves_the_published_notebook_as_it_is(published, executed):
    assert (ROOT / NOTEBOOK).read_bytes() == published


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_tables_and_plots_can_be_read_in_each_theme(executed, browser, theme):
    choose(browser, "Settings", "Theme", f"JupyterLab {theme}")
    time.sleep(2)  # the theme's style sheet is fetched
    tables = browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea table")
    plot = find(browser, ".jp-OutputArea img")
    browser.save_screenshot(PICTURES / f"notebook-{theme.lower()}.png")
    tables[-1].screenshot(str(PICTURES / f"answers-{theme.lower()}.png"))
    plot.screenshot(str(PICTURES / f"curve-{theme.lower()}.png"))
    assert plot.get_property("naturalWidth") > 400
    assert min(contrast(browser, table.find_element(By.CSS_SELECTOR, "td")) for table in tables) > 4.5


def test_the_link_that_the_job_prints_opens_its_run_in_mlflow(executed, browser):
    link = next(element for element in links(browser) if "/runs/" in element)
    browser.get(link)
    find(browser, "body", "eval_loss")
    browser.save_screenshot(PICTURES / "mlflow.png")
    assert httpx.URL(link).path.rpartition("/")[2] in browser.title


def links(browser: webdriver.Chrome) -> list[str]:
    return [link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea a")]
