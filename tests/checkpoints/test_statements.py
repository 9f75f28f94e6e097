"""What a single file says of its prediction and schedule: in its tensors, its metadata, and a YAML file beside it.

The pictures under each statement are those of diffusers' StableDiffusionPipeline, from the fixture `loading`.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny
from fixtures.original import TEXT, extras, single_file_xl, write
from helpers import MODULE, Fixture, assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zs2 import ZS2
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.models.config import UNetConfig, VAEConfig
from zs2.sampling.schedule import alphas_cumprod
from zs2.system.yaml_scalars import read_scalars

Tensors = dict[str, Tensor]
V, EPSILON = "v_prediction", "epsilon"
PICTURE = {"steps": 2, "guidance": 3.0, "seed": 6, "height": 64, "width": 64, "frames": 1}


@cache
def tensors(family: str) -> Tensors:
    """The tensors of a file of a family."""
    if family == "xl":
        fixture = Fixture("xl")
        parts: dict[str, Tensors] = {"unet": {}, "vae": {}, "text_encoder": {}, "text_encoder_2": {}}
        for name, tensor in fixture.tensors.items():
            if "/weights/" in name:
                part, weight = name.split("/weights/")
                parts[part][weight] = tensor
        return single_file_xl(*parts.values())
    prefix, fixture = "file/weights/", Fixture(f"single_{family}")
    return {name.removeprefix(prefix): t for name, t in fixture.tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Writes a file whose weights are all 0: what it says is read before them."""
    folder, count = tmp_path_factory.mktemp("files"), iter(range(1000))

    def save(
        family: str, metadata: dict[str, str] | None = None, yaml: str | None = None, more: Tensors | None = None
    ) -> Path:
        path = folder / f"{next(count)}" / "model.safetensors"
        path.parent.mkdir()
        # those that say something are read, so their values count
        kept = {name: t for name, t in tensors(family).items() if name != "denoiser.sigmas"}
        write(path, kept | (more or {}), metadata, data=bool(more))
        if yaml is not None:
            path.with_suffix(".yaml").write_text(yaml)
        return path

    yield save
    shutil.rmtree(folder)


def silent(path: Path, **options: Any) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Checkpoint(path, **options)


def yaml(**entries: str) -> str:
    """A configuration of the original code, as it lies beside a file. `a__b` is b under a."""
    lines = ["model:", "  target: ldm.models.diffusion.ddpm.LatentDiffusion", "  params:"]
    for place, value in entries.items():
        keys = place.split("__")
        lines += [f"{'  ' * depth}{key}:" for depth, key in enumerate(keys, 2)]
        lines[-1] += f" {value}"
    return "\n".join([*lines, ""])


XL_YAML = """\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config:
          target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.{}Scaling
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        model_channels: 320
        num_head_channels: 64
        transformer_depth: [1, 2, 10]  # the first is not used
    conditioner_config:
      params:
        emb_models:
          - is_trainable: False
            target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
            params: {{layer: hidden, layer_idx: 11}}
          - is_trainable: False
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params:
              layer: penultimate
"""


# --- the prediction ---------------------------------------------------------------------------------------------------

SPELLINGS: list[tuple[str, dict[str, str], str]] = [
    *(("sd1", {key: "v"}, V) for key in ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")),
    *(
        ("xl", {"modelspec.prediction_type": v}, V)
        for v in ("v", "v_prediction", "v-prediction", "V-Pred", "vpred", " v ")
    ),
    *(("xl", {"modelspec.prediction_type": e}, EPSILON) for e in ("epsilon", "eps", "Epsilon", "None", "")),
    *(("sd2", {"modelspec.predict_key": p}, want) for p, want in (("v", V), ("epsilon", EPSILON))),
    ("sd1", {"modelspec.prediction_type": "x0"}, "sample"),
    *(("xl", {key: "v"}, V) for key in ("parameterization", "ss_prediction_type", "ModelSpec.Prediction_Type")),
    ("xl", {"ss_v_parameterization": "True"}, V),
    ("xl", {"ss_v_parameterization": "false"}, EPSILON),
    ("xl", {"ss_v_parameterization": "true", "modelspec.prediction_type": "v"}, V),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, V),
    ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, EPSILON),
]


@pytest.mark.parametrize(("family", "metadata", "want"), SPELLINGS, ids=str)
def test_a_known_spelling_is_understood(files, family, metadata, want):
    assert silent(files(family, metadata)).schedule().prediction_type == want


@pytest.mark.parametrize("family", ["sd1", "xl", "sd2"])
def test_marker_tensors(files, family):
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    schedule = silent(files(family, more=marks)).schedule()
    assert (schedule.prediction_type, schedule.rescale_betas_zero_snr, schedule.timestep_spacing) == (
        V,
        True,
        "trailing",
    )
    assert silent(files(family, more={"v_pred": torch.zeros(0)})).schedule().timestep_spacing == "leading"


