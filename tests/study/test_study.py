"""A study before anything is sampled: prompts, options and what they ask for, its folder, growth and shards."""

from __future__ import annotations

import json
import re
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CHECKPOINT, LAM
from hypothesis import given
from hypothesis import strategies as st
from studies import changed

from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.prompt_files import SETS
from zs2.errors import InputError
from zs2.sampling.request import DEFAULTS
from zs2.study.cells import grid, preset
from zs2.study.options import parser, shard, with_file
from zs2.study.planning import division, plan
from zs2.study.prompts import GENERAL, Prompt, default_prompts, read_prompts
from zs2.study.study import Job, Study, clip_file, is_finished, measures_file, record_file, study_file
from zs2.video.clip import Clip

CELLS = tuple(grid(["dnm", "iid"], ["tma"], [0.1], [0.98]))


def options(*arguments: str) -> dict[str, Any]:
    return with_file(vars(parser().parse_args(arguments)))


def planned(*arguments: str, known: Study | None = None) -> Study:
    return plan({"out": "s"} | options(*arguments), known)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- prompts ----------------------------------------------------------------------------------------------------------


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


OWN_PROMPTS = default_prompts(OwnSettings.of(CHECKPOINT))


@pytest.mark.parametrize("prompts", [OWN_PROMPTS, GENERAL])
def test_eight_closed_and_eight_open_prompts_by_default(prompts):
    assert [prompt.set for prompt in prompts] == ["closed"] * 8 + ["open"] * 8
    assert len(set(prompts)) == 16
    assert Prompt("", "open") in prompts


def test_the_default_prompts_are_what_the_default_checkpoint_knows():
    things = OwnSettings.of(CHECKPOINT).things
    colours = (CHECKPOINT / "README.md").read_text()
    for prompt in OWN_PROMPTS:
        thing, _, background = prompt.text.partition(" on a ")
        assert thing in ("", *things)
        assert background.removesuffix(" background") in colours


def test_the_default_prompts_stay_as_they_are():
    """A study that was begun with them grows only if they are the same, in the same order."""
    closed = ("rocket on a black", "panda face on a sky blue", "red apple on a yellow", "octopus on a white")
    closed += ("sunflower on a purple", "penguin on a orange", "sailboat on a green", "cupcake on a pink")
    alone = ("", "fox face", "turtle", "cactus", "hamburger", "airplane", "butterfly", "soccer ball")
    assert (
        *(Prompt(f"{text} background") for text in closed),
        *(Prompt(text, "open") for text in alone),
    ) == OWN_PROMPTS


def test_a_file_of_prompts():
    text = '\ufeffred apple\n\n  blue star \r\n[open]\n""\ncat [orange]\n[ closed ]\nsun\n[open]\nsun\n'
    prompts = read_prompts(write("p.txt", text))
    assert prompts == (
        Prompt("red apple", "closed"),
        Prompt("blue star", "closed"),
        Prompt("", "open"),
        Prompt("cat [orange]", "open"),
        Prompt("sun", "closed"),
        Prompt("sun", "open"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prompt in it: expected one a line"),
        (" \n\n", "no prompt in it"),
        ("[open]\n", "no prompt in it"),
        ("a\nb\na\n", "the prompt 'a' (closed) is there twice"),
        ('""\n""\n', "the prompt '' (closed) is there twice"),
        (
            "[opne]\na\n",
            "unknown set of prompts in p.txt, line 1 'opne': expected one of closed, open; did you mean 'open'?",
        ),
        ("[]\na\n", "unknown set of prompts in p.txt, line 1 ''"),
    ],
)
def test_a_file_of_prompts_that_is_wrong(text, words):
    with pytest.raises(InputError, match=re.escape(words)) as error:
        read_prompts(write("p.txt", text))
    assert "p.txt" in str(error.value)


# --- options ----------------------------------------------------------------------------------------------------------

