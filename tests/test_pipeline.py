"""The pipeline and its API, on the real default checkpoint."""

import itertools
import threading
import warnings

import numpy as np
import pytest
import torch
from helpers import CHECKPOINT, CLIP, LAM, LATENTS, NAME, REDUCTION, SIDE, UNGUIDED, Fixture, assert_close

import zs2
from zs2 import ZS2, Clip, Request
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.errors import InputError
from zs2.method import LAM_MAX, NOISE_MODELS
from zs2.models.temporal import momentum
from zs2.noise.models import noises
from zs2.sampling.ddim import DDIM

NOISE_KINDS = [name for name, row in NOISE_MODELS.items() if row.start is None]
PROMPT = "red apple on a sky blue background"
SMALL = {"height": 64, "width": 64}  # at most the checkpoint's own size

SHAPE = ", ".join(map(str, LATENTS))


@pytest.fixture(scope="module")
def model() -> ZS2:
    return ZS2.from_pretrained(CHECKPOINT, device="cpu")


VARIANTS = [
    *({"noise": noise, "attn": "tma"} for noise in NOISE_KINDS),
    *({"noise": "dnm", "lam": 1.0, "attn": attn} for attn in ("sa", "cfa", "tma-two-tap")),
    *({"noise": "dnm", "lam": lam, "attn": "tma", "mu": mu} for lam, mu in ((0.0, 0.0), (LAM_MAX, 1.0), (0.5, 0.5))),
]


def test_frame_0_is_the_image_of_diffusers(model):
    """The picture is StableDiffusionPipeline's own, with its DDIM, for the same prompt and seed: to one grey level."""
    fixture = Fixture("checkpoint_images")
    request = min(fixture.config["images"], key=lambda image: image["steps"])
    want = fixture[f"{fixture.config['images'].index(request)}/picture"].numpy()
    clip = model.variant(noise="dnm", attn="tma")(**request, frames=2)
    assert np.abs(clip.frames[0].astype(int) - want).max() <= 1
    assert np.abs(clip.frames[1].astype(int) - want).max() > 1  # and frame 1 is another


@pytest.fixture(scope="module")
def image(model: ZS2) -> torch.Tensor:
    """The latents of one image of two steps, without attention between frames or noise that frames share."""
    return model.variant(noise="iid", attn="sa").latents(PROMPT, frames=1, steps=2, seed=4, **SMALL)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_frame_0_is_the_image_of_the_model_whatever_the_variant(model, image, settings):
    variant = model.variant(**settings)
    latents = variant.latents(PROMPT, frames=2, steps=2, seed=4, **SMALL)
    assert_close(latents[:1], image, 1e-5)
    if settings["noise"] != "shared" and settings.get("lam") != 0:
        first, second = variant.decode(latents).astype(int)
        assert np.abs(second - first).max() > 1  # and frame 1 is another


def test_a_clip(model):
    steps = []
    clip = model(PROMPT, frames=3, steps=4, seed=5, fps=12, callback=steps.append)
    assert isinstance(clip, Clip)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.shape == (3, SIDE, SIDE, 3)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [step.timestep for step in steps] == [751, 501, 251, 1]
    assert torch.equal(model.latents(PROMPT, frames=3, steps=4, seed=5), steps[-1].latents)
    assert np.array_equal(model.decode(steps[-1].latents), clip.frames)
    assert clip.settings == {
        **UNGUIDED,
        "prompt": PROMPT,
        "negative_prompt": "",
        "frames": 3,
        "steps": 4,
        "sampler": "ddim",
        "deep_cache": 1,
        "guidance": 5.0,  # its own, as in its zs2.json
        "guidance_interval": [0.0, 1.0],
        "clip_skip": 0,
        "spacing": "leading",
        "zero_snr": False,
        "final_alpha": "first",
        "prompt_syntax": None,
        "travel_mode": None,
        "seed": 5,
        "width": SIDE,
        "height": SIDE,
        "fps": 12,
        "chunk": 3,
        "processes": 1,
        "attn": "tma",
        "mu": 0.98,
        "noise": "dnm",
        "lam": LAM,
        "alpha": None,
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
        "dtype": "float32",
        "device": "cpu",
        "compile": False,
        "model": NAME,
        "vae": None,
        "lora": None,
        "embeddings": None,
        "weights": model.checkpoint.digests,
        "revision": zs2.version.REVISION,
        "versions": clip.settings["versions"],
    }
    assert clip.settings["versions"]["zs2"] == zs2.__version__


