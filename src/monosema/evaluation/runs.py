"""Everything about one evaluation with a model: the sites, the batches, and the runs over each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from monosema.coders import Dictionary
from monosema.core.errors import ConfigError, ShapeError, UserError
from monosema.core.progress import Progress
from monosema.evaluation.contexts import EvaluationContexts
from monosema.evaluation.losses import (
    LossSums,
    Task,
    choose_masked,
    compare_runs,
    masked_token_task,
    next_token_task,
)
from monosema.evaluation.measure import RowSums, measure_rows
from monosema.evaluation.report import Ablation
from monosema.models import LanguageModel


@dataclass(frozen=True)
class Sites:
    """Where the coder reads and writes: hook names, in the order in which they lie side by side in its rows."""

    read: tuple[str, ...]
    """The sites read."""
    written: tuple[str, ...]
    """The sites written; the same for an SAE."""
    widths_written: tuple[int, ...]
    """Their widths, which add up to ``d_out``."""

    @property
    def names(self) -> list[str]:
        """All of them, once each."""
        return list(dict.fromkeys(self.read + self.written))


def sites_of(coder: Dictionary, model: LanguageModel, *, to_be_written: bool) -> Sites:
    """The coder's sites in ``model`` (several are joined by ``+`` in its hook names).

    Raises ``ConfigError`` where the coder names none, ``UnknownNameError`` where the model has no such site,
    ``ShapeError`` where widths differ, and ``UserError`` where a site cannot be written but must be.
    """
    if not coder.hook_name or not coder.hook_name_out:
        raise ConfigError(
            "the coder does not say which site it reads; train it on a stream, or name its sites with "
            "coder.bind(hook_name, hook_name_out, {})"
        )
    read = [model.site(name) for name in coder.hook_name.split("+")]
    written = [model.site(name) for name in coder.hook_name_out.split("+")]
    for sites, name, width in ((read, "d_in", coder.d_in), (written, "d_out", coder.d_out)):
        found = sum(site.width for site in sites)
        if found != width:
            raise ShapeError(
                f"the coder's {name} is {width}, but {'+'.join(site.name for site in sites)!r} of {model.name} is "
                f"{found} wide; was it trained on another model or site?"
            )
    for site in written:
        if to_be_written and not site.writable:
            raise UserError(
                f"{site.name!r} of {model.name} can be read but not written, so nothing can be put in its place "
                f"({site.read_only_reason}); use losses=False"
            )
    return Sites(
        tuple(site.name for site in read), tuple(site.name for site in written), tuple(site.width for site in written)
    )


def side_by_side(values: Mapping[str, Tensor], names: tuple[str, ...], counted: Tensor) -> Tensor:
    """The rows ``[n, sum of widths]`` of ``values [B, T, width]`` at the positions ``counted [B, T]``."""
    device = values[names[0]].device
    rows = [values[name][counted.to(values[name].device)].to(device) for name in names]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


@dataclass(frozen=True)
class ModelRuns:
    """One evaluation with a model: all is decided, nothing measured yet."""

    coder: Dictionary
    """The coder evaluated."""
    model: LanguageModel
    """The model it reads."""
    sites: Sites
    """Where."""
    chosen: EvaluationContexts
    """On what."""
    batch_size: int
    """Contexts in a forward pass."""
    ablation: Ablation
    """What the site becomes in the ablated run."""
    mask_token_id: int | None = None
    """Put at the positions an encoder must predict; None for a decoder."""
    seed: int = 0
    """Which positions those are."""

    def measure(self, progress: Progress) -> tuple[RowSums, LossSums]:
        """The sums over all contexts, and over those that are also run spliced and ablated."""
        masked = None if self.mask_token_id is None else choose_masked(self.chosen.special, self.seed)
        level = self._ablated_level()
        rows, losses = RowSums.empty(self.coder), LossSums.empty()
        for index, part in enumerate(self._batches(0, len(self.chosen.contexts))):
            where = f"{'+'.join(self.sites.read)!r}, batch {index}"
            contexts, special = self._to_model(self.chosen.contexts[part]), self._to_model(self.chosen.special[part])
            if part.start >= self.chosen.n_loss_contexts:
                rows = rows + self._reconstruct(self._capture(contexts), special, where)[0]
            elif masked is None or self.mask_token_id is None:
                logits, values = self._clean_run(contexts)
                sums, x_hat = self._reconstruct(values, special, where)
                rows = rows + sums
                task = next_token_task(contexts, special)
                losses = losses + self._compare(task, logits, values, special, x_hat, level, where)
            else:
                rows = rows + self._reconstruct(self._capture(contexts), special, where)[0]
                task = masked_token_task(contexts, self._to_model(masked[part]), self.mask_token_id)
                logits, values = self._clean_run(task.tokens)
                x_hat = self._reconstruct(values, special, where)[1]
                losses = losses + self._compare(task, logits, values, special, x_hat, level, where)
            progress.advance(contexts.numel())
        return rows, losses

    def _batches(self, start: int, stop: int) -> Iterator[slice]:
        """``start:stop`` in slices of at most ``batch_size``, none of which crosses ``n_loss_contexts``."""
        while start < stop:
            end = min(start + self.batch_size, stop)
            if start < self.chosen.n_loss_contexts < end:
                end = self.chosen.n_loss_contexts
            yield slice(start, end)
            start = end

    def _to_model(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.device)

    def _reconstruct(self, values: Mapping[str, Tensor], special: Tensor, where: str) -> tuple[RowSums, Tensor]:
        """The sums over positions that are not special, and their reconstructions ``[n, d_out]``."""
        x = side_by_side(values, self.sites.read, ~special)
        same = self.sites.written == self.sites.read
        measured = measure_rows(self.coder, x, x if same else side_by_side(values, self.sites.written, ~special), where)
        return measured.sums, measured.x_hat

    def _compare(
        self,
        task: Task,
        clean_logits: Tensor,
        values: Mapping[str, Tensor],
        special: Tensor,
        x_hat: Tensor,
        level: Tensor,
        where: str,
    ) -> LossSums:
        """The spliced and the ablated run; both start from the sites' clean values, kept at special positions."""
        spliced: dict[str, Tensor] = {}
        ablated: dict[str, Tensor] = {}
        widths = list(self.sites.widths_written)
        for name, new, zero in zip(self.sites.written, x_hat.split(widths, 1), level.split(widths), strict=True):
            clean = values[name]
            edited = ~special.to(clean.device)
            spliced[name], ablated[name] = clean.clone(), clean.clone()
            spliced[name][edited] = new.to(device=clean.device, dtype=clean.dtype)
            ablated[name][edited] = zero.to(device=clean.device, dtype=clean.dtype)
        return compare_runs(self.model, task, clean_logits, spliced, ablated, where)

    def _clean_run(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the sites' values from one forward pass, recorded by an edit that changes nothing."""
        values: dict[str, Tensor] = {}

        def recorder(name: str) -> Callable[[Tensor], Tensor]:
            def record(value: Tensor) -> Tensor:
                values[name] = value.detach().clone()  # the model may continue in place
                return value

            return record

        writable = [name for name in self.sites.names if self.model.site(name).writable]
        with self.model.edits({name: recorder(name) for name in writable}):
            logits = self.model(tokens)
        read_only = [name for name in self.sites.names if name not in values]
        return logits, values | (self.model.capture(tokens, read_only) if read_only else {})

    def _capture(self, tokens: Tensor) -> dict[str, Tensor]:
        return self.model.capture(tokens, self.sites.names)

    def _ablated_level(self) -> Tensor:
        """``[d_out]``: what the sites written become in the ablated run. The mean takes a pass of its own."""
        total, n_rows = torch.zeros(self.coder.d_out, dtype=torch.float64), 0
        if self.ablation == "zero":
            return total
        for part in self._batches(0, self.chosen.n_loss_contexts):
            values = self.model.capture(self._to_model(self.chosen.contexts[part]), self.sites.written)
            rows = side_by_side(values, self.sites.written, ~self.chosen.special[part])
            total, n_rows = total + rows.cpu().to(torch.float64).sum(0), n_rows + len(rows)
        return total / max(1, n_rows)