FILE = """
preset = ["lambda", "mu"]
noise = "iid"
attn = ["sa", "cfa"]
lam = 0.2
mu = [0.5, "0.9,0.5"]
mu-end = [0.3]
lam-high = [0.5, 1]
cutoff = [0.25]
lpips = "l.safetensors"
motion-target = 0.03
seeds = "0..2"
model = "sd15"
lora = ["a.safetensors:0.5", "b.safetensors"]
embedding = "a.safetensors:<toy>"
vae = "other"
variant = "bf16"
prediction = "v"
device = "cpu"
dtype = "bfloat16"
compile = true
negative-prompt = "-blurry"
frames = 4
steps = 3
guidance = -2
guidance-interval = [0.2, 0.8]
sampler = "dpm++"
deep-cache = 2
clip-skip = 1
spacing = "trailing"
zero-snr = false
final-alpha = "one"
prompt-syntax = "plain"
source = "a.webp@2:"
strength = 0.5
source-latents = "mean"
first-frame = "b.png"
first-frame-noise = "drawn"
image-guidance = 2
control = [["canny", "e.mp4"], ["depth", "d/"]]
control-scale = [1, 0.5]
control-interval = [[0, 0.5], [0.25, 1]]
control-from = ["canny", "frames"]
control-attn = "sa"
size = "32x16"
chunk = 2
clip = "c"
fps = 12
out = "o"
shard = "2/3"
prompts = "p.txt"
"""
LINE = [
    *("--preset", "lambda", "mu", "--noise", "iid", "--attn", "sa", "cfa", "--lam", "0.2", "--mu", "0.5", "0.9,0.5"),
    *("--seeds", "0..2", "--model", "sd15", "--lora", "a.safetensors:0.5", "b.safetensors", "--prediction", "v"),
    *("--device", "cpu", "--dtype", "bfloat16", "--negative-prompt=-blurry", "--frames", "4", "--steps", "3"),
    *("--guidance", "-2", "--size", "32x16", "--clip", "c", "--fps", "12", "--out", "o", "--shard", "2/3"),
    *("--prompts", "p.txt", "--guidance-interval", "0.2,0.8", "--sampler", "dpm++", "--deep-cache", "2"),
    *("--chunk", "2", "--compile", "--clip-skip", "1", "--embedding", "a.safetensors:<toy>"),
    *("--spacing", "trailing", "--no-zero-snr", "--final-alpha", "one", "--prompt-syntax", "plain"),
    *("--vae", "other", "--variant", "bf16"),
    *("--mu-end", "0.3", "--lam-high", "0.5", "1", "--cutoff", "0.25", "--lpips", "l.safetensors"),
    *("--source", "a.webp@2:", "--strength", "0.5", "--source-latents", "mean"),
    *("--first-frame", "b.png", "--first-frame-noise", "drawn", "--image-guidance", "2"),
    *("--motion-target", "0.03"),
    *("--control", "canny", "e.mp4", "--control", "depth", "d/", "--control-scale", "1", "--control-scale", "0.5"),
    *("--control-interval", "0,0.5", "--control-interval", "0.25,1", "--control-attn", "sa"),
    *("--control-from", "canny", "--control-from", "frames"),
]


def test_a_file_says_the_same_as_the_command_line():
    named = set(tomllib.loads(FILE)) | {"alpha"}
    assert named == {a.dest.replace("_", "-") for a in parser()._actions} - {"help", "version", "file", "dry-run"}
    assert options(write("study.toml", FILE)) == options(*LINE)


def test_one_control_in_a_file_is_a_pair():
    both = {"control": ["e.mp4"], "controlnet": ["canny"]}
    assert options(write("study.toml", "control = ['canny', 'e.mp4']")) == both


