"""What is behind the page: controls from the tables, limits, the line of jobs, clips, streams, files. No browser."""

from __future__ import annotations

import ast
import base64
import io
import json
import math
import re
import shlex
import shutil
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, NAME, SIDE, Fixture, tiny, write_tiny
from PIL import Image
from safetensors.torch import save_file

from zs2 import ZS2
from zs2.__main__ import main as zs2_command
from zs2.app import making
from zs2.app.__main__ import INSTALL, main, read_visitors
from zs2.app.clip_options import ClipOptions, Limits, title, with_and_without
from zs2.app.controls import controls, defaults, keywords, read_size
from zs2.app.files import KINDS, NOT_HERE, Recorded, folder, remove, write
from zs2.app.film import film
from zs2.app.lines import command_line, python_lines
from zs2.app.making import Budget, load_model, make_clips, make_stream
from zs2.app.studio import Loaded, Studio, Visitors
from zs2.app.texts import figure, message, progress, without_folders
from zs2.app.worker import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Worker
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.locate import FORMER
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.model_names import names_of_paths, shown_names
from zs2.cli.sample_options import parser
from zs2.cli.sample_requests import clip_requests
from zs2.errors import InputError, collected, warn
from zs2.method import FILES, METHOD, NOISE_MODELS, Method, NoiseModel
from zs2.sampling.request import OF_CONTROLNETS, OPTIONS, usual
from zs2.system.stopping import SIGPIPE, Stopped
from zs2.video.clip import Clip
from zs2.video.formats import WRITERS

MODEL = CHECKPOINT.name
OWN = OwnSettings.read(CHECKPOINT)
OWN_KEYWORDS = OWN.request | OWN.method
SMALL = {"frames": 2, "steps": 2, "width": 32, "height": 32}


def clip_options(method: dict[str, Any] | None = None, prompt: str = "fox face", **options: Any) -> ClipOptions:
    chosen = {"attn": "tma", "noise": "dnm"} | (method or {})
    return ClipOptions(MODEL, prompt, 3, 8, chosen, SMALL | options, OWN_KEYWORDS, is_default_model=True)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio([str(CHECKPOINT)], Limits(), {"device": "cpu"}, str(CHECKPOINT))


def ended(job: Job, seconds: float = 60) -> Job:
    """The job, when it has ended."""
    end = time.monotonic() + seconds
    while not job.ended and time.monotonic() < end:
        time.sleep(0.005)
    return job


# --- controls ---------------------------------------------------------------------------------------------------------


def test_every_setting_is_a_control_and_has_the_default_of_the_command_line() -> None:
    found = controls(Limits(), OWN_KEYWORDS)
    names = [one.name for one in found]
    assert sorted(names) == sorted({*METHOD, *OPTIONS} - {*OF_CONTROLNETS, *FILES})
    assert not [one for one in found if "--" in one.help]  # those are words of a command line
    assert next(one for one in found if one.name == "first_frame_noise").help.startswith("of the first frame: ")
    method, options = keywords(found, [one.default for one in found])
    plain = Method(lam=OWN.lam)
    assert Method(**method).settings(25, False) == plain.settings(25, False)
    mine, theirs = clip_options(method, **options), dict(clip_requests({"prompt": "fox face", "seed": [3]}, OWN))
    assert replace(mine, options=options).request() == next(iter(theirs.values()))


def test_controls_of_a_controlnet_show_where_there_is_one() -> None:
    found = controls(Limits(), OWN_KEYWORDS, ["canny", "owner/depth"])
    assert sorted(one.name for one in found) == sorted({*METHOD, *OPTIONS, "controlnet"} - {*FILES})
    of_one = {one.name: one for one in found if one.of_controlnet}
    assert of_one.keys() == {*OF_CONTROLNETS, "controlnet"}
    assert of_one["controlnet"].choices == (("canny", "canny"), ("owner/depth", "owner/depth"))
    _, options = keywords(found, [one.default for one in found])
    assert {name for name in options if name in of_one} == {"controlnet"}  # the others are empty


@pytest.mark.parametrize(
    ("name", "recorded", "shown", "read"),
    [
        ("control_scale", [0.5], "0.5", 0.5),
        ("control_interval", [[0, 0.5]], "0,0.5", (0.0, 0.5)),
        ("control_from", ["canny"], "canny", "canny"),
        ("control_from", ["frames"], "", None),
        ("control_attn", "sa", "sa", "sa"),
        ("control_scale", [0.5, 1], "control_scale has 2 values", None),
    ],
)
def test_a_controlnet_of_a_clip_is_shown(name: str, recorded: Any, shown: str, read: Any) -> None:
    control = next(one for one in controls(Limits(), {}, ["canny"]) if one.name == name)
    if "2 values" in shown:
        with pytest.raises(InputError, match=f"{shown}: this page takes one"):
            control.shown(recorded)
    else:
        assert control.shown(recorded) == shown
        assert control.read(shown) == read


def test_edges_are_a_choice_if_opencv_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, values in ((object(), ["", "canny"]), (None, [""])):
        monkeypatch.setattr("zs2.app.controls.find_spec", lambda name, there=there: there)
        control = next(one for one in controls(Limits(), {}, ["canny"]) if one.name == "control_from")
        assert [value for _, value in control.choices] == values


def test_a_new_noise_model_is_a_choice_without_a_word_here() -> None:
    NOISE_MODELS.add(NoiseModel("mine", "a noise of my own", lambda draws, lam: None, {"lam": 0.5}))
    try:
        noise = next(one for one in controls(Limits(), {}) if one.name == "noise")
        assert ("mine", "mine") in noise.choices
        assert defaults("sa", "mine", {}) == {"lam": 0.5}
    finally:
        NOISE_MODELS.remove("mine")