def test_weights_are_hashed_beside_the_sampling_and_what_goes_wrong_there_is_raised(monkeypatch):
    """The first step does not wait for the hashes, and the clip does."""
    began, hashed = threading.Event(), threading.Event()

    def sha256(files):
        assert began.wait(600)
        hashed.set()
        raise OSError("the disk is gone")

    monkeypatch.setattr("zs2.checkpoints.checkpoint.sha256", sha256)
    with pytest.raises(OSError, match="the disk is gone"):
        ZS2.from_pretrained(CHECKPOINT, device="cpu")(PROMPT, frames=1, steps=1, callback=lambda step: began.set())
    assert hashed.is_set()


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT, "rose"]], ids=["one prompt", "travel"])
def test_guidance_in_an_interval_switches_from_step_to_step(model, prompt):
    """Against sampling by hand: steps 2 and 3 of 5 are guided, the others are of the prompt alone, at half the work."""
    clip = {**SMALL, "frames": 2, "seed": 3}
    rows, latents = [], model.plan(Request(prompt, **clip)).initial_noise()
    handle = model.unet.conv_in.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    guided = {"guidance": 7.5, "guidance_interval": (0.4, 0.8)}
    got = model.latents(prompt, negative_prompt="blue", steps=5, **clip, **guided)
    handle.remove()
    assert rows == [2, 2, 4, 4, 2]
    texts = [prompt] * 2 if isinstance(prompt, str) else prompt
    positive = model.text(texts, []).context
    both = torch.cat([model.text([], ["blue"]).context.expand_as(positive), positive])
    solver = DDIM(model.schedule, 5)
    for i, t in enumerate(solver.timesteps):
        with torch.no_grad():
            if i in (2, 3):
                u, c = model.unet(torch.cat([latents] * 2), t, both, frames=2).prediction.chunk(2)
                output = u + 7.5 * (c - u)
            else:
                output = model.unet(latents, t, positive, frames=2).prediction
        latents, _ = solver.step(i, latents, output, None)
    assert_close(got, latents, 1e-5)


def test_an_interval_of_all_steps_is_guidance_and_a_wrong_one_is_refused(model):
    clip = {**SMALL, "frames": 2, "steps": 3}
    assert torch.equal(model.latents(PROMPT, **clip, guidance_interval=(0, 1)), model.latents(PROMPT, **clip))
    for wrong in ((0.5, 0.5), (0.6, 0.4), (-0.1, 1), (0, 1.1), (0.5,), "ab", None, (float("nan"), 1)):
        with pytest.raises(InputError, match=r"guidance_interval is .*expected two shares of the steps that rise"):
            Request(PROMPT, guidance_interval=wrong)
    with pytest.raises(InputError, match=r"guidance_interval 0\.91,0\.99 holds none of the 10 steps"):
        Request(PROMPT, steps=10, guidance_interval=(0.91, 0.99))
    with pytest.raises(InputError, match=r"guidance_interval 0,0\.5 with guidance 1: expected another guidance"):
        Request(PROMPT, guidance=1, guidance_interval=(0, 0.5))


def test_longer_clips_begin_with_shorter_ones(model):
    long, short = (model.latents(PROMPT, frames=frames, steps=3, seed=2, **SMALL) for frames in (5, 2))
    assert_close(long[:2], short, 1e-5)


def test_given_latents_are_the_initial_noise(model):
    drawn = torch.stack(list(itertools.islice(noises("dnm", LATENTS, 9, lam=model.method.lam), 3)))
    given, kept = drawn.clone(), drawn.clone()
    assert torch.equal(
        model.latents(PROMPT, frames=3, steps=3, latents=given), model.latents(PROMPT, frames=3, steps=3, seed=9)
    )
    assert torch.equal(given, kept)
    settings = model(PROMPT, steps=1, latents=given).settings  # they say how many frames, too
    assert len(list(model.stream(PROMPT, steps=1, latents=given))) == settings["frames"] == 3
    assert settings["seed"] is settings["noise"] is settings["lam"] is None
    assert len(settings["latents"]) == 64


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_guidance_0_and_1_are_the_limits_of_the_formula_at_half_the_work(model, guidance):
    rows, clip = [], {**SMALL, "negative_prompt": "rose", "frames": 2, "steps": 3}
    handle = model.unet.conv_in.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the prompts has no effect
        at = model.latents(PROMPT, **clip, guidance=guidance)
        near = model.latents(PROMPT, **clip, guidance=guidance + 1e-6)
    handle.remove()
    assert rows == [2] * 3 + [4] * 3
    assert_close(at, near, CLIP)


