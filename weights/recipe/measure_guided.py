"""How good the models are that go with the checkpoint: whether a thing takes the place that an outline shows, and
whether an edit does what it says and leaves the rest.

The same figures of rendered scenes say how far the measures can be trusted, those without a model what chance does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weights.recipe import edits, looks
from weights.recipe.judge import Judge
from weights.recipe.measure import SHOWN, as_bytes, drawn, seen, share
from weights.recipe.scenes import COLOURS, LOOKS, Scenes, caption, draw, edges, mild, render, silhouettes
from weights.recipe.training import generator
from zs2 import ZS2
from zs2.study.stats import difference, mean
from zs2.system.json_files import read_json

PLACES = 2  # scenes of each thing, of which a ControlNet sees the outlines
METALS = (LOOKS.index("golden"), LOOKS.index("silver"))  # looks that the renderer draws in one way only
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


def is_controlnet(folder: Path) -> bool:
    """Whether a folder is a ControlNet."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("conditioning_channels") == 3


def is_editing(folder: Path) -> bool:
    """Whether a folder is an editing model."""
    file = folder / "unet" / "config.json"
    config = read_json(file) if file.is_file() else {}
    return config.get("in_channels", 4) == 2 * config.get("out_channels", 4)  # the layout's defaults


def of_edges(
    folder: str, base: str, judge: Judge, load: Callable[[int], Tensor], names: Sequence[str], seed: int
) -> tuple[dict[str, Any], Bytes]:
    """How well silhouettes follow outlines: their intersection over union, with the ControlNet and without.

    Each thing stands on the colour from which the renderer's own silhouette is seen best, for a silhouette is what
    differs from a plain background.

    Args: base: the model that it guides. load: pictures for a size.
    Returns: the figures with their intervals (bootstrap over prompts), and a sheet of outlines over pictures with the
        ControlNet over those without.
    """
    model = ZS2.from_pretrained(base, controlnet=folder, dtype="float32", attn="sa", noise="iid")
    size = side(model)
    pictures = load(size)[: len(names)]
    scenes, best = standing_out(pictures, len(names), size)
    wanted = silhouettes(scenes, pictures, size)[:, 0].numpy()
    hints = as_bytes(2 * edges(torch.from_numpy(wanted)[:, None]) - 1)
    things, colours = scenes.thing.tolist(), scenes.background.tolist()
    prompts = [caption(names, thing, colour, 0) for thing, colour in zip(things, colours, strict=True)]
    guided = drawn(model, prompts, f"pictures of {Path(folder).name}", seed, size, {"control": hints})
    free = drawn(model, prompts, "pictures without it", seed, size)
    found = {name: overlaps(shown, wanted) for name, shown in (("guided", guided), ("free", free))}
    keys = [(i, seed) for i in range(len(prompts))]
    guided_by, free_by = (dict(zip(keys, found[name], strict=True)) for name in ("guided", "free"))
    which = torch.tensor([judge.things.index(names[thing]) for thing in things])
    return {
        "prompts": len(prompts),
        "IoU, with the ControlNet": interval(mean(guided_by)),
        "IoU, without": interval(mean(free_by)),
        "IoU, gained": interval(difference(guided_by, free_by)),
        "IoU, rendered scenes": interval(mean(dict(zip(keys, best.tolist(), strict=True)))),
        "thing, with the ControlNet": share((seen(judge, guided)[0] == which).float()),
        "thing, without": share((seen(judge, free)[0] == which).float()),
    }, sheet(hints, guided, free)


def standing_out(pictures: Tensor, things: int, size: int) -> tuple[Scenes, Tensor]:
    """PLACES scenes of each thing, each on the colour from which it stands out most, and its `overlaps` there."""
    drawn_at = draw(PLACES * things, things, generator(0, "places of the ControlNet's scenes", 0))
    thing = torch.arange(things).repeat(PLACES)
    scores = []
    for colour in range(len(COLOURS)):
        scenes = Scenes(thing, torch.full_like(thing, colour), torch.zeros_like(thing), drawn_at.chance)
        shown = as_bytes(render(scenes, pictures, size))
        scores.append(torch.tensor(overlaps(shown, silhouettes(scenes, pictures, size)[:, 0].numpy())))
    best, background = torch.stack(scores).max(0)
    return Scenes(thing, background, torch.zeros_like(thing), drawn_at.chance), best


def overlaps(shown: Bytes, wanted: Bools) -> list[float]:
    """The intersection over union of silhouettes: of what differs from the background in pictures (b, h, w, 3), and of
    what was asked for (b, h, w)."""
    found = np.stack([looks.stands_out(looks.cielab(frame))[1] for frame in shown])
    return [float((a & b).sum() / max(1, (a | b).sum())) for a, b in zip(found, wanted, strict=True)]


