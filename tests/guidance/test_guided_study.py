"""A study of guided clips: its TOML names the input, a run that goes on needs the same one, and the report shows it."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import REDUCTION

from weights.recipe import layout
from zs2 import Clip
from zs2.ablate import main as ablate
from zs2.models.controlnet import ControlNet, ControlNetConfig
from zs2.report import main as report
from zs2.reporting.tables import RANKS
from zs2.sampling.request import FIRST_FRAME_GUIDANCE
from zs2.study.options import parser, with_file
from zs2.study.planning import plan

SOURCE = np.stack([np.full((20, 30, 3), 40 * i, np.uint8) for i in range(4)])
OWN, SHARED, GIVEN = "", 'first-frame = "picture.png"\n', "guidance = 2.5\n"
TOML = """
model = "{model}"
device = "cpu"
noise = ["dnm", "iid"]
seeds = 0
frames = 2
steps = 2
size = "16x16"
prompts = ["rose"]
source = "clip.webp@1:"
strength = 0.6
"""


def page_data(file: Path) -> Any:
    """What a report's page knows of the clips."""
    found = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', file.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.filterwarnings("ignore:.*is resized to|.*names none")
def test_a_study_of_a_source(tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Clip(SOURCE, 8, {"fps": 8}).save("clip.webp")
    Clip(SOURCE[::-1], 8, {"fps": 8}).save("other.webp")
    Path("study.toml").write_text(TOML.format(model=narrow))
    assert ablate(["study.toml", "--out", "s"]) == 0
    stored = json.loads(Path("s/study.json").read_text())
    record = json.loads(next(Path("s/clips").glob("dnm*.json")).read_text())
    assert stored["source"] == record["source"]
    assert stored["source"]["range"] == [1, None]
    assert stored["strength"] == record["strength"] == 0.6
    kept = Clip.open("s/inputs/source.webp").frames
    assert kept.shape == (2, 16, 16, 3)
    assert [int(frame.mean()) for frame in kept] == [40, 80]
    capsys.readouterr()
    assert ablate(["--out", "s", "--model", str(narrow), "--seeds", "1"]) == 2
    assert "the study in s has an input: give the same with --source" in capsys.readouterr().err
    assert ablate(["study.toml", "--out", "s", "--source", "other.webp"]) == 2
    assert "the study's clips have another source (its file or range differs)" in capsys.readouterr().err
    assert ablate(["study.toml", "--out", "s", "--seeds", "1"]) == 0
    assert report(["s"]) == 0
    assert f"Source: SHA-256 {stored['source']['sha256'][:12]}, frames from 1" in Path("s/report.md").read_text()
    data = page_data(Path("s/report.html"))
    assert data["inputs"] == [{"id": "source", "label": "input: source"}]
    assert {"source 0 0", "source 0 1"} < data["clips"].keys()


@pytest.mark.filterwarnings("ignore:.*is resized to|.*names none")
def test_cells_that_a_source_rules_out(
    tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A preset leaves them out and says so; a grid is refused before any clip is made."""
    monkeypatch.chdir(tmp_path)
    Clip(SOURCE, 8, {"fps": 8}).save("clip.webp")
    Path("study.toml").write_text(TOML.format(model=narrow).replace('noise = ["dnm", "iid"]', 'preset = "reproduce"'))
    assert ablate(["study.toml", "--out", "s"]) == 0
    assert "Text2Video-Zero is left out: source with text2video-zero noise" in capsys.readouterr().err
    assert report(["s"]) == 0
    rows = {line.split(" | ")[0]: line for line in Path("s/report.md").read_text().splitlines()}
    assert "| yes | without DNM: i.i.d. noise + TMA: " in rows["| clips edited by an instruction, or from another clip"]
    assert "| no | left out of this study, whose model or inputs rule it out |" in rows["| Text2Video-Zero"]
    Path("study.toml").write_text(TOML.format(model=narrow).replace('"dnm", "iid"', '"dnm", "text2video-zero"'))
    assert ablate(["study.toml", "--out", "t"]) == 2
    assert "source with text2video-zero noise, which makes frames from frame 0" in capsys.readouterr().err
    assert not Path("t/clips").exists()


@pytest.mark.filterwarnings("ignore:.*is resized to|.*names none")
def test_a_dry_run_counts_no_cell_that_an_input_rules_out(
    tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As far as it is known from the model's configuration: a model that edits takes a source with any noise."""
    monkeypatch.chdir(tmp_path)
    Clip(SOURCE, 8, {"fps": 8}).save("clip.webp")
    text = TOML.replace('noise = ["dnm", "iid"]', 'preset = "paper"')
    Path("study.toml").write_text(text.format(model=narrow))
    assert ablate(["study.toml", "--out", "s", "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "Text2Video-Zero is left out: source with text2video-zero noise" in told.err
    assert "text2video-zero" not in told.out
    assert told.out.splitlines()[-1].split() == ["all", "0/11", "0/11"]
    for grid in ('noise = ["dnm", "text2video-zero"]', 'preset = "paper"\nnoise = "text2video-zero"\nattn = "sa"'):
        Path("grid.toml").write_text(text.replace('preset = "paper"', grid).format(model=narrow))
        assert ablate(["grid.toml", "--out", "s", "--dry-run"]) == 2
        assert "source with text2video-zero noise" in capsys.readouterr().err
    shutil.copytree(narrow, "edits")
    config = json.loads(Path("edits/unet/config.json").read_text())
    for times, count in ((2, 12), (1, 11)):
        Path("edits/unet/config.json").write_text(json.dumps(config | {"in_channels": times * config["out_channels"]}))
        Path("study.toml").write_text(text.format(model="edits"))
        assert ablate(["study.toml", "--out", "s", "--dry-run"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].split() == ["all", f"0/{count}", f"0/{count}"]
    Path("edits/unet/config.json").unlink()  # as of a single file
    assert ablate(["study.toml", "--out", "s", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "0/12", "0/12"]
    assert not Path("s").exists()


def test_a_prompt_may_have_inputs_of_its_own(
    tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Clip(SOURCE, 8, {"fps": 8}).save("clip.webp")
    Clip(SOURCE[:1], 8).save("picture.png")
    prompts = '{ text = "rose", source = "clip.webp@2:" }, "tulip", { text = "fox face", first-frame = "picture.png" }'
    text = re.sub("source = .*\nstrength.*", "", TOML.format(model=narrow).replace('"rose"', prompts))
    Path("study.toml").write_text(text)
    assert ablate(["study.toml", "--out", "s"]) == 2
    assert "some prompts have a first frame, 'rose' has none, and a study has one guidance" in capsys.readouterr().err
    text += "guidance = 3\n"
    Path("study.toml").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ablate(["study.toml", "--out", "s"]) == 0
        study = json.loads(Path("s/study.json").read_text())
        assert [sorted(one.get("inputs", {})) for one in study["prompts"]] == [["source"], [], ["first_frame"]]
        assert study["prompts"][0]["inputs"]["source"].endswith("@2:")
        for prompt, names in enumerate((["source"], [], ["first_frame"])):
            record = json.loads(next(Path("s/clips").glob(f"dnm*_p{prompt:02}_s0.webp.json")).read_text())
            assert [name for name in ("source", "first_frame") if record[name]] == names
        assert sorted(path.name for path in Path("s/inputs").iterdir()) == ["first_frame_p02.webp", "source_p00.webp"]
        assert report(["s"]) == 0
        data = page_data(Path("s/report.html"))
        assert [one["id"] for one in data["inputs"]] == ["source", "first_frame"]
        places = {name for name in data["clips"] if name.startswith(("source", "first_frame"))}
        assert places == {"source 0 0", "first_frame 2 0"}
        assert ablate(["study.toml", "--out", "s"]) == 0
        capsys.readouterr()
        assert ablate(["--out", "s", "--model", str(narrow)]) == 2
        assert "prompts with inputs of their own: give their file again" in capsys.readouterr().err
        Path("study.toml").write_text(text.replace("@2:", "@1:"))
        assert ablate(["study.toml", "--out", "s"]) == 2


def test_prompts_that_all_have_a_first_frame_have_its_guidance(
    tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one for all clips has."""
    monkeypatch.chdir(tmp_path)
    Clip(SOURCE[:1], 8).save("picture.png")
    (narrow / "zs2.json").write_text('{"guidance": 5}')
    own = '{ text = "rose", first-frame = "picture.png" }, { text = "fox face", first-frame = "picture.png" }'
    text = re.sub("source = .*\nstrength.*", "", TOML.format(model=narrow))
    for more, prompts in ((OWN, own), (SHARED, '"rose", "fox face"'), (GIVEN, own)):
        Path("study.toml").write_text(text.replace('"rose"', prompts) + more)
        options = with_file(vars(parser().parse_args(["study.toml", "--out", "s"])))
        assert plan(options, None).sampling["guidance"] == (2.5 if more == GIVEN else FIRST_FRAME_GUIDANCE)


def test_a_prompts_own_control_needs_a_controlnet(
    tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Clip(SOURCE, 8, {"fps": 8}).save("path.webp")
    text = re.sub("source = .*\nstrength.*", "", TOML.format(model=narrow))
    Path("study.toml").write_text(text.replace('"rose"', '{ text = "rose", control = "path.webp" }'))
    assert ablate(["study.toml", "--out", "s"]) == 2
    assert "a prompt has a control, and the study has no ControlNet: give control" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*names none")
def test_the_authors_sweeps_under_a_control(tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clips are guided, too: the presets, a ControlNet and a moving clip of hints; the report has the ranks."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = layout.controlnet(
        json.loads((narrow / "unet" / "config.json").read_text()), (4,) * (REDUCTION.bit_length())
    )
    layout.write_part(tmp_path, "edges", config, ControlNet(ControlNetConfig.from_json(config)), layout.STEM)
    Clip(SOURCE[:2, :16, :16], 8, {"fps": 8}).save("path.webp")
    line = "--preset lambda mu --control edges path.webp --frames 2 --steps 1 --size 16x16 --seeds 0 --spacing trailing"
    Path("prompts.txt").write_text("rose\n")
    words = ["--model", str(narrow), "--device", "cpu", "--prompts", "prompts.txt", "--out", "s"]
    assert ablate([*line.split(), *words]) == 0
    study = json.loads(Path("s/study.json").read_text())
    assert len(study["controlnet"]) == len(study["control"]) == 1
    assert report(["s"]) == 0
    text = Path("s/report.md").read_text()
    assert text.count(RANKS) == 2