def test_prompts_without_effect_are_told():
    with pytest.warns(UserWarning, match="negative prompt has no effect at guidance 1"):
        Request(PROMPT, negative_prompt="rose", guidance=1)
    with pytest.warns(UserWarning, match="prompt has no effect at guidance 0"):
        Request(PROMPT, guidance=0)


def test_prompt_travel(model):
    settings = {**SMALL, "frames": 3, "steps": 4, "seed": 1}
    one = model.latents(PROMPT, **settings)
    assert_close(model.latents([PROMPT] * 3, **settings), one, 1e-5)
    assert_close(model.latents([PROMPT], **settings), one, 1e-5)
    travel = model.latents([PROMPT, "rose"], **settings)
    assert_close(travel, model.latents([PROMPT, "rose", "rose"], **settings), 1e-5)
    assert_close(travel[:1], one[:1], 1e-5)
    assert (travel[1:] - one[1:]).abs().amax(dim=(1, 2, 3)).min() > 0.1
    assert model([PROMPT, "rose"], frames=2, steps=1).settings["prompt"] == [PROMPT, "rose"]


@pytest.mark.parametrize(("width", "height"), [(96, 64), (56, 72), (24, 40)])
def test_any_size_that_the_vae_divides(model, width, height):
    """56×72 gives latents of odd sides, which the UNet halves, rounding up: upsampling takes the skip's size."""
    clip = model(PROMPT, frames=2, steps=2, width=width, height=height)
    assert clip.frames.shape == (2, height, width, 3)
    assert (clip.settings["width"], clip.settings["height"]) == (width, height)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 66}, f"size 66x{SIDE}: expected multiples of {REDUCTION}"),
        ({"height": 63}, f"size {SIDE}x63: expected multiples of {REDUCTION}"),
        ({"height": 0}, f"height is 0: expected from {REDUCTION}"),
        ({"width": 64.0}, "width is 64.0: expected a whole number"),
    ],
)
def test_a_size_that_does_not_divide(model, size, message):
    with pytest.raises(InputError, match=message):
        model.latents(PROMPT, **size)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"frames": 0}, "frames is 0: expected from 1 to 1000000000"),
        ({"frames": 10**400}, "frames is 1000"),
        ({"chunk": 10**29}, "chunk is 1000"),
        ({"frames": 2.5}, "frames is 2.5: expected a whole number"),
        ({"steps": 0}, "steps is 0: expected from 1"),
        ({"seed": -1}, "seed is -1: expected from 0"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"guidance": float("nan")}, "guidance is nan: expected a finite number"),
        ({"guidance": "7"}, "guidance is '7': expected a finite number"),
        ({"prompt": ["a"] * 9}, "9 prompts for 8 frames: expected from 1 to 8"),
        ({"prompt": []}, "0 prompts for 8 frames"),
        ({"prompt": None}, "prompt is None.*expected texts"),
        ({"negative_prompt": 3}, "negative prompt 3: expected texts"),
    ],
)
def test_requests_that_can_not_be_meant(request_, message):
    with pytest.raises(InputError, match=message):
        Request(**({"prompt": PROMPT} | request_))


@pytest.mark.parametrize("steps", [1000, 1001])
def test_steps_that_pass_the_schedule(model, steps):
    with pytest.raises(InputError, match=f"{steps} steps pass the last of the schedule's 1000 timesteps: at most 999"):
        model.latents(PROMPT, steps=steps)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(2, *LATENTS), rf"latents are torch.float32 \(2, {SHAPE}\): expected torch.float32 \(8, {SHAPE}"),
        (torch.zeros(8, 3, *LATENTS[1:]), rf"\(8, 3, {LATENTS[1]}, {LATENTS[2]}\): expected"),
        (torch.zeros(8, *LATENTS, dtype=torch.float64), "latents are torch.float64"),
        (torch.full((8, *LATENTS), float("inf")), "latents: some are NaN or infinite"),
    ],
)
def test_latents_that_do_not_fit(model, latents, message):
    with pytest.raises(InputError, match=message):
        model.latents(PROMPT, frames=8, latents=latents)


