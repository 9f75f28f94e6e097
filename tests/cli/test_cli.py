"""`python -m zs2.sample`: what it writes, what it refuses and in which words, what it warns of, and how it stops."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked
from helpers import CHECKPOINT, LAM, LATENTS, NAME, REDUCTION, SIDE, TESTS, UNGUIDED
from PIL import Image
from safetensors.torch import load_file, save_file

import zs2.checkpoints.locate as zs2_locate
from zs2 import ZS2
from zs2.__main__ import COMMANDS
from zs2.ablate import main as ablate
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.locate import FORMER
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.sample_options import fast
from zs2.errors import InputError
from zs2.metrics import main as metrics
from zs2.report import main as report
from zs2.sample import main
from zs2.sampling.request import FAST
from zs2.version import REVISION
from zs2.video.clip import read_settings

ROOT = TESTS.parent
EXAMPLE = OwnSettings.of(CHECKPOINT).prompts[0]
# the cheapest clip; options that follow win
BRIEF = ("--steps", "1", "--frames", "2", "--size", "16x16", "--spacing", "trailing")
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def written(self) -> list[str]:
        return self.out.split()

    @property
    def warnings(self) -> list[str]:
        start = "zs2: warning: "
        return [line.removeprefix(start) for line in self.err.splitlines() if line.startswith(start)]


Command = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def zs2(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in this process and in an empty working directory."""

    def run(*arguments: str) -> Result:
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else -1
        return Result(status, *capsys.readouterr())

    return run


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def command(*arguments: str, cwd: Path, program: Sequence[str] = ("-m", "zs2.sample"), encoding: str = "") -> Result:
    """The command, as a command."""
    words, env = [sys.executable, *program, *arguments], environment() | {"PYTHONIOENCODING": encoding or "utf-8"}
    ended = subprocess.run(words, cwd=cwd, env=env, capture_output=True, encoding=encoding or "utf-8", timeout=600)
    return Result(ended.returncode, ended.stdout, ended.stderr)


def forked(*arguments: str, cwd: Path, program: Sequence[str] = ("-m", "zs2.sample")) -> Result:
    """The command, in a process of its own that is forked."""
    process = Forked([*program, *arguments], cwd)
    out, err = process.communicate()
    return Result(process.returncode, out, err)


def succeeded(result: Result) -> Result:
    assert result.status == 0, result.err
    return result


