"""How fast a run goes on this machine: a few of its collected batches, steps and held-out contexts, timed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from monosema.core.seeds import random_stream
from monosema.data import ActivationStream, Tokens
from monosema.data.chunks import Chunk, ChunkContexts
from monosema.data.named_models import NamedModels
from monosema.evaluation import evaluate
from monosema.runs.config import RunConfig
from monosema.runs.needs import Needs
from monosema.runs.session import build_models, build_stream, coder_for
from monosema.runs.training import connection_directions
from monosema.training import INITIAL_ROWS, Trainer

T = TypeVar("T")

HARVEST_SHARE, STEPS_SHARE = 0.4, 0.5
"""Of the seconds of a measurement."""
WARM_UP = 2
"""Calls that are made before any is timed: they compile, allocate and fill caches."""
_EVALUATED_CONTEXTS = 8
_SERIALISED_BYTES = 2**26


@dataclass(frozen=True)
class Pace:
    """What was measured."""

    load: float
    """Seconds to load the models."""
    warm_up: float
    """Seconds that the first batches and steps took longer than later ones."""
    initialise: float
    """Seconds for the dictionary's first values."""
    harvest: float
    """Tokens through the model in a second."""
    step: float
    """Seconds for a step, logging included."""
    evaluation: float
    """Seconds for a held-out token; 0 where no text is held out."""
    checkpoint_byte: float
    """Seconds to make a byte of a checkpoint; the disk's own time is not in it."""


@dataclass(frozen=True)
class Times:
    """Seconds of a whole run, from a pace."""

    start: float
    """Loading models and text, compiling, the dictionary's first values."""
    harvest: float
    """Making activations."""
    steps: float
    """Training steps."""
    training: float
    """Both: their sum, or where the next chunk is collected meanwhile the first chunk and the longer of the rest."""
    checkpoints: float
    """Making checkpoints."""
    evaluation: float
    """On held-out text, at the end and in between."""
    tokens_per_second: float
    """Rows trained on in a second of ``training``."""

    @property
    def total(self) -> float:
        return self.start + self.training + self.checkpoints + self.evaluation


