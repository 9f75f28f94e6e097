"""Files of prompts: what a line means, in which encodings, and what is answered."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers import CHECKPOINT

from zs2 import ZS2, Request
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.prompt_files import PromptLine, read_prompt_file
from zs2.cli.sample_requests import clip_requests
from zs2.errors import InputError
from zs2.sample import plan_all, print_plans
from zs2.study.prompts import Prompt, read_prompts


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "p.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


LINES = '# mine\n\nred apple\n  blue star  \n[open]\nfox\n""\n[ closed ]\n#no\nwell--known a -- b\n'
TEXTS = [
    ("red apple", "closed"),
    ("blue star", "closed"),
    ("fox", "open"),
    ("", "open"),
    ("well--known a -- b", "closed"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_command_reads_the_same_lines(tmp_path: Path, encoding: str, end: str) -> None:
    file = written(tmp_path, LINES.replace("\n", end).encode(encoding))
    assert [(line.text, line.set) for line in read_prompt_file(file)] == TEXTS
    assert read_prompts(file) == tuple(Prompt(*pair) for pair in TEXTS)
    made = [request.prompt for _, request in clip_requests({"prompts": file, "frames": 5}, OwnSettings())]
    assert made == [text for text, _ in TEXTS]
    [(_, request)] = clip_requests({"travel": file, "frames": 5}, OwnSettings())
    assert request.prompt == [text for text, _ in TEXTS]


def test_nothing_else_ends_a_line(tmp_path: Path) -> None:
    odd = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
    assert [line.text for line in read_prompt_file(written(tmp_path, odd + "\n熊猫 🐼"))] == [odd, "熊猫 🐼"]


def test_options_at_the_end_of_a_line_are_of_that_clip(tmp_path: Path) -> None:
    content = """red apple --seed 5 --negative 'dark blue' --guidance 3
        blue star
        fox --size 48x32 --steps 4 --guidance-interval 0,0.5 --no-zero-snr --sampler dpm++
        "" --frames 2
    """
    options = {"prompts": written(tmp_path, content), "steps": 9, "seed": [1, 2]}
    made = list(clip_requests(options, OwnSettings()))
    assert [name for name, _ in made] == ["-p1-s5", "-p2-s1", "-p2-s2", "-p3-s1", "-p3-s2", "-p4-s1", "-p4-s2"]
    apple, star, _, fox, _, empty, _ = [request for _, request in made]
    assert (apple.prompt, apple.seed, apple.negative_prompt, apple.guidance) == ("red apple", 5, "dark blue", 3.0)
    assert (star.prompt, star.steps, star.guidance) == ("blue star", 9, 7.5)
    assert (fox.width, fox.height, fox.steps, fox.guidance_interval) == (48, 32, 4, (0.0, 0.5))
    assert (fox.zero_snr, fox.sampler) == (False, "dpm++")
    assert (empty.prompt, empty.frames) == ("", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb --ar 16:9", r"p.txt, line 2: '--ar' is no option of a clip: expected one of --negative-prompt"),
        ("a --model x", r"line 1: '--model' is no option of a clip"),
        ("a --samplr x", r"line 1: '--samplr' is no option of a clip; did you mean '--sampler'"),
        ('a --seed ""', r"line 1: argument --seed: '' is not one seed: expected a number"),
        ("a\nb --source ''", r"line 2: argument --source: '' is empty: expected CLIP"),
        ('a --size ""', r"line 1: argument --size: '' is no size: expected WIDTH"),
        ('a --out ""', r"line 1: '--out' is no option of a clip"),
        ("a\nb --sampler euler", r"p.txt, line 2: unknown sampler 'euler'"),
        ("a\nb\nc --guidance nan", r"p.txt, line 3: guidance is nan"),
        ("a\nb <lora:x:1>", r"p.txt, line 2: the prompt has a network"),
        ("a\nb [c|d] --prompt-syntax a1111", r"p.txt, line 2: the prompt has alternating words"),
        ("a —seed 5", r"line 1: '—seed' does not begin with two hyphens: write --seed"),
        ("a\nb –steps 5", r"line 2: '–steps' does not begin with two hyphens"),
        ("a -seed 5", r"line 1: '-seed' does not begin"),
        ("a ——negative-prompt b", r"line 1: '——negative-prompt' does not begin"),
        ("a --seed 5 6", r"line 1: '6' is no option"),
        ("a --seed", r"line 1: argument --seed: expected one argument"),
        ("a --seed random", r"line 1: argument --seed: 'random' is not one seed.*on the command line"),
        ("a --seed=-1", r"line 1: argument --seed: '-1' is not one seed"),
        ("a --seed 1..3", r"line 1: argument --seed: '1..3' is not one seed"),
        ("a --steps many", r"line 1: argument --steps: 'many': expected a whole number"),
        ("a --negative 'open", r"line 1: .* can't be read \(No closing quotation\)"),
        ("--seed 5", r"line 1: '--seed 5' has no prompt: write \"\" for the empty one"),
        ("[opne]\na", r"unknown set of prompts in .*p.txt, line 1.*did you mean 'open'"),
        ("a\n\n# b\n", None),
        ("# a\n\n", r"no prompt in it"),
        (b"", r"no prompt in it"),
        (
            "a\nSão Paulo".encode("latin-1"),
            r"p.txt, line 2: the bytes e3 6f .* are no UTF-8 .*: save the file as",
        ),
        ("a".encode("utf-16") + b"\x00", r"are no UTF-16 .*: save the file as UTF-8"),
        ("a b".encode("utf-16-le"), r"it holds NUL bytes, as UTF-16 without a byte order mark does: save"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str | None) -> None:
    options = {"prompts": written(tmp_path, content)}
    if message is None:
        list(clip_requests(options, OwnSettings()))
        return
    with pytest.raises(InputError, match=message):
        list(clip_requests(options, OwnSettings()))


def test_an_empty_text_is_a_value(tmp_path: Path) -> None:
    options = {"prompts": written(tmp_path, 'a --negative-prompt ""\nb'), "negative_prompt": "dark"}
    assert [request.negative_prompt for _, request in clip_requests(options, OwnSettings())] == ["", "dark"]


def test_what_is_wrong_for_all_clips_has_no_line(tmp_path: Path) -> None:
    options = {"prompts": written(tmp_path, "a\nb --steps 5"), "sampler": "euler"}
    with pytest.raises(InputError, match=r"^unknown sampler 'euler'"):
        list(clip_requests(options, OwnSettings()))


def test_dashes_and_quotes_of_a_prompt(tmp_path: Path) -> None:
    """A dash is text where no option's name follows it. Quotes are text, which a warning says once a file."""
    dashes = "a cat — seed of joy - well-known –x −y -- z"
    assert [line.text for line in read_prompt_file(written(tmp_path, dashes))] == [dashes]
    quoted = ['"a cat"', "“a dog”", 'a "stop" sign', '"a" and b', "it's 'x'", '"fox" --seed 5']
    with pytest.warns(UserWarning, match=r"p.txt, line 1 \(and 2 other lines\): the quotes are part of the prompt"):
        lines = read_prompt_file(written(tmp_path, "\n".join(quoted)))
    assert [line.text for line in lines] == [*quoted[:5], '"fox"']