def failed(result: Result, *words: str, status: int = 2) -> None:
    """Assert that a command ended with one line that has these words, and nothing else."""
    assert "Traceback" not in result.err
    assert result.status == status, result.err
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert result.err == line + "\n"
    assert line.startswith("zs2: error: ")
    assert line.isprintable(), repr(line)
    assert len(line) < 700, line
    for word in words:
        assert word in line


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def text(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def frames(file: Path) -> np.ndarray:
    """The frames of an animation, (F, H, W, 3), as integers that can be subtracted."""
    with Image.open(file) as image:
        pictures = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            pictures.append(np.asarray(image.convert("RGB"), dtype=int))
    return np.stack(pictures)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def things(here: Path) -> None:
    """Files to give to the command, most of them wrong."""
    Path("two.txt").write_text("red apple\n\n  blue star \n")
    Path("blank.txt").write_text(" \n\t\n")
    Path("empty.txt").write_text("")
    Path("latin1.txt").write_bytes("café\n".encode("latin-1"))
    Path("full").mkdir()
    Path("full/letter.txt").write_text("keep me")
    Path("taken.gif").mkdir()
    Path("jam.gif.json").mkdir()
    Path("file").write_text("not a folder")
    Path("model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    Path("model.safetensors").write_bytes(b"{}")
    for name, content in {"list": "[1]", "half": '{"prompt": ', "other": '{"prompt": "red apple"}'}.items():
        Path(f"{name}.json").write_text(content)
    Image.new("RGB", (8, 8)).save("holiday.png")
    Image.new("RGB", (8, 8)).save("holiday.gif")
    Path("broken.gif").write_bytes(b"GIF89a")
    noise = torch.zeros(2, *LATENTS)
    save_file({"latents": noise}, "noise.safetensors")
    save_file({"noise": noise}, "unnamed.safetensors")
    save_file({"latents": noise[0]}, "flat.safetensors")
    save_file({"latents": noise.half()}, "half.safetensors")
    save_file({"latents": noise[:, :3].clone()}, "thin.safetensors")
    save_file({"latents": noise[:0].clone()}, "none.safetensors")
    save_file({"latents": noise[..., :0].clone()}, "void.safetensors")
    save_file({"latents": noise / 0}, "nan.safetensors")


NO_MODEL = "expected a folder in the diffusers layout"
ERRORS: list[tuple[str, list[str]]] = [
    # numbers
    ("--mu 2", ["mu is 2.0", "from 0", "to 1"]),
    ("--mu -0.1", ["mu is -0.1", "from 0", "to 1"]),
    ("--mu nan", ["mu is nan", "from 0", "to 1"]),
    ("--mu inf", ["mu is inf", "from 0", "to 1"]),
    ("--mu 2 --attn sa", ["mu is 2.0"]),  # wrong even where it has no effect
    ("--mu high", ["--mu", "'high'"]),
    ("--mu", ["--mu", "expected one argument"]),
    ("--lam -1", ["lam is -1.0", "from 0", "√e = 1.6487"]),
    ("--lam 2", ["lam is 2.0", "from 0", "√e = 1.6487"]),
    ("--lam 1.64873", ["lam is 1.64873", "√e"]),
    ("--lam nan", ["lam is nan", "√e"]),
    ("--lam inf --noise iid", ["lam is inf"]),
    ("--noise mixed --alpha -1", ["alpha is -1.0", "from 0"]),
    ("--noise mixed --alpha nan", ["alpha is nan", "from 0"]),
    ("--noise progressive --alpha inf", ["alpha is inf", "from 0"]),
    ("--noise mixed --alpha 1e200 --steps 1 --frames 2", ["1e+200"]),
    ("--noise progressive --alpha 1e200 --steps 1 --frames 2", ["1e+200"]),
    ("--guidance nan", ["guidance is nan", "finite number"]),
    ("--guidance inf", ["guidance is inf", "finite number"]),
    ("--guidance=-inf", ["guidance is -inf", "finite number"]),
    ("--guidance strong", ["--guidance", "'strong'"]),
    ("--frames 0", ["frames is 0", "from 1"]),
    ("--frames -8", ["frames is -8", "from 1"]),
    (f"--frames {10**400}", ["frames is 1000", "from 1 to 1000000000"]),
    (f"--chunk {10**30}", ["chunk is 1000", "from 1 to 1000000000"]),
    ("--frames 1.5", ["--frames", "'1.5'"]),
    ("--steps 0", ["steps is 0", "from 1 to 100000"]),
    ("--steps -1", ["steps is -1", "from 1"]),
    ("--steps 1000000000", ["steps is 1000000000", "from 1 to 100000"]),
    ("--steps 1000", ["1000 steps", "1000 timesteps", "at most 999"]),
    ("--steps 1001", ["1001 steps", "1000 timesteps", "at most 999"]),
    ("--steps 1e3", ["--steps", "'1e3'"]),
    ("--fps 0", ["fps is 0", "0.01 to 1000"]),
    ("--fps=-5", ["fps is -5", "0.01 to 1000"]),
    ("--fps 2000 --out a.webp", ["fps is 2000", "to 1000"]),
    ("--fps 60", ["60", "GIF", ".webp"]),
    ("--fps 12,5", ["fps is 12,5", "24000/1001"]),
    ("--seed -2", ["seed is -2", "from 0 to 4294967295"]),
    ("--seed 4294967303", ["seed is 4294967303", "from 0 to 4294967295", "32 bits", "the same first frame with 7"]),
    (f"--seed {10**30}", [f"seed is {10**30}", "from 0 to 4294967295"]),
    (f"--seed {'9' * 5000}", ["seed", "4294967295"]),
    ("--seed 0,1,-2", ["seed is -2", "from 0 to 4294967295"]),
    ("--seed 1.5", ["--seed", "'1.5'", "expected a number, a range 0..3 or a list 1,5,7"]),
    ("--seed lucky", ["--seed", "'lucky'", "expected a number, a range"]),
    ("--seed ''", ["--seed", "''", "expected a number, a range"]),
    ("--seed 1,,2", ["--seed", "'1,,2'", "expected a number, a range"]),
    ("--seed 3..1", ["--seed", "'3..1'", "rises"]),
    ("--seed 0..10000000", ["--seed", "'0..10000000'", "100000"]),
    ("--seed 4,4 --steps 1 --frames 1", ["4"]),  # the second clip would overwrite the first
    ("--seed 0..3,2 --steps 1 --frames 1", ["2"]),
    ("--guidance-interval 0.8,0.2", ["guidance_interval is (0.8, 0.2)", "two shares of the steps that rise"]),
    ("--guidance 1 --guidance-interval 0,0.5", ["guidance_interval 0,0.5 with guidance 1", "another guidance"]),
    ("--deep-cache 0", ["deep_cache is 0", "at least 1"]),
    ("--deep-cache 1.5", ["--deep-cache: '1.5': expected a whole number"]),
    ("--guidance high", ["--guidance: 'high': expected a number"]),
    ("--lam much", ["--lam: 'much': expected a number"]),
    ("--num-inference-steps 3", ["did you mean '--steps'?"]),
    ("--cfg-scale 3", ["did you mean '--guidance'?"]),
    ("--size 63x64", ["63x64", f"multiples of {REDUCTION}"]),
    ("--size 64x66", ["64x66", f"multiples of {REDUCTION}"]),
    ("--size 0x0", ["is 0", f"from {REDUCTION}"]),
    ("--size 64x2", ["is 2", f"from {REDUCTION}"]),
    ("--size 64", ["--size", "'64'", "WIDTHxHEIGHT"]),
    ("--size 64x64x64", ["--size", "'64x64x64'", "WIDTHxHEIGHT"]),
    ("--size=-64x64", ["--size", "'-64x64'", "WIDTHxHEIGHT"]),
    ("--size ٦٤x٦٤", ["--size", "WIDTHxHEIGHT"]),
    # names
    ("--attn tmaa", ["'tmaa'", "sa, cfa, tma, tma-two-tap", "did you mean 'tma'?"]),
    ("--attn TMA", ["'TMA'", "sa, cfa, tma, tma-two-tap", "did you mean 'tma'?"]),
    ("--attn ''", ["''", "sa, cfa, tma, tma-two-tap"]),
    ("--noise idd", ["'idd'", "iid, shared, mixed", "did you mean 'iid'?"]),
    ("--noise dnm_search", ["'dnm_search'", "did you mean 'dnm-search'?"]),
    ("--dtype fp16", ["'fp16'", "float32, bfloat16, float16", "did you mean 'float16'?"]),
    ("--dtype float64", ["'float64'", "float32, bfloat16, float16"]),
    ("--device gpu", ["'gpu'", "none of cpu, cuda and mps", "try cpu"]),
    ("--device cuda:99", ["'cuda:99'", "try cpu"]),
    ("--device ''", ["''", "try cpu"]),
    ("--device meta", ["'meta'"]),
    ("--frobnicate", ["--frobnicate"]),
    ("--step 3", ["--step", "did you mean '--steps'?"]),  # not taken for --steps
    ("red apple --steps 3", ["unrecognized arguments: apple", 'quote the prompt: "red apple"']),
    # models
    ("a --model no/such/model", ["no such model: 'no/such/model'", NO_MODEL, DEFAULT_MODEL]),
    (f"a --model {'m' * 300}", ["no such model", NO_MODEL]),
    ("a --model full", ["'full' is not a model folder", "unet/, vae/, text_encoder/, tokenizer/, scheduler/"]),
    ("a --control '' ''", ["--control: '' is empty: expected MODEL CLIP"]),
    ("a --model '' --vae ''", ["--model: '' is empty: expected PATH"]),
    ("a --variant ''", ["--variant: '' is empty: expected NAME"]),
    ("a --prediction ''", ["--prediction: '' is empty: expected P"]),
    ("rose --fps ''", ["fps is '': expected frames a second"]),
    ("a --model file", ["file"]),
    ("a --model model.safetensors", ["model.safetensors"]),
    ("a --model model.ckpt", ["model.ckpt is a pickle", "convert", "safetensors"]),
    ("--model full", ["no prompt", "give one"]),
    # prompts
    # names that are too long to be a file's
    (f"--embedding {'e' * 300}", ["no such embedding"]),
    (f"--embedding toy.safetensors:{'e' * 5000}", ["no such embedding: 'toy.safetensors'"]),
    (f"--latents {'l' * 300}", ["no such file of latents"]),
    (f"--replay {'r' * 300}.gif", ["no such file"]),
    (f"--replay {'r/' * 3000}r.gif", ["no such file"]),
    ("--prompts blank.txt", ["blank.txt", "no prompt in it", "one a line"]),
    ("--prompts empty.txt", ["empty.txt", "no prompt in it", "one a line"]),
    ("--travel empty.txt", ["empty.txt", "no prompt in it", "one a line"]),
    ("--prompts gone.txt", ["gone.txt", "No such file"]),
    ("--prompts full", ["full", "a folder"]),
    ("--prompts latin1.txt", ["latin1.txt", "UTF-8"]),
    ("--travel two.txt --frames 1", ["2 prompts for 1 frames", "expected"]),
    ("star --prompts two.txt", ["prompt and prompts", "expected one of"]),
    ("star --travel two.txt", ["prompt and travel", "expected one of"]),
    ("--prompts two.txt --travel two.txt", ["prompts and travel", "expected one of"]),
    # outputs
    ("--out clip.avi", ["clip.avi", "'.avi'", ".gif, .webp, .png, .apng, .mp4"]),
    ("--out clip.gifv", ["'.gifv'", "did you mean '.gif'?"]),
    ("--out clip.jpg", ["'.jpg'", ".gif, .webp, .png, .apng, .mp4"]),
    ("--out taken.gif", ["taken.gif is a folder", "choose"]),
    ("--out jam.gif", ["jam.gif.json is a folder", "choose"]),  # the JSON beside it
    ("--out full", ["full", "choose a new name"]),
    ("--out file", ["file", "choose a new name"]),
    ("--out file/clip.gif", ["file/clip.gif", "file is not a folder", "choose"]),
    ("--out file/deep/clip.gif", ["file/deep/clip.gif", "choose"]),
    ("--out .", ["'.'", "names no file", "clip.gif"]),
    ("--out ..", ["'..'", "names no file", "clip.gif"]),
    ("--out .gif", ["'.gif'", "names no file", "clip.gif"]),
    (f"--out {'n' * 300}.gif", ["too long", "choose"]),
    # latents
    ("--latents gone.safetensors", ["gone.safetensors", "no such file"]),
    ("--latents full", ["full", "no such file"]),
    ("--latents file", ["zs2: error: file: ", "not a whole safetensors file"]),
    ("--latents model.ckpt", ["zs2: error: model.ckpt", "pickle"]),
    ("--latents unnamed.safetensors", ["unnamed.safetensors", "expected a tensor `latents`", "'noise'"]),
    ("--latents flat.safetensors", ["flat.safetensors", "(frames, c, h, w)", str(LATENTS)]),
    ("--latents half.safetensors", [f"torch.float16 {(2, *LATENTS)}", "expected torch.float32"]),
    ("--latents thin.safetensors", [str((2, 3, *LATENTS[1:])), f"expected torch.float32 {(2, *LATENTS)}"]),
    ("--latents none.safetensors", ["0"]),
    ("--latents void.safetensors", ["0"]),
    ("--latents nan.safetensors", ["latents", "NaN"]),
    ("--latents noise.safetensors --frames 3", [str((2, *LATENTS)), f"expected torch.float32 {(3, *LATENTS)}"]),
    (
        f"--latents noise.safetensors --size {SIDE // 2}x{SIDE}",
        [str((2, *LATENTS)), f"expected torch.float32 {(2, *LATENTS[:2], LATENTS[2] // 2)}"],
    ),
    # clips to replay
    ("--replay gone.json", ["gone.json", "no such file"]),
    ("--replay jam.json", ["jam.json", "no such file", "did you mean 'jam.gif.json'?"]),
    ("--replay full", ["full/0000.png", "no such file"]),
    ("--replay file", ["file: unknown clip ending ''", ".json", ".gif"]),
    ("--replay two.txt", ["two.txt: unknown clip ending '.txt'", ".json", ".gif"]),
    ("--replay list.json", ["list.json", "no settings of zs2"]),
    ("--replay half.json", ["half.json", "no settings of zs2"]),
    ("--replay other.json", ["other.json", "not the settings of a clip of zs2"]),
    ("--replay holiday.png", ["holiday.png", "no settings of zs2"]),
    ("--replay holiday.gif", ["holiday.gif", "no settings of zs2"]),
    ("--replay broken.gif", ["broken.gif", "can't be read"]),
]


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize(("line", "words"), ERRORS, ids=[line[:40] for line, _ in ERRORS])
def test_an_error_is_one_line_with_the_value_and_what_to_do(zs2, here, line, words):
    before = files(here)
    failed(zs2(*shlex.split(line)), *words)
    assert files(here) == before


def test_an_error_as_a_command(here):
    failed(command("--frames", "0", cwd=here), "frames is 0", "from 1 to")


@pytest.mark.parametrize(
    "arguments",
    [
        ["red\n\x1b[31mapple", "blue\n\x1b[31mstar"],
        ["--frobnicate\n\x1b[31m"],
        ["--seed", "1\n\x1b[31m"],
        ["--attn", "tma\n\x1b[31m\u202e"],
        ["a", "--model", "weights\n\x1b[31m\u202e\u2028"],
        ["--out", "clip\n\x1b[31m.avi"],
        ["--prompts", "no\n\x1b[31m\u202e.txt"],
        ["--replay", "no\n\x1b[31m.json"],
    ],
    ids=ascii,
)
def test_control_characters_do_not_reach_the_terminal(zs2, arguments):
    failed(zs2(*arguments))


def test_a_prompt_that_is_no_text(zs2):
    """Bytes of a command line that are not UTF-8 arrive as half surrogate pairs."""
    failed(zs2(*BRIEF, "caf\udce9"), "prompt")


def test_a_place_that_can_not_be_written_is_told_before_sampling(zs2, here):
    folder = here / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root may write anywhere but there
        folder = Path("/proc")
        if not folder.exists():
            pytest.skip("everything can be written")
    failed(zs2("--out", str(folder / "clip.gif")), f"{folder}/clip.gif", "can't be written", "choose another place")


def test_mp4_without_pyav_is_told_before_sampling(zs2, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # as Python marks what can't be imported
    failed(zs2("--out", "clip.mp4"), "PyAV", "pip install 'zs2[video]'", ".webp")
    assert files(here) == {}


def test_what_is_wrong_with_the_options_is_told_before_the_model_is_looked_for(zs2):
    for wrong in (["--out", "clip.avi"], ["--frames", "0"], ["--prompts", "gone.txt"], ["--seed", "-2"]):
        prompt = [] if wrong[0] == "--prompts" else ["a"]
        failed(zs2(*prompt, "--model", "no/such/model", *wrong), wrong[1].removeprefix("clip"))


def test_help_and_wrong_arguments_answer_without_torch(here):
    """Nothing that is slow to import is imported for them."""
    code = """if True:
        import sys
        from zs2.sample import main
        wrong = "--steps many,--frames 0,--steps 0,--mu 2,--lam 2,--noise foo,--attn tmaa,--dtype fp16,red apple"
        for arguments in (["--help"], ["--version"], *map(str.split, wrong.split(","))):
            try:
                main(arguments)
            except SystemExit:
                pass
        print([name for name in ("torch", "numpy", "PIL", "safetensors", "tokenizers") if name in sys.modules])
    """
    result = succeeded(command(program=("-c", code), cwd=here))
    assert result.out.splitlines()[-1] == "[]"


def test_no_command_needs_torch_for_its_help_or_a_wrong_option(here):
    code = """if True:
        import sys
        from zs2.__main__ import COMMANDS, main
        for arguments in ([], ["--help"], ["nope"], *([name, end] for name in COMMANDS for end in ("--help", "--no"))):
            try:
                status = main(arguments)
            except SystemExit as end:
                status = end.code
            print(*arguments, "exits with", status, *[name for name in ("torch", "gradio") if name in sys.modules])
    """
    result = succeeded(command(program=("-c", code), cwd=here))
    lines = [line.strip() for line in result.out.splitlines() if "exits with" in line]
    known = [(f"{name} --help exits with 0", f"{name} --no exits with 2") for name in COMMANDS]
    assert lines == ["exits with 0", "--help exits with 0", "nope exits with 2", *itertools.chain(*known)]


def test_a_clip_imports_nothing_that_it_does_not_use(here):
    """Beside the standard library and what torch imports of itself: no hub, no study, no optional package."""
    code = f"""if True:
        import sys
        import torch
        before = set(sys.modules)
        from zs2.sample import main
        assert main({["apple", *BRIEF, "--out", "c.gif"]!r}) == 0
        names, known = ({{name.split(".")[0] for name in modules}} for modules in (sys.modules, before))
        names -= known | sys.stdlib_module_names
        print(sorted(names), *sorted(name for name in sys.modules if name.startswith("zs2.")))
    """
    last = succeeded(command(program=("-c", code), cwd=here)).out.splitlines()[-1]
    packages, modules = last.split("] ")
    assert packages == "['PIL', 'safetensors', 'tokenizers', 'zs2'"
    for part in ("study", "reporting", "evaluation", "video.streaming", "sampling.frame_parallel", "cli.torchrun"):
        assert find_spec(f"zs2.{part}"), "the name of a module that there is not would pass for ever"
        assert not [name for name in modules.split() if f"{name}.".startswith(f"zs2.{part}.")]


HELP = """model device dtype attn mu noise lam alpha negative-prompt frames steps sampler guidance
    guidance-interval deep-cache clip-skip embedding vae variant spacing zero-snr no-zero-snr final-alpha
    fast seed size latents prompts travel out fps no-sheet replay version help
    stream resumable resume process-timeout"""


def test_help_names_every_option_and_its_default(zs2):
    result = succeeded(zs2("--help"))
    assert result.err == ""
    for option in HELP.split():
        assert f"--{option}" in result.out
    for default in ("the checkpoint's own example", DEFAULT_MODEL, "0.98", "0.01", "7.5", "default 50"):
        assert default in " ".join(result.out.split())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_and_errors_where_the_terminal_has_no_greek(here, encoding):
    assert "--guidance" in succeeded(command("--help", cwd=here, encoding=encoding)).out
    failed(command("--frames", "0", "a λ", cwd=here, encoding=encoding), "frames is 0")


# --- errors of a checkpoint, through the command ----------------------------------------------------------------------


def break_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")


def break_weights(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()[:-1]
    file.unlink()
    file.write_bytes(content)


def offer_pickle(folder: Path) -> None:
    (folder / UNET).unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    del tensors["text_model.final_layer_norm.bias"]
    (folder / "text_encoder" / "model.safetensors").unlink()
    save_file(tensors, folder / "text_encoder" / "model.safetensors")


def ask_for_xl(folder: Path) -> None:
    config = text(folder / "unet" / "config.json") | {"addition_embed_type": "text_time"}
    (folder / "unet" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (break_json, ["unet/config.json", "JSON"]),
        (break_weights, ["vae/diffusion_pytorch_model.safetensors", "fetch it again"]),
        (offer_pickle, ["diffusion_pytorch_model.bin is a pickle", "convert"]),
        (drop_tensor, ["text_encoder", "1 tensor missing: text_model.final_layer_norm.bias (192,)"]),
        (ask_for_xl, ["unet", "projection_class_embeddings_input_dim is None"]),
    ],
)
def test_an_error_of_a_checkpoint(zs2, folder, how, words):
    how(folder)
    failed(zs2("a", "--model", str(folder)), *words)


# --- sampling that fails ----------------------------------------------------------------------------------------------


def test_nan_latents_stop_the_clip(zs2, here, folder):
    tensors = load_file(folder / UNET)
    tensors["conv_out.weight"][0, 0, 0, 0] = torch.nan
    (folder / UNET).unlink()
    save_file(tensors, folder / UNET)
    line = f"a --model '{folder}' --dtype bfloat16 --steps 3 --spacing trailing --frames 1 --guidance 1 --out a.gif"
    result = zs2(*shlex.split(line))
    failed(result, "NaN", "after step 1 of 3", "timestep 999", "bfloat16", "try float32, or another file", status=1)
    assert "so are weights, of unet: conv_out.weight (1 of " in result.err
    assert "guidance" not in result.err
    assert files(here) == {}


def test_infinite_latents_stop_the_clip(zs2, here):
    result = zs2("--guidance", "1e38", "--steps", "2", *BRIEF[-2:], "--frames", "2", "--lam", "0.01")
    failed(result, "infinite", "after step ", " of 2 ", "float32", "smaller guidance than 1e+38", status=1)
    assert "try float32" not in result.err  # it was
    assert files(here) == {}


LIMITED = """if True:
    import resource, sys
    import zs2.pipeline
    from zs2.sample import main
    limits = {limits}
    for limit, size in limits.items():
        resource.setrlimit(limit, (size, size))
    sys.exit(main())
"""
posix = pytest.mark.skipif(os.name != "posix", reason="sets limits of a process, or sends it a signal")


@pytest.mark.long
@posix
def test_a_disk_that_is_full(here):
    """No file may be longer than 2000 bytes, so that writing the clip fails."""
    code = LIMITED.format(limits="{resource.RLIMIT_FSIZE: 2000}")
    result = forked(*BRIEF, "--out", "clip.gif", program=("-c", code), cwd=here)
    assert "Traceback" not in result.err
    assert result.status == 1
    assert result.out == ""
    own, sampled, error = result.err.splitlines()
    assert own == f"zs2: {NAME}'s own settings: guidance 5, λ {LAM:g} (zs2.json)"
    assert sampled.startswith("sampling 1/1")
    assert error.startswith("zs2: error: ")
    assert files(here) == {}
    assert list(here.iterdir()) == []


@posix
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.long
def test_too_little_memory(here):
    """A quarter of a gigabyte more than torch needs to start, too little for a clip of 1200x1200 pixels, which the
    machine itself could hold."""
    used = "int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()"
    code = LIMITED.format(limits=f"{{resource.RLIMIT_AS: {used} + 2**28}}")
    arguments = (*BRIEF, "--size", "1200x1200", "--guidance", "7.5", "--lam", "0.01", "--device", "cpu")
    failed(forked(*arguments, program=("-c", code), cwd=here), "within ulimit -v", " needs most, ", "smaller size")


@pytest.mark.long
@posix
def test_ctrl_c_keeps_what_was_finished_and_nothing_half_written(here):
    """In a terminal, whose progress bar tells when the second clip is being sampled."""
    import pty

    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zs2.sample", *shlex.split("--seed 0,1 --steps 40 --frames 1 --guidance 1 --out c.png")],
        cwd=here,
        env=environment() | {"PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=end,  # the bar
    )
    os.close(end)
    seen = b""
    try:
        with contextlib.suppress(OSError):  # how Linux tells that the other end was closed
            while piece := os.read(terminal, 1000):
                seen += piece
                if re.search(rb"clip 2 of 2 \S+ 2/40", seen):
                    process.send_signal(signal.SIGINT)
                    break
            while piece := os.read(terminal, 1000):
                seen += piece
        out, _ = process.communicate(timeout=600)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    err = seen.decode()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "zs2: stopped: what was finished before is kept"
    assert sorted(out.decode().split()) == sorted(["c-s0.png", "c-s0.png.sheet.png", "c-s0.png.json"])
    assert sorted(path.name for path in here.iterdir()) == sorted(out.decode().split())
    assert frames(here / "c-s0.png").shape == (1, SIDE, SIDE, 3)


# --- warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--mu 0.5 --attn sa", ["mu", "no effect", "'sa'"]),
        ("--mu 0.5 --attn cfa", ["mu", "no effect", "'cfa'"]),
        ("--lam 0.1 --noise iid", ["lam", "no effect", "'iid'"]),
        ("--lam 0.1 --noise progressive", ["lam", "no effect", "'progressive'"]),
        ("--alpha 1 --noise dnm", ["alpha", "no effect", "'dnm'"]),
        ("--alpha 1", ["alpha", "no effect", "'dnm'"]),
        ("--negative-prompt blurry --guidance 1", ["negative prompt", "no effect", "guidance 1"]),
        ("star --guidance 0", ["prompt", "no effect", "guidance 0"]),
        ("--frames 1 --attn cfa", ["attn", "no effect", "single frame"]),
        ("--frames 1 --lam 0.5", ["lam", "no effect", "single frame"]),
        (f"--latents noise.safetensors --size {SIDE}x{SIDE} --seed 3", ["seed", "no effect", "latents"]),
        (f"--latents noise.safetensors --size {SIDE}x{SIDE} --noise iid", ["noise", "no effect", "latents"]),
        ("--travel-mode cut", ["travel_mode", "no effect"]),
        ("--fps 12 --out folder", ["fps", "no effect", "folder"]),
        (f"'{'very ' * 40}red apple'", ["84 tokens", "32", "cut off", "very very red apple'"]),
    ],
)
def test_an_option_without_effect_is_a_warning(zs2, line, words):
    result = succeeded(zs2(*BRIEF, *shlex.split(line)))
    assert len(result.warnings) == 1, result.err
    for word in words:
        assert word in result.warnings[0]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--mu 0.5 --attn tma-two-tap --lam 0.1 --noise dnm-search --negative-prompt blurry",
        "--alpha 1 --noise mixed --negative-prompt '' --guidance 1 --fps 12 --out clip.gif",
        "'' --size 32x48 --mu 0.5",
    ],
)
def test_options_with_effect_are_no_warning(zs2, line):
    assert succeeded(zs2(*BRIEF, *shlex.split(line))).warnings == []