def test_only_parameters_with_an_effect_count() -> None:
    found = controls(Limits(), {})
    values = {one.name: one.default for one in found} | {"noise": "mixed", "attn": "sa", "lam": 0.3, "alpha": 2}
    method, _ = keywords(found, [values[one.name] for one in found])
    assert method == {"attn": "sa", "noise": "mixed", "alpha": 2}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("motion", "12", "motion: '12': expected two numbers"),
        ("anchors", "0,x", "anchors: '0,x': expected a number, or several"),
        ("guidance_interval", "a,b", "guidance_interval: 'a,b': expected two numbers"),
    ],
)
def test_a_text_that_is_no_number_is_refused_in_a_line(name: str, value: str, words: str) -> None:
    control = next(one for one in controls(Limits(), {}) if one.name == name)
    with pytest.raises(InputError, match=f"^{re.escape(words)}"):
        control.read(value)


def test_the_slider_of_a_parameter_has_the_ends_of_its_check() -> None:
    for control in controls(Limits(), {}):
        if control.of_method and control.low is not None and control.high is not None:
            Method(**{control.name: control.low})
            Method(**{control.name: control.high})
            with pytest.raises(InputError):
                Method(**{control.name: math.nextafter(control.high, math.inf)})


def test_several_numbers_where_the_page_has_one_are_refused() -> None:
    found = {one.name: one for one in controls(Limits(), {})}
    with pytest.raises(InputError, match="mu has 2 values: this page takes one"):
        found["mu"].shown((0.9, 0.5))
    assert found["mu_end"].shown((0.9, 0.5)) == "0.9,0.5"
    assert found["mu_end"].read("0.9,0.5") == (0.9, 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 9}, "frames is 9: this page takes at most 8 (--max-frames of the server)"),
        ({"steps": 100}, "steps is 100: this page takes at most 30 (--max-steps of the server)"),
        ({"width": 512, "height": 64}, "width is 512: this page takes at most 128 (--max-size of the server)"),
        ({"height": 129}, "height is 129: this page takes at most 128 (--max-size of the server)"),
        ({"negative_prompt": "x" * 2001}, "the negative prompt has 2001 characters: this page takes at most 2000"),
    ],
)
def test_a_larger_clip_than_the_page_allows_is_refused(options: dict[str, Any], words: str) -> None:
    limits = Limits(frames=8, steps=30, size=128)
    limits.check("fox face", {"frames": 8, "steps": 30, "width": 128, "height": 64})
    with pytest.raises(InputError, match=re.escape(words)):
        limits.check("fox face", options)


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(frames=2), "frames is 8"), (Limits(steps=2), "steps is "), (Limits(size=8), f"width is {SIDE}")],
)
@pytest.mark.long
def test_what_a_visitor_leaves_to_the_checkpoint_is_limited_too(
    studio: Studio, limits: Limits, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "limits", limits)
    one = replace(clip_options(), options={})
    job = ended(studio.submit("a", Job(partial(make_clips, studio, asked=[one], titles=[""], measured=False))))
    assert job.state == FAILED
    assert job.message.startswith(words)


# --- lines to copy ----------------------------------------------------------------------------------------------------

CLIPS = [
    clip_options(),
    clip_options({"attn": "sa", "noise": "iid"}),
    clip_options({"attn": "tma", "mu": 0.5, "noise": "freq", "lam": 0.2, "lam_high": 1.25, "cutoff": 0.5}),
    clip_options({"noise": "warp", "motion": (-3.5, 0.0), "zoom": 1.1, "rotate": -4.0}),
    clip_options({"attn": "extended", "anchors": (0, 4), "mu": None} | {}),
    clip_options(prompt='it\'s a "fox" $HOME `x`; <script>', negative_prompt="-- 'blue'", guidance=2.25),
    clip_options(sampler="dpm++", deep_cache=2, guidance_interval=(0.25, 1.0), width=32, height=64, clip_skip=1),
    clip_options(prompt="--help"),
    clip_options(prompt="-1"),
    clip_options(spacing="trailing", final_alpha="one", prompt_syntax="plain", zero_snr=False),
]
CLIPS[4] = replace(CLIPS[4], method={name: value for name, value in CLIPS[4].method.items() if value is not None})


@pytest.mark.parametrize("clip", CLIPS, ids=range(len(CLIPS)))
def test_the_command_line_makes_the_same_clip(clip: ClipOptions) -> None:
    words = shlex.split(command_line(clip))
    assert words[:2] == ["zs2", "sample"]
    options = vars(parser().parse_args(words[2:]))
    ((_, request),) = clip_requests(options, OWN)
    assert request == clip.request()
    lam = {"lam": options.get("lam", OWN.lam)}
    method = Method(**lam | {name: options[name] for name in METHOD if name in options})
    mine = Method(**{"lam": OWN.lam} | dict(clip.method))
    assert method.settings(50, False) == mine.settings(50, False)


@pytest.mark.parametrize("clip", CLIPS, ids=range(len(CLIPS)))
def test_the_python_lines_make_the_same_clip(clip: ClipOptions) -> None:
    calls = [node for node in ast.walk(ast.parse(python_lines(clip))) if isinstance(node, ast.Call)]
    load, make = (
        next(call for call in calls if ast.unparse(call.func) == name) for name in ("ZS2.from_pretrained", "model")
    )
    method = {keyword.arg: ast.literal_eval(keyword.value) for keyword in load.keywords}
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in make.keywords}
    assert ast.literal_eval(load.args[0]) == MODEL
    assert ast.literal_eval(make.args[0]) == clip.prompt
    assert replace(clip, options={}, seed=0).request(**options) == clip.request()
    mine, theirs = (Method(**{"lam": OWN.lam} | dict(one)) for one in (clip.method, method))
    assert mine.settings(50, False) == theirs.settings(50, False)


