"""The SHA-256 of weights is that of their content now, whether it is remembered or not."""

import hashlib
import json
import os
import time

import pytest

from zs2.checkpoints import digests
from zs2.checkpoints.digests import sha256

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