def test_two_options_without_effect_are_two_warnings(zs2):
    result = succeeded(zs2(*BRIEF, "--mu", "0.5", "--attn", "sa", "--lam", "0.1", "--noise", "iid"))
    assert [warning.split()[0] for warning in result.warnings] == ["mu", "lam"]


def test_a_warning_quotes_what_was_cut_without_its_control_characters(zs2):
    prompt = "red apple " * 14 + "on a\x1b[31m sky\nblue background"
    result = succeeded(zs2(prompt, *BRIEF, "--prompt-syntax", "plain"))
    assert len(result.warnings) == 1
    assert all(line.isprintable() for line in result.err.splitlines())
    assert result.warnings[0].endswith("background'")
    assert "zs2: warning: the prompt has" in result.err


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_default_command(tmp_path):
    """In a folder that is not the repository, with fewer steps and frames for speed."""
    result = succeeded(command("--steps", "8", "--frames", "2", cwd=tmp_path))
    names = ["out/00001.gif", "out/00001.gif.sheet.png", "out/00001.gif.json"]
    assert result.written == names
    assert sorted(files(tmp_path)) == sorted(names)
    own, *_, sampled = result.err.splitlines()  # on a slow machine there are lines between
    assert own == f"zs2: {NAME}'s own settings: guidance 5, λ {LAM:g} (zs2.json)"
    assert sampled.startswith("sampling 8/8 in ")
    clip = frames(tmp_path / "out/00001.gif")
    assert clip.shape == (2, SIDE, SIDE, 3)
    with Image.open(tmp_path / "out/00001.gif.sheet.png") as sheet:
        assert sheet.width > 2 * SIDE
        assert sheet.height > SIDE
    settings = text(tmp_path / "out/00001.gif.json")
    assert settings == read_settings(tmp_path / "out/00001.gif") == read_settings(tmp_path / "out/00001.gif.sheet.png")
    expected = {"prompt": EXAMPLE, "frames": 2, "steps": 8, "seed": 0, "attn": "tma", "noise": "dnm", "fps": 8}
    expected |= {"guidance": 5.0, "lam": LAM, "mu": 0.98}
    assert settings.items() >= expected.items()