def test_what_the_command_line_says_wins():
    said = options(write("study.toml", 'steps = 3\nframes = 4\nprompts = ["a"]'), "--steps", "5", "--prompts", "p.txt")
    assert said == {"steps": 5, "frames": 4, "prompts": "p.txt"}


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("seeds = 3", "seeds", [3]),
        ("seeds = [1, 5]", "seeds", [1, 5]),
        ("negative_prompt = 'x'", "negative_prompt", "x"),
        ("guidance-interval = [0.2, 0.8]", "guidance_interval", (0.2, 0.8)),
        ("guidance_interval = '0,0.5'", "guidance_interval", (0.0, 0.5)),
        ("control_scale = 0.5", "control_scale", [0.5]),
        ("control_interval = [0, 0.5]", "control_interval", [(0.0, 0.5)]),
        ("alpha = [1, 2.5]", "alpha", [1.0, 2.5]),
        ("lam = -1", "lam", [-1.0]),  # is refused later, with the command line's words
        ('prompts = ["a", ""]', "prompts", (Prompt("a"), Prompt(""))),
        ('[prompts]\nopen = ["a"]\nclosed = ["b"]', "prompts", (Prompt("a", "open"), Prompt("b", "closed"))),
        ('prompts.open = ["a"]', "prompts", (Prompt("a", "open"),)),
    ],
)
def test_values_of_a_file(text, option, value):
    assert options(write("study.toml", text)) == {option: value}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "can't be read as TOML (Invalid value"),
        ("steps = 1\nsteps = 2", "can't be read as TOML (Cannot overwrite"),
        ("stepz = 3", "unknown option in study.toml 'stepz': expected one of preset, noise, attn, lam, mu"),
        ("stepz = 3", "did you mean 'steps'?"),
        ("file = 'x'", "unknown option in study.toml 'file'"),
        ("help = 1", "unknown option in study.toml 'help'"),
        ("dry-run = true", "dry-run is for the command line only"),
        ("steps = true", "steps is True: expected a text or a number"),
        ("control = 'x'", "control is 'x': expected a model and a clip, or a list of such pairs"),
        ("steps = [1, 2]", "steps is [1, 2]: expected a text or a number"),
        ("steps = {a = 1}", "steps is {'a': 1}: expected a text or a number"),
        ("out = 2020-01-01", "out is datetime.date(2020, 1, 1): expected a text or a number"),
        ("noise = []", "noise is []: expected a text or a number, or a list of them"),
        ("noise = [['iid']]", "noise is [['iid']]: expected a text or a number, or a list"),
        ("noise = ['--steps', '3']", "noise is ['--steps', '3']: these are no values of it"),
        ("prompts = []", "no prompt in it"),
        ("prompts = [1]", "the closed prompts are [1]: expected a list of texts"),
        ("prompts.open = 'a'", "the open prompts are 'a': expected a list of texts"),
        ("prompts.opne = ['a']", "unknown set of prompts in study.toml 'opne'"),
        ("prompts.open = ['a', 'a']", "the prompt 'a' (open) is there twice"),
    ],
)
def test_a_file_that_is_wrong(text, words):
    with pytest.raises(InputError, match=re.escape(words)) as error:
        options(write("study.toml", text))
    assert "study.toml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 2.5", "argument --steps: '2.5': expected a whole number"),
        ("lam = 'high'", "argument --lam: 'high': expected a number"),
        ("size = 64", "argument --size: '64' is no size: expected WIDTHxHEIGHT, such as 512x512"),
        ("seeds = [[1]]", "argument --seeds: '[1]' is no seed: expected a number, a range 0..3 or a list 1,5,7"),
    ],
)
def test_a_value_that_argparse_refuses_is_told_with_the_file(capsys, text, words):
    with pytest.raises(SystemExit) as end:
        options(write("study.toml", text))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"zs2: error: study.toml: {words}\n"


@pytest.mark.parametrize("name", ["gone.toml", "."])
def test_a_file_that_can_not_be_read(name):
    with pytest.raises(InputError, match=re.escape(f"{name}: can't be read as TOML")):
        options(name)


def test_a_shard_of_the_command_line_counts_from_1():
    assert [shard(text) for text in ("1/1", "1/4", "4/4", "12/100")] == [(0, 1), (0, 4), (3, 4), (11, 100)]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "1/2/3", "-1/2", "a/b", "", "1 / 2", "١/٢", "1/1234567"])
def test_a_shard_that_is_none(capsys, text):
    with pytest.raises(SystemExit):
        parser().parse_args([f"--shard={text}"])
    assert "is no shard: expected I/N with I from 1 to N, such as 1/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shards", "rank", "world", "wanted"),
    [
        ((0, 1), None, None, (0, 1)),
        ((0, 1), "0", "1", (0, 1)),
        ((0, 1), "2", "4", (2, 4)),
        ((1, 2), None, None, (1, 2)),
        ((1, 2), "2", "4", (6, 8)),
    ],
)
def test_torchrun_divides_a_shard_again(monkeypatch, shards, rank, world, wanted):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert division({"shard": shards}) == wanted


