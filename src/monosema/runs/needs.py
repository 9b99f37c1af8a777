"""What a run needs before anything of it is loaded: memory, operations and disk, from its config and its text.

Models and dictionary are outlines on the meta device: every size is that of the real object, none is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monosema.coders import TrainableDictionary
from monosema.core.errors import UserError
from monosema.core.files import free_disk
from monosema.core.memory import free_memory
from monosema.data import ActivationStream, Tokens
from monosema.data.cache.shards import CacheDtype
from monosema.data.cache.write import cache_bytes
from monosema.data.chunks import chunk_bytes
from monosema.data.named_models import NamedModels, split_site_name
from monosema.data.prefetch import prefetches
from monosema.data.streamed import POOL_CHUNKS
from monosema.data.tokens import TokenSplit
from monosema.models import LanguageModel
from monosema.models.load import load_outline, model_device
from monosema.runs.config import MAIN_MODEL, ModelOptions, RunConfig
from monosema.runs.session import Models, build_layout, build_stream, coder_for
from monosema.training import CheckpointPlan, Trainer
from monosema.training.memory import step_memory
from monosema.training.operations import step_operations


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one device, all that may be held at once; the evaluation at the end is left out."""

    device: str
    """Its name."""
    free: int | None
    """What it has free now; None where the system does not say."""
    parts: Mapping[str, int]
    """By what they are for."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.free is None or self.total <= self.free


@dataclass(frozen=True)
class Operations:
    """Of products of matrices, two for a multiplication and an addition; of one token."""

    model: int | None
    """Forward pass to the deepest site, attention included; None where it cannot be counted without weights."""
    encoder: int
    """The dictionary's dense encoder product."""
    rest: int
    """Everything else of its step: ``StepOperations.rest``."""
    total: int | None
    """Of the whole run: ``model`` of every token that goes through it, the others of every row trained on."""


@dataclass(frozen=True)
class Disk:
    """Bytes on disk."""

    folder: str
    """Where."""
    free: int
    """Free there now."""
    checkpoint: int
    """Of one checkpoint: state and the dictionary in it."""
    n_checkpoints: int
    """At most at once."""
    dictionary: int
    """The finished dictionary."""
    cache: int
    """An activation cache of the run's tokens, where one was asked for."""

    @property
    def total(self) -> int:
        return self.checkpoint * self.n_checkpoints + self.dictionary + self.cache

    @property
    def fits(self) -> bool:
        return self.total <= self.free


@dataclass(frozen=True)
class Needs:
    """What one run needs."""

    model_parameters: int
    """Of the language models."""
    dictionary_parameters: int
    """Of the dictionary."""
    n_steps: int
    """Training steps."""
    n_tokens: int
    """Rows trained on."""
    n_model_tokens: int
    """Tokens that go through the model for them: whole chunks of whole contexts."""
    d_sae: int
    """Latents, of a cross-layer transcoder in each layer."""
    rows_in_chunk: int
    """Rows in a shuffled chunk."""
    row_bytes: int
    """Of a row of activations."""
    prefetch: bool
    """Whether the next chunk is collected while one is trained on."""
    n_written_checkpoints: int
    """Checkpoints written in the course of the run."""
    memory: tuple[DeviceMemory, ...]
    """By device."""
    operations: Operations
    """Work."""
    disk: Disk
    """Files."""

    @property
    def fits(self) -> bool:
        return self.disk.fits and all(each.fits for each in self.memory)


def outline_models(config: RunConfig) -> Models:
    """The models of ``config`` without weights."""
    if not config.other_models:
        return _outline(config.model)
    return {key: _outline(each) for key, each in _model_options(config).items()}


def needs(
    config: RunConfig,
    models: Models,
    tokens: Tokens,
    *,
    out: Path = Path(),
    cache: CacheDtype | None = None,
    count_model: bool = True,
) -> Needs:
    """``Needs`` of the run ``config`` on outlined ``models`` and ``tokens``, in the folder ``out``.

    ``count_model=False`` leaves out the operations of the models, which take longest to count.

    Raises ``DataError`` where the text is too short for the run, ``ConfigError`` as ``train`` does.
    """
    # what an outline cannot do changes none of the sizes
    options = replace(config.stream, prefetch=None, compile=None, autocast=None)
    stream = build_stream(options, models, tokens)
    coder = _coder(config, models)
    training, batch_size = config.training, config.stream.batch_size
    plain = replace(training, autocast=None, compile=None)
    trainer = Trainer(coder, plain, batch_size, torch.empty(0, coder.d_out, device="meta"))
    n_tokens = trainer.n_steps * batch_size
    stream.plan(n_tokens)
    devices = {key: _numbered(model_device(each.source, each.device)) for key, each in _model_options(config).items()}
    prefetch = prefetches(config.stream.prefetch, config.stream.compile, list(devices.values()))
    moments = 2 * _bytes(dict(coder.named_parameters()))  # which Adam makes with the first step
    state = _bytes(trainer.state_dict()[0]) + moments + 4 * stream.chunk_size * tokens.context_size
    dictionary = _bytes(coder.state_dict())
    checkpoints = CheckpointPlan.of(training, batch_size, trainer.n_steps)
    work = step_operations(coder, training, trainer.control.sparsity)
    model = _forward_operations(stream) if count_model else None
    return Needs(
        model_parameters=sum(n.numel() for each in _named(models).values() for n in each.hf.parameters()),
        dictionary_parameters=sum(n.numel() for n in coder.parameters()),
        n_steps=trainer.n_steps,
        n_tokens=n_tokens,
        n_model_tokens=stream.n_contexts_wanted * tokens.context_size,
        d_sae=coder.config.d_sae,
        rows_in_chunk=stream.rows_in_chunk,
        row_bytes=stream.layout.width * stream.dtype.itemsize,
        prefetch=prefetch,
        n_written_checkpoints=checkpoints.n_written,
        memory=_memory(config, _named(models), devices, tokens, stream, trainer, prefetch),
        operations=Operations(
            model=model,
            encoder=work.encoder,
            rest=work.rest,
            total=None
            if model is None
            else model * stream.n_contexts_wanted * tokens.context_size + (work.encoder + work.rest) * n_tokens,
        ),
        disk=Disk(
            folder=str(out),
            free=free_disk(out),
            checkpoint=state + dictionary,
            n_checkpoints=checkpoints.n_at_once + (training.keep_best is not None),
            dictionary=dictionary,
            cache=0 if cache is None else cache_bytes(stream, n_tokens, cache),
        ),
    )


