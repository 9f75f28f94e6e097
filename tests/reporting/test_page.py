"""The report's page in a real Chromium: it needs nothing but itself, its clips play in step, and votes are counted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from studies import PROMPTS, SCRIPT, colour, made_up_study, real_study

from zs2.evaluation.metrics import METRICS
from zs2.report import main
from zs2.study.cells import PRESETS, merge, preset
from zs2.study.prompts import Prompt
from zs2.study.study import Job, Study

pytestmark = pytest.mark.page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CELLS = {one.id: one for one in preset("paper")}
REFERENCE, OTHER, THIRD, FIXED, FROZEN = (
    CELLS[name] for name in ("dnm-0.1_tma-0.98", "iid_tma-0.98", "iid_sa", "shared_sa", "frozen")
)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def chromium() -> str:
    """Where Chromium is."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(f"no browser found (looked for {', '.join(NAMES)}): apt-get install chromium", pytrace=False)
    return found


def test_without_a_browser_these_tests_fail_and_say_why(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match=r"no browser found .*: apt-get install chromium"):
        chromium()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is not installed: pip install -e '.[page]', or make test-page", pytrace=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """Opens a page in a browser profile of its own, and at the end asserts that nothing was wrong with it."""
    contexts, wrong, addresses = [], [], []

    def visit(file: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: addresses.append(request.url))
        addresses.append(file.as_uri())
        tab.goto(file.as_uri())
        return tab

    visit.wrong, visit.addresses = wrong, addresses
    yield visit
    for context in contexts:
        context.close()
    assert wrong == []
    assert {address for address in addresses if not address.startswith(("data:", "blob:"))} == {addresses[0]}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Path, Study]:
    """The page of a study whose pictures are known, and the study. Of the third cell a clip is missing; a picture of
    all frames has two in a row, as those of long clips have many."""
    folder = tmp_path_factory.mktemp("known") / "study"
    study = made_up_study(
        folder,
        [REFERENCE, OTHER, THIRD, FIXED, FROZEN],
        lambda job: {"clip-score": 20.0, "motion": 0.1},
        made=lambda job: (job.cell, job.prompt, job.seed) != (THIRD, 2, 1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zs2.reporting.page_clips.WIDEST", 40)
        assert main([str(folder)]) == 0
    return folder / "report.html", study


@pytest.fixture
def tab(visit, report) -> Any:
    return visit(report[0])


def pixels(tab: Any, selector: str = "#stage canvas", x: float = 0.5, y: float = 0.5) -> list[tuple[int, int, int]]:
    """The colour of each canvas at a place, all read at one moment."""
    script = """([canvases, x, y]) => {
        const one = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
        const copy = one.getContext("2d", { willReadFrequently: true });
        return [...document.querySelectorAll(canvases)].map((canvas) => {
            copy.drawImage(canvas, -Math.floor(x * canvas.width), -Math.floor(y * canvas.height));
            return [...copy.getImageData(0, 0, 1, 1).data];
        });
    }"""
    return [tuple(colour[:3]) for colour in tab.evaluate(script, [selector, x, y])]


def drawn(tab: Any) -> None:
    """Wait until all clips are drawn."""
    tab.wait_for_function("() => images.every((image) => image.complete)")
    tab.evaluate("show()")


def at(tab: Any) -> int:
    """The clock's frame, as the page says it."""
    return int(tab.inner_text("#at").split()[0]) - 1


def votes(tab: Any) -> list[dict[str, str]]:
    return tab.evaluate("votes")