@pytest.mark.parametrize(("rank", "world"), [("1", None), ("4", "4"), ("-1", "4"), ("a", "4"), ("", "4"), ("0", "0")])
def test_an_environment_that_is_not_torchruns(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world) if world else monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match=f"RANK={rank}, WORLD_SIZE={world or 1}: expected those of torchrun, or neith"):
        division({})


# --- what the options ask for -----------------------------------------------------------------------------------------


def test_the_default_study():
    study = planned()
    assert study.cells == tuple(preset("paper", lam=LAM))  # λ is of its own zs2.json
    assert (study.prompts, study.seeds) == (OWN_PROMPTS, (0, 1))
    assert study.sampling == DEFAULTS | {"steps": 25, "guidance": 5.0}  # its own zs2.json
    assert (study.model, study.dtype, study.fps) == (DEFAULT_MODEL, "auto", 8)
    assert study.full == f"dnm-{LAM:g}_tma-0.98"
    assert study.chunk == study.frames
    assert [planned("--chunk", chunk).chunk for chunk in ("3", "9")] == [3, 8]


def test_the_default_study_of_another_model():
    study = planned("--model", "sd15")
    assert study.prompts == GENERAL
    assert (study.sampling, study.fps) == (DEFAULTS, 8)
    assert [DEFAULTS[name] for name in ("steps", "guidance", "frames", "negative_prompt")] == [50, 7.5, 8, ""]


def test_a_grid_and_a_preset_together():
    assert planned("--noise", "dnm", "iid", "--lam", "0.1").cells == CELLS
    assert [cell.id for cell in planned("--noise", "dnm").cells] == [f"dnm-{LAM:g}_tma-0.98"]  # the checkpoint's own λ
    more = planned("--noise", "progressive", "dnm", known=replace(STUDY, model=DEFAULT_MODEL))
    assert more.cells[1].lam == 0.1  # that of the study that is there
    assert planned("--preset", "lambda", "--noise", "dnm", "iid", "--lam", "0.1").cells == (*preset("lambda"), CELLS[1])
    assert planned("--preset", "mu", "--lam", "0.2").cells == tuple(preset("mu", lam=0.2))
    assert planned("--lam", "0.2", "--mu", "0.5").cells == tuple(preset("paper", 0.2, 0.5))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "--preset papers",
            "unknown preset 'papers': expected one of paper, lambda, mu, motion, reproduce; did you mean 'paper'?",
        ),
        ("--noise idd", "unknown noise model 'idd': expected one of"),
        ("--noise idd", "loop; did you mean 'iid'?"),
        ("--attn smaa", "unknown attention kind 'smaa': expected one of sa, cfa, tma, tma-two-tap"),
        ("--lam 2", "lam is 2.0: expected a number from 0"),
        ("--lam nan", "lam is nan"),
        ("--noise dnm --lam 0.1 -1", "lam is -1.0"),
        ("--mu 1.5", "mu is 1.5"),
        ("--noise mixed --alpha -1", "alpha is -1.0"),
        ("--lam 0.1 0.2", "lam has 2 values: a preset takes one; give --noise or --attn, for a grid"),
        ("--mu 0.1 0.2", "mu has 2 values: a preset takes one"),
        ("--preset paper --noise dnm --lam 0.1 0.2", "lam has 2 values: a preset takes one; give a run of its own for"),
        ("--alpha 2", "alpha is of a grid: give --noise mixed or --noise progressive, too"),
        ("--steps 0", "steps is 0"),
        ("--steps 1", "text2video-zero in 1 step"),
        ("--frames 0", "frames is 0"),
        ("--guidance nan", "guidance is nan"),
        ("--fps 0", "fps is 0"),
        ("--fps 1001", "fps is 1001"),
        ("--fps fast", "fps is fast"),
        ("--dtype fp16", "unknown dtype 'fp16'"),
        ("--seeds -1", "seed is -1"),
        ("--seeds 4294967296", "seed is 4294967296"),
        ("--prompts gone.txt", "gone.txt: can't be read"),
    ],
)
def test_options_that_are_wrong(line, words):
    with pytest.raises(InputError, match=re.escape(words)):
        planned(*line.split())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--preset lambda --lam 0.2", "lam"),
        ("--preset mu --mu 0.5", "mu"),
        ("--noise iid shared --lam 0.1 0.2", "lam"),
        ("--attn sa cfa --mu 0.5", "mu"),
        ("--noise iid --alpha 2", "alpha"),
    ],
)
def test_a_value_without_effect_is_a_warning(line, name):
    with pytest.warns(UserWarning, match=f"^{name} has no effect on these cells$"):
        planned(*line.split())