@pytest.mark.long
def test_attn_sa_alone(tmp_path):
    """The baseline of every frame on its own, without a prompt or a model, as a newcomer would type it."""
    succeeded(forked("--attn", "sa", "--steps", "2", "--frames", "2", cwd=tmp_path))
    settings = text(tmp_path / "out/00001.gif.json")
    assert (settings["attn"], settings["mu"], settings["prompt"]) == ("sa", None, EXAMPLE)


@pytest.mark.long
def test_fast_is_short_for_options_of_which_what_is_given_wins(zs2, here):
    short = ("red apple", *BRIEF[2:], "--fast", "--out")
    succeeded(zs2(*short, "a.gif"))
    made = text(here / "a.gif.json")
    assert {name: made[name] for name in FAST} == FAST
    succeeded(zs2(*short, "b.gif", "--steps", "4"))
    made = text(here / "b.gif.json")
    assert (made["steps"], made["deep_cache"], made["sampler"]) == (4, FAST["deep_cache"], FAST["sampler"])
    assert succeeded(zs2(*short, "c.gif", "--steps", "1")).warnings == []
    assert text(here / "c.gif.json")["deep_cache"] == 1
    words = fast().split()
    assert [word.removeprefix("--").replace("-", "_") for word in words[::2]] == [*FAST]
    succeeded(zs2("red apple", *BRIEF[2:], *words, "--out", "d.gif"))
    assert np.array_equal(frames(here / "d.gif"), frames(here / "a.gif"))