@pytest.mark.parametrize(
    ("family", "text", "want"),
    [
        ("sd1", yaml(parameterization='"v"'), V),
        ("sd1", yaml(parameterization="v  # 768"), V),
        ("sd1", yaml(parameterization="'eps'"), EPSILON),
        ("sd1", yaml(parameterization="x0"), "sample"),
        ("sd2", yaml(parameterization='"v"', linear_start="0.00085", linear_end="0.0120", timesteps="1000"), V),
        ("xl", XL_YAML.format("V"), V),
        ("xl", XL_YAML.format("Eps"), EPSILON),
    ],
    ids=str,
)
def test_the_configuration_beside_a_file(files, family, text, want):
    path = files(family, yaml=text)
    assert silent(path).schedule().prediction_type == want
    path.with_suffix(".yaml").write_text(text, "utf-8-sig")
    path.with_suffix(".yaml").rename(path.with_suffix(".yml"))
    assert silent(path).schedule().prediction_type == want


UNKNOWN = [
    ({"modelspec.prediction_type": "rectified flow"}, None, "modelspec.prediction_type = 'rectified flow'"),
    ({"modelspec.predict_key": "velocity"}, None, "modelspec.predict_key = 'velocity'"),
    ({}, yaml(parameterization="flow"), "model.yaml: parameterization: flow"),
    (
        {},
        XL_YAML.format("EDM"),
        "model.yaml: scaling_config.target: sgm.modules.diffusionmodules.denoiser_scaling.EDMScaling",
    ),
]


@pytest.mark.parametrize(("metadata", "text", "named"), UNKNOWN, ids=str)
def test_an_unknown_prediction_is_an_error_that_names_it(files, metadata, text, named):
    path = files("sd1", metadata, text)
    with pytest.raises(InputError) as caught:
        Checkpoint(path)
    assert named in str(caught.value)
    assert "give --prediction epsilon or --prediction v" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="what zs2 does not know, but prediction is v"):
        assert Checkpoint(path, prediction="v").schedule().prediction_type == V


@pytest.mark.parametrize(
    ("metadata", "text", "marked"),
    [
        ({"modelspec.prediction_type": "epsilon"}, None, True),
        ({"modelspec.prediction_type": "epsilon", "modelspec.predict_key": "v"}, None, False),
        ({"ss_v_parameterization": "true"}, yaml(parameterization="eps"), False),
    ],
)
def test_a_file_that_contradicts_itself(files, metadata, text, marked):
    path = files("xl", metadata, text, {"v_pred": torch.zeros(0)} if marked else None)
    with pytest.raises(InputError, match=r"contradicts itself: .*, but .*: give --prediction epsilon or"):
        Checkpoint(path)
    with pytest.warns(UserWarning, match="says that it predicts v, but prediction is epsilon"):
        assert Checkpoint(path, prediction="epsilon").schedule().prediction_type == EPSILON


@pytest.mark.parametrize("key", ["ss_v_parameterization", "ss_zero_terminal_snr"])
def test_a_flag_that_is_none(files, key):
    with pytest.raises(InputError, match=f"{key} is 'maybe': expected true or false"):
        Checkpoint(files("sd1", {key: "maybe"}))


# --- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["True", "1"])
def test_zero_snr_in_the_metadata(files, value):
    metadata = {"ss_zero_terminal_snr": value, "modelspec.prediction_type": "v"}
    assert silent(files("xl", metadata)).schedule().rescale_betas_zero_snr
    assert not silent(files("xl", metadata | {"ss_zero_terminal_snr": "False"})).schedule().rescale_betas_zero_snr


def test_the_numbers_of_a_configuration_are_followed(files):
    text = yaml(linear_start="0.0015", linear_end="0.0195", timesteps="500", scale_factor="0.2", image_size="64")
    checkpoint = silent(files("sd1", yaml=text))
    schedule = checkpoint.schedule()
    assert (schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps) == (0.0015, 0.0195, 500)
    assert VAEConfig.from_json(checkpoint.source.json("vae")).scaling_factor == 0.2
    xl = XL_YAML.format("Eps").replace("num_idx: 1000", "num_idx: 900").replace("0.13025", "0.15")
    checkpoint = silent(files("xl", yaml=xl))
    assert checkpoint.schedule().num_train_timesteps == 900
    assert VAEConfig.from_json(checkpoint.source.json("vae")).scaling_factor == 0.15


