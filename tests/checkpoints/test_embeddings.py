"""Textual inversions in files of their own, clip skip, and text towers that are longer than their JSON says.

The contexts are those of `encode_prompt` of the pipelines of diffusers, from the fixture `contexts`. The models are
those of fixtures/tiny.py.
"""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from fixtures import tiny
from helpers import MODULE, Fixture, assert_close, write_clip, write_tiny
from safetensors.torch import save_file
from torch import Tensor

from zs2 import ZS2
from zs2.ablate import main as ablate
from zs2.checkpoints import embeddings
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer
from zs2.models.prompt_encoder import PromptEncoder
from zs2.sample import main
from zs2.sampling.request import Request
from zs2.video.clip import read_settings

KINDS = ("sd", "xl")
PICTURE = tiny.PICTURE | {"frames": 1}


@cache
def contexts() -> Fixture:
    return Fixture("contexts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The folder of each model, to be read only."""
    place = tmp_path_factory.mktemp("models")

    @cache
    def path(kind: str) -> Path:
        return write_tiny(place / kind, kind)

    yield path
    shutil.rmtree(place)


def tensors(kind: str, file: str) -> dict[str, Tensor]:
    """The tensors of a file of embeddings, by their names in it."""
    names = ("clip_l", "clip_g") if kind == "xl" else tuple(tiny.EMBEDDINGS[file][1])
    return {name: contexts()[f"{kind}/{file}/{name}"] for name in names}


def files(place: Path, kind: str) -> list[str]:
    """The files of a model's embeddings. Two are named by their token, for one of SDXL it must be given."""
    named = []
    for file, (token, _) in tiny.EMBEDDINGS.items():
        save_file(tensors(kind, file), place / f"{file}.safetensors")
        given = kind == "xl" and file != token
        named.append(f"{place / file}.safetensors" + f":{token}" * given)
    return named


def assert_encodes(text: PromptEncoder, kind: str, case: str, prompt: str, negative: str, skip: int = 0) -> None:
    """Assert that texts are encoded as by diffusers."""
    got, f = text([prompt], [negative], skip), contexts()
    for row, name in enumerate(("negative", "context")):
        assert_close(got.context[row], f[f"{kind}/{case}/{name}"][0], MODULE)
    if kind == "xl":
        assert got.pooled is not None
        for row, name in enumerate(("pooled negative", "pooled")):
            assert_close(got.pooled[row], f[f"{kind}/{case}/{name}"][0], MODULE)


# --- textual inversions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", tiny.EMBEDDING_PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_with_embeddings_are_encoded_as_by_diffusers(folder, tmp_path, kind, case):
    text = Checkpoint(folder(kind)).text()
    embeddings.add_files(embeddings.embedding_files(files(tmp_path, kind)), text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a prompt that is cut, and of another spelling
        assert_encodes(text, kind, case, *tiny.EMBEDDING_PROMPTS[case])


def bundle(place: Path, kind: str, change: Callable[[dict[str, Tensor]], object] = len) -> Path:
    """A LoRA of nothing, with all embeddings of a model in its file."""
    found = {f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{end}.weight": torch.zeros(20, 1) for end in ("up",)}
    found["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(1, 16)
    for file, (token, names) in tiny.EMBEDDINGS.items():
        for name, tensor in tensors(kind, file).items():
            end = name if kind == "xl" or name == "emb_params" else "string_to_param.*"
            found[f"bundle_emb.{token}.{end}"] = tensor
        assert len(names) == 1
    change(found)
    save_file(found, place / "style.safetensors")
    return place / "style.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_brings_its_embeddings(folder, tmp_path, kind):
    """Equal to the embeddings of files of their own; merged twice, they are added once."""
    file = bundle(tmp_path, kind)
    model = ZS2.from_pretrained(folder(kind), device="cpu", lora=[(file, 0.5), (file, 0.5)])
    assert_encodes(model.text, kind, "all", *tiny.EMBEDDING_PROMPTS["all"])
    assert sorted(model.text.embeddings) == sorted(token for token, _ in tiny.EMBEDDINGS.values())
    assert [one["scale"] for one in model.lora] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.update({"bundle_emb.<cat>.vectors": torch.ones(1, 16)}),
            "bundle_emb.<cat>.vectors is no embedding",
        ),
        (
            lambda t: t.update({"bundle_emb.<cat>.clip_l": torch.ones(1, 15)}),
            "'<cat>' is 15 wide, the model's text is 16",
        ),
        (lambda t: t.update({"bundle_emb.<cat>.clip_l": torch.ones(1, 16, dtype=torch.int8)}), "clip_l is torch.int8"),
        (lambda t: t.update({"bundle_emb.\n.emb_params": torch.ones(1, 16)}), r"the token is '\n'"),
        (
            lambda t: t.update({"bundle_emb.easy.clip_l": torch.ones(1, 16)}),
            "style.safetensors ('easy') is no embedding",
        ),
    ],
)
def test_a_lora_with_embeddings_that_do_not_fit(folder, tmp_path, change, words):
    file = bundle(tmp_path, "sd", change)
    with pytest.raises(InputError) as error:
        ZS2.from_pretrained(folder("sd"), device="cpu", lora=file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_change_no_other_prompt(folder, tmp_path, kind):
    text = Checkpoint(folder(kind)).text()
    embeddings.add_files(embeddings.embedding_files(files(tmp_path, kind)), text)
    assert_encodes(text, kind, "skip None", "a cat", "z")


@pytest.mark.parametrize("kind", KINDS)
def test_clip_skip(folder, kind):
    text = Checkpoint(folder(kind)).text()
    for skip in tiny.SKIPS[kind]:
        assert_encodes(text, kind, f"skip {skip}", "a cat", "z", skip)


def test_the_cases_differ():
    """So that no test passes by leaving something out."""
    f = contexts()
    for kind in KINDS:
        cases = [f"skip {skip}" for skip in tiny.SKIPS[kind]] + [*tiny.EMBEDDING_PROMPTS]
        rows = [f[f"{kind}/{case}/context"].flatten() for case in cases]
        near = [(a, b) for a in range(len(rows)) for b in range(a) if (rows[a] - rows[b]).abs().max() < 1e-2]
        assert near == []


# What a file can hold, and the token of it by its file's name `toy`.
FORMS: list[tuple[dict[str, tuple[int, ...]], str | None, str]] = [
    ({"emb_params": (3, 16)}, None, "toy"),
    ({"emb_params": (16,)}, None, "toy"),
    ({"string_to_param.*": (2, 16)}, None, "toy"),
    ({"<cat>": (16,)}, None, "<cat>"),
    ({"<cat>": (2, 16)}, None, "<cat>"),
    ({"<cat>": (1, 16)}, "<dog>", "<dog>"),
    ({"emb_params": (1, 16)}, "a: b c", "a: b c"),
    ({"clip_l": (1, 16)}, None, "toy"),
]


@pytest.mark.parametrize(("shapes", "token", "want"), FORMS)
def test_the_forms_of_a_file(folder, tmp_path, shapes, token, want):
    text = Checkpoint(folder("sd")).text()
    plain = text([f"a {want} cat"]).context
    stored = {name: torch.rand(shape).to(torch.float16) for name, shape in shapes.items()}
    save_file(stored, tmp_path / "toy.safetensors")
    name = f"{tmp_path}/toy.safetensors" + (f":{token}" if token else "")
    records = embeddings.add_files(embeddings.embedding_files([name]), text)
    assert [record["token"] for record in records] == text.embeddings == [want]
    (vectors,) = stored.values()
    table = text.encoders[0].text_model.embeddings.token_embedding.weight
    assert torch.equal(table[tiny.TOKENS :], vectors.reshape(-1, 16).float())
    assert (text([f"a {want} cat"]).context - plain).abs().max() > 1e-3


def test_the_two_towers_can_come_from_two_files(folder, tmp_path):
    """As the training script of diffusers stores them."""
    text = Checkpoint(folder("xl")).text()
    for number, name in enumerate(("clip_l", "clip_g")):
        save_file({"<dog>": tensors("xl", "learned_embeds")[name]}, tmp_path / f"learned_embeds_{number}.safetensors")
    save_file(tensors("xl", "dream-toy"), tmp_path / "dream-toy.safetensors")
    save_file(tensors("xl", "easy"), tmp_path / "easy.safetensors")
    save_file(tensors("xl", "Two Vectors"), tmp_path / "Two Vectors.safetensors")
    embeddings.add_files([(file, None) for file in sorted(tmp_path.iterdir())], text)
    assert text.embeddings.count("<dog>") == 1
    assert_encodes(text, "xl", "all", *tiny.EMBEDDING_PROMPTS["all"])


ROW, ROW_2 = torch.ones(1, 16), torch.ones(1, 8)
REFUSED: list[tuple[str, dict[str, Tensor], str, str]] = [
    (
        "sd",
        {"emb_params": torch.ones(2, 768)},
        "",
        r"'toy' is 768 wide \(SD 1\), the model's text is 16 wide: it is for another",
    ),
    (
        "sd",
        {"clip_l": ROW, "clip_g": ROW_2},
        "",
        r"'toy' is 16 and 8 wide, the model's text is 16 wide: it is for another",
    ),
    ("xl", {"clip_l": ROW}, "", r"'toy' has no vectors for text tower 2, which is 8 wide: expected one for 16 and 8"),
    (
        "xl",
        {"clip_l": ROW_2, "clip_g": ROW},
        "",
        r"'toy' is 8 and 16 wide, the model's text is 16 and 8 wide: it is for",
    ),
    ("xl", {"emb_params": torch.ones(1, 1280)}, "", r"is 1280 wide \(SDXL's second tower\), .* 16 and 8 wide"),
    ("sd", {"emb_params": ROW}, ":cat</w>", r"'cat</w>' is in the vocabulary already"),
    ("sd", {"emb_params": torch.ones(15, 16)}, "", r"'toy' has 15 vectors: a prompt holds 14"),
    ("sd", {"emb_params": ROW.int()}, "", r"emb_params is torch.int32 \(1, 16\): expected numbers"),
    ("sd", {"emb_params": ROW[None]}, "", r"emb_params is torch.float32 \(1, 1, 16\)"),
    ("sd", {"emb_params": ROW[:0]}, "", r"emb_params is torch.float32 \(0, 16\)"),
    ("sd", {"emb_params": ROW / 0}, "", r"emb_params has values that are not finite"),
    (
        "sd",
        {"a": ROW, "b": 2 * ROW},
        "",
        r"toy.safetensors is no embedding: it has 2 tensors \(a, b\): expected emb_params",
    ),
    (
        "sd",
        {"encoder.conv_in.bias": ROW, "quant_conv.bias": 2 * ROW},
        "",
        r"no embedding: it has a VAE \(2 tensors\): give",
    ),
    ("sd", {}, "", r"toy.safetensors is no embedding: it has 0 tensors"),
    ("sd", {" ": ROW}, "", r"the token is ' ': expected a text of one line"),
    ("sd", {"a\nb": ROW}, "", r"the token is 'a\\nb'"),
]


@pytest.mark.parametrize(("kind", "content", "token", "words"), REFUSED)
def test_a_file_that_is_refused(folder, tmp_path, kind, content, token, words):
    text = Checkpoint(folder(kind)).text()
    save_file(content, tmp_path / "toy.safetensors")
    with pytest.raises(InputError, match=words) as caught:
        embeddings.add_files(embeddings.embedding_files(f"{tmp_path}/toy.safetensors{token}"), text)
    assert "\n" not in str(caught.value)
    assert text.embeddings == []
    assert [encoder.config.vocab_size for encoder in text.encoders] == [tiny.TOKENS] * len(text.towers)


@pytest.mark.parametrize("tokens", [("<toy>", "<toy>"), ("<toy>", "<toy>_1"), ("<toy>_2", "<toy>")])
def test_two_embeddings_for_one_token(folder, tmp_path, tokens):
    for number in range(2):
        save_file({"emb_params": torch.ones(2, 16)}, tmp_path / f"{number}.safetensors")
    given = [(tmp_path / f"{number}.safetensors", token) for number, token in enumerate(tokens)]
    with pytest.raises(InputError, match=r"another embedding for '<toy>'|'<toy>_[12]' reads like a vector of '<toy>'"):
        embeddings.add_files(given, Checkpoint(folder("sd")).text())


@pytest.mark.parametrize("name", ["toy.pt", "toy.bin", "toy.PT"])
def test_a_pickle_is_refused_by_name_with_how_to_convert_it(tmp_path, name):
    torch.save({"string_to_param": {"*": ROW}, "name": "toy"}, tmp_path / name)
    for given in (str(tmp_path / name), f"{tmp_path / name}:<toy>"):
        with pytest.raises(InputError, match=rf"{name} is a pickle, .* convert it, .* safetensors.torch.save_file"):
            embeddings.embedding_files([given])


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("toy.safetensors", ("toy.safetensors", None)),
        ("toy.safetensors:<toy>", ("toy.safetensors", "<toy>")),
        ("a/b.safetensors:x: y/z", ("a/b.safetensors", "x: y/z")),
        ("C:\\toy.safetensors", ("C:\\toy.safetensors", None)),
        ("C:\\toy.safetensors:<toy>", ("C:\\toy.safetensors", "<toy>")),
        ("toy:<toy>", ("toy", "<toy>")),
        ("toy.pt:<toy>", ("toy.pt", "<toy>")),
    ],
)
def test_a_file_and_its_token(text, want):
    assert embeddings.parse(text) == (Path(want[0]), want[1])


