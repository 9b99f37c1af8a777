"""Options of other libraries by their names, each with the option of ours that does the same.

Names are those of SAELens' runner and SAE configs (6.54), dictionary_learning's trainers and buffer, and drrik.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, TypeVar

from monosema.core.errors import UnknownArgumentError, nearest_names
from monosema.core.spelling import with_whole_numbers

F = TypeVar("F", bound=Callable[..., Any])

SAELENS_VERSION = "6.54.12"
"""The version of SAELens whose rules for files are followed; its readers use the field to tell the layout."""

PEERS_OPTIONS = {
    "name": "model.source (load_model's first argument)",
    "model_name": "model.source (load_model's first argument)",
    "llm_device": "model.device",
    "llm_dtype": "model.dtype",
    "model_from_pretrained_kwargs": "model.model_kwargs",
    "hook_layer": "stream.hook_names: the layer is part of the name, blocks.6.hook_resid_post",
    "hook_point": "stream.hook_names",
    "hook_point_layer": "stream.hook_names: the layer is part of the name, blocks.6.hook_resid_post",
    "hook_head_index": "stream.hook_names: a head is part of the name, blocks.6.attn.hook_z[3]",
    "submodule": "stream.hook_names",
    "dataset_path": "tokens.source (load_tokens' first argument)",
    "dataset": "tokens.source (load_tokens' first argument)",
    "ctx_len": "tokens.context_size",
    "is_dataset_tokenized": "nothing: tokenized data is told by its columns",
    "seqpos_slice": "tokens.positions (Positions)",
    "prepend_bos": "tokens.packing (Packing)",
    "sequence_separator_token": "tokens.packing.separator",
    "disable_concat_sequences": "tokens.packing.mode",
    "use_chat_formatting": "nothing: conversations are told by their records and take the tokenizer's chat template",
    "train_batch_size_tokens": "stream.batch_size",
    "out_batch_size": "stream.batch_size",
    "store_batch_size_prompts": "stream.model_batch_size",
    "refresh_batch_size": "stream.model_batch_size",
    "n_batches_in_buffer": "stream.chunk_contexts or stream.chunk_bytes",
    "n_ctxs": "stream.chunk_contexts",
    "activations_mixing_fraction": "stream.chunk_contexts: every chunk is shuffled whole",
    "act_store_device": "ActivationStream(buffer_device=)",
    "prefetch_llm_batches": "stream.prefetch",
    "autocast_lm": "stream.autocast",
    "compile_llm": "stream.compile",
    "compile_sae": "training.compile",
    "use_cached_activations": "cache.folder (ActivationCache)",
    "cached_activations_path": "cache.folder (ActivationCache)",
    "architecture": "coder.activation (TopK, BatchTopK, JumpReLU, Gated, ReLU)",
    "activation_fn": "coder.activation (TopK, BatchTopK, JumpReLU, Gated, ReLU)",
    "activation_fn_str": "coder.activation (TopK, BatchTopK, JumpReLU, Gated, ReLU)",
    "activation_fn_kwargs": "the activation's own options, TopK(k=32)",
    "dict_class": "coder.activation (TopK, BatchTopK, JumpReLU, Gated, ReLU)",
    "activation_dim": "d_in",
    "dict_size": "coder.d_sae",
    "apply_b_dec_to_input": "coder.b_dec",
    "b_dec_init_method": "training.b_dec_init",
    "init_encoder_as_decoder_transpose": "coder.encoder_init",
    "decoder_init_norm": "coder.decoder_init_norm",
    "normalize_sae_decoder": "training.decoder",
    "normalize_activations": "training.input_scaling",
    "from_pretrained_path": "coder.start_from",
    "training_tokens": "training.tokens",
    "total_training_samples": "training.tokens",
    "steps": "training.tokens (steps times stream.batch_size)",
    "finetuning_tokens": "training.finetuning (FineTuning(tokens=))",
    "l1_coefficient": "training.sparsity (L1(coefficient=))",
    "l1_penalty": "training.sparsity (L1(coefficient=))",
    "sparsity_penalty": "training.sparsity (L1(coefficient=), L0(coefficient=))",
    "l0_coefficient": "training.sparsity (L0(coefficient=))",
    "l0_lambda": "training.sparsity (L0(coefficient=))",
    "lp_norm": "training.sparsity (Lp(p=))",
    "target_l0": "training.sparsity (L1(target_l0=), L0(target_l0=))",
    "l1_warm_up_steps": "training.sparsity (L1(warmup_fraction=)), a share of the run",
    "l0_warm_up_steps": "training.sparsity (L0(warmup_fraction=)), a share of the run",
    "sparsity_warmup_steps": "training.sparsity (L1(warmup_fraction=)), a share of the run",
    "lr_scheduler_name": "training.lr_schedule",
    "lr_warm_up_steps": "training.warmup_fraction, a share of the run",
    "warmup_steps": "training.warmup_fraction, a share of the run",
    "lr_decay_steps": "training.decay_fraction, a share of the run",
    "decay_start": "training.decay_fraction, a share of the run",
    "lr_end": "training.lr_end_fraction, a share of the peak",
    "n_restart_cycles": "training.lr_cycles",
    "adam_beta1": "training.beta1",
    "adam_beta2": "training.beta2",
    "aux_loss_coefficient": "training.revive (AuxK(coefficient=))",
    "auxk_alpha": "training.revive (AuxK(coefficient=))",
    "use_ghost_grads": "training.revive (GhostGradients())",
    "resample_steps": "training.revive (Resample(every=))",
    "feature_sampling_window": "training.revive (Resample(every=))",
    "dead_feature_window": "training.revive (AuxK(dead_after_tokens=)), in tokens",
    "dead_steps_threshold": "training.revive (AuxK(dead_after_tokens=)), in tokens",
    "matryoshka_widths": "training.levels (Matryoshka(widths=))",
    "noise_scale": "training.pre_noise",
    "k_anneal_steps": "training.k_start and training.k_anneal_fraction",
    "checkpoint_path": "--out (train's out=)",
    "save_dir": "--out (train's out=)",
    "output_path": "--out (train's out=)",
    "save_steps": "training.checkpoint_every or training.checkpoint_tokens",
    "resume_from_checkpoint": "nothing: the same call resumes what is in its folder",
    "log_steps": "training.log_every",
    "wandb_log_frequency": "training.log_every",
    "eval_every_n_wandb_logs": "training.eval_every, in steps",
    "n_eval_batches": "evaluation.n_tokens",
    "eval_batch_size_prompts": "evaluate's batch_size=",
    "max_new_tokens": "nothing yet: generating with a dictionary attached is not built",
}
"""By the peer's name: where it stands here, as a path in a config (``training.tokens``) or in words."""


