"""``load``: the dictionary in a local folder or a repository, in whichever format it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from monosema.coders import TrainableDictionary
from monosema.coders.parts import Origin
from monosema.coders.site_transform import SiteTransform
from monosema.core.devices import choose_device, parse_dtype
from monosema.core.errors import FileError, UserError, first_line
from monosema.core.files import looks_like_path
from monosema.core.logs import get_logger
from monosema.core.peers import explains_options
from monosema.core.words import counted
from monosema.formats import Format, registry
from monosema.formats.checkpoints import (
    is_run,
    named_checkpoint,
    run_progress,
    runs_in,
    tokens_wanted,
    unfinished_names,
)
from monosema.hub.specs import from_spec

logger = get_logger("monosema.hub")


_MOST_NAMES = 20
"""Of several runs or dictionaries, in an error."""


@explains_options
def load(
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    token: str | None = None,
    revision: str | None = None,
    force_download: bool = False,
) -> TrainableDictionary:
    """The dictionary in a local folder, or under ``name`` in a Hugging Face repository ``source``.

    A run folder stands for its ``coder/``; ``name`` may then be a checkpoint: ``latest``, ``best``, ``step_500`` or,
    by the tokens it was trained on, ``tokens_1024000``. Raises ``FileError`` where nothing readable is there.
    """
    place, format = _place(source, name, token=token, revision=revision, force_download=force_download)
    spec = format.read(place)
    registry.check_records(spec.metadata, place)
    try:
        coder = from_spec(spec)
        transform = coder.site_transform
    except UserError as error:
        raise FileError(f"{place} holds no dictionary that can be used: {error}") from error
    if transform not in (SiteTransform(), SiteTransform(centering_unknown=True)):
        logger.warning(
            "%s was trained on activations that the plain model does not have (%s); see coder.site_transform",
            place,
            transform.words,
        )
    coder.loaded_from = Origin(str(source), name, (coder.hook_name, coder.hook_name_out))
    return coder.to(device=choose_device(device), dtype=None if dtype is None else parse_dtype(dtype))


def _what_to_give() -> str:
    return (
        f"give the path of a run folder, or of a folder that holds {registry.telling_files()}, or the hub's name of a "
        "repository (owner/name)"
    )


def _place(
    source: str | os.PathLike[str], name: str | None, *, token: str | None, revision: str | None, force_download: bool
) -> tuple[Path, Format]:
    """Where the dictionary is on this machine, and its format."""
    folder = Path(source)
    if folder.exists():
        return _local(folder, name)
    if isinstance(source, Path) or looks_like_path(str(source)):
        raise FileError(f"there is no folder {folder}; {_what_to_give()}")
    return _downloaded(str(source), name, token=token, revision=revision, force_download=force_download)


def _local(folder: Path, name: str | None) -> tuple[Path, Format]:
    named = folder / name if name else folder
    for candidate in (named, named / "coder"):
        if (format := registry.claimant(candidate)) is not None:
            return candidate, format
    checkpoint = None if name is None else named_checkpoint(folder, name)
    if checkpoint is not None and (format := registry.claimant(checkpoint / "coder")) is not None:
        if unfinished_names(folder):
            logger.info("%s has not finished; its newest checkpoint is at %s", folder, run_progress(folder))
        return checkpoint / "coder", format
    if name is None or is_run(named):
        _refuse_unfinished(named)
    if name is None and folder.is_dir():
        _refuse_several(folder)
    under = f" under {name!r}" if name else ""
    raise FileError(f"{folder} holds no dictionary{under} ({registry.telling_files()} is missing); {_what_to_give()}")


def _refuse_unfinished(run: Path) -> None:
    """Raise ``FileError`` saying how far ``run`` has come, where it is a run without a finished dictionary."""
    if names := unfinished_names(run):
        raise FileError(
            f"{run} is a run that has not finished: its newest checkpoint is at {run_progress(run)}. Its dictionary is "
            f"not written yet; give one of its checkpoints by name, name={names[0]!r} (--name {names[0]}); there are "
            f"{', '.join(names)}. The call that began the run resumes it"
        )
    if is_run(run):
        wanted = tokens_wanted(run)
        of = "" if wanted is None else f" of the {counted(wanted, 'token')} it is to be trained on"
        raise FileError(
            f"{run} is a run that has written no checkpoint yet{of}; start it again with the call that began it"
        )


def _refuse_several(folder: Path) -> None:
    """Raise ``FileError`` naming what there is, where ``folder`` holds several runs or dictionaries."""
    runs = runs_in(folder)
    inside = runs or [each for each in sorted(folder.iterdir()) if each.is_dir() and registry.claimant(each)]
    if not inside:
        return
    names = ", ".join(each.name for each in inside[:_MOST_NAMES])
    more = f" and {len(inside) - _MOST_NAMES:,} more" if len(inside) > _MOST_NAMES else ""
    compared = f"; `monosema evaluate {folder}` evaluates all that have finished" if runs else ""
    raise FileError(
        f"{folder} {'is a sweep: it holds the runs' if runs else 'holds the dictionaries'} {names}{more}. Give one by "
        f"name, name={inside[0].name!r} (--name {inside[0].name}){compared}"
    )


def _downloaded(
    repo: str, name: str | None, *, token: str | None, revision: str | None, force_download: bool
) -> tuple[Path, Format]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    prefix = f"{name}/" if name else ""
    wanted = [f"{prefix}{file}" for file in registry.wanted_files()]
    try:
        root = snapshot_download(
            repo,
            allow_patterns=wanted if name is None else [name, *wanted],  # a format may be of one file
            token=token,
            revision=revision,
            force_download=force_download,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileError(
            f"no folder {repo!r} here, and no such repository could be loaded from the hub ({first_line(error)}); "
            f"{_what_to_give()}"
        ) from error
    place = Path(root) / name if name else Path(root)
    format = registry.claimant(place)
    if format is None:
        raise FileError(f"repository {repo!r} holds no {prefix}{registry.telling_files()}")
    return place, format