@pytest.mark.parametrize("wrong", ["", "toy.safetensors:", "toy:", 5, [5], [("a", 5)], ("a", "b", "c")])
def test_what_is_no_file_with_a_token(wrong):
    with pytest.raises(InputError, match="embedding"):
        embeddings.embedding_files(wrong)


# --- clip skip --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "skip"), [(kind, skip) for kind in KINDS for skip in tiny.SKIPS[kind]])
def test_the_latents_under_clip_skip_are_those_of_diffusers(folder, kind, skip):
    model = ZS2.from_pretrained(folder(kind), device="cpu")
    latents = model.latents(**PICTURE | {"negative_prompt": "z"}, clip_skip=skip)
    assert_close(latents, contexts()[f"{kind}/skip {skip}/latents"], MODULE)


@pytest.mark.parametrize(("kind", "skip", "most"), [("sd", 3, 2), ("xl", 2, 1), ("sd", 10**9, 2)])
def test_more_layers_than_there_are(folder, kind, skip, most):
    with pytest.raises(InputError, match=rf"clip_skip is {skip}: expected from 0 to {most}"):
        ZS2.from_pretrained(folder(kind), device="cpu").latents(**PICTURE, clip_skip=skip)


# --- a text tower whose JSON has fewer layers than its file -----------------------------------------------------------


