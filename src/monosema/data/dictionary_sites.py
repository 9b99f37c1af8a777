"""Where a dictionary reads and writes: its sites, found in a model or in several by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.coders.sites import join_names
from monosema.core.errors import ConfigError, ShapeError, UserError
from monosema.data.named_models import NamedModels, refuse_repeated_sites, split_site_name
from monosema.data.rebuild import several_models
from monosema.models import LanguageModel, Site

Models = LanguageModel | Mapping[str, LanguageModel]
"""A language model, or several by name that share a vocabulary."""


@dataclass(frozen=True)
class Sites:
    """Where the coder reads and writes: names as it gives them, in the order in which they lie side by side."""

    read: tuple[str, ...]
    """The sites read."""
    written: tuple[str, ...]
    """The sites written; the same for an SAE."""
    widths_written: tuple[int, ...]
    """Their widths, which add up to ``d_out``."""
    places: Mapping[str, tuple[str, str]]
    """Of each site, the name of its model (empty for a single one) and its hook name there."""

    def of_model(self, key: str) -> dict[str, str]:
        """The sites in the model called ``key``, each once: hook name by the coder's name."""
        return {name: hook for name, (owner, hook) in self.places.items() if owner == key}

    @property
    def models_written(self) -> list[str]:
        """The names of the models with a site that is written, once each."""
        return list(dict.fromkeys(self.places[name][0] for name in self.written))


def by_name(models: Models) -> dict[str, LanguageModel]:
    """The models by name; a single one has the empty name. ``ConfigError`` where their vocabularies differ."""
    named = NamedModels(models)
    return named.by_name or {"": named.first}


def sites_of(
    coder: Dictionary, models: Mapping[str, LanguageModel], *, to_be_written: bool, only_read: bool = False
) -> Sites:
    """The coder's sites (several are joined by ``+`` in its hook names).

    With ``only_read`` the widths of the sites written are not compared, and a coder that does not say which these are
    counts as writing what it reads.

    Raises ``ConfigError`` where the coder names none, one twice or sites of other models, ``UnknownNameError`` where a
    model has no such site, ``ShapeError`` where widths differ, and ``UserError`` where a site cannot be written but
    must be.
    """
    writes = coder.writes or (coder.reads if only_read else ())
    if not coder.reads or not writes:
        raise ConfigError(
            "the coder does not say which site it reads; train it on a stream, or name its sites with "
            "coder.bind(hook_name, hook_name_out, {})"
        )
    if "" in models and (recorded := several_models(coder.metadata)):
        shown = ", ".join(f"{key!r}: ..." for key in recorded)
        raise ConfigError(
            f"the coder reads several models; give them by name, as in {{{shown}}}, in place of one model"
        )
    names = [str(site) for site in coder.reads], [str(site) for site in writes]
    for each in names:
        refuse_repeated_sites(each)
    places = {name: ("", name) if "" in models else split_site_name(name, models) for name in names[0] + names[1]}
    found = {name: _site(models, key, hook) for name, (key, hook) in places.items()}
    read, written = ([(name, found[name]) for name in each] for each in names)
    compared = [(read, "d_in", coder.d_in), (written, "d_out", coder.d_out)]
    for sites, kind, width in compared[:1] if only_read else compared:
        total = sum(site.width for _, site in sites)
        if total != width:
            owners = " and ".join(dict.fromkeys(models[places[name][0]].name for name, _ in sites))
            raise ShapeError(
                f"the coder's {kind} is {width}, but {join_names(name for name, _ in sites)!r} of {owners} is "
                f"{total} wide; was it trained on another model or site?"
            )
    if to_be_written:
        for name, site in written:
            require_writable(site, models[places[name][0]], "so nothing can be put in its place", "use losses=False")
    # The model's own names: a module given by its path has one spelling.
    own = {name: (key, found[name].name) for name, (key, _) in places.items()}
    return Sites(tuple(names[0]), tuple(names[1]), tuple(site.width for _, site in written), own)


def _site(models: Mapping[str, LanguageModel], key: str, hook: str) -> Site:
    try:
        return models[key].site(hook)
    except UserError as error:
        if not key:
            raise
        raise type(error)(f"model {key!r}: {error}") from error


def require_writable(site: Site, model: LanguageModel, consequence: str, remedy: str) -> None:
    """Raise ``UserError`` for a site that is capture-only."""
    if not site.writable:
        raise UserError(
            f"{site.name!r} of {model.name} can be read but not written, {consequence} "
            f"({site.read_only_reason}); {remedy}"
        )


def side_by_side(values: Mapping[str, Tensor], names: tuple[str, ...], counted: Tensor) -> Tensor:
    """The rows ``[n, sum of widths]`` of ``values [B, T, width]`` at the positions ``counted [B, T]``."""
    device = values[names[0]].device
    rows = [values[name][counted.to(values[name].device)].to(device) for name in names]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
