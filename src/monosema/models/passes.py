"""What an edit is told about the forward pass it runs in: token ids, positions, padding, special and generated tokens.

Nothing is followed unless an edit asks for it. ``PassTracker.followed`` then hooks the transformers model itself, so
that the arguments of each pass are seen, and wraps its ``generate`` for as long, because only the call of ``generate``
knows where a prompt ends.
Shape letters: B sequences, T tokens of the pass, S columns: those of the key-value cache, then those of the pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from monosema.core.errors import UserError


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PassContext:
    """One forward pass as an edit sees it. Tensors are ``[B, T]``, on the device of the value edited.

    With a key-value cache a pass holds the new tokens alone: first those of the prompt, then one token at a time.
    """

    token_ids: Tensor | None
    """The token ids; None where the pass was given embeddings."""
    positions: Tensor
    """Each token's place in its own sequence, 0 for the first: padding before it does not count, cached tokens do. In a
    context of several documents, the place in the document. At padding the number means nothing."""
    is_padding: Tensor
    """True for padding, as the attention mask or ``documents_BT`` says."""
    is_special: Tensor
    """True for the model's ``special_token_ids`` (its padding token is one of them); False where ids are not known."""
    is_generated: Tensor
    """True for tokens that ``generate`` made. Outside ``generate``, for the one token of a pass behind a cache."""
    is_prompt: bool
    """Whether no token of the pass was generated."""
    n_cached: int
    """Tokens in the key-value cache before the pass, padding included."""
    number: int
    """Another for each pass of one model."""

    def to(self, device: torch.device) -> PassContext:
        """The same with tensors on ``device``."""
        if self.positions.device == device:
            return self
        moved = {name: getattr(self, name).to(device) for name in ("positions", "is_padding", "is_special")}
        ids = None if self.token_ids is None else self.token_ids.to(device)
        return replace(self, **moved, is_generated=self.is_generated.to(device), token_ids=ids)


@dataclass
class _Generation:
    """One call of ``generate``."""

    n_prompt: int
    """Columns of the prompt, padding included."""
    mask: Tensor | None
    """Its attention mask ``[sequences, n_prompt]``, if one was given."""
    n_seen: int = 0
    """Columns that passes have seen."""


@final
class PassTracker:
    """Follows the passes of one transformers model."""

    def __init__(self, hf: nn.Module, parameters: Mapping[str, Any], special_ids: frozenset[int]) -> None:
        """``parameters`` are those of the model's ``forward``, in their order."""
        self._hf, self._names, self._special = hf, tuple(parameters), tuple(sorted(special_ids))
        self._context: PassContext | None = None
        self._generations: list[_Generation] = []
        self._documents: Tensor | None = None
        self._n_followers = 0
        self._n_passes = 0
        self.is_paused = False

    def context(self, name: str) -> PassContext:
        """That of the pass that runs now; ``UserError`` where the edit of ``name`` runs in none of the whole model."""
        if self._context is None:
            raise UserError(
                f"the edit of {name!r} takes the context of a forward pass, and a part of the model runs by itself; "
                "run the whole model, or give a function of the value alone"
            )
        return self._context

    def end(self) -> None:
        """The pass is over, however it ended."""
        self._context = None

    @contextmanager
    def one(self, documents_BT: Tensor | None) -> Iterator[None]:
        """Around one pass, over contexts whose documents are numbered so."""
        before, self._documents = self._documents, documents_BT
        try:
            yield
        finally:
            self._documents = before
            self.end()  # a pass that is stopped early calls no hook

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Inside, passes have a context."""
        with ExitStack() as stack:
            if self._n_followers == 0:
                self._follow(stack)
            self._n_followers += 1
            try:
                yield
            finally:
                self._n_followers -= 1

    def _follow(self, stack: ExitStack) -> None:
        before = self._hf.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
        stack.callback(before.remove)
        after = self._hf.register_forward_hook(lambda *_: self.end(), always_call=True)
        stack.callback(after.remove)
        stack.callback(self.end)
        generate = getattr(self._hf, "generate", None)
        if generate is not None:
            own = self._hf.__dict__.get("generate")
            self._hf.__dict__["generate"] = self._watched(generate)
            stack.callback(_restore, self._hf, own)

    def _watched(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._generations.append(_generation(args, kwargs))
            try:
                return generate(*args, **kwargs)
            finally:
                self._generations.pop()

        return run

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_paused:
            return
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        rows = ids if ids is not None else given.get("inputs_embeds")
        if not isinstance(rows, Tensor) or rows.dim() < 2:
            self._context = None
            return
        self._n_passes += 1
        self._context = self._context_of(given, ids, rows.shape[0], rows.shape[1], rows.device)

    def _context_of(
        self, given: Mapping[str, Any], ids: Tensor | None, n_batch: int, n_tokens: int, device: torch.device
    ) -> PassContext:
        generation = self._generations[-1] if self._generations else None
        n_cached = _n_cached(given, n_tokens, generation)
        if generation is not None:
            generation.n_seen = n_cached + n_tokens
        positions, is_padding = self._places(given, (n_batch, n_tokens), n_cached, generation, device)
        continues = n_cached > 0 and n_tokens == 1
        n_prompt = generation.n_prompt if generation is not None else n_cached if continues else n_cached + n_tokens
        columns = torch.arange(n_cached, n_cached + n_tokens, device=device)
        special = torch.tensor(self._special, dtype=torch.int64, device=device)
        return PassContext(
            token_ids=ids,
            positions=positions,
            is_padding=is_padding,
            is_special=torch.zeros_like(is_padding) if ids is None else torch.isin(ids, special),
            is_generated=(columns >= n_prompt).expand(n_batch, -1),
            is_prompt=n_cached + n_tokens <= n_prompt,
            n_cached=n_cached,
            number=self._n_passes,
        )

    def _places(
        self,
        given: Mapping[str, Any],
        shape: tuple[int, int],
        n_cached: int,
        generation: _Generation | None,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Positions and padding ``[B, T]``."""
        n_batch, n_tokens = shape
        if self._documents is not None and self._documents.shape == shape:
            documents = self._documents.to(device)
            columns = torch.arange(n_tokens, device=device).expand(shape)
            begins = torch.ones_like(documents, dtype=torch.bool)
            begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
            return columns - torch.where(begins, columns, 0).cummax(1).values, documents < 0
        mask_BS = _mask(given, n_batch, n_cached + n_tokens, generation, device)
        if mask_BS is None:
            positions = torch.arange(n_cached, n_cached + n_tokens, device=device).expand(shape)
            is_padding = torch.zeros(shape, dtype=torch.bool, device=device)
        else:
            positions = (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, -n_tokens:]
            is_padding = ~mask_BS[:, -n_tokens:]
        told = given.get("position_ids")
        if isinstance(told, Tensor) and told.dim() == 2 and told.shape[1] == n_tokens:
            positions = told.to(device).expand(shape)
        return positions, is_padding