def test_variants_share_their_weights_and_leave_the_first_as_it_was(model):
    other = model.variant(attn="cfa", noise="iid")
    mine, theirs = model.unet.state_dict(), other.unet.state_dict()
    assert all(mine[name].data_ptr() == theirs[name].data_ptr() for name in mine)
    assert other.vae is model.vae
    assert (model.unet.momentum, model.method.noise) == (momentum("tma"), "dnm")
    assert (other.unet.momentum, other.method.noise) == (momentum("cfa"), "iid")
    assert other.variant(attn="tma").unet.momentum == model.unet.momentum


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn": "sa", "mu": 0.5}, "mu has no effect on attention kind 'sa'"),
        ({"noise": "iid", "lam": 0.5}, "lam has no effect on noise model 'iid'"),
        ({"noise": "dnm", "alpha": 0.5}, "alpha has no effect on noise model 'dnm'"),
    ],
)
def test_settings_without_effect_are_told(model, settings, message):
    with pytest.warns(UserWarning, match=message):
        model.variant(**settings)


def test_settings_with_effect_are_not_warned_of(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.variant(attn="sa", noise="mixed", alpha=2.0).variant(attn="tma", mu=0.5, noise="dnm-search", lam=0.3)


@pytest.mark.parametrize(
    ("settings", "frames", "steps", "message"),
    [
        ({"attn": "extended"}, 4, 2, "anchors 4: no effect on 4 frames"),
        ({"attn": "extended", "anchors": (0, 3, 8, 9)}, 8, 2, "anchors 8, 9: no effect on 8 frames"),
        ({"attn": "extended"}, 5, 2, ""),
        ({"attn": "extended"}, None, 2, ""),
        ({"noise": "freenoise"}, 8, 2, "window 16 has no effect on 8 frames"),
        ({"noise": "freenoise", "window": 4}, 5, 2, ""),
        ({"mu_end": 0.3}, 2, 1, "mu_end has no effect on a single step"),
        ({"mu_end": 0.3}, 2, 2, ""),
        ({"mu_end": 0.3}, 1, 1, ""),  # on one frame nothing of the method has an effect
        ({}, 2, 1, ""),
    ],
)
def test_parameters_without_effect_on_a_short_clip_are_told(model, settings, frames, steps, message):
    variant = model.variant(**settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        variant.plan(Request(PROMPT, frames=frames, steps=steps, spacing="trailing"), stream=True)
    assert [message in str(one.message) for one in caught] == [True] * bool(message)


def test_a_callback_can_cancel(model):
    def cancel(step):
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model(PROMPT, frames=1, steps=5, callback=cancel)
    assert torch.is_grad_enabled()
    sampler = model.sample(Request(PROMPT, frames=1, steps=5))
    next(sampler)
    assert torch.is_grad_enabled()  # the sampler's no_grad does not leak into its caller
    sampler.close()


def test_settings_are_stored_in_the_order_that_files_have_always_had(model):
    names = "prompt negative_prompt frames steps sampler deep_cache guidance guidance_interval seed width height fps"
    assert list(model.settings(model.plan(Request(PROMPT, steps=2)), fps=8))[:12] == names.split()


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "decibels"), [("bfloat16", 25), ("float16", 40)])
def test_half_precision_is_near_float32(model, dtype, decibels):
    half = ZS2.from_pretrained(CHECKPOINT, dtype=dtype, device="cpu")
    request = {**SMALL, "frames": 2, "steps": 2, "guidance": 1.0}  # little: a CPU may have no half-precision arithmetic
    assert half.latents(PROMPT, **request).dtype == torch.float32
    want, got = (m(PROMPT, **request).frames.astype(float) for m in (model, half))
    assert 10 * np.log10(255**2 / ((want - got) ** 2).mean()) > decibels
    assert half.settings(half.plan(Request(PROMPT)), fps=8)["dtype"] == dtype


@torch.no_grad()
def test_latents_that_become_nan_stop_the_clip(model):
    broken = model.variant()
    weight = broken.unet.conv_out.weight.clone()
    weight[0, 0] = float("nan")
    broken.unet.conv_out.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(FloatingPointError, match=r"after step 1 of 3 \(timestep 667\) in torch.float32, and .*of unet"):
        broken.latents(PROMPT, frames=1, steps=3)
    with pytest.raises(FloatingPointError, match="the VAE decoded NaN"):
        model.decode(torch.full((1, *LATENTS), float("nan")))


def test_frames_are_decoded_alike_in_any_number(model):
    latents = torch.randn(5, LATENTS[0], 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    together = model.decode(latents).astype(int)
    alone = np.concatenate([model.decode(z[None]) for z in latents]).astype(int)
    assert np.abs(together - alone).max() <= 1


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match=f"device '{device}' can't be used here .*: try cpu"):
        ZS2.from_pretrained(CHECKPOINT, device=device)


def test_the_readme_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = ZS2.from_pretrained(DEFAULT_MODEL)(PROMPT, frames=2, steps=2)
    assert clip.save("apple.gif")[0].exists()