def test_with_and_without_each_part() -> None:
    four = with_and_without({"attn": "tma", "mu": 0.9, "noise": "mixed", "alpha": 2.0})
    assert four == [
        {"attn": "tma", "mu": 0.9, "noise": "mixed", "alpha": 2.0},
        {"attn": "tma", "mu": 0.9, "noise": "iid"},
        {"attn": "sa", "noise": "mixed", "alpha": 2.0},
        {"attn": "sa", "noise": "iid"},
    ]
    of_baseline = with_and_without({"attn": "sa", "noise": "iid"})
    assert [(one["noise"], one["attn"]) for one in of_baseline] == [
        ("dnm", "tma"), ("iid", "tma"), ("dnm", "sa"), ("iid", "sa"),
    ]  # fmt: skip
    assert title(clip_options({"lam": 0.2, "mu": 0.5}, frames=8, steps=25)) == "dnm λ 0.2 · tma μ 0.5"


def test_a_picture_is_frame_0_and_goes_by_its_name(studio: Studio, tmp_path: Path) -> None:
    picture = np.full((40, 40, 3), (200, 60, 20), np.uint8)
    file = tmp_path / "my fox.png"
    Image.fromarray(picture).save(file)
    one = clip_options(first_frame=str(file), **usual({"first_frame": file}))
    assert "--first-frame 'my fox.png'" in command_line(one)
    assert "first_frame='my fox.png'" in python_lines(one)
    assert "guidance" not in command_line(one)  # which has another default with a first frame
    work = partial(make_clips, studio, asked=[one], titles=["clip"], measured=False)
    job = ended(studio.submit("me", Job(work)))
    assert (job.state, job.message) == (DONE, "")
    expected = studio.loaded(MODEL).model("fox face", first_frame=picture, seed=3, **SMALL)
    np.testing.assert_array_equal(job.shown.clips[0].frames, expected.frames)
    paths = write(job.shown.clips[0], tmp_path / "root", "me")
    (note,) = Recorded.of(str(paths[0]), studio, MODEL).notes
    assert note == "made with a first frame: drop the same one, or the clip will differ"
    assert Recorded.of(str(paths[0]), studio, MODEL, {"first_frame": str(file)}).notes == ()
    assert without_folders(f"{paths[0]}: none", {str(tmp_path): ""}) == "fox-face-s3.gif: none"