@pytest.mark.parametrize(
    "line",
    [
        "--preset lambda --mu 0.5",
        "--preset mu --lam 0.2",
        "--lam 0.2 --mu 0.5",
        "--noise iid dnm-search --attn sa tma-two-tap --lam 0.1 0.2 --mu 0.5",
        "--noise dnm progressive --alpha 1 2",
        "--preset lambda --noise dnm --lam 0.2",
    ],
)
def test_a_value_that_has_an_effect_somewhere_is_none(line):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(*line.split())


# --- the folder -------------------------------------------------------------------------------------------------------

STUDY = Study(
    zs2="0.1.0",
    model="mine",
    weights={"unet": "12", "vae": "34"},
    sampling=DEFAULTS | {"steps": 3, "frames": 4, "guidance": 2.5},
    width=32,
    height=16,
    fps=8,
    dtype="float32",
    chunk=4,
    prompts=(Prompt("a"), Prompt("", "open")),
    seeds=(0, 1),
    full=CELLS[0].id,
    cells=CELLS,
    threads=3,
)


def test_a_study_is_read_as_it_was_written(here):
    for study in (STUDY, replace(STUDY, lora=[{"sha256": "56", "scale": 0.5}], cells=tuple(preset("paper")))):
        study.write(here)
        assert Study.read(here) == study
    assert [file.name for file in here.iterdir()] == ["study.json"]


def test_a_study_of_before_there_was_a_choice_of_sampling_says_what_it_was(here):
    STUDY.write(here)
    said = json.loads((here / "study.json").read_text())
    later = ("sampler", "guidance_interval", "deep_cache", "clip_skip")
    for name in later:
        del said[name]
    (here / "study.json").write_text(json.dumps(said))
    assert Study.read(here) == STUDY
    assert [STUDY.sampling[name] for name in later] == ["ddim", (0, 1), 1, 0]


def test_who_reads_a_study_while_it_grows_gets_the_old_one_or_the_new_one(here):
    STUDY.write(here)
    with open(study_file(here)) as old:
        replace(STUDY, seeds=(9,)).write(here)
        assert json.load(old)["seeds"] == [0, 1]
    assert Study.read(here).seeds == (9,)


@pytest.mark.parametrize(
    ("called", "name"),
    [("/bin/zs2", "zs2 ablate"), ("zs2/__main__.py", "zs2 ablate"), ("zs2/report.py", "python -m zs2.ablate")],
)
def test_a_folder_without_a_study(called, name, monkeypatch):
    """The message names the command in the way in which this one was called."""
    monkeypatch.setattr("sys.argv", [called])
    with pytest.raises(InputError, match=rf"^nowhere: no study here \(no study.json\): {name} makes one$"):
        Study.read("nowhere")