def times(config: RunConfig, tokens: Tokens, needs: Needs, pace: Pace, load_text: float) -> Times:
    """The times of a run with ``needs`` at ``pace``, after ``load_text`` seconds for its text."""
    harvest, steps = needs.n_model_tokens / pace.harvest, needs.n_steps * pace.step
    training = harvest + steps
    if needs.prefetch:
        first = harvest * min(1.0, needs.rows_in_chunk / needs.n_tokens)
        training = first + max(harvest - first, steps)
    heldout = tokens.heldout.n_tokens
    wanted = config.evaluation.n_tokens
    n_evaluated = heldout if wanted is None else min(wanted, heldout)
    every = config.training.eval_every
    return Times(
        start=pace.load + load_text + pace.warm_up + pace.initialise,
        harvest=harvest,
        steps=steps,
        training=training,
        checkpoints=needs.n_written_checkpoints * needs.disk.checkpoint * pace.checkpoint_byte,
        evaluation=n_evaluated * pace.evaluation * (1 + (needs.n_steps // every if every else 0)),
        tokens_per_second=needs.n_tokens / training,
    )


def measure(config: RunConfig, tokens: Tokens, needs: Needs, seconds: float) -> Pace:
    """Load the models and run about ``seconds`` of the real work at its real sizes; nothing is written or kept.

    Every draw is from a stream of its own: what a run would compute afterwards is not changed.
    """
    load, models = _timed(lambda: build_models(config))
    stream = build_stream(config.stream, models, tokens)
    stream.plan(needs.n_tokens)
    coder = coder_for(config.coder, stream.layout, NamedModels(models).record()).to(stream.device)
    coder.bind(stream.layout.read_name, stream.layout.write_name, {})
    trainer = Trainer(coder, config.training, stream.batch_size, connection_directions(config.training, coder))
    rows, n_tokens, harvest_times = _harvest(stream, HARVEST_SHARE * seconds)
    some = rows[:INITIAL_ROWS]
    initialise, _ = _timed(lambda: trainer.initialise(some))
    trainer.candidate_rows = lambda n: rows[:n]
    step_times = _steps(trainer, stream, rows, STEPS_SHARE * seconds)
    log, _ = _timed(trainer.metrics)
    harvest, step = _settled(harvest_times), _settled(step_times)
    return Pace(
        load=load,
        warm_up=sum(harvest_times) - len(harvest_times) * harvest + sum(step_times) - len(step_times) * step,
        initialise=initialise * min(INITIAL_ROWS, needs.rows_in_chunk) / len(some),
        harvest=n_tokens / (len(harvest_times) * harvest),
        step=step + log / config.training.log_every,
        evaluation=_evaluation(config, trainer, stream, tokens),
        checkpoint_byte=_checkpoint_byte(trainer),
    )


def _harvest(stream: ActivationStream, seconds: float) -> tuple[Tensor, int, list[float]]:
    """Rows of the first contexts, at least a batch; tokens collected; and how long each forward pass took."""
    contexts = stream.first_contexts()
    pieces: list[Tensor] = []
    taken: list[float] = []
    n_tokens = 0
    for start in range(0, len(contexts), stream.model_batch_size):
        some = contexts[start : start + stream.model_batch_size]
        took, chunk = _timed(partial(stream.make_chunk, ChunkContexts(0, {}, some)))
        taken.append(took)
        pieces.append(chunk.rows)
        n_tokens += some.ids.numel()
        is_enough = sum(map(len, pieces)) >= stream.batch_size and len(taken) > WARM_UP
        if is_enough and sum(taken) >= seconds:
            break
    return torch.cat(pieces), n_tokens, taken


def _steps(trainer: Trainer, stream: ActivationStream, rows: Tensor, seconds: float) -> list[float]:
    """How long each of a few steps took, serving of the batch included."""
    order = torch.randperm(len(rows), generator=random_stream(stream.seed, "pace")).to(rows.device)
    chunk = Chunk(ChunkContexts(0, {}, stream.first_contexts()[:0]), rows, order)
    n_batches = len(rows) // stream.batch_size
    taken: list[float] = []
    while trainer.step_number < trainer.n_steps and (sum(taken) < seconds or len(taken) <= WARM_UP):
        start = len(taken) % n_batches * stream.batch_size
        taken.append(_timed(partial(_step, trainer, chunk, start, stream.batch_size))[0])
    return taken


def _step(trainer: Trainer, chunk: Chunk, start: int, n_rows: int) -> None:
    trainer.step(chunk.served(start, start + n_rows))


def _settled(taken: list[float]) -> float:
    """The mean of all but the first, where there are more."""
    later = taken[WARM_UP:] or taken[-1:]
    return sum(later) / len(later)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds until ``work`` is done, on a GPU too, and what it gave."""
    _wait()
    began = time.perf_counter()
    result = work()
    _wait()
    return time.perf_counter() - began, result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _evaluation(config: RunConfig, trainer: Trainer, stream: ActivationStream, tokens: Tokens) -> float:
    """Seconds for a held-out token, from a few contexts."""
    n_contexts = min(_EVALUATED_CONTEXTS, tokens.heldout.n_contexts)
    if n_contexts == 0:
        return 0.0
    n, options = n_contexts * tokens.context_size, config.evaluation
    wanted = tokens.heldout.n_tokens if options.n_tokens is None else options.n_tokens
    share = 1.0 if options.n_loss_tokens is None else min(1.0, options.n_loss_tokens / wanted)
    coder = trainer.inference_coder()
    models = stream.models or stream.model

    def run() -> object:
        n_loss = max(tokens.context_size, round(share * n))
        return evaluate(
            coder,
            models,
            tokens,
            n_tokens=n,
            n_loss_tokens=n_loss,
            ablation=options.ablation,
            weights=False,
            progress=False,
        )

    return min(_timed(run)[0], _timed(run)[0]) / n


def _checkpoint_byte(trainer: Trainer) -> float:
    """Seconds to serialise and hash a byte of the state."""
    some: dict[str, Tensor] = {}
    for name, tensor in trainer.state_dict()[0].items():
        flat = tensor.detach().flatten()
        some[name] = flat[: _SERIALISED_BYTES // 4].cpu().contiguous()
        if sum(each.nbytes for each in some.values()) >= _SERIALISED_BYTES:
            break
    took, data = _timed(lambda: save(some))
    return (took + _timed(lambda: hashlib.sha256(data).digest())[0]) / len(data)
