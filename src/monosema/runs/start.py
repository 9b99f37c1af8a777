"""The saved dictionary a run starts from, held against the run's options and sites before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monosema import hub
from monosema.coders import TrainableDictionary
from monosema.coders.activations.family import ActivationConfig, FixedCount
from monosema.core.devices import parse_dtype
from monosema.core.errors import ConfigError, ShapeError
from monosema.core.logs import get_logger
from monosema.data.cache.expectations import model_differences
from monosema.data.sites import RowLayout, names_site
from monosema.runs.config import CoderOptions

logger = get_logger("monosema.runs")


def coder_options(coder: TrainableDictionary) -> CoderOptions:
    """The options that describe ``coder`` and, where it was loaded, what it starts from."""
    made: Any = coder.config
    own: dict[str, Any] = (
        {"variant": "cross_layer_transcoder", "tied": made.tied}
        if coder.is_layered
        else {
            "b_dec": made.b_dec,
            "skip": made.skip,
            "causal": made.causal,
            "decoder_init": made.decoder_init,
            "decoder_init_norm": made.decoder_init_norm,
            "encoder_init": made.encoder_init,
        }
    )
    start = coder.loaded_from
    here = (coder.hook_name, coder.hook_name_out)
    return CoderOptions(
        d_sae=made.d_sae,
        activation=made.activation,
        token_scaling=made.token_scaling,
        dtype="float64" if made.dtype == "float64" else "float32",
        seed=made.seed,
        start_from=None if start is None else start.source,
        start_name=None if start is None else start.name,
        start_at_other_sites=start is not None and _are_sites(start.hook_names) and start.hook_names != here,
        **own,
    )


def load_start(options: CoderOptions, layout: RowLayout, models: Mapping[str, Any]) -> TrainableDictionary:
    """The dictionary ``options.start_from``, ready to be trained on the sites ``layout`` of recorded ``models``.

    Raises ``FileError`` where there is none, ``ConfigError`` where another option contradicts it or where it reads
    other sites (but for ``start_at_other_sites``), ``ShapeError`` where widths differ.
    """
    assert options.start_from is not None
    coder = hub.load(options.start_from, options.start_name)
    if coder.config.dtype not in ("float32", "float64") or options.dtype == "float64":
        coder = coder.to(dtype=parse_dtype(options.dtype))
    _check_options(options, coder)
    _check_sites(options, coder, layout)
    if different := model_differences(coder.metadata, models):
        logger.info("%s was trained on another model (%s)", options.start_from, "; ".join(different))
    return coder


def _check_options(options: CoderOptions, coder: TrainableDictionary) -> None:
    """Refuse options that were given and say something else than the dictionary; starting weights do not matter."""
    default, made = CoderOptions(), coder_options(coder)
    kept = ("d_sae", "b_dec", "skip", "causal", "tied", "token_scaling")
    named = {name: getattr(options, name) for name in kept}
    if options.expansion_factor is not None:
        named["d_sae"] = round(options.expansion_factor * coder.read_widths[0])
    if options.variant != "auto":
        named["variant"] = options.variant
    for name, value in named.items():
        if value != getattr(default, name) and value != getattr(made, name):
            raise _contradiction(options, f"coder.{name}", value, getattr(made, name))
    wanted = _as_selected(options.activation, made.activation)
    if options.activation != default.activation and wanted != made.activation:
        raise _contradiction(options, "coder.activation", options.activation, made.activation)


def _as_selected(wanted: ActivationConfig, made: ActivationConfig) -> ActivationConfig:
    """``wanted`` with the weighting of ``made``, which saving folds into the weights."""
    if type(wanted) is not type(made) or not (isinstance(wanted, FixedCount) and isinstance(made, FixedCount)):
        return wanted
    return wanted.weighted(made.weight_by_decoder_norm)


def _check_sites(options: CoderOptions, coder: TrainableDictionary, layout: RowLayout) -> None:
    """Hold the dictionary's sites against the run's, and name it by those."""
    what = f"the dictionary {options.start_from}"
    theirs, ours = (coder.hook_name, coder.hook_name_out), (layout.read_name, layout.write_name)
    there, here = (f"{read}" if read == write else f"{read} -> {write}" for read, write in (theirs, ours))
    held = (coder.read_widths, coder.write_widths)
    given = tuple(tuple(width for _, width in each) for each in (layout.reads, layout.writes))
    for kind, mine, wide in zip(("read", "written"), held, given, strict=True):
        if sum(mine) != sum(wide) or (len(mine) > 1 and mine != wide):
            raise ShapeError(
                f"{what} is for {there}, sites {kind} {list(mine)} wide; the run's sites ({here}) are {list(wide)} "
                "wide. Name sites of its widths in stream.hook_names and stream.targets, or leave out coder.start_from"
            )
    if coder.reconstructs != layout.is_autoencoder and None not in theirs:
        raise ConfigError(
            f"{what} {'reconstructs what it reads' if coder.reconstructs else 'writes other sites than it reads'} "
            f"({there}), the run's sites are {here}; set or leave out stream.targets"
        )
    if theirs == ours:
        return
    if _are_sites(theirs) and not options.start_at_other_sites:
        raise ConfigError(
            f"{what} is for {there}, the run's sites are {here}; set stream.hook_names (and stream.targets) to the "
            "first, or coder.start_at_other_sites=true to train it elsewhere"
        )
    coder.bind(*ours, {})


def _are_sites(names: tuple[str | None, str | None]) -> bool:
    return all(names_site(name) for name in names)


def _contradiction(options: CoderOptions, name: str, wanted: object, made: object) -> ConfigError:
    return ConfigError(
        f"{name}={wanted} contradicts coder.start_from={options.start_from}, whose dictionary has {made}; leave "
        "out one of them"
    )
