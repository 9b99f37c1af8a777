"""``LanguageModel``: a transformers model with named activations that can be read and edited."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from monosema.core.errors import DataError, ShapeError, UserError, first_line, unknown_name
from monosema.core.peers_attributes import OF_MODEL, hints_attributes
from monosema.models.architectures import Architecture
from monosema.models.calls import Side
from monosema.models.captured import CapturedValues
from monosema.models.documents import Cut, check_documents, find_cut, has_several, refuse_several
from monosema.models.fingerprint import weights_fingerprint
from monosema.models.hooks import Action, ContextEdit, EditFunction, ForwardStopped, Interceptor, ValueEdit
from monosema.models.mapping import believe_map, map_model
from monosema.models.pairs import is_part_of_pair, refuse_pair
from monosema.models.passes import PassTracker, takes_context
from monosema.models.sites import BLOCK_NAMES, MODEL_NAMES, ON_REQUEST, Site, one_head, split_head, split_name
from monosema.models.taps import LAST_RANK, FlatTap, Tap
from monosema.models.trace import trace
from monosema.models.verify import probe_tokens

SiteName = str | nn.Module
"""A hook name, one head of it (``blocks.2.attn.hook_z[3]``), a module path ending in ``:in`` or ``:out``, or a module
(its output)."""

_UNEMBED_CHUNK = 8192


@dataclass(frozen=True)
class _Place:
    """A site and how to reach it."""

    site: Site
    tap: Tap
    columns: slice | None = None
    """The site's columns in the tap's value, where it is not the whole of it."""


@final
@hints_attributes(OF_MODEL)
class LanguageModel:
    """A transformers model, its tokenizer, and its sites.

    Built by ``load_model``. The model is put into eval mode and otherwise left as it is: weights, ``requires_grad`` and
    the attention implementation are never touched (but for one pass of ``patterns.attention_pattern``), and hooks exist
    only while a ``capture`` or ``edits`` is active.
    Shape letters: B batch, T token, V vocabulary, N number of directions, D d_model.
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any | None,
        *,
        name: str,
        forward_kwargs: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        architecture: Architecture | None = None,
        is_outline: bool = False,
    ) -> None:
        """Map and check a model that is in memory.

        Args:
            hf: the transformers model, a decoder or an encoder.
            tokenizer: its transformers tokenizer, or None.
            name: what to call it in records and reports.
            forward_kwargs: arguments added to every forward pass.
            provenance: JSON-able facts about where it came from, kept in ``record()``.
            architecture: a map to use in place of the table's or the structural search's; checked like those.
            is_outline: whether the weights are on the meta device, where the table's map cannot be checked.

        Raises:
            UserError: the model is an encoder-decoder, or its map does not pass the numerical check.
        """
        self._parameters = inspect.signature(hf.forward).parameters
        if is_part_of_pair(hf, self._parameters):
            raise refuse_pair(hf, lambda encoder: LanguageModel(encoder, None, name=name, is_outline=is_outline))
        _check_reads_tokens(hf)
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self._provenance = dict(provenance or {})
        # No key-value cache: nothing is generated here, and it would keep every layer's keys and values alive.
        # Without one, transformers looks at the values of positions, which an outline has not.
        defaults = {"use_cache": is_outline} if "use_cache" in self._parameters else {}
        self.forward_kwargs: dict[str, Any] = defaults | dict(forward_kwargs or {})
        config = hf.config.get_text_config()
        self.d_model: int = int(config.hidden_size)
        self.vocab_size: int = int(hf.get_input_embeddings().weight.shape[0])
        self.context_size: int | None = _context_size(hf, config)
        self.special_token_ids: frozenset[int] = _special_token_ids(config, tokenizer)
        self._passes = PassTracker(hf, self._parameters, self.special_token_ids)
        self._interceptor = Interceptor(self._passes)
        probe_BT = probe_tokens(self.vocab_size, self.special_token_ids, self.device, self.context_size)
        self._probe_BT = probe_BT
        if is_outline:
            self._map = believe_map(hf, d_model=self.d_model)
        else:
            self._map = map_model(
                hf,
                self._run_probe,
                (probe_BT.shape[0], probe_BT.shape[1]),
                d_model=self.d_model,
                architecture=architecture,
            )
        self.n_layers: int = len(self._map.parts.blocks)
        self.is_encoder: bool = self._map.measured.is_bidirectional
        self._module_sites: dict[str, _Place] = {}
        self._cut: Cut | None = None

    @property
    def device(self) -> torch.device:
        """Where tokens go: the device of the token embedding."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations, which is that of the weights."""
        return self.hf.dtype

    @property
    def has_head(self) -> bool:
        """Whether it predicts tokens: reward models, classifiers and bare ``AutoModel`` classes do not."""
        return self.hf.get_output_embeddings() is not None

    @property
    def has_layer_norm(self) -> bool:
        """Whether a norm of the model subtracts the mean, as LayerNorm does and RMSNorm does not."""
        return any(rule.centred for rule in self._map.measured.norms.values())

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Every hook name this model defines, in the order of the computation.

        ``attn.hook_pattern`` (eager attention only) and module paths also work, but are not listed.
        """
        return tuple(name for name in self._map.sites.sites if split_name(name)[1] not in ON_REQUEST)

    def site(self, name: SiteName) -> Site:
        """The site of a hook name, a module path (``"model.layers.5.mlp:in"``) or a module (its output).

        An index in brackets names one head of ``attn.hook_q``, ``hook_k``, ``hook_v``, ``hook_z`` or ``hook_result``:
        ``"blocks.2.attn.hook_z[3]"`` is [B, T, d_head], the fourth head's slice of ``blocks.2.attn.hook_z``.

        Raises:
            UnknownNameError: no such name (the nearest are offered), or no such head (their number is told).
            UserError: a hook name that this architecture does not define (the message says why), or one without heads.
        """
        return self._find(name).site

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The model's blocks, first to last."""
        return tuple(block.block for block in self._map.parts.blocks)

    def hooked_modules(self, names: Iterable[SiteName]) -> frozenset[nn.Module]:
        """The modules that capturing ``names`` hangs hooks on, and those of edits that are active now."""
        taps = [self._find(name).tap for name in names]
        return frozenset(tap.module for each in taps for tap in (each, *each.needs)) | self._interceptor.modules

    def __call__(
        self,
        tokens_BT: Tensor,
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of token ids [B, T]; gradients are recorded as the caller's context says.

        ``documents_BT``, in place of a mask, numbers the document of each position (0, 1, … along a context, -1 for
        padding behind them): each document is computed as if it stood alone at the start of a context.

        Raises:
            DataError: tokens longer than the context, out of the vocabulary, or not a [B, T] integer tensor;
                documents that are not numbered so.
            UserError: the model has no language-model head, or cannot keep the documents of a context apart.
        """
        return self._logits(self._checked(tokens_BT), attention_mask, token_type_ids, documents_BT)

    def _logits(
        self,
        tokens_BT: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        output = self._run(tokens_BT, attention_mask, token_type_ids, documents_BT)
        logits: Tensor | None = getattr(output, "logits", None)
        if logits is None or not self.has_head:
            raise UserError(
                f"{type(self.hf).__name__} has no language-model head and so no logits; load a "
                "…ForCausalLM or …ForMaskedLM class (capture and edits work without one, and evaluate(..., "
                "losses=False))"
            )
        return logits

    def capture(
        self,
        tokens_BT: Tensor,
        names: Iterable[SiteName],
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        documents_BT: Tensor | None = None,
        detach: bool = True,
    ) -> dict[str, Tensor]:
        """The values of sites on token ids [B, T], without gradients, as {site name: [B, T, width]}.

        The forward pass ends as soon as the last of them is known. Inside ``edits``, values are those after the edits.
        A module that runs several times in one pass gives its first call. ``documents_BT`` as in ``__call__``; values
        at padding mean nothing.

        With ``detach=False`` gradients are recorded as the caller's context says, and values keep them: each can be
        differentiated by whatever it depends on. Where a site is writable, the pass goes on from the value that is
        returned, so that later ones can be differentiated by it, too, also in a model whose parameters require no
        gradients. A capture-only site's value is a copy, on which nothing later depends.

        Raises:
            DataError: see ``__call__``.
            UserError: a name is not defined, or its module did not run.
        """
        with self._observed(names, stops=True, detach=detach) as values:
            tokens = values.tokens_BT = self._checked(tokens_BT)
            if values.wanted:
                with torch.set_grad_enabled(not detach and torch.is_grad_enabled()), suppress(ForwardStopped):
                    self._run(tokens, attention_mask, token_type_ids, documents_BT)
        return values.complete()

    def logits_and_sites(
        self,
        tokens_BT: Tensor,
        names: Iterable[SiteName],
        *,
        documents_BT: Tensor | None = None,
        detach: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``__call__`` and ``capture`` give, from one forward pass; raises what they raise.

        Without gradients, unless ``detach=False``: see ``capture``. Logits can then be differentiated by values.
        """
        with (
            torch.set_grad_enabled(not detach and torch.is_grad_enabled()),
            self._observed(names, stops=False, detach=detach) as values,
        ):
            tokens = values.tokens_BT = self._checked(tokens_BT)
            logits = self._logits(tokens, documents_BT=documents_BT)
        return logits, values.complete()

    @contextmanager
    def _observed(self, names: Iterable[SiteName], *, stops: bool, detach: bool) -> Iterator[CapturedValues]:
        """Inside, forward passes fill in the values of ``names``, and end where ``stops`` once they are complete."""
        found = [self._find(name) for name in ([names] if isinstance(names, (str, nn.Module)) else names)]
        wanted = {place.site.name: place for place in found}
        values = CapturedValues({name: place.site for name, place in wanted.items()}, stops=stops)
        actions = []
        for name, place in wanted.items():
            action = Action(tap=place.tap, name=name, columns=place.columns)
            if detach:
                action.observe = partial(values.keep_copy, name)
            elif place.site.writable:
                action.edit = partial(values.keep_on_path, name)
            else:
                action.observe = partial(values.keep_branch, name)
            actions.append(action)
        with self._interceptor.active(actions):
            yield values

    @contextmanager
    def edits(self, functions: Mapping[SiteName, EditFunction]) -> Iterator[LanguageModel]:
        """Inside the context, every forward pass replaces the value v [B, T, width] of each site by fn(v).

        A function with a second argument that has no default gets the context of the pass there, ``fn(v, context)``:
        token ids, positions, padding, special and generated tokens (``PassContext``). Others get the value alone.

        An edit of one head leaves the other heads as they are. Contexts nest; a site edited twice is edited by the
        outer function first. An edit sees every value as already edited upstream, and gradients flow through it to
        whatever it depends on. The result is cast to the site's dtype. Forward passes of ``hf`` itself,
        ``hf.generate`` included, are edited too. With a key-value cache, ``generate`` shows an edit the whole prompt
        first and then one new token at a time, whose place ``context.positions`` tells.

        Raises:
            UserError: a site is capture-only (the message says why) or not defined, or a function needs more than two
                arguments; in the forward pass, where a function takes a context and a part of ``hf`` runs by itself.
            ShapeError: a function returns another shape (raised by the forward pass).
        """
        actions = []
        for name, function in functions.items():
            place = self._find(name)
            site = place.site
            if not site.writable:
                raise UserError(f"{site.name!r} can be captured but not edited: {site.read_only_reason}")
            action = Action(tap=place.tap, name=site.name, columns=place.columns)
            if takes_context(function, site.name):
                action.edit_in_context = cast(ContextEdit, function)
            else:
                action.edit = cast(ValueEdit, function)
            actions.append(action)
        with self._interceptor.active(actions):
            yield self

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Inside, only this thread uses the model; forward passes, ``capture`` and ``edits`` elsewhere wait.

        ``edits`` that are active already stay so, and a call of a part of ``hf`` alone does not wait.
        """
        with self._interceptor.reserved(self.hf):
            yield

    def logit_lens(self, directions_ND: Tensor) -> Tensor:
        """What directions of the residual stream [N, D] say to the unembedding: logits [N, V], in at least float32.

        ``(d - mean(d)) · gain @ W_U`` for a model whose final norm is a LayerNorm, ``d · gain @ W_U`` for an RMSNorm:
        the final norm with its gain folded in and its scale, which depends on the context, left out; no biases, no
        logit scaling or soft-capping.

        Raises:
            UserError: the unembedding does not read the final norm's output (BERT's head has a layer of its own).
            ShapeError: directions are not [N, d_model].
        """
        parts, measured = self._map.parts, self._map.measured
        rule = measured.norms.get(parts.ln_final) if parts.ln_final is not None else None
        if rule is None or parts.unembed is None or not measured.unembed_reads_final_norm:
            raise UserError(
                f"the logit lens is not defined for {type(self.hf).__name__}: it needs a language-model head that "
                "reads the final norm of the residual stream directly"
            )
        if directions_ND.dim() != 2 or directions_ND.shape[1] != self.d_model:
            raise ShapeError(f"expected directions of shape [N, {self.d_model}], got {list(directions_ND.shape)}")
        W_VD = parts.unembed.weight
        assert isinstance(W_VD, Tensor)
        dtype = torch.promote_types(torch.promote_types(directions_ND.dtype, W_VD.dtype), torch.float32)
        x_ND = directions_ND.to(W_VD.device, dtype)
        if rule.centred:
            x_ND = x_ND - x_ND.mean(-1, keepdim=True)
        gain = rule.gain()
        x_ND = x_ND * (gain.to(W_VD.device, dtype) if isinstance(gain, Tensor) else gain)
        # In chunks, so that a large vocabulary in half precision is never copied to float32 as a whole.
        return torch.cat([x_ND @ chunk.to(dtype).T for chunk in W_VD.split(_UNEMBED_CHUNK)], dim=-1)

    def record(self) -> dict[str, Any]:
        """JSON-able facts that identify the model: what ``load_model`` was given (never the token), class, dtype, and a
        fingerprint of the weights as they are now."""
        import transformers

        return {
            **self._provenance,
            "transformers": transformers.__version__,
            "name": self.name,
            "class": type(self.hf).__name__,
            "model_type": self.hf.config.model_type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention_implementation": getattr(self.hf.config, "_attn_implementation", None),
            "map": self._map.parts.architecture.note,
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "fingerprint": weights_fingerprint(self.hf),
        }

    def __repr__(self) -> str:
        kind = "encoder" if self.is_encoder else "decoder"
        return (
            f"LanguageModel({self.name!r}: {type(self.hf).__name__}, {kind}, {self.n_layers} layers, "
            f"d_model {self.d_model}, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def check_separates_documents(self) -> None:
        """Raise ``UserError`` unless the model keeps the documents of a context apart; found out once, on a few tokens.

        Possible for causal decoders that attend: their position ids start again with each document, and the mask that
        transformers makes of these (or one made here) is block-diagonal. The attention implementation stays.
        """
        kind = type(self.hf).__name__
        if self.is_encoder:
            raise refuse_several(kind, "it is an encoder, which takes one document a context")
        if self._cut is None:
            config = self.hf.config.get_text_config()

            def run(inputs: Mapping[str, Tensor]) -> Tensor:
                output: Tensor = self.hf(**self.forward_kwargs, **inputs)[0]
                return output

            window = isinstance(getattr(config, "sliding_window", None), int)
            with torch.no_grad(), self._interceptor.paused():
                self._cut = find_cut(run, self._probe_BT, self.dtype, sliding_window=window)
        if self._cut is None:
            raise refuse_several(kind, "with restarted positions and a mask its logits are not those of each alone")

    def _document_inputs(self, documents_BT: Tensor, tokens_BT: Tensor) -> dict[str, Tensor]:
        check_documents(documents_BT, tokens_BT)
        if self.is_encoder and not has_several(documents_BT):
            return {"attention_mask": (documents_BT >= 0).to(self.device, torch.int64)}
        if not has_several(documents_BT):
            return {}  # padding lies behind the text, where a decoder does not look
        self.check_separates_documents()
        assert self._cut is not None
        return self._cut(documents_BT.to(self.device, torch.int64), self.dtype)

    def _run(
        self,
        tokens_BT: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        documents_BT: Tensor | None = None,
    ) -> Any:
        extra: dict[str, Any] = {}
        if documents_BT is not None:
            if attention_mask is not None:
                raise UserError("give documents_BT or attention_mask, not both; documents_BT masks its padding itself")
            extra |= self._document_inputs(documents_BT, tokens_BT)
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is None:
                continue
            if name not in self._parameters:
                raise UserError(f"{type(self.hf).__name__} takes no {name}; leave it out")
            extra[name] = value.to(self.device)
        with self._passes.one(documents_BT):
            return self.hf(input_ids=tokens_BT, **self.forward_kwargs, **extra)

    def _run_probe(self) -> None:
        try:
            self._run(self._probe_BT)
        except UserError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
            raise UserError(
                f"{type(self.hf).__name__} does not run on token ids alone: {first_line(error)}. Expected a decoder or "
                "an encoder of text; forward_kwargs adds arguments to every forward pass"
            ) from error

    def _checked(self, tokens_BT: Tensor) -> Tensor:
        if not isinstance(tokens_BT, Tensor) or tokens_BT.dim() != 2 or tokens_BT.is_floating_point():
            got = f"{tokens_BT.dtype} {list(tokens_BT.shape)}" if isinstance(tokens_BT, Tensor) else type(tokens_BT)
            raise DataError(f"expected token ids as an integer tensor [batch, token], got {got}")
        if tokens_BT.numel() == 0:
            raise DataError(f"expected at least one token, got shape {list(tokens_BT.shape)}")
        if self.context_size is not None and tokens_BT.shape[1] > self.context_size:
            raise DataError(
                f"{tokens_BT.shape[1]} tokens are more than {self.name!r} has positions for; "
                f"use contexts of at most {self.context_size} tokens"
            )
        if tokens_BT.is_meta:
            return tokens_BT.long()
        low, high = int(tokens_BT.min()), int(tokens_BT.max())
        if low < 0 or high >= self.vocab_size:
            raise DataError(
                f"token id {low if low < 0 else high} is not in the vocabulary of {self.name!r}, whose ids are 0 to "
                f"{self.vocab_size - 1}; were the tokens made by another model's tokenizer?"
            )
        return tokens_BT.to(self.device, torch.long)

    def _find(self, name: SiteName) -> _Place:
        if isinstance(name, nn.Module):
            path = next((path for path, module in self.hf.named_modules() if module is name), None)
            if path is None:
                raise UserError(f"this {type(name).__name__} is not a module of {type(self.hf).__name__}")
            return self._find_module_site(path, "out")
        sites = self._map.sites
        if name in sites.sites:
            if split_name(name)[1] in ON_REQUEST:
                self._refuse_without_weights(name)
            return _Place(sites.sites[name], sites.taps[name])
        whole_name, index = split_head(name)
        if index is not None:
            whole = self._find(whole_name)
            site, columns = one_head(whole.site, index)
            return _Place(site, whole.tap, columns)
        path, colon, side = name.rpartition(":")
        if colon:
            if side not in ("in", "out"):
                raise UserError(f"module path {name!r} must end in ':in' or ':out'")
            return self._find_module_site(path, "in" if side == "in" else "out")
        layer, inner = split_name(name)
        if layer is not None and inner in BLOCK_NAMES and layer >= self.n_layers:
            raise unknown_name(
                f"hook name (the model has layers 0 to {self.n_layers - 1})",
                name,
                [f"blocks.{self.n_layers - 1}.{inner}"],
            )
        reason = sites.absent.get(name) or sites.absent.get(inner)
        if reason is not None and inner in (MODEL_NAMES if layer is None else BLOCK_NAMES):
            raise UserError(f"{type(self.hf).__name__} has no {name!r}: {reason}")
        raise unknown_name("hook name", name, self.hook_names)

    def _refuse_without_weights(self, name: str) -> None:
        implementation = getattr(self.hf.config, "_attn_implementation", None)
        if implementation != "eager":
            raise UserError(
                f"{name!r} needs eager attention, but the model runs {implementation!r}, which never forms them; "
                "load it with load_model(..., model_kwargs={'attn_implementation': 'eager'})"
            )

    def _find_module_site(self, path: str, side: Side) -> _Place:
        name = f"{path}:{side}"
        if name not in self._module_sites:
            modules = dict(self.hf.named_modules())
            if path not in modules:
                raise unknown_name("module path", path, modules)
            tap = FlatTap(modules[path], side, LAST_RANK)
            shape = self._measure_shape(name, tap)
            width = int(torch.Size(shape).numel())
            self._module_sites[name] = _Place(Site(name=name, width=width, shape=shape, writable=True), tap)
        return self._module_sites[name]

    def _measure_shape(self, name: str, tap: Tap) -> tuple[int, ...]:
        """The trailing shape of a module's activation, from a short forward pass that no active edit touches."""
        with self._interceptor.paused():
            record = trace([tap.module], lambda: self._run(self._probe_BT)).get(tap.module)
        value = None if record is None else (record.input if tap.side == "in" else record.output)
        if value is None or value.shape[:2] != self._probe_BT.shape or value.dim() < 3:
            got = "was not called" if record is None else "carries no such tensor"
            raise UserError(f"{name!r} is not a site: expected an activation [batch, token, …], but the module {got}")
        return tuple(value.shape[2:])