def test_an_input_that_is_not_that_of_a_replayed_clip_is_a_note(studio: Studio, tmp_path: Path) -> None:
    """The settings are filled in: the visitor removes the input, or drops the right one."""
    files = [str(tmp_path / f"{name}.webp") for name in ("walk", "run")]
    for i, file in enumerate(files):
        Clip(np.full((2, 32, 32, 3), 99 * i, np.uint8)).save(file, json=False)  # fewer frames than the clip
    model, file = studio.loaded(MODEL).model, str(tmp_path / "clip.json")

    def note(recorded: dict[str, Any], dropped: dict[str, str], *words: str) -> None:
        request = clip_options(**{"frames": 2 if recorded else 4, **recorded}).request()
        Path(file).write_text(json.dumps(model.settings(model.plan(request), 8)))
        found = Recorded.of(file, studio, MODEL, dropped)
        assert (found.prompt, found.options["frames"]) == ("fox face", request.frames)
        assert found.notes == tuple(f"{one}, or the clip will differ" for one in words)

    without = [f"made without a {one}: remove the one that is dropped" for one in ("source", "first frame")]
    note({}, {"source": files[0]}, without[0])
    note({}, dict.fromkeys(("first_frame", "source"), files[0]), *without)
    walk = {"source": files[0], "strength": 0.5}
    note(walk, {"source": files[0]})
    note(walk, {"source": files[1]}, "made with another source: drop that one")
    note(walk, {"first_frame": files[0]}, "made with a source: drop the same one", without[1])


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A page with a tiny model and its ControlNet."""
    place = tmp_path_factory.mktemp("models")
    network = tiny.write_control(place / "control", "sd", Fixture("controlnet").weights("sd"))
    return Studio([str(write_tiny(place / "sd", "sd"))], Limits(), {"device": "cpu"}, networks=[str(network)])


def test_a_clip_by_a_controlnet(steered: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hints = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    Clip(hints).save(tmp_path / "my walk.webp", sheet=False, json=False)
    model, network = steered.names[0], steered.networks[0]
    loaded = steered.loaded(model)
    more = {"control": str(tmp_path / "my walk.webp"), "control_scale": 2.0, "control_interval": (0.0, 0.5)}
    small = {"frames": 2, "steps": 2, "width": 64, "height": 64}
    one = ClipOptions(model, "fox", 0, 8, {"attn": "tma", "noise": "dnm"}, small | more, controlnet=network)
    work = partial(make_clips, steered, asked=[one], titles=["clip"], measured=False)
    job = ended(steered.submit("me", Job(work)))
    assert (job.state, job.message) == (DONE, "")
    other = ZS2.from_pretrained(loaded.place, device="cpu", controlnet=loaded.networks[network])
    expected = other("fox", **small, control=[hints], control_scale=2.0, control_interval=(0.0, 0.5))
    clip = job.shown.clips[0]
    np.testing.assert_array_equal(clip.frames, expected.frames)
    assert clip.settings["controlnet"] == expected.settings["controlnet"]
    assert steered.loaded(model).model.image_model.controls == ()  # clips without a control load none

    monkeypatch.chdir(tmp_path)
    options = vars(parser().parse_args(shlex.split(command_line(one))[2:]))
    assert (options["model"], options["controlnet"], options["control"]) == (model, [network], ["my walk.webp"])
    ((_, request),) = clip_requests(options, OwnSettings())
    mine = one.request()
    assert {name: request.stored(name) for name in OPTIONS} == {name: mine.stored(name) for name in OPTIONS}
    dashed = replace(one, options=one.options | {"control": str(tmp_path / "-my walk.webp")})
    options = vars(parser().parse_args(shlex.split(command_line(dashed))[2:]))
    assert options["control"] == ["./-my walk.webp"]
    assert f"controlnet={network!r}" in python_lines(one)
    assert "control='my walk.webp'" in python_lines(one)
    paths = write(clip, tmp_path / "root", "me")
    found = Recorded.of(str(paths[0]), steered, model, {"control": "my walk.webp"})
    assert found.notes == ("made with a ControlNet: expected the same here, or the clip will differ",)
    assert found.options["control_scale"] == [2.0]


@pytest.mark.long
def test_clips_of_a_model_with_a_base_are_measured_by_the_bases_clip(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "zs2.json").write_text(json.dumps({"base": CHECKPOINT.name}))
    mine, base = Loaded(str(tmp_path), studio.loaded(MODEL).model), studio.loaded(MODEL)
    assert mine.scorer is not None
    assert mine.scorer.digests == base.scorer.digests


# --- paths of the server ----------------------------------------------------------------------------------------------


def test_models_go_by_names_without_the_folders_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("my models/fox", "other/fox", "other/fox (2)"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    one, two, three = f"{tmp_path}/my models/fox/", "other/fox", "other/fox (2)"
    assert shown_names([one, two, three, one, "sd15", "owner/name@v1", DEFAULT_MODEL, "other/../other/."]) == {
        "fox": one, "fox (2)": two, "fox (2) (2)": three, "sd15": "sd15", "owner/name@v1": "owner/name@v1",
        NAME: DEFAULT_MODEL, "other": "other/../other/.",
    }  # fmt: skip
    page = Studio([one, two], Limits(), {}, networks=["other/fox (2)"])
    assert (page.names, page.networks) == (("fox", "fox (2)"), ("fox (2)",))
    for name in (one, two, "none"):
        with pytest.raises(InputError, match=r"expected one of fox, fox \(2\)(; did you mean|$)") as refused:
            page.check(name)
        assert "other" not in str(refused.value).partition("expected")[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{one}/vae/config.json: no such file", "fox/vae/config.json: no such file"),
        ("'{one}' needs the model 'base', and there is no folder '{folder}/my models/base'",
         "'fox' needs the model 'base', and there is no folder 'base'"),
        ("other/fox/unet: wrong, an/other/fox, other/fox-2 right", "bear/unet: wrong, an/other/fox, other/fox-2 right"),
        ("no such model other/fox.", "no such model bear."),
        ("(No such file: '/home/me/.cache/hub/config.json')", "(No such file: 'config.json')"),
        ("{one}x/vae", "vae"),
        ("a fox and/or a bear, 24000/1001, u + g·(c − u) / 2, https://example.com/a/b, owner/name, --x a/b", None),
    ],
)  # fmt: skip
def test_a_text_for_visitors_names_no_folder(text: str, expected: str | None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("my models/fox", "other/fox"):
        (tmp_path / place).mkdir(parents=True)
    one = f"{tmp_path}/my models/fox"
    names = names_of_paths([("fox", one), ("bear", "other/fox")])
    shown = without_folders(text.format(one=one, folder=tmp_path), names)
    assert shown == (text if expected is None else expected)


def test_a_model_in_the_folder_of_another_leaves_it_its_name(tmp_path: Path) -> None:
    (tmp_path / "fox" / "canny").mkdir(parents=True)
    fox, canny = str(tmp_path / "fox"), str(tmp_path / "fox" / "canny")
    for page in (Studio([fox], Limits(), {}, networks=[canny]), Studio([canny], Limits(), {}, networks=[fox])):
        told = without_folders(f"{fox}: no UNet; {canny}/config.json: none", page.names_of_paths)
        assert told == "fox: no UNet; canny/config.json: none"


def test_a_model_that_can_not_be_loaded_is_told_without_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "my models" / "broken"
    shutil.copytree(CHECKPOINT, place)
    (place / "scheduler" / "scheduler_config.json").write_text("{")
    page = Studio([str(place)], Limits(), {"device": "cpu"})
    job = ended(page.submit("me", Job(partial(load_model, page, name="broken"))))
    assert job.state == FAILED
    assert str(place) in job.message  # for the owner of the server
    told = message(job.message, (), page.names_of_paths, wrong=True)
    assert "broken/scheduler/scheduler_config.json: can&#x27;t be read as JSON" in told
    assert str(tmp_path) not in told


# --- the line of jobs -------------------------------------------------------------------------------------------------


def test_jobs_are_done_in_turn_and_endless_work_lets_others_go_first() -> None:
    worker, log, begun = Worker(8), [], threading.Event()

    def endless(job: Job) -> Generator[None]:
        while True:
            log.append("endless")
            begun.set()
            job.check()
            time.sleep(0.002)
            yield

    def short(job: Job) -> Generator[None]:
        log.append("short")
        return
        yield

    first = worker.submit(Job(endless))
    begun.wait(5)
    jobs = [worker.submit(Job(short, 1)) for _ in range(3)]
    assert [ended(job).state for job in jobs] == [DONE] * 3
    assert first.state == RUNNING
    worker.stop(first)
    assert ended(first).state == STOPPED
    assert log.count("short") == 3


def test_a_waiting_job_is_stopped_at_once_and_a_running_one_at_its_next_check() -> None:
    worker, go = Worker(2), threading.Event()

    def work(job: Job) -> Generator[None]:
        go.wait(5)
        job.check()
        yield

    running = worker.submit(Job(work, 4))
    while running.state == WAITING:
        time.sleep(0.001)
    waiting, other = worker.submit(Job(work, 2)), worker.submit(Job(work, 2))
    assert (worker.ahead(waiting), worker.ahead(other)) == (1, 2)
    with pytest.raises(InputError, match="2 visitors wait already: try again"):
        worker.submit(Job(work))
    worker.stop(waiting)
    assert waiting.state == STOPPED
    assert worker.ahead(other) == 1
    worker.stop(running)
    go.set()
    assert ended(running).state == STOPPED
    assert ended(other).state == DONE


def test_a_closed_worker_has_ended_all_jobs_and_takes_no_more() -> None:
    worker, log = Worker(2), []

    def endless(job: Job) -> Generator[None]:
        while True:
            log.append("")
            yield

    running = worker.submit(Job(endless))
    while not log:
        time.sleep(0.001)
    waiting = worker.submit(Job(endless))
    worker.close()
    assert (running.state, waiting.state) == (STOPPED, STOPPED)
    done = len(log)
    time.sleep(0.02)
    assert len(log) == done
    with pytest.raises(InputError, match="the server is ending"):
        worker.submit(Job(endless))


@pytest.mark.parametrize("parts", [1, 4])
def test_the_wait_is_estimated_from_all_parts_of_the_last_job(parts: int) -> None:
    worker = Worker(2)

    def work(job: Job) -> Generator[None]:
        for part in range(parts):
            time.sleep(0.02)
            if part + 1 < parts:
                yield

    ended(worker.submit(Job(work, parts)))
    deadline = time.monotonic() + 60
    while not worker.rate and time.monotonic() < deadline:
        time.sleep(0.001)
    assert worker.rate >= 0.02


def test_a_failure_is_a_line_for_its_visitor_and_nobody_elses(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker(4)

    def wrong(error: Exception, job: Job) -> Generator[None]:
        raise error
        yield

    def right(job: Job) -> Generator[None]:
        yield

    jobs = [
        Job(partial(wrong, InputError("frames is 0:\nexpected more"))),
        Job(partial(wrong, KeyError("secret"))),
        Job(right),
    ]
    for job in jobs:
        ended(worker.submit(job))
    assert [job.state for job in jobs] == [FAILED, FAILED, DONE]
    assert jobs[0].message == "frames is 0: expected more"
    assert jobs[1].message == "this failed (KeyError): the server's terminal says more"
    assert "secret" in capsys.readouterr().out


def test_previews_keep_to_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent = [0.0], 0.0
    monkeypatch.setattr("zs2.app.making.time.monotonic", lambda: now[0])
    budget = Budget()
    for _ in range(1000):
        now[0] += 0.01  # a step
        if budget.allows():
            now[0] += 0.02  # a preview that takes longer
            spent += 0.02
            budget.spent(0.02)
    assert 0.04 < spent / now[0] <= 0.05


def test_a_terminal_that_nobody_reads_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `zs2 app | head`: what is shown of a failure raises in the worker's thread."""

    def unread(*lines: str, **how: Any) -> None:
        raise Stopped(SIGPIPE)

    def wrong(job: Job) -> Generator[None]:
        raise KeyError
        yield

    def right(job: Job) -> Generator[None]:
        yield

    monkeypatch.setattr("zs2.app.worker.show", unread)
    worker = Worker(4)
    assert [ended(worker.submit(Job(work))).state for work in (wrong, right)] == [FAILED, DONE]