def takes_context(function: Callable[..., Any], name: str) -> bool:
    """Whether an edit function takes the context of the pass behind the value: whether it has a second argument without
    a default. Functions without a signature that Python can read take the value alone.

    Raises ``UserError`` for one that needs other arguments.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.default is each.empty and each.kind in positional]
    keywords = [each for each in parameters if each.default is each.empty and each.kind is each.KEYWORD_ONLY]
    if len(needed) > 2 or keywords:
        names = ", ".join(each.name for each in (*needed, *keywords))
        raise UserError(
            f"the edit of {name!r} needs the arguments {names}; expected a function of the value, or of the value and "
            "the pass's context. Bind others with functools.partial or give them defaults"
        )
    return len(needed) == 2


def _restore(hf: nn.Module, own: Any) -> None:
    hf.__dict__.pop("generate", None)
    if own is not None:
        hf.__dict__["generate"] = own


def _generation(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Generation:
    embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
    prompt = next((each for each in (embeds, *args[:1], kwargs.get("inputs"), ids) if isinstance(each, Tensor)), None)
    n_prompt = 1 if prompt is None else prompt.shape[1]  # without one, generation begins behind a BOS token
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] != n_prompt:
        return _Generation(n_prompt, None)
    return _Generation(n_prompt, mask.bool())


def _n_cached(given: Mapping[str, Any], n_tokens: int, generation: _Generation | None) -> int:
    """How many columns lie in the cache before a pass of ``n_tokens``."""
    mask, cache = given.get("attention_mask"), given.get("past_key_values")
    if cache is None:
        # State-space models keep a state, which does not say how long it is.
        return generation.n_seen if generation is not None and given.get("cache_params") is not None else 0
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > n_tokens:
        return mask.shape[1] - n_tokens
    if isinstance(cache, tuple):
        return int(cache[0][0].shape[-2])
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return 0 if generation is None else generation.n_seen


def _mask(
    given: Mapping[str, Any], n_batch: int, n_columns: int, generation: _Generation | None, device: torch.device
) -> Tensor | None:
    """``[B, S]`` bool: which columns are not padding; None where nothing says so."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == (n_batch, n_columns):
        return mask.to(device).bool()
    if generation is None or generation.mask is None or n_batch % len(generation.mask):
        return None
    known = generation.mask.to(device).repeat_interleave(n_batch // len(generation.mask), 0)[:, :n_columns]
    generated = known.new_ones(n_batch, n_columns - known.shape[1])
    return torch.cat([known, generated], dim=1)