@pytest.mark.parametrize(("kind", "part"), [("sd", "text_encoder"), ("xl", "text_encoder_2")])
def test_a_text_tower_with_more_layers_than_its_json(tmp_path, kind, part):
    """As diffusers' documentation has clip skip. In the fixture for SDXL the first tower has one layer, too."""
    model = write_tiny(tmp_path / "model", kind)
    for name in ("text_encoder", part):
        file = model / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    words = rf"{part}/config.json: num_hidden_layers is 1, the weights have 2 layers: the last one is not used"
    with pytest.warns(UserWarning, match=words):
        text = Checkpoint(model).text()
    assert_encodes(text, kind, f"{part} of 1 layer", "a cat", "z")


def test_a_clip_that_scores_with_more_layers_than_its_json(tmp_path):
    folder = write_clip(tmp_path / "clip")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for tower in ("text", "vision"):
        for name in (f"{tower}_config", f"{tower}_config_dict"):
            if config.get(name):
                config[name]["num_hidden_layers"] -= 1
    file.write_text(json.dumps(config))
    with pytest.warns(
        UserWarning, match=r"num_hidden_layers is 1, the weights have 2 layers: the last one is"
    ) as caught:
        Scorer.from_pretrained(folder)
    assert len(caught) == 2


def test_a_text_tower_with_fewer_layers_than_its_json(tmp_path):
    model = write_tiny(tmp_path / "model", "sd")
    file = model / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"16 tensors missing: text_model.encoder.layers.2"):
        Checkpoint(model).text()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in ("dream-toy", "learned_embeds"):
        save_file(tensors("sd", file), tmp_path / f"{file}.safetensors")
    return tmp_path