def study_text(**changes: Any) -> str:
    STUDY.write(".")
    return json.dumps({k: v for k, v in (json.loads(Path("study.json").read_text()) | changes).items() if v != "gone"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (None, "can't be read as JSON"),
        ({"steps": "gone"}, "steps"),
        ({"cells": "gone"}, "cells"),
        ({"more": 1}, "more"),
        ({"cells": [{"id": "x"}]}, "cells 0: label is None: expected a text"),
        ({"cells": []}, "0 cells"),
        ({"prompts": []}, "no prompt in it"),
        ({"prompts": ["a"]}, "prompts is .*: expected a list of at most 100000 objects"),
        ({"prompts": [{"text": "a"}, {"text": "a"}]}, "is there twice"),
        ({"prompts": [{"text": "a", "set": "x"}]}, "unknown set in study.json: prompts 0 'x'"),
        ({"seeds": 3}, "seeds is 3: expected a list"),
        ({"seeds": [True]}, "a seed is True: expected a whole number"),
        ({"seeds": [0, -0]}, "a seed is there twice"),
        ({"seeds": [2**32]}, "a seed is 4294967296"),
        ({"full": "x"}, "unknown full in study.json 'x'"),
        ({"width": "x"}, "width is 'x': expected a whole number"),
        ({"width": True}, "width is True: expected a whole number"),
        ({"fps": "1e999999999"}, "fps is 1e999999999: expected frames a second"),
        ({"height": 10**9}, "height is 1000000000: expected from 0 to 65536"),
        ({"steps": 10**9}, "steps is 1000000000: expected from 1 to 100000"),
        ({"guidance": 10**400}, "guidance is .*: expected a number"),
        ({"guidance": float("nan")}, "NaN is no number"),
        ({"guidance_interval": [0]}, "guidance_interval is .*: expected two numbers"),
        ({"model": "\ud800"}, "surrogates not allowed"),
        ({"weights": {"unet": 3}}, "weights is .*: expected texts"),
        ({"lora": [{"scale": []}]}, "lora is"),
        ({"threads": 0}, "threads is 0"),
        ({"dtype": None}, "unknown dtype in study.json None"),
    ],
)
def test_a_study_that_is_damaged(here, changes, words):
    text = study_text(**changes or {})
    study_file(here).write_text(text[:100] if changes is None else text)
    with pytest.raises(InputError, match=r"study.json: this is not what zs2.ablate writes \(.*: give another folder$"):
        Study.read(here)
    with pytest.raises(InputError, match=words):
        Study.read(here)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"id": name}, "id is .*: expected letters")
            for name in ("../../x", "/x", "a/b", "..", "", "x" * 101, "a\n")
        ),
        ({"id": "dnm-0.2_tma-0.98"}, "is not the id of dnm and tma at its values"),
        ({"lam": None}, "is not the id of dnm and tma"),
        ({"lam": 9}, "lam is 9"),
        ({"noise": "x"}, "unknown noise model 'x'"),
        ({"frozen": 1}, "frozen is 1: expected true or false"),
        ({"presets": [1]}, "presets is"),
        ({"more": 1}, "it has 'more', which zs2 does not know"),
    ],
)
def test_a_cell_that_is_damaged(here, changes, words):
    """Its id is part of paths: it can't lead out of the study's folder."""
    cells = json.loads(study_text())["cells"]
    study_file(here).write_text(study_text(cells=[cells[0] | changes, *cells[1:]]))
    with pytest.raises(InputError, match=f"study.json: this is not what zs2.ablate writes .*{words}"):
        Study.read(here)


def test_a_study_of_too_many_clips_is_refused_before_they_are_listed(here):
    many = study_text(seeds=list(range(10**5)), prompts=[{"text": str(i)} for i in range(10)])
    study_file(here).write_text(many)
    with pytest.raises(InputError, match="more than 1000000 clips"):
        Study.read(here)


def test_the_names_of_files():
    job = Job(CELLS[0], 3, 4294967295)
    assert job.name == "dnm-0.1_tma-0.98_p03_s4294967295"
    assert clip_file("s", job.name) == Path("s/clips/dnm-0.1_tma-0.98_p03_s4294967295.webp")
    assert record_file("s", job.name) == Path("s/clips/dnm-0.1_tma-0.98_p03_s4294967295.webp.json")
    assert measures_file("s", job.name) == Path("s/measures/dnm-0.1_tma-0.98_p03_s4294967295.json")


