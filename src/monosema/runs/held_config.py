"""What ``config.yaml`` of a run folder holds, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monosema.core.config import load_plain
from monosema.core.errors import UserError

CONFIG = "config.yaml"


def held_config(folder: Path) -> Mapping[str, Any] | None:
    """What ``config.yaml`` of a run folder holds; None where there is none that can be read."""
    file = folder / CONFIG
    try:
        return load_plain(file) if file.is_file() else None
    except UserError:
        return None  # the run itself says what is wrong with it