def peers_option(name: str) -> str | None:
    """What does here what ``name`` does in another library; None for a name that is not known."""
    return PEERS_OPTIONS.get(name.replace("-", "_").lower())


def explains_options(target: F) -> F:
    """Make a call of ``target``, a function or a class, with an unknown option say what the option is called here.

    Where a whole number is asked for, one that is written as a float (1e6) is taken for it. Raises
    ``UnknownArgumentError``, which is a ``TypeError``, before anything is done.
    """
    if isinstance(target, type):
        init = target.__init__  # type: ignore[misc]
        target.__init__ = _explained(init, target.__name__)  # type: ignore[misc]
        return target
    return _explained(target, target.__name__)  # type: ignore[return-value]


def _explained(function: Callable[..., Any], called: str) -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    whole = {each.name for each in parameters if each.annotation in (int, "int", "int | None")}

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        for name in options.keys() - set(names):
            ours = peers_option(name)
            if ours is not None:
                raise UnknownArgumentError(f"{called} has no option {name!r}; here it is {ours}")
            if not takes_any:
                near = nearest_names(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(n for n in names if n != 'self')}"
                raise UnknownArgumentError(f"{called} has no option {name!r}; {hint}")
        plain = [
            with_whole_numbers(value) if name in whole else value
            for name, value in zip_longest(names[: len(arguments)], arguments)
        ]
        named = {name: with_whole_numbers(value) if name in whole else value for name, value in options.items()}
        return function(*plain, **named)

    return call