# --- visitors ---------------------------------------------------------------------------------------------------------


def until_stopped(job: Job) -> Generator[None]:
    """Work without end."""
    while True:
        job.check()
        time.sleep(0.002)
        yield


@pytest.fixture
def idle() -> Studio:
    """A page whose models are never loaded."""
    return Studio(["none"], Limits(), {})


def test_a_stopped_press_is_over_wherever_its_work_is(idle: Studio) -> None:
    idle.stop("ann", 1)  # before its work came
    assert idle.submit("ann", Job(until_stopped), 1).state == STOPPED
    second = idle.submit("ann", Job(until_stopped), 2)
    idle.stop("ann", 1)  # that of the press before, which came late
    idle.stop("ann", 0)  # of what was chosen before any press
    other = idle.submit("bob", Job(until_stopped), 1)
    assert not ended(second, 0.05).ended
    idle.stop("ann", 2)
    assert ended(second).state == STOPPED
    assert not other.ended
    idle.forget("bob")
    assert ended(other).state == STOPPED


def test_work_of_an_earlier_press_that_comes_later_is_stopped(idle: Studio) -> None:
    """Gradio may begin the events of two buttons in any order."""
    later = idle.submit("ann", Job(until_stopped), 2)
    assert idle.submit("ann", Job(until_stopped), 1).state == STOPPED
    assert not ended(later, 0.05).ended
    third = idle.submit("ann", Job(until_stopped), 3)
    assert ended(later).state == STOPPED
    idle.stop("ann")
    assert ended(third).state == STOPPED


def test_what_ends_after_a_visitor_left_does_not_bring_them_back(idle: Studio) -> None:
    visitors = idle.visitors
    visitors.begin(noise="dnm")
    assert [visitors.changed("ann", noise=noise) for noise in ("dnm", "iid", "iid")] == [False, True, False]
    visitors.note("ann", noise="mixed")
    assert not visitors.changed("ann", noise="mixed")
    job = idle.submit("ann", Job(until_stopped), 1)
    idle.forget("ann")
    visitors.note("ann", noise="iid")
    visitors.keep("ann", (CLIP, clip_options()))
    idle.leave("ann", job)
    assert len(visitors) == 0


