"""The page in a real browser, against the HTTP contract over real sockets."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from archipelago.actors.http.admin import token_hash
from archipelago.actors.http.app import create_app
from archipelago.actors.http.local import LocalBackend
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.helpers import png
from tests.serving import listening
from tests.stand_in import CLASSES, COLOURS, State, serving
from tests.unit.tiny_serving import SERVING

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PAGE = Path(__file__).resolve().parents[2] / "actors" / "page"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "is_mobile": True,
    "has_touch": True,
}
PHONE["reduced_motion"] = "reduce"  # scrolls at once
STRANGE = png((20, 240, 240), size=32)  # far from every domain's colour
# What a browser does with a file that is dropped or pasted.
TRANSFER = """([kind, data, name, type]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type }));
  const what = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { ...what, clipboardData: transfer })
    : new DragEvent(kind, { ...what, dataTransfer: transfer });
  return !document.querySelector("#drop").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def visit(browser: Any, state: State) -> Iterator[Callable[..., Any]]:
    """Opens the page; when the test ends, it must have logged nothing and stayed at home."""
    with serving(state, PAGE) as address:
        contexts: list[tuple[Any, list[str], list[str]]] = []

        def open_page(quiet: bool = True, **how: Any) -> Any:
            context = browser.new_context(**(how or DESK))
            context.set_default_timeout(8000)
            page = context.new_page()
            page.clock.install()  # polling then costs the test no seconds
            logged: list[str] = []
            asked: list[str] = []
            if quiet:
                page.on("console", lambda message: logged.append(message.text))
            page.on("pageerror", lambda error: logged.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            contexts.append((context, logged, asked))
            page.goto(address)
            page.locator(".task").first.wait_for()
            return page

        yield open_page
        for context, logged, asked in contexts:
            context.close()
            assert logged == []
            away = [url for url in asked if not url.startswith((address, "blob:", "data:"))]
            assert asked and away == []


def no_sideways_scrolling(page: Any) -> bool:
    # On a phone the window grows with what is too wide, so that it says nothing.
    return page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def product(served_run: RunFolder) -> FastAPI:
    """The product's own application over a small model, admin included."""
    model = ServedModel(served_run.uri, SERVING, "cpu")
    return create_app(LocalBackend(model), SERVING, token_hash("secret"))


@pytest.mark.parametrize("below", ["", "/models/mine"])
def test_the_interface_is_described_without_help_from_elsewhere(
    browser: Any, product: FastAPI, below: str
) -> None:
    app = product
    if below:
        app = FastAPI()
        app.mount(below, product)
    logged: list[str] = []
    asked: list[str] = []
    with listening(app) as address:
        page = browser.new_page(**DESK)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}{below}/docs")
        for path in ("/v1/classify", "/v1/embed", "/v1/admin/publish", "/v2/models/{name}/infer"):
            page.locator(f'[data-path="{path}"]').wait_for()
        page.locator('[data-path="/v1/classify"]').click()
        opened = page.locator(".opblock.is-open")
        opened.get_by_text("see Retry-After").first.wait_for()
        page.locator('[data-path="/v1/models"]').click()
        models = page.locator(".opblock.is-open", has_text="/v1/models")
        models.get_by_role("button", name="Try it out").click()
        models.get_by_role("button", name="Execute").click()
        models.locator(".live-responses-table", has_text='"generation": 1').wait_for()
        page.get_by_role("button", name="Authorize").click()
        page.get_by_text("ARCHIPELAGO_ADMIN_TOKEN").wait_for()
        page.close()
    assert logged == []
    assert f"{address}{below}/v1/models" in asked
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []


@pytest.mark.parametrize("how", [DESK, PHONE], ids=["desk", "phone"])
def test_an_example_is_answered_with_all_that_is_known(
    visit: Callable[..., Any], state: State, how: dict[str, Any]
) -> None:
    page = visit(**how)
    assert page.title() == "archipelago"
    assert no_sideways_scrolling(page)
    assert page.locator(".camera").is_visible() == (how is PHONE)
    page.get_by_title("Try an example of flowers").first.click()
    page.locator("#result").wait_for()
    assert page.locator("#best").inner_text() == "rose"
    bars = page.locator("#bars li")
    assert [text.split("\n")[0] for text in bars.all_inner_texts()] == CLASSES["flowers"]
    widths = [bars.nth(i).locator(".bar span").bounding_box()["width"] for i in range(4)]
    assert widths == sorted(widths, reverse=True) and widths[0] > 4 * widths[-1]
    assert page.locator("#bars b").count() == 0, "a label was taken for HTML"
    assert "Recognised as flowers seen 97 % sure" in page.locator("#recognised").text_content()
    assert "blossoms" in page.locator("#description").inner_text()
    facts = page.locator("#facts").inner_text()
    for fact in (
        "flowers 1.00",
        "0.00",
        "9.1 ms",
        "model 7.7 ms",
        "Generation\n3",
        "flowers 90 %, textures 8 %",
        "Looks unlike them all\n3 %",
    ):
        assert fact in facts
    assert page.locator("#news").text_content() == "rose, 73 %; domain flowers."
    assert page.locator(".island.answers .name").all_text_contents() == ["flowers"]
    assert page.locator("#sea-text").inner_text() == "Who answered: flowers 100 %."
    assert no_sideways_scrolling(page)
    page.locator("#best").wait_for()
    if how is PHONE:
        assert page.locator("#best").bounding_box()["y"] < 740, "the answer is out of sight"
    for box in page.locator(".island .ground").all():
        inside, sea = box.bounding_box(), page.locator("#sea").bounding_box()
        assert sea["x"] <= inside["x"] and inside["x"] + inside["width"] <= sea["x"] + sea["width"]
    assert state.asked[0]["images"] == [png(COLOURS["flowers"], size=56, seed=0)]


