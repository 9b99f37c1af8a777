"""A reading of a prompt as text for terminals and as static HTML for notebooks and for a page."""

from __future__ import annotations

import html

from monosema.core.page.assemble import filled
from monosema.core.printable import escaped, terminal_lines
from monosema.core.words import counted
from monosema.features.prompt_reading import PromptReading, TokenLatent, TokenReading
from monosema.features.render import number
from monosema.features.texts import visible

_MOST_WIDTH = 20
"""Characters of the column of tokens."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{title}}</title>
<style>body { font-family: system-ui, sans-serif; margin: 1rem; } table { border-collapse: collapse; }</style>
</head>
<body>
{{body}}
</body>
</html>
"""


def prompt_text(reading: PromptReading) -> str:
    """A line for each token: its latents as ``index activation (share)``; with labels a line for each latent."""
    shown = [_token(token) for token in reading.tokens]
    width = min(_MOST_WIDTH, max(map(len, shown), default=0))
    lines = [_title(reading)]
    for token, text in zip(reading.tokens, shown, strict=True):
        head = f"{token.position:>5}  {text:<{width}}"
        lines += _with_head(head, _lines(reading, token))
    return terminal_lines([*lines, *(f"note: {note}" for note in reading.notes)])


def prompt_html(reading: PromptReading) -> str:
    """Static HTML with inline styles, readable on light and dark backgrounds."""
    rows = "".join(
        f'<tr><td style="opacity:.7">{token.position}</td><td dir="auto" style="font-family:monospace">'
        f'{html.escape(_token(token))}</td><td style="text-align:left">{_latents_html(reading, token)}</td></tr>'
        for token in reading.tokens
    )
    head = '<tr><th scope="col"></th><th scope="col">token</th><th scope="col">latents: index, activation</th></tr>'
    notes = "".join(f"<div>note: {escaped(note)}</div>" for note in reading.notes)
    title = escaped(_title(reading))
    return (
        f'<div style="line-height:1.7;text-align:left"><div><b>{title}</b></div>'
        f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{notes}</div>"
    )


def prompt_page(reading: PromptReading) -> str:
    """The same as a whole page."""
    return filled(_PAGE, {"title": escaped(_title(reading)), "body": prompt_html(reading)})


def _title(reading: PromptReading) -> str:
    n, latents = counted(len(reading.tokens), "token"), counted(reading.d_sae, "latent")
    return f"{n} read by {latents} at {reading.site} of {reading.model}"


def _token(token: TokenReading) -> str:
    """Its text in one line; ``…`` where the character began in the token before."""
    return visible(token.text) if token.text else "…"


def _remark(token: TokenReading) -> str:
    """What is said of a token beside its latents."""
    if token.is_special:
        return "special, not read"
    return "norm far above the median" if token.is_outlier else ""


def _groups(reading: PromptReading, token: TokenReading) -> list[tuple[str, list[TokenLatent]]]:
    """The latents of each layer, behind the name of the site that it reads; of other dictionaries all of them."""
    if not reading.layers:
        return [("", list(token.latents))] if token.latents else []
    groups = [(name, [each for each in token.latents if each.layer == at]) for at, name in enumerate(reading.layers)]
    return [(name, latents) for name, latents in groups if latents]


def _lines(reading: PromptReading, token: TokenReading) -> list[str]:
    remark, lines = _remark(token), []
    has_labels = any(each.label for each in token.latents)
    for name, latents in _groups(reading, token):
        texts = [f"{each.index:>6} {number(each.activation)} ({each.share:.0%})" for each in latents]
        prefix = f"{name}:" if name else ""
        if has_labels:
            described = [f"{text:<22} {_label(each)}".rstrip() for text, each in zip(texts, latents, strict=True)]
            lines += [prefix, *described] if prefix else described
        else:
            lines.append(f"{prefix}{'  '.join(texts)}")
    if not lines and not token.is_special:
        lines.append("no latent is active")
    return [remark, *lines] if remark else lines


def _with_head(head: str, lines: list[str]) -> list[str]:
    return [f"{head if at == 0 else ' ' * len(head)}  {line}".rstrip() for at, line in enumerate(lines)]


def _label(latent: TokenLatent) -> str:
    return " ".join(visible(text) for text in latent.label)


def _latents_html(reading: PromptReading, token: TokenReading) -> str:
    parts = [f'<i style="opacity:.7">{_remark(token)}</i>'] if _remark(token) else []
    for name, latents in _groups(reading, token):
        chips = " ".join(map(_chip, latents))
        parts.append(f"<div>{escaped(name)} {chips}</div>" if name else chips)
    if not parts:
        parts.append('<i style="opacity:.7">no latent is active</i>')
    return " ".join(parts)


def _chip(latent: TokenLatent) -> str:
    """One colour for light and dark notebooks: the share is its opacity."""
    style = f"background:rgba(240,140,0,{0.1 + 0.5 * latent.share:.2f});border-radius:3px;padding:0 4px"
    label = f" <small>{html.escape(_label(latent))}</small>" if latent.label else ""
    return (
        f'<span style="{style}" title="{latent.share:.0%} of the largest"><b>{latent.index}</b> '
        f"{number(latent.activation)}{label}</span>"
    )