@pytest.mark.parametrize("entry", [{"linear_start": "small"}, {"timesteps": "1e3"}, {"scale_factor": "nan"}])
def test_a_number_that_is_none_is_an_error_that_names_it(files, entry):
    (key,) = entry
    with pytest.raises(InputError, match=f"^model.yaml: {key}: .*: expected a number$"):
        Checkpoint(files("sd1", yaml=yaml(**entry)))


def sigmas(cumprod: Tensor) -> Tensor:
    return ((1 - cumprod) / cumprod).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("family", "name"), [("sd1", "alphas_cumprod"), ("xl", "denoiser.sigmas")])
def test_the_schedule_in_a_files_buffers(files, family, name, dtype):
    """That of the family is no news, that of zero SNR is followed, any other is named, in half precision, too."""
    marked = {"v_pred": torch.zeros(0)}
    plain = alphas_cumprod(silent(files(family)).schedule())
    zero = alphas_cumprod(silent(files(family, more=marked | {"ztsnr": torch.zeros(0)})).schedule())
    other = plain**1.2

    def stored(cumprod: Tensor) -> Tensors:
        return marked | {name: (sigmas(cumprod) if "sigmas" in name else cumprod).to(dtype)}

    assert not silent(files(family, more=stored(plain))).schedule().rescale_betas_zero_snr
    if "sigmas" not in name:  # infinite at the end
        assert silent(files(family, more=stored(zero))).schedule().rescale_betas_zero_snr
    for changed in (stored(other), stored(plain[:-1])):
        with pytest.warns(UserWarning, match=rf"does not follow: the schedule in its tensor {name}$"):
            Checkpoint(files(family, more=changed))


def test_buffers_of_files_that_were_not_pruned_are_no_alarm(files):
    path = files("sd1", more=extras(tensors("sd1")))
    assert silent(path).schedule() == silent(files("sd1")).schedule()


def test_the_factor_of_latents_in_a_tensor_is_followed(files):
    for value, want in ((0.18215, 0.18215), (0.1821, 0.18215), (0.25, 0.25)):
        checkpoint = silent(files("sd1", more={"scale_factor": torch.tensor(value)}))
        assert VAEConfig.from_json(checkpoint.source.json("vae")).scaling_factor == pytest.approx(want)


# --- all the rest -----------------------------------------------------------------------------------------------------

HARMLESS = {
    "format": "pt",
    "prompt": '{"3": {"inputs": {"steps": 20}}}',
    "ss_learning_rate": "1e-4",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-xl-v1-base",
    "modelspec.implementation": "sgm",
    "modelspec.title": "A model that predicts v, so to speak",
    "modelspec.date": "2024-01-01T00:00:00",
    "modelspec.hash_sha256": "0x00",
    "modelspec.merged_from": "a, b",
    "modelspec.thumbnail": "data:image/jpeg;base64,",
    "modelspec.timestep_range": "0,1000",
    "modelspec.encoder_layer": "2",
    "modelspec.resolution": "1024x1024",
    "ss_clip_skip": "None",
}


def test_what_has_no_effect_is_no_alarm(files):
    plain, stated = silent(files("xl")), silent(files("xl", HARMLESS))
    for part in ("unet", "vae", "scheduler"):
        assert stated.source.json(part) == plain.source.json(part) | (
            {"sample_size": [128, 128]} if part == "unet" else {}
        )


