"""`python -m zs2.ablate`: run an ablation study. Its cells are in study/cells.py, its folder in study/study.py.

A clip is written whole or not at all, its settings last, and then its measures. What is there is not made again. So a
run can be killed at any moment and started again. Several processes can work in one folder, each on a shard or all on
everything: the others skip a clip that one process is working on. The bytes do not depend on any of that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from zs2.cli.command import Failure, command, program, say
from zs2.errors import InputError
from zs2.study.inputs import opened, write_inputs
from zs2.study.lock import Workplace
from zs2.study.options import OUT, parser, with_file
from zs2.study.study import Study, check_folder, files_of, folders, is_finished, study_file
from zs2.system.devices import AUTO, auto_note
from zs2.system.progress import progress
from zs2.system.terminal import show

if TYPE_CHECKING:
    from zs2.study.runner import Runner


def run(options: dict[str, Any]) -> None:
    """Run a study, or with --dry-run print how far it is. Raises: InputError; Failure if anything is missing."""
    from zs2.study.planning import check_revision, division, plan, with_fetched_settings, without_model

    options = with_file(options)
    folder = Path(options.setdefault("out", OUT))
    index, count = division(options)
    if "dry_run" not in options:
        check_folder(folder)
    known = existing(folder)
    study = plan(options, known)
    if known:
        known.with_more(study)
        if "motion_target" not in options:  # whose variants only the search tells
            check_revision(study, folder)
    if "dry_run" in options:
        study = without_model(study, opened(options))
        if known and "motion_target" in options:
            from zs2.study.equal_motion import at_equal_motion

            study = at_equal_motion(study, None, folder, options["motion_target"], opened(options))
        show(*table(folder, study))
        return

    from zs2.study.runner import Runner, check_measured_alike, choose_scorer, load, read_lpips, share_threads

    lpips = read_lpips(options)
    if not known:
        study = with_fetched_settings(options, study)
    model, study = load(options, study)
    if known:
        known.with_more(study)
    scorer, reason = choose_scorer(options, study, model.device)
    if known:
        check_measured_alike(folder, known, study, options, scorer, lpips)
    if "motion_target" in options:
        from zs2.study.equal_motion import at_equal_motion

        folder.mkdir(parents=True, exist_ok=True)
        study = at_equal_motion(study, model, folder, options["motion_target"], opened(options))
    if known:
        check_revision(study, folder)
    if reason:
        say(f"warning: clips will be made, but not measured: {reason}")

    own = model.own_settings
    taken = [name for name, value in own.request.items() if name not in options and study.sampling[name] == value]
    if "lam" not in options and own.lam in {cell.lam for cell in study.cells} - {None}:
        taken.append("lam")
    notes = () if known else (own.summary(taken), auto_note(options.get("dtype", AUTO), model.dtype, model.device))
    for note in notes:
        if note and os.environ.get("RANK", "0") == "0":
            say(note)
    for part in folders(folder):
        part.mkdir(parents=True, exist_ok=True)
    with Workplace(folder, [folder, *folders(folder)]) as place:
        if place.removed:
            say(f"removed what killed processes left: {', '.join(map(str, place.removed))}")
        with place.writing():
            known = existing(folder)
            grown = known.with_more(study) if known else study
            if not known or grown != Study.read(folder):
                grown.write(folder)
            inputs = opened(options)
            write_inputs(folder, grown, inputs)
        share_threads(grown)
        runner = Runner(folder, study, model, scorer, inputs, lpips)
        jobs = runner.missing(study.shard(index, count))
        label = "clips" if count == 1 else f"clips of shard {index + 1}/{count}"
        for _ in progress(runner.run(jobs, place), len(jobs), label):
            pass
    finish(folder, study, runner, reason)


def existing(folder: Path) -> Study | None:
    """The study in a folder, if there is one, with the ranks that it goes on with.

    Raises: InputError for clips or measures without a study.json.
    """
    if study_file(folder).exists():
        from zs2.study.equal_motion import without_missed

        return without_missed(Study.read(folder), folder)
    stray = next((file for part in folders(folder) for file in sorted(part.glob("[!.]*"))), None)
    if stray:
        raise InputError(f"{stray} is there, but no study.json that says how it was made: give another --out")
    return None


def finish(folder: Path, study: Study, runner: Runner, reason: str) -> None:
    """Print how far the study is and what comes next. Under torchrun, only the first process does.

    Args: reason: why nothing could be measured, or an empty text.
    Raises: Failure if clips could not be made, or not measured.
    """
    jobs = list(study.jobs())
    if os.environ.get("RANK", "0") == "0":
        left = len(runner.missing(jobs)) - len(runner.failed)
        show(*table(folder, study))
        if left:
            show(f"{left} of {len(jobs)} are left to make or measure, by other processes or by this command again")
        show(f"next: {program('report')} {quote(str(folder))}", most=None)
    if runner.failed:
        name, why = next(iter(runner.failed.items()))
        raise Failure(f"{len(runner.failed)} of {len(jobs)} clips could not be made. {name}: {why}")
    if reason:
        raise Failure(f"the clips are there, but not measured: {reason}. Once that is mended, give the same command")


def table(folder: Path, study: Study) -> list[str]:
    """How many clips of each cell there are, and how many are measured, as lines."""
    each = len(study.prompts) * len(study.seeds)
    counts = {cell.id: [0, 0] for cell in study.cells}
    clips, measured = map(files_of, folders(folder))
    for job in study.jobs():
        counts[job.cell.id][0] += f"{job.name}.webp" in clips and is_finished(folder, job.name)
        counts[job.cell.id][1] += f"{job.name}.json" in measured
    rows = [["cell", "clips", "measured", ""]]
    rows += [[c.id, *(f"{n}/{each}" for n in counts[c.id]), c.label] for c in study.cells]
    rows += [["all", *(f"{sum(column)}/{each * len(counts)}" for column in zip(*counts.values(), strict=True)), ""]]
    a, b, c = (max(len(row[column]) for row in rows) for column in range(3))
    return [f"{row[0]:<{a}}  {row[1]:>{b}}  {row[2]:>{c}}  {row[3]}".rstrip() for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status, as `zs2.cli.command.command` does."""
    return command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