def test_every_option_reaches_the_settings(zs2, here):
    line = """'red apple' --negative-prompt blurry --frames 3 --steps 2 --sampler dpm++ --guidance 3 --seed 7
        --guidance-interval 0,0.5 --deep-cache 2 --clip-skip 1
        --spacing linspace --no-zero-snr --final-alpha first --prompt-syntax a1111
        --size 48x32 --chunk 2 --fps 12 --attn tma-two-tap --mu 0.5 --noise progressive --alpha 1.5 --dtype bfloat16
        --device cpu --out clip.webp"""
    assert succeeded(zs2(*shlex.split(line))).written == ["clip.webp", "clip.webp.sheet.png", "clip.webp.json"]
    settings = text(here / "clip.webp.json")
    assert settings.pop("weights").keys() == {"unet", "vae", "text_encoder", "config"}
    assert settings.pop("versions").keys() == {"zs2", "pillow", "torch", "python"}
    assert settings == {
        **UNGUIDED,
        "revision": REVISION,
        "prompt": "red apple",
        "negative_prompt": "blurry",
        "frames": 3,
        "steps": 2,
        "sampler": "dpm++",
        "deep_cache": 2,
        "guidance": 3.0,
        "guidance_interval": [0.0, 0.5],
        "clip_skip": 1,
        "spacing": "linspace",
        "zero_snr": False,
        "final_alpha": "first",
        "prompt_syntax": "a1111",
        "travel_mode": None,
        "seed": 7,
        "width": 48,
        "height": 32,
        "fps": 12,
        "chunk": 2,
        "processes": 1,
        "attn": "tma-two-tap",
        "mu": 0.5,
        "noise": "progressive",
        "lam": None,
        "alpha": 1.5,
        "motion": None,
        "renoise": None,
        "lam_high": None,
        "cutoff": None,
        "window": None,
        "zoom": None,
        "rotate": None,
        "mu_end": None,
        "anchors": None,
        "flow": None,
        "latents": None,
        "context": None,
        "negative_context": None,
        "dtype": "bfloat16",
        "device": "cpu",
        "compile": False,
        "model": NAME,
        "vae": None,
        "lora": None,
        "embeddings": None,
    }
    assert frames(here / "clip.webp").shape == (3, 32, 48, 3)


