"""Tokens that were added to a tokenizer, in every form in which transformers stores them; null in its files.

The ids are those of transformers' CLIPTokenizer, from the fixture `tokenizers`, which says for each value of each file
what null there does. `published` has ids by the tokenizers of ten published models.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny, token_files
from fixtures.prompts import PROMPTS
from helpers import CHECKPOINT, MODULE, TESTS, Fixture, assert_close, tiny_weights, write_clip

from zs2 import ZS2
from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.evaluation.clip_scorer import Scorer
from zs2.models.tokenizer import Tokenizer

FIXTURES = TESTS / "fixtures"
NEW, *CASES = json.loads((FIXTURES / "tokenizers.json").read_text())
FORMS = token_files.forms(NEW["files"])
IDS = {case["form"]: case["ids"] for case in CASES if "null" not in case}
NULLS = [case for case in CASES if "null" in case]
PUBLISHED = json.loads((FIXTURES / "published.json").read_text())


def ids(tokenizer: Tokenizer, prompts: list[str]) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prompts that are cut
        return [token_files.short(row) for row in tokenizer.encode(prompts).tolist()]


def load(folder: Path, files: dict[str, Any]) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    token_files.write(folder, files)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("form", FORMS)
def test_added_tokens_in_every_form(tmp_path, form):
    tokenizer = load(tmp_path / "tokenizer", FORMS[form])
    assert ids(tokenizer, token_files.PROMPTS) == IDS[form]


@pytest.mark.parametrize("kept", [0, 0.5, 1])
def test_merges_that_are_not_whole(tmp_path, kept):
    """transformers takes them, and cuts all words for which a merge is lost, without a word."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(CHECKPOINT / "tokenizer", folder)
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[: round(kept * len(lines))]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Tokenizer.from_folder(folder)
    assert [str(one.message).split(" words")[0] for one in caught] == (
        []
        if kept == 1
        else [
            f"tokenizer/: no merge makes {len(lines) - 1 - round(kept * len(lines)) + (kept > 0)} of the"
            f" {len(json.loads((folder / 'vocab.json').read_text()))}"
        ]
    )


def test_every_form_is_compared_and_most_differ():
    assert IDS.keys() == FORMS.keys()
    assert "fails" not in IDS.values()
    assert len({json.dumps(rows) for rows in IDS.values()}) > 15
    assert sum(any(516 in row for row in rows) for rows in IDS.values()) > 25


# A token without content is one that transformers never adds; in the place of a named one it takes the unknown token,
# which gives texts a wrong start. zs2 refuses named tokens without content.
EMPTY = ("bos_token/content", "eos_token/content", "pad_token/content", "unk_token/content")


@pytest.mark.parametrize("form", dict.fromkeys(case["form"] for case in NULLS))
def test_a_null_is_what_transformers_makes_of_it(tmp_path, form):
    wrong = []
    for case in NULLS:
        if case["form"] != form:
            continue
        file, place, want = case["file"], case["null"], case["ids"]
        content = tiny.with_values(token_files.content(FORMS[form], file), {place: None})
        got: Any = "fails"
        with contextlib.suppress(InputError):
            got = ids(load(tmp_path / "tokenizer", FORMS[form] | {file: content}), token_files.PROMPTS)
        if place in EMPTY:
            want = "fails"
        if got != (IDS[form] if want == "base" else want):
            wrong.append(f"{file}: {place}: {str(got)[:80]}, but transformers: {str(want)[:80]}")
    assert wrong == []


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["model"])
def test_the_tokenizers_of_published_models(tmp_path, entry):
    for name, want in entry["ids"].items():
        folder = shutil.copytree(FIXTURES / "published" / entry["model"] / name, tmp_path / name)
        token_files.write_clip(folder)
        assert ids(Tokenizer.from_folder(folder), PROMPTS[:6]) == want


# --- what is an error -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"added_tokens.json": {"<toy>": 520}}, r"added token '<toy>' would get the id 516, but its file says 520"),
        ({"added_tokens.json": {"<toy>": 517, "<dog>": 519}}, r"'<toy>' would get the id 516, but its file says 517"),
        (
            {"added_tokens.json": {"cat": 516, "ca": 516}},
            r"added token 'ca' would get the id 512, but its file says 516",
        ),
        ({"added_tokens.json": {"<toy>": "516"}}, r"tokenizer: the added token '<toy>' would get the id 516"),
        ({"added_tokens.json": ["<toy>"]}, r"added_tokens.json: expected a JSON object, got a list"),
        (token_files.config(added_tokens_decoder={"a": {"content": "b"}}), r"tokenizer/: no CLIP vocabulary"),
        (
            token_files.config(padding_side="middle"),
            r"unknown padding_side in tokenizer/tokenizer_config.json 'middle'",
        ),
        (token_files.config(fast_tokenizer_files=["tokenizer.4.0.0.json"]), r"fast_tokenizer_files = .* not supported"),
        (
            {"special_tokens_map.json": token_files.SPECIAL | {"pad_token": "[PAD]"}},
            r"pad_token '\[PAD\]' is not in its vocab",
        ),
    ],
    ids=str,
)
def test_files_that_contradict_each_other(tmp_path, files, words):
    with pytest.raises(InputError, match=words):
        load(tmp_path / "tokenizer", files)


def test_an_unknown_token_that_is_null_needs_every_byte(tmp_path):
    vocabulary = {token: i for token, i in token_files.VOCABULARY.items() if token != "z"}
    files = {"vocab.json": vocabulary, "special_tokens_map.json": token_files.SPECIAL | {"unk_token": None}}
    with pytest.raises(InputError, match="unk_token is null, and the vocabulary lacks a byte"):
        load(tmp_path / "tokenizer", files)


