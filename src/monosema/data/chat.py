"""Conversations as text, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monosema.core.errors import ConfigError, DataError, first_line

CONVERSATION_COLUMNS = ("conversation", "conversations", "messages")
"""Where datasets keep conversations."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
"""ShareGPT's names of the speakers, which templates do not know."""


def is_conversation(value: Any) -> bool:
    """Whether ``value`` is a list of messages: {role, content} or {from, value}."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) > 0
        and all(isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value)
    )


def conversation_text(messages: Sequence[Mapping[str, Any]], tokenizer: Any, where: str) -> str:
    """``messages`` as ``tokenizer.apply_chat_template`` writes them, special tokens as text.

    Raises ``ConfigError`` where the tokenizer has no template, ``DataError`` naming ``where`` for messages that it
    refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{where} holds conversations, and the tokenizer has no chat template; use the chat model's tokenizer "
            "(model.tokenizer), set tokenizer.chat_template, or name a column of plain text with column="
        )
    import jinja2

    plain = [_message(each, where) for each in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False))
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        why = first_line(error)
        raise DataError(f"{where}: the tokenizer's chat template refuses the conversation ({why})") from error


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "role" in message:
        return dict(message)
    if "value" not in message:
        raise DataError(f"{where}: a message has 'from' and no 'value'; expected {{role, content}} or {{from, value}}")
    return {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
