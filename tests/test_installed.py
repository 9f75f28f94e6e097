"""The wheel: what it holds, and that each command works where it is installed and no clone is in reach."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import NAME, TESTS

from zs2.__main__ import COMMANDS
from zs2.checkpoints.hub import DEFAULT_MODEL
from zs2.checkpoints.locate import BUNDLED
from zs2.version import __version__

ROOT = TESTS.parent
Run = Callable[..., str]
BRIEF = ("--steps", "1", "--frames", "2", "--size", "16x16")  # the cheapest clip


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree. It is built from a copy, since a build leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "zs2", source / "zs2", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "weights").symlink_to(ROOT / "weights")
    words = [sys.executable, "-m", "pip", "wheel", "-q", ".", "--no-deps", "--no-build-isolation", "-w", "wheels"]
    built = subprocess.run(words, cwd=source, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    (file,) = (source / "wheels").iterdir()
    assert file.name == f"zs2-{__version__}-py3-none-any.whl"
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment with the wheel, beside the packages of this one.

    They are added by a path file, so that a clone that is installed for editing here is not in reach there.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=600)
    programs = next(folder / name for name in ("bin", "Scripts") if (folder / name).is_dir())
    python = str(programs / "python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True, timeout=600).stdout
    Path(packages.strip(), "packages.pth").write_text("\n".join(site.getsitepackages()))
    words = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Runs one of those programs in another folder, and returns its standard output."""

    def call(program: str, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [str(installed / program), *arguments]
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return call


def files(folder: Path) -> set[str]:
    """What git would keep of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_wheel_holds_the_package_and_its_checkpoints(wheel):
    """Every file of them, and nothing else: no test, no recipe, no model that was downloaded into weights/."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(f"zs2-{__version__}.dist-info/entry_points.txt").decode())
    checkpoints = {f"zs2/{model}/{name}" for model in BUNDLED for name in files(ROOT / model)}
    for part in ("/unet", "-edges", "-edit/unet"):
        assert f"zs2/{DEFAULT_MODEL}{part}/diffusion_pytorch_model.safetensors" in checkpoints
    assert names == {f"zs2/{name}" for name in files(ROOT / "zs2")} | checkpoints
    assert dict(entries["console_scripts"]) == {"zs2": "zs2.__main__:main"}


def test_help_and_version_of_the_installed_command(run):
    assert run("zs2", "--version") == f"zs2 {__version__}\n"
    assert run("zs2") == run("zs2", "--help")
    for name in COMMANDS:
        assert f"zs2 {name} " in run("zs2")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_by_the_name_that_it_was_called_by(run, name):
    assert run("zs2", name, "--help").startswith(f"usage: zs2 {name} [-h]")
    assert run("python", "-m", f"zs2.{name}", "--help").startswith(f"usage: python -m zs2.{name} [-h]")


def test_a_clip_where_it_is_installed(run, installed, tmp_path):
    """Of the checkpoint that the wheel carries."""
    where = Path(run("python", "-c", "import zs2; print(zs2.__file__)").strip())
    assert installed.parent in where.parents
    assert run("zs2", "sample", *BRIEF, "--out", "c.webp").split() == ["c.webp", "c.webp.sheet.png", "c.webp.json"]
    settings = json.loads((tmp_path / "c.webp.json").read_text())
    assert (settings["model"], settings["prompt"]) == (NAME, "rocket on a black background")


@pytest.mark.slow
def test_each_command_works_where_it_is_installed(run, tmp_path):
    """As `zs2 NAME` and as `python -m zs2.NAME`, which print and write the same."""
    (tmp_path / "prompts.txt").write_text("red apple\n")
    printed: dict[str, list[str]] = {}
    for way in ("zs2", "python"):
        for name, *arguments in (
            ("sample", *BRIEF, "--out", f"{way}/clip.webp"),
            ("metrics", f"{way}/clip.webp"),
            ("ablate", *BRIEF, "--noise", "dnm", "--prompts", "prompts.txt", "--seeds", "0", "--out", f"{way}/study"),
            ("report", f"{way}/study"),
            ("models",),
        ):
            call = ["zs2", name] if way == "zs2" else ["python", "-m", f"zs2.{name}"]
            printed.setdefault(way, []).append(run(*call, *arguments).replace(f"{way}/", ""))
    assert [text.replace("python -m zs2.", "zs2 ") for text in printed["python"]] == printed["zs2"]
    assert f"CLIP: {DEFAULT_MODEL}, which came with a model" in printed["zs2"][1]
    written, again = ({name: (tmp_path / way / name).read_bytes() for name in files(tmp_path / way)} for way in printed)
    assert written == again
    assert {"clip.webp", "study/report.html", "study/study.json"} < written.keys()