def of_edit(
    folder: str, judge: Judge, load: Callable[[int], Tensor], names: Sequence[str], seed: int
) -> tuple[dict[str, Any], Bytes]:
    """Whether edits do what they say, and leave the rest: an edit of the look, of the background and of the thing for
    each thing.

    An edit of the look is done where the thing is nearest to the renderer's in that look; its rest is thing and
    background. The rest of an edit of the background is the thing, that of an edit of the thing the background. The
    judge sees all but looks. Sampling is as the model's own settings say.

    Returns: the figures, also of the renderer's own edits and of sources that were not edited, and a sheet of sources
        over edited pictures.
    """
    model = ZS2.from_pretrained(folder, dtype="float32", attn="sa", noise="iid")
    size = side(model)
    pictures = load(size)[: len(names)]
    before, after, kind = asked_edits(len(names))
    sources, ideal = (as_bytes(render(scenes, pictures, size)) for scenes in (before, after))
    texts = edits.instructions(names, after, kind)
    made = drawn(model, texts, f"pictures of {Path(folder).name}", seed, size, {"source": sources}, {})
    wanted = silhouettes(before, pictures, size)[:, 0].numpy()
    which = torch.tensor([judge.things.index(name) for name in names])
    found: dict[str, Any] = {"prompts": len(texts)}
    for title, shown in (("edited", made), ("rendered", ideal), ("not edited", sources)):
        thing, colour = seen(judge, shown)
        metal = nearest_look(shown, before, pictures, size)
        done = {
            "look": metal == after.look,
            "background": colour == after.background,
            "thing": thing == which[after.thing],
        }
        kept = {
            "look": (thing == which[before.thing]) & (colour == before.background),
            "background": thing == which[before.thing],
            "thing": colour == before.background,
        }
        for number, name in enumerate(edits.KINDS):
            rows = kind == number
            found[f"{name} done, {title}"] = share(done[name][rows].float())
            found[f"{name}: the rest stays, {title}"] = share(kept[name][rows].float())
        same = [i for i in range(len(texts)) if edits.KINDS[kind[i]] != "thing"]
        by_prompt = {(i, seed): score for i, score in zip(same, overlaps(shown[same], wanted[same]), strict=True)}
        found[f"place, IoU, {title}"] = interval(mean(by_prompt))
    return found, sheet(sources, made)


def asked_edits(things: int) -> tuple[Scenes, Scenes, Tensor]:
    """Scenes before and after an edit of each of edits.KINDS, for each thing, and which kind it is."""
    count = things * len(edits.KINDS)
    row = torch.arange(count)
    kind, thing = row % len(edits.KINDS), row // len(edits.KINDS)
    places = mild(draw(count, things, generator(0, "places of the edited scenes", 0)))
    colour = (5 * thing + 1) % len(COLOURS)
    own = torch.zeros_like(row)
    metal = torch.tensor(METALS)[thing % len(METALS)]
    before = Scenes(thing, colour, own, places.chance)
    after = Scenes(
        torch.where(kind == edits.KINDS.index("thing"), (thing + 1) % things, thing),
        torch.where(kind == edits.KINDS.index("background"), (colour + 1 + thing % 11) % len(COLOURS), colour),
        torch.where(kind == edits.KINDS.index("look"), metal, own),
        places.chance,
    )
    return before, after, kind


def nearest_look(shown: Bytes, scenes: Scenes, pictures: Tensor, size: int) -> Tensor:
    """Which of its own look and METALS the things of scenes have in pictures (b, h, w, 3): the nearest in CIELAB."""
    inside = silhouettes(scenes, pictures, size)[:, 0].numpy()
    seen_colours, looks_to_tell, distances = looks.cielab(shown), (0, *METALS), []
    for look in looks_to_tell:
        same = Scenes(scenes.thing, scenes.background, torch.full_like(scenes.look, look), scenes.chance)
        off = np.linalg.norm(looks.cielab(as_bytes(render(same, pictures, size))) - seen_colours, axis=-1)
        distances.append([float(one[where].mean()) for one, where in zip(off, inside, strict=True)])
    return torch.tensor(looks_to_tell)[torch.tensor(distances).argmin(0)]


def side(model: ZS2) -> int:
    """The side of a model's pictures, in pixels."""
    size = model.unet.config.sample_size
    assert size is not None
    return size[0] * model.vae.config.reduction


def interval(estimate: Any) -> list[float]:
    """A value and the ends of its interval; without an interval, the value alone."""
    return [value for value in (estimate.value, estimate.low, estimate.high) if value is not None]


def sheet(*rows: Bytes) -> Bytes:
    """Pictures (b, h, w, 3) each, SHOWN of the first over those of the next: (n · SHOWN, h, w, 3)"""
    missing = -len(rows[0]) % SHOWN
    filled = [np.concatenate([row, np.zeros((missing, *row.shape[1:]), np.uint8)]) for row in rows]
    return np.stack([row.reshape(-1, SHOWN, *row.shape[1:]) for row in filled], axis=1).reshape(-1, *rows[0].shape[1:])
