"""Fuzzers: files of strangers, damaged, each read by the command that a user would give.

    python tests/fuzz                       2,000 inputs of every kind, with a seed of its own; prints totals
    python tests/fuzz --inputs 50 --seed 7 --kind studies loras
    python tests/fuzz --kind loras --seed 7 --number 31     one input again, with its traceback

An input fails if it ends in a traceback, takes more than 2 seconds of the processor, takes more memory than twice that
of the intact files and 64 MiB, changes a file outside its own output, or prints more than lines that a terminal shows.
A new kind of files is one row of KINDS.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import numpy as np
import torch
from damage import damaged
from fixtures import tiny
from helpers import Fixture, tiny_weights, write_tiny
from safetensors.torch import save_file
from studies import made_up_study
from torch import Tensor, nn

from zs2 import ZS2
from zs2.ablate import main as ablate
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.lora import merge
from zs2.checkpoints.tensor_files import loading
from zs2.errors import InputError, OutOfMemory
from zs2.report import main as report
from zs2.sample import main as sample
from zs2.study.cells import grid
from zs2.study.prompts import Prompt
from zs2.system.free_memory import kernel_numbers
from zs2.system.terminal import MOST, show
from zs2.video.clip import Clip
from zs2.video.reading import InputClip

SECONDS, HANG = 2, 30  # of the processor; on the clock, until an input is interrupted
SPARE = 64 * 2**20  # bytes beyond twice those of the intact files
REFUSED = (InputError, FloatingPointError, OutOfMemory)


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Args:
        name: as an option.
        make: writes an intact example into an empty folder.
        files: patterns of the files that are damaged.
        read: reads the example as a user would, with an empty folder for its output. Returns the exit statuses.
        quick: how many inputs `make test-long` has.
    """

    name: str
    make: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path, Path], list[int]]
    quick: int = 60


# --- the examples -----------------------------------------------------------------------------------------------------

CLIP = ["a cat", "--device", "cpu", "--frames", "2", "--steps", "2", "--no-sheet"]


def make_model(folder: Path, kind: str = "sd") -> Path:
    """A whole model of a few kilobytes, with a shard and settings of its own."""
    write_tiny(folder, kind)
    (folder / "zs2.json").write_text('{"steps": 2, "guidance": 3.0, "prompts": ["a cat"], "things": ["cat"]}')
    whole = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shard = whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    names = dict.fromkeys(tiny_weights(kind)["vae"], shard.name)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    return folder


def read_model(folder: Path, out: Path, *more: str) -> list[int]:
    return [sample([*CLIP, "--model", str(folder), "--out", str(out / "x.png"), *more])]


def make_settings(folder: Path) -> None:
    make_model(folder / "model")
    for name in ("x.png", "x.webp", "x.gif"):
        assert sample([*CLIP, "--model", str(folder / "model"), "--out", str(folder / name)]) == 0


def read_settings(folder: Path, out: Path) -> list[int]:
    """Replays of the settings. A file may say that its clip was compiled: the compiler's minute is not counted."""
    found = next(file for file in sorted(folder.iterdir()) if file.name.endswith(".png.json"))
    has_stance = hasattr(torch.compiler, "set_stance")  # since torch 2.6
    with torch.compiler.set_stance("force_eager") if has_stance else contextlib.nullcontext():
        return [sample(["--replay", str(found), "--model", str(folder / "model"), "--out", str(out / "y.png")])]


def read_clips(folder: Path, out: Path) -> list[int]:
    """Replays of each picture, and the frames of those without loss."""
    statuses = []
    for name in ("x.png", "x.webp", "x.gif"):
        arguments = ["--replay", str(folder / name), "--model", str(folder / "model"), "--dry-run"]
        statuses.append(sample(arguments))
    for name in ("x.png", "x.webp"):
        try:
            Clip.open(folder / name)
        except InputError:
            statuses.append(2)
    return statuses


INPUTS = ("x.png", "x.webp", "x.gif", "x.mp4", "frames")


