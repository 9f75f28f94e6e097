"""Whole clips on a simulated GPU: they are the CPU's, no tensor is misplaced, and what crosses is listed."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, CLIP, LATENTS, Fixture, assert_close, assert_same_picture, write_xl
from safetensors.torch import save_file
from simulated_device import AVAILABLE, TO_DEVICE, TO_HOST, WAIT, Crossing, SimTensor, simulated_device
from torch import Tensor
from torch.nn import functional as F

from zs2 import ZS2, Request
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.models.clip import TextEncoder
from zs2.models.temporal import Temporal
from zs2.models.vae import VAE
from zs2.sampling.decoding import decode_frames
from zs2.sampling.sampler import Sampler
from zs2.sampling.schedule import Schedule

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"torch {torch.__version__} can't take a device from Python")

FRAMES, STEPS, CHUNK = 3, 3, 2
CHUNKS = 2  # of those frames
SMALL = {"frames": FRAMES, "steps": STEPS, "guidance": 3.0, "height": 32, "width": 32}


@functools.cache
def model(device: str, dtype: str = "float32") -> ZS2:
    """The default checkpoint. On `sim`, only within `simulated_device`."""
    return ZS2.from_pretrained(CHECKPOINT, device=device, dtype=dtype)


def clip(model: ZS2, **options: Any) -> tuple[Tensor, Tensor]:
    """Latents before decoding, on the model's device, and frames."""
    steps: list[Any] = []
    frames = model(**{"prompt": "rose", **SMALL, **options}, callback=steps.append).frames
    return steps[-1].latents, torch.from_numpy(frames)


def stream(model: ZS2, state_device: str | None, **options: Any) -> tuple[Tensor, Tensor]:
    """The same of a stream."""
    request = Request(**{"prompt": "rose", **SMALL, "chunk": CHUNK, **options})
    plan = model.plan(request, stream=True, state_device=state_device)
    pieces = list(Sampler(plan).chunks())
    frames = np.concatenate([decode_frames(plan, latents) for latents in pieces])
    return torch.cat(pieces), torch.from_numpy(frames)


def assert_same(there: tuple[Tensor, Tensor], here: tuple[Tensor, Tensor]) -> None:
    """Latents of the device and the CPU, and their frames."""
    latents, frames = there
    assert isinstance(latents, SimTensor)
    assert_close(latents.cpu(), here[0], CLIP)
    assert_same_picture(frames, here[1])


TEXT = Crossing(TO_DEVICE, "models/prompt_encoder.py PromptEncoder._chunk")
TIMESTEPS = Crossing(TO_DEVICE, "sampling/sampler.py Sampler.__init__")
NOISE = Crossing(TO_DEVICE, "sampling/sampler.py Sampler.initial")
ROWS = Crossing(TO_DEVICE, "sampling/conditioning.py Conditioning._of_text")  # of the texts that a step picks
FRESH = Crossing(TO_DEVICE, "sampling/text2video_zero.py spread")
PLACES = Crossing(TO_DEVICE, "sampling/text2video_zero.py shift")
SIZE = Crossing(TO_DEVICE, "models/unet.py Encoder.added_embedding")
KEPT = Crossing(TO_HOST, "sampling/kept_states.py TravellingStates.keep")
FETCHED = Crossing(TO_DEVICE, "sampling/kept_states.py TravellingStates._fetch")
CHECK = Crossing(WAIT, "sampling/sampler.py Sampler.check")  # for NaN
CHECK_FRAMES = Crossing(WAIT, "sampling/decoding.py decode")
DECODED = Crossing(TO_HOST, "sampling/decoding.py decode")


def expected(steps: int, decoded: int, other: dict[Crossing, int]) -> Counter[Crossing]:
    """What crosses in a clip: once a step the check for NaN; else once a clip, a frame, or a chunk that is decoded."""
    usual = {TIMESTEPS: 1, NOISE: FRAMES, CHECK: steps, CHECK_FRAMES: decoded, DECODED: decoded}
    return Counter(usual | other)


# Of the method; of the request; what crosses otherwise, or beside that.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[Crossing, int]]] = {
    "sa, iid": ({"attn": "sa", "noise": "iid"}, {}, {}),
    "cfa, shared, in chunks": ({"attn": "cfa", "noise": "shared"}, {"chunk": CHUNK}, {}),
    "tma, dnm-search, in chunks": ({"noise": "dnm-search"}, {"chunk": CHUNK, "negative_prompt": "blue"}, {}),
    "two-tap, progressive, DPM-Solver++": (
        {"attn": "tma-two-tap", "noise": "progressive"},
        {"chunk": CHUNK, "sampler": "dpm++"},
        {},
    ),
    "mixed, a prompt a frame, guided at first": (
        {"noise": "mixed"},
        {"prompt": ["rose", "rose", "fox face"], "guidance_interval": (0, 0.5)},
        {ROWS: 2},  # with and without guidance
    ),
    "deep cache, guided at first": (
        {},
        {"deep_cache": 2, "guidance_interval": (0, 0.5), "chunk": CHUNK},
        {ROWS: 1},  # without guidance
    ),
    "text2video-zero, DPM-Solver++": (
        {"attn": "cfa", "noise": "text2video-zero", "renoise": (0, 1)},
        {"sampler": "dpm++"},
        {NOISE: 1, FRESH: FRAMES - 1, PLACES: 2 * (FRAMES - 1), CHECK: STEPS + 1},
    ),
}


