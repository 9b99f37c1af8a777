"""What transformers raises while it loads a model or a tokenizer, as an error that names its own cause and fix.

A missing package, damaged weights, an unknown architecture and a wrong path need different fixes, but transformers
raises ``OSError`` and ``ValueError`` for most of them. Only what is about the place is told as a wrong path. Out of
memory stays ``MemoryError`` or ``torch.OutOfMemoryError``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import re
from collections.abc import Iterator

from safetensors import SafetensorError

from monosema.core.errors import ConfigError, FileError, MissingExtraError, UserError, first_line

CONSENT = "pass trust_remote_code=True (on the command line --model.trust-remote-code)"
_PACKAGES = ("accelerate", "sentencepiece", "protobuf", "tiktoken", "bitsandbytes", "optimum")
_PIP = re.compile(r"pip install (?:-\S+ )*['\"]?([A-Za-z][\w.-]*)")
_PLACE = (
    "Expected a folder with config.json and weights, or a hub id that exists and can be reached (offline, only what is "
    "in the local cache; gated models need token=...), or 'builtin', the model that comes with the package"
)


@contextlib.contextmanager
def model_said_plainly(path: str, data_only: bool = False) -> Iterator[None]:
    """Inside, what stops ``path`` from being loaded as a model is raised as a ``UserError`` with its cause.

    ``data_only`` says that a dictionary named the model, of which safetensors alone are read.
    """
    try:
        yield
    except UserError:
        raise
    except SafetensorError as error:
        raise FileError(
            f"the weights of {path!r} are damaged: {first_line(error)}. Copy or download the safetensors files again"
        ) from error
    except (ImportError, OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError) as error:
        _keep_out_of_memory(error)
        if data_only and isinstance(error, (OSError, ValueError)) and "safetensors" in str(error):
            raise UserError(
                f"cannot load {path!r}: {first_line(error)}. A model that a dictionary names is read from safetensors "
                f"alone; to read other weights of it, name it yourself: model={path!r} (--model {path})"
            ) from error
        told = _model_error(path, error)
        if told is None:
            raise
        raise told from error


@contextlib.contextmanager
def tokenizer_said_plainly(path: str) -> Iterator[None]:
    """Inside, what stops ``path`` from being loaded as a tokenizer is raised as a ``UserError`` with its cause."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        _keep_out_of_memory(error)
        if "trust_remote_code" in str(error):
            raise UserError(_needs_consent(path)) from error
        package = _missing_package(error)
        if package == "tiktoken" and importlib.util.find_spec("sentencepiece") is None:
            package = "sentencepiece protobuf"  # transformers tries it first, and only names what it tried last
        if package is not None:
            raise _missing(f"the tokenizer of {path!r}", package, error) from error
        raise UserError(
            f"cannot load a tokenizer from {path!r}: {first_line(error)}. Pass tokenizer=... (an object, a hub id, a "
            "folder, or False for none)"
        ) from error


def _keep_out_of_memory(error: Exception) -> None:
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        raise MemoryError(str(error)) from error


def _model_error(path: str, error: Exception) -> UserError | None:
    """The error for users; ``None`` where nothing is known of the cause (out of memory among them)."""
    text, line = str(error), first_line(error)
    if isinstance(error, KeyError | EOFError):
        return FileError(
            f"cannot load {path!r}: its weights cannot be read ({type(error).__name__}: {line}). Copy or download "
            "the files again, or ask for their authors' safetensors files"
        )
    if isinstance(error, TypeError):
        if "unexpected keyword argument" not in text:
            return None
        return ConfigError(f"cannot load {path!r}: {line}. model_kwargs holds arguments of from_pretrained only")
    if isinstance(error, RuntimeError):
        if "ignore_mismatched_sizes" not in text and "size mismatch" not in text:
            return None
        return UserError(
            f"cannot load {path!r}: its weights have other shapes than its config.json says ({line}). Expected the "
            "config.json that was saved with these weights"
        )
    if "does not recognize this architecture" in text:
        return UserError(
            f"cannot load {path!r}: {line}. Expected a config.json whose model_type the installed transformers knows; "
            "for a newer model, run: pip install --upgrade transformers"
        )
    if "trust_remote_code" in text:
        return UserError(_needs_consent(path))
    package = _missing_package(error)
    if package is not None:
        return _missing(repr(path), package, error)
    if isinstance(error, ImportError):
        return MissingExtraError(f"loading {path!r} needs a package that is not installed: {line}")
    if "gated repo" in text:
        return UserError(
            f"cannot load {path!r}: {line}. Accept its terms on its page of the hub, then pass token=... or set "
            "HF_TOKEN"
        )
    if "o file named" in text:
        return UserError(
            f"cannot load {path!r}: {line}. Expected the weights beside config.json, as model.safetensors (or its "
            "shards with model.safetensors.index.json) or pytorch_model.bin"
        )
    return UserError(f"cannot load {path!r}: {line}" + (f". {_PLACE}" if _is_about_the_place(error) else ""))


def _needs_consent(path: str) -> str:
    return (
        f"{path!r} comes with code of its own, which does not run unless you consent. Read that code first; if you "
        f"trust it, {CONSENT}. No file can consent for you, not even one of a run that was started so"
    )


def _is_about_the_place(error: Exception) -> bool:
    return isinstance(error, OSError) or "Unrecognized model" in str(error)


def _missing_package(error: Exception) -> str | None:
    """The package that ``error`` asks for, by its pip line, or as a known package that is not installed."""
    text = str(error)
    named = [each for each in _PACKAGES if each in text.lower()] if isinstance(error, ImportError) else []
    found = _PIP.search(text)
    candidates = ([found[1]] if found else []) + named
    modules = {"protobuf": "google.protobuf"}
    return next((each for each in candidates if not _is_installed(modules.get(each, each))), None)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.replace("-", "_")) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _missing(what: str, package: str, error: Exception) -> MissingExtraError:
    return MissingExtraError(
        f"loading {what} needs {package.replace(' ', ' and ')}, not installed here ({first_line(error)}). Run: "
        f"pip install {package}"
    )
