"""What `--replay` makes of settings from before a parameter, and of settings that lack what every clip has."""

import json

import pytest

from zs2.cli.replay import replay_options
from zs2.errors import InputError
from zs2.sampling.request import Request

SETTINGS = {
    **{"prompt": "rose", "negative_prompt": "", "frames": 2, "steps": 4, "guidance": 3.0, "seed": 1, "latents": None},
    **{"width": 16, "height": 16, "fps": 8, "chunk": 2, "processes": 1, "dtype": "float32", "device": "cpu"},
    **{"attn": "sa", "mu": None, "noise": "dnm", "lam": 0.2, "alpha": None, "motion": None, "renoise": None},
    **{"model": "checkpoint", "weights": {}, "vae": None, "lora": None, "embeddings": None, "versions": {}},
}


@pytest.fixture
def replay(tmp_path):
    def read(*missing):
        file = tmp_path / "clip.json"
        file.write_text(json.dumps({name: value for name, value in SETTINGS.items() if name not in missing}))
        return replay_options(str(file), {"replay": str(file)})

    return read


def test_a_parameter_that_a_clip_is_older_than_has_no_effect_on_it(replay):
    assert replay("mu", "alpha", "renoise") == replay()
    assert replay()["lam"] == 0.2


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("prompt", "syntax"), [("rose <lora:x:1>", "plain"), ("(rose:1.2)", "plain"), ("rose", None)], ids=str
)
def test_a_prompt_that_was_plain_without_a_word_stays_so(tmp_path, recwarn, name, prompt, syntax):
    """`<lora:…>` was text with a warning before it was an error."""
    file = tmp_path / "clip.json"
    file.write_text(json.dumps(SETTINGS | {name: prompt}))
    options = replay_options(str(file), {"replay": str(file)})
    assert options.get("prompt_syntax") == syntax
    Request(options["prompt"], negative_prompt=options["negative_prompt"], prompt_syntax=options.get("prompt_syntax"))
    assert not recwarn


@pytest.mark.parametrize("name", ["attn", "noise", "steps", "width"])
def test_settings_that_every_clip_has_must_be_there(replay, name):
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        replay(name)


def test_a_parameter_that_has_an_effect_must_be_there(replay):
    with pytest.raises(InputError, match="lam is null, but has an effect"):
        replay("lam")


def test_a_clip_of_a_compiled_unet_is_compiled_again(replay, tmp_path):
    assert replay()["compile"] is False  # older clips do not say
    for value in (True, False):
        file = tmp_path / "compiled.json"
        file.write_text(json.dumps(SETTINGS | {"compile": value}))
        assert replay_options(str(file), {"replay": str(file)})["compile"] is value
    file.write_text(json.dumps(SETTINGS | {"compile": "yes"}))
    with pytest.raises(InputError, match="compile is 'yes'"):
        replay_options(str(file), {"replay": str(file)})
