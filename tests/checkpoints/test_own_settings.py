"""A checkpoint's `zs2.json`: what is read of it, what is refused, and where defaults come from, in all commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CHECKPOINT, LAM, NAME, TESTS, write_guided
from PIL import Image

from zs2 import ZS2
from zs2.ablate import main as ablate
from zs2.checkpoints import locate
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.hub import DEFAULT_MODEL, STANDARD_CLIP
from zs2.checkpoints.locate import BUNDLED, FORMER, full_name, local_path
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.model_list import main as models
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import own_clip, scoring_model
from zs2.metrics import main as metrics
from zs2.sample import main as sample

BRIEF = ("--steps", "2", "--frames", "2", "--size", "16x16", "--spacing", "trailing")  # the cheapest clip
DEFAULT = OwnSettings.of(DEFAULT_MODEL)
Write = Callable[..., Path]


@pytest.fixture
def write(folder: Path) -> Write:
    """Writes the zs2.json of a copy of the default checkpoint, and returns the copy."""

    def to(**content: Any) -> Path:
        (folder / "zs2.json").write_text(json.dumps(content))
        return folder

    return to


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def settings(file: str) -> dict[str, Any]:
    return json.loads(Path(file).read_text())


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_default_checkpoint():
    assert (DEFAULT.name, DEFAULT.request, DEFAULT.method) == (NAME, {"steps": 25, "guidance": 5.0}, {"lam": 0.3})
    assert len(DEFAULT.things) == len({*DEFAULT.things}) >= 100
    assert len(DEFAULT.prompts) == len(DEFAULT.open_prompts) == 8
    assert OwnSettings.of(NAME) == OwnSettings.of(CHECKPOINT) == DEFAULT


@pytest.mark.parametrize("content", [None, {}])
def test_nothing_there(folder, content):
    if content is not None:
        (folder / "zs2.json").write_text(json.dumps(content))
    own = OwnSettings.read(folder)
    assert own == OwnSettings("checkpoint")
    assert (own.request, own.method, own.things) == ({}, {}, ())
    own.warn_of_unknown_things("anything")


def test_a_single_file_and_a_model_of_the_hub_have_none(tmp_path):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "zs2.json").write_text('{"steps": 3}')
    assert OwnSettings.read(tmp_path / "model.safetensors").request == {}
    assert OwnSettings.of("sd15").request == OwnSettings.of("owner/name").request == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"steps": 0}, "steps is 0: expected at least 1"),
        ({"steps": -5}, "steps is -5"),
        ({"steps": 2.5}, "steps is 2.5: expected a whole number"),
        ({"steps": "25"}, "steps is '25'"),
        ({"steps": True}, "steps is True: expected a whole number"),
        ({"steps": [25]}, "steps is [25]"),
        ({"guidance": "5"}, "guidance is '5': expected a number"),
        ({"guidance": False}, "guidance is False"),
        ({"guidance": float("nan")}, "NaN is no number"),
        ({"guidance": float("inf")}, "Infinity is no number"),
        ({"guidance": 10**400}, "guidance is 1000"),
        ({"image_guidance": "4"}, "image_guidance is '4': expected a number"),
        ({"lam": -0.1}, "lam is -0.1: expected a number from 0"),
        ({"lam": 2}, "lam is 2: expected a number from 0 (one noise) to √e"),
        ({"lam": float("nan")}, "NaN is no number"),
        ({"lam": "0.1"}, "lam is '0.1'"),
        ({"lam": True}, "lam is True"),
        ({"prompts": "red apple"}, "prompts: expected a list"),
        ({"prompts": {"a": 1}}, "prompts: expected a list"),
        ({"prompts": [1]}, "prompts has '1': expected a text of one line"),
        ({"prompts": ["two\nlines"]}, "expected a text of one line"),
        ({"open_prompts": ["\x1b[31m"]}, "expected a text of one line"),
        ({"things": ["x" * 1001]}, "at most 1000 characters"),
        ({"things": ["x"] * 10_001}, "at most 10000 texts"),
        ({"things": ["x" * 999] * 1100}, "bytes: expected at most"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(write, content, words):
    """With the file's name: in the library, and as one line of a command."""
    folder = write(**content)
    for load in (lambda: OwnSettings.read(folder), lambda: ZS2.from_pretrained(folder)):
        with pytest.raises(InputError) as caught:
            load()
        assert str(caught.value).startswith(f"{folder / 'zs2.json'}: ")
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[25]", "25", '{"steps": 25,}', "\xff"])
def test_a_file_that_is_no_json_object(folder, here, capsys, text):
    (folder / "zs2.json").write_bytes(text.encode("latin-1"))
    assert sample(["a", *BRIEF, "--model", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zs2: error: {folder / 'zs2.json'}: ")
    assert list(here.iterdir()) == []


def test_unknown_keys_are_a_warning(write):
    with pytest.warns(UserWarning, match="zs2 does not know mu, sampler: the result may differ"):
        assert OwnSettings.read(write(steps=3, mu=0.5, sampler="dpm++")).request == {"steps": 3}


def test_null_is_as_if_it_were_not_there(write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys = ("steps", "guidance", "image_guidance", "lam", "prompts", "open_prompts", "things", "later")
        assert OwnSettings.read(write(**dict.fromkeys(keys))) == OwnSettings("checkpoint")


# --- where defaults come from -----------------------------------------------------------------------------------------


def test_a_model_takes_its_defaults_from_there(write):
    model = ZS2.from_pretrained(write(steps=3, guidance=2.0, lam=0.5))
    brief = {"frames": 2, "height": 16, "width": 16}
    made = model("rose", **brief).settings
    assert (made["steps"], made["guidance"], made["lam"]) == (3, 2.0, 0.5)
    made = model.variant(lam=0.25)("rose", steps=2, guidance=1.0, **brief).settings
    assert (made["steps"], made["guidance"], made["lam"]) == (2, 1.0, 0.25)
    assert len(list(model.stream("rose", **brief))) == len(model.latents("rose", **brief)) == 2


def test_an_editing_model_says_how_much_its_source_counts(tmp_path, here, capsys):
    """It has no effect at guidance 1, which is then not the user's fault."""
    folder = write_guided(tmp_path / "edit", "edit", "sd")
    (folder / "zs2.json").write_text('{"guidance": 4.0, "image_guidance": 4.5}')
    model = ZS2.from_pretrained(folder)
    assert model.own_settings.summary(["guidance", "image_guidance"]).endswith(
        "guidance 4, image guidance 4.5 (zs2.json)"
    )
    picture = np.zeros((16, 16, 3), np.uint8)
    brief = {"frames": 1, "steps": 2, "height": 16, "width": 16, "spacing": "trailing"}
    made = model("rose", source=picture, **brief)
    assert (made.settings["guidance"], made.settings["image_guidance"]) == (4.0, 4.5)
    assert np.array_equal(made.frames, model("rose", source=picture, guidance=4, image_guidance=4.5, **brief).frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model("rose", source=picture, guidance=1, **brief)
    with pytest.warns(UserWarning, match="image_guidance has no effect at guidance 1"):
        model("rose", source=picture, guidance=1, image_guidance=2, **brief)
    Image.fromarray(picture).save("picture.png")
    line = ["rose", *BRIEF, "--source", "picture.png", "--model", str(folder)]
    for words, note in (([], "guidance 4, image guidance 4.5"), (["--guidance", "1"], None)):
        assert sample([*line, *words, "--out", "a.webp", "--overwrite"]) == 0
        said = capsys.readouterr().err
        assert (f"edit's own settings: {note} (zs2.json)" if note else "") in said
        assert ("image" in said) == (note is not None)


def test_an_option_without_effect_changes_no_other(write):
    """An image guidance on a model that does not edit leaves it its own guidance, and what is no number is an error."""
    model = ZS2.from_pretrained(write(steps=3, guidance=2.0))
    request = model._request("model()", "rose", image_guidance=0.5)
    assert (request.steps, request.guidance, request.image_guidance) == (3, 2.0, 0.5)
    with pytest.raises(InputError, match="image_guidance is 'much'"):
        model._request("model()", "rose", image_guidance="much")


def test_without_it_they_are_the_papers(folder):
    model = ZS2.from_pretrained(folder)
    made = model.settings(model.plan(model._request("model()", "rose")), 8)
    assert (made["steps"], made["guidance"], made["lam"], made["mu"]) == (50, 7.5, 0.01, 0.98)


def test_an_option_wins_then_replay_then_the_checkpoint_then_the_paper(write, here, capsys):
    model = str(write(guidance=2.0, lam=0.5))
    line = ["rose", "--frames", "2", "--size", "16x16", "--model", model]
    assert sample([*line, "--fast", "--guidance", "3", "--out", "a.gif"]) == 0  # `--fast` says 20 steps
    assert "zs2: checkpoint's own settings: λ 0.5 (zs2.json)" in capsys.readouterr().err.splitlines()
    made = settings("a.gif.json")
    assert (made["steps"], made["guidance"], made["lam"], made["mu"]) == (20, 3.0, 0.5, 0.98)
    write(steps=4, guidance=9.0, lam=1.5)
    assert sample(["--replay", "a.gif.json", "--model", model, "--out", "b.gif"]) == 0
    assert "own settings" not in capsys.readouterr().err
    assert settings("b.gif.json") == made
    assert sample([*line, "--lam", "0", "--out", "c.gif"]) == 0
    assert "zs2: checkpoint's own settings: 4 steps, guidance 9 (zs2.json)" in capsys.readouterr().err.splitlines()
    made = settings("c.gif.json")
    assert (made["steps"], made["guidance"], made["lam"]) == (4, 9.0, 0)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("", f"25 steps, guidance 5, λ {LAM:g}"),
        ("--steps 2 --spacing trailing", f"guidance 5, λ {LAM:g}"),
        ("--steps 2 --spacing trailing --noise iid", "guidance 5"),
        ("--steps 2 --spacing trailing --frames 1", "guidance 5"),
        ("--steps 2 --spacing trailing --noise dnm-search --guidance 5", f"λ {LAM:g}"),
        ("--steps 2 --spacing trailing --noise shared --guidance 5", ""),
    ],
)
def test_what_has_an_effect_is_said_in_one_line(here, capsys, line, shown):
    assert sample(["rose", "--frames", "2", "--size", "16x16", *line.split()]) == 0
    said = [one for one in capsys.readouterr().err.splitlines() if one.startswith("zs2: ")]
    assert said == ([f"zs2: {NAME}'s own settings: {shown} (zs2.json)"] if shown else [])


def test_a_study_takes_them_and_goes_on_with_its_own(write, here, capsys, no_network):
    (here / "prompts.txt").write_text("rose\n")
    model = ["--model", str(write(steps=2, guidance=2.0, lam=0.5))]
    line = ["--frames", "2", "--size", "16x16", "--noise", "dnm", "--seeds", "0", "--out", "s"]
    line += ["--prompts", "prompts.txt"]
    assert ablate([*line, *model]) == 1  # there is no CLIP in the copy
    assert (
        "zs2: checkpoint's own settings: 2 steps, guidance 2, λ 0.5 (zs2.json)" in capsys.readouterr().err.splitlines()
    )
    study = settings("s/study.json")
    assert (study["steps"], study["guidance"]) == (2, 2.0)
    assert [cell["lam"] for cell in study["cells"]] == [0.5]
    write(steps=9)
    assert ablate([*line, *model, "--seeds", "0,1"]) == 1
    assert "own settings" not in capsys.readouterr().err
    assert settings("s/clips/dnm-0.5_tma-0.98_p00_s1.webp.json")["steps"] == 2
    no_network.clear()  # the hub was asked for a CLIP, twice


def test_the_first_example_is_the_default_prompt(write, here, capsys):
    model = ["--model", str(write(prompts=["rocket on a red background", "rose"]))]
    assert sample([*BRIEF, *model, "--out", "a.gif"]) == 0
    assert settings("a.gif.json")["prompt"] == "rocket on a red background"
    write(steps=2)
    assert sample([*BRIEF, *model]) == 2
    assert "no prompt: give one" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "words"), [(1, "1 step"), (2, "2 steps"), (100, "100 steps")])