EVERYDAY = ("tma, dnm-search, in chunks", "text2video-zero, DPM-Solver++")  # what `make test` has of them


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way in EVERYDAY else [pytest.mark.long]) for way in WAYS]
)
def test_a_clip_is_the_clip_of_the_cpu(way: str) -> None:
    method, options, other = WAYS[way]
    with simulated_device() as crossings:
        loaded = model("sim").variant(**method)
        crossings.clear()
        there = clip(loaded, **options)
    assert_same(there, clip(model("cpu").variant(**method), **options))
    del crossings[TEXT]  # which is encoded once for all clips
    assert crossings == expected(STEPS, CHUNKS if "chunk" in options else 1, other)


@pytest.mark.parametrize("steps", [1, 4])
def test_what_crosses_in_a_first_clip(steps: int) -> None:
    with simulated_device() as crossings:
        loaded = model("sim")
        crossings.clear()
        clip(loaded, prompt=f"fox face {steps}", negative_prompt=f"cat face {steps}", steps=steps, chunk=CHUNK)
    assert crossings == expected(steps, CHUNKS, {TEXT: 2})


@pytest.mark.parametrize("given", ["sim", "cpu"])
@pytest.mark.long
def test_given_latents(given: str) -> None:
    """They are copied once if they are on the CPU, and once more for their digest if they are not."""
    noise = torch.randn(FRAMES, *LATENTS, generator=torch.Generator().manual_seed(7))
    here = clip(model("cpu"), latents=noise, height=None, width=None)
    with simulated_device() as crossings:
        loaded, latents = model("sim"), noise.to(given)
        crossings.clear()
        there = clip(loaded, latents=latents, height=None, width=None)
    assert_same(there, here)
    del crossings[TEXT]
    check = Crossing(WAIT, "sampling/plan.py _latent_shape")
    digest = Crossing(TO_HOST, "checkpoints/provenance.py _digest")
    assert crossings == expected(STEPS, 1, {} if given == "cpu" else {NOISE: 0, check: 1, digest: 1})


@pytest.mark.parametrize(
    ("attn", "state_device"),
    [
        ("tma", "cpu"),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (("tma", None), ("cfa", "cpu"), ("tma-two-tap", "cpu"), ("sa", "cpu"))
        ),
    ],
)
def test_a_stream_is_the_stream_of_the_cpu(attn: str, state_device: str | None) -> None:
    """The states of a step travel as one copy each way, whatever the number of blocks."""
    with simulated_device() as crossings:
        there = stream(model("sim").variant(attn=attn), state_device)
    assert_same(there, stream(model("cpu").variant(attn=attn), None))
    steps = STEPS if state_device and attn != "sa" else 0
    assert crossings[KEPT] == CHUNKS * steps
    assert crossings[FETCHED] == (CHUNKS - 1) * steps


@pytest.mark.long
def test_a_stream_whose_steps_have_other_states() -> None:
    """Steps with deep features have states of few blocks, and unguided ones of one branch."""
    options = {"deep_cache": 2, "guidance_interval": (0, 0.5), "steps": 4, "frames": 4, "chunk": 1}
    with simulated_device() as crossings:
        there = stream(model("sim"), "cpu", **options)
        here = stream(model("sim"), None, **options)
    assert torch.equal(there[0].cpu(), here[0].cpu())
    assert torch.equal(there[1], here[1])
    assert (crossings[KEPT], crossings[FETCHED]) == (4 * 4, 3 * 4)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_half_precision(dtype: str) -> None:
    """A CPU has the weights of convolutions channels-last in bfloat16, which rounds otherwise: here it has them as
    the device has."""
    with simulated_device():
        there = clip(model("sim", dtype))
    cpu = ZS2.from_pretrained(CHECKPOINT, device="cpu", dtype=dtype)
    for part in (cpu.unet, cpu.vae):
        part.to(memory_format=torch.contiguous_format)
    assert_same(there, clip(cpu))