def sample(model: Path, *arguments: str) -> int:
    return main([*arguments, "--model", str(model), "--steps", "1", "--frames", "1", "--size", "16x16", "--no-sheet"])


def test_the_settings_have_embeddings_and_clip_skip_and_replay(folder, here, capsys):
    model, given = (
        folder("sd"),
        ("--embedding", "dream-toy.safetensors:<toy>", "--embedding", "learned_embeds.safetensors"),
    )
    arguments = ("a <toy> <dog>", *given, "--clip-skip", "1", "--out", "clip.png")
    assert sample(model, *arguments) == 0, capsys.readouterr().err
    settings = read_settings(Path("clip.png"))
    assert settings["clip_skip"] == 1
    assert [entry["token"] for entry in settings["embeddings"]] == ["<toy>", "<dog>"]
    assert all(len(entry["sha256"]) == 64 for entry in settings["embeddings"])
    assert "no prompt has" not in capsys.readouterr().err
    replay = ("--replay", "clip.png", "--model", str(model), "--out")
    assert main([*replay, "again.png", *given]) == 0
    assert Path("again.png").read_bytes() == Path("clip.png").read_bytes()
    shutil.copy("learned_embeds.safetensors", "other.safetensors")
    for wrong in ((), given[:2], ("--embedding", "other.safetensors:<toy>", *given[2:])):
        capsys.readouterr()
        assert main([*replay, "none.png", *wrong]) == 2
        assert "give the same --embedding" in capsys.readouterr().err


