"""The page in a real headless Chromium: what a person does with it, at a desk and on a phone, with a mouse, keys or a reader."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import WAIT, Served

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
"""Kept after the tests, to be looked at."""
RAIN = [{"name": "rain", "parameters": {"type": "object"}}]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip("playwright is not installed: pip install 'cairn-llm[e2e]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        _skip("no chromium is installed: apt-get install chromium")
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"], timeout=WAIT * 1000)
        yield found
        found.close()


def _skip(why: str) -> None:
    warnings.warn(f"the page is not tested: {why}", stacklevel=2)
    pytest.skip(why)


class Page:
    """A tab on a server's page; fails at its end where the page asked anybody else or complained."""

    def __init__(self, browser: Any, served: Served, width: int = 1200, height: int = 800, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.set_default_timeout(WAIT * 1000)
        self.tab = self.context.new_page()
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.address = served.address
        self.tab.on("request", self._note)
        self.tab.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(served.address)
        self.until("document.activeElement.id === 'message'")

    def _note(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.method == "POST":
            self.bodies.append(json.loads(request.post_data))

    def set(self, id: str, value: str) -> None:
        """Move a slider or fill a field, as its events would."""
        self.tab.eval_on_selector(f"#{id}", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)

    def say(self, text: str) -> None:
        """Type, press Enter and wait for the answer's end."""
        before = self.tab.locator("article.assistant .figures").count()
        self.tab.fill("#message", text)
        self.tab.press("#message", "Enter")
        self.answered(before + 1)

    def answered(self, count: int) -> None:
        ended = "document.querySelectorAll('article.assistant:not([aria-busy=true]) > .figures').length"
        self.until(f"{ended} === {count}")

    def until(self, condition: str) -> None:
        """Wait for a condition. Playwright's own wait needs `eval`, which the page's policy forbids."""
        _until(lambda: self.tab.evaluate(condition))

    def texts(self) -> list[str]:
        return [text.strip() for text in self.tab.locator("article .text").all_inner_texts()]

    def shot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=SCREENSHOTS / f"{name}.png")

    def close(self) -> None:
        self.context.close()
        assert [url for url in self.asked if not url.startswith((self.address, "data:"))] == []
        assert self.complaints == []


@pytest.fixture(scope="module")
def talker(serve: Callable[..., Served]) -> Served:
    return serve("talker")


@pytest.fixture
def page(browser: Any, talker: Served) -> Iterator[Page]:
    opened = Page(browser, talker)
    opened.set("temperature", "0")
    yield opened
    opened.close()


def test_a_chat_with_its_speed(page: Page) -> None:
    page.say("Hi")
    page.say("Who?")
    assert page.texts() == ["Hi", "Hello, 친구!", "Who?", "A cairn."]
    figures = page.tab.locator("article.assistant .figures").first.inner_text()
    assert "first token after" in figures
    assert "tokens/s" in figures
    assert page.tab.inner_text("#status") == "The answer is complete. A cairn."
    assert page.bodies[0]["temperature"] == 0
    page.tab.click("#new")
    assert page.texts() == []


def test_a_message_is_edited_and_sent_again_under_a_system_prompt(page: Page) -> None:
    page.say("Hi")
    page.say("Who?")
    page.tab.fill("#system", "Yell.")
    page.tab.locator("article.user button", has_text="Edit").first.click()
    field = page.tab.locator("article.user textarea")
    assert field.input_value() == "Hi"
    page.tab.locator("article.user button", has_text="Send again").click()
    page.answered(1)
    assert page.texts() == ["Hi", "HELLO"]
    assert page.bodies[-1]["messages"][0] == {"role": "system", "content": "Yell."}


def test_a_call_is_shown_and_its_result_given(page: Page) -> None:
    page.tab.fill("#tools", "[{")
    assert "Not valid JSON" in page.tab.inner_text("#toolsaid")
    assert page.tab.get_attribute("#tools", "aria-invalid") == "true"
    page.tab.fill("#tools", json.dumps(RAIN))
    assert page.tab.inner_text("#toolsaid") == "1 offered: rain"
    page.say("Rain?")
    call = page.tab.locator(".call")
    assert call.locator("h3").inner_text() == "rain"
    assert json.loads(call.locator("pre").inner_text()) == {"at": "Oslo"}
    page.tab.fill("#message", "and now?")
    page.tab.press("#message", "Enter")
    assert "result of the call first" in page.tab.inner_text("#notice")
    call.locator("textarea").fill('{"mm": 3}')
    page.shot("call")
    call.locator("button").click()
    page.answered(2)
    assert page.texts()[-1] == "- 3 mm"
    assert page.tab.inner_text(".call .result") == '{"mm": 3}'
    assert page.bodies[-1]["messages"][-1]["role"] == "tool"


def test_each_token_shows_its_probability_and_alternatives(page: Page) -> None:
    page.tab.check("#probabilities")
    page.say("Hi")
    tokens = page.tab.locator(".token")
    assert "".join(tokens.all_inner_texts()) == "Hello, 친구!"
    tokens.first.click()
    table = page.tab.locator(".alternatives")
    assert table.locator("tr").count() == 5
    assert "Hello" in table.locator("caption").inner_text()
    assert table.locator(".share").first.inner_text().endswith("%")
    page.tab.keyboard.press("ArrowRight")
    assert "“,”" in page.tab.locator(".alternatives caption").inner_text()
    assert page.tab.evaluate("document.activeElement.textContent") == ","
    page.shot("probabilities")


def test_a_beginning_and_asking_again(page: Page) -> None:
    assert page.tab.is_visible("#welcome")
    assert "k2" in page.tab.inner_text("#about") or "format" in page.tab.inner_text("#about")
    assert page.tab.locator("#ideas button").count() == 4
    page.shot("welcome")
    page.say("Hi")
    assert not page.tab.is_visible("#welcome")
    page.tab.locator("article.assistant button", has_text="Again").click()
    page.until("document.querySelectorAll('article').length === 2")
    _until(lambda: len(page.bodies) == 2)
    page.answered(1)
    assert page.bodies[0]["messages"] == page.bodies[1]["messages"]
    assert page.texts() == ["Hi", "Hello, 친구!"]
    page.tab.click("#new")
    assert page.tab.is_visible("#welcome")
    page.tab.locator("#ideas button", has_text="Call a function").click()
    page.answered(1)
    assert page.bodies[-1]["tools"][0]["function"]["name"] == "get_weather"


def test_an_answer_is_stopped_on_the_page_and_on_the_server(browser: Any, serve: Callable[..., Served]) -> None:
    served = serve("endless", "--set", "max_answer_tokens=300000")
    page = Page(browser, served)
    for stop in (lambda: page.tab.click("#stop"), lambda: page.tab.keyboard.press("Escape")):
        page.set("limit", "300000")
        page.set("temperature", "0")
        page.tab.fill("#message", "Hi")
        page.tab.press("#message", "Enter")
        page.until("(document.querySelector('article.assistant .text')?.textContent.length ?? 0) > 5")
        stop()
        page.answered(1)
        assert "stopped" in page.tab.locator("article.assistant .figures").inner_text()
        assert page.tab.is_visible("#send")
        _until(lambda: served.metric("cairn_in_flight") == 0 and served.metric("cairn_engine_running") == 0)
        page.tab.click("#new")
    page.close()


def test_the_sliders_come_from_the_models_attributes(browser: Any, serve: Callable[..., Served]) -> None:
    page = Page(browser, serve("karakuri"))
    sliders = page.tab.locator("[data-attribute]")
    assert sliders.count() == 9
    assert page.tab.input_value("#attribute-helpfulness") == "4"
    page.set("attribute-humor", "3")
    page.set("limit", "4")
    page.say("Hi")
    assert page.bodies[-1]["attributes"]["humor"] == 3
    assert page.bodies[-1]["attributes"]["helpfulness"] == 4
    page.shot("attributes")
    page.close()


def test_a_key_is_asked_for(browser: Any, serve: Callable[..., Served]) -> None:
    served = serve("talker", environ={"CAIRN_API_KEY": "sesame"})
    page = Page(browser, served)
    assert page.tab.is_visible("#key")
    page.tab.fill("#key", "sesame")
    page.tab.press("#key", "Tab")
    page.until("document.getElementById('model').textContent === 'tiny'")
    page.set("temperature", "0")
    page.say("Hi")
    assert page.texts()[-1] == "Hello, 친구!"
    page.complaints.clear()  # the browser itself logs the refusal at the start
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(browser: Any, talker: Served, scheme: str) -> None:
    page = Page(browser, talker, width=360, height=640, scheme=scheme)
    page.set("temperature", "0")
    assert not page.tab.is_visible("#settings")
    page.say("Hi")
    page.shot(f"phone-{scheme}")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.tab.evaluate("document.getElementById('send').getBoundingClientRect().right") <= 360
    assert page.tab.evaluate("document.querySelector('h1').getBoundingClientRect().height") < 36, "the name is broken"
    page.tab.click("#panel")
    assert page.tab.is_visible("#system")
    assert page.tab.get_attribute("#panel", "aria-expanded") == "true"
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_both_palettes_can_be_read(browser: Any, talker: Served) -> None:
    for scheme, want in (("light", "auto"), ("dark", "auto"), ("light", "dark"), ("dark", "light")):
        page = Page(browser, talker, scheme=scheme)
        page.set("temperature", "0")
        page.say("Hi")
        while want not in {page.tab.evaluate("localStorage.getItem('theme')")}:
            page.tab.click("#theme")
        assert page.tab.evaluate(CONTRAST) == []
        dark = page.tab.evaluate("getComputedStyle(document.documentElement).colorScheme")
        assert dark == (scheme if want == "auto" else want)
        page.shot(f"desk-{scheme}-{want}")
        page.close()


def test_keys_alone_and_names_for_readers(page: Page) -> None:
    page.say("Hi")
    assert page.tab.evaluate(NAMELESS) == []
    assert page.tab.evaluate("document.activeElement.id") == "message"
    page.tab.focus("body")
    page.tab.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.tab.keyboard.press("Tab")
        reached.add(page.tab.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {
        "new",
        "theme",
        "panel",
        "log",
        "message",
        "send",
        "system",
        "temperature",
        "probabilities",
        "tools",
        "choice",
        "Edit",
    } <= reached
    roles = {role: page.tab.locator(f"[role={role}]").count() for role in ("log", "status", "alert")}
    assert all(roles.values())


def _until(true: Callable[[], bool]) -> None:
    import time

    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, select, [role=button]')].filter((e) =>
  !(e.labels?.length && e.labels[0].textContent.trim()) && !e.getAttribute('aria-label')
  && !(e.matches('button, [role=button]') && e.textContent.trim())
).map((e) => e.outerHTML)"""
"""Controls that a screen reader could not name."""

CONTRAST = """() => {
  const parse = (c) => c.match(/[0-9.]+/g).map(Number);
  const light = (c) => {
    const [r, g, b] = parse(c).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor, p = parse(c);
      if (p.length < 4 || p[3] > 0) return c;
    }
    return 'rgb(255,255,255)';
  };
  const ratio = (e) => {
    const a = light(getComputedStyle(e).color), b = light(back(e));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const seen = (e) => e.checkVisibility() && e.textContent.trim() && !e.closest('.unseen') && !e.disabled;
  return [...document.querySelectorAll('h1, h2, p, label, button, .text, legend, textarea')]
    .filter((e) => seen(e) && ratio(e) < 4.5).map((e) => [e.outerHTML.slice(0, 80), ratio(e)]);
}"""
"""Elements whose text does not reach WCAG's contrast of 4.5 : 1."""
