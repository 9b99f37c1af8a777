"""``adapter``: an SAE of ours as SAEBench 0.6.0 and sae-lens 6 evaluate it.

    from monosema.compat import saebench
    from sae_bench.evals.core.main import multiple_evals

    multiple_evals([("my_sae", saebench.adapter(coder))], n_eval_reconstruction_batches=200, ...)

    from sae_lens.evals import get_eval_everything_config, run_evals  # needs ActivationScaler() of sae-lens as well

    sae = saebench.adapter(coder)
    run_evals(sae, ActivationsStore.from_sae(model, sae, dataset), model, ActivationScaler(), eval_config)

Neither has to be installed for this file to be imported. Where their figures differ from ``evaluate``'s, and why, is in
``docs/metrics.md``.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from monosema.coders import Dictionary, SparseCoder
from monosema.coders.trainable import require_sparse_coders
from monosema.core.devices import dtype_name
from monosema.core.errors import ConfigError
from monosema.core.logs import get_logger
from monosema.formats import saelens
from monosema.formats.saelens import KWARGS, written_kwargs

logger = get_logger("monosema.compat.saebench")

_LAYER = re.compile(r"blocks\.([0-9]+)\.|hook_(?:pos_)?embed")
_CONTEXT_SIZE = 128
"""SAEBench's, where the dictionary records none."""