def _memory(
    config: RunConfig,
    models: Mapping[str, LanguageModel],
    devices: Mapping[str, torch.device],
    tokens: Tokens,
    stream: ActivationStream,
    trainer: Trainer,
    prefetch: bool,
) -> tuple[DeviceMemory, ...]:
    held: dict[torch.device, dict[str, int]] = {}

    def hold(device: torch.device, what: str, n_bytes: int) -> None:
        parts = held.setdefault(device, {})
        parts[what] = parts.get(what, 0) + n_bytes

    home, cpu = next(iter(devices.values())), torch.device("cpu")
    sites = {*stream.layout.reads, *stream.layout.writes}
    n_tokens = min(config.stream.model_batch_size, stream.chunk_size) * tokens.context_size
    for key, model in models.items():
        width = sum(wide for name, wide in sites if not config.other_models or split_site_name(name, models)[0] == key)
        hold(devices[key], "model", module_bytes(model.hf))
        hold(devices[key], "a forward pass", forward_bytes(model, n_tokens, width))
    rows, width = stream.rows_in_chunk, stream.layout.width
    hold(home, "chunk", chunk_bytes(rows, width * stream.dtype.itemsize) * (2 if prefetch else 1))
    step = step_memory(trainer.coder, config.training, trainer.control.sparsity, trainer.batch_size, home)
    hold(home, "dictionary", step.weights)
    hold(home, "gradients", step.gradients)
    hold(home, "optimiser", step.moments)
    hold(home, "pre-activations", step.pre_activations)
    hold(home, "a step's rows and entries", step.step)
    hold(cpu, "token ids", _token_bytes(tokens, stream))
    hold(cpu, "checkpoint snapshot", step.snapshot)
    return tuple(DeviceMemory(str(device), free_memory(device), parts) for device, parts in held.items())


def _token_bytes(tokens: Tokens, stream: ActivationStream) -> int:
    """Of the token ids of both sides; of text that is read as it is needed, of the pool chunks are drawn from."""
    train = tokens.train
    n_train = len(train) if isinstance(train, TokenSplit) else POOL_CHUNKS * stream.chunk_size
    return 4 * tokens.context_size * (n_train + len(tokens.heldout))


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    return sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))


def forward_bytes(model: LanguageModel, n_tokens: int, width: int) -> int:
    """A forward pass over ``n_tokens``: ``width`` captured columns, the stream twice, and four tensors as wide as the
    widest matrix of a block; attention's scores are left out, as most kernels never form them."""
    shapes = [parameter.shape for block in model.blocks for parameter in block.parameters() if parameter.dim() > 1]
    widest = max((max(shape[-2:]) for shape in shapes), default=model.d_model)
    return n_tokens * model.dtype.itemsize * (width + 2 * model.d_model + 4 * widest)


def _forward_operations(stream: ActivationStream) -> int | None:
    """Of a token, by torch's own counter, over one context of shapes."""
    ids = stream.first_contexts().ids[:1].to("meta")
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            NamedModels(stream.models or stream.model).capture(ids, stream.layout.hook_names)
    except UserError:
        raise
    except (RuntimeError, NotImplementedError, ValueError):  # what it computes depends on values (mixtures of experts)
        return None
    return round(counter.get_total_flops() / ids.numel())


def _coder(config: RunConfig, models: Models) -> TrainableDictionary:
    layout = build_layout(config.stream, models)
    if config.coder.start_from is not None:
        return coder_for(config.coder, layout, NamedModels(models).record()).to("meta")
    with torch.device("meta"):
        return coder_for(config.coder, layout, {})


def _outline(options: ModelOptions) -> LanguageModel:
    return load_outline(**{name: value for name, value in options.arguments().items() if name != "device"})


def _model_options(config: RunConfig) -> dict[str, ModelOptions]:
    return {MAIN_MODEL: config.model, **config.other_models}


def _named(models: Models) -> dict[str, LanguageModel]:
    return {MAIN_MODEL: models} if isinstance(models, LanguageModel) else dict(models)


def _numbered(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(prod(each.shape) * each.element_size() for each in tensors.values())
