"""The page in a real Chromium: clips, stops, comparisons, replays, inputs; and the page without a server.

A screenshot goes to out/page.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
from helpers import CHECKPOINT, LAM, SIDE, Fixture, tiny, write_guided
from PIL import Image
from visiting import SECONDS, SHOTS, WIDE, Server, choose, download, make, pixels, put, status

from zs2 import ZS2
from zs2.app.clip_options import ClipOptions, Limits
from zs2.app.files import folder
from zs2.app.making import load_model
from zs2.app.worker import DONE, STOPPED, Job
from zs2.sampling.request import usual
from zs2.video.clip import Clip

pytestmark = pytest.mark.page

Answer = TypeVar("Answer")

FIRST = asyncio.FIRST_COMPLETED
SHOWN = "() => document.querySelector('#one .film').dataset.id === document.querySelector('#one canvas').shown?.id"


@pytest.mark.core
def test_a_clip_is_made_seen_and_kept(visit: Any, tmp_path: Path) -> None:
    tab = visit()
    tab.get_by_label("prompt").fill("fox face")
    put(tab, frames=3, steps=3, mu=0.5, lam=0.4)
    tab.get_by_role("button", name="Make a clip").click()
    tab.locator("#one .film").wait_for()
    status(tab, "one", "^done$")
    expected = ZS2.from_pretrained(CHECKPOINT, device="cpu", mu=0.5, lam=0.4)("fox face", frames=3, steps=3)
    tab.wait_for_function(SHOWN)
    seen = set()
    while len(seen) < 3:  # it plays
        index, picture = pixels(tab, "#one canvas")
        np.testing.assert_array_equal(picture, expected.frames[index])
        seen.add(index)
    tab.get_by_role("button", name="Pause").click()
    before = pixels(tab, "#one canvas")[0]
    tab.wait_for_timeout(400)
    assert pixels(tab, "#one canvas")[0] == before
    tab.get_by_role("button", name="Play").click()

    clip = Clip.open(download(tab, "WebP (lossless)", tmp_path))
    np.testing.assert_array_equal(clip.frames, expected.frames)
    assert clip.settings == expected.settings
    assert json.loads(download(tab, "JSON", tmp_path).read_text()) == expected.settings
    assert Image.open(download(tab, "GIF", tmp_path)).n_frames == 3
    assert Image.open(download(tab, "contact sheet", tmp_path)).width > 3 * SIDE
    assert download(tab, "MP4", tmp_path).stat().st_size > 100

    tab.get_by_text("The same by command line and in Python").click()
    shell = tab.locator("#shell .cm-content").inner_text().replace("\n", "")
    assert shell.endswith("--mu 0.5 --lam 0.4 --frames 3 --steps 3 --seed 0 --out clip.webp")
    assert "model('fox face', frames=3, steps=3, seed=0)" in tab.locator("#python .cm-content").inner_text()


@pytest.mark.core
def test_a_clip_is_stopped_within_a_step(visit: Any) -> None:
    tab = visit()
    put(tab, frames=8, steps=40)
    tab.get_by_role("button", name="Make a clip").click()
    tab.locator("#one .film").wait_for()
    before = int(re.search(r"step (\d+) of 40", status(tab, "one", "step"))[1])
    tab.get_by_role("button", name="Stop").first.click()
    text = status(tab, "one", "^stopped")
    after = int(re.fullmatch(r"stopped after step (\d+) of 40", text)[1])
    assert before <= after <= before + 5  # steps while the button was looked for and pressed
    tab.locator("button:enabled", has_text="Make a clip").wait_for()
    make(tab, frames=2, steps=2)


def test_a_stop_before_the_work_came_stops_it(visit: Any) -> None:
    tab, held = visit(), []
    put(tab, frames=1, steps=1)
    tab.route("**/queue/join*", lambda route: held.append(route), times=1)  # on its way to the server
    tab.get_by_role("button", name="Make a clip").click()
    with tab.expect_response(lambda response: "run/predict" in response.url):
        tab.get_by_role("button", name="Stop").first.click()
    (route,) = held
    route.continue_()
    status(tab, "one", "^stopped$")
    assert tab.locator("#one .film").count() == 0
    make(tab)


@pytest.mark.core
def test_two_variants_play_in_step_with_their_metrics(visit: Any) -> None:
    tab = visit()
    put(tab, frames=4, steps=3)
    tab.get_by_role("tab", name="Side by side").click()
    put(tab, "#other", steps=3)
    tab.get_by_role("button", name="Make both").click()
    status(tab, "two", "^done")
    captions = tab.locator("#slots figcaption span").all_inner_texts()
    assert [re.sub(r"0\.\d{3}", "N", text) for text in captions] == [
        f"dnm λ {LAM:g} · tma μ 0.98 · steps 3\nmotion N, identity N",
        "iid · sa · steps 3\nmotion N, identity N",
    ]
    motions = [float(re.search(r"motion ([\d.]+)", text)[1]) for text in captions]
    assert motions[0] < motions[1]
    for _ in range(5):
        indices = tab.evaluate("[...document.querySelectorAll('#slots canvas')].map((c) => c.shown.index)")
        assert len(set(indices)) == 1
        tab.wait_for_timeout(130)


def test_the_wall_of_with_and_without_each_part(visit: Any) -> None:
    tab = visit(viewport={"width": 1280, "height": 1120})
    put(tab, steps=20)
    tab.get_by_role("tab", name="Side by side").click()
    tab.get_by_role("button", name="With and without").click()
    status(tab, "two", "^done")
    captions = [
        text.partition(" · steps")[0].strip() for text in tab.locator("#slots figcaption span").all_inner_texts()
    ]
    assert captions == [f"dnm λ {LAM:g} · tma μ 0.98", "iid · tma μ 0.98", f"dnm λ {LAM:g} · sa", "iid · sa"]
    tab.wait_for_timeout(300)
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / "wall.png")  # docs/page.png


def test_a_stream_plays_until_it_is_stopped(visit: Any) -> None:
    tab = visit()
    put(tab, steps=1)
    tab.get_by_label("size").fill("32x32")
    tab.get_by_role("tab", name="Endless").click()
    tab.get_by_role("button", name="Start").click()
    tab.wait_for_function("() => document.querySelector('#endless canvas')?.shown")
    parts = tab.evaluate(
        """() => new Promise((resolve) => {
            const seen = [];
            const look = () => {
                const part = Number(document.querySelector("#endless canvas").shown.part);
                if (part !== seen.at(-1)) seen.push(part);
                if (part === 3) resolve(seen);
                else setTimeout(look, 20);
            };
            look();
        })"""
    )
    assert parts == [0, 1, 2, 3]  # none is left out
    tab.get_by_role("button", name="Stop").last.click()
    assert re.fullmatch(r"stopped after \d+ frames", status(tab, "endless", "^stopped"))


@pytest.mark.core
def test_a_file_is_replayed(visit: Any, tmp_path: Path) -> None:
    method = {"noise": "mixed", "alpha": 3.0, "attn": "sa"}
    clip = ZS2.from_pretrained(CHECKPOINT, device="cpu", **method)("turtle", frames=2, steps=2, seed=7, guidance=2.0)
    clip.save(tmp_path / "turtle.gif")
    tab = visit()
    tab.locator("#replay input[type=file]").set_input_files(tmp_path / "turtle.gif")
    tab.locator("#message", has_text="the settings of turtle.gif are filled in").wait_for()
    assert tab.get_by_label("prompt").input_value() == "turtle"
    assert tab.locator("#settings .control-alpha input").input_value() == "3"
    assert not tab.locator("#settings .control-lam").is_visible()
    tab.get_by_role("button", name="Make a clip").click()
    status(tab, "one", "^done$")
    again = Clip.open(download(tab, "WebP (lossless)", tmp_path))
    np.testing.assert_array_equal(again.frames, clip.frames)
    (tmp_path / "other.json").write_text("{}")
    tab.locator("#replay button[aria-label='Clear']").click()
    tab.locator("#replay input[type=file]").set_input_files(tmp_path / "other.json")
    tab.locator("#message [role=alert]", has_text=re.compile("^other.json: these are not the settings")).wait_for()


def test_a_picture_that_is_dropped_is_frame_0(visit: Any, tmp_path: Path) -> None:
    tab = visit()
    picture = np.full((64, 64, 3), (30, 160, 90), np.uint8)
    Image.fromarray(picture).save(tmp_path / "green.png")
    tab.locator("#settings").get_by_text("Begin from a picture or a clip").click()
    tab.locator("#settings .control-first_frame input[type=file]").set_input_files(tmp_path / "green.png")
    guidance = f"{usual({'first_frame': picture})['guidance']:g}"
    tab.wait_for_function(f"() => document.querySelector('#settings .control-guidance input').value === '{guidance}'")
    make(tab, frames=2, steps=2)
    clip = Clip.open(download(tab, "WebP (lossless)", tmp_path))
    prompt = tab.get_by_label("prompt").input_value()
    model = ZS2.from_pretrained(CHECKPOINT, device="cpu")
    expected = model(prompt, frames=2, steps=2, first_frame=picture)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    assert clip.settings["first_frame"]["sha256"]


def test_an_editing_model_and_a_controlnet_follow_a_clip(browser: Any, tmp_path: Path) -> None:
    models = {way: write_guided(tmp_path / way, way, "sd") for way in ("source", "edit")}
    network = tiny.write_control(tmp_path / "network", "sd", Fixture("controlnet").weights("sd"))
    names = [str(models[way]) for way in ("source", "edit")]
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    Clip(frames).save(tmp_path / "walk.webp", sheet=False, json=False)
    small: dict[str, Any] = {"frames": 2, "steps": 2, "width": 64, "height": 64}
    server = Server(tmp_path, "--models", *names, "--controls", str(network))
    try:
        tab = browser.new_context(viewport=WIDE, accept_downloads=True).new_page()
        tab.set_default_timeout(SECONDS)
        tab.goto(server.address)
        tab.get_by_label("prompt").fill("fox")
        tab.get_by_label("size").fill("64x64")
        put(tab, frames=2, steps=2)
        settings = tab.locator("#settings")
        settings.get_by_text("Follow a clip by a ControlNet").click()
        settings.locator(".control-control input[type=file]").set_input_files(tmp_path / "walk.webp")
        settings.locator(".control-control").get_by_text("walk").first.wait_for()
        settings.locator(".control-control_scale input").fill("2")
        make(tab)
        steered = ZS2.from_pretrained(models["source"], device="cpu", controlnet=network)
        clip = Clip.open(download(tab, "WebP (lossless)", tmp_path))
        expected = steered("fox", **small, control=[frames], control_scale=2.0)
        np.testing.assert_array_equal(clip.frames, expected.frames)
        tab.get_by_text("The same by command line and in Python").click()
        shell = tab.locator("#shell .cm-content").inner_text().replace("\n", "")
        assert "--model source --control network walk.webp" in shell
        assert "from_pretrained('source', controlnet='network')" in tab.locator("#python .cm-content").inner_text()
        settings.locator(".control-control button[aria-label='Clear']").click()

        tab.get_by_label("model", exact=True).click()
        tab.get_by_role("option", name="edit", exact=True).click()
        tab.locator("#message", has_text="is loaded").wait_for()
        tab.get_by_label("prompt").fill("fox")
        put(tab, frames=2, steps=2)
        tab.get_by_role("button", name="Make a clip").click()
        tab.locator("#one-status [role=alert]", has_text="give the clip as source").wait_for()
        settings.get_by_text("Begin from a picture or a clip").click()
        settings.locator(".control-source input[type=file]").set_input_files(tmp_path / "walk.webp")
        settings.locator(".control-source").get_by_text("walk").first.wait_for()
        tab.get_by_role("button", name="Make a clip").click()
        status(tab, "one", "^done$")
        clip = Clip.open(download(tab, "WebP (lossless)", tmp_path))
        expected = ZS2.from_pretrained(models["edit"], device="cpu")("fox", **small, source=frames)
        np.testing.assert_array_equal(clip.frames, expected.frames)
    finally:
        server.end()


def test_a_list_that_is_left_as_it_was_changes_nothing(visit: Any) -> None:
    tab = visit()
    tab.get_by_label("prompt").fill("my own words")
    put(tab, frames=1, steps=1, lam=0.4)
    for label, call in (("noise", "run/predict"), ("attn", "run/predict"), ("model", "queue/join")):
        place = (
            tab.get_by_label("model", exact=True)
            if label == "model"
            else tab.locator(f"#settings .control-{label} input")
        )
        with tab.expect_response(lambda response, call=call: call in response.url):
            place.first.focus()
            tab.keyboard.press("Tab")
    make(tab)
    assert tab.get_by_label("prompt").input_value() == "my own words"
    assert tab.locator("#settings .control-lam input[type=number]").input_value() == "0.4"
    assert tab.locator("#message").inner_text() == ""
    choose(tab, "#settings", "noise", "iid")
    tab.locator("#settings .control-lam").wait_for(state="hidden")


def in_a_thread(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """The result of a coroutine. The browser's tests keep a loop of their own in this thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, coroutine).result()


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """The page without a server, with two models."""
    pytest.importorskip("gradio")
    from zs2.app.page import Page
    from zs2.app.studio import Studio

    names = [str(write_guided(tmp_path / way, way, "sd")) for way in ("source", "edit")]
    (tmp_path / "edit" / "zs2.json").write_text('{"lam": 0.25, "prompts": ["a boat"]}')
    return Page(Studio(names, Limits(), {"device": "cpu"}), tmp_path / "files")


