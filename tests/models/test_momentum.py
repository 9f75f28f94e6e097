"""Temporal momentum: the recursion, its limits, its matrix, its chunks. (Against diffusers: test_parity.py.)"""

import itertools
import re

import pytest
import torch
from fixtures import tiny
from helpers import CHECKPOINT, LATENTS
from hypothesis import given
from hypothesis import strategies as st

from zs2.checkpoints.checkpoint import Checkpoint
from zs2.errors import InputError
from zs2.method import ATTENTION_KINDS
from zs2.models.attention import Attention
from zs2.models.config import UNetConfig
from zs2.models.temporal import momentum
from zs2.models.unet import UNet
from zs2.sampling.frame_parallel import split

FRAMES = st.integers(1, 9)
KINDS = st.sampled_from(tuple(ATTENTION_KINDS))
MU = st.floats(0, 1)


def hidden(frames, branches=2, seed=0, n=3, c=4):
    return torch.randn(branches * frames, n, c, generator=torch.Generator().manual_seed(seed))


def matrix(frames, mu, kind="tma"):
    """U of the paper: U[i, 0] = μⁱ, U[i, j] = (1−μ)·μ^(i−j); of the second listing: two taps."""
    u = torch.zeros(frames, frames, dtype=torch.float64)
    for i, j in itertools.product(range(frames), repeat=2):
        if kind == "tma":
            u[i, j] = mu**i if j == 0 else (1 - mu) * mu ** (i - j) if j <= i else 0
        else:
            u[i, j] += (1 - mu) * (i == j) + mu * (max(i - 1, 0) == j)
    return u


def seen(blended, frames):
    """What each frame sees of a result of `blend`: a list of (branches, m, c)."""
    if not isinstance(blended, torch.Tensor):
        return [keys for count, keys in blended for _ in range(count)]
    if len(blended) == 2 and frames > 1:  # shared by all frames of a branch
        return [blended] * frames
    return [*blended.unflatten(0, (2, frames)).unbind(1)]


def built(kind, mu):
    """A kind with μ for the ones that have it, and anchors near each other."""
    return momentum(kind, mu=mu, anchors=[0, 2, 3, 7])


def close(x, y, bound=1e-6):
    assert x.shape == y.shape
    assert (x.double() - y.double()).abs().max() <= bound * y.abs().max().clamp(min=1e-30)


@given(FRAMES, MU, st.sampled_from(["tma", "tma-two-tap"]), st.integers(0, 99))
def test_recursion_is_the_matrix(frames, mu, kind, seed):
    h = hidden(frames, seed=seed)
    blended, _ = momentum(kind, mu=mu).blend(h, frames)
    want = torch.einsum("ij, bjnc -> binc", matrix(frames, mu, kind), h.double().unflatten(0, (2, frames)))
    close(blended, want.flatten(0, 1))


def plain(h, frames, mu, state=None):
    """The recursion as the docstring of temporal.py has it, frame by frame: h̃ in h's dtype, and the last in float32."""
    blended = []
    for frame in h.unflatten(0, (-1, frames)).unbind(1):
        state = frame.float() if state is None else torch.lerp(frame.float(), state, mu)
        blended.append(state.to(h.dtype))
    return torch.stack(blended, dim=1).flatten(0, 1), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@given(FRAMES, st.integers(1, 3), MU, st.booleans(), st.sampled_from([(1, 1), (3, 4), (16, 40)]), st.integers(0, 99))
def test_blending_in_place_is_the_recursion_bit_for_bit(dtype, frames, branches, mu, later, size, seed):
    """And it changes neither its input nor the state that it starts from."""
    n, c = size
    h = hidden(frames, branches, seed, n, c).to(dtype)
    state = hidden(1, branches, seed + 1, n, c) if later else None
    kept = h.clone(), None if state is None else state.clone()
    blended, last = momentum("tma", mu=mu).blend(h, frames, state)
    want, want_last = plain(h, frames, mu, state)
    assert torch.equal(blended, want)
    assert torch.equal(last, want_last)
    assert torch.equal(h, kept[0])
    assert state is None or torch.equal(state, kept[1])
    start = torch.zeros(branches, n, c) if later else None  # what a process tells the others
    share = momentum("tma", mu=mu).share(h, frames, state, first=True)
    assert torch.equal(share, plain(h, frames, mu, start)[1])
    assert share.is_contiguous()


def test_blending_in_place_has_the_gradient_of_the_matrix():
    h = hidden(5).double().requires_grad_()
    weight = hidden(5, seed=1).double()
    (momentum("tma", mu=0.7).blend(h, 5)[0] * weight).sum().backward()
    want = torch.einsum("ij, binc -> bjnc", matrix(5, 0.7), weight.unflatten(0, (2, 5)))
    close(h.grad, want.flatten(0, 1))


