"""The garbage collector stays off where it has nothing to find, and is on elsewhere."""

import gc
import subprocess
import sys

import pytest

import zs2
from zs2.system.collector import without_collector


@pytest.fixture
def collections():
    """The generations that are collected during a test."""
    found = []

    def note(phase, info):
        found.append(info["generation"])

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_nothing_is_collected_within_and_nothing_new_is_traversed_at_once(collections):
    gc.collect()
    collections.clear()
    frozen = gc.get_freeze_count()
    with without_collector():
        new = [[] for _ in range(10 * gc.get_threshold()[0])]
    assert collections == []
    assert gc.isenabled()
    assert gc.get_count()[0] < gc.get_threshold()[0]
    assert gc.get_freeze_count() == frozen == 0
    assert {id(one) for one in new}.isdisjoint(id(one) for one in gc.get_objects(generation=0))


def test_garbage_from_within_is_found_later():
    with without_collector():
        cycle = []
        cycle.append(cycle)
        name = id(cycle)
        del cycle
    assert name in {id(one) for one in gc.get_objects()}
    gc.collect()
    assert name not in {id(one) for one in gc.get_objects()}


def test_the_parts_of_zs2_are_imported_without_it(tmp_path, monkeypatch):
    (tmp_path / "part_of_a_test.py").write_text("import gc\non = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(zs2._HOME, "on", "part_of_a_test")
    assert zs2.on is False
    assert gc.isenabled()


def test_a_command_ends_without_a_last_collection():
    """What is frozen is not traversed. atexit calls the first one last."""
    code = """if True:
        import atexit, gc
        atexit.register(lambda: print(gc.get_freeze_count(), len(gc.get_objects())))
        from zs2.cli.model_list import main
        main([])
        print(gc.get_freeze_count())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, before, after = done.stdout.splitlines()
    assert before == "0"
    frozen, others = map(int, after.split())
    assert frozen > 1000 > others
