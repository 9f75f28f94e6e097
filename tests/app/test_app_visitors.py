"""The page and its visitors in a real Chromium: several at once, limits, passwords, files of the machine, looks, keys.

Screenshots go to out/page.
"""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers import CHECKPOINT, SIDE
from visiting import NARROW, SECONDS, SHOTS, WIDE, Server, make, pixels, put, status

pytestmark = pytest.mark.page


def test_ctrl_c_ends_a_server_that_is_at_work(browser: Any, tmp_path: Path) -> None:
    server = Server(tmp_path, "--model", str(CHECKPOINT))
    tab = browser.new_context(viewport=WIDE).new_page()
    tab.set_default_timeout(SECONDS)
    tab.goto(server.address)
    put(tab, frames=16, steps=100)
    tab.get_by_role("button", name="Make a clip").click()
    tab.locator("#one .film").wait_for()
    assert server.end() == 128 + signal.SIGINT
    lines = server.text.splitlines()
    assert "ending after the step under way (Ctrl-C again: at once)" in lines
    assert lines[-1] == "zs2: stopped: what was finished before is kept"


@pytest.mark.core
def test_a_prompt_of_a_script_is_a_text(visit: Any) -> None:
    tab = visit()
    text = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    tab.get_by_label("prompt").fill(text)
    make(tab, frames=1, steps=1)
    assert tab.locator("#one canvas").get_attribute("aria-label").endswith(text)
    assert text[:80] in tab.locator("#one-status").inner_text()  # in the warning that it names nothing that is known
    assert tab.locator("#one-status script, #one script, #one-status img").count() == 0


@pytest.mark.core
def test_two_visitors_at_once(visit: Any) -> None:
    first, second = visit(), visit()
    put(first, frames=8, steps=12)
    put(second, frames=1, steps=1)
    first.get_by_role("button", name="Make a clip").click()
    first.locator("#one .film").wait_for()
    second.get_by_role("button", name="Make a clip").click()
    status(second, "one", "in line: 1 before you")
    status(first, "one", "^done$")
    status(second, "one", "^done$")


@pytest.mark.core
def test_limits_and_wrong_values_are_messages_on_the_page(visit: Any) -> None:
    tab = visit()
    put(tab, frames=1, steps=1)
    for label, text, words in (
        ("size", f"{2 * SIDE}x64", f"width is {2 * SIDE}: this page takes at most {SIDE} (--max-size of the server)"),
        ("size", "wide", "size: 'wide' is no size: expected WIDTHxHEIGHT"),
        ("size", "60x60", "60x60"),
    ):
        tab.get_by_label(label).fill(text)
        tab.get_by_role("button", name="Make a clip").click()
        tab.locator("#one-status [role=alert]", has_text=words).wait_for()
    tab.get_by_label("size").fill("")
    make(tab)


def test_a_model_that_fails_to_load_is_a_message(visit: Any, broken: Path) -> None:
    tab, other = visit(), visit()
    tab.get_by_label("model").click()
    tab.get_by_role("option").nth(1).click()
    tab.locator("#message [role=alert]", has_text="safetensors").wait_for()
    tab.get_by_role("button", name="Make a clip").click()
    tab.locator("#one-status [role=alert]", has_text="safetensors").wait_for()
    assert str(broken.parent) not in tab.content()
    make(other, frames=1, steps=1)


def test_twenty_requests_of_four_visitors(visit: Any, server: Server) -> None:
    tabs = [visit() for _ in range(4)]
    for tab in tabs:
        put(tab, frames=2, steps=2)
    memory = []
    for turn in range(5):
        prompts = [f"fox face {4 * turn + i}" for i in range(4)]
        for tab, prompt in zip(tabs, prompts, strict=True):
            tab.get_by_label("prompt").fill(prompt)
            tab.get_by_role("button", name="Make a clip").click()
        for tab, prompt in zip(tabs, prompts, strict=True):  # each gets its own clip, not an earlier one
            tab.locator(f"#one canvas[aria-label^='2 frames,'][aria-label$=': {prompt}']").wait_for()
            tab.locator("#downloads").wait_for()
            status(tab, "one", "^done$")
            memory.append(server.memory)
    said = f"memory after the fifth and the last request: {memory[4] / 2**20:.0f}, {memory[-1] / 2**20:.0f} MiB"
    print(said)
    assert memory[-1] <= 1.1 * memory[4], said


