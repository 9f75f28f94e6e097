"""The cells of a study at equal motion: λ, a or pixels of each are searched, so that its clips move as much as asked.

A noise model without such a parameter stands at its own motion, and so does one that can't reach the target. Its label
says so, and it has no rank: a still picture would have the best, so the still control has none either. Where a search
ended too far from the target, the cell keeps what was found. Its label says its motion, and it has no rank. What was
found is kept in DIR/motion.json, so that a study that goes on has the same cells. New ones are searched on the same
prompts and seed, whatever the study has by then. No torch at import.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zs2.cli.command import say
from zs2.cli.derived_options import value_text
from zs2.cli.equal_motion import SHORT, TOLERANCE, Found, check_target, find, is_near, searched
from zs2.errors import InputError, brief
from zs2.method import PARAMETERS, SEED_MAX
from zs2.study.cells import NUMBERS, Cell, cell, merge, reference, unusual
from zs2.study.inputs import Inputs
from zs2.study.planning import refuse_another_revision
from zs2.study.results import EQUAL_MOTION, is_ranked
from zs2.study.stored import check_ids
from zs2.study.study import ANOTHER, Job, Study, study_file
from zs2.system.atomic import write_json
from zs2.system.json_files import is_number, read_json

if TYPE_CHECKING:
    from zs2.pipeline import ZS2
    from zs2.video.formats import Frames

PROMPTS = 4  # of the study, for its first search: of each set in turn, with the first seed
FILE = "motion.json"
SEARCH = "search"  # the key in motion.json of what the search was for
LONGEST = 5.66e-05  # as text, no value that a search finds is longer
OWN_MOTION, OFF_MOTION = ", own motion", ", motion "  # what a label adds, the second with the motion


def at_equal_motion(study: Study, model: ZS2 | None, folder: Path, target: float, inputs: Inputs) -> Study:
    """The study with its cells at the target motion.

    Args: model: what searches; without one, cells that were not searched stay as they are. inputs: the study's, open.
    Raises: InputError for a target that is no motion, for another one than the study's, since variants are ranked at
        one motion; for a motion.json that zs2 did not write; for a new cell that can't be searched as the study's
        others were; and for an id that is too long.
    """
    check_target(target)
    if study.frames < 2:
        raise InputError("motion_target with one frame: expected two frames or more")
    file = folder / FILE
    known, search = read_json(file) if file.exists() else {}, _search_of(study)
    before = known.pop(SEARCH, None)
    ranked = False  # whether there are cells that those of a new search would be ranked with
    if study_file(folder).exists():
        _check_same_target(file, known, target)
        ranked = any(map(is_ranked, Study.read(folder).cells))
        search = before if known or ranked else search
    elif known and before != search:
        say(f"{file} is of a search that ended early, {_difference(before, search)}: it begins anew")
        known = {}
    cells = []
    for one in study.cells:
        name = searched(one.noise)
        if one.frozen:
            cells.append(one)
            continue
        if name is None:
            cells.append(_own(one))
            continue
        key = f"{_searched_id(one, name)} at {target:g}"
        if key not in known:
            if model is None:
                cells.append(one)
                continue
            refuse_another_revision(study, folder)  # before a search of minutes
            if PARAMETERS[name].length == 1:
                check_ids([_with(one, name, LONGEST)])  # before a search of minutes
            jobs = _jobs(study, one, search, file)
            known[key] = _search(study, model, jobs, name, target, inputs)
            write_json(file, {SEARCH: search} | known)
        try:
            cells.append(_own(one) if known[key] is None else _at(one, name, known[key], target))
        except InputError as error:
            hint = ANOTHER if ranked else "remove the file, and it is searched again"
            raise InputError(f"{file}: {key}: {error}: {hint}") from error
    cells = merge(cells)
    check_ids(cells)
    return replace(study, cells=tuple(cells), full=reference(cells).id)


def without_missed(study: Study, folder: Path) -> Study:
    """The study in a folder. A cell that is off its target by motion.json loses its rank, which an older zs2 gave it.

    Raises: InputError for a motion.json that zs2 did not write.
    """
    file = folder / FILE
    if not any(map(is_ranked, study.cells)) or not file.exists():
        return study
    known = read_json(file)
    return replace(study, cells=tuple(_reranked(one, known, file) if is_ranked(one) else one for one in study.cells))


def _reranked(one: Cell, known: dict[str, Any], file: Path) -> Cell:
    """A cell with a rank, without it if the search for its value ended too far from the target."""
    name = searched(one.noise)
    for key, record in known.items():
        start, _, target = key.rpartition(" at ")
        if name is None or start != _searched_id(one, name) or not isinstance(record, dict):
            continue
        value: Any = record.get("value")
        motion: Any = record.get("motion")
        if getattr(one, name) != (tuple(value) if isinstance(value, list) else value) or not is_number(motion):
            continue
        try:
            near = is_near(motion, float(target))
        except ValueError:
            raise InputError(f"{file}: {brief(key)}: expected a motion after the last “at”: remove the file") from None
        if not near:
            return _off(one, motion)
    return one


def _check_same_target(file: Path, known: dict[str, Any], target: float) -> None:
    """Refuse another target than that of the searches in a study's motion.json."""
    targets = {key.rpartition(" at ")[2] for key in known}
    if targets - {f"{target:g}"}:
        raise InputError(
            f"motion_target is {target:g}, and {file.parent} has variants at {', '.join(sorted(targets))}, which are "
            f"ranked together: {ANOTHER}"
        )


