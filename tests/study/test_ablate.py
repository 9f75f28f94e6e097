"""`python -m zs2.ablate`: what it writes, how a study goes on, is divided and survives, what it says."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from forked import Forked
from helpers import CHECKPOINT, NAME, REDUCTION, TESTS, UNGUIDED, assert_same_picture, write_clip
from safetensors.torch import load_file, save_file

from zs2 import ZS2
from zs2.ablate import main
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer
from zs2.evaluation.measure import measure, rounded
from zs2.evaluation.metrics import METRICS, Metric
from zs2.report import main as report
from zs2.reporting.content import summary
from zs2.reporting.page_clips import page_data
from zs2.sample import main as sample
from zs2.study.planning import plan
from zs2.study.results import Results
from zs2.study.runner import Runner, load
from zs2.study.study import Study
from zs2.system.atomic import write_json
from zs2.version import REVISION
from zs2.video.clip import Clip

ROOT = TESTS.parent
# the cheapest clips; options that follow win
BRIEF = ("--frames", "2", "--size", "16x16", "--steps", "1", "--spacing", "trailing")
TWO = ("--noise", "dnm", "iid", "--lam", "0.1", *BRIEF, "--seeds", "0")  # cells, each for the two prompts of `prompts`
posix = pytest.mark.skipif(os.name != "posix", reason="kills processes, or limits them")
forks = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has torch")


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started here: with as many as they like they get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with a closed prompt and an open one."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text('red apple\n[open]\n""\n')
    return str(file)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, prompts: str) -> Path:
    """A study of two cells, two prompts and a seed. Not to be changed."""
    folder = tmp_path_factory.mktemp("two") / "study"
    assert main([*TWO, "--prompts", prompts, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def copy(two: Path, here: Path) -> Path:
    """The study `two`, to change: ./s."""
    return shutil.copytree(two, here / "s")


@pytest.fixture
def zs2(here: Path, prompts: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in this process and in an empty working directory, with the study in ./s."""

    def run(*arguments: str) -> Result:
        given = "--prompts" in arguments or any(word.endswith(".toml") for word in arguments)
        words = [*arguments, *([] if given else ["--prompts", prompts])]
        capsys.readouterr()
        try:
            status = main(words if "--out" in words else [*words, "--out", "s"])
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else -1
        return Result(status, *capsys.readouterr())

    return run


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | more


def forked(*arguments: str, program: Sequence[str] = ("-m", "zs2.ablate")) -> Forked:
    """The command, in a process of its own that is forked."""
    return Forked([*program, *arguments], Path.cwd(), environment())


def command(*arguments: str, program: Sequence[str] = ("-m", "zs2.ablate"), **more: str) -> Result:
    """The command, as a command."""
    words, env = [sys.executable, *program, *arguments], environment(**more)
    ended = subprocess.run(words, env=env, capture_output=True, encoding="utf-8", timeout=600)
    return Result(ended.returncode, ended.stdout, ended.stderr)


def succeeded(result: Result) -> Result:
    assert result.status == 0, result.err
    assert "warning" not in result.err
    return result


def failed(result: Result, *words: str, status: int = 2) -> None:
    """Assert that a command ended with one line of error that has these words."""
    assert "Traceback" not in result.err
    assert result.status == status, result.err
    errors = [line for line in result.err.splitlines() if line.startswith("zs2: error: ")]
    assert errors == result.err.splitlines()[-1:]
    assert errors[0].isprintable()
    assert len(errors[0]) < 700
    for word in words:
        assert word in errors[0]
    if status == 2:
        assert len(result.err.splitlines()) == 1
        assert result.out == ""


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name; a folder in it has no content."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else b"" for f in folder.rglob("*")}