@pytest.mark.core
def test_a_visitor_reads_no_file_of_the_machine(server: Server) -> None:
    for path in ("/etc/hostname", str(CHECKPOINT / "zs2.json"), "../../etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.address}gradio_api/file={path}")
        assert refused.value.code in (403, 404)


def test_who_has_no_password_sees_nothing_and_who_has_one_reads_no_file(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "visitors").write_text("ann:secret\n")
    server = Server(tmp_path, "--auth", str(tmp_path / "visitors"))
    enter = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def ask(path: str, data: dict[str, Any] | None = None) -> str:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(server.address + path, body, {"content-type": "application/json"})
        with enter.open(request, timeout=60) as answer:
            return answer.read().decode()

    try:
        with urllib.request.urlopen(server.address) as page:
            text = page.read().decode()
            assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "attention over frames" not in text
        for path in ("config", "gradio_api/info"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(server.address + path)
            assert refused.value.code == 401
        enter.open(server.address + "login", b"username=ann&password=secret").read()
        events = json.loads(ask("config"))["dependencies"]
        replay = next(one for one in events if any(event == "upload" for _, event in one["targets"]))
        for i, file in enumerate(("/etc/hostname", "http://example.com/clip.gif", "http://127.0.0.1:1/\x1b[2J")):
            dropped = {"path": file, "meta": {"_type": "gradio.FileData"}}
            data = [dropped, CHECKPOINT.name, *[None] * (len(replay["inputs"]) - 2)]
            session = {"session_hash": f"s{i}"}
            ask("gradio_api/queue/join", {"data": data, "fn_index": replay["id"], **session})
            told = ask(f"gradio_api/queue/data?session_hash=s{i}")
            assert '"success":false' in told.partition("process_completed")[2]
        assert "BLOCKED" not in server.text
        assert "\x1b" not in server.text
    finally:
        server.end()


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)); };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    layers.push([255, 255, 255]);
    return layers.reverse().reduce((below, top) => over(top, below));
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.closest("button:disabled, [aria-hidden=true], script, style")) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const [a, b] = [light(over(parse(style.color), ground)), light(ground)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)} ${element.className}`);
  }
  return found;
}"""
UNNAMED = """() => [...document.querySelectorAll("input, textarea, select, button, [role=tab], canvas")].filter((e) => {
  if (!e.checkVisibility() || e.type === "file") return false;
  const label = e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent || e.title
    || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
  return !label || !label.trim();
}).map((e) => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("1280", WIDE), ("390", NARROW)])
def test_it_looks_right(visit: Any, scheme: str, name: str, size: dict[str, int]) -> None:
    tab = visit(viewport=size, color_scheme=scheme)
    make(tab, frames=4, steps=10)
    tab.locator("#downloads").wait_for()
    tab.wait_for_timeout(300)
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.get_by_text("The same by command line").click()
    tab.locator("#shell .cm-line").first.wait_for()
    tab.screenshot(path=SHOTS / f"one-{name}-{scheme}.png", full_page=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    found = [tab.evaluate(CONTRAST), tab.evaluate(UNNAMED)]
    for other in ("Side by side", "Endless"):
        tab.get_by_role("tab", name=other).click()
        tab.wait_for_timeout(200)
        tab.screenshot(path=SHOTS / f"{other.lower().replace(' ', '-')}-{name}-{scheme}.png", full_page=True)
        assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
        found += [tab.evaluate(CONTRAST), tab.evaluate(UNNAMED)]
    assert [one for several in found for one in several] == []


def test_it_works_by_keyboard(visit: Any) -> None:
    tab = visit()
    put(tab, frames=1, steps=1)
    tab.get_by_label("prompt").focus()
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.textContent").strip() == "Make a clip":
            break
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    status(tab, "one", "^done$")


def test_motion_waits_where_the_visitor_wants_less_of_it(visit: Any) -> None:
    tab = visit(reduced_motion="reduce")
    make(tab, frames=3, steps=1)
    tab.wait_for_timeout(300)
    before = pixels(tab, "#one canvas")[0]
    tab.wait_for_timeout(500)
    assert pixels(tab, "#one canvas")[0] == before
    tab.get_by_role("button", name="Play").click()
    tab.wait_for_function(f"() => document.querySelector('#one canvas').shown.index !== {before}")