def make_inputs(folder: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    for name in INPUTS:
        Clip(frames, 8, {"fps": 8}).save(folder / name, json=False)


def read_inputs(folder: Path, out: Path) -> list[int]:
    """All frames of each kind of input, resized."""
    statuses = []
    for name in INPUTS:
        try:
            clip = InputClip(folder / name)
            for frame in range(min(clip.count or 1, 20)):
                clip.frames(frame, 1, (8, 8))
            statuses.append(0)
        except InputError as error:
            show(str(error))
            statuses.append(2)
    return statuses


def make_study(folder: Path) -> None:
    cells = grid(["dnm", "shared"], ["tma", "sa"], [0.05, 0.1], [0.98])
    prompts = [Prompt("red apple"), Prompt("cat", "open")]
    measures = {"motion": 0.1, "ssim": 0.9, "clip-score": 0.3}
    made_up_study(folder / "study", cells, lambda job: measures, prompts, seeds=(0, 1))


def read_study(folder: Path, out: Path) -> list[int]:
    study = folder / "study"
    return [report([str(study), "--out", str(out / "r.html")]), ablate(["--out", str(study), "--dry-run"])]


def make_single_file(folder: Path) -> None:
    start = "file/weights/"
    tensors = {k.removeprefix(start): v for k, v in Fixture("single_sd1").tensors.items() if k.startswith(start)}
    metadata = {"modelspec.architecture": "stable-diffusion-v1", "modelspec.prediction_type": "epsilon"}
    keep = {name: t for name, t in tensors.items() if "text_model.encoder.layers." not in name or ".layers.0." in name}
    save_file({name: tensor.half().contiguous() for name, tensor in keep.items()}, folder / "x.safetensors", metadata)
    (folder / "x.yaml").write_text("model:\n  params:\n    parameterization: eps\n    scale_factor: 0.18215\n")


def read_single_file(folder: Path, out: Path) -> list[int]:
    """The schedule, and one of the parts: which one, the size of the file tells."""
    checkpoint = Checkpoint(folder / "x.safetensors")
    parts = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder
    checkpoint.schedule()
    parts[(folder / "x.safetensors").stat().st_size // 8 % 3]()
    return [0]


def layers(folder: Path) -> dict[str, Tensor]:
    """The weights of some layers of a model's UNet."""
    modules = loaded(folder).unet.named_modules()
    named = {name: layer.weight for name, layer in modules if isinstance(layer, nn.Linear | nn.Conv2d)}
    return {name: weight for name, weight in named.items() if ".attn1.to_" in name or ".conv1" in name}


def make_loras(folder: Path) -> None:
    """A LoRA, and its relatives, in kohya's names and in PEFT's folder."""
    make_model(folder / "model")
    rows: dict[str, dict[str, Tensor]] = {"lora": {}, "loha": {}, "lokr": {}, "dora": {}, "diff": {}}
    peft: dict[str, Tensor] = {}
    for name, weight in layers(folder / "model").items():
        stem, (out, into, *sides) = f"lora_unet_{name.replace('.', '_')}", weight.shape
        down, up = torch.full((2, into, *sides), 0.1), torch.full((out, 2, *[1] * len(sides)), 0.1)
        pair = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
        rows["lora"] |= pair
        rows["dora"] |= pair | {f"{stem}.dora_scale": torch.ones(out, *[1] * (weight.ndim - 1))}
        for half in ("1", "2"):
            rows["loha"] |= {f"{stem}.hada_w{half}_a": torch.full((out, 2), 0.1)}
            rows["loha"] |= {f"{stem}.hada_w{half}_b": torch.full((2, weight[0].numel()), 0.1)}
        if not sides:
            rows["lokr"] |= {f"{stem}.lokr_w1": torch.ones(1, 1), f"{stem}.lokr_w2": torch.full((out, into), 0.1)}
            rows["diff"] |= {f"{stem}.diff": torch.full((out, into), 0.1)}
            peft |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    for name, tensors in rows.items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "peft" / "unet").mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_rslora": False}
    config |= {"alpha_pattern": {}, "rank_pattern": {}}
    (folder / "peft" / "unet" / "adapter_config.json").write_text(json.dumps(config))
    save_file(peft, folder / "peft" / "unet" / "adapter_model.safetensors")


def read_loras(folder: Path, out: Path) -> list[int]:
    """The LoRA that was damaged: the newest."""
    files = [*folder.glob("*.safetensors"), *(folder / "peft" / "unet").iterdir()]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    model = loaded(folder / "model")
    unet = copy.deepcopy(model.unet, {id(weight): weight for weight in model.unet.parameters()})
    with loading(newest.name):  # as ZS2.from_pretrained does
        merge(folder / "peft" if newest.parent.name == "unet" else newest, 1.0, unet, model.text.encoders)
    return [0]


def make_parts(folder: Path) -> None:
    """Textual inversions of two kinds, and a VAE from elsewhere, as a file and as a folder."""
    make_model(folder / "model")
    save_file({"emb_params": torch.full((3, 16), 0.1)}, folder / "toy.safetensors")
    save_file({"<dog>": torch.full((16,), 0.1)}, folder / "dog.safetensors")
    weights = tiny_weights("sd")["vae"]
    save_file(weights, folder / "vae.safetensors")
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(tiny.VAE))
    save_file(weights, folder / "vae" / "diffusion_pytorch_model.bf16.safetensors")


