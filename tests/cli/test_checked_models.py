"""Models and ControlNets that a server names are checked at its start, by their files, without loading weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import CHECKPOINT, Fixture, tiny, write_tiny

from zs2.app.__main__ import main
from zs2.cli.checked_models import check_models
from zs2.errors import InputError

MODEL = str(CHECKPOINT)
LOADING = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its ControlNet, a model that lacks weights, and other files."""
    folder = tmp_path_factory.mktemp("named")
    tiny.write_control(folder / "control", "sd", Fixture("controlnet").weights("sd"))
    lacking = write_tiny(folder / "sd", "sd")
    shutil.copytree(lacking, folder / "lacking")
    (folder / "lacking" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "text.safetensors").write_text("no weights")
    (folder / "model.ckpt").touch()
    return folder


@pytest.mark.parametrize(
    ("models", "controls", "words"),
    [
        ([MODEL, "nope"], [], "no such model: 'nope'"),
        ([MODEL, "{}/lacking"], [], "{}/lacking: unet/ has no diffusion_pytorch_model.safetensors"),
        ([MODEL, "{}/text.safetensors"], [], "/text.safetensors: not a whole safetensors file"),
        ([MODEL, "{}/model.ckpt"], [], "{}/model.ckpt: model.ckpt is a pickle"),
        ([MODEL, "{}/control"], [], "'{}/control' is not a model folder"),
        ([MODEL], ["nope"], "no such ControlNet: 'nope'"),
        ([MODEL], [MODEL], "is no ControlNet"),
        ([MODEL], ["{}/control"], "the ControlNet '{}/control' is of another family"),
    ],
)
def test_a_wrong_name_is_refused_at_the_start(folder: Path, models: list[str], controls: list[str], words: str) -> None:
    models, controls = ([name.format(folder) for name in names] for names in (models, controls))
    with pytest.raises(InputError) as refused:
        check_models(models, controls, LOADING)
    assert words.format(folder) in str(refused.value)


def test_a_controlnet_of_one_of_the_models_will_do(folder: Path) -> None:
    check_models([MODEL, f"{folder}/sd"], [f"{folder}/control"], LOADING)


def test_the_page_checks_all_its_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zs2.app.__main__.find_spec", lambda name: object())
    for options, words in (
        (["--models", MODEL, "nope"], "no such model: 'nope'"),
        (["--model", MODEL, "--controls", f"{folder}/control"], "is of another family"),
    ):
        assert main([*options, "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