def test_images_are_chosen_dropped_and_pasted(visit: Callable[..., Any], state: State) -> None:
    page = visit()
    assert page.locator(".bridges path").count() == 1  # flowers borrow from digits
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": STRANGE})
    page.locator("#seen.unseen").wait_for()
    assert "digits 28 %, flowers 12 %" in page.locator("#sea-text").inner_text()
    assert "frozen CLIP 60 %" in page.locator("#sea-text").inner_text()
    assert page.locator(".bridges path").count() == 1
    for kind, task in (("drop", "digits"), ("paste", "textures")):
        data = png(COLOURS[task], seed=len(kind))
        assert page.evaluate(TRANSFER, [kind, encoded(data), "x.png", "image/png"])
        page.locator("#recognised strong", has_text=task).wait_for()
        assert state.asked[-1]["images"] == [data]
    assert page.locator("#preview").get_attribute("src").startswith("blob:")
    large = png((120, 120, 120), size=1300, noise=110)
    assert len(large) > 4 * 2**20
    page.set_input_files("#camera", {"name": "a.png", "mimeType": "image/png", "buffer": large})
    page.locator("#answer[aria-busy=false]").wait_for()
    page.locator("#seen.unseen").wait_for()
    assert len(state.asked[-1]["images"][0]) < len(large), "a large photo was not shrunk"


def test_an_answer_that_is_withheld_says_so(visit: Callable[..., Any], state: State) -> None:
    state.abstains = True
    page = visit()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": STRANGE})
    page.locator("#seen.unseen").wait_for()
    assert page.locator("#best").inner_text() == "unseen"
    assert page.locator("#bars li").count() == 0
    assert "too new" in page.locator("#description").inner_text()
    assert page.locator("#news").text_content() == "Unseen: it looks too new to be answered."
    assert page.locator("#sea-text").inner_text() == "Who answered: nobody."
    assert "Looks unlike them all\n88 %" in page.locator("#facts").inner_text()


def test_options_are_sent_and_remembered(visit: Callable[..., Any], state: State) -> None:
    page = visit()
    page.get_by_text("Options").click()
    menu = page.get_by_label("Domain", exact=True)
    menu.select_option("digits")
    page.get_by_label("Your own labels").fill("zebra\n\n  a red car ")
    page.get_by_label("Show").select_option("3")
    page.get_by_title("Try an example of textures").first.click()
    page.get_by_text("chosen by you").wait_for()
    asked = {key: state.asked[-1][key] for key in ("task", "labels", "top_k")}
    assert asked == {"task": "digits", "labels": ["zebra", "a red car"], "top_k": 3}
    assert page.locator("#best").inner_text() == "zebra"
    state.learn("terrain")
    page.clock.run_for(4100)
    menu.locator("option", has_text="terrain").wait_for(state="attached")
    assert menu.input_value() == "digits"