def times(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def text(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def names(folder: Path, part: str = "clips", ending: str = ".json") -> list[str]:
    return sorted(file.name.split(".webp")[0].removesuffix(".json") for file in (folder / part).glob(f"*{ending}"))


# --- what is written --------------------------------------------------------------------------------------------------

NAMES = [f"{cell}_p0{prompt}_s0" for cell in ("dnm-0.1_tma-0.98", "iid_tma-0.98") for prompt in (0, 1)]


def test_a_study_is_its_clips_their_records_and_measures(two):
    clips = {f"clips/{name}{ending}" for name in NAMES for ending in (".webp", ".webp.json")}
    measures = {f"measures/{name}.json" for name in NAMES}
    assert files(two).keys() == {"study.json", ".lock", "clips", "measures", *clips, *measures}


def test_study_json_says_what_was_asked(two):
    said = text(two / "study.json")
    assert said.pop("weights").keys() == {"unet", "vae", "text_encoder", "config"}
    assert [cell["id"] for cell in said.pop("cells")] == ["dnm-0.1_tma-0.98", "iid_tma-0.98"]
    assert said == {
        **UNGUIDED,
        "first_frame_noise": None,
        "zs2": said["zs2"],
        "revision": REVISION,
        "model": DEFAULT_MODEL,
        "steps": 1,
        "sampler": "ddim",
        "deep_cache": 1,
        "frames": 2,
        "guidance": 5.0,
        "guidance_interval": [0.0, 1.0],
        "clip_skip": 0,
        "spacing": "trailing",
        "zero_snr": None,
        "final_alpha": None,
        "prompt_syntax": None,
        "width": 16,
        "height": 16,
        "fps": 8,
        "dtype": "float32",
        "negative_prompt": "",
        "chunk": 2,
        "prompts": [{"text": "red apple", "set": "closed"}, {"text": "", "set": "open"}],
        "seeds": [0],
        "full": "dnm-0.1_tma-0.98",
        "lora": None,
        "embeddings": None,
        "compile": False,
        "threads": 1,
    }


def test_a_clip_is_what_the_library_makes(two):
    model = ZS2.from_pretrained(CHECKPOINT, noise="iid", attn="tma", mu=0.98)
    request = {"frames": 2, "steps": 1, "spacing": "trailing", "guidance": 5.0, "width": 16, "height": 16}
    clip = model("red apple", **request, seed=0, fps=8)
    made = Clip.open(two / "clips" / "iid_tma-0.98_p00_s0.webp")
    assert np.array_equal(made.frames, clip.frames)
    assert (made.fps, made.settings) == (clip.fps, clip.settings)


def test_a_study_has_any_frame_rate_of_a_clip(zs2, here):
    (here / "one.toml").write_text('fps = "24000/1001"\nprompts = ["red apple"]\nseeds = [0]\nnoise = "iid"\n')
    succeeded(zs2("--attn", "tma", *BRIEF, "one.toml"))
    assert json.loads((here / "s" / "study.json").read_text())["fps"] == "24000/1001"
    (clip,) = (here / "s" / "clips").glob("iid*.webp")
    assert Clip.open(clip).fps == Fraction(24000, 1001)
    succeeded(zs2("--dry-run", "one.toml"))  # goes on
    assert page_data(Results.read(here / "s"), here / "s")["fps"] == pytest.approx(23.976, abs=1e-3)


def test_a_clip_and_its_record_are_what_zs2_sample_writes(two, here):
    line = "'red apple' --lam 0.1 --guidance 5 --no-sheet --out dnm-0.1_tma-0.98_p00_s0.webp"
    assert sample([*shlex.split(line), *BRIEF]) == 0
    written = files(here)
    assert len(written) == 2
    assert written == {name: (two / "clips" / name).read_bytes() for name in written}


def test_what_has_no_effect_in_a_study_is_told_once(zs2, narrow):
    """For all its clips: a study has no option for the window, so a short one is as independent noises."""
    line = ("--noise", "freenoise", "--attn", "sa", "cfa", "--frames", "3", *BRIEF[2:], "--seeds", "0,1")
    result = zs2(*line, "--model", str(narrow), "--clip", str(CHECKPOINT))
    assert result.status == 0, result.err
    assert result.err.count("window 16 has no effect on 3 frames: all have noises of their own") == 1


def test_measures_are_those_of_the_clip_with_their_protocol(two):
    scorer = Scorer.from_pretrained(CHECKPOINT)
    for name, prompt, rho in ((NAMES[0], "red apple", 1 - 0.1 / np.sqrt(np.e)), (NAMES[3], "", 0)):
        said = text(two / "measures" / f"{name}.json")
        wanted = measure(Clip.open(two / "clips" / f"{name}.webp").frames, prompt, scorer)
        noise = {key: said["metrics"][key] for key in ("noise-correlation", "noise-correlation-expected")}
        assert said["metrics"] == wanted | noise | {"lpips": None}
        assert list(said["metrics"]) == list(METRICS)
        assert noise["noise-correlation-expected"] == pytest.approx(rho, abs=1e-8)
        assert abs(noise["noise-correlation"] - rho) < 5 * (1 - rho**2) / np.sqrt(4 * 4 * 4)
        assert (said["cell"], said["prompt"], said["seed"]) == (name.split("_p")[0], int(name[-4]), 0)
        protocol = said["protocol"]
        assert protocol["clip_sha256"] == scorer.digests
        assert (protocol["clip"], protocol["comparable"]) == (DEFAULT_MODEL, False)
        assert protocol.keys() == {"clip", "clip_sha256", "comparable", "opencv", "lpips", "zs2", "metrics"}
        assert protocol["metrics"] == list(METRICS)


def test_the_files_of_a_study_tell_no_path(two, prompts):
    for name, content in files(two).items():
        for path in (str(two.parent), str(Path(prompts).parent), str(Path.home()), str(ROOT)):
            assert path.encode() not in content, name


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset `paper` for one prompt. Not to be changed."""
    folder = tmp_path_factory.mktemp("paper") / "study"
    # guidance enlarges the rounding in which a picture of several differs from the same one alone
    line = "--preset paper --lam 0.1 --guidance 1 --steps 3 --frames 3 --size 32x32 --seeds 4"
    (folder.parent / "prompts.txt").write_text("red apple\n")
    assert main([*line.split(), "--prompts", str(folder.parent / "prompts.txt"), "--out", str(folder)]) == 0
    return folder


@pytest.mark.long
def test_the_preset_paper(paper):
    study = Study.read(paper)
    assert names(paper) == names(paper, "measures") == sorted(job.name for job in study.jobs())
    assert len(names(paper)) == 12
    distinct = {Clip.open(file).frames.tobytes() for file in (paper / "clips").glob("*.webp")}
    assert len(distinct) >= 10  # the frozen frame, and fixed noise with either attention, are the same still picture
    for cell in study.cells:
        record = text(paper / "clips" / f"{cell.id}_p00_s4.webp.json")
        assert {name: record[name] for name in cell.method} == cell.method
        assert (record["frames"], record["seed"]) == (3, 4)
        assert ("frozen" in record) == cell.frozen


@pytest.mark.long
def test_how_is_sampled_reaches_every_clip_and_the_report(zs2, here):
    line = "--noise dnm iid --lam 0.1 --frames 2 --size 16x16 --steps 4 --seeds 0 --sampler dpm++ --deep-cache 2"
    succeeded(zs2(*line.split(), "--guidance-interval", "0,0.5"))
    want = {"sampler": "dpm++", "guidance_interval": [0.0, 0.5], "deep_cache": 2}
    for name in names(here / "s"):
        record = text(here / "s" / "clips" / f"{name}.webp.json")
        assert {key: record[key] for key in want} == want
    failed(zs2(*line.split(), "--deep-cache", "3"), "deep_cache is 2 in this study, now 3")
    succeeded(zs2("--seeds", "1", "--noise", "dnm"))  # what is not given is as it was
    said = summary(Results.read(here / "s"))
    assert any("steps: 4 of dpm++; guidance 5; float32" in line for line in said)
    assert {"Guidance interval: 0,0.5", "Deep cache: 2"} <= set(said)


def test_the_frozen_cell_is_frame_0_repeated(paper):
    frozen = Clip.open(paper / "clips" / "frozen_p00_s4.webp").frames
    moving = Clip.open(paper / "clips" / "dnm-0.1_tma-0.98_p00_s4.webp").frames
    assert frozen.shape == moving.shape
    assert all(np.array_equal(frame, frozen[0]) for frame in frozen)
    assert_same_picture(torch.from_numpy(frozen[0]), torch.from_numpy(moving[0]))
    metrics = text(paper / "measures" / "frozen_p00_s4.json")["metrics"]
    assert metrics["motion"] == 0
    assert metrics["clip-frame-consistency"] == pytest.approx(1, abs=1e-6)


def test_only_noises_of_their_own_are_measured(paper):
    correlations = {}
    for cell in Study.read(paper).cells:
        metrics = text(paper / "measures" / f"{cell.id}_p00_s4.json")["metrics"]
        correlations[cell.id] = metrics["noise-correlation"], metrics["noise-correlation-expected"]
    assert correlations["text2video-zero_cfa"] == correlations["frozen"] == (None, None)
    assert correlations["shared_sa"] == (1, 1)
    assert correlations["dnm-0.1_sa"] == correlations["dnm-0.1_cfa"] == correlations["dnm-0.1_tma-0.98"]
    assert correlations["dnm-search-0.1_tma-0.98"][1] is None
    assert 0.5 < correlations["dnm-search-0.1_tma-0.98"][0] < 1


@pytest.mark.long
def test_shared_work_is_done_once(prompts):
    """One set of weights for all variants; one encoding of each text for all cells and seeds."""
    given = {"preset": ["paper", "lambda", "mu"], "lam": [0.1], "steps": 2, "frames": 2}
    given |= {"prompts": prompts, "negative_prompt": "bad"}
    model, study = load(given, plan(given | {"size": (16, 16)}, None))
    runner = Runner(Path("nowhere"), study, model, None)
    weights = [dict(runner.variant(cell).unet.state_dict()) for cell in study.cells]
    addresses = [{name: tensor.data_ptr() for name, tensor in one.items()} for one in weights]
    assert len(addresses) == 21
    assert all(one == addresses[0] for one in addresses)
    encoded: list[int] = []
    model.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    for job in [*study.jobs()][::3]:  # 7 cells, both prompts, two seeds
        runner.sample(job)
    assert len(encoded) == 3  # both prompts and the negative one


def test_a_dry_run_leaves_no_trace(zs2, here):
    result = succeeded(zs2(*TWO, "--dry-run"))
    assert result.out.splitlines() == [
        "cell              clips  measured",
        "dnm-0.1_tma-0.98    0/2       0/2  dnm λ=0.1 + tma μ=0.98",
        "iid_tma-0.98        0/2       0/2  iid + tma μ=0.98",
        "all                 0/4       0/4",
    ]
    assert files(here) == {}


def test_what_a_run_says(zs2, copy):
    result = succeeded(zs2(*TWO))
    assert result.out.splitlines() == [
        "cell              clips  measured",
        "dnm-0.1_tma-0.98    2/2       2/2  dnm λ=0.1 + tma μ=0.98",
        "iid_tma-0.98        2/2       2/2  iid + tma μ=0.98",
        "all                 4/4       4/4",
        "next: python -m zs2.report s",
    ]


def test_a_file_of_options_makes_the_same_study(zs2, here, two):
    toml = """noise = ["dnm", "iid"]\nlam = 0.1\nseeds = 0\nsteps = 9\nframes = 2\nsize = "16x16"\nout = "t"
        spacing = "trailing"\nprompts.closed = ["red apple"]\nprompts.open = [""]"""
    (here / "study.toml").write_text(toml)
    result = succeeded(zs2("study.toml", "--steps", "1", "--out", "a study"))
    assert files(here / "a study") == files(two)
    assert result.out.splitlines()[-1] == "next: python -m zs2.report 'a study'"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--frobnicate", ["--frobnicate"]),
        ("--step 3", ["--step"]),
        ("--steps many", ["--steps", "'many'"]),
        ("--lam high", ["--lam", "'high'"]),
        ("--lam", ["--lam", "expected at least one argument"]),
        ("--seeds lucky", ["--seeds", "'lucky'", "a range 0..3"]),
        ("--seeds 1,1", ["--seeds", "'1,1' has 1 twice"]),
        ("--size 16", ["--size", "'16'", "WIDTHxHEIGHT"]),
        ("--shard 3/2", ["--shard", "'3/2'", "I from 1 to N"]),
        ("--preset papers", ["'papers'", "did you mean 'paper'?"]),
        ("--noise idd", ["'idd'", "did you mean 'iid'?"]),
        ("--mu 2", ["mu is 2.0", "from 0"]),
        ("--steps 0", ["steps is 0"]),
        ("--steps 1000 --spacing leading", ["1000 steps", "at most 999"]),
        ("--steps 1 --preset paper", ["text2video-zero in 1 step"]),
        ("--size 18x16", ["18x16", f"multiples of {REDUCTION}"]),
        ("--size 0x16", ["width is 0", "at least 1"]),
        ("--size 16x0", ["height is 0", "at least 1"]),
        ("--fps 2000", ["fps is 2000"]),
        ("--dtype fp16", ["'fp16'", "float32, bfloat16, float16"]),
        ("--device gpu", ["'gpu'", "try cpu"]),
        ("--model no/such/model-of-mine.safetensors", ["no such model"]),
        ("--lora gone.safetensors", ["no such LoRA", "gone.safetensors"]),
        ("--clip no-such-clip", ["'no-such-clip'", "expected a folder"]),
        ("--clip letters", ["'letters' has no CLIP that can score"]),
        ("--prompts gone.txt", ["gone.txt", "No such file"]),
        ("--prompts letters/twice.txt", ["letters/twice.txt", "'a' (closed) is there twice"]),
        ("--out ''", ["argument --out: '' is empty: expected DIR"]),
        ("--out letters/twice.txt", ["letters/twice.txt is not a folder", "choose another place"]),
        (f"--out {'n' * 300}", ["too long", "choose another place"]),
        ("gone.toml", ["gone.toml", "can't be read as TOML"]),
        ("letters/wrong.toml", ["letters/wrong.toml", "'stepz'", "did you mean 'steps'?"]),
    ],
)
def test_an_error_is_one_line_and_leaves_no_trace(zs2, here, line, words):
    (here / "letters").mkdir()
    (here / "letters" / "twice.txt").write_text("a\na\n")
    (here / "letters" / "wrong.toml").write_text("stepz = 3\n")
    before = files(here)
    failed(zs2("--noise", "dnm", "--lam", "0.1", *BRIEF, *shlex.split(line)), *words)
    assert files(here) == before


def test_help_and_wrong_arguments_answer_without_torch(here):
    code = """if True:
        import sys
        from zs2.ablate import main
        wrong = "--steps many,--steps 0,--mu 2,--lam 2,--noise foo,--attn tmaa,--dtype fp16,--preset p"
        for arguments in (["--help"], ["--version"], *map(str.split, wrong.split(","))):
            try:
                main(arguments)
            except SystemExit:
                pass
        print([name for name in ("torch", "safetensors", "tokenizers", "cv2") if name in sys.modules])
    """
    result = succeeded(command(program=("-c", code)))
    assert result.out.splitlines()[-1] == "[]"


def test_help_names_every_preset_and_default(zs2):
    result = succeeded(zs2("--help"))
    said = " ".join(result.out.split())
    for word in ("paper, lambda, mu", DEFAULT_MODEL, "0.98", "default 0.1", "7.5", "text2video-zero", "out/study"):
        assert word in said


def test_greek_where_the_terminal_has_none(here):
    result = command("--noise", "dnm", "--lam", "0.1", "--dry-run", PYTHONIOENCODING="ascii")
    assert "dnm \\u03bb=0.1 + tma \\u03bc=0.98" in succeeded(result).out


def test_clips_that_no_study_tells_of_are_not_taken_for_its_own(zs2, copy):
    (copy / "study.json").unlink()
    before = files(copy)
    failed(zs2(*TWO, "--steps", "2"), ".webp is there, but no study.json", "give another --out")
    assert files(copy) == before


def test_a_warning_is_said_once(zs2):
    result = zs2(*TWO, "--guidance", "1", "--negative-prompt", "bad", "--noise", "dnm", "--lam", "0.1", "--alpha", "1")
    assert result.status == 0
    assert [line for line in result.err.splitlines() if "warning" in line] == [
        "zs2: warning: alpha has no effect on these cells",
        "zs2: warning: the negative prompt has no effect at guidance 1",
    ]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(zs2, copy, two):
    before = times(copy)
    succeeded(zs2(*TWO))
    succeeded(zs2())  # and all of it is known
    assert times(copy) == before
    assert files(copy) == files(two)


@pytest.mark.long
def test_a_study_grows_and_is_as_if_made_at_once(zs2, here, prompts):
    (here / "one.txt").write_text("red apple\n")
    succeeded(zs2("--noise", "dnm", "--lam", "0.1", *BRIEF, "--seeds", "0", "--prompts", "one.txt"))
    before = times(here / "s")
    succeeded(zs2("--noise", "dnm", "iid", "--lam", "0.1"))
    succeeded(zs2("--prompts", prompts, "--seeds", "3"))
    succeeded(zs2("--seeds", "0,3"))
    after = times(here / "s")
    assert {name: after[name] for name in before if name not in (".lock", "study.json")}.items() <= before.items()
    succeeded(zs2("--noise", "dnm", "iid", "--lam", "0.1", *BRIEF, "--seeds", "0,3", "--out", "t"))
    assert files(here / "s") == files(here / "t")


def test_a_part_of_a_study_may_be_asked_for(zs2, here, two):
    """The rest stays in it."""
    shutil.copytree(two, here / "s")
    shutil.rmtree(here / "s" / "clips")
    result = succeeded(zs2("--noise", "iid"))
    assert names(here / "s") == NAMES[2:]
    assert "all             2/2       2/2" in result.out
    assert (here / "s" / "study.json").read_bytes() == (two / "study.json").read_bytes()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--steps 2", ["steps is 1 in this study, now 2"]),
        ("--frames 3", ["frames is 2 in this study, now 3"]),
        ("--guidance 4", ["guidance is 5.0 in this study, now 4.0"]),
        ("--size 16x32", ["height is 16 in this study, now 32"]),
        ("--size 32x16", ["width is 16 in this study, now 32"]),
        ("--fps 12", ["fps is 8 in this study, now 12"]),
        ("--fps 29.97", ["fps is 8 in this study, now '2997/100'"]),
        ("--dtype bfloat16", ["dtype is 'float32' in this study, now 'bfloat16'"]),
        ("--negative-prompt bad", ["negative_prompt is '' in this study, now 'bad'"]),
        ("--prompts reordered.txt", ["prompt 0 is 'red apple' (closed) in this study, now '' (open)"]),
        ("--prompts closed.txt", ["prompt 1 is '' (open) in this study, now '' (closed)"]),
        ("--model ../checkpoint", ["of other weights (vae differ)"]),
    ],
)
def test_what_would_change_the_meaning_of_clips_is_refused(zs2, copy, here, folder, line, words):
    (here / "reordered.txt").write_text('[open]\n""\n[closed]\nred apple\n')
    (here / "closed.txt").write_text('red apple\n""\n')
    change(folder / "vae" / "diffusion_pytorch_model.safetensors", "decoder.conv_out.bias", lambda bias: bias + 1e-3)
    before = files(copy)
    failed(zs2(*line.split()), *words, "give another --out")
    assert files(copy) == before


@pytest.mark.parametrize("recorded", [REVISION, None], ids=["recorded", "from before"])
def test_clips_of_another_revision_are_not_put_beside_those_of_a_study(zs2, copy, monkeypatch, recorded):
    """But what is there is measured again."""
    study = text(copy / "study.json")
    assert study.pop("revision") == REVISION
    write_json(copy / "study.json", study | ({} if recorded is None else {"revision": recorded}))
    monkeypatch.setattr("zs2.study.planning.REVISION", 17)
    words = f"its clips were made by {'no revision' if recorded is None else f'revision {recorded}'}"
    before = files(copy)
    for line in (["--seeds", "0,3"], ["--seeds", "0,3", "--dry-run"], ["--motion-target", "0.05"]):
        failed(zs2(*line), words, "now it is revision 17", "give another --out for another study")
        assert files(copy) == before
    succeeded(zs2("--dry-run"))
    (copy / "measures" / f"{NAMES[0]}.json").unlink()
    succeeded(zs2())
    assert files(copy).keys() == before.keys()


def test_prompts_with_syntax_are_one_warning(zs2, here):
    (here / "p.txt").write_text("(red apple)\n[panda face]\nfox face\n")
    result = zs2("--noise", "dnm", "--lam", "0.1", *BRIEF, "--seeds", "0", "--prompts", "p.txt")
    assert result.status == 0
    (line,) = [line for line in result.err.splitlines() if "warning" in line]
    assert line.startswith("zs2: warning: the prompt '(red apple)' (and 1 other prompt) is read as plain text")


def change(file: Path, name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a tensor of a safetensors file, which may be a link."""
    tensors = load_file(file)
    tensors[name] = how(tensors[name])
    file.unlink()
    save_file(tensors, file)


def add_clip(folder: Path) -> None:
    for part in ("image_encoder", "feature_extractor"):
        shutil.copytree(CHECKPOINT / part, folder / part)


@pytest.mark.long
def test_a_study_of_a_model_in_a_folder_goes_on_wherever_that_is(zs2, here, folder):
    add_clip(folder)
    succeeded(zs2(*TWO, "--model", str(folder)))
    assert text(here / "s" / "study.json")["model"] == "checkpoint"
    before = times(here / "s")
    failed(zs2(*TWO), "the study in s is of the model 'checkpoint': give that with --model")
    succeeded(zs2("--model", str(shutil.move(folder, here))))
    succeeded(zs2("--model", "checkpoint"))
    assert times(here / "s") == before


def test_another_clip_measures_everything_again_and_makes_nothing(zs2, copy, two, tmp_path):
    clip = write_clip(tmp_path / "other-clip")
    before, measured = times(copy), files(copy)
    succeeded(zs2("--clip", str(clip)))
    after = times(copy)
    assert {name for name in after if after[name] != before[name]} == {f"measures/{name}.json" for name in NAMES}
    protocol = text(copy / "measures" / f"{NAMES[0]}.json")["protocol"]
    assert (protocol["clip"], protocol["comparable"]) == ("other-clip", True)
    assert protocol["clip_sha256"] == Scorer.from_pretrained(clip).digests
    succeeded(zs2("--clip", DEFAULT_MODEL))
    assert files(copy) == measured == files(two)


def test_a_study_that_grows_is_measured_by_the_clip_that_it_was_measured_by(zs2, copy, tmp_path):
    """The clips of two CLIPs have no report, so the one of before is asked for."""
    clip = write_clip(tmp_path / "other-clip")
    succeeded(zs2("--clip", str(clip)))
    before = files(copy)
    words = ["measured with the CLIP 'other-clip', now it would be 'weights/emoji128'", "give the same --clip"]
    for line in (["--noise", "shared"], []):
        failed(zs2(*line), "s: ", *words, "or, to measure all its clips anew, this one without options for cells")
        assert files(copy) == before
    failed(zs2("--noise", "shared", "--clip", DEFAULT_MODEL), *words)  # the others would keep the other way
    assert files(copy) == before
    succeeded(zs2("--noise", "shared", "--clip", str(clip)))
    assert Results.read(copy).gaps() == []


@pytest.mark.parametrize("lost", [NAMES, NAMES[2:]], ids=["all", "some"])
def test_the_lpips_of_a_study_is_neither_lost_nor_left_out(zs2, copy, lost):
    for name in lost:
        file = copy / "measures" / f"{name}.json"
        stored = text(file)
        stored["protocol"]["lpips"], stored["metrics"]["lpips"] = "3f2a" * 16, 0.25
        write_json(file, stored)
    before = files(copy)
    for line in (["--noise", "shared"], ["--motion-target", "0.05"], []):
        failed(zs2(*line), "measured with LPIPS", "(SHA-256 3f2a3f2a3f2a)", "give the same --lpips")
        assert files(copy) == before
    with pytest.MonkeyPatch.context() as no_clip:  # then nothing is measured, and nothing is lost
        no_clip.setattr(Scorer, "from_pretrained", Mock(side_effect=InputError("no CLIP here")))
        ended = zs2("--noise", "shared")
        assert "not measured: no CLIP here" in ended.err
        assert (copy / "clips" / "shared_tma-0.98_p00_s0.webp").exists()
    assert {name: content for name, content in files(copy).items() if name in before and "study" not in name} == {
        name: content for name, content in before.items() if "study" not in name
    }
    shutil.rmtree(copy / "measures")  # as the error says
    succeeded(zs2())
    assert Results.read(copy).gaps() == []


def test_measures_of_a_protocol_that_names_no_metrics_lack_the_newer_ones(zs2, copy, two):
    """As they were written before a protocol named its metrics: they are measured again, the clips are not made."""
    for name in NAMES:
        file = copy / "measures" / f"{name}.json"
        stored = text(file)
        del stored["protocol"]["metrics"]
        write_json(file, stored)
    before = times(copy)
    assert Results.read(copy).incomplete
    succeeded(zs2())
    assert {name for name, time in times(copy).items() if time != before[name]} == {f"measures/{n}.json" for n in NAMES}
    assert files(copy) == files(two)
    assert Results.read(copy).gaps() == []


@pytest.fixture
def brightness() -> Iterator[None]:
    """One more metric, added as a user would."""
    METRICS.add(Metric("brightness", "mean brightness", None, "0 is black, 1 is white", ("frames",), bright))
    yield
    if "brightness" in METRICS:
        METRICS.remove("brightness")


def bright(frames: np.ndarray) -> float:
    return float(frames.mean() / 255)


def columns(folder: Path) -> tuple[list[str], str, str]:
    """The report: the head of its CSV file, its Markdown and its page."""
    assert report([str(folder)]) == 0
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        head = next(csv.reader(file))
    return head, *((folder / f"report.{ending}").read_text(encoding="utf-8") for ending in ("md", "html"))


def test_a_new_metric_is_one_row(zs2, copy, brightness):
    """A study measured before is measured again, its clips are not made again, and the report has a column more."""
    before = times(copy)
    assert [gap[1:] for gap in Results.read(copy).gaps()] == [(0, 2), (0, 2)]
    assert "mean brightness" not in columns(copy)[1]
    succeeded(zs2("--shard", "1/2"))
    assert [gap[1:] for gap in Results.read(copy).gaps()] == [(0, 1), (0, 1)]
    succeeded(zs2())
    after = times(copy)
    assert {name for name in before if after[name] != before[name]} == {f"measures/{name}.json" for name in NAMES}
    for name in NAMES:
        metrics = text(copy / "measures" / f"{name}.json")["metrics"]
        assert metrics["brightness"] == rounded(bright(Clip.open(copy / "clips" / f"{name}.webp").frames))
    assert Results.read(copy).gaps() == []
    head, markdown, page = columns(copy)
    assert head[-2:] == ["brightness", "motion_pixels"]
    assert "- mean brightness: 0 is black, 1 is white" in markdown
    assert '<th scope="col">mean brightness</th>' in page


@pytest.mark.parametrize("named", [True, False], ids=["named", "of a protocol that names no metrics"])
def test_numbers_of_two_definitions_are_not_in_one_table(zs2, copy, monkeypatch, named):
    """A metric is defined anew: what was measured before has no number of it, and is measured again."""
    if not named:
        for name in NAMES:
            stored = text(copy / "measures" / f"{name}.json")
            del stored["protocol"]["metrics"]
            write_json(copy / "measures" / f"{name}.json", stored)
    anew = replace(METRICS["motion"], compute=bright, revision=2)
    monkeypatch.setitem(METRICS._rows, "motion", anew)
    before = Results.read(copy)
    assert [values["motion"] for values in before.measures.values()] == [None] * 4
    assert all(values["ssim"] is not None for values in before.measures.values())
    assert [gap[1:] for gap in before.gaps()] == [(0, 2), (0, 2)]
    succeeded(zs2("--shard", "1/2"))
    assert [values["motion"] is None for values in Results.read(copy).measures.values()].count(True) == 2
    succeeded(zs2())
    after = Results.read(copy)
    for job in after.study.jobs():
        frames = Clip.open(copy / "clips" / f"{job.name}.webp").frames
        assert after.measures[job.key]["motion"] == rounded(bright(frames))
    assert not after.gaps()
    assert "motion@2" in text(copy / "measures" / f"{NAMES[0]}.json")["protocol"]["metrics"]
    monkeypatch.undo()  # a zs2 of before does not take the number of a later definition for its own
    assert {values["motion"] for values in Results.read(copy).measures.values()} == {None}


def test_a_metric_that_was_removed_is_not_measured_or_shown(zs2, copy, brightness):
    succeeded(zs2())
    before = times(copy)
    METRICS.remove("brightness")
    succeeded(zs2())
    assert times(copy) == before
    assert "brightness" not in columns(copy)[0]


def cut(file: Path, length: int = 100) -> None:
    file.write_bytes(file.read_bytes()[:length])


@pytest.mark.parametrize(
    ("damage", "done"),
    [
        (lambda s: cut(s / "measures" / f"{NAMES[0]}.json"), {f"measures/{NAMES[0]}.json"}),
        (lambda s: cut(s / "measures" / f"{NAMES[0]}.json", 0), {f"measures/{NAMES[0]}.json"}),
        (lambda s: (s / "measures" / f"{NAMES[0]}.json").unlink(), {f"measures/{NAMES[0]}.json"}),
        (lambda s: cut(s / "clips" / f"{NAMES[1]}.webp"), {f"clips/{NAMES[1]}.webp", f"clips/{NAMES[1]}.webp.json"}),
        (lambda s: cut(s / "clips" / f"{NAMES[1]}.webp", 0), {f"clips/{NAMES[1]}.webp", f"clips/{NAMES[1]}.webp.json"}),
        (
            lambda s: (s / "clips" / f"{NAMES[1]}.webp").unlink(),
            {f"clips/{NAMES[1]}.webp", f"clips/{NAMES[1]}.webp.json"},
        ),
        (
            lambda s: (s / "clips" / f"{NAMES[1]}.webp.json").unlink(),
            {f"clips/{NAMES[1]}.webp", f"clips/{NAMES[1]}.webp.json"},
        ),
    ],
)
def test_what_was_lost_or_cut_short_is_made_again(zs2, copy, two, damage, done):
    damage(copy)
    before = times(copy)
    succeeded(zs2())
    assert files(copy) == files(two)
    after = times(copy)
    assert {name for name in after if after[name] != before.get(name)} == done


def test_a_clip_that_is_there_but_broken_is_named(zs2, copy):
    """It has its length, but not its content, and must be measured."""
    file = copy / "clips" / f"{NAMES[1]}.webp"
    content = bytearray(file.read_bytes())
    content[12:60] = bytes(48)
    file.write_bytes(content)
    (copy / "measures" / f"{NAMES[1]}.json").unlink()
    result = zs2()
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith(f"zs2: error: s/clips/{NAMES[1]}.webp: can't be read")


def test_a_study_json_that_is_cut_short_stops_everything(zs2, copy):
    cut(copy / "study.json")
    before = files(copy)
    failed(zs2(*TWO), "s/study.json: this is not what zs2.ablate writes", "can't be read as JSON", "another folder")
    assert files(copy) == before


# --- dividing ---------------------------------------------------------------------------------------------------------


def test_two_shards_are_one_run(zs2, here, two):
    first = succeeded(zs2(*TWO, "--shard", "1/2"))
    assert len(names(here / "s")) == 2
    assert "2 of 4 are left to make or measure, by other processes or by this command again" in first.out
    second = succeeded(zs2(*TWO, "--shard", "2/2"))
    assert "left to make" not in second.out
    assert files(here / "s") == files(two)


def test_the_processes_of_torchrun_are_one_run(zs2, here, two, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    made = []
    for rank in ("2", "0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = succeeded(zs2(*TWO))
        assert ("next: python -m zs2.report" in result.out) == (rank == "0")
        made.append(len(names(here / "s")))
    assert made == sorted(set(made))  # each did something
    assert files(here / "s") == files(two)


def test_a_wrong_environment_of_torchrun(zs2, here, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    failed(zs2(*TWO), "RANK=3, WORLD_SIZE=1: expected those of torchrun")
    assert files(here) == {}


@pytest.mark.long
def test_the_bytes_do_not_depend_on_the_threads_of_later_processes(zs2, here):
    """torchrun tells each process to compute with one thread, and the last bits depend on their number."""
    try:
        torch.set_num_threads(3)
        succeeded(zs2(*TWO, "--shard", "1/2"))
        assert text(here / "s" / "study.json")["threads"] == 3
        torch.set_num_threads(1)
        succeeded(zs2(*TWO, "--shard", "2/2"))
        assert torch.get_num_threads() == 3
        succeeded(zs2(*TWO, "--out", "whole"))
    finally:
        torch.set_num_threads(1)
    assert files(here / "s") == files(here / "whole")


def in_forks(mode: str, folder: Path, count: int, *arguments: str) -> list[int]:
    """Run forks.py. Returns how its processes ended."""
    process = forked(mode, str(folder), str(count), *arguments, program=(str(ROOT / "tests" / "forks.py"),))
    out, err = process.communicate()
    assert (process.returncode, "warning" in err) == (0, False), err
    return json.loads(out)


@pytest.mark.long
@forks
def test_two_processes_at_once_share_the_work(zs2, here, prompts, narrow):
    line = ["--noise", "dnm", "iid", "shared", "--lam", "0.1", "--attn", "tma", "sa", *BRIEF, "--prompts", prompts]
    line += ["--model", str(narrow)]
    assert in_forks("together", here / "s", 2, *line) == [0, 0]
    sampled = [entry.split() for entry in (here / "s.log").read_text().splitlines()]
    assert len({process for process, _ in sampled}) == 2
    assert sorted(name for _, name in sampled) == names(here / "s")  # each once
    succeeded(zs2(*line, "--out", "alone"))
    assert files(here / "s") == files(here / "alone")


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@forks
def test_killed_before_any_change_to_the_folder_and_finished(zs2, here, prompts, narrow):
    """Every change that a clip and its measures take, from the first of all: 24 processes are killed."""
    line = [
        "--noise",
        "dnm",
        "iid",
        "--lam",
        "0.1",
        *BRIEF,
        "--prompts",
        prompts,
        "--seeds",
        "0..1",
        "--model",
        str(narrow),
    ]
    assert in_forks("killed-at-events", here / "s", 24, *line) == [-signal.SIGKILL] * 24
    assert list((here / "s").rglob("*.part")) != []
    succeeded(zs2(*line, "--out", "whole"))
    whole = files(here / "whole")
    for name in names(here / "s"):
        assert (here / "s" / "clips" / f"{name}.webp").read_bytes() == whole[f"clips/{name}.webp"]
    assert "zs2: removed what killed processes left: s/clips/.zs2-" in succeeded(zs2(*line)).err
    assert files(here / "s") == whole


@pytest.mark.long
@forks
def test_killed_at_random_moments_and_finished(zs2, here, prompts, narrow):
    line = [
        "--noise",
        "dnm",
        "iid",
        "shared",
        "--lam",
        "0.1",
        *BRIEF,
        "--size",
        "32x32",
        "--prompts",
        prompts,
        "--seeds",
        "0..3",
    ]
    line += ["--model", str(narrow)]
    ends = in_forks("killed-at-moments", here / "s", 4, *line)
    assert -signal.SIGKILL in ends
    succeeded(zs2(*line))
    succeeded(zs2(*line, "--out", "whole"))
    assert files(here / "s") == files(here / "whole")


@posix
@pytest.mark.slow
def test_killed_at_20_random_moments_of_its_duration_and_finished(here):
    """A larger study, killed as a command, loading included."""
    line = ["--preset", "lambda", "--steps", "4", "--spacing", "trailing", "--frames", "4", "--seeds", "0"]
    start = time.monotonic()
    succeeded(command(*line, "--out", "whole"))
    duration = time.monotonic() - start
    rng, ends = np.random.default_rng(4), []
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "zs2.ablate", *line, "--out", "s"],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0, duration / 10))
        process.kill()
        ends.append((process.wait(), len(names(here / "s")) if (here / "s" / "clips").exists() else 0))
    print(f"{duration:.0f} s undisturbed; (exit status, clips there) after each kill: {ends}")
    assert [status for status, _ in ends].count(-signal.SIGKILL) >= 15
    succeeded(command(*line, "--out", "s"))
    assert files(here / "s") == files(here / "whole")


@pytest.mark.long
@posix
@pytest.mark.parametrize(("number", "by"), [(signal.SIGINT, ""), (signal.SIGTERM, " by SIGTERM")])
def test_a_signal_keeps_what_is_finished(zs2, here, prompts, number, by):
    line = [
        "--noise",
        "dnm",
        "--lam",
        "0.1",
        *BRIEF,
        "--size",
        "32x32",
        "--steps",
        "4",
        "--seeds",
        "0..3",
        "--prompts",
        prompts,
    ]
    words = [sys.executable, "-m", "zs2.ablate", *line, "--out", "s"]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not list(here.glob("s/measures/*.json")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
        process.wait()
    own, *others, stopped = err.splitlines()
    assert not others, (err, process.returncode)
    assert own == f"zs2: {NAME}'s own settings: guidance 5 (zs2.json)"
    kept = f"zs2: stopped{by}: what was finished before is kept"
    assert (process.returncode, out, stopped) == (128 + number, "", kept)
    assert 1 <= len(names(here / "s")) < 8
    assert list((here / "s").rglob("*.part")) == []
    before = times(here / "s")
    succeeded(zs2(*line))
    assert len(names(here / "s")) == 8
    assert before.items() <= times(here / "s").items()


FULL = """if True:
    import resource, sys
    import zs2.study.runner
    from zs2.ablate import main
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    sys.exit(main())
"""


@posix
@pytest.mark.long
def test_a_disk_that_is_full(zs2, here, prompts):
    """No file may be longer than 3000 bytes: study.json is shorter, but a clip of 64×64 is not."""
    line = [*TWO, "--size", "64x64", "--prompts", prompts]
    process = forked(*line, "--out", "s", program=("-c", FULL))
    out, err = process.communicate()
    failed(Result(process.returncode, out, err), "large", status=1)
    assert files(here / "s").keys() == {"study.json", ".lock", "clips", "measures"}
    succeeded(zs2(*line))
    assert names(here / "s") == NAMES


# --- clips that fail, and clips without measures ----------------------------------------------------------------------


def test_a_clip_of_nan_is_left_out_and_reported_and_the_others_are_made(zs2, here, folder):
    add_clip(folder)
    token = ZS2.from_pretrained(CHECKPOINT).tokenizer.encode(["apple"])[0, 1]
    weights = folder / "text_encoder" / "model.safetensors"

    def break_apple(embedding: torch.Tensor) -> torch.Tensor:
        embedding[token] = torch.nan
        return embedding

    change(weights, "text_model.embeddings.token_embedding.weight", break_apple)
    result = zs2(*TWO, "--model", str(folder))
    failed(result, "2 of 4 clips could not be made", f"{NAMES[0]}: the latents are NaN", "after step 1 of 1", status=1)
    assert names(here / "s") == names(here / "s", "measures") == [NAMES[1], NAMES[3]]
    assert "all                 2/4       2/4" in result.out
    assert "left to make" not in result.out


@pytest.mark.long
def test_without_a_clip_that_scores_the_clips_are_made_and_measured_later(zs2, here, folder, tmp_path, monkeypatch):
    """A model without image_encoder/, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    line = [*TWO, "--model", str(folder)]
    result = zs2(*line)
    warning = next(line for line in result.err.splitlines() if "warning" in line)
    assert "clips will be made, but not measured" in warning
    assert "openai/clip-vit-large-patch14" in warning
    failed(result, "the clips are there, but not measured", "give the same command", "HF_HUB_OFFLINE", status=1)
    assert names(here / "s") == NAMES
    assert names(here / "s", "measures") == []
    before = times(here / "s")
    failed(zs2(*line), "the clips are there, but not measured", status=1)
    add_clip(folder)
    succeeded(zs2(*line))
    assert names(here / "s", "measures") == NAMES
    assert before.items() <= times(here / "s").items()


def test_without_opencv_one_metric_is_left_out(zs2, here, monkeypatch):
    from zs2.evaluation.optical_flow import opencv

    opencv.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)  # as Python marks what can't be imported
    try:
        result = zs2(*TWO)
    finally:
        opencv.cache_clear()
    assert result.status == 0
    (warning,) = [line for line in result.err.splitlines() if "warning" in line]
    assert re.search(r"flow-warp-error is left out.*pip install 'zs2\[metrics\]'", warning)
    said = text(here / "s" / "measures" / f"{NAMES[0]}.json")
    assert said["metrics"]["flow-warp-error"] is None
    assert said["protocol"]["opencv"] is None
    assert said["metrics"]["motion"] > 0


def test_where_there_are_no_locks_it_works_the_same(zs2, here, two, monkeypatch):
    monkeypatch.setattr("zs2.study.lock.fcntl", None)
    succeeded(zs2(*TWO))
    assert files(here / "s") == files(two)