def test_the_next_free_number(zs2, here):
    (here / "out" / "00007-s3").mkdir(parents=True)
    (here / "out" / "apple.gif").touch()
    assert succeeded(zs2(*BRIEF, "--no-sheet")).written == ["out/00008.gif", "out/00008.gif.json"]
    assert succeeded(zs2(*BRIEF, "--no-sheet", "--seed", "0,1")).written == [
        f"out/00009-s{seed}{ending}" for seed in (0, 1) for ending in (".gif", ".gif.json")
    ]


def test_no_number_is_ever_taken_twice(zs2, here):
    (here / "out").mkdir()
    for name in ("99999.gif", "100000.gif"):
        (here / "out" / name).write_text("keep me")
    succeeded(zs2(*BRIEF, "--no-sheet"))
    assert len(files(here)) == 4
    assert (here / "out" / "100000.gif").read_text() == "keep me"


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [("c.gif", "GIF", 2), ("c.webp", "WEBP", 2), ("c.apng", "PNG", 2), ("a/b/c.PNG", "PNG", 2)],
)
def test_the_ending_chooses_the_format(zs2, here, name, format, count):
    assert succeeded(zs2(*BRIEF, "--lam", "0.5", "--out", name)).written[0] == name
    with Image.open(here / name) as image:
        assert image.format == format
        assert image.n_frames == count


def test_no_ending_is_a_folder_of_pictures(zs2, here):
    assert succeeded(zs2(*BRIEF, "--lam", "0.5", "--out", "clips/c")).written[0] == "clips/c"
    assert sorted(files(here / "clips")) == ["c.json", "c.sheet.png", "c/0000.png", "c/0001.png"]
    first, second = (frames(here / "clips" / "c" / f"000{i}.png") for i in (0, 1))
    assert np.abs(first - second).max() > 8


def test_mp4(zs2, here):
    pytest.importorskip("av")
    assert succeeded(zs2(*BRIEF, "--out", "c.mp4")).written[0] == "c.mp4"
    assert read_settings(here / "c.mp4") == text(here / "c.mp4.json")


@pytest.mark.parametrize("asked", ["random", "-1", "5,random"])
def test_a_random_seed_is_said_and_recorded(zs2, here, asked):
    """Two commands draw two seeds, and the one that was said makes the same clip."""
    said = []
    for name in ("a", "b"):
        result = succeeded(zs2(*BRIEF, "--seed", asked, "--out", f"{name}.webp"))
        said.append(re.findall(r"^zs2: drawn: --seed (\d+)$", result.err, re.MULTILINE))
    assert [len(seeds) for seeds in said] == [1, 1]
    assert said[0] != said[1]
    suffix = "" if "," not in asked else f"-s{said[0][0]}"
    assert text(here / f"a{suffix}.webp.json")["seed"] == int(said[0][0])
    succeeded(zs2(*BRIEF, "--seed", said[0][0], "--out", "again.webp"))
    assert (here / "again.webp").read_bytes() == (here / f"a{suffix}.webp").read_bytes()


@pytest.mark.long
def test_seeds_and_prompts_make_a_clip_each(zs2, here):
    (here / "prompts.txt").write_text("\ufeffred apple\r\n\r\n  blue star  \r\n", encoding="utf-8")
    line = "--prompts prompts.txt --seed 3..4,9 --no-sheet --out many/c.gif"
    result = succeeded(zs2(*BRIEF, *shlex.split(line)))
    made = {f"c-p{p}-s{s}": (prompt, s) for p, prompt in ((1, "red apple"), (2, "blue star")) for s in (3, 4, 9)}
    assert result.written == [f"many/{name}{ending}" for name in made for ending in (".gif", ".gif.json")]
    for name, (prompt, seed) in made.items():
        settings = text(here / "many" / f"{name}.gif.json")
        assert (settings["prompt"], settings["seed"]) == (prompt, seed)
    assert len({(here / "many" / f"{name}.gif").read_bytes() for name in made}) == 6
    assert result.err.splitlines()[-1].startswith("clip 6 of 6 1/1 in ")
    # and each is the clip that is made alone
    succeeded(zs2("blue star", "--seed", "4", *BRIEF, "--out", "alone/c.gif"))
    assert (here / "alone" / "c.gif").read_bytes() == (here / "many" / "c-p2-s4.gif").read_bytes()


@pytest.mark.long
def test_clips_that_are_there_are_left_out(zs2, here):
    """If they were made by the same settings; others are an error, or made again."""
    (here / "prompts.txt").write_text("red apple\nfox face\npanda face\n")
    line = (*BRIEF, "--prompts", "prompts.txt", "--no-sheet", "--out", "c.png")
    succeeded(zs2(*line))
    before = files(here)
    failed(zs2(*line), "c-p1.png is there, and those of 2 other clips", "such as c-2.png")
    for name in ("c-p2.png", "c-p2.png.json"):
        (here / name).unlink()
    result = succeeded(zs2(*line, "--skip-existing"))
    assert result.written == ["c-p2.png", "c-p2.png.json"]
    assert "zs2: 2 of 3 clips are there already\n" in result.err
    assert files(here) == before
    assert zs2(*line, "--skip-existing", "--lam", "0.5").err.splitlines()[-1] == (
        "zs2: error: c-p1.png is there, made with another lam: expected the same, another --out, or --overwrite"
    )
    assert files(here) == before
    again = succeeded(zs2(*line, "--skip-existing", "--overwrite", "--lam", "0.5"))
    assert len(again.written) == 6
    (here / "c-p1.png").write_bytes(b"mine")
    assert zs2(*line, "--skip-existing", "--lam", "0.5").status == 2
    assert (here / "c-p1.png").read_bytes() == b"mine"
    (here / "c-p1.png").unlink()
    words = zs2(*line, "--skip-existing", "--lam", "0.5").err.splitlines()[-1]
    assert words.startswith("zs2: error: c-p1.png.json is there: expected a new name")


def test_prompts_with_syntax_and_clips_of_another_revision_are_one_warning_each(zs2, here, monkeypatch):
    (here / "prompts.txt").write_text("(red apple)\n[panda face]\nfox face\n")
    line = (*BRIEF, "--negative-prompt", "(bad)", "--prompts", "prompts.txt", "--no-sheet", "--out", "c.png")
    (syntax,) = succeeded(zs2(*line)).warnings
    assert syntax.startswith("the prompt '(red apple)' (and 2 other prompts) is read as plain text")
    before = files(here)
    monkeypatch.setattr("zs2.checkpoints.provenance.REVISION", 17)
    result = succeeded(zs2(*line, "--skip-existing"))
    assert result.warnings == [
        syntax,
        f"c-p1.png (and 2 other clips) was made by revision {REVISION} of what zs2 computes, now it is revision 17: "
        "--overwrite makes such clips again",
    ]
    assert files(here) == before
    assert len(succeeded(zs2(*line, "--skip-existing", "--overwrite")).written) == 6
    assert text(here / "c-p3.png.json")["revision"] == 17