NOT_FOLLOWED = [
    ("sd1", {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, None),
    ("xl", {"modelspec.architecture": "stable-diffusion-xl-v1-refiner"}, None),
    ("xl", {"modelspec.timestep_range": "200,1000"}, None),
    ("xl", {"modelspec.timestep_range": "late"}, None),
    ("sd1", {"modelspec.encoder_layer": "2"}, None),
    ("sd1", {"ss_clip_skip": "2"}, None),
    ("xl", {"modelspec.resolution": "large"}, None),
    ("xl", {"modelspec.resolution": "1001x1024"}, None),
    ("xl", {"modelspec.sampler": "dpm"}, None),
    ("sd1", {}, yaml(beta_schedule="cosine")),
    ("sd1", {}, yaml(sampling="trailing")),
    ("sd1", {}, yaml(cond_stage_config__params__layer="hidden")),
    ("sd1", {}, "sampling: trailing\n"),
    ("xl", {}, XL_YAML.format("Eps").replace("LegacyDDPMDiscretization", "EDMDiscretization")),
]


@pytest.mark.parametrize(("family", "metadata", "text"), NOT_FOLLOWED, ids=str)
def test_what_is_not_followed_is_named(files, family, metadata, text):
    with pytest.warns(UserWarning, match=r"model.safetensors says what zs2 does not follow: ") as caught:
        Checkpoint(files(family, metadata, text))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    for key, value in metadata.items():
        assert f"{key} = '{value}'" in message
    assert text is None or "model.yaml" in message


@pytest.mark.parametrize(
    ("family", "metadata", "advice"),
    [
        ("sd1", {"ss_clip_skip": "2"}, " (give clip_skip 1)"),
        ("sd1", {"modelspec.encoder_layer": "3"}, " (give clip_skip 2)"),
        ("xl", {"ss_clip_skip": "3"}, " (give clip_skip 1)"),
        ("sd1", {"ss_clip_skip": "0"}, ""),
        ("sd1", {"ss_clip_skip": "last"}, ""),
    ],
)
def test_a_clip_skip_is_answered_with_the_option(files, family, metadata, advice):
    with pytest.warns(UserWarning, match="says what zs2 does not follow") as caught:
        Checkpoint(files(family, metadata))
    (where,) = (f"{key} = {value!r}" for key, value in metadata.items())
    assert str(caught[0].message).endswith(f": {where}{advice}")


def test_a_resolution_is_the_default_size(files):
    checkpoint = silent(files("sd1", {"modelspec.resolution": "768x512"}))
    assert UNetConfig.from_json(checkpoint.source.json("unet")).sample_size == (64, 96)


# --- the pictures -----------------------------------------------------------------------------------------------------

SAID: dict[str, list[tuple[dict[str, str], str | None, tuple[str, ...]]]] = {
    "epsilon": [({}, None, ()), ({"modelspec.prediction_type": "eps"}, yaml(parameterization="eps"), ())],
    "v": [
        ({"modelspec.prediction_type": "v_prediction"}, None, ()),
        ({"modelspec.predict_key": "v"}, None, ()),
        ({}, yaml(parameterization='"v"'), ()),
        ({}, None, ("v_pred",)),
    ],
    "sample": [({}, yaml(parameterization="x0"), ())],
    "zero snr": [
        ({"ss_zero_terminal_snr": "True", "ss_v_parameterization": "True"}, None, ()),
        ({}, None, ("v_pred", "ztsnr")),
    ],
    "betas": [({}, yaml(linear_start="0.0015", linear_end="0.0195"), ())],
    "heads": [({}, yaml(unet_config__params__num_head_channels="8"), ())],
}


@pytest.mark.long
def test_the_pictures_are_those_of_diffusers(tmp_path):
    whole, fixture = dict(tensors("sd1")), Fixture("loading")
    name = TEXT[1] + "text_model.embeddings.token_embedding.weight"
    whole[name] = whole[name].repeat(49408 // 64, 1)
    assert SAID.keys() == tiny.STATED.keys()
    for case, ways in SAID.items():
        for metadata, text, marks in ways:
            path = tmp_path / "model.safetensors"
            write(path, whole | {mark: torch.zeros(0) for mark in marks}, metadata)
            path.with_suffix(".yaml").unlink(missing_ok=True)
            if text is not None:
                path.with_suffix(".yaml").write_text(text)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "sampling starts from pure noise")  # two steps, leading
                model = ZS2.from_pretrained(path, device="cpu")
                latents = model.latents("a cat", **PICTURE, spacing="leading")
                trailing = model.latents("a cat", **PICTURE) if case in tiny.STATED_TRAILING else None
            assert_close(latents, fixture[f"stated/{case}"], MODULE)
            if trailing is not None:
                assert_close(trailing, Fixture("spacing")[f"stated/{case}"], MODULE)
    path.unlink()


# --- reading YAML -----------------------------------------------------------------------------------------------------


def test_scalars_of_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "# comment: no\n"
        "model:   # the model\n"
        "  params:\n"
        '    "a": 1.0e-04 # small\n'
        "    b: 'x # y'\n"
        "    c: [1, 2]\n"
        "    d:\n"
        "      - e: 1\n"
        "        f: 2\n"
        "      -   e: 3\n"
        "  g: http://a/b\n"
        "h:no\n"
        "i: \n"
        "j: last"
    )
    assert read_scalars(tmp_path / "a.yaml") == {
        "model.params.a": "1.0e-04",
        "model.params.b": "x # y",
        "model.params.c": "[1, 2]",
        "model.params.d.e": "3",
        "model.params.d.f": "2",
        "model.g": "http://a/b",
        "j": "last",
    }


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_any_bytes_are_scalars_or_an_error(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("yaml") / "a.yaml"
    file.write_bytes(content)
    try:
        scalars = read_scalars(file)
    except InputError as error:
        assert "can't be read as YAML" in str(error)  # noqa: PT017
    else:
        assert all(isinstance(key, str) and isinstance(value, str) for key, value in scalars.items())


def test_a_yaml_file_that_is_too_large_or_no_text(files):
    path = files("sd1", yaml="a: " + "b" * 1_000_000)
    with pytest.raises(InputError, match="expected at most 1000000"):
        Checkpoint(path)
    path.with_suffix(".yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="can't be read as YAML"):
        Checkpoint(path)
