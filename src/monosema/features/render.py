"""A feature as text for terminals and as static HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

from monosema.core.printable import escaped, terminal_lines
from monosema.core.words import counted
from monosema.features.feature import Feature, FeatureContext, LogitEffect
from monosema.features.texts import visible

BEFORE, AFTER = 16, 8
"""Tokens shown around the maximum."""
_MARKED_SHARE = 0.5
_BARS = "▁▂▃▄▅▆▇█"


def feature_text(feature: Feature) -> str:
    """Several lines; ``«…»`` marks tokens on which the latent fires at half its context's maximum or more."""
    lines = [f"latent {feature.index} of {feature.site}"]
    if not feature.is_alive:
        return f"{lines[0]}\n  never fired on {counted(feature.n_tokens, 'token')}"
    lines.append(
        f"  density {number(feature.density)} ({feature.count:,} of {counted(feature.n_tokens, 'token')})   "
        f"maximum {number(feature.maximum)}   mean {number(feature.mean)}"
    )
    counts = used_bins(feature.histogram.counts)
    bars = "".join(" " if count == 0 else _BARS[min(7, 8 * count // (max(counts) + 1))] for count in counts)
    lines.append(f"  activations   0 {bars} {number(len(counts) * feature.histogram.bin_width)}")
    if feature.top_logits is None or feature.bottom_logits is None:
        lines.append(f"  {feature.logits_note}")
    else:
        lines.append(f"  top logits    {_logits_text(feature.top_logits)}")
        lines.append(f"  bottom logits {_logits_text(feature.bottom_logits)}")
    lines += [_context_text(context) for context in feature.contexts]
    return terminal_lines(lines)


def feature_html(feature: Feature) -> str:
    """Static HTML with inline styles, readable on light and dark backgrounds."""
    title = escaped(f"latent {feature.index} of {feature.site}")
    if not feature.is_alive:
        return f"<div><b>{title}</b><br>never fired on {counted(feature.n_tokens, 'token')}</div>"
    parts = [
        f"<div><b>{title}</b><br>density {number(feature.density)} ({feature.count:,} of "
        f"{counted(feature.n_tokens, 'token')})"
        f" · maximum {number(feature.maximum)} · mean {number(feature.mean)}</div>",
        _histogram_svg(feature),
    ]
    if feature.top_logits is None or feature.bottom_logits is None:
        parts.append(f"<div>{escaped(feature.logits_note or '')}</div>")
    else:
        parts.append(f"<div>top logits: {_logits_html(feature.top_logits)}</div>")
        parts.append(f"<div>bottom logits: {_logits_html(feature.bottom_logits)}</div>")
    parts += [_context_html(context, feature.maximum) for context in feature.contexts]
    return f'<div style="line-height:1.6;text-align:left">{"".join(parts)}</div>'


def number(value: float) -> str:
    """Three significant digits, without a power of ten where that is short."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f}" if abs(value) >= 1 else f"{value:.3g}"
    return f"{value:.2e}"


def used_bins(counts: Sequence[int]) -> Sequence[int]:
    """The bins up to the last that is not empty."""
    last = max((index for index, count in enumerate(counts) if count), default=-1)
    return counts[: last + 1]


def _logits_text(effects: Sequence[LogitEffect]) -> str:
    return "  ".join(f"{visible(effect.text)} {effect.value:+.2f}" for effect in effects)


def _context_text(context: FeatureContext) -> str:
    texts = []
    for span in context.window(BEFORE, AFTER):
        shown = visible(span.text)
        texts.append(f"«{shown}»" if span.value >= _MARKED_SHARE * context.maximum else shown)
    return f"  {number(context.maximum):>8}  {''.join(texts)}"


def _logits_html(effects: Sequence[LogitEffect]) -> str:
    return " ".join(
        f'<code style="border:1px solid rgba(128,128,128,.4);border-radius:3px;padding:0 3px">'
        f"{html.escape(visible(effect.text))}</code>&nbsp;<small>{effect.value:+.2f}</small>"
        for effect in effects
    )


def _context_html(context: FeatureContext, maximum: float) -> str:
    spans = []
    for span in context.window(BEFORE, AFTER):
        text = html.escape(visible(span.text))
        if span.value > 0:
            # one colour for light and dark notebooks: strength is its opacity
            shade = 0.1 + 0.6 * span.value / maximum
            style = f"background:rgba(240,140,0,{shade:.2f});border-radius:2px"
            text = f'<span style="{style}" title="{number(span.value)}">{text}</span>'
        spans.append(text)
    head = f'<small style="opacity:.7">{number(context.maximum)}</small>'
    return f'<div dir="auto" style="font-family:monospace;overflow-wrap:anywhere">{head} {"".join(spans)}</div>'


def _histogram_svg(feature: Feature) -> str:
    counts = used_bins(feature.histogram.counts)
    width, height, step = 240, 40, 240 / len(counts)
    bars = []
    for index, count in enumerate(counts):
        if count:
            low, high = index * feature.histogram.bin_width, (index + 1) * feature.histogram.bin_width
            tall = max(1.0, height * count / max(counts))
            bars.append(
                f'<rect x="{index * step:.1f}" y="{height - tall:.1f}" width="{max(step - 1, 0.5):.1f}" '
                f'height="{tall:.1f}" fill="#e08a00"><title>{number(low)} to {number(high)}: '
                f"{counted(count, 'token')}</title></rect>"
            )
    label = f"histogram of activations, 0 to {number(len(counts) * feature.histogram.bin_width)}"
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{label}">{"".join(bars)}</svg>'