def test_numbers_of_prompts_sort_as_the_lines(zs2, here):
    (here / "prompts.txt").write_text("\n".join("abcdefghij"))
    line = "--prompts prompts.txt --frames 1 --no-sheet --out c.png"
    pictures = [name for name in succeeded(zs2(*BRIEF, *shlex.split(line))).written if name.endswith(".png")]
    assert pictures == sorted(pictures) == [f"c-p{i:02}.png" for i in range(1, 11)]


@pytest.mark.long
def test_travel_is_one_prompt_a_frame_and_the_last_repeats(zs2, here):
    prompts = ["red apple on a black background", "blue star on a white background"]
    (here / "travel.txt").write_text("\n".join(prompts))
    line = "--travel travel.txt --frames 3 --steps 2 --noise shared --attn sa --out t"
    succeeded(zs2(*shlex.split(line)))
    assert text(here / "t.json")["prompt"] == prompts
    travel = [frames(here / "t" / f"000{i}.png") for i in range(3)]
    for prompt, frame in zip([*prompts, prompts[-1]], travel, strict=True):
        succeeded(zs2(prompt, "--frames", "1", "--steps", "2", "--out", "one.png", "--overwrite"))
        assert np.abs(frames(here / "one.png") - frame).max() <= 1
    assert np.abs(travel[0] - travel[1]).max() > 8


def test_latents_are_used_as_given(zs2, here):
    save_file(
        {"latents": torch.randn(3, LATENTS[0], 8, 12, generator=torch.Generator().manual_seed(5))}, "n.safetensors"
    )
    line = "--latents n.safetensors --steps 1 --out c.webp"
    succeeded(zs2(*shlex.split(line)))
    settings = text(here / "c.webp.json")
    assert (settings["frames"], settings["width"], settings["height"]) == (3, 12 * REDUCTION, 8 * REDUCTION)
    assert (settings["seed"], settings["noise"], settings["lam"]) == (None, None, None)
    assert frames(here / "c.webp").shape == (3, 8 * REDUCTION, 12 * REDUCTION, 3)


def test_the_same_settings_make_the_same_bytes(zs2, here, tmp_path, monkeypatch):
    """Wherever and whenever; test_replay_as_a_command does it in another process."""
    line = (*BRIEF, "red apple", "--lam", "0.5", "--out")
    succeeded(zs2(*line, "c.gif"))
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    succeeded(zs2(*line, str(other / "deep" / "c.gif")))
    assert files(here) == files(other / "deep")
    assert len(files(here)) == 3


def test_the_settings_tell_no_path_time_or_host(zs2, here, folder):
    start = time.localtime()
    succeeded(zs2("red apple", *BRIEF, "--model", str(folder), "--out", str(here / "deep" / "c.gif")))
    settings = text(here / "deep" / "c.gif.json")
    assert settings["model"] == folder.name
    told = json.dumps({name: value for name, value in settings.items() if name != "weights"})
    names = [name for name in (socket.gethostname(), Path.home().name, "here", "deep") if len(name) > 4]
    for name in (*names, "/", "\\", time.strftime("%Y-%m-%d", start), time.strftime("%H:%M", start)):
        assert name not in told


# --- replay -----------------------------------------------------------------------------------------------------------

CLIP = shlex.split("'red apple' --steps 8 --frames 2 --lam 0.5 --mu 0.5 --seed 4 --fps 10 --guidance 3 --size 16x24")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("c.gif", "c.gif.json"),
        ("c.gif", "c.gif"),
        ("c.png", "c.png"),
        ("c.webp", "c.webp"),
        ("c", "c"),
        ("c.gif", "c.gif.sheet.png"),
    ],
)
def test_replay_makes_the_same_bytes(zs2, here, name, source):
    succeeded(zs2(*CLIP, "--out", f"first/{name}"))
    result = succeeded(zs2("--replay", f"first/{source}", "--out", f"again/{name}"))
    assert result.warnings == []
    assert files(here / "again") == files(here / "first") != {}


def test_replay_as_a_command(zs2, here, tmp_path):
    succeeded(zs2(*CLIP, "--out", "first/c.gif"))
    succeeded(forked("--replay", str(here / "first" / "c.gif"), "--out", "again/c.gif", cwd=tmp_path))
    assert files(tmp_path / "again") == files(here / "first")


def test_replay_of_prompt_travel_and_of_variants_without_lam_and_mu(zs2, here):
    (here / "travel.txt").write_text("red apple\nblue star\n")
    line = "--travel travel.txt --attn cfa --noise mixed --alpha 0.5 --negative-prompt x --dtype float32"
    succeeded(zs2(*shlex.split(line), *BRIEF, "--out", "first/c.gif"))
    result = succeeded(zs2("--replay", "first/c.gif.json", "--out", "again/c.gif"))
    assert result.warnings == []
    assert files(here / "again") == files(here / "first")


def test_replay_of_given_latents_needs_them(zs2, here):
    generator = torch.Generator().manual_seed(5)
    for name in ("n", "other"):
        save_file({"latents": torch.randn(2, LATENTS[0], 4, 4, generator=generator)}, f"{name}.safetensors")
    succeeded(zs2("--latents", "n.safetensors", *BRIEF[:2], *BRIEF[-2:], "--out", "first/c.gif"))
    failed(zs2("--replay", "first/c.gif.json"), "first/c.gif.json", "given latents", "--latents")
    failed(zs2("--replay", "first/c.gif.json", "--latents", "other.safetensors"), "other latents")
    succeeded(zs2("--replay", "first/c.gif.json", "--latents", "n.safetensors", "--out", "again/c.gif"))
    assert files(here / "again") == files(here / "first")


def test_replay_with_other_weights_is_refused(zs2, folder):
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    tensors["decoder.conv_out.bias"] += 1e-6
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    save_file(tensors, folder / "vae" / "diffusion_pytorch_model.safetensors")
    succeeded(zs2("red apple", *BRIEF, "--out", "c.gif", "--model", str(folder)))
    failed(zs2("--replay", "c.gif.json"), "other weights", "vae", "--model")
    assert succeeded(zs2("--replay", "c.gif.json", "--model", str(folder), "--out", "again.gif")).warnings == []


def test_replay_on_another_device_is_a_warning(zs2, here):
    succeeded(zs2(*CLIP, "--out", "c.gif"))
    settings = text(here / "c.gif.json") | {"device": "cuda"}
    (here / "c.gif.json").write_text(json.dumps(settings))
    (warning,) = succeeded(zs2("--replay", "c.gif.json", "--device", "cpu", "--out", "again.gif")).warnings
    assert warning == "made on cuda, now on cpu: the clip may differ"


def test_replay_takes_nothing_but_its_file(zs2, here):
    succeeded(zs2(*CLIP, "--out", "first/c.gif"))
    line = "star --replay first/c.gif.json --steps 5 --mu 0.1 --seed 9 --out again/c.gif"
    result = succeeded(zs2(*shlex.split(line)))
    assert len(result.warnings) == 1
    for word in ("no effect", "prompt", "steps", "mu", "seed"):
        assert word in result.warnings[0]
    assert files(here / "again") == files(here / "first")