# --- several vectors --------------------------------------------------------------------------------------------------


def test_a_textual_inversion_of_several_vectors_is_expanded_as_by_diffusers(tmp_path):
    added = {"<toy>": 516, "<toy>_1": 517, "<toy>_2": 518, "<dog>": 519}
    tokenizer = load(tmp_path / "tokenizer", {"added_tokens.json": added})
    assert (
        tokenizer.expand("a <toy> and a <dog>, <toy>") == "a <toy> <toy>_1 <toy>_2 and a <dog>, <toy> <toy>_1 <toy>_2"
    )
    for prompt in ("", "a cat", "<dog>", "<|endoftext|>"):
        assert tokenizer.expand(prompt) == prompt
    assert tokenizer.expand("<toy>_2 <toy>") == "<toy>_2 <toy> <toy>_1 <toy>_2"
    overlapping = load(tmp_path / "tokenizer", {"added_tokens.json": {"toy": 516, "toy_1": 517, "toybox": 518}})
    assert overlapping.expand("a toybox, a toy") == "a toybox, a toy toy_1"
    plain = load(tmp_path / "tokenizer", {})
    assert plain.expand("a <toy>_1") == "a <toy>_1"


@pytest.mark.parametrize(
    ("side", "prompt", "cut"), [("right", "x y z u v w a cat", "a cat"), ("left", "a cat u x y z v w", "a cat")]
)
def test_what_is_cut_off_is_quoted(tmp_path, side, prompt, cut):
    tokenizer = load(tmp_path / "tokenizer", token_files.config(truncation_side=side, model_max_length=8))
    with pytest.warns(UserWarning, match=rf"has 10 tokens, this model reads 8: cut off '{cut}'$"):
        tokenizer.encode([prompt])


# --- a folder with textual inversions ---------------------------------------------------------------------------------


def whole_file() -> dict[str, Any]:
    """The same tokens in a tokenizer.json, as transformers 5 writes it."""
    files = json.loads(json.dumps(NEW["files"]))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    files["tokenizer.json"]["added_tokens"][2:] = [{"id": i, "content": t} | plain for t, i in tiny.INVERSIONS.items()]
    return files


def table() -> dict[str, Any]:
    return token_files.config(added_tokens_decoder={f"{i}": {"content": t} for t, i in tiny.INVERSIONS.items()})


@pytest.mark.parametrize(
    "files",
    [{"added_tokens.json": tiny.INVERSIONS}, table(), whole_file()],
    ids=["added_tokens.json", "table", "tokenizer.json"],
)
def test_a_folder_with_textual_inversions_makes_the_picture_of_diffusers(tmp_path, files):
    """Its tokens have rows of their own in the text tower, one of them three."""
    model = tiny.write_inversions(tmp_path / "model", "sd", tiny_weights("sd"))
    token_files.write_pair(model, "sd", files)
    options = tiny.PICTURE | {"prompt": tiny.INVERSION_PROMPT, "frames": 1}
    latents = ZS2.from_pretrained(model, device="cpu").latents(**options)
    assert_close(latents, Fixture("loading")["sd/inversions/latents"], MODULE)


def test_both_towers_of_sdxl_have_textual_inversions(tmp_path):
    model = tiny.write_inversions(tmp_path / "model", "xl", tiny_weights("xl"))
    token_files.write_pair(model, "xl", {"added_tokens.json": tiny.INVERSIONS})
    options = tiny.PICTURE | {"prompt": tiny.INVERSION_PROMPT, "frames": 1}
    latents = ZS2.from_pretrained(model, device="cpu").latents(**options)
    assert_close(latents, Fixture("loading")["xl/inversions/latents"], MODULE)


@pytest.mark.parametrize("files", [{}, {"added_tokens.json": {"<toy>": 516}}])
def test_a_row_without_a_token_is_an_error(tmp_path, files):
    """The text of the token would be cut into pieces without a word."""
    model = tiny.write_inversions(tmp_path / "model", "sd", tiny_weights("sd"))
    token_files.write_pair(model, "sd", files)
    tokens = 516 + len(files)
    with pytest.raises(InputError, match=rf"encoder has 520 tokens, the tokenizer {tokens}: tokens that were added"):
        ZS2.from_pretrained(model, device="cpu")


def test_a_row_without_a_token_in_a_clip_that_scores(tmp_path):
    folder = write_clip(tmp_path / "clip", "clip_gelu")
    vocabulary = json.loads((folder / "vocab.json").read_text())
    last = max(vocabulary, key=vocabulary.__getitem__)
    assert last == "<|endoftext|>"
    vocabulary[last] -= 1
    del vocabulary[next(token for token, i in vocabulary.items() if i == vocabulary[last] and token != last)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<|startoftext|>": 0}))
    with pytest.raises(InputError, match=r"tokenizer has 1087 tokens .* text encoder has 1088"):
        Scorer.from_pretrained(folder)


def test_settings_that_change_the_ids_change_the_identity(tmp_path):
    model = tiny.write_folder(tmp_path / "model", "sd", tiny_weights("sd"))
    digests: dict[str, str] = {}
    for form, files in FORMS.items():
        token_files.write_pair(model, "sd", files)
        digest = Checkpoint(model).digests["config"]
        assert digests.setdefault(digest, json.dumps(IDS[form])) == json.dumps(IDS[form]), form
        shutil.rmtree(model / "tokenizer")
    assert len(digests) > 20