def _check_reads_tokens(hf: Any) -> None:
    try:
        embedding = hf.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(getattr(embedding, "weight", None), Tensor):
        raise UserError(f"{type(hf).__name__} has no token embedding; expected a model that reads token ids")


def _context_size(hf: Any, config: Any) -> int | None:
    """The longest input the model's positions allow; ``None`` for models without a limit (Mamba, ALiBi)."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    # RoBERTa-like models number positions from padding_idx + 1 on.
    embeddings = getattr(hf.base_model, "embeddings", None)
    padding_idx = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return limit if padding_idx is None else limit - padding_idx - 1


def _special_token_ids(config: Any, tokenizer: Any | None) -> frozenset[int]:
    """Ids of the tokens that mark structure and not text: begin, end, padding, class, separator, mask, added specials.

    The unknown token stands for text and is not among them, unless it also has one of those roles (as in GPT-2).
    """
    source = config if tokenizer is None else tokenizer
    ids: set[int] = set()
    for role in ("bos", "eos", "pad", "cls", "sep", "mask"):
        value = getattr(source, f"{role}_token_id", None)
        ids.update(each for each in (value if isinstance(value, (list, tuple)) else [value]) if each is not None)
    if tokenizer is not None:
        ids.update(id_ for id_ in tokenizer.all_special_ids if id_ != tokenizer.unk_token_id)
    return frozenset(ids)