def test_replay_with_other_versions_is_a_warning(zs2, here):
    succeeded(zs2(*CLIP, "--out", "c.gif"))
    settings = text(here / "c.gif.json")
    settings["versions"]["torch"] = "1.4.0"
    (here / "c.gif.json").write_text(json.dumps(settings))
    result = succeeded(zs2("--replay", "c.gif.json", "--out", "again.gif"))
    assert len(result.warnings) == 1
    assert "1.4.0" in result.warnings[0]
    assert torch.__version__ in result.warnings[0]


@pytest.mark.parametrize(
    ("recorded", "words"),
    [(None, "no revision (before 1)"), (REVISION + 1, f"revision {REVISION + 1}")],
    ids=["older", "newer"],
)
def test_replay_of_another_revision_is_a_warning(zs2, here, clip_settings, recorded, words):
    """Also of a file that has none. What is made says today's."""
    settings = {name: value for name, value in clip_settings.items() if name != "revision"}
    (here / "c.json").write_text(json.dumps(settings if recorded is None else settings | {"revision": recorded}))
    result = succeeded(zs2("--replay", "c.json", "--out", "again.gif"))
    assert result.warnings == [f"made by {words} of what zs2 computes, now by revision {REVISION}: the clip may differ"]
    assert text(here / "again.gif.json")["revision"] == REVISION


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": 5},
        {"prompt": None},
        {"prompt": []},
        {"negative_prompt": None},
        {"frames": "8"},
        {"frames": None},
        {"steps": None},
        {"steps": 1e3},
        {"guidance": None},
        {"guidance": 10**400},
        {"guidance_interval": None},
        {"guidance_interval": [1, 0]},
        {"deep_cache": None},
        {"deep_cache": 0},
        {"sampler": None},
        {"spacing": "lagging"},
        {"spacing": []},
        {"zero_snr": 1},
        {"zero_snr": "true"},
        {"final_alpha": 1},
        {"seed": None},
        {"seed": "4"},
        {"width": None},
        {"width": "16"},
        {"height": -24},
        {"fps": None},
        {"fps": "8/0"},
        {"attn": None},
        {"attn": 7},
        {"mu": None},
        {"mu": "0.5"},
        {"mu": 2},
        {"mu": True},
        {"noise": "warp", "motion": [10**400, 0], "zoom": 1, "rotate": 0},
        {"noise": None},
        {"noise": ["dnm"]},
        {"lam": None},
        {"dtype": None},
        {"dtype": 32},
        {"device": "typewriter"},
        {"weights": None},
        {"weights": "abc"},
        {"weights": [1]},
        {"device": []},
        {"weights": {"unet": "0"}},
        {"latents": 5},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_replay_of_settings_that_were_edited_wrongly(zs2, here, clip_settings, changes):
    """None is for what has no effect; what has one must be there."""
    (here / "c.json").write_text(json.dumps(clip_settings | changes))
    failed(zs2("--replay", "c.json", "--out", "again.gif"))


@pytest.fixture(scope="module")
def clip_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a clip that can be replayed."""
    file = tmp_path_factory.mktemp("clip") / "c.gif"
    assert main([*CLIP, "--out", str(file)]) == 0
    return text(file.with_name(f"{file.name}.json"))


def test_those_settings_can_be_replayed(zs2, here, clip_settings):
    (here / "c.json").write_text(json.dumps(clip_settings))
    succeeded(zs2("--replay", "c.json", "--out", "again.gif"))
    assert text(here / "again.gif.json") == clip_settings


def test_a_clip_made_before_an_option_was_there_is_replayed_without_it(zs2, here, clip_settings):
    later = ("sampler", "guidance_interval", "deep_cache", "clip_skip", "embeddings", "vae")
    later += ("spacing", "zero_snr", "final_alpha")
    old = {name: value for name, value in clip_settings.items() if name not in later}
    (here / "c.json").write_text(json.dumps(old))
    assert succeeded(zs2("--replay", "c.json", "--out", "again.gif")).warnings == []
    assert text(here / "again.gif.json") == clip_settings


def test_replay_with_another_schedule_is_refused(zs2, folder):
    """The same weights, but the configuration decides the clip too."""
    succeeded(zs2("red apple", *BRIEF, "--out", "c.gif", "--model", str(folder)))
    settings = text(folder / "scheduler" / "scheduler_config.json") | {"beta_end": 0.02}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    failed(zs2("--replay", "c.gif.json", "--model", str(folder)), "other weights", "config differ")


def test_the_default_model_is_never_asked_of_the_hub(zs2, monkeypatch):
    """Where it has not come with the code, another's model of that name must not take its place."""
    monkeypatch.setattr(zs2_locate, "PACKAGE", Path("/nowhere/zs2"))
    failed(zs2(), f"{DEFAULT_MODEL} is not here", "comes with the repository")
    for model, given in (
        (f"{DEFAULT_MODEL}-edit", f"{DEFAULT_MODEL}-edit/"),
        (f"{DEFAULT_MODEL}-edges", Path(f"{DEFAULT_MODEL}-edges").name),
    ):
        failed(zs2("rose", "--model", given), f"{model} is not here", "comes with the repository")


@pytest.mark.parametrize(("model", "commit"), FORMER.items())
def test_a_default_checkpoint_of_before_is_named_with_the_commit_that_has_it(
    zs2, here, monkeypatch, clip_settings, model, commit
):
    name, back = Path(model).name, f"`git restore --source {commit} {model}`"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(zs2_locate, "PACKAGE", Path("/nowhere/zs2"))  # this clone may have it again
        for given in (model, name, f"{model}/"):
            failed(zs2("rose", "--model", given), f"{model} is not here", back)
    (here / "c.json").write_text(json.dumps(clip_settings | {"model": name, "weights": {"unet": "0" * 64}}))
    failed(zs2("--replay", "c.json"), f"those of {name}", "give its --model", back)
    if git("rev-parse", "--is-shallow-repository", "--show-prefix").split() == ["false"]:  # with its history, its own
        assert f"{model}/unet" in git("ls-tree", commit, f"{model}/")


def git(*words: str) -> str:
    """What git prints in the clone; nothing where it fails."""
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (main, "--model --vae --lora --embedding --source --first-frame --latents --prompts --travel --out"),
        (main, "--replay"),
        (ablate, "--model --vae --lora --embedding --source --first-frame --prompts --clip --lpips --out"),
        (metrics, "--clip --lpips --features --vbench"),
        (report, "--out"),
        (ablate, "STUDY.toml"),
        (metrics, "CLIP"),
        (report, "DIR"),
    ],
)
def test_an_empty_path_is_an_error_that_names_its_option(capsys, command, options):
    """As a path it would be the current folder."""
    for option in options.split():
        with pytest.raises(SystemExit) as end:
            command([option, ""] if option.startswith("-") else [""])
        assert end.value.code == 2
        assert f"zs2: error: argument {option}: '' is empty: expected " in capsys.readouterr().err


def test_an_empty_vae_is_not_the_current_folder(monkeypatch):
    monkeypatch.chdir(CHECKPOINT)
    with pytest.raises(InputError, match="vae is ''"):
        ZS2.from_pretrained(CHECKPOINT, vae="")
