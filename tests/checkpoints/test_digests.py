"""The SHA-256 of weights is that of their content now, whether it is remembered or not."""

import hashlib
import json
import os
import shutil
import time
import warnings

import pytest
import torch
from safetensors.torch import save_file

from zs2 import ZS2
from zs2.checkpoints import digests, embeddings
from zs2.checkpoints.digests import sha256
from zs2.errors import InputError

LONG_AGO = 1_600_000_000


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file of the cache, with every file large and settled: the time of any change (ctime) can't be set back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 0)
    monkeypatch.setattr(digests, "SETTLED", -3600)
    return tmp_path / "cache" / "zs2" / "sha256.json"


@pytest.fixture
def hashed(monkeypatch):
    """Every list of files that was read to be hashed."""
    seen, hash_files = [], digests._hash
    monkeypatch.setattr(digests, "_hash", lambda files: (seen.append(files), hash_files(files))[1])
    return seen


def write(path, content):
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))  # a content of the same length and time: only ctime tells
    return path


def want(*contents):
    return hashlib.sha256(b"".join(contents)).hexdigest()


def test_files_are_hashed_once_while_they_stay_as_they_are(tmp_path, cache, hashed):
    one, two = write(tmp_path / "one", b"1"), write(tmp_path / "two", b"2")
    for _ in range(3):
        assert sha256([one, two]) == want(b"1", b"2")
        assert sha256([two]) == want(b"2")
    assert hashed == [[one, two], [two]]
    moved = one.rename(tmp_path / "other")  # which changes ctime
    link = tmp_path / "link"
    link.symlink_to(moved)
    for path in (moved, link):
        assert sha256([path, two]) == want(b"1", b"2")
    assert hashed[2:] == [[moved, two]]
    assert cache.parent.name == "zs2"
    assert [*cache.parent.iterdir()] == [cache]
    assert str(tmp_path) not in cache.read_text()


def test_other_content_of_the_same_length_name_and_time_is_hashed_again(tmp_path, cache):
    file = write(tmp_path / "weights", b"1")
    assert sha256([file]) == want(b"1")
    time.sleep(0.05)  # a tick of the file system's clock
    write(file, b"2")
    assert sha256([file]) == want(b"2")
    time.sleep(0.05)
    other = write(tmp_path / "other", b"3")
    os.replace(other, file)
    assert sha256([file]) == want(b"3")


def test_what_changes_while_it_is_hashed_is_not_kept(tmp_path, cache, monkeypatch):
    file, hash_files = write(tmp_path / "weights", b"1"), digests._hash

    def changing(files):
        digest = hash_files(files)
        time.sleep(0.05)
        write(file, b"2")
        return digest

    monkeypatch.setattr(digests, "_hash", changing)
    assert sha256([file]) == want(b"1")
    assert not cache.exists()


def test_small_and_fresh_files_are_not_kept(tmp_path, cache, monkeypatch):
    file = write(tmp_path / "weights", b"1")
    monkeypatch.setattr(digests, "SETTLED", 2)  # its ctime is now
    assert sha256([file]) == want(b"1")
    monkeypatch.setattr(digests, "SETTLED", -3600)
    monkeypatch.setattr(digests, "LARGE", 2)
    assert sha256([file]) == want(b"1")
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": 1}', b"null", b"[" * 100_000])
def test_a_broken_cache_is_none(tmp_path, cache, content):
    file = write(tmp_path / "weights", b"1")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert sha256([file]) == want(b"1")
    assert [*json.loads(cache.read_text()).values()] == [want(b"1")]


def test_a_cache_that_is_no_digest_is_not_believed(tmp_path, cache):
    file = write(tmp_path / "weights", b"1")
    sha256([file])
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), "<b>")))
    assert sha256([file]) == want(b"1")