def test_prompts_that_differ_in_nothing_else_share_a_plan() -> None:
    """The plans are those made one by one; 20,000 are made in seconds, not in minutes."""
    model = ZS2.from_pretrained(CHECKPOINT, device="cpu", noise="text2video-zero")
    memory = {"stream": False, "state_device": None}
    long = " ".join(["apple"] * 40)
    several = [
        Request("apple", seed=1),
        Request("star", seed=2),
        Request(["a", "b"], frames=3),
        Request(["a", "c"], frames=3),
        Request("apple", prompt_syntax="a1111"),
        Request(long, prompt_syntax="a1111"),
        Request("apple", width=48, height=32),
        Request("apple", guidance=1.0),
    ]
    for variant in (model, model.variant(noise="dnm")):
        for plan, request in zip(plan_all(variant, several, None, memory), several, strict=True):
            alone = variant.plan(request)
            assert plan.request is request
            assert (plan.memory, plan.latent_shape, plan.chunk) == (alone.memory, alone.latent_shape, alone.chunk)
            assert getattr(plan.start, "seed", None) == getattr(alone.start, "seed", None)
    for wrong in ([48], {"w": 48}):  # as a damaged file may say
        with pytest.raises(InputError, match="width is "):
            plan_all(model, [Request("apple", width=wrong)], None, memory)  # type: ignore[arg-type]
    many = [Request(f"apple {i}", seed=i % 7) for i in range(20_000)]
    start = time.process_time()
    plans = plan_all(model.variant(noise="dnm"), many, None, memory)
    assert time.process_time() - start < 10  # 0.3 here; one by one it is a hundred times as long
    assert plans[77].request is many[77]
    print_plans(model.variant(noise="dnm"), many, None, memory, resumable=False)
    assert time.process_time() - start < 20


def test_options_where_they_can_not_stand(tmp_path: Path) -> None:
    file = written(tmp_path, "a\nb --seed 5")
    with pytest.raises(InputError, match=r"line 2: '--seed 5' can't stand here: in a study"):
        read_prompts(file)
    with pytest.raises(InputError, match=r"line 2: '--seed 5' can't stand here: all frames"):
        list(clip_requests({"travel": file}, OwnSettings()))
    assert PromptLine("a", "", "open", "x").without_options("why") == "a"


def test_fifty_prompts_alike_give_one_warning_of_each_kind(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Those that are read as plain text, and those that name nothing that the checkpoint knows."""
    own, ways = OwnSettings(name="c", things=("rose",)), ["(rose:1.{0})", "rose {0}", "(tree:1.{0})", "tree {0}"]
    file = written(tmp_path, "\n".join(way.format(number) for number in range(50) for way in ways))
    assert len(clip_requests({"prompts": file, "seed": [0, 1]}, own)) == 400
    syntax, unknown = [str(one.message) for one in recwarn]
    assert syntax.startswith("the prompt '(rose:1.0)' (and 99 other prompts) is read as plain text")
    assert unknown.startswith("the prompt '(tree:1.0)' (and 99 other prompts) names none of the 1 thing that c knows")
