"""A safetensors file, or an error that names it and what to do."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monosema.core.errors import FileError
from monosema.core.files import require_regular


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors in ``path``; ``FileError`` where it is missing, cut short or something else."""
    fix = "download or copy it again (ms.load(..., force_download=True) for what came from the hub), or save it anew"
    try:
        require_regular(path)
        return load_file(path)
    except FileNotFoundError as error:
        raise FileError(f"no {path.name} in {path.parent}; {fix}") from error
    except (SafetensorError, KeyError, RuntimeError) as error:  # the latter: types and shapes that torch has not
        raise FileError(
            f"cannot read {path}: the file is cut short or is no safetensors file ({error}); {fix}"
        ) from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
