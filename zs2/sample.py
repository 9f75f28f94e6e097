"""`python -m zs2.sample`: prompts to clips."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NoReturn

from zs2.checkpoints.hub import is_hub_id
from zs2.checkpoints.locate import locate
from zs2.checkpoints.own_settings import OwnSettings
from zs2.cli.command import command, say
from zs2.cli.derived_options import chosen_model, loading
from zs2.cli.equal_motion import find_for_clip
from zs2.cli.replay import check_replay, with_replay
from zs2.cli.resuming import FINISHED, check_resumable, first_frame, is_resumable
from zs2.cli.sample_options import parser
from zs2.cli.sample_requests import (
    check_method,
    check_stream,
    check_timeout,
    clip_requests,
    has_clip,
    outputs,
    own_in_effect,
    warn_without_effect,
)
from zs2.cli.values import RANDOM
from zs2.errors import InputError, LostProcess, collected, counted, together, warn
from zs2.method import METHOD, SEED_MAX
from zs2.sampling.prompt_syntax import A1111
from zs2.sampling.request import Request
from zs2.system.collector import without_collector
from zs2.system.devices import AUTO, auto_note
from zs2.system.terminal import show
from zs2.video.encoding import ENDINGS, Encoding

if TYPE_CHECKING:
    from pathlib import Path

    from zs2.pipeline import ZS2
    from zs2.sampling.frame_parallel import Group
    from zs2.sampling.plan import SamplingPlan
    from zs2.video.outputs import Output
    from zs2.video.streaming import Saved


def run(options: dict[str, Any], group: Group | None = None) -> None:
    """Sample and write all clips, alone or as one of a group of processes, of which the first one writes.

    Wrong options are refused before the model is loaded.

    Args:
        options: of the command line, after `with_replay`.
    """
    model_name, replays = chosen_model(options), "recorded" in options
    own = OwnSettings() if replays else OwnSettings.of(model_name)
    options = options | draw_seeds(options.get("seed", []), group)
    clips = clip_requests(options, own)
    check_method(options, [request for _, request in clips])
    encoding = Encoding.of(options)
    check_resumable(options)
    places = outputs(options, [suffix for suffix, _ in clips], encoding.fps)
    path = places[0].path
    lengths = [request.frames or 1 for _, request in clips]
    encoding = encoding.in_effect(path.suffix.lower(), max(lengths))
    if encoding.loop and (short := sum(frames < 3 for frames in lengths)):
        warn(f"loop: no effect on {counted(short, 'clip')} of fewer than 3 frames")
    if "stream" in options:
        check_stream(path, encoding)
    if not replays:
        warn_without_effect(options, path)
    if not is_hub_id(model_name):
        locate(model_name, "float32")  # raises if there is none
    if "dry_run" not in options and is_first(group):
        from zs2.video.leftovers import clear_leftovers

        targets, ways = [place.path for place in places], {name: name in options for name in ("resume", "overwrite")}
        for line in clear_leftovers(targets, **ways):
            say(line)

    with without_collector():
        from zs2.pipeline import ZS2

    others = {name: options[name] for name in (*METHOD, "device", "dtype", "compile") if name in options}
    model = ZS2.from_pretrained(model_name, **loading(options), **others)
    if not replays and model.own_settings != own:  # fetched from the hub
        own = model.own_settings
        clips = clip_requests(options, own)
    memory: dict[str, Any] = {"stream": "stream" in options, "state_device": options.get("state_device")}
    requests = [request for _, request in clips]
    if not replays:
        model.text.warn_of_unused([text for request in requests for text in request.texts])
    if "dry_run" in options:
        return print_plans(model, requests, group, memory, resumable=is_resumable(options))
    if "motion_target" in options and not replays:
        found = find_for_clip(model, requests[0], options["motion_target"], group)
        model, options = model.variant(**found), options | found
    plans = plan_all(model, requests, group, memory)
    for plan in plans:
        if "stream" in options:
            check_stream(path, encoding, plan.size[::-1])
        if replays:
            check_replay(options["recorded"], model.settings(plan, encoding.fps))
    notes = (own.summary(own_in_effect(options, own)), auto_note(options.get("dtype", AUTO), model.dtype, model.device))
    for note in notes:
        if note and is_first(group):
            say(note)
    left = list(enumerate(zip(plans, places, strict=True), 1))
    if "skip_existing" in options and "out" in options:
        with together():
            left = [one for one in left if not skips(model, *one[1], encoding, options)]
        if len(left) < len(clips) and is_first(group):
            say(f"{len(clips) - len(left)} of {len(clips)} clips are there already")
    for number, (plan, place) in left:
        label = "sampling" if len(clips) == 1 else f"clip {number} of {len(clips)}"
        sample(model, plan, place, of_clip(encoding, plan, place), label, options)
    return None


def is_first(group: Group | None) -> bool:
    """Whether this is the one process that writes and prints."""
    return group is None or group.rank == 0


def draw_seeds(seeds: Sequence[int], group: Group | None) -> dict[str, list[int]]:
    """The seeds, those to be drawn replaced by new ones, the same in all processes. Prints what was drawn."""
    if RANDOM not in seeds:
        return {}
    drawn = [secrets.randbelow(SEED_MAX + 1) if seed == RANDOM else seed for seed in seeds]
    if group is not None:
        if is_first(group):
            group.peers.store.set("seeds", json.dumps(drawn))
        drawn = json.loads(group.peers.store.get("seeds"))
    for asked, seed in zip(seeds, drawn, strict=True):
        if asked == RANDOM and is_first(group):
            say(f"drawn: --seed {seed}")
    return {"seed": drawn}


def kind(request: Request) -> str:
    """A request as text, without what decides nothing of its plan: the seed, and a single plain prompt."""
    plain = isinstance(request.prompt, str) and request.prompt_syntax != A1111
    values = {one.name: getattr(request, one.name) for one in fields(request) if one.repr}
    return repr(values | {"prompt": "" if plain else request.prompt, "seed": 0})


def plan_all(
    model: ZS2, requests: Sequence[Request], group: Group | None, memory: dict[str, Any]
) -> list[SamplingPlan]:
    """The plan of each request. Requests of one kind share one: 100,000 prompts are planned in seconds."""
    known: dict[str, SamplingPlan] = {}
    plans = []
    for request in requests:
        key = kind(request)
        if key not in known or known[key].start is not None:  # a start depends on the seed
            known[key] = model.plan(request, group, **memory)
        plans.append(replace(known[key], request=request))
    return plans


def of_clip(encoding: Encoding, plan: SamplingPlan, place: Output) -> Encoding:
    """The encoding of one clip: without a loop if it is too short for one, which a warning said of all together."""
    with collected():
        return encoding.in_effect(place.path.suffix.lower(), plan.request.frames)


def skips(model: ZS2, plan: SamplingPlan, place: Output, encoding: Encoding, options: dict[str, Any]) -> bool:
    """Whether --skip-existing leaves out a clip. All processes of a group decide alike."""
    encoding = of_clip(encoding, plan, place)
    settings = {**dict.fromkeys(ENDINGS), **model.settings(plan, encoding.fps), **encoding.recorded()}
    there = has_clip(place.path, settings, plan.request, overwrite="overwrite" in options)
    return there if plan.group is None else bool(plan.group.least(int(there), plan.model.device))


def print_plans(
    model: ZS2, requests: Sequence[Request], group: Group | None, memory: dict[str, Any], *, resumable: bool
) -> None:
    """Print the memory that each kind of clip is expected to need. Raises: InputError if it is more than is free."""
    from zs2.sampling.memory import free_for, planned_memory
    from zs2.sampling.plan import resolve
    from zs2.system.free_memory import amount

    plans = set()
    for request in {kind(request): request for request in requests}.values():
        failed = None
        try:
            planned = model.plan(request, group, **memory)
        except InputError as error:
            planned, failed = resolve(model.image_model, model.method, request, group, **memory), error
            planned = replace(planned, chunk=request.chunk or 1)
        plan = planned_memory(planned)
        if plan not in plans and is_first(group):
            frames = counted(request.frames, "frame") if request.frames else "frames without end"
            show(f"{frames}, {planned.chunk} at a time:", *plan.lines())
            if resumable:
                show(f"{'resume':<10}{amount(planned.resume_bytes):>10} on the disk, twice while it is replaced")
            free, of = free_for(planned)
            show(f"{'free':<10}{'not known' if free is None else amount(free):>10}{of}")
        plans.add(plan)
        if failed is not None:
            raise failed


def sample(
    model: ZS2, plan: SamplingPlan, place: Output, encoding: Encoding, label: str, options: dict[str, Any]
) -> None:
    """Sample one clip, write it, and print the names of its files.

    Raises: KeyboardInterrupt after a signal, and what failed; the finished frames of a stream are written before.
    """
    from zs2.sampling.decoding import decode_frames
    from zs2.sampling.resume import ResumeFile
    from zs2.sampling.sampler import Sampler
    from zs2.system.background import in_background
    from zs2.system.progress import progress
    from zs2.video.clip import Clip
    from zs2.video.outputs import Output
    from zs2.video.unfinished import Unfinished

    writes, sheet = is_first(plan.group), options.get("sheet", True)
    count = plan.request.frames
    assert count is not None
    if writes:
        settings = in_background(lambda: model.settings(plan, encoding.fps))  # hashes the weights, once
    if "stream" in options:
        from zs2.video.streaming import save

        resume, first = None, 0
        if is_resumable(options):
            place = Output.at(place.name(), overwrite=place.overwrite, instead=True)
            resume = ResumeFile(Unfinished(place.path).resume)
            if writes:
                first = first_frame(plan, place.path, resume, settings(), "resume" in options)
            if plan.group is not None:
                first = plan.group.least(first if writes else count, plan.model.device)
        if first == FINISHED:
            return
        frames = Sampler(plan).frames(resume)
        if writes:
            shown = progress(frames, count - first, label.replace("sampling", "frames"))
            saved = save(
                shown, count, place, encoding, settings, sheet=sheet, first=first, resumable=resume is not None
            )
            print_files(place, saved.files, options)
            if saved.ended is not None:
                report_end(saved, count)
        else:
            for _ in frames:
                pass
    else:
        steps = Sampler(plan).steps()
        for step in progress(steps, plan.step_count, label) if writes else steps:
            latents = step.latents
        pixels = decode_frames(plan, latents)
        if writes:
            clip = Clip(pixels, encoding.fps, settings())
            print_files(place, clip.write(place, encoding, sheet=sheet), options)


def print_files(place: Output, files: Sequence[Path], options: dict[str, Any]) -> None:
    """Print the names of a clip's files. Warns of a clip that has another name than --out says."""
    if files and "out" in options and files[0] != place.path:
        warn(f"{place.path} was made by another command meanwhile: this clip is {files[0]}")
    show(*map(str, files), most=None)


def report_end(saved: Saved, total: int) -> NoReturn:
    """Say which frames are kept of a stream that ended early, and raise what ended it."""
    assert saved.ended is not None
    kept = f"the first {saved.count} of {total} frames are kept: {saved.kept}"
    if isinstance(saved.ended, LostProcess):
        saved.ended.kept = kept  # the process that prints the error adds it
    elif saved.count < total or not saved.files:  # else a signal came when the clip was whole
        say(kept)
    raise saved.ended


def prepared(options: dict[str, Any]) -> dict[str, Any]:
    """The options, completed by those of --replay, and checked as far as several processes need to join."""
    check_timeout(options)
    return with_replay(options)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, as `zs2.cli.command.command` has it."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:  # torchrun
        from zs2.cli.torchrun import together

        return together(parser(), prepared, run, argv)
    return command(parser(), lambda options: run(prepared(options)), argv)


if __name__ == "__main__":
    sys.exit(main())