def test_cells_whose_names_study_json_could_not_have_are_not_planned(here):
    """It has at most 100 characters for an id. A longer one was a study that no command could read."""
    sevenths = [f"{i / 7}" for i in range(1, 6)]
    study = planned("--noise", "dnm", "--lam", "0.1", "--mu", ",".join(sevenths[:4]))
    study.write(here)
    assert Study.read(here) == study
    words = r"^dnm λ=0.1 \+ tma μ=0.14.*: names of files begin with dnm-0.1_tma-0.14.*, which has 1.. characters: "
    with pytest.raises(InputError, match=f"{words}expected at most 100: give numbers of fewer digits, or fewer"):
        planned("--noise", "dnm", "--lam", "0.1", "--mu", ",".join(sevenths))
    longest = Job(replace(study.cells[0], id="n" * 100), 99_999, 2**32 - 1)
    assert len(f"{longest.name}.webp.json") < 150  # a path of Windows has 260


def test_a_clip_is_there_when_it_is_whole_and_has_its_record(here):
    clip = Clip(np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3), 8, {"frames": 2})
    assert not is_finished(here, "x")
    clip.save(clip_file(here, "x"), json=False)
    assert not is_finished(here, "x")
    clip.save(clip_file(here, "x"), overwrite=True)
    assert is_finished(here, "x")
    content = clip_file(here, "x").read_bytes()
    for length in (0, 5, 8, len(content) // 2, len(content) - 1):
        clip_file(here, "x").write_bytes(content[:length])
        assert not is_finished(here, "x")
    clip_file(here, "x").unlink()
    assert not is_finished(here, "x")


def test_a_still_clip_is_whole_too(here):
    Clip(np.zeros((2, 16, 16, 3), np.uint8), 8, {"frames": 2}).save(clip_file(here, "x"))
    assert is_finished(here, "x")


# --- growth -----------------------------------------------------------------------------------------------------------


def test_a_study_grows_by_cells_prompts_and_seeds():
    more = replace(STUDY, prompts=(*STUDY.prompts, Prompt("c")), seeds=(5, 1), cells=tuple(preset("mu")))
    grown = STUDY.with_more(more)
    assert grown.prompts == more.prompts
    assert grown.seeds == (0, 1, 5)
    assert [cell.id for cell in grown.cells] == [cell.id for cell in (*CELLS, *preset("mu"))]
    assert grown.with_more(STUDY) == grown.with_more(more) == grown.with_more(grown) == grown
    fewer = replace(STUDY, prompts=STUDY.prompts[:1], seeds=(1,), cells=CELLS[1:])
    assert STUDY.with_more(fewer) == STUDY


def test_a_cell_comes_into_the_presets_that_are_asked_for_later():
    grown = STUDY.with_more(replace(STUDY, cells=tuple(preset("paper"))))
    assert grown.cells[0].presets == ("paper",)
    assert grown.cells[0].label == "full method: DNM + TMA"
    assert len(grown.cells) == 12


def test_the_reference_becomes_the_full_method_when_that_comes():
    cells = tuple(preset("mu"))
    study = replace(STUDY, cells=cells, full="dnm-0.1_tma-0.9")
    assert study.with_more(study).full == "dnm-0.1_tma-0.9"
    assert study.with_more(replace(STUDY, cells=tuple(preset("paper")))).full == "dnm-0.1_tma-0.98"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"unet": "99", "vae": "34"}}, "the study's clips are of other weights (unet differ)"),
        ({"weights": {"unet": "12"}}, "of other weights (vae differ)"),
        ({"steps": 4}, "steps is 3 in this study, now 4"),
        ({"frames": 5}, "frames is 4 in this study, now 5"),
        ({"guidance": 2.0}, "guidance is 2.5 in this study, now 2.0"),
        ({"sampler": "dpm++"}, "sampler is 'ddim' in this study, now 'dpm++'"),
        ({"guidance_interval": (0.0, 0.5)}, "guidance_interval is (0.0, 1.0) in this study, now (0.0, 0.5)"),
        ({"deep_cache": 2}, "deep_cache is 1 in this study, now 2"),
        ({"width": 16}, "width is 32 in this study, now 16"),
        ({"height": 32}, "height is 16 in this study, now 32"),
        ({"fps": 9}, "fps is 8 in this study, now 9"),
        ({"dtype": "float16"}, "dtype is 'float32' in this study, now 'float16'"),
        ({"negative_prompt": "x"}, "negative_prompt is '' in this study, now 'x'"),
        ({"chunk": 2}, "chunk is 4 in this study, now 2"),
        ({"lora": [{"scale": 1}]}, "lora is None in this study, now [{'scale': 1}]"),
        ({"embeddings": [{"token": "a"}]}, "embeddings is None in this study, now [{'token': 'a'}]"),
        ({"clip_skip": 1}, "clip_skip is 0 in this study, now 1"),
        (
            {"prompts": (Prompt("b"), Prompt("", "open"))},
            "prompt 0 is 'a' (closed) in this study, now 'b' (closed): add",
        ),
        ({"prompts": (Prompt("", "open"), Prompt("a"))}, "prompt 0 is 'a' (closed) in this study, now '' (open): add"),
        (
            {"prompts": (Prompt("a"), Prompt(""))},
            "prompt 1 is '' (open) in this study, now '' (closed): add new ones at",
        ),
    ],
)
def test_what_would_change_the_meaning_of_clips_that_are_there_is_refused(changes, words):
    with pytest.raises(InputError, match=re.escape(words)) as error:
        STUDY.with_more(changed(STUDY, **changes))
    assert "give another --out for another study" in str(error.value)