def _search_of(study: Study) -> dict[str, Any]:
    """What a study's first search depends on: the settings of all clips, its prompts and seed, the revision."""
    prompts = [str(study.prompts[i]) for i in _prompts_of(study)]
    search = study.fixed | {"prompts": prompts, "seed": study.seeds[0], "revision": study.revision}
    return dict(json.loads(json.dumps(search)))


def _prompts_of(study: Study) -> list[int]:
    """The prompts of a first search, by their numbers: the first of each set, then the second of each, and so on.

    A set that the search left out would stand at another motion: open prompts move more than closed ones without TMA.
    """
    sets: dict[str, list[int]] = {}
    for number, prompt in enumerate(study.prompts):
        sets.setdefault(prompt.set, []).append(number)
    turns = (number for turn in zip_longest(*sets.values()) for number in turn if number is not None)
    return sorted(islice(turns, PROMPTS))


def _jobs(study: Study, one: Cell, search: Any, file: Path) -> list[Job]:
    """The clips of a search for a cell: of the prompts and the seed that the search of the study's other cells had.

    Raises: InputError if they are not known, or a prompt is not there: cells that were searched on others do not
        compare.
    """
    record = search if isinstance(search, dict) else {}
    texts, seed = record.get("prompts"), record.get("seed")
    if not isinstance(texts, list) or not texts or type(seed) is not int or not 0 <= seed <= SEED_MAX:
        raise InputError(
            f"{file} does not say on which prompts and seed its variants were searched, and {one.label} would be "
            f"ranked with them: {ANOTHER}"
        )
    numbers = {str(prompt): number for number, prompt in enumerate(study.prompts)}
    for text in texts:
        if not isinstance(text, str) or text not in numbers:
            raise InputError(
                f"{file}: its variants were searched on the prompt {brief(text)}, which is not there now, and "
                f"{one.label} would be ranked with them: give all prompts of the study, or {ANOTHER}"
            )
    return [Job(one, numbers[text], seed) for text in texts]


def _difference(before: object, now: dict[str, Any]) -> str:
    """In what an earlier search differs from one of now."""
    from zs2.sampling.resume import differences

    if not isinstance(before, dict):
        return "of an older zs2, and does not say for what"
    return f"with {differences(before, now)}"


def _search(
    study: Study, model: ZS2, jobs: list[Job], name: str, target: float, inputs: Inputs
) -> dict[str, Any] | None:
    """What was found for a cell on these clips, as it is stored; None if it can't reach the target."""
    from zs2.study.runner import request

    one = jobs[0].cell

    def make(value: Any) -> Iterator[Frames]:
        variant = model.variant(**one.method | {name: value})
        for job in jobs:
            asked = request(study, job, inputs)
            frames = study.frames if inputs.of(job.prompt) else min(study.frames, SHORT)
            yield variant(**asked | {"frames": frames, "chunk": min(study.chunk, frames)}).frames

    try:
        found: Found = find(make, name, target)
    except InputError as error:
        say(f"{one.label} stands at its own motion: {error}")
        return None
    say(f"{one.label}: {found} in {found.clips} clips, where {target:g} is asked for")
    return {"value": found.value, "motion": found.motion, "clips": found.clips, "spread": found.spread}


def _at(one: Cell, name: str, found: Any, target: float) -> Cell:
    """A cell at the value that was found, without a rank if its motion is too far from the target.

    Raises: InputError for what no search has found.
    """
    record = found if isinstance(found, dict) else {"value": found}
    value = PARAMETERS[name].check(record.get("value"))
    motion: Any = record.get("motion")
    if not is_number(motion):
        raise InputError(f"its motion is {brief(motion)}: expected a number")
    new = _with(one, name, value)
    label = new.label
    if one.label != _with(one, name, getattr(one, name)).label:  # it has a name that does not say its values
        label = f"{one.label.removesuffix(unusual(one))} ({PARAMETERS[name].symbol}={value_text(value)})"
    if is_near(motion, target):
        return replace(new, label=label, presets=tuple(dict.fromkeys((EQUAL_MOTION, *one.presets))))
    say(
        f"{label} has motion {motion:.3g}, and no value was found with a motion within {TOLERANCE:.0%} of {target:g}: "
        "it is not ranked"
    )
    return _off(replace(new, label=label, presets=one.presets), motion)


def _with(one: Cell, name: str, value: Any) -> Cell:
    """A cell with another value of a parameter."""
    numbers = {key: getattr(one, key) for key in NUMBERS} | {name: value}
    return cell(one.noise, attn=one.attn, **numbers)


def _searched_id(one: Cell, name: str) -> str:
    """What motion.json calls a cell: its id at a value that no search finds, whatever its own."""
    return _with(one, name, 1 if PARAMETERS[name].length == 1 else (1,) * PARAMETERS[name].length).id


def _off(one: Cell, motion: float) -> Cell:
    """A cell whose motion is not near enough."""
    return replace(one, label=f"{one.label}{OFF_MOTION}{motion:.3g}", presets=_unranked(one))


def _own(one: Cell) -> Cell:
    """A cell that stands at its own motion."""
    return replace(one, label=f"{one.label}{OWN_MOTION}", presets=_unranked(one))


def _unranked(one: Cell) -> tuple[str, ...]:
    """A cell's presets, without the one whose cells have a rank."""
    return tuple(name for name in one.presets if name != EQUAL_MOTION)