def test_a_clip_of_before_there_were_embeddings_replays(folder, here, capsys):
    assert sample(folder("sd"), "a cat", "--out", "clip.png") == 0
    settings = json.loads(Path("clip.png.json").read_text())
    assert settings.pop("embeddings") is None
    assert settings.pop("clip_skip") == 0
    Path("old.json").write_text(json.dumps(settings))
    assert main(["--replay", "old.json", "--model", str(folder("sd")), "--out", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("clip.png").read_bytes()


@pytest.mark.parametrize(
    ("prompt", "options", "unused"),
    [
        ("a cat", (), ["'dream-toy'"]),
        ("a dream-toy", (), []),
        ("a cat", ("--negative-prompt", "dream-toy"), []),
        ("a cat", ("--negative-prompt", "dream-toy", "--guidance", "1"), ["'dream-toy'"]),
        ("a dream-toy", ("--guidance", "0"), ["'dream-toy'"]),
    ],
)
def test_an_embedding_that_no_prompt_uses_is_a_warning(folder, here, capsys, prompt, options, unused):
    assert sample(folder("sd"), prompt, "--embedding", "dream-toy.safetensors", *options, "--dry-run") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "no prompt has" in line]
    assert [f"no prompt has {name}" in line for name, line in zip(unused, warned, strict=True)] == [True] * len(unused)


def test_an_embedding_that_one_of_several_prompts_uses_is_none(folder, here, capsys):
    Path("prompts.txt").write_text("a cat\na dream-toy\n")
    model, options = folder("sd"), ("--prompts", "prompts.txt", "--dry-run")
    assert sample(model, *options, "--embedding", "dream-toy.safetensors") == 0
    assert "no prompt has" not in capsys.readouterr().err
    loaded = ZS2.from_pretrained(model, device="cpu", embeddings="dream-toy.safetensors")
    with pytest.warns(UserWarning, match="no prompt has 'dream-toy'"):
        loaded.latents(**PICTURE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no prompt has")
        loaded.latents(**PICTURE)  # it was said once


def test_a_study_checks_all_of_its_prompts(folder, here, capsys, no_network):
    Path("prompts.txt").write_text("a cat\na dream-toy\n")
    line = f"--model '{folder('sd')}' --prompts prompts.txt --noise iid --attn sa --frames 2 --steps 2 --size 16x16"
    line += " --seeds 0 --embedding dream-toy.safetensors learned_embeds.safetensors"
    ablate([*shlex.split(line), "--out", "study"])  # there is no CLIP here to measure it with
    no_network.clear()  # the hub was asked for one
    captured = capsys.readouterr().err
    assert captured.count("no prompt has") == 1
    assert "no prompt has '<dog>': the embedding has no effect" in captured
    study = json.loads(Path("study/study.json").read_text())
    assert [entry["token"] for entry in study["embeddings"]] == ["dream-toy", "<dog>"]


def test_another_spelling_of_several_vectors_is_a_warning(folder, here):
    text = Checkpoint(folder("sd")).text()
    embeddings.add_files([(Path("dream-toy.safetensors"), None)], text)
    with pytest.warns(UserWarning, match=r"has 'dream-toy' in another spelling: only the first of its 3 vectors"):
        text(["a Dream-Toy"])


def test_clip_skip_without_effect_is_a_warning():
    with pytest.warns(UserWarning, match="clip_skip has no effect at guidance 0"):
        Request("", guidance=0, clip_skip=1)


def test_the_help_compares_with_a1111(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert '"Clip skip 2" of A1111 is 1 here' in " ".join(capsys.readouterr().out.split())