def test_weights_are_copied_as_stored_and_converted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of a fixed size, whatever the tensors: the file has 2 bytes a number, the loaded model 4."""
    size = 100_001  # of a piece, odd
    monkeypatch.setattr("zs2.system.modules.PIECE", size)
    with simulated_device() as crossings:
        there = Checkpoint(CHECKPOINT, torch.float32, "sim").unet()
        here = Checkpoint(CHECKPOINT, torch.float32, "cpu").unet()
        weights = dict(there.named_parameters())
        for name, weight in here.named_parameters():
            assert isinstance(weights[name].data, SimTensor)
            assert torch.equal(weights[name].cpu(), weight)
    stored, count = 2 * sum(weight.numel() for weight in here.parameters()), len(weights)
    pieces = crossings[Crossing(TO_DEVICE, "system/modules.py Upload.__call__")]
    assert stored // size <= pieces <= stored // size + count + 1


@pytest.mark.long
def test_a_lora(tmp_path: Path) -> None:
    stem, file = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", tmp_path / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    width = model("cpu").unet.config.block_out_channels[0]
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, width), (width, 2)))
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, file)
    with simulated_device():
        there = clip(ZS2.from_pretrained(CHECKPOINT, device="sim", dtype="float32", lora=(file, 0.5)))
    here = clip(ZS2.from_pretrained(CHECKPOINT, device="cpu", lora=(file, 0.5)))
    assert_same(there, here)
    assert not torch.equal(here[0], clip(model("cpu"))[0])


@pytest.mark.long
def test_xl(tmp_path: Path) -> None:
    folder = write_xl(tmp_path, Fixture("xl"))
    with simulated_device() as crossings:
        loaded = ZS2.from_pretrained(folder, device="sim", dtype="float32")
        crossings.clear()
        there = clip(loaded, chunk=CHUNK)
    # both towers encode the prompt and the empty negative one, whose shape the zeros have that stand for it
    assert crossings == expected(STEPS, CHUNKS, {TEXT: 4, SIZE: 1})
    assert_same(there, clip(ZS2.from_pretrained(folder, device="cpu"), chunk=CHUNK))
    shutil.rmtree(folder)  # pytest would keep its large files


# --- what the device itself does --------------------------------------------------------------------------------------


def blend_by_the_matrix(self: Temporal, h: Tensor, frames: int, state: Tensor | None = None) -> tuple[Tensor, None]:
    """The blend as U·h, with a U that nobody moves to the device."""
    u = torch.ones(frames, frames).tril()
    return torch.einsum("ij, bjnc -> binc", u, h.unflatten(0, (-1, frames))).flatten(0, 1), None


encode, decode = TextEncoder.forward, VAE.decode
FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "text": (TextEncoder, "forward", lambda self, *ids: encode(self, *ids).cpu()),
    "noise": (Sampler, "initial", lambda self: self.plan.noises()),
    "blend": (Temporal, "blend", blend_by_the_matrix),
    "solver": (Schedule, "sigma", lambda self, t: (1 - self.alphas_cumprod[t : t + 1]).sqrt()),
    "decode": (VAE, "decode", lambda self, z: decode(self, z) * torch.ones(3, 1, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_left_on_the_cpu_raises(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these works on the CPU."""
    with simulated_device():
        loaded = model("sim")
    monkeypatch.setattr(*FAULTS[fault])
    options = {"prompt": f"rocket, {fault}", "steps": 1}
    clip(model("cpu"), **options)
    with simulated_device(), pytest.raises(RuntimeError, match="expected all tensors on one device"):
        clip(loaded, **options)


@pytest.mark.parametrize(
    "meet",
    [
        lambda x, y: x + y,
        lambda x, y: y.add_(x),
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: F.linear(x, y[0]),
        lambda x, y: F.conv2d(x[None], y[None, :, :1, :1]),
        lambda x, y: F.scaled_dot_product_attention(x, y, y),
        lambda x, y: torch.lerp(x, x, y),
        lambda x, y: y[x.long()],
    ],
)
def test_operators_that_meet_two_devices_raise(meet: Callable[[Tensor, Tensor], Tensor]) -> None:
    y = torch.zeros(2, 2, 2)
    with simulated_device():
        x = y.to("sim")
        for pair in ((x, x), (y, y)):
            meet(*(one.clone() for one in pair))
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            meet(x, y)


def test_what_a_gpu_allows_and_what_it_waits_for() -> None:
    with simulated_device() as crossings:
        x = torch.arange(4.0, device="sim").reshape(2, 2)
        assert isinstance(x * torch.tensor(2.0) + 1, SimTensor)  # a CPU tensor without dimensions is a number
        assert isinstance(x.to("sim").half().to(torch.device("sim")), SimTensor)
        x[0] = 5.0
        assert not crossings
        assert x.sum().item() == 15
        assert bool((x > 0).all())
        assert torch.equal(x, x)
        assert x.nonzero().shape == (4, 2)
        assert crossings == {Crossing(WAIT, "outside"): 4}
        assert x[torch.tensor([1])].cpu().tolist() == [[2, 3]]  # the index, and the result
        x[:1] = torch.ones(1, 2)
        torch.tensor([1], device="sim")
        torch.zeros(2, 2)[:] = x
        assert crossings[Crossing(TO_DEVICE, "outside")] == 3
        assert crossings[Crossing(TO_HOST, "outside")] == 2