@pytest.mark.parametrize("changes", [{"model": "elsewhere/mine"}, {"zs2": "9"}, {"threads": 1}])
def test_what_does_not_is_not(changes):
    assert STUDY.with_more(replace(STUDY, **changes)) == STUDY


def test_what_is_left_open_is_as_in_the_study_that_is_there():
    assert replace(planned("--model", "here/mine", known=STUDY), model="mine", threads=3) == STUDY
    more = planned("--model", "here/mine", "--noise", "shared", "--seeds", "7", "--steps", "9", known=STUDY)
    assert more.sampling == STUDY.sampling | {"steps": 9}
    assert (more.seeds, more.prompts) == ((7,), STUDY.prompts)
    assert [cell.id for cell in more.cells] == ["shared_tma-0.98"]


def test_a_study_of_a_path_or_of_a_lora_needs_it_again():
    """No path stands in study.json."""
    with pytest.raises(InputError, match="the study in s is of the model 'mine': give that with --model"):
        planned(known=STUDY)
    with pytest.raises(InputError, match="the study in s is of a model with LoRA: give the same with --lora"):
        planned("--model", "mine", known=replace(STUDY, lora=[{"scale": 1.0}]))
    with pytest.raises(
        InputError, match="the study in s is of a model with embeddings: give the same with --embedding"
    ):
        planned("--model", "mine", known=replace(STUDY, embeddings=[{"token": "a"}]))
    for name in (DEFAULT_MODEL, "owner/name", "sd15"):
        assert planned(known=replace(STUDY, model=name)).model == name


# --- shards -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9))
def test_shards_divide_the_clips(cells, prompts, seeds, count):
    """Each clip is in one; and where there are as many (prompt, seed) as shards, each has cells of all kinds."""
    study = replace(
        STUDY,
        cells=tuple(grid(["dnm"], ["tma"], [0.1 * i for i in range(cells)], [0.98])),
        prompts=tuple(Prompt(str(i)) for i in range(prompts)),
        seeds=tuple(range(seeds)),
    )
    jobs = list(study.jobs())
    assert len({job.name for job in jobs}) == len(jobs) == cells * prompts * seeds
    shards = [study.shard(index, count) for index in range(count)]
    assert sorted(job.name for part in shards for job in part) == sorted(job.name for job in jobs)
    assert all(part == [job for job in jobs if job in part] for part in shards)
    for part in shards:
        assert {job.cell for job in part} == set(study.cells) or prompts * seeds < count
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= min(cells, prompts * seeds, count)


def test_a_row_of_comparable_clips_is_made_before_the_next():
    order = [(job.seed, job.prompt, job.cell.id) for job in STUDY.jobs()]
    assert order == [(seed, prompt, cell.id) for seed in (0, 1) for prompt in (0, 1) for cell in CELLS]


def test_the_sets_of_prompts_are_named_in_the_help():
    text = parser().format_help()
    assert all(f"[{name}]" in text for name in SETS)