def test_one_step_is_one(steps: int, words: str) -> None:
    assert OwnSettings("toy", steps=steps).summary(["steps"]) == f"toy's own settings: {words} (zs2.json)"


# --- what it knows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("red aple on a red background", "red apple"),
        ("a cat on grass", "cat face"),
        ("elefant", "elephant"),
        ("apple", "red apple"),
        ("hot dogs at night", "hot dog"),
        ("Rockets", "rocket"),
    ],
)
def test_a_prompt_that_names_nothing_known_is_a_warning_with_the_three_nearest(prompt, near):
    with pytest.warns(UserWarning, match=f"names none of the {len(DEFAULT.things)} things that {NAME} knows") as caught:
        DEFAULT.warn_of_unknown_things(prompt)
    (warning,) = caught
    assert str(warning.message).count("'") == 8  # those of the prompt and of three names
    assert DEFAULT.nearest(prompt)[0] == near
    assert len({*DEFAULT.nearest(prompt)} & {*DEFAULT.things}) == 3


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "  ",
        "panda face",
        "A Golden RED APPLE, at night",
        "two: rose and bus",
        ["rose", ""],
        "a red  apple",
        "red\napple",
    ],
)
def test_a_prompt_that_names_something_known_is_none(prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DEFAULT.warn_of_unknown_things(prompt)


def test_every_thing_and_example_is_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DEFAULT.warn_of_unknown_things([*DEFAULT.things, *DEFAULT.prompts, *DEFAULT.open_prompts])


def test_the_warning_reaches_python_and_the_commands(here, capsys):
    model, brief = ZS2.from_pretrained(CHECKPOINT), {"steps": 1, "frames": 2, "height": 16, "width": 16}
    with pytest.warns(UserWarning, match=f"'zeppelin' names none of the {len(DEFAULT.things)}"):
        model("zeppelin", **brief)
    with pytest.warns(UserWarning, match=f"'zeppelin' names none of the {len(DEFAULT.things)}"):
        model.latents(["rose", "zeppelin"], **brief)
    Path("p.txt").write_text("rose\nzeppelin\n")
    for line in (["zeppelin"], ["--prompts", "p.txt"], ["--travel", "p.txt"]):
        assert sample([*line, *BRIEF, "--out", "a.gif", "--overwrite"]) == 0
        assert (
            capsys.readouterr().err.count(
                f"warning: the prompt 'zeppelin' names none of the {len(DEFAULT.things)} things"
            )
            == 1
        )
    assert ablate([*BRIEF, "--noise", "dnm", "--seeds", "0", "--prompts", "p.txt", "--out", "s", "--dry-run"]) == 0
    assert (
        capsys.readouterr().err.count(f"warning: the prompt 'zeppelin' names none of the {len(DEFAULT.things)} things")
        == 1
    )
    assert sample(["--replay", "a.gif.json", "--out", "b.gif"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_the_list_of_what_it_knows(capsys):
    assert models([NAME]) == models([DEFAULT_MODEL]) == models([str(CHECKPOINT)]) == 0
    out = capsys.readouterr().out
    assert out == out[: len(out) // 3] * 3
    assert out.startswith(f"{NAME}'s own settings: 25 steps, guidance 5, λ {LAM:g} (zs2.json)\n")
    words = " ".join(out[: len(out) // 3].split())
    assert f"it knows {len(DEFAULT.things)} things: " + ", ".join(DEFAULT.things) in words
    assert all(f'"{prompt}"' in words for prompt in (*DEFAULT.prompts, *DEFAULT.open_prompts))


def test_a_model_without_a_list(write, folder, capsys):
    assert models([str(folder)]) == 2
    assert "checkpoint has no zs2.json: its defaults are the paper's" in capsys.readouterr().err
    assert models([str(write(lam=0.5))]) == 0
    assert capsys.readouterr().out == "checkpoint's own settings: λ 0.5 (zs2.json)\n"


# --- the default checkpoint's names -----------------------------------------------------------------------------------


def test_the_short_name_is_the_path(here, capsys):
    for name in ("a", "b"):
        model = {"a": [], "b": ["--model", NAME]}[name]
        assert sample(["rose", *BRIEF, *model, "--out", f"{name}.webp"]) == 0
    assert Path("a.webp").read_bytes() == Path("b.webp").read_bytes()
    capsys.readouterr()
    line = ["--noise", "dnm", *BRIEF, "--seeds", "0", "--out", "s", "--prompts", "p.txt"]
    Path("p.txt").write_text("rose\n")
    assert ablate([*line, "--model", NAME, "--clip", NAME]) == 0
    assert ablate(line) == 0  # the same study
    assert settings("s/study.json")["model"] == DEFAULT_MODEL
    assert settings(f"s/measures/dnm-{LAM:g}_tma-0.98_p00_s0.json")["protocol"]["clip"] == DEFAULT_MODEL
    assert metrics(["a.webp", "--clip", NAME]) == 0
    assert f"CLIP: {DEFAULT_MODEL}" in capsys.readouterr().out


def test_what_is_here_comes_first(here):
    assert full_name(NAME) == DEFAULT_MODEL
    Path(NAME).mkdir()
    assert full_name(NAME) == NAME
    assert local_path(NAME) == Path(NAME)


@pytest.mark.parametrize(
    "name", ["", "zs2", "tests", "models", "zs2/models", "setup.cfg", f"../{DEFAULT_MODEL}", "weights/nothing"]
)
def test_nothing_else_of_the_clone_or_the_package_is_a_model(here, name):
    assert local_path(name) is None


def test_all_that_without_torch():
    code = f"import sys; from zs2.cli.model_list import main; main(['{NAME}']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr


# --- a folder with some parts, and the model that has the others ------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, an editing model; `base`, the same with another UNet; `edit`, its UNet, which names the base."""
    folder = tmp_path_factory.mktemp("parts")
    write_guided(folder / "whole", "edit", "sd")
    shutil.copytree(folder / "whole", folder / "base")
    shutil.rmtree(folder / "base" / "unet")
    write_guided(folder / "other", "source", "sd")
    shutil.copytree(folder / "other" / "unet", folder / "base" / "unet")
    shutil.copytree(folder / "whole" / "unet", folder / "edit" / "unet")
    (folder / "edit" / "zs2.json").write_text('{"base": "base"}')
    return folder


def test_what_a_folder_lacks_is_taken_from_its_base(parts: Path) -> None:
    source = np.arange(2 * 16 * 24 * 3, dtype=np.uint8).reshape(2, 16, 24, 3)
    clips = []
    for name in ("whole", "edit"):
        model = ZS2.from_pretrained(parts / name, device="cpu")
        clips.append(model("a cat", source=source, frames=2, steps=2, height=16, width=24, seed=1))
    whole, edit = clips
    assert np.array_equal(whole.frames, edit.frames)
    assert edit.settings["model"] == "edit"
    assert ZS2.from_pretrained(parts / "base", device="cpu").unet.config.in_channels == 4
    digests = Checkpoint(parts / "whole").digests
    assert Checkpoint(parts / "edit").digests == digests
    assert Checkpoint(parts / "edit", vae=parts / "base" / "vae").digests == digests


def test_a_model_s_clips_are_scored_by_its_base_s_clip(parts: Path) -> None:
    assert scoring_model(parts / "edit") == STANDARD_CLIP
    assert own_clip(parts / "edit") is None  # so the page shows no identity, and fetches nothing
    (parts / "base" / "image_encoder").mkdir()
    assert scoring_model(parts / "edit") == str(parts / "base")


def test_a_short_name_s_clip_scores_too(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(parts / "edit", tmp_path / "edit")
    (tmp_path / "edit" / "zs2.json").write_text(json.dumps({"base": NAME}))
    assert scoring_model(tmp_path / "edit") == own_clip(tmp_path / "edit") == DEFAULT_MODEL
    monkeypatch.chdir(parts / "edit")
    (parts / "base" / "image_encoder").mkdir(exist_ok=True)
    assert scoring_model(".") == str(Path("../base"))


NO_NAME = "expected a model's short name, or the name of a folder beside it"


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("..", NO_NAME),
        ("../base", NO_NAME),
        ("/base", NO_NAME),
        ("owner/name", NO_NAME),
        ("", NO_NAME),
        (3, NO_NAME),
        ("nothing", "needs the model 'nothing', and there is no folder"),
        *((Path(model).name, f"{model} is not here: commit {commit} is the last") for model, commit in FORMER.items()),
        ("edit", "scheduler/, nor has its base"),  # itself
    ],
)
def test_a_base_is_the_name_of_a_model(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: object, words: str
) -> None:
    monkeypatch.setattr(locate, "PACKAGE", Path("/nowhere/zs2"))  # this clone may have a former one again
    shutil.copytree(parts / "edit", tmp_path / "edit")
    (tmp_path / "edit" / "zs2.json").write_text(json.dumps({"base": base}))
    with pytest.raises(InputError, match=re.escape(words)):
        Checkpoint(tmp_path / "edit")


def test_the_base_is_listed(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models([str(parts / "edit")]) == 0
    assert "its other parts are those of base" in capsys.readouterr().out


def test_a_short_name_is_a_base(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT / "unet", tmp_path / "edit" / "unet")
    name = Path(DEFAULT_MODEL).name
    (tmp_path / "edit" / "zs2.json").write_text(json.dumps({"base": name}))
    assert Checkpoint(tmp_path / "edit").digests == Checkpoint(CHECKPOINT).digests


def test_what_comes_with_zs2_is_listed_where_it_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its short name it is found, too."""
    for model, what in BUNDLED.items():
        Path(model).mkdir(parents=True, exist_ok=True)
        assert models([]) == 0
        rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
        assert [Path(model).name, model, f"MIT; comes with zs2{what}"] in rows
        assert local_path(Path(model).name) == Path(model)
        Path(model).rmdir()
    assert models([]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "MIT; comes with zs2" in line]
    assert listed == [Path(model).name for model in BUNDLED if (TESTS.parent / model).exists()]