def read_parts(folder: Path, out: Path) -> list[int]:
    """The embedding or the VAE that was damaged: the newest."""
    files = [*folder.glob("*.safetensors"), *(folder / "vae").iterdir()]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns)
    if newest.name in ("toy.safetensors", "dog.safetensors"):
        return read_model(folder / "model", out, "--embedding", str(newest), "--size", "16x16")
    Checkpoint(folder / "model", vae=newest if newest.parent == folder else newest.parent).vae()
    return [0]


def make_flow(folder: Path) -> None:
    """A flow with one field a step, and another tensor beside it."""
    make_model(folder / "model")
    save_file({"flow": torch.randn(3, 2, 8, 8), "more": torch.zeros(2)}, folder / "flow.safetensors")


def read_flow(folder: Path, out: Path) -> list[int]:
    """A clip of three frames along the flow."""
    along = ("--noise", "warp", "--frames", "3", "--size", "16x16", "--flow", str(folder / "flow.safetensors"))
    return read_model(folder / "model", out, *along)


@cache
def loaded(folder: Path) -> ZS2:
    """A model, which is not changed."""
    return ZS2.from_pretrained(folder, device="cpu")


KINDS = (
    Kind("configs", make_model, ("*.json", "*/*.json", "*/*.txt"), read_model),
    Kind("studies", make_study, ("study/study.json", "study/study.json", "study/measures/*.json"), read_study),
    Kind("settings", make_settings, ("x.png.json",), read_settings),
    Kind("weights", make_model, ("*/*.safetensors",), read_model),
    Kind("single-files", make_single_file, ("x.safetensors", "x.safetensors", "x.yaml"), read_single_file),
    Kind("loras", make_loras, ("*.safetensors", "peft/unet/*"), read_loras),
    Kind("parts", make_parts, ("toy.safetensors", "dog.safetensors", "vae.safetensors", "vae/*"), read_parts, quick=30),
    Kind("flows", make_flow, ("flow.safetensors",), read_flow),
    Kind("clips", make_settings, ("x.png", "x.webp", "x.gif"), read_clips, quick=15),
    Kind("inputs", make_inputs, ("x.png", "x.webp", "x.gif", "x.mp4", "frames/*"), read_inputs),
)


# --- one input --------------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """An input took too long on the clock."""


@dataclass
class Outcome:
    """What became of an input: `made`, `refused` or a fault, with its seconds and bytes."""

    what: str
    seconds: float
    memory: int
    text: str = ""