def test_who_is_silent_longest_is_forgotten_first_but_not_who_waits_for_a_clip() -> None:
    studio = Studio(["none"], Limits(), {})
    visitors = studio.visitors = Visitors(most=3)
    job = studio.submit("ann", Job(until_stopped), 1)
    for name in ("bob", "cid", "bob", "dan", "eve"):
        visitors.enter(name)
    assert [name for name in ("ann", "bob", "cid", "dan", "eve") if visitors.get(name)] == ["ann", "dan", "eve"]
    assert not job.ended
    studio.forget("ann")


CLIP = Clip(np.zeros((1, 8, 8, 3), np.uint8))


def test_clips_that_nobody_asks_for_are_dropped() -> None:
    visitors, made = Visitors(bytes_most=2 * CLIP.frames.nbytes), (CLIP, clip_options())
    for name in ("ann", "bob", "cid"):
        visitors.enter(name)
        visitors.keep(name, made)
    assert [visitors.enter(name).made for name in ("ann", "bob", "cid")] == [None, made, made]
    visitors.keep("bob", None)
    assert visitors.enter("bob").made is None
    writing = visitors.enter("cid")
    writing.writing = writing.made
    for name in ("ann", "bob", "dan", "eve"):
        visitors.enter(name)
        visitors.keep(name, made)
    assert writing.made is made  # its files are being written


def test_warnings_of_visitors_at_the_same_time_go_to_each() -> None:
    barrier, found = threading.Barrier(2), {}

    def work(name: str) -> None:
        with collected() as notes:
            barrier.wait(60)
            warn(f"of {name}")
            barrier.wait(60)
            warn(f"of {name}")
        found[name] = notes

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"ann": ["of ann"], "bob": ["of bob"]}
    with pytest.warns(UserWarning, match="of nobody"):
        warn("of nobody")


# --- clips and streams ------------------------------------------------------------------------------------------------


def frames_of(html: str) -> np.ndarray:
    """The frames of a film, read from its HTML."""
    count, columns = (int(re.search(rf'data-{name}="(\d+)"', html)[1]) for name in ("frames", "columns"))
    width, height = (int(re.search(rf' {name}="(\d+)"', html)[1]) for name in ("width", "height"))
    address = re.search(r'src="data:image/webp;base64,([^"]*)"', html)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address))).convert("RGB"))
    places = [divmod(i, columns) for i in range(count)]
    return np.stack([picture[y * height :][:height, x * width :][:, :width] for y, x in places])


