"""Run the tests in two processes at once, as `make test` does. Both collect all tests, and share them file by file.

    python tests/run.py [ARGUMENT ...]    any arguments of pytest, such as -m slow or tests/test_noise.py

A line tells of each file when it is finished, the failures follow, and the last line sums up: 2300 passed, 0 failed,
2 skipped in 130 s. The exit status is the larger of the two that pytest has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import dropwhile, groupby
from pathlib import Path
from urllib.parse import quote

import pytest

PROCESSES = 2  # three were no faster on two cores
OUTCOMES = ("passed", "failed", "skipped")


class Share:
    """The plugin of one process: it runs the files that it is the first to claim, in the given folder of claims."""

    def __init__(self, claims: Path, number: int) -> None:
        self.claims, self.number = claims, number
        self.total: Counter[str] = Counter()
        self.file: Counter[str] = Counter()  # of the present file
        self.name, self.start = "", 0.0
        self.terminal = os.fdopen(os.dup(2), "w")  # pytest captures the original

    def claim(self, name: str) -> bool:
        """Whether no other process has begun this file; none will from now on."""
        try:
            (self.claims / quote(name, safe="")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def mine(self, items: list[pytest.Item]) -> Iterator[pytest.Item]:
        """The tests of the files that this process claims, each when it comes to it. In the order of their names the
        last files are short, so that no process waits long for the other."""
        for name, tests in [(name, [*group]) for name, group in groupby(items, lambda item: item.location[0])]:
            if self.claim(name):
                yield from tests

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """As pytest's own loop, but for the order. A test's successor decides which fixtures end with it."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        if session.config.option.collectonly:
            return True
        tests = self.mine(session.items)
        test = next(tests, None)
        while test is not None:
            if test.location[0] != self.name:
                self.report()
                self.name, self.start = test.location[0], time.monotonic()
                (self.claims.parent / f"{self.number}.now").write_text(self.name)
            following = next(tests, None)
            test.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            test = following
        self.report()
        return True

    def report(self) -> None:
        """A line of the file that is finished."""
        if self.name:
            print(f"{self.name:<44}{counts(self.file):<24}{time.monotonic() - self.start:4.0f} s", file=self.terminal)
            self.terminal.flush()
        self.total += self.file
        self.file.clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.file[report.outcome] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if self.number == 0 and not report.passed:  # both collect
            self.total[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        self.total += self.file  # where it was interrupted
        (self.claims.parent / f"{self.number}.json").write_text(json.dumps(self.total))


def counts(of: Counter[str], least: tuple[str, ...] = ()) -> str:
    """How many passed, failed and were skipped; zeros only where asked for."""
    return ", ".join(f"{of[name]} {name}" for name in OUTCOMES if of[name] or name in least)


def main(arguments: list[str]) -> int:
    """Start the processes, wait for them, and say how they ended. Returns the exit status."""
    start, status, total = time.monotonic(), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        (claims := Path(folder, "claims")).mkdir()
        processes = []
        for number in range(PROCESSES):
            with open(Path(folder, f"{number}.log"), "w") as log:
                words = [sys.executable, __file__, "--share", str(claims), str(number), *arguments]
                processes.append(subprocess.Popen(words, stdout=log, stderr=sys.stdout))
        for number, ended in enumerate([wait(process) for process in processes]):
            files = {ending: Path(folder, f"{number}.{ending}") for ending in ("json", "log", "now")}
            lines = files["log"].read_text(errors="replace").splitlines()
            print("", *dropwhile(lambda line: not line.startswith("="), lines), sep="\n", end="")
            if files["json"].exists():
                total += Counter(json.loads(files["json"].read_text()))
            else:
                name = files["now"].read_text() if files["now"].exists() else "its first file"
                print(f"\na process ended in {name}, with status {ended}: the tests that it had claimed were not run")
                total["failed"] += 1
                ended = abs(ended) or 1
            status = max(status, ended)
    print(f"\n{counts(total, OUTCOMES)} in {time.monotonic() - start:.0f} s")
    return status


def wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. Ctrl-C reaches it as well, and it ends by that."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def share(claims: str, number: str, arguments: list[str]) -> int:
    """One of the processes. Returns the exit status of pytest."""
    options = ["-p", "no:cacheprovider", "-o", "console_output_style=classic"]
    return int(pytest.main([*options, *arguments], plugins=[Share(Path(claims), int(number))]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--share"]:
        sys.exit(share(sys.argv[2], sys.argv[3], sys.argv[4:]))
    sys.exit(main(sys.argv[1:]))