@final
@dataclass(kw_only=True)
class AdapterConfig:
    """``sae.cfg`` of SAEBench and of sae-lens, which both may write to.

    ``metadata``, where sae-lens 6 looks for what says of which model and text, is this same object.
    """

    architecture: str
    """SAEBench's name of it."""
    d_in: int
    """Width of the site."""
    d_sae: int
    """Number of latents."""
    dtype: str
    """Floating-point type of the weights."""
    device: str
    """Where they are."""
    apply_b_dec_to_input: bool
    """Whether ``b_dec`` is subtracted from the input."""
    model_name: str
    """As TransformerLens' ``from_pretrained`` takes it."""
    hook_name: str
    """TransformerLens' name of the site."""
    hook_layer: int
    """The number in it; 0 of the embedding."""
    hook_head_index: int | None
    """One head of the site; None for all of it."""
    context_size: int
    """Tokens of a context to evaluate on."""
    prepend_bos: bool
    """Whether contexts begin with the BOS token."""
    seqpos_slice: tuple[int | None, ...]
    """Positions trained on, as the arguments of ``slice``."""
    exclude_special_tokens: bool | list[int]
    """Whether special tokens were left out of training; ids where some."""
    dataset_path: str | None
    """Text trained on."""
    dataset_trust_remote_code: bool = False
    """Whether ``datasets`` may run code that comes with a data set."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """How the weights were processed that the coder was trained on: arguments of ``from_pretrained_no_processing``."""
    normalize_activations: str = "none"
    """Nothing is left to do: what scaled the input in training is in the weights."""

    def __post_init__(self) -> None:
        self.metadata = self

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def adapter(
    coder: Dictionary,
    *,
    model_name: str | None = None,
    context_size: int | None = None,
    prepend_bos: bool | None = None,
) -> SAEBenchAdapter:
    """``coder`` behind the attributes and methods that SAEBench 0.6.0 and sae-lens 6 use.

    It computes what the coder does, to the bit in the coder's dtype: with its input scaling, its rule at inference (the
    threshold of BatchTopK, say) and its biases. SAEBench casts it to the model's dtype; ``coder`` itself stays.

    SAEBench warns where decoder rows are not unit, and L1 and weights are then in other units than other
    dictionaries'; ``coder.fold_W_dec_norm()`` makes them unit and changes nothing else. Both tools pass special
    positions through the coder as well and leave their rows out afterwards, which only matters to one that selects
    over a whole batch at inference (``BatchTopK(inference="topk")``).

    Args:
        coder: an SAE of one site with a TransformerLens name.
        model_name: as TransformerLens takes it; recorded by training as the source of the model.
        context_size: tokens in a context; as trained, or 128.
        prepend_bos: whether contexts begin with BOS; as trained, or True.

    A coder of processed weights says so in ``cfg.model_from_pretrained_kwargs``, and in a warning that is logged.

    Raises ``ConfigError`` for what these tools have no evaluation for: coders that write another site than they read or
    several sites, that need their input to decode (``token_scaling``), or that name no site or model.
    """
    _require_sae(coder)
    sae = require_sparse_coders(coder, "given to SAEBench or sae-lens").parts[0].coder
    recorded = saelens.recorded_metadata(coder.hook_name, coder.metadata)
    foreign = coder.metadata.get("saelens") or {}  # what a dictionary of SAELens recorded
    name = model_name or recorded["model_name"] or foreign.get("model_name")
    if not name:
        raise ConfigError("the coder does not record which model it reads; name it: adapter(coder, model_name='gpt2')")
    layer = _LAYER.match(recorded["hook_name"])
    if layer is None:
        raise ConfigError(
            f"SAEBench and sae-lens find sites by TransformerLens' names, such as 'blocks.2.hook_resid_post', not "
            f"{coder.hook_name!r}; bind the coder to the name of its site there"
        )
    knows_text = "begin_context" in (coder.metadata.get("tokens") or {})
    begins = recorded["prepend_bos"] if knows_text else foreign.get("prepend_bos", True)
    config = AdapterConfig(
        architecture=sae.config.activation.architecture or type(sae.config.activation).__name__,
        d_in=coder.d_in,
        d_sae=coder.d_sae,
        dtype=dtype_name(coder.dtype),
        device=str(coder.device),
        apply_b_dec_to_input=sae.config.b_dec == "input_and_output",
        model_name=name,
        hook_name=recorded["hook_name"],
        hook_layer=int(layer[1] or 0),
        hook_head_index=recorded["hook_head_index"],
        context_size=context_size or recorded["context_size"] or foreign.get("context_size") or _CONTEXT_SIZE,
        prepend_bos=begins if prepend_bos is None else prepend_bos,
        seqpos_slice=tuple(recorded["seqpos_slice"]),
        exclude_special_tokens=recorded["exclude_special_tokens"],
        dataset_path=recorded["dataset_path"],
        model_from_pretrained_kwargs=written_kwargs(coder.metadata).get(KWARGS, {}),
    )
    if config.model_from_pretrained_kwargs:
        logger.warning(
            "the coder was trained on processed weights: load its model with from_pretrained_no_processing(%r, "
            "**adapter.cfg.model_from_pretrained_kwargs); SAEBench and sae-lens do not by themselves, and figures "
            "on the plain model are not those of the coder on what it was trained for",
            name,
        )
    return SAEBenchAdapter(sae, config)


@final
class SAEBenchAdapter:
    """What ``adapter`` returns; ``coder`` is the SAE that computes.

    Attributes, as in SAEBench: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_in]``, ``b_enc [d_sae]`` (None for Gated,
    which has ``b_mag``), ``b_dec [d_in]``, ``device``, ``dtype``, ``cfg``.
    """

    hook_z_reshaping_mode = False
    """Heads come side by side already; sae-lens asks before it evaluates a ``hook_z``."""

    def __init__(self, coder: SparseCoder, cfg: AdapterConfig):
        self.coder = coder
        self.cfg = cfg

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., d_sae]`` of ``x [..., d_in]``."""
        return self.coder.encode(x)

    def decode(self, latents: Tensor) -> Tensor:
        """The reconstruction ``[..., d_in]`` of ``latents [..., d_sae]``; autograd passes through."""
        return self.coder.decode(latents.to(self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x))

    __call__ = forward

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> SAEBenchAdapter:
        """Move and cast in place, and return itself; the coder given to ``adapter`` stays as it is."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        place = self.device if device is None else torch.device(device)
        is_there = place.type == self.device.type and place.index in (None, self.device.index)
        if not is_there or dtype not in (None, self.dtype):
            self.coder = copy.deepcopy(self.coder).to(device=place, dtype=dtype)
            self.cfg.device, self.cfg.dtype = str(self.device), dtype_name(self.dtype)
        return self

    @property
    def W_enc(self) -> Tensor:
        return self.coder.W_enc

    @property
    def W_dec(self) -> Tensor:
        return self.coder.W_dec

    @property
    def b_enc(self) -> Tensor | None:
        return self.coder.b_enc

    @property
    def b_mag(self) -> Tensor:
        """Of Gated only, as SAEBench asks for it."""
        return self.coder.activation.b_mag  # type: ignore[return-value]

    @property
    def b_dec(self) -> Tensor:
        bias = self.coder.b_dec
        return self.W_dec.new_zeros(self.cfg.d_in) if bias is None else bias

    @property
    def device(self) -> torch.device:
        return self.coder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.coder.dtype

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing to turn off."""

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Never called: the mode is off."""


def _require_sae(coder: Dictionary) -> None:
    """Raise ``ConfigError`` for what SAEBench and sae-lens cannot evaluate."""
    cannot = "SAEBench and sae-lens cannot evaluate"
    if coder.is_layered:
        raise ConfigError(f"{cannot} a cross-layer transcoder: they splice one site; use evaluate_replacement")
    if coder.hook_name is None:
        raise ConfigError(
            "the coder does not say which site it reads; train it on a stream, or name it with "
            "coder.bind(hook_name, hook_name, {})"
        )
    if not coder.reconstructs or coder.has_skip:
        raise ConfigError(
            f"{cannot} a transcoder ({coder.hook_name} -> {coder.hook_name_out}): they compare what is written with "
            "what was read; use evaluate"
        )
    if len(coder.read_widths) > 1:
        raise ConfigError(f"{cannot} a crosscoder ({coder.hook_name}): they capture one site; use evaluate_crosscoder")
    if coder.token_scaling != "none":
        raise ConfigError(
            f"{cannot} a coder with token_scaling={coder.token_scaling!r}: they decode latents without the input, "
            "whose size they do not hold, and encode other inputs in between; use evaluate"
        )
