"""Inputs that can't be used are one line and exit 2; options without effect warn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import tiny
from helpers import write_guided
from PIL import Image
from safetensors.torch import save_file

from weights.recipe import layout
from zs2 import ZS2, Clip, Request
from zs2.errors import InputError
from zs2.guidance.inputs import check_for_model
from zs2.guidance.sources import SourceLatents
from zs2.models.controlnet import ControlNet, ControlNetConfig
from zs2.sample import main

PICTURE = np.full((16, 24, 3), 90, np.uint8)
SIZE = {"height": 16, "width": 24}
BRIEF = ["a cat", "--steps", "2", "--frames", "3", "--size", "24x16", "--device", "cpu", "--no-sheet"]

# Words of the command line, the model, and what the error says.
REFUSED = [
    ("--source clip.webp --strength 0", "source", "strength is 0: expected above 0, which is the source itself"),
    ("--source clip.webp --strength 2", "source", "strength is 2: expected above 0"),
    ("--source clip.webp --strength nan", "source", "strength is nan: expected a finite number"),
    ("--source clip.webp --strength 0.4", "source", "strength 0.4 of 2 steps leaves no step to do"),
    ("--source clip.webp --steps 1", "source", "strength 0.8 of 1 steps leaves no step to do"),
    ("--source clip.webp@2:", "source", "has 2 frames, the clip has 3: expected at least as many (give frames 2"),
    ("--source clip.webp@2:9", "source", "clip.webp@2:9: of 4 frames: expected a range within them"),
    ("--source none.webp", "source", "none.webp: no such file: expected a folder of pictures"),
    ("--first-frame text.png", "source", "text.png: can't be read"),
    ("--first-frame picture.png --source clip.webp", "source", "first_frame and source: expected one of them"),
    ("--first-frame picture.png --latents latents.safetensors", "source", "first_frame and latents: expected one"),
    ("--source clip.webp --latents latents.safetensors", "source", "source and latents: expected one of them"),
    ("--source clip.webp --noise text2video-zero --steps 4", "source", "source with text2video-zero noise"),
    ("--first-frame picture.png --noise text2video-zero --steps 4", "source", "first_frame with text2video-zero noise"),
    ("--source clip.webp --source-latents median", "source", "unknown source_latents 'median'"),
    ("--first-frame picture.png --first-frame-noise x", "source", "unknown first_frame_noise 'x'"),
    ("--image-guidance inf --source clip.webp", "edit", "image_guidance is inf: expected a finite number"),
    ("", "edit", "this model edits a clip by an instruction: give the clip as source"),
    ("--first-frame picture.png", "edit", "this model edits a clip by an instruction: give the clip as source"),
    (
        "--source clip.webp --strength 0.5 --guidance-interval 0,0.5",
        "source",
        "guidance_interval 0,0.5 holds none of the steps 2 to 2 of 2, which strength 0.5 leaves",
    ),
    ("--source clip.webp --guidance 0", "edit", "guidance 0 leaves out the instruction"),
    ("--source mixed --frames 2", "source", "frame 1 is 24x8: expected 24x16, as the first one"),
    ("--control edges clip.webp", "source", "is of another family: it has text of width 24, the model 16"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    models = {way: write_guided(place / way, way, "sd") for way in ("source", "edit")}
    config = tiny.CONTROLS["xl"]
    layout.write_part(place, "edges", config, ControlNet(ControlNetConfig.from_json(config)), layout.STEM)
    return models


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("edges").symlink_to(folders["source"].with_name("edges"))
    Path("mixed").mkdir()
    Image.fromarray(PICTURE).save("mixed/1.png")
    Image.fromarray(PICTURE[:8]).save("mixed/2.png")
    Clip(PICTURE[None]).save("picture.png", json=False)
    Clip(np.stack([PICTURE + i for i in range(4)])).save("clip.webp", json=False)
    Path("text.png").write_text("text")
    save_file({"latents": torch.zeros(3, 4, 8, 12)}, "latents.safetensors")
    return tmp_path


@pytest.mark.parametrize(("words", "way", "message"), REFUSED, ids=lambda value: value if "-" in value else "")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_can_not_be_used_is_one_line(
    folders: dict[str, Path], here: Path, capsys: Any, words: str, way: str, message: str
) -> None:
    files = {path.name for path in here.iterdir()}
    assert main([*BRIEF, "--model", str(folders[way]), "--out", "out.webp", *words.split()]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert {path.name for path in here.iterdir()} == files


@pytest.mark.parametrize(
    ("options", "way", "message"),
    [
        ({"strength": 0.5}, "source", "strength has no effect without source"),
        ({"source_latents": "mean"}, "source", "source_latents has no effect without source"),
        ({"first_frame_noise": "drawn"}, "source", "first_frame_noise has no effect without first_frame"),
        ({"image_guidance": 2.0}, "source", "image_guidance has no effect on a model that does not edit"),
        ({"source": PICTURE, "strength": 0.5}, "edit", "strength has no effect on an editing model"),
        ({"source": PICTURE, "source_latents": "mean"}, "edit", "source_latents has no effect on an editing model"),
        ({"source": PICTURE, "guidance": 1, "image_guidance": 2}, "edit", "image_guidance has no effect at guidance 1"),
        *(
            ({"source": PICTURE, "image_guidance": 0.9, name: value}, "edit", f"{name} has no effect on an editing")
            for name, value in (("guidance", 4), ("guidance_interval", (0, 0.5)), ("negative_prompt", "a dog"))
        ),
        ({"source": PICTURE[:, :8]}, "source", "ndarray is 8x16: its middle 8x5 is resized to 24x16"),
    ],
)
def test_options_without_effect_warn(folders: dict[str, Path], options: dict[str, Any], way: str, message: str) -> None:
    model = ZS2.from_pretrained(folders[way], device="cpu")
    with pytest.warns(UserWarning, match=message):
        model.latents("a cat", frames=1, steps=2, **SIZE, **options)


def test_an_edit_of_one_step(folders: dict[str, Path]) -> None:
    """An editing model takes all steps: the default strength, which would leave none, has no effect."""
    clip = ZS2.from_pretrained(folders["edit"], device="cpu")("a cat", source=PICTURE, frames=1, steps=1, **SIZE)
    assert clip.frames.shape == (1, 16, 24, 3)


def test_a_first_frame_has_a_guidance_of_its_own(folders: dict[str, Path]) -> None:
    from zs2.sampling.request import FIRST_FRAME_GUIDANCE

    model = ZS2.from_pretrained(folders["source"], device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model._request("model()", "a cat", first_frame=PICTURE).guidance == FIRST_FRAME_GUIDANCE
        assert model._request("model()", "a cat", first_frame=PICTURE, guidance=4).guidance == 4
        assert model._request("model()", "a cat", source=PICTURE).guidance == Request("a cat").guidance


def test_a_clip_says_where_its_first_frame_s_noise_is_from(folders: dict[str, Path]) -> None:
    """Older files say `inverted`, also those of clips without a first frame. These are made again without a warning.
    New ones say the same, so that older streams go on, and --skip-existing knows older clips."""
    model = ZS2.from_pretrained(folders["source"], device="cpu")

    def recorded(**options: Any) -> Any:
        return model("a cat", frames=1, steps=1, **SIZE, **options).settings["first_frame_noise"]

    assert recorded() == "inverted"
    assert recorded(first_frame=PICTURE) == "matched"
    assert recorded(first_frame=PICTURE, first_frame_noise="inverted") == "inverted"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no effect")
        assert recorded(first_frame_noise="inverted") == "inverted"


def test_a_first_frame_is_the_frame_0_of_any_clip() -> None:
    for source in (PICTURE, PICTURE[None], Clip(PICTURE[None]), np.stack([PICTURE] * 3)):
        assert Request("a cat", frames=8, first_frame=source).frames == 8
        assert Request("a cat", frames=None, first_frame=source).frames is None
    assert Request("a cat", frames=None, source=np.stack([PICTURE] * 3)).frames == 3


@pytest.mark.parametrize("long", ["source", "control"])
def test_a_clip_without_a_length_is_as_long_as_its_shortest_input(long: str) -> None:
    clips = {name: np.stack([PICTURE] * (7 if name == long else 3)) for name in ("source", "control")}
    assert Request("a cat", frames=None, **clips).frames == 3
    assert Request("a cat", frames=2, **clips).frames == 2
    with pytest.raises(InputError, match="has 3 frames, the clip has 5"):
        Request("a cat", frames=5, **clips)
    assert Request("a cat", frames=None, **clips | {long: PICTURE}).frames == 3  # one picture is as long as any


def test_an_editing_model_takes_no_control(folders: dict[str, Path]) -> None:
    request = Request("a cat", source=PICTURE, control=PICTURE)
    with pytest.raises(InputError, match="this model edits a clip, so it takes no control"):
        check_for_model(request, True, True, None)


def test_one_draw_of_the_posterior_is_that_of_all_frames(folders: dict[str, Path]) -> None:
    """Each frame's latents are its own mean and deviation, with the seed's first draw; or its mean alone."""
    model = ZS2.from_pretrained(folders["source"], device="cpu")
    clip = np.random.default_rng(0).integers(0, 256, (3, *PICTURE.shape), np.uint8)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2) / 127.5 - 1
    mean, deviation = model.vae.moments(pixels)
    draw = torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(5))
    assert deviation.min() > 1e-4
    for kind, want in (("sample", mean + deviation * draw), ("mean", mean)):
        plan = model.plan(Request("a cat", frames=3, seed=5, source=clip, source_latents=kind, **SIZE))
        got = SourceLatents(model.vae, lambda first, count: clip[first:][:count], 2, plan.posterior, keep_all=True)
        torch.testing.assert_close(got.frames(0, 3), want, atol=1e-6, rtol=0)


def test_a_frame_that_becomes_nan_names_the_input(folders: dict[str, Path]) -> None:
    model = ZS2.from_pretrained(folders["source"], device="cpu")
    model.vae.encoder.conv_in.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match="the VAE encoded to NaN or infinity"):
        model.latents("a cat", frames=2, steps=2, source=PICTURE, **SIZE)


def test_an_array_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"an array of float64 \(16, 24, 3\): expected uint8"):
        Request("a cat", source=PICTURE / 255)
    with pytest.raises(InputError, match="expected a path, a Clip, a picture or an array") as error:
        Request("a cat", source=[PICTURE, PICTURE])
    assert "\n" not in str(error.value)
    assert tiny.PICTURE["height"] == SIZE["height"]
