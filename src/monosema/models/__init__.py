"""Language models and their named activations.

Job: load any transformers decoder or encoder, give its activations TransformerLens' names without touching a weight,
read them (``capture``) and change them (``edits``) exactly. Imports ``core`` only. Start reading at
``language_model.py``; ``architectures.py`` is the table of model families, ``structure.py`` finds the parts of models
that are not in it (``post_norm.py`` in blocks that end in a norm), ``verify.py`` refuses a map that the numbers
contradict, ``shapes.py`` the names whose values are not [batch, token, width], ``taps.py`` says how each site is read
and written, ``hooks.py`` runs them, ``passes.py`` says what an edit is told of its pass; ``splice.py`` states how
something takes a site's place, and the protocol of what can; ``patterns.py`` forms the attention patterns of any model.

**Names**, with L the layer: ``hook_embed`` (the token embedding as it enters the sum, so times √d_model for Gemma);
``blocks.{L}.hook_resid_pre``, ``hook_attn_out``, ``hook_resid_mid``, ``hook_mlp_out``, ``hook_resid_post`` with
resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out, where attn_out and mlp_out are what is added:
after post-norms and multipliers (parallel blocks: resid_post = resid_pre + attn_out + mlp_out, and no resid_mid);
``blocks.{L}.ln1.hook_scale``, ``ln1.hook_normalized`` (centred for LayerNorm, divided by the scale, before gain and
bias), ``ln2`` likewise, ``ln1_post`` and ``ln2_post`` on the branches of Gemma 2 and OLMo-2, ``ln_final``;
``blocks.{L}.attn.hook_q``, ``hook_k``, ``hook_v`` (the projections' outputs, before rotary embedding and query-key
norms), ``hook_z`` (what the output projection reads), ``hook_result`` (what each head adds), ``hook_pattern`` (eager
attention only, not listed); ``blocks.{L}.mlp.hook_in`` (the module's input, after the norm's gain), ``hook_pre``
(what the activation function reads; the gate of a gated MLP), ``hook_pre_linear`` (what a gated MLP multiplies it
by), ``hook_post`` (what the last linear map reads); ``blocks.{L}.hook_mixer_in``, ``hook_mixer_out`` in state-space
blocks. ``resid_post`` of the last block is before the final norm. Values are flat, [batch, token, width];
``Site.shape`` unflattens heads, and an index in brackets names one: ``blocks.{L}.attn.hook_z[3]`` is a site of width
d_head, ``hook_q``, ``hook_k``, ``hook_v`` and ``hook_result`` likewise (key-value heads are counted by themselves).

**Post-norm models (BERT and its likes, BART's and OpenAI GPT's decoders)** norm the stream itself: a block is post-norm
where its output is that of a norm inside it, which is measured. Every name means what TransformerLens' ``BertBlock``
means by it. ``hook_resid_pre`` is the block's input, which is already normed. ``hook_attn_out`` is the attention's
output projection, before its Add & LayerNorm; ``hook_resid_mid`` = resid_pre + attn_out is what ``ln1`` (the
attention's Add & LayerNorm) receives. The output of ``ln1``, with gain and bias, is both what the MLP reads
(``mlp.hook_in``) and what its output is added to: ``hook_resid_post`` = ln1(resid_mid) + mlp_out is what ``ln2`` (the
MLP's Add & LayerNorm) receives, and ``hook_normalized_resid_post`` = ln2(resid_post) is the block's output, so the next
block's ``hook_resid_pre``. Where the sum before the last norm is not found (MobileBERT, OPT-350m), ``hook_resid_post``
is refused and ``hook_normalized_resid_post`` is there. Hence resid_post = resid_mid + mlp_out does not hold, editing
``ln1.hook_normalized`` changes the skip path as well as the MLP, and editing ``mlp.hook_in`` changes the MLP alone.
``hook_embed`` is the word embedding, before positions, token types and the embedding norm. There is no ``ln_final`` and
no logit lens: no norm follows the last block, and the head of an encoder has a transformation of its own.

**Values that are not [batch, token, width]** are no sites. When a model is loaded, every name's value is held against
the tokens' shape, and again at each capture. Names that fail are refused with the shape that was found (the blocks of
Gemma 3n and DeepSeek-V4 carry several streams); a model none of whose names passes is refused (XLNet carries [token,
batch, width]). ``hook_embed`` is refused where the embedding has another width than the stream; its module path works.

**Edits** replace the value everywhere it is used: residual sites replace the stream; ``hook_resid_mid`` moves the
attention branch's contribution, so that skip path and norm both see it while ``hook_attn_out`` reads as before;
``hook_normalized`` adds (new - old) · gain at the norm's output. ``hook_scale``, ``hook_result`` and ``hook_pattern``
have no exact write and are capture-only. An edit is a function of the value, or of the value and the pass's context
(``PassContext``): a second argument without a default asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monosema.core.lazy import lazy_exports

_HOMES = {
    "monosema.models.architectures": ("ARCHITECTURES", "Architecture", "AttentionLayout", "BlockLayout"),
    "monosema.models.config": ("ModelOptions", "TokenizerOptions"),
    "monosema.models.language_model": ("LanguageModel",),
    "monosema.models.load": ("load_model",),
    "monosema.models.passes": ("PassContext",),
    "monosema.models.sites": ("Site",),
}
__getattr__, __all__ = lazy_exports(__name__, _HOMES)

if TYPE_CHECKING:
    from monosema.models.architectures import ARCHITECTURES, Architecture, AttentionLayout, BlockLayout
    from monosema.models.config import ModelOptions, TokenizerOptions
    from monosema.models.language_model import LanguageModel
    from monosema.models.load import load_model
    from monosema.models.passes import PassContext
    from monosema.models.sites import Site