@given(FRAMES, st.integers(0, 99))
def test_mu_0_is_self_attention_and_mu_1_is_cross_frame_attention(frames, seed):
    h = hidden(frames, seed=seed)
    assert torch.equal(momentum("tma", mu=0.0).blend(h, frames)[0], h)
    assert torch.equal(momentum("tma-two-tap", mu=0.0).blend(h, frames)[0], h)
    assert torch.equal(momentum("sa", mu=0.5).blend(h, frames)[0], h)
    first, _ = momentum("cfa", mu=0.5).blend(h, frames)
    assert torch.equal(first, h[::frames])
    assert torch.equal(momentum("tma", mu=1.0).blend(h, frames)[0], first.repeat_interleave(frames, dim=0))


@given(MU, st.integers(0, 99))
def test_two_tap_at_mu_1_sees_the_frame_before(mu, seed):
    h = hidden(5, branches=1, seed=seed)
    assert torch.equal(momentum("tma-two-tap", mu=1.0).blend(h, 5)[0], h[[0, 0, 1, 2, 3]])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), MU, KINDS, st.integers(0, 99))
def test_chunks_are_the_whole_bit_for_bit(chunks, mu, kind, seed):
    frames, blending = sum(chunks), built(kind, mu)
    h = hidden(frames, seed=seed)
    whole, last = blending.at(0, None).blend(h, frames)
    state, parts = None, []
    for chunk in h.unflatten(0, (2, frames)).split(chunks, dim=1):
        blended, state = blending.at(len(parts), None).blend(chunk.flatten(0, 1), chunk.shape[1], state)
        parts += seen(blended, chunk.shape[1])
    for part, expected in zip(parts, seen(whole, frames), strict=True):
        assert torch.equal(part, expected)
    assert (last is None and state is None) or torch.equal(state, last)


@given(st.integers(1, 12), st.integers(1, 5), FRAMES, MU, KINDS, st.integers(0, 99))
def test_processes_and_chunks_are_the_whole(frames, processes, chunk, mu, kind, seed):
    """The scan without the processes: each blends its frames of a chunk from the state that all have worked out."""
    kinds, h = built(kind, mu), hidden(frames, seed=seed)
    whole, last = kinds.at(0, None).blend(h, frames)
    state, parts = None, []
    for piece in h.unflatten(0, (2, frames)).split(chunk * processes, dim=1):
        counts = split(piece.shape[1], processes)
        mine = [part.flatten(0, 1) if part.shape[1] else piece[:, -1] for part in piece.split(counts, dim=1)]
        each = [(part, max(count, 1)) for part, count in zip(mine, counts, strict=True)]
        bound = [kinds.at(len(parts) + sum(counts[:rank]), None) for rank in range(processes)]
        shares = [
            one.share(*bound_to, state, first=rank == 0)
            for rank, (one, bound_to) in enumerate(zip(bound, each, strict=True))
        ]
        starts = [state] * (processes + 1) if shares[0] is None else bound[0].starts(shares, counts, state)
        for one, own, start, count in zip(bound, each, starts, counts, strict=False):
            parts += seen(one.blend(*own, start)[0], own[1])[:count]
        state = starts[-1]
    for part, expected in zip(parts, seen(whole, frames), strict=True):
        close(part, expected)
    if last is not None:
        close(state, last)


@given(FRAMES, st.integers(0, 99))
def test_which_frames_a_frame_sees(frames, seed):
    h = hidden(frames, seed=seed).unflatten(0, (2, frames))
    anchors = [0, 2, 3, 7]
    for kind, visible in (
        ("first-previous", lambda i: [0, max(i - 1, 0)]),
        ("extended", lambda i: [anchor for anchor in anchors if anchor <= i]),
    ):
        blended, _ = built(kind, 0.5).at(0, None).blend(h.flatten(0, 1), frames)
        for i, keys in enumerate(seen(blended, frames)):
            assert torch.equal(keys, torch.cat([h[:, j] for j in visible(i)], dim=1))


@given(MU, MU, MU, st.floats(0, 1))
def test_momentum_by_level_and_by_step(one, other, end, progress):
    """Each level has its own, and goes evenly to that of the last step."""
    for kind in ("tma", "tma-two-tap"):
        levels = momentum(kind, mu=[one, other], mu_end=[end, other])
        for level, mu, last in ((0, one, end), (1, other, other)):
            at = levels.at_level(level, 2).at(3, torch.tensor(progress))
            h = hidden(4)
            close(at.blend(h, 4)[0], momentum(kind, mu=mu + (last - mu) * progress).blend(h, 4)[0], 1e-5)
        constant = momentum(kind, mu=one)
        assert constant.at_level(1, 2).at(0, torch.tensor(progress)) == constant


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), MU, MU, st.floats(0, 1), st.integers(0, 99))
def test_chunks_of_a_momentum_of_one_step(chunks, mu, end, progress, seed):
    frames, at = sum(chunks), momentum("tma", mu=mu, mu_end=end).at(0, torch.tensor(progress))
    h = hidden(frames, seed=seed)
    state, parts = None, []
    for chunk in h.unflatten(0, (2, frames)).split(chunks, dim=1):
        blended, state = at.blend(chunk.flatten(0, 1), chunk.shape[1], state)
        parts.append(blended.unflatten(0, (2, -1)))
    close(torch.cat(parts, dim=1).flatten(0, 1), at.blend(h, frames)[0])
    shares = [
        at.share(part.flatten(0, 1), part.shape[1], None, first=i == 0)
        for i, part in enumerate(h.unflatten(0, (2, frames)).split(chunks, dim=1))
    ]
    close(at.starts(shares, chunks, None)[-1], state)