def test_the_list_grows_live_and_rests_while_hidden(
    visit: Callable[..., Any], state: State
) -> None:
    page = visit(**DESK, reduced_motion="reduce", color_scheme="dark")
    assert page.locator(".task h3").all_inner_texts() == ["textures", "digits", "flowers"]
    page.evaluate("document.querySelector('.thumb').focus()")
    state.learn("terrain")
    page.clock.run_for(4100)
    page.locator(".task.fresh", has_text="terrain").wait_for()
    assert page.locator(".task").count() == 4
    assert page.locator("#state").inner_text() == "4 islands · generation 4"
    assert page.locator("#news").inner_text() == "Newly learned: terrain."
    assert page.evaluate("document.activeElement.className") == "thumb", "growing took the focus"
    assert page.evaluate("document.getAnimations().length") == 0, "motion although unwanted"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 23, 30)"
    hide = """(hidden) => {
      Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(hide, True)
    before = state.requests.count(("GET", "/v1/models"))
    page.clock.run_for(60_000)
    assert state.requests.count(("GET", "/v1/models")) == before
    state.learned.remove("digits")
    state.generation += 1
    page.evaluate(hide, False)
    page.get_by_text("3 islands · generation 5").wait_for()
    assert page.locator(".task h3").all_inner_texts() == ["textures", "flowers", "terrain"]


def test_problems_are_one_friendly_line(visit: Callable[..., Any], state: State) -> None:
    page = visit(quiet=False)  # a browser logs every refused request
    alert = page.get_by_role("alert")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    alert.wait_for()
    assert alert.inner_text().strip() == "Image 1 is not a picture that can be read."
    assert not page.locator("#result").is_visible()
    drop = [encoded(b"words"), "notes.txt", "text/plain"]
    page.evaluate(TRANSFER, ["drop", *drop])
    alert.get_by_text("notes.txt is not an image").wait_for()
    assert len(state.asked) == 1

    state.fail(503, "no replica is ready\nTraceback (most recent call last)")
    page.get_by_title("Try an example of digits").first.click()
    alert.get_by_text("No replica is ready.", exact=True).wait_for()
    page.get_by_role("button", name="Try again").click()
    page.locator("#recognised strong", has_text="digits").wait_for()
    assert not alert.is_visible()

    state.fail(429, "the queue is full", **{"Retry-After": "1"})
    page.get_by_title("Try an example of flowers").first.click()
    page.locator("#answer[aria-busy=true]").wait_for()
    page.clock.run_for(1100)
    page.locator("#recognised strong", has_text="flowers").wait_for()

    page.context.set_offline(True)
    page.get_by_label("Show").evaluate("menu => menu.dispatchEvent(new Event('change'))")
    alert.get_by_text("The server cannot be reached.").wait_for()
    page.clock.run_for(5000)
    page.get_by_text("out of reach, trying again").wait_for()


def test_everything_has_a_name_and_works_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    nameless = page.evaluate("""() => [
      ...[...document.querySelectorAll('input, select, textarea')].filter((one) =>
        !one.labels.length),
      ...[...document.querySelectorAll('img:not([alt])')],
      ...[...document.querySelectorAll('button')].filter((one) =>
        !one.hidden && !one.textContent.trim() && !one.querySelector('img[alt]') && !one.title),
    ].map((one) => one.outerHTML)""")
    assert nameless == []
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert reached == ["skip", "file", "thumb"]
    page.keyboard.press("Enter")
    page.locator("#result").wait_for()


def test_it_works_below_a_prefix_of_a_host(browser: Any, state: State) -> None:
    with serving(state, PAGE, below="/models/mine") as address:
        page = browser.new_page()
        page.goto(f"{address}/models/mine/")
        page.get_by_title("Try an example of digits").first.click()
        page.locator("#recognised strong", has_text="digits").wait_for()
        assert page.locator(".thumb img").first.evaluate("(image) => image.naturalWidth") == 56
        links = page.locator("#tasks a").evaluate_all("(links) => links.map((link) => link.href)")
        learned = [name for name in state.learned if name != "textures"]
        assert links == [f"{address}/models/mine/v1/tasks/{name}/lineage" for name in learned]
        page.close()
    assert len(state.asked) == 1


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_stand_out_by_day_and_by_night() -> None:
    style = (PAGE / "page.css").read_text()
    roots = re.findall(r":root \{(.*?)\}", style, re.S)
    day, night = (dict(re.findall(r"--([\w-]+): (#\w{6})", root)) for root in roots)
    pairs = [("ink", "page"), ("ink", "card"), ("faint", "page"), ("faint", "card")]
    pairs += [("accent", "page"), ("accent", "card"), ("accent", "soft"), ("faint", "soft")]
    pairs += [("sea-ink", "sea-top"), ("sea-ink", "sea-low")]
    pairs += [(name, f"{name}-soft") for name in ("bad", "warm", "good")]
    isles = re.findall(r"--isle: (#\w{6}); --isle-ink: (#\w{6})", style)
    assert len(isles) == 8
    found = [(theme[a], theme[b]) for theme in (day, day | night) for a, b in pairs] + isles
    for a, b in found:
        light, dark = sorted((luminance(a), luminance(b)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{a} on {b} is too faint"


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    for file in PAGE.iterdir():
        text = file.read_text()
        hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s\"'<>)]+", text)}
        assert hosts <= {"www.w3.org"}, f"{file.name} names {hosts}"
    for page in PAGE.glob("*.html"):
        html = page.read_text()
        assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
        assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
        for name in re.findall(r'(?:src|href)="([\w.-]+\.\w+)"', html):
            assert (PAGE / name).exists() or name == "openapi.json"