@contextlib.contextmanager
def interrupted(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def resident(what: str) -> int:
    """The bytes that the process holds (`VmRSS`), or held at most since they were reset (`VmHWM`). 0 if unknown."""
    return 1024 * kernel_numbers("/proc/self/status").get(what, 0)


def reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run(kind: Kind, folder: Path, out: Path) -> Outcome:
    """Read the files of a kind as they are."""
    printed, errors = io.StringIO(), io.StringIO()
    reset_peak()
    held, begin, fault = resident("VmRSS"), time.process_time(), ""
    statuses: list[int] = []
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with interrupted(HANG):
                statuses = kind.read(folder, out)
    except REFUSED as error:
        statuses = [2]
        show(f"zs2: error: {' '.join(str(error).split())}", to=errors)
    except SystemExit as error:
        statuses = [error.code if isinstance(error.code, int) else 2]
    except BaseException:
        fault = traceback.format_exc()
    if max(statuses, default=0) > 128:  # a signal, which the command turned into a status
        raise KeyboardInterrupt
    seconds, memory = time.process_time() - begin, resident("VmHWM") - held
    lines = (printed.getvalue() + errors.getvalue()).split("\n")
    strange = [line for line in lines if not line.replace("\r", "").isprintable() or len(line) > MOST]
    if not fault and strange:
        fault = f"a line that a terminal does not show: {strange[0]!r:.600}"
    if not fault and (not statuses or not set(statuses) <= {0, 1, 2}):
        fault = f"exit statuses {statuses}"
    what = "fault" if fault else "refused" if any(statuses) else "made"
    return Outcome(what, seconds, memory, fault or errors.getvalue())


def names(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != "__pycache__"}


class Fuzzer:
    """Damages the files of one kind, one input after another."""

    def __init__(self, kind: Kind, place: Path, seed: int) -> None:
        self.kind, self.seed, self.place = kind, seed, place
        self.folder, self.out = place / "a" / "b" / "c" / kind.name, place / "a" / "b" / "out"
        self.folder.mkdir(parents=True)
        self.out.mkdir()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            kind.make(self.folder)
        for _ in range(2):  # the first one also takes what is taken once
            self._clear()
            self.intact = run(kind, self.folder, self.out)
        assert self.intact.what == "made", self.intact
        self.most = 2 * max(self.intact.memory, 0) + SPARE
        self._clear()
        self.before = names(place)

    def __call__(self, number: int) -> Outcome:
        """One input."""
        random = Random(f"{self.kind.name} {self.seed} {number}")
        pattern = random.choice(self.kind.files)
        file = random.choice(sorted(self.folder.glob(pattern)))
        content = file.read_bytes()
        try:
            file.write_bytes(damaged(random, file.suffix, content))
            outcome = run(self.kind, self.folder, self.out)
        finally:
            file.write_bytes(content)
        self._clear()
        others = names(self.place) ^ self.before
        if outcome.seconds > SECONDS:
            outcome.what, outcome.text = "fault", f"{outcome.seconds:.1f} s of the processor"
        elif outcome.memory > self.most:
            outcome.what, outcome.text = "fault", f"{outcome.memory >> 20} MiB, expected {self.most >> 20} at most"
        elif others:
            outcome.what, outcome.text = "fault", f"it wrote or removed {sorted(others)[:3]}"
        outcome.text = f"{file.relative_to(self.folder)}: {outcome.text}"
        return outcome

    def _clear(self) -> None:
        for file in self.out.iterdir():
            file.unlink()


def fuzz(kind: Kind, inputs: int, seed: int, place: Path) -> tuple[Counter[str], list[str], Outcome]:
    """Read some damaged inputs of a kind. Returns: the totals, the faults, and the most seconds and bytes."""
    fuzzer = Fuzzer(kind, place / kind.name, seed)
    total: Counter[str] = Counter()
    faults, worst = [], Outcome("", 0, 0)
    for number in range(inputs):
        outcome = fuzzer(number)
        total[outcome.what] += 1
        worst.seconds, worst.memory = max(worst.seconds, outcome.seconds), max(worst.memory, outcome.memory)
        if outcome.what == "fault":
            faults.append(f"--kind {kind.name} --seed {seed} --number {number}\n{outcome.text}")
    return total, faults, worst


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--inputs", type=int, default=2000, help="of each kind (default 2000)")
    p.add_argument("--seed", type=int, help="of the damage (default: another one in each run)")
    p.add_argument("--kind", nargs="+", choices=[kind.name for kind in KINDS], help="default: all")
    p.add_argument("--number", type=int, help="read this input only, and print what became of it")
    options: Any = p.parse_args(argv)
    seed = SystemRandom().randrange(10**6) if options.seed is None else options.seed
    torch.set_num_threads(1)
    kinds = [kind for kind in KINDS if options.kind is None or kind.name in options.kind]
    every, bad = 0, 0
    with tempfile.TemporaryDirectory() as place:
        for kind in kinds:
            if options.number is not None:
                print(Fuzzer(kind, Path(place, kind.name), seed)(options.number))
                continue
            total, faults, worst = fuzz(kind, options.inputs, seed, Path(place))
            print(*faults, sep="\n", end="\n" * bool(faults))
            counts = ", ".join(f"{total[what]} {what}" for what in ("made", "refused", "fault"))
            most = f"at most {worst.seconds:.2f} s and {worst.memory >> 20} MiB more"
            print(f"{kind.name:<13}{total.total()} inputs: {counts}; {most}", flush=True)
            every, bad = every + total.total(), bad + len(faults)
    if options.number is None:
        print(f"{every} inputs, seed {seed}: {bad} faults")
    return int(bad > 0)
