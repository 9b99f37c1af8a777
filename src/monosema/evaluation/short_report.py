"""The figures of a report that a reader needs first, in about a dozen lines."""

from __future__ import annotations

from monosema.core.printable import terminal_lines
from monosema.core.words import counted
from monosema.evaluation.report import ModelLosses, Report, between, labelled, shown


def short_report(report: Report) -> str:
    """Title, main figures with their intervals, on how much text they were measured, and all notes.

    ``str(report)`` has every figure. Each figure here is the report's of that name.
    """
    rows = [("fve", _figure(report, "fve"), "variance explained")]
    if report.fve_all_rows is not None:
        rows.append(("fve_all_rows", shown(report.fve_all_rows), "with the rows left out for their norm"))
    rows += _losses(report, "")
    for name, losses in (report.models or {}).items():
        rows += _losses(losses, f" of {name}")
    rows += [
        ("l0", _figure(report, "l0"), f"latents per token, of {report.d_sae:,}"),
        ("dead_fraction", _figure(report, "dead_fraction"), "latents that never fired"),
        ("norm_ratio", _figure(report, "norm_ratio"), "length of the reconstruction; below 1 is shrinkage"),
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{width}}  {text:<26}  {meaning}".rstrip() for name, text, meaning in rows]
    return terminal_lines([report.title, *lines, f"  {'on':<{width}}  {_on(report)}", *labelled("note", report.notes)])


def _figure(of: Report | ModelLosses, name: str) -> str:
    return between(getattr(of, name), of.intervals.get(name))


def _losses(of: Report | ModelLosses, of_model: str) -> list[tuple[str, str, str]]:
    """The rows of what the predictions lose; none where it was not measured."""
    if of.ce_loss_score is None:
        return []
    entropies = " / ".join(shown(value) for value in (of.ce_clean, of.ce_spliced, of.ce_ablated) if value is not None)
    return [
        (f"ce_loss_score{of_model}", _figure(of, "ce_loss_score"), "of the loss that ablation adds, recovered"),
        (f"cross-entropy{of_model}", entropies, "clean / reconstructed / ablated, nats"),
        (f"kl_score{of_model}", _figure(of, "kl_score"), "the same of KL divergence"),
    ] + (
        []
        if of.pattern_kl_score is None
        else [(f"pattern_kl_score{of_model}", _figure(of, "pattern_kl_score"), "the same of attention patterns")]
    )


def _on(report: Report) -> str:
    documents = "" if report.n_documents is None else f" of {counted(report.n_documents, 'document')}"
    predicted = "" if report.n_predicted_tokens is None else f", {counted(report.n_predicted_tokens, 'prediction')}"
    overlap = {"none": ", not trained on", "same tokens": ", trained on", "unknown": ""}[report.overlap]
    return (
        f"{counted(report.n_tokens, 'token')}{documents} ({report.split or 'split not recorded'}{overlap}){predicted}"
    )
