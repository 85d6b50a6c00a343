"""The page in a real browser: what is drawn, the keyboard, and that nothing hostile runs."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.server.agent_trace import START, Builder, agent_trace
from tests.server.running import WAIT_S, Client

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="needs chromium and chromedriver (apt-get install chromium chromium-driver)",
    ),
]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
BIG_ID = "b" * 32
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1000",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield chrome
    chrome.quit()


class Page:
    """The browser at one server."""

    def __init__(self, chrome: webdriver.Chrome, server: Client) -> None:
        # The page of the test before reads on, and its server may be gone: neither is our problem.
        chrome.get("about:blank")
        chrome.get_log("browser")
        self.chrome = chrome
        self.server = server

    def open(self, path: str) -> None:
        self.chrome.get(f"{self.server.addresses.query}{path}")

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Read in one step: rows are drawn anew at any time, which makes elements stale."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
        return list(self.chrome.execute_script(script, selector))

    def text(self, selector: str) -> str:
        return next(iter(self.texts(selector)), "")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.chrome.switch_to.active_element.send_keys(key)

    def until(self, condition: Callable[[], Any]) -> Any:
        def holds(_: Any) -> Any:
            return condition()

        return WebDriverWait(self.chrome, WAIT_S, 0.05).until(holds)

    def current(self) -> str:
        return self.text(".canvas .row.current .label")

    def names(self) -> list[str]:
        return self.texts(".canvas .label")

    def problems(self) -> list[str]:
        """Script errors and violations of the content security policy."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]


@pytest.fixture(scope="module")
def filled(shared: Client) -> Client:
    builder = agent_trace(TRACE_ID, time.time_ns() - 60_000_000_000)
    shared.send(spans=builder.spans, logs=builder.logs)
    return shared


@pytest.fixture
def page(driver: webdriver.Chrome, filled: Client) -> Page:
    return Page(driver, filled)


def test_the_waterfall_draws_the_tree_with_tokens_and_bars(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}")
    page.until(lambda: page.all(".canvas .row"))

    assert page.names()[:4] == [
        "POST /chat",
        "invoke_workflow agent",
        "invoke_node route",
        "chat offline-small",
    ]
    rows = page.texts(".canvas .row")
    assert "2,310 / 248" in rows[0]
    assert "called from outside" in rows[0]
    assert "118 / 22" in rows[3]
    script = "return [...document.querySelectorAll('.bar')].map(e => e.offsetWidth)"
    widths = page.chrome.execute_script(script)
    assert widths[0] > widths[2] > 0
    assert page.text("#axis").startswith("0")
    assert not page.problems()


def test_keys_move_open_fold_and_close(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}")
    page.until(lambda: page.all(".canvas .row"))

    page.press("j", "j", "j", "j")
    assert page.current() == "chat offline-small"
    assert not page.all(".details:not([hidden])")
    page.press(Keys.ENTER)
    page.until(lambda: page.text(".details h2") == "chat offline-small")
    keys = page.texts(".details .section:first-of-type th")
    ours = [key for key in keys if key.startswith(("gen_ai.", "spanloom."))]
    assert keys[: len(ours)] == ours
    assert "gen_ai.usage.input_tokens" in keys

    page.press("k")
    page.until(lambda: page.text(".details h2") == "invoke_node route")
    before = len(page.names())
    page.press("h")
    assert "chat offline-small" not in page.names()[:4]
    assert page.text(".canvas .row.current .folded") == "+2"
    page.press("l")
    assert len(page.names()) == before
    page.press(Keys.ESCAPE)
    assert not page.all(".details:not([hidden])")
    assert not page.problems()


def test_an_error_is_found_and_explained_with_its_log_line(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}")
    page.until(lambda: page.all(".canvas .row"))

    page.press("e")
    page.until(lambda: page.text(".details h2") == "execute_tool calculator")

    assert page.text(".status-message") == "division by zero"
    assert "ZeroDivisionError: division by zero" in page.text(".details .exception")
    assert ["tool_failed" in line for line in page.texts(".log.own")] == [True]
    assert "tool_failed" in page.text(".details .log-list")


def test_a_log_line_leads_to_its_span(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}")
    lines = page.until(lambda: page.all(".log-line"))

    next(line for line in lines if "回答已生成" in line.text).click()

    assert page.current() == "invoke_node generate"
    assert "language" in page.text(".log-full")


def test_nothing_hostile_runs_and_its_text_is_readable(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}")
    page.until(lambda: page.all(".canvas .row"))
    page.press("e", "e")
    page.until(lambda: page.text(".details h2").startswith("execute_tool <script>"))

    assert "\\x1b[31mred" in page.text(".details h2")
    assert "</script><img src=x onerror=alert(2)>" in page.text(".details .attributes")
    assert not page.all("img")
    assert not page.problems()


def test_finding_dims_the_others_and_jumps(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}?uiFind=rerank")
    page.until(lambda: "2 found" in page.text("#find-count"))

    page.press("n")
    assert page.current() == "invoke_node rerank"
    page.press("/", "x")
    page.until(lambda: page.text("#find-count") == "nothing found")


def test_a_link_to_a_span_opens_it(page: Page) -> None:
    page.open(f"/trace/{TRACE_ID}#{2:016x}")

    page.until(lambda: page.text(".details h2") == "invoke_workflow agent")


def test_a_link_to_another_span_of_the_shown_trace_opens_it(page: Page) -> None:
    """The browser does not load a page again of which only the fragment is another."""
    page.open(f"/trace/{TRACE_ID}")
    page.until(lambda: page.all(".canvas .row"))
    page.open(f"/trace/{TRACE_ID}#{2:016x}")

    page.until(lambda: page.text(".details h2") == "invoke_workflow agent")


def test_ten_thousand_spans_keep_the_page_small(page: Page) -> None:
    builder = Builder(BIG_ID, START)
    root = builder.span("root", lasts=20_000)
    for number in range(9_999):
        builder.span(f"step {number}", root, at=number * 2, lasts=3)
    page.server.send(spans=builder.spans)

    page.open(f"/trace/{BIG_ID}")
    page.until(lambda: page.all(".canvas .row"))
    page.press(Keys.END)

    page.until(lambda: page.current() == "step 9998")
    assert len(page.all(".canvas .row")) < 200
    assert not page.problems()


def test_the_list_filters_and_refreshes_by_itself(page: Page) -> None:
    page.open("/?service=agent")
    page.until(lambda: page.all(".traces tbody tr"))
    page.all("#live")[0].click()

    builder = agent_trace("c" * 32, time.time_ns())
    page.server.send(spans=builder.spans)

    page.until(lambda: page.all(f'a[href="/trace/{"c" * 32}"]'))
    page.all("input[name=errors]")[0].click()
    page.until(lambda: "errors=true" in page.chrome.current_url)
    assert "minDuration" not in page.chrome.current_url
    assert not page.problems()


def test_a_trace_that_is_on_its_way_appears(page: Page) -> None:
    late = "d" * 32
    page.open(f"/trace/{late}")
    assert "looks again" in page.text("[data-retry-note]")

    page.server.send(spans=agent_trace(late).spans)

    page.until(lambda: page.all(".canvas .row"))
