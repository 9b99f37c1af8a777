"""Which map a model gets: the table's entry or the structural search's, and in both cases only if the numbers agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monosema.core.errors import UserError
from monosema.models.architectures import Architecture, lookup
from monosema.models.finite import check_finite
from monosema.models.heads import check_heads
from monosema.models.norms import believe_norm
from monosema.models.parts import ModelParts, take_apart
from monosema.models.shapes import check_shapes
from monosema.models.sitemap import SiteMap, build_site_map
from monosema.models.structure import search_architectures
from monosema.models.trace import trace
from monosema.models.verify import NORM_PARTS, Measurements, measure, recorded_modules


@dataclass(frozen=True, kw_only=True)
class VerifiedMap:
    """A model's map after the numerical check."""

    parts: ModelParts
    """The modules."""
    measured: Measurements
    """What the check measured."""
    sites: SiteMap
    """The sites."""


def map_model(
    hf: Any,
    run: Callable[[], Any],
    tokens_shape: tuple[int, int],
    *,
    d_model: int,
    architecture: Architecture | None = None,
) -> VerifiedMap:
    """Find a map for a transformers model and check it; ``run`` runs the model on ``probe_tokens`` of that shape.

    Raises:
        UserError: the given (or the table's) map does not fit, naming the first equations that do not hold; the
            activations are not finite; or no site is [batch, token, width].
    """
    known = architecture or lookup(hf.config.get_text_config())
    candidates = [known] if known is not None else search_architectures(hf, run, tokens_shape, d_model)
    problems: list[str] = []
    for candidate in candidates:
        found, problems = _try(hf, run, tokens_shape, d_model, candidate)
        if not problems:
            return found
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    raise UserError(
        f"the map of {type(hf).__name__} from the {candidates[-1].note} does not fit this model: "
        f"{'; '.join(problems[:3])}{more}. Sites read through it would be wrong, so it is refused. Expected a model "
        f"whose code is transformers' own for model_type {hf.config.model_type!r}"
    )


def believe_map(hf: Any, *, d_model: int) -> VerifiedMap:
    """The table's map of a model without numbers, each norm's equation by its class: for widths and shapes.

    Raises:
        UserError: the table does not have the architecture; finding its parts takes a forward pass.
    """
    known = lookup(hf.config.get_text_config())
    if known is None:
        raise UserError(
            f"model_type {hf.config.model_type!r} is not in the architecture table, so its sites are known only once "
            "its weights are loaded; nothing can be said of them before"
        )
    parts = take_apart(hf, known)
    modules = [*(block.get(part) for block in parts.blocks for part in NORM_PARTS), parts.ln_final]
    norms = {module: rule for module in modules if module is not None and (rule := believe_norm(module)) is not None}
    measured = Measurements(
        problems=(),
        norms=norms,
        embed_factor=1.0,
        is_bidirectional=False,
        unembed_reads_final_norm=False,
        normed_blocks=frozenset(),
    )
    return VerifiedMap(parts=parts, measured=measured, sites=_sites(hf, parts, measured, d_model))


def _sites(hf: Any, parts: ModelParts, measured: Measurements, d_model: int) -> SiteMap:
    n_heads = int(getattr(hf.config.get_text_config(), "num_attention_heads", 1) or 1)
    return build_site_map(parts, measured, n_heads=n_heads, d_model=d_model)


def _try(
    hf: Any, run: Callable[[], Any], tokens_shape: tuple[int, int], d_model: int, architecture: Architecture
) -> tuple[VerifiedMap, list[str]]:
    parts = take_apart(hf, architecture)
    records = trace(recorded_modules(parts), run)
    check_finite(hf, parts, records)
    measured = measure(parts, records, hf.config.get_text_config(), tokens_shape)
    sites = _sites(hf, parts, measured, d_model)
    problems = list(measured.problems)
    if not problems:
        sites = check_shapes(hf, sites, records, tokens_shape)
    if not problems and architecture.block.kind not in ("mixer", "opaque"):
        problems += check_heads(sites, run)
    return VerifiedMap(parts=parts, measured=measured, sites=sites), problems