def test_without_a_place_for_the_cache_all_is_hashed(tmp_path, cache):
    file = write(tmp_path / "weights", b"1")
    cache.parent.parent.write_text("a file where the folder would be")
    assert sha256([file]) == sha256([file]) == want(b"1")


def test_the_last_ones_are_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(digests, "KEPT", 2)
    for i in range(4):
        sha256([write(tmp_path / str(i), b"%d" % i)])
    assert [*json.loads(cache.read_text()).values()] == [want(b"2"), want(b"3")]


# --- what was loaded is what is recorded ------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["renamed over", "written to", "removed"])
@pytest.mark.parametrize("part", ["unet", "config"])
def test_a_file_that_changed_after_loading_is_not_recorded(tmp_path, narrow, change, part):
    """The settings never name weights or a configuration that did not make the clip."""
    folder = shutil.copytree(narrow, tmp_path / "model")
    model = ZS2.from_pretrained(folder, device="cpu")
    file = next((folder / "unet").glob("*.safetensors" if part == "unet" else "*.json"))
    content = file.read_bytes()
    if change == "renamed over":
        (tmp_path / "other").write_bytes(content)
        os.replace(tmp_path / "other", file)
    elif change == "written to":
        os.utime(file, (LONG_AGO, LONG_AGO))
    else:
        os.replace(file, tmp_path / "gone")
    if (part, change) == ("config", "removed"):
        with pytest.raises(InputError, match=r"no such file"):
            _ = model.checkpoint.digests
        return
    with pytest.warns(UserWarning, match=f"the settings say {part}: unknown"):
        digests = model.checkpoint.digests
    assert digests[part] == "unknown"
    assert all(len(digest) == 64 for name, digest in digests.items() if name != part)


@pytest.mark.parametrize("option", ["lora", "embeddings"])
def test_an_adapter_that_changes_while_it_is_loaded_is_refused(tmp_path, narrow, monkeypatch, option):
    """Its digest would be of what was not merged or added."""
    plain = ZS2.from_pretrained(narrow, device="cpu")
    file, layer = tmp_path / "adapter.safetensors", "down_blocks.0.attentions.0.proj_in"
    down, width = plain.unet.get_submodule(layer).weight.flatten(1), plain.text.width
    tensors = {f"unet.{layer}.lora_A.weight": down[:1].clone(), f"unet.{layer}.lora_B.weight": down[:, :1].clone()}
    save_file(tensors if option == "lora" else {"emb_params": torch.ones(1, width)}, file)

    name = "merge" if option == "lora" else "add"
    use = getattr(embeddings, name)
    monkeypatch.setattr(embeddings, name, lambda *args: (use(*args), os.utime(file, (LONG_AGO, LONG_AGO))))
    with pytest.raises(InputError, match=r"adapter.safetensors was changed after it was loaded"):
        ZS2.from_pretrained(narrow, device="cpu", **{option: file})


def test_a_file_that_stays_is_recorded(narrow):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digests = ZS2.from_pretrained(narrow, device="cpu").checkpoint.digests
    (file,) = (narrow / "unet").glob("*.safetensors")
    assert digests["unet"] == want(file.read_bytes())


def test_a_file_of_the_hub_has_the_content_that_its_name_says(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, content in ((want(b"1"), b"1"), (want(b"2"), b"damaged"), ("0" * 40, b"a small file")):
        (blobs / name).write_bytes(content)
    links = [tmp_path / name for name in "abc"]
    for link, blob in zip(links, (want(b"1"), want(b"2"), "0" * 40), strict=True):
        link.symlink_to(blobs / blob)
    assert sha256(links[::2]) == want(b"1", b"a small file")
    for files in (links[1:2], links):
        words = f"b is damaged: its SHA-256 is {want(b'damaged')}, the hub says {want(b'2')}"
        with pytest.raises(InputError, match=words):
            sha256(files)


def test_only_regular_files_are_hashed(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match="a FIFO: expected a file"):
        sha256([tmp_path / "x"])