def test_a_visitor_reads_no_path_of_a_model(opened: Any, tmp_path: Path) -> None:
    assert opened.studio.names == ("source", "edit")
    assert str(tmp_path) not in json.dumps(opened.blocks.get_config_file())
    (tmp_path / "edit" / "scheduler" / "scheduler_config.json").write_text("{")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a b.json").write_text("{")

    async def told() -> list[Any]:
        ann, nothing = SimpleNamespace(session_hash="ann"), [None] * len(opened.panel.inputs)
        replayed = await opened._replay(ann, str(tmp_path / "files" / "a b.json"), "source", *nothing)
        return [replayed, *[one async for one in opened._choose_model(ann, 0, "edit")]]

    replayed, _, failed = (one[opened.message] for one in in_a_thread(told()))
    assert "<span>a b.json: no settings of zs2 in it" in replayed
    assert "<span>edit/scheduler/scheduler_config.json: can" in failed


def test_a_model_is_loaded_once_and_what_follows_waits_for_it(opened: Any) -> None:
    visitor, studio = SimpleNamespace(session_hash="ann"), opened.studio
    second = studio.names[1]
    go, nothing = threading.Event(), [None] * len(opened.panel.inputs)

    def waiting(job: Job) -> Iterator[None]:
        go.wait(60)
        yield

    async def follow() -> tuple[list[Any], Any, Any]:
        studio.worker.submit(Job(waiting))  # of another visitor
        choosing = opened._choose_model(visitor, 0, second)
        seen = [await anext(choosing)]
        again = [one async for one in opened._choose_model(visitor, 0, second)]  # Gradio calls twice
        assert again == [{opened.message: {"__type__": "update"}}]
        replay = asyncio.ensure_future(opened._replay(visitor, "none.json", second, *nothing))
        clip = studio.submit("ann", Job(partial(load_model, studio, name=second)))
        go.set()
        async for one in choosing:
            seen.append(one)
            assert not replay.done()
        return seen, clip, await replay

    seen, clip, replayed = in_a_thread(follow())
    assert "loading edit: " in seen[0][opened.message]
    assert "edit is loaded" in seen[-1][opened.message]
    assert seen[-1][opened.prompt] == "a boat"
    assert seen[-1][opened.panel["lam"]]["value"] == 0.25  # the model's own
    assert "none.json" in replayed[opened.message]
    while not clip.ended:
        time.sleep(0.01)
    assert clip.state == DONE


@pytest.mark.parametrize("first", [0, 3])  # the number of the visitor's last press before
def test_a_clip_begun_while_models_load_is_made(opened: Any, first: int) -> None:
    visitor, studio = SimpleNamespace(session_hash="ann"), opened.studio
    go, loading = threading.Event(), threading.Event()

    def slow(job: Job) -> Iterator[None]:
        go.wait(60)
        yield

    def clip_of_steps(job: Job) -> Iterator[None]:
        while not loading.wait(0.01):
            job.check()
            yield
        job.check()

    async def drain(choosing: Any) -> list[Any]:
        return [one async for one in choosing]

    async def follow() -> tuple[Job, Job, list[Any]]:
        before = studio.submit("ann", Job(slow), first)
        choosing = opened._choose_model(visitor, first, "edit")
        await anext(choosing)
        second = asyncio.ensure_future(drain(opened._choose_model(visitor, first, "source")))
        await asyncio.sleep(0)
        clip = studio.submit("ann", Job(clip_of_steps), first + 1)
        go.set()
        await drain(choosing)
        seen = await second
        loading.set()
        return before, clip, seen

    before, clip, seen = in_a_thread(follow())
    assert before.state == STOPPED  # which was begun before
    assert "source is loaded" in seen[-1][opened.message]
    while not clip.ended:
        time.sleep(0.01)
    assert clip.state == DONE


def test_files_of_a_clip_are_not_shown_beside_the_next_one(opened: Any) -> None:
    visitor, visitors = SimpleNamespace(session_hash="ann"), opened.studio.visitors
    clip = Clip(np.zeros((1, 8, 8, 3), np.uint8), settings={"prompt": "fox", "seed": 0})
    made = (clip, ClipOptions(opened.studio.names[0], "fox", 0, 8, {"attn": "sa", "noise": "iid"}, {}))

    async def keep(then: Callable[[], object]) -> list[Any]:
        keeping = opened._keep(visitor)
        seen = [await anext(keeping)]
        then()
        return [*seen, *[one async for one in keeping]]

    place = folder(opened.root, "ann")
    known = visitors.enter("ann")
    visitors.keep("ann", made)
    assert len(in_a_thread(keep(lambda: None))) == 2
    assert known.made is None
    visitors.keep("ann", made)
    assert len(in_a_thread(keep(lambda: visitors.keep("ann", None)))) == 1  # the next one was begun
    hidden = in_a_thread(keep(lambda: None))  # it was stopped
    assert [one["visible"] for one in hidden[0].values()] == [False, False]
    assert place.exists()
    visitors.keep("ann", made)
    in_a_thread(keep(lambda: opened._leave(visitor)))
    assert not place.exists()


def test_a_failure_before_the_work_is_a_message(opened: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def begin(*values: Any) -> Job:
        raise KeyError("secret")

    work = opened._work(opened.one, begin, "done")

    async def updates() -> list[Any]:
        return [one async for one in work(SimpleNamespace(session_hash="ann"), 1)]

    ((_, text),) = in_a_thread(updates())[0].items()
    assert "this failed (KeyError): the server&#x27;s terminal says more" in text
    assert "secret" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/gradio_api/queue/join", {"content-length": "1000"}, 200),
        ("/gradio_api/queue/join", {"content-length": "2000000"}, 413),
        ("/gradio_api/queue/join", {"transfer-encoding": "chunked"}, 411),
        ("/gradio_api/upload", {"content-length": "2000000"}, 200),
        ("/gradio_api/upload/", {"content-length": "4000000"}, 413),
        ("/gradio_api/upload", {"content-length": "100"}, 507),
        ("/gradio_api/heartbeat/x", {}, 200),
    ],
)
def test_a_request_is_no_larger_than_the_page_needs(
    path: str, headers: dict[str, str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("zs2.app.server", exc_type=ImportError)
    (tmp_path / "visitor").mkdir()
    (tmp_path / "visitor" / "clip.gif").write_bytes(bytes(1000))
    monkeypatch.setattr(server, "FILES_MAX", 1050 if status == 507 else 2**32)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    in_a_thread(server.Guard(app, tmp_path, 2**21)(scope, None, send))
    assert sent[0]["status"] == status
    assert dict(sent[0]["headers"])[b"content-security-policy"].startswith(b"default-src 'self'")


def test_uploads_that_arrive_together_share_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = pytest.importorskip("zs2.app.server", exc_type=ImportError)
    monkeypatch.setattr(server, "FILES_MAX", 1000)
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 60)
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("fails"):
            raise TimeoutError("lost")  # of its own
        await go.wait()
        await send({"type": "http.response.start", "status": 200})

    guard = server.Guard(app, tmp_path, 2**21)

    async def ask(length: int, **more: Any) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", str(length).encode())]
        await guard({"type": "http", "path": "/gradio_api/upload", "headers": headers, **more}, None, send)
        return int(sent[0]["status"])

    async def upload() -> None:
        both = await asyncio.wait([asyncio.ensure_future(ask(600)) for _ in range(2)], timeout=60, return_when=FIRST)
        assert [one.result() for one in both[0]] == [507]
        go.set()
        assert [await one for one in both[1]] == [200]
        with pytest.raises(TimeoutError, match="lost"):
            await ask(600, fails=True)
        assert await ask(1000) == 200
        monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.01)
        go.clear()
        assert await ask(1000) == 408  # one that never ends keeps no room
        go.set()
        monkeypatch.setattr(server, "UPLOAD_SECONDS", 60)
        assert await ask(1000) == 200

    in_a_thread(upload())