@given(st.integers(0, 40), st.integers(1, 9))
def test_frames_are_split_evenly_and_in_order(frames, processes):
    counts = split(frames, processes)
    assert (sum(counts), len(counts)) == (frames, processes)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


@pytest.mark.parametrize("kind", ["cfa", "tma", "tma-two-tap", "first-previous", "extended"])
def test_a_state_keeps_no_chunk_in_memory(kind):
    """A view of the last frame would keep all of its frames."""
    _, state = momentum(kind, mu=0.9).blend(hidden(8), 8)
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


@given(FRAMES, MU, st.integers(0, 99))
def test_blending_the_hidden_state_is_blending_keys_and_values(frames, mu, seed):
    """float64, so that the bound tests the algebra and not the rounding."""
    torch.manual_seed(seed)
    attention = Attention(8, 8, heads=2).double()
    h = hidden(frames, c=8, seed=seed).double()
    u = matrix(frames, mu)
    ours = attention.keys_values(torch.einsum("ij, bjnc -> binc", u, h.unflatten(0, (2, frames))).flatten(0, 1))
    for mine, projected in zip(ours, attention.keys_values(h), strict=True):
        theirs = torch.einsum("ij, bjnc -> binc", u, projected.unflatten(0, (2, frames))).flatten(0, 1)
        close(mine, theirs, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_recursion_is_float32_whatever_the_dtype(dtype):
    """Over 400 frames at μ = 0.98 the only error left is the rounding of each frame's result."""
    h = hidden(400, branches=1, n=16, c=16).to(dtype)
    blended, state = momentum("tma", mu=0.98).blend(h, 400)
    want = torch.einsum("ij, jnc -> inc", matrix(400, 0.98), h.double())
    assert blended.dtype == dtype
    assert state.dtype == torch.float32
    error = (blended.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("mu", [-0.1, 1.1, float("nan"), float("inf")])
def test_mu_out_of_range(mu):
    with pytest.raises(InputError, match=r"mu is .*from 0 .* to 1"):
        momentum("tma", mu=mu)


def test_a_momentum_for_each_level_needs_as_many(parts):
    levels = len(parts[0].unet("sa").config.block_out_channels)
    mus = (0.9, 0.5, 0.1, 0.3)[:levels]
    with pytest.raises(
        InputError, match=rf"mu is \({', '.join(map(str, mus))}, 0.2\): .* one for each of the UNet's {levels}"
    ):
        variant(parts, "tma", (*mus, 0.2))
    blocks = variant(parts, "tma", mus).transformer_blocks()
    assert {block.attn1.to_q.in_features: block.momentum.mu for block in blocks} == {
        size: mu
        for size, mu in zip(parts[0].unet("sa").config.block_out_channels, mus, strict=True)
        if size in {block.attn1.to_q.in_features for block in blocks}
    }


SD, XL = [True, True, True, False], [False, True, True]  # which levels of the released models have attention


@pytest.mark.parametrize(
    ("attention", "middle", "settings", "told"),
    [
        (SD, True, {"mu": (0.9, 0.5, 0.1, 0.0)}, []),  # that of the last level counts in the middle
        (SD, False, {"mu": (0.9, 0.5, 0.1, 0.0)}, ["level 4 of this UNet's 4, .* its value of mu has no effect"]),
        (XL, True, {"mu": (0.9, 0.5, 0.1)}, ["level 1 of this UNet's 3, .* its value of mu has no effect"]),
        (XL, True, {"mu": 0.9, "mu_end": (0.1, 0.2, 0.3)}, ["level 1 .* its value of mu_end has no effect"]),
        (XL, True, {"mu": (0.9, 0.5, 0.5), "mu_end": (0.1, 0.2, 0.3)}, ["level 1 .* its value of mu and mu_end has"]),
        (XL, True, {"mu": 0.9, "mu_end": 0.1}, []),
        (XL, True, {"mu": (0.9, 0.9, 0.9)}, []),  # as one number
    ],
    ids=str,
)
def test_a_level_without_attention_is_told(recwarn, attention, middle, settings, told):
    blocks = [f"{'CrossAttn' * one}DownBlock2D" for one in attention]
    json = tiny.UNET | {
        "block_out_channels": [8] * len(attention),
        "layers_per_block": 1,
        "down_block_types": blocks,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(blocks)],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
    }
    network = UNet(UNetConfig.from_json(json), momentum("tma", **settings))
    network.with_momentum(network.momentum)  # the same: told once
    assert len(recwarn) == len(told)
    for one, words in zip(recwarn, told, strict=True):
        assert re.match(words, str(one.message))


@pytest.mark.parametrize(
    ("anchors", "words"),
    [([], "0 first"), ([1, 2], "0 first"), ([0, 4, 4], "that rise"), ([0, 1.5], "anchors"), ("0,4", "0 first")],
)
def test_anchors_that_are_none(anchors, words):
    with pytest.raises(InputError, match=words):
        momentum("extended", anchors=anchors)


def test_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'tma-two-tap'"):
        momentum("tma-twotap", mu=0.5)


@pytest.fixture(scope="module")
def parts():
    checkpoint = Checkpoint(CHECKPOINT)
    generator = torch.Generator().manual_seed(5)
    frames = 4
    x = torch.randn(2, frames, *LATENTS, generator=generator)
    context = torch.randn(2, 32, 192, generator=generator)
    return checkpoint, x, context


def variant(parts, kind, mu=0.9) -> UNet:
    return parts[0].unet(kind, mu)


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
@torch.no_grad()
def test_unet_in_chunks_is_the_unet_of_the_whole(parts, kind):
    """Both guidance branches, chunks of 1 and 3 frames, real weights."""
    _, x, context = parts
    unet = variant(parts, kind)
    whole = unet(x.flatten(0, 1), 500, context, frames=4).prediction.unflatten(0, (2, 4))
    states, pieces = (), []
    for first, chunk in zip((0, 1), x.split([1, 3], dim=1), strict=True):
        out = unet(chunk.flatten(0, 1), 500, context, frames=chunk.shape[1], states=states, first=first)
        states = out.states
        pieces.append(out.prediction.unflatten(0, (2, -1)))
    close(torch.cat(pieces, dim=1), whole, 1e-5)


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
@torch.no_grad()
def test_frame_0_is_the_image_without_any_of_this(parts, kind):
    """first-previous in float64: its keys are there twice, which rounds otherwise, and these weights and inputs amplify
    the rounding of float32 ten thousand times."""
    dtype = torch.float64 if kind == "first-previous" else torch.float32
    x, context = (tensor.to(dtype) for tensor in parts[1:])
    whole, single = (variant(parts, name).to(dtype) for name in (kind, "sa"))
    clip = whole(x.flatten(0, 1), 500, context, frames=4).prediction.unflatten(0, (2, 4))
    close(clip[:, 0], single(x[:, 0], 500, context, frames=1).prediction, 1e-5)


@torch.no_grad()
def test_text_projected_once_is_the_text_and_one_text_a_frame_may_differ(parts):
    _, x, context = parts
    unet, flat = variant(parts, "tma"), x.flatten(0, 1)
    want = unet(flat, 500, context, frames=4).prediction
    close(unet(flat, 500, unet.text_keys_values(context), frames=4).prediction, want, 1e-6)
    per_frame = context.repeat_interleave(4, dim=0)
    close(unet(flat, 500, per_frame, frames=4).prediction, want, 1e-5)
    other = per_frame.clone()
    other[3] = other[7] = 0  # the last frame of both branches
    changed = unet(flat, 500, other, frames=4).prediction.unflatten(0, (2, 4))
    close(changed[:, :3], want.unflatten(0, (2, 4))[:, :3], 1e-5)
    assert (changed[:, 3] - want.unflatten(0, (2, 4))[:, 3]).abs().max() > 1e-2


def test_no_kind_adds_a_parameter(parts):
    names = [list(variant(parts, kind).state_dict()) for kind in ATTENTION_KINDS]
    assert all(other == names[0] for other in names)
    assert not [name for name, _ in variant(parts, "tma").named_buffers()]


@pytest.mark.parametrize(("rows", "frames"), [(8, 3), (8, 0)])
def test_latents_that_do_not_divide_into_frames(parts, rows, frames):
    _, _, context = parts
    with pytest.raises(InputError, match="do not divide into branches"):
        variant(parts, "tma")(torch.zeros(rows, *LATENTS), 1, context, frames=frames)


def test_texts_that_do_not_fit_the_latents(parts):
    with pytest.raises(InputError, match="3 texts for 8 latents of 4 frames"):
        variant(parts, "tma")(torch.zeros(8, *LATENTS), 1, torch.zeros(3, 32, 192), frames=4)