def message(tab: Any) -> str:
    return tab.inner_text("#message")


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    folder = real_study(tmp_path_factory.mktemp("real"))
    assert main([str(folder)]) == 0
    return folder / "report.html"


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_real_report_loads_at_any_width_in_light_and_dark(real, visit, size, scheme):
    tab = visit(real, viewport=size, color_scheme=scheme)
    drawn(tab)
    assert tab.title() == "An ablation study of ZS²"
    for view in ("play", "sheet"):
        tab.select_option("#view", view)
        assert tab.evaluate("document.documentElement.scrollWidth") == size["width"]
    paper, ink = tab.evaluate(
        "[getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) > 382 for colour in (paper, ink)]
    assert light == ([True, False] if scheme == "light" else [False, True])
    tab.click("#begin")
    assert tab.evaluate("document.getElementById('booth').scrollWidth") <= size["width"]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """The page of a study with all the presets and a value of every metric of a table."""
    folder = tmp_path_factory.mktemp("large") / "study"
    cells = merge([one for name in PRESETS for one in preset(name)])
    metrics = [metric.name for metric in METRICS.values()]

    def measure(job: Job) -> dict[str, float]:
        place = 1 + cells.index(job.cell) + 0.1 * job.prompt * (-1) ** cells.index(job.cell)
        return {name: (20.0 if name == "clip-score" else 0.01) + 0.0123 * place for name in metrics}

    made_up_study(folder, cells, measure, seeds=(0,))
    assert main([str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def close(tmp_path_factory) -> Path:
    """The page of a study with intervals, of differences that take six decimals."""
    folder = tmp_path_factory.mktemp("close") / "study"
    cells = preset("paper")

    def measure(job: Job) -> dict[str, float]:
        return {
            metric.name: 0.04 - 0.00041 * cells.index(job.cell) * (1 + job.prompt / 7) for metric in METRICS.values()
        }

    made_up_study(folder, cells, measure, [Prompt(f"thing {i}") for i in range(6)], seeds=(0,))
    assert main([str(folder)]) == 0
    return folder / "report.html"


def sideways(tab: Any) -> list[str]:
    """What must be scrolled sideways to be read: the page, or the box of a table."""
    return tab.evaluate("""() => [document.documentElement, ...document.querySelectorAll(".wide")]
        .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.innerText.slice(0, 80))""")


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
@pytest.mark.parametrize("study", ["large", "close"])
def test_no_table_is_scrolled_sideways(study, request, visit, size, scripts):
    tab = visit(request.getfixturevalue(study), viewport=size, java_script_enabled=scripts)
    for label in tab.locator(".choice label").all():
        label.click()
        assert sideways(tab) == []


@pytest.mark.core
@pytest.mark.parametrize("scripts", [True, False])
def test_a_metric_and_a_set_of_prompts_are_chosen(large, visit, scripts):
    tab = visit(large, viewport=PHONE, java_script_enabled=scripts)
    assert not tab.is_visible(".overview")
    title, meaning = METRICS["ssim"].title, METRICS["ssim"].meaning
    tab.get_by_role("radio", name=title, exact=True).check()
    tab.get_by_role("radio", name="open (2)").check()
    tables = [one for one in tab.locator("table.differences").all() if one.is_visible()]
    assert [one.locator("caption").inner_text() for one in tables] == [f"{title}: Open prompts (2), 2 clips a variant"]
    texts = [one.inner_text() for one in tab.locator(".metric > p").all() if one.is_visible()]
    assert texts == [f"{title}: {meaning}. A still clip has 1.000."]
    basis = [one.inner_text() for one in tab.locator("#found .hint").all() if one.is_visible()]
    assert len(basis) == 1
    assert "over 2 open prompts" in basis[0]


def test_a_choice_is_made_by_keys(large, visit):
    tab = visit(large)
    tab.focus("#set-2")
    for key, chosen in (("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowRight", 1)):
        tab.keyboard.press(key)
        assert tab.evaluate("document.querySelector('[name=set]:checked').id") == f"set-{chosen}"
    captions = [one.inner_text() for one in tab.locator("table.means caption").all() if one.is_visible()]
    assert captions == ["Open prompts (2), 2 clips a variant"]


def test_the_choice_of_prompts_is_one_line_on_a_phone(large, visit):
    tops = [one.bounding_box()["y"] for one in visit(large, viewport=PHONE).locator(".numbers > .choice label").all()]
    assert len(tops) == 3
    assert len(set(tops)) == 1


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_the_first_screen_has_the_question_and_the_picture(large, visit, size):
    tab = visit(large, viewport=size)
    drawn(tab)
    names = [cell.id for cell in (REFERENCE, OTHER, CELLS["dnm-0.1_sa"], THIRD)]
    shown = tab.evaluate("[...document.querySelectorAll('#main canvas')].map((one) => one.dataset.name)")
    assert shown == [f"{name}_p02_s0" for name in names]
    for place in (tab.locator(".lead"), *tab.locator("#main canvas").all()):
        box = place.bounding_box()
        assert box["y"] + box["height"] <= size["height"]
    if size == DESKTOP:
        box = next(one for one in tab.locator("#found .findings").all() if one.is_visible()).bounding_box()
        assert box["y"] + box["height"] <= size["height"]


CONTRAST = """() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => colour.slice(0, 3).map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = rgb(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
    };
    const low = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
        if (!text || ["SCRIPT", "NOSCRIPT", "OPTION"].includes(element.tagName) || !element.checkVisibility()) continue;
        const style = getComputedStyle(element), ink = rgb(element.closest("svg") ? style.fill : style.color);
        const [a, b] = [luminance(ink), luminance(behind(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${text.slice(0, 40)}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
    }
    return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_the_contrast_of_wcag_aa(large, visit, scheme):
    tab = visit(large, color_scheme=scheme)
    assert tab.evaluate(CONTRAST) == []
    tab.click("#begin")
    assert tab.evaluate(CONTRAST) == []


@pytest.mark.parametrize(("size", "wide", "small"), [(DESKTOP, 260, 130), (PHONE, 330, 130)])
def test_clips_are_large_or_small(large, visit, size, wide, small):
    tab = visit(large, viewport=size)
    for choice, least in (("small", small), ("large", wide)):
        tab.select_option("#size", choice)
        width = tab.locator("#stage canvas >> nth=0").bounding_box()["width"]
        assert least <= width < least * 1.5


@pytest.mark.core
def test_a_prompt_that_is_a_script_is_text(real, visit):
    tab = visit(real)
    assert tab.inner_text("#prompt option >> nth=0") == f"{SCRIPT} · closed"
    tab.click("summary")
    assert SCRIPT in tab.inner_text("#about details")
    assert tab.locator("script").count() == 2
    assert visit.wrong == []  # no alert


@pytest.mark.core
def test_nothing_else_can_run_or_be_fetched(tab, visit):
    tab.evaluate("""() => {
        window.refused = [];
        document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
        for (const [tag, values] of [["script", { textContent: "window.ran = true" }],
            ["img", { src: "http://localhost:9/picture.png" }], ["style", { textContent: "p { color: red }" }]]) {
            document.body.append(Object.assign(document.createElement(tag), values));
        }
    }""")
    tab.wait_for_function("() => refused.length >= 3")
    assert sorted(tab.evaluate("refused")) == ["img-src", "script-src-elem", "style-src-elem"]
    assert tab.evaluate("window.ran") is None
    assert len(visit.wrong) == 3  # each is said on the console
    visit.wrong.clear()
    assert visit.addresses.pop() == "http://localhost:9/picture.png"  # what was refused would be noticed, too


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_clips_play_in_step(tab, report):
    _, study = report
    drawn(tab)
    seen = set()
    while len(seen) < study.frames:
        frames = [(red - 20) // 40 for red, *_ in pixels(tab)]
        assert frames[3:] == [0, 0]  # the stills
        assert len(set(frames[:3])) == 1
        seen.add(frames[0])
        tab.wait_for_function("(frame) => clock.frame !== frame", arg=frames[0])
    assert seen == {0, 1, 2, 3}


def test_each_clip_is_its_own(tab, report):
    _, study = report
    tab.click("#transport .play")
    for prompt, seed in ((0, 0), (1, 1), (3, 0)):
        tab.select_option("#prompt", str(prompt))
        tab.select_option("#seed", str(seed))
        drawn(tab)
        assert pixels(tab) == [colour(study, Job(cell, prompt, seed), at(tab)) for cell in study.cells]
        captions = tab.locator("#stage figcaption").all_inner_texts()
        score = "CLIP score 20.00 · " if PROMPTS[prompt].text else ""  # the empty prompt has none
        assert captions[0] == f"{REFERENCE.label} (reference)\n{score}motion 0.1000"
    assert [caption.split("\n")[0] for caption in captions[1:]] == [cell.label for cell in study.cells[1:]]


def test_a_missing_clip_is_said_to_be_missing(tab):
    tab.select_option("#prompt", "2")
    tab.select_option("#seed", "1")
    assert [text.endswith("missing") for text in tab.locator("#stage figcaption").all_inner_texts()] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert tab.locator("#stage canvas").count() == 4


def test_pause_and_step_by_keys(tab):
    tab.focus("#stage")
    tab.keyboard.press("Space")
    assert tab.inner_text("#transport .play") == "play"
    start = at(tab)
    for key, frame in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 3)):
        tab.keyboard.press(key)
        assert at(tab) == (start + frame) % 4
    drawn(tab)
    assert {(red - 20) // 40 for red, *_ in pixels(tab)[:3]} == {at(tab)}
    tab.wait_for_timeout(400)
    assert at(tab) == (start + 3) % 4  # it stands
    tab.keyboard.press("Space")
    tab.wait_for_function("(frame) => clock.frame !== frame", arg=at(tab))


def test_contact_sheets_show_all_frames(tab, report):
    _, study = report
    tab.select_option("#view", "sheet")
    drawn(tab)
    assert not tab.is_visible("#transport")
    for frame in range(study.frames):
        place = (frame * 18 + 8) / (4 * 18 - 2)
        assert pixels(tab, x=place) == [colour(study, Job(cell, 0, 0), frame) for cell in study.cells]


def test_reduced_motion_starts_paused(visit, report):
    tab = visit(report[0], reduced_motion="reduce")
    drawn(tab)
    tab.wait_for_timeout(400)
    assert (tab.inner_text("#transport .play"), at(tab)) == ("play", 0)
    tab.click("#begin")
    tab.click("#booth .play")
    tab.wait_for_function("() => clock.frame > 0")


# --- voting -----------------------------------------------------------------------------------------------------------


def test_votes_by_key_and_by_button_are_counted(tab):
    tab.click("#begin")
    assert tab.inner_text("#count") == "0 given, 31 to go"  # 4 variants × 4 prompts × 2 seeds, less the missing clip
    by_key = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", "s": "skip", "S": "skip"}
    for key, choice in by_key.items():
        shown = tab.evaluate("[left.dataset.name, right.dataset.name]")
        tab.keyboard.press(key)
        assert [votes(tab)[-1][name] for name in ("left", "right", "choice")] == [*shown, choice]
    for choice in ("left", "right", "tie", "skip"):
        tab.click(f"[data-vote={choice}]")
        assert votes(tab)[-1]["choice"] == choice
    assert len(votes(tab)) == 9
    assert len({frozenset((vote["left"], vote["right"])) for vote in votes(tab)}) == 9
    assert "9 given" in tab.inner_text("#count")


def test_undo_brings_the_pair_back(tab):
    tab.click("#begin")
    assert tab.is_disabled("[data-vote=undo]")
    shown = tab.evaluate("[current.left, current.right]")
    for undo in (lambda: tab.keyboard.press("u"), lambda: tab.click("[data-vote=undo]")):
        tab.keyboard.press("ArrowLeft")
        assert tab.evaluate("[current.left, current.right]") != shown
        undo()
        assert votes(tab) == []
        assert tab.evaluate("[current.left, current.right]") == shown
    tab.keyboard.press("u")
    assert votes(tab) == []


def test_the_names_are_hidden_while_voting(tab, report):
    _, study = report
    tab.click("#begin")
    for _ in range(3):
        said = tab.inner_text("#booth")
        assert not [cell.label for cell in study.cells if cell.label in said]
        labels = tab.evaluate("[...document.querySelectorAll('#booth *')].map((e) => `${e.ariaLabel} ${e.title}`)")
        assert not [cell.label for cell in study.cells if any(cell.label in label for label in labels)]
        covered = tab.evaluate("""() => {
            const inside = (x, y) => document.getElementById("booth").contains(document.elementFromPoint(x, y));
            return [5, 200, 640, 1275].every((x) => [5, 300, 600, 895].every((y) => inside(x, y)));
        }""")
        assert covered
        tab.keyboard.press("ArrowLeft")
    backdrop = tab.evaluate("getComputedStyle(document.getElementById('booth'), '::backdrop').backgroundColor")
    assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", backdrop)  # it hides what is behind it


def test_results_are_shown_when_voting_is_closed(tab):
    assert not tab.is_visible("#result")
    said = "document.querySelector('#preferences caption').textContent.startsWith('Votes: {},')".format
    for given, close in ((1, lambda: tab.keyboard.press("Escape")), (2, lambda: tab.click("#end"))):
        tab.click("#begin")
        tab.keyboard.press("ArrowLeft")
        assert tab.evaluate(said(given - 1))  # not before
        close()
        # A dialog's close event comes a moment after it has closed. (A function: a bare expression is evaluated in the
        # page from the second time on, which its policy forbids.)
        tab.wait_for_function(f"() => {said(given)}")
        assert tab.is_visible("#result")


def test_space_pauses_and_votes_only_on_a_button(tab):
    tab.click("#begin")
    tab.keyboard.press("Space")
    assert votes(tab) == []
    assert tab.inner_text("#booth .play") == "play"
    tab.focus("[data-vote=tie]")
    tab.keyboard.press("Space")
    assert [vote["choice"] for vote in votes(tab)] == ["tie"]
    assert tab.inner_text("#booth .play") == "play"


def test_each_pair_begins_with_its_first_frame(tab):
    tab.click("#transport .play")
    for show in (lambda: tab.click("#begin"), lambda: tab.keyboard.press("ArrowLeft")):
        tab.evaluate("step(2 - clock.frame)")
        show()
        drawn(tab)
        assert {red for red, *_ in pixels(tab, "#booth canvas")} == {20}


def test_sides_and_order_are_random(tab):
    first, sides = set(), set()
    for _ in range(60):
        pair = tab.evaluate("pairs()[0]")
        first.add(frozenset(pair.values()))
        sides.add(pair["left"].startswith(REFERENCE.id))
    assert len(first) > 5
    assert sides == {True, False}


def test_each_pair_is_asked_once_and_none_of_two_clips_that_are_the_same(tab):
    for which, count in (("full", 31), ("all", 31 + 7 + 16 + 14)):
        tab.select_option("#pairs", which)
        pairs = [frozenset(pair.values()) for pair in tab.evaluate("pairs()")]
        assert len(set(pairs)) == len(pairs) == count
        assert all(len({name.split("_p")[1] for name in pair}) == 1 for pair in pairs)
        assert not [pair for pair in pairs if {name.split("_p")[0] for name in pair} == {FIXED.id, FROZEN.id}]


def test_after_the_last_pair_there_is_none(tab):
    tab.click("#begin")
    for _ in range(31):
        tab.keyboard.press("ArrowDown")
    assert tab.inner_text("#question") == "No more pairs. Thank you."
    assert tab.inner_text("#count") == "31 given, 0 to go"
    tab.keyboard.press("ArrowDown")
    assert len(votes(tab)) == 31


def test_votes_survive_a_reload(tab):
    tab.fill("#voter", "ada")
    tab.click("#begin")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("s")
    given = votes(tab)
    tab.reload()
    assert votes(tab) == given
    assert tab.input_value("#voter") == "ada"
    assert tab.is_visible("#result")
    tab.click("#begin")
    assert tab.inner_text("#count") == "2 given, 29 to go"


def test_without_storage_votes_last_as_long_as_the_page_and_it_says_so(tab):
    tab.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('none'); }; }")
    tab.click("#begin")
    tab.keyboard.press("ArrowLeft")
    assert len(votes(tab)) == 1
    assert "keeps no votes" in message(tab)


def test_kept_votes_on_clips_that_are_gone_are_kept_and_not_counted(tab):
    tab.evaluate("""() => localStorage.setItem(KEY, JSON.stringify({ voter: "ada", votes: [
        { voter: "ada", left: "gone_p00_s0", right: "iid_sa_p00_s0", choice: "left" }] }))""")
    tab.reload()
    assert votes(tab) == []
    assert message(tab) == "Votes on clips that are not here: 1. They are kept, and do not count."
    tab.click("#begin")
    tab.keyboard.press("ArrowLeft")
    assert len(tab.evaluate("JSON.parse(localStorage.getItem(KEY)).votes")) == 2


def test_forgetting_asks_first(tab, visit):
    tab.click("#begin")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Escape")
    tab.click("#forget")  # which the fixture declines
    assert len(votes(tab)) == 1
    (asked,) = visit.wrong
    assert asked.startswith("Forget all votes on this page (1)?")
    visit.wrong.clear()
    tab.evaluate("window.confirm = () => true")
    tab.click("#forget")
    assert votes(tab) == []
    assert not tab.is_visible("#result")
    tab.reload()
    assert votes(tab) == []


# --- files of votes ---------------------------------------------------------------------------------------------------


def exported(tab: Any) -> dict[str, Any]:
    with tab.expect_download() as download:
        tab.click("#export")
    assert re.fullmatch(r"votes-[0-9a-f]{16}\.json", download.value.suggested_filename)
    return json.loads(Path(download.value.path()).read_text(encoding="utf-8"))


def take(tab: Any, said: Any) -> str:
    """Import a file; what the page says then."""
    text = said if isinstance(said, str) else json.dumps(said)
    tab.evaluate("document.getElementById('message').textContent = ''")
    tab.set_input_files("#import", {"name": "votes.json", "mimeType": "application/json", "buffer": text.encode()})
    tab.wait_for_function("() => document.getElementById('message').textContent !== ''")
    return message(tab)


def ballot(tab: Any, *given: tuple[str, str, str], voter: str = "ada") -> dict[str, Any]:
    """A file of votes on this study: (left cell, right cell, choice), each on another prompt and seed."""
    places = [f"p{prompt:02}_s{seed}" for prompt in range(4) for seed in range(2)]
    list_ = [
        {"voter": voter, "left": f"{left}_{place}", "right": f"{right}_{place}", "choice": choice}
        for (left, right, choice), place in zip(given, places, strict=False)
    ]
    return {"zs2_votes": 1, "study": tab.evaluate("study.digest"), "votes": list_}


def test_votes_travel_by_file(tab, visit, report):
    tab.fill("#voter", "ada")
    tab.click("#begin")
    for key in ("ArrowLeft", "ArrowDown", "s"):
        tab.keyboard.press(key)
    tab.keyboard.press("Escape")
    said = exported(tab)
    assert said == {"zs2_votes": 1, "study": tab.evaluate("study.digest"), "votes": votes(tab)}
    assert {vote["voter"] for vote in said["votes"]} == {"ada"}
    other = visit(report[0])
    assert votes(other) == []
    assert take(other, {**said, "votes": said["votes"] * 2}) == "Votes imported: 3. Already here: 3."
    assert votes(other) == votes(tab)
    assert other.inner_text("#preferences tbody") == tab.inner_text("#preferences tbody")
    assert take(other, said) == "Votes imported: 0. Already here: 3."


def test_votes_of_several_voters_count_together(tab):
    given = [(REFERENCE.id, OTHER.id, "left")] * 3
    for voter in ("ada", "bob"):
        assert take(tab, ballot(tab, *given, voter=voter)) == "Votes imported: 3. Already here: 0."
    assert tab.locator("#preferences caption").inner_text() == "Votes: 6, of voters: 2; of these “can't say”: 0"
    tab.fill("#voter", "bob")
    tab.click("#begin")
    assert tab.inner_text("#count") == "3 given, 28 to go"
    tab.keyboard.press("u")  # bob's last
    assert [vote["voter"] for vote in votes(tab)] == ["ada"] * 3 + ["bob"] * 2


PAIR = {"voter": "ada", "left": f"{REFERENCE.id}_p00_s0", "right": f"{OTHER.id}_p00_s0", "choice": "left"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("no JSON", "not valid JSON"),
        ("[]", "it is no file of votes"),
        ("null", "it is no file of votes"),
        ({"zs2_votes": 2}, "it is no file of votes"),
        ({"study": "0123456789abcdef"}, "its votes are on another study"),
        ({"votes": None}, "it has no list of votes"),
        ({"votes": {"length": 1}}, "it has no list of votes"),
        ({"votes": [0] * 100001}, "it has no list of votes"),
        ({"votes": [PAIR, None]}, "a vote says no voter"),
        ({"votes": [PAIR, {**PAIR, "voter": ""}]}, "a vote says no voter"),
        ({"votes": [PAIR, {**PAIR, "left": "gone_p00_s0"}]}, "a vote is on a clip that is not here"),
        ({"votes": [PAIR, {**PAIR, "left": "__proto__"}]}, "a vote is on a clip that is not here"),
        ({"votes": [PAIR, {**PAIR, "right": PAIR["left"]}]}, "a vote is on two clips that are no pair"),
        ({"votes": [PAIR, {**PAIR, "right": f"{OTHER.id}_p01_s0"}]}, "a vote is on two clips that are no pair"),
        ({"votes": [PAIR, {**PAIR, "right": f"{OTHER.id}_p00_s1"}]}, "a vote is on two clips that are no pair"),
        ({"votes": [PAIR, {**PAIR, "choice": "both"}]}, "a vote is none of left, right, tie, skip"),
    ],
)
def test_a_foreign_or_broken_file_of_votes_is_refused_whole(tab, said, words):
    said = said if isinstance(said, str) else ballot(tab) | said
    got = take(tab, said)
    assert got.startswith("Nothing imported from votes.json: ")
    assert words in got
    assert votes(tab) == []
    assert take(tab, ballot(tab) | {"votes": [PAIR]}) == "Votes imported: 1. Already here: 0."


def test_a_voter_that_is_a_script_is_text(tab):
    take(tab, ballot(tab, (REFERENCE.id, OTHER.id, "left"), voter="<img src=x onerror=alert(1)>"))
    assert tab.locator("#preferences tbody tr").count() == 1
    assert tab.locator("img").count() == 0


# --- preferences ------------------------------------------------------------------------------------------------------


def rows(tab: Any) -> list[list[str]]:
    found = tab.locator("#preferences tbody tr").all()
    return [[" ".join(text.split()) for text in row.locator("th, td").all_inner_texts()] for row in found]


def test_preferences_by_hand(tab):
    ours, theirs, third = REFERENCE.id, OTHER.id, THIRD.id
    take(tab, ballot(tab, (theirs, third, "right"), voter="bob"))
    given = [(ours, theirs, "left"), (theirs, ours, "right"), (theirs, ours, "right"), (ours, theirs, "tie")]
    take(tab, ballot(tab, *given, (ours, theirs, "right"), (ours, theirs, "skip"), (ours, third, "left")))
    assert rows(tab) == [
        [REFERENCE.label, OTHER.label, "3", "1", "1", "70", "30", "93"],  # 3.5 of 5
        [REFERENCE.label, THIRD.label, "1", "0", "0", "100", "21", "100"],
        [OTHER.label, THIRD.label, "0", "0", "1", "0", "0", "79"],
    ]
    assert tab.locator("#preferences caption").inner_text() == "Votes: 8, of voters: 2; of these “can't say”: 1"
    tab.select_option("#which", "open")  # prompts 2 and 3
    assert [row[2:5] for row in rows(tab)] == [["0", "0", "1"], ["1", "0", "0"]]
    tab.select_option("#which", "closed")
    assert [row[2:5] for row in rows(tab)] == [["3", "1", "0"], ["0", "0", "1"]]


def test_preferences_fit_a_phone(report, visit):
    tab = visit(report[0], viewport=PHONE)
    take(tab, ballot(tab, (REFERENCE.id, OTHER.id, "left"), (THIRD.id, REFERENCE.id, "tie")))
    assert len(rows(tab)) == 2
    assert sideways(tab) == []


def test_a_preference_is_seen_where_the_interval_is_beyond_a_half(tab):
    take(tab, ballot(tab, *[(REFERENCE.id, OTHER.id, "left")] * 8))
    take(tab, ballot(tab, *[(REFERENCE.id, THIRD.id, "right")] * 5))
    assert rows(tab) == [
        [REFERENCE.label, OTHER.label, "8", "0", "0", "100▲", "68", "100"],
        [REFERENCE.label, THIRD.label, "0", "0", "5", "0▼", "0", "43"],
    ]


def test_as_many_votes_as_the_page_says_make_an_interval_of_5_percent(tab):
    (count,) = re.findall(r"±5 % takes (\d+) votes", tab.text_content("#result .hint"))
    widths = [high - low for low, high in (tab.evaluate(f"wilson({n / 2}, {n})") for n in (int(count) - 1, int(count)))]
    assert widths[0] > 0.1 >= widths[1]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # by R's prop.test(k, n, correct = FALSE)
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (50, 100, 0.4038315, 0.5961685)],
)
def test_wilson_s_interval(tab, k, n, low, high):
    assert tab.evaluate(f"wilson({k}, {n})") == pytest.approx([low, high], abs=1e-6)