def test_an_upload_that_broke_off_leaves_nothing_for_long(tmp_path: Path) -> None:
    server = pytest.importorskip("zs2.app.server", exc_type=ImportError)
    (tmp_path / "visitor").mkdir()
    kept, new, old = tmp_path / "visitor" / "clip.gif", tmp_path / "tmpnew", tmp_path / "tmpold"
    for file, age in ((kept, 1), (new, -60), (old, 1)):
        file.write_bytes(bytes(100))
        last = time.time() - server.UPLOAD_SECONDS - age
        os.utime(file, (last, last))
    assert server.stored(tmp_path) == 200
    assert [file.exists() for file in (kept, new, old)] == [True, True, False]


@pytest.mark.parametrize(("queue", "threads"), [(16, 40), (100, 200)])
def test_all_who_may_wait_are_told_where_they_are(
    queue: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio itself would let those wait, without a word, who are more than its threads."""
    server = pytest.importorskip("zs2.app.server", exc_type=ImportError)
    seen: dict[str, Any] = {}

    def launch(**options: Any) -> tuple[None, str, None]:
        seen.update(options)
        return None, "address", None

    blocks = SimpleNamespace(launch=launch, close=lambda: None)
    monkeypatch.setattr(server, "Page", lambda *_: SimpleNamespace(blocks=blocks))
    studio = SimpleNamespace(limits=Limits(queue=queue))
    assert server.serve(studio, tmp_path, "127.0.0.1", None, None, 2**20)[1] == "address"
    assert (seen["max_threads"], seen["max_file_size"], seen["share"]) == (threads, 2**20, False)
