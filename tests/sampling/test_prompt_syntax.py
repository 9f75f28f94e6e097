"""Prompts with weights: how they are read, and the contexts that they make.

The contexts are those of diffusers' community pipeline lpw_stable_diffusion, from the fixture `weighted_prompts`, and
some computed here by hand.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path

import pytest
import torch
from fixtures.prompts import READ, WEIGHTED
from helpers import CHECKPOINT, MODULE, TESTS, Fixture, assert_close, write_tiny
from hypothesis import given
from hypothesis import strategies as st

from zs2 import ZS2, Request
from zs2.errors import InputError
from zs2.models.prompt_encoder import PromptEncoder, _chunks
from zs2.models.tokenizer import Tokenizer
from zs2.sampling.prompt_syntax import has_syntax, parse, words

REFUSED = [
    ("a cat <lora:detail:0.8>", "a network in the prompt, '<lora:detail:0.8>'.*--lora FILE:SCALE"),
    ("<lyco:x:1>", "a network"),
    ("<hypernet:x>", "a network"),
    ("cat < LoRA :My File v2.safetensors:0.8:1>", "a network"),
    ("cat <lora:never closed", "a network"),
    ("[a:b:0.5]", "changes while sampling"),
    ("[a::10]", "changes while sampling"),
    ("[a:b:-1]", "changes while sampling"),
    ("[a:0.5] b", "changes while sampling"),
    ("[a:[b]:0.5]", "changes while sampling"),
    ("[[[a] c]:8]", "changes while sampling"),
    ("[cat|dog] in a field", "alternating words"),
    ("[a|[b]]", "alternating words"),
    ("a cat AND a dog", "composed, 'AND'"),
    ("{red|blue} car", "a wildcard, '{red|blue}'"),
    ("a __colour__ car", "a wildcard, '__colour__'"),
    ("a __dir/name__ car", "a wildcard"),
    ("(a:1.2.3)", "the weight '1.2.3': expected a number from -100 to 100"),
    ("(a:1e9)(b:101)", "the weight '101'"),
    ("(((((a:90)))))", "multiply to more than 100"),
    ("(a:...)", "the weight"),
]


@pytest.mark.parametrize(("prompt", "expected"), READ)
def test_a_prompt_is_read_as_a1111_does(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    got = parse(prompt)
    assert [[text for text, _ in section] for section in got] == [[text for text, _ in one] for one in expected]
    for section, wanted in zip(got, expected, strict=True):
        assert [weight for _, weight in section] == pytest.approx([weight for _, weight in wanted])


@pytest.mark.parametrize(("prompt", "sections"), READ)
def test_a_prompt_has_the_tokens_of_transformers(prompt: str, sections: list[list[tuple[str, float]]]) -> None:
    """Each text is tokenized alone, with its weight; a section fills chunks of as many tokens as the tower reads."""
    tokenizer = Tokenizer.from_folder(CHECKPOINT / "tokenizer")
    known = json.loads((TESTS / "fixtures" / "prompt_tokens.json").read_text())
    room, expected = tokenizer.max_length - 2, []
    for section in sections:
        tokens = [(one, weight) for text, weight in section for one in known[text]]
        expected += [tokens[start : start + room] for start in range(0, max(len(tokens), 1), room)]
    expected = expected[:-1] if len(expected) > 1 and not expected[-1] else expected
    got = _chunks(parse(prompt), tokenizer)
    assert len(got) == len(expected)
    for (ids, weights), tokens in zip(got, expected, strict=True):
        padding = tokenizer.max_length - 2 - len(tokens)
        assert ids == [tokenizer.bos_id, *(one for one, _ in tokens), tokenizer.eos_id, *[tokenizer.pad_id] * padding]
        assert weights == pytest.approx([1, *(weight for _, weight in tokens), 1, *[1] * padding])


@pytest.mark.parametrize(("prompt", "message"), REFUSED)
def test_what_has_no_meaning_here_is_refused_by_name(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(prompt, prompt_syntax="a1111")
    with pytest.raises(InputError, match=message):
        Request("x", negative_prompt=prompt, prompt_syntax="a1111")


@pytest.mark.parametrize("prompt", [prompt for prompt, _ in READ])
def test_plain_prompts_with_syntax_warn_and_others_do_not(prompt: str) -> None:
    """A warning stands exactly where the syntax would read something else than the text."""
    reads_otherwise = parse(prompt) not in (((((prompt), 1.0),),), ((),))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Request(prompt)
    assert bool(caught) == has_syntax(prompt)
    assert has_syntax(prompt) or not reads_otherwise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Request(prompt, prompt_syntax="plain")
        Request(prompt, prompt_syntax="a1111")


@pytest.mark.parametrize("prompt", ["a cat <lora:detail:0.8>", "<LYCO:x>", "<hypernet:a b:1> cat"])
def test_a_network_in_a_prompt_is_an_error_unless_prompts_are_plain(prompt: str) -> None:
    """It would not be used, whatever the syntax."""
    for more in ({"prompt": prompt}, {"prompt": "x", "negative_prompt": prompt}, {"prompt": ["x", prompt]}):
        with pytest.raises(InputError, match=r"give --lora FILE:SCALE, or prompt_syntax plain to keep it as text$"):
            Request(**more)
        with pytest.raises(InputError, match=r"give --lora FILE:SCALE$"):
            Request(**more, prompt_syntax="a1111")
        assert Request(**more, prompt_syntax="plain").prompt == more["prompt"]


def test_the_warning_names_what_is_taken_as_text() -> None:
    for prompt, sign in (
        (r"ganyu \(game\)", r"'\\\\'"),
        ("a [cat]", r"'\['"),
        ("a AND b", "'AND'"),
        ("a BREAK", "'BREAK'"),
    ):
        with pytest.warns(UserWarning, match=f"is read as plain text, its {sign} too: give prompt_syntax a1111"):
            Request(prompt)


def test_many_texts_give_one_warning(recwarn: pytest.WarningsRecorder) -> None:
    Request(["(a)", "b", "[c]", "(a)"], negative_prompt="(d)")
    (warning,) = [str(one.message) for one in recwarn]
    assert warning.startswith("the prompt '(a)' (and 2 other prompts) is read as plain text, its '(' too: give ")


@given(st.text(alphabet="()[]:\\ab BREAK1.|{}_ \n", max_size=60))
def test_any_text_is_read_or_refused(prompt: str) -> None:
    try:
        sections = parse(prompt)
    except InputError:
        assert has_syntax(prompt)
        return
    assert has_syntax(prompt) or sections in ((((prompt, 1.0),),), ((),))
    assert all(text and abs(weight) <= 100 for section in sections for text, weight in section)
    assert isinstance(words(prompt), str)


@pytest.mark.parametrize(
    "piece", ["(", "[", ":", "\\", "_", "__a", "-__a", " ", "{|", "[:", "[|", "<lora:", "1.", "AND"]
)
def test_a_long_run_of_anything_is_read_at_once(piece: str) -> None:
    """Quadratic time would be hours."""
    text = piece * (200_000 // len(piece))
    has_syntax(text)
    with contextlib.suppress(InputError):
        parse(text)


# --- contexts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd", "xl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ZS2:
    folder = write_tiny(tmp_path_factory.mktemp("model") / "m", request.param)
    return ZS2.from_pretrained(folder, device="cpu")


def context(text: PromptEncoder, prompt: str, **more: int) -> torch.Tensor:
    return text([parse(prompt)], **more).context[0]


@pytest.mark.parametrize("number", range(len(WEIGHTED)))
def test_contexts_are_those_of_the_community_pipeline(model: ZS2, number: int) -> None:
    if len(model.text.towers) > 1:
        pytest.skip("that pipeline is of SD 1 and 2")
    f, (prompt, negative) = Fixture("weighted_prompts"), WEIGHTED[number]
    chunks = max(model.text.chunks(parse(text)) for text in (prompt, negative))
    got = model.text([parse(prompt)], [parse(negative)], chunks=chunks).context
    assert_close(got[0], f[f"{number}/negative"], MODULE)
    assert_close(got[1], f[f"{number}/context"], MODULE)


def test_a_weight_scales_its_token_and_the_mean_is_restored(model: ZS2) -> None:
    """By hand, for each tower: the third token, after the start token and `a`, has the weight."""
    plain, got = context(model.text, "a cat sat"), context(model.text, "a (cat:1.5) sat")
    start = 0
    for encoder in model.text.encoders:
        part = slice(start, start + encoder.config.hidden_size)
        expected = plain[:, part].double()  # means near 0 have few digits in float32
        mean = expected.mean()
        expected[2] *= 1.5
        expected *= mean / expected.mean()
        assert_close(got[:, part], expected, MODULE)
        start = part.stop


def test_weight_one_changes_no_bit(model: ZS2) -> None:
    texts = [("a cat sat", "a (cat:1.0) (sat:1)"), ("", "()"), ("superman", "su(per:1.0)man")]
    for plain, weighted in texts:
        assert torch.equal(model.text([plain]).context[0], context(model.text, weighted))
    made = [model.latents("a cat", steps=1, frames=2, prompt_syntax=syntax) for syntax in (None, "a1111")]
    assert torch.equal(*made)


def test_long_prompts_are_chunks_one_after_the_other(model: ZS2) -> None:
    room = model.tokenizer.max_length - 2
    long = " ".join(["cat"] * (room + 3))
    first, second = " ".join(["cat"] * room), "cat cat cat"
    got = context(model.text, long)
    assert torch.equal(got, torch.cat([model.text([first]).context[0], model.text([second]).context[0]]))
    assert torch.equal(got, context(model.text, f"{first} BREAK {second}"))
    padded = model.text([parse("cat")], [parse(long)], chunks=2).context
    assert torch.equal(padded[1], torch.cat([model.text([text]).context[0] for text in ("cat", "")]))
    pooled = model.text([parse(long)]).pooled
    assert pooled is None or torch.equal(pooled, model.text([first]).pooled)


def test_every_frame_and_branch_has_the_longest_length(model: ZS2) -> None:
    """So the clip does not depend on its chunks."""
    long = " ".join(["cat"] * (model.tokenizer.max_length + 3))
    prompts = ["cat", long, "dog"]
    clips = [
        model.latents(prompts, frames=3, steps=1, seed=3, chunk=chunk, prompt_syntax="a1111") for chunk in (1, 2, 3)
    ]
    for other in clips[1:]:
        assert_close(other, clips[0], MODULE)
    memory = [model.plan(Request(text, frames=3, prompt_syntax="a1111")).memory.text for text in ("cat", long)]
    assert memory[1] == 2 * memory[0]


def test_weights_that_cancel_are_refused(model: ZS2) -> None:
    with pytest.raises(InputError, match="cancel each other"):
        model.text([((("cat", float("inf")),),)])


def test_an_inversion_is_not_divided(model: ZS2, tmp_path: Path) -> None:
    """Its vectors go to the next chunk together."""
    text = PromptEncoder(model.text.towers)
    room = model.tokenizer.max_length - 2
    tokenizer = model.tokenizer
    if "<toy>" not in tokenizer.added:
        text.add("<toy>", [torch.zeros(3, encoder.config.hidden_size) for encoder in text.encoders])
    assert len(tokenizer.groups("a <toy> b")) == 3
    assert [len(group) for group in tokenizer.groups("a <toy> b")] == [1, 3, 1]
    before = " ".join(["cat"] * (room - 2))
    assert torch.equal(context(text, f"{before} <toy>"), context(text, f"{before} BREAK <toy>"))