@pytest.mark.parametrize("shape", [(1, 5, 9), (8, 12, 12), (13, 7, 30)])
def test_a_film_holds_its_frames(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    html = film(frames, 8, '"><script>', "k")
    assert "<script>" not in html
    np.testing.assert_array_equal(frames_of(html), frames)


def test_clips_of_the_page_are_those_of_a_call(studio: Studio) -> None:
    asked = [clip_options({"mu": 0.5}), clip_options({"attn": "sa", "noise": "iid"}, guidance=1.0)]
    steps = []

    class Noting(Job):
        def publish(self, shown: Any) -> None:
            super().publish(shown)
            steps.append((len(shown.clips), shown.step, bool(shown.films[len(shown.clips) - (len(shown.clips) == 2)])))

    work = partial(make_clips, studio, asked=asked, titles=["left", "right"], measured=True)
    job = ended(studio.submit("me", Noting(work, 8)))
    assert (job.state, job.message) == (DONE, "")
    assert steps[:2] == [(0, 1, True), (0, 2, True)]  # there is a preview after the first step
    for clip, one, html in zip(job.shown.clips, asked, job.shown.films, strict=True):
        model = studio.loaded(MODEL).model.variant(**one.method)
        expected = model("fox face", seed=3, **one.options)
        np.testing.assert_array_equal(clip.frames, expected.frames)
        assert clip.settings == expected.settings
        np.testing.assert_array_equal(frames_of(html), expected.frames)
    assert re.fullmatch(r"left\nmotion 0\.\d{3}, identity [01]\.\d{3}", job.shown.captions[0])
    assert any("sampling starts from pure noise" in note for note in job.shown.notes)


def test_a_preview_is_made_when_the_page_has_taken_the_last_one(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "allows", lambda self: True)
    films = []

    class Noting(Job):
        def publish(self, shown: Any) -> None:
            super().publish(shown)
            films.append(shown.films[0])
            if shown.step == 3:
                self.seen = self.version

    work = partial(make_clips, studio, asked=[clip_options(steps=5)], titles=["clip"], measured=False)
    assert ended(studio.submit("me", Noting(work))).state == DONE
    found = [int(re.search(r"preview after step (\d)", film)[1]) for film in films[:-1]]
    assert found == [1, 1, 1, 4, 4]


def test_the_time_left_counts_only_steps_that_are_done(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source leaves out the first steps. Here the clock moves by a second a step."""
    clock, lefts = [0.0], []
    monkeypatch.setattr(making, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Noting(Job):
        def check(self) -> None:
            clock[0] += 1

        def publish(self, shown: Any) -> None:
            super().publish(shown)
            lefts.append(shown.left)

    one = clip_options(source=np.full((8, 8, 3), 200, np.uint8), strength=0.5, steps=4)
    job = Noting(partial(make_clips, studio, asked=[one], titles=[""], measured=False), 1)
    assert not job.go_on()
    assert (job.state, job.message, lefts[:2]) == (DONE, "", [1.0, 0.0])


def test_a_clip_is_stopped_within_a_step(studio: Studio) -> None:
    work = partial(make_clips, studio, asked=[clip_options(steps=50)], titles=["clip"], measured=False)
    job = studio.submit("me", Job(work, 100))
    while job.version == 0:
        time.sleep(0.001)
    step = job.shown.step
    studio.stop("me")
    assert ended(job).state == STOPPED
    assert job.shown.step <= step + 1


def test_a_clip_is_stopped_while_it_is_decoded(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(making, "at_once", lambda *_: 1)

    def decode(plan: Any, latents: torch.Tensor) -> np.ndarray:
        decoded.append(len(latents))
        job.stop()
        return np.zeros((len(latents), 8, 8, 3), np.uint8)

    monkeypatch.setattr(making, "decode_frames", decode)
    job = Job(partial(make_clips, studio, asked=[clip_options()], titles=["clip"], measured=False))
    assert not job.go_on()
    assert (job.state, job.message, decoded) == (STOPPED, "", [1])


def test_warnings_of_all_clips_side_by_side_are_shown(studio: Studio) -> None:
    asked = [clip_options(steps=1, deep_cache=2), clip_options(steps=1, strength=0.5)]
    job = Job(partial(make_clips, studio, asked=asked, titles=["left", "right"], measured=False))
    while job.go_on():
        pass
    assert (job.state, job.message) == (DONE, "")
    for words in ("deep_cache has no effect on a single step", "strength has no effect without source"):
        assert words in job.shown.notes


def test_a_stream_goes_on_without_end_no_faster_than_it_is_seen(studio: Studio) -> None:
    one = replace(clip_options({"attn": "sa"}, steps=1), fps=30)
    job = studio.submit("me", Job(partial(make_stream, studio, one=one)))
    parts = []
    while len(parts) < 2 and not job.ended:
        if job.version != job.seen:
            parts.append(frames_of(job.shown.films[0]))
            time.sleep(0.2)  # no part is lost while the page is slow
            job.seen += 1
        time.sleep(0.001)
    studio.stop("me")
    assert ended(job).state == STOPPED
    model = studio.loaded(MODEL).model.variant(attn="sa")
    size = {"steps": 1, "width": 32, "height": 32}
    expected = [
        frame
        for _, frame in zip(range(16), model.stream("fox face", frames=None, seed=3, chunk=8, **size), strict=False)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_previews_look_like_what_the_vae_decodes(studio: Studio) -> None:
    loaded = studio.loaded(MODEL)
    latents = loaded.model.latents("fox face", seed=1, frames=2, steps=4)
    exact = torch.from_numpy(loaded.model.decode(latents)).permute(0, 3, 1, 2).float()
    mine = torch.from_numpy(loaded.preview(latents)).permute(0, 3, 1, 2).float()
    exact = torch.nn.functional.adaptive_avg_pool2d(exact, mine.shape[-2:])
    psnr = 10 * math.log10(255**2 / (mine - exact).square().mean().item())
    assert psnr > 18  # that of the mean colour alone is below
    flat = exact.mean(dim=(0, 2, 3), keepdim=True).expand_as(exact)
    assert psnr > 10 * math.log10(255**2 / (flat - exact).square().mean().item()) + 3


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_clip_are_replayed(studio: Studio, tmp_path: Path) -> None:
    one = clip_options({"attn": "tma", "mu": 0.5, "noise": "mixed", "alpha": 2.0}, guidance_interval=(0.0, 0.5))
    studio.loaded(MODEL)
    work = partial(make_clips, studio, asked=[one], titles=["clip"], measured=False)
    job = ended(studio.submit("../me", Job(work)))
    paths = write(job.shown.clips[0], tmp_path / "root", "../me")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert [Path(path).name.removeprefix("fox-face-s3") for path in paths] == list(KINDS.values())
    for path in paths:
        found = Recorded.of(path, studio, MODEL)
        options = found.options | read_size(found.size)
        again = ClipOptions(MODEL, found.prompt, found.seed, found.fps, found.method, options)
        model = studio.loaded(MODEL).model.variant(**again.method)
        assert model.settings(model.plan(again.request()), again.fps) == job.shown.clips[0].settings
        assert found.notes == ()
        assert str(CHECKPOINT.parent).encode() not in Path(path).read_bytes()
    settings = json.loads(Path(paths[-1]).read_text())
    Path(paths[-1]).write_text(json.dumps(settings | {"weights": {"unet": "0"}, "model": "other"}))
    assert Recorded.of(paths[-1], studio, MODEL).notes == (
        "made with other weights, those of other: the clip will differ",
    )
    for former, commit in FORMER.items():
        Path(paths[-1]).write_text(json.dumps(settings | {"weights": {"unet": "0"}, "model": former}))
        assert f"will differ; commit {commit} is the last that has it" in Recorded.of(paths[-1], studio, MODEL).notes[0]
    Path(paths[-1]).write_text(json.dumps(settings | {"fps": 50}))
    found = Recorded.of(paths[-1], studio, MODEL)
    assert (found.fps, found.notes) == (30, ("50 frames per second: this page has whole numbers up to 30",))
    Path(paths[-1]).write_text(json.dumps(settings | {"frames": 65}))
    with pytest.raises(InputError, match="frames is 65: this page takes at most 64"):
        Recorded.of(paths[-1], studio, MODEL)
    Path(paths[-1]).write_text(json.dumps(settings | {"noise": None, "lam": None, "latents": "ab" * 32, "part_of": 64}))
    with pytest.raises(InputError, match="--latents LATENTS"):
        Recorded.of(paths[-1], studio, MODEL)
    Path(paths[-1]).write_text(json.dumps(settings | {"noise": "loop", "lam": 0.5, "part_of": "x" * 2000}))
    with pytest.raises(InputError) as long:
        Recorded.of(paths[-1], studio, MODEL)
    assert len(str(long.value)) < 500
    Path(paths[-1]).write_text(json.dumps(settings | {"noise": "loop", "lam": 0.5, "part_of": 64}))
    with pytest.raises(InputError, match=r"the beginning of one of 64 frames.* `zs2 sample --replay FILE` makes it"):
        Recorded.of(paths[-1], studio, MODEL)


@pytest.mark.parametrize("name", NOT_HERE)
def test_a_clip_of_a_file_that_the_page_does_not_take_is_answered_by_the_command(
    name: str, studio: Studio, tmp_path: Path
) -> None:
    """Which makes the clip again."""
    model, numbers, clip = studio.loaded(MODEL).model, tmp_path / name, tmp_path / "clip.webp"
    tensor = torch.full({"latents": (2, 16, 4, 4), "flow": (2, 4, 4)}[name], 0.3)
    save_file({name: tensor}, numbers)
    if name == "latents":
        made = model("fox face", latents=tensor, **SMALL)
    else:
        made = model.variant(noise="warp", **{name: tensor})("fox face", **SMALL)
    made.save(clip)
    with pytest.raises(InputError, match=f"^this clip was made with a {name} file: this page takes none; ") as error:
        Recorded.of(str(clip), studio, MODEL)
    assert "replay(" not in str(error.value)
    (line,) = re.findall("`zs2 (sample .*)`", str(error.value))
    words = line.replace("FILE", str(clip)).replace(name.upper(), str(numbers)).split()
    assert (
        zs2_command([*words, "--model", str(CHECKPOINT), "--device", "cpu", "--out", str(tmp_path / "again.webp")]) == 0
    )
    assert (tmp_path / "again.webp").read_bytes() == clip.read_bytes()


def test_a_file_of_any_settings_is_replayed_or_refused_in_words(studio: Studio, tmp_path: Path) -> None:
    model, file = studio.loaded(MODEL).model, tmp_path / "clip.json"
    settings = model.settings(model.plan(clip_options().request()), Fraction(24000, 1001))
    file.write_text(json.dumps(settings))
    assert Recorded.of(str(file), studio, MODEL).notes == (
        "23.976 frames per second: this page has whole numbers up to 30",
    )
    shown = controls(studio.limits, {}, ["network"])
    for name in settings:
        for value in (None, True, -1, 0.5, 10**400, "", "9", [], [None], {"0": "a"}):
            file.write_text(json.dumps(settings | {name: value}))
            try:
                found = Recorded.of(str(file), studio, MODEL)
            except InputError:
                continue
            values = {**found.method, **found.options}
            assert json.dumps([one.shown(values.get(one.name)) for one in shown])
            assert (type(found.seed), type(found.prompt), 1 <= found.fps <= 30) == (int, str, True)
            with collected():
                ClipOptions(MODEL, found.prompt, found.seed, found.fps, found.method, found.options).request()


def test_a_visitor_may_leave_while_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gif = WRITERS[".gif"]

    def leave_first(*args: Any) -> None:
        remove(tmp_path, "me")
        write_gif(*args)

    monkeypatch.setitem(WRITERS, ".gif", leave_first)
    assert write(Clip(np.zeros((2, 8, 8, 3), np.uint8)), tmp_path, "me") == [None] * len(KINDS)
    assert not folder(tmp_path, "me").exists()


def test_a_format_that_can_not_hold_a_clip_is_left_out(tmp_path: Path) -> None:
    paths = write(Clip(np.zeros((2, 5, 5, 3), np.uint8)), tmp_path, "me")
    assert [path is None for path in paths] == [False, False, True, False, False]  # MP4 needs an even size


@pytest.mark.parametrize(
    "html", [figure("<b>film</b>", "<script>"), message("<script>", ["<script>"], {}), progress("<script>")]
)
def test_texts_are_escaped(html: str) -> None:
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ([], INSTALL),
        (["--max-frames", "0"], "--max-frames is 0: expected at least 1"),
        (["--port", "70000"], "--port is 70000: expected from 1 to 65535"),
        (["--model", "a", "--models", "b"], "--model and --models are given: expected one of them"),
        (["--auth", "nowhere"], "--auth nowhere: can't be read"),
        (["--share"], "unrecognized arguments: --share"),
        (["--host", ""], "argument --host: '' is empty: expected NAME"),
        (["--models", "sd15", ""], "argument --models: '' is empty: expected MODEL"),
        (["--controls", ""], "argument --controls: '' is empty: expected MODEL"),
    ],
)
def test_wrong_options_are_one_line(
    line: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zs2.app.__main__.find_spec", lambda name: None)
    try:
        status = main(line)
    except SystemExit as error:
        status = error.code
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith(f"zs2: error: {words}")
    assert len(err.splitlines()) == 1


def test_a_file_of_visitors(tmp_path: Path) -> None:
    file = tmp_path / "visitors"
    file.write_text("ann:a:b\n\nbob:c\n", encoding="utf-8-sig")  # as some editors write it
    assert read_visitors(str(file)) == [("ann", "a:b"), ("bob", "c")]
    many = "\n".join(f"v{i}:secret" for i in range(20_000))
    file.write_text(many)
    assert len(read_visitors(str(file))) == 20_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line NAME:PASSWORD in it"),
        ("ann:a\nbob\n", "line 2: expected NAME:PASSWORD"),
        ("ann:\n", "line 1: expected NAME:PASSWORD"),
        (":secret\n", "line 1: expected NAME:PASSWORD"),
        ("ann:secret\nann:secret2\n", "line 2: 'ann' stands above, too"),
    ],
)
def test_a_wrong_file_of_visitors_is_refused_without_its_passwords(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "visitors"
    file.write_text(text)
    with pytest.raises(InputError, match=words) as refused:
        read_visitors(str(file))
    assert "secret" not in str(refused.value)
