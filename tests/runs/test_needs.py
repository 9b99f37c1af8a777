"""Sizes of a run, counted by hand."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tiny_language import byte_tokenizer

import monosema as ms
from monosema.core.config import from_plain, merge
from monosema.core.errors import ConfigError, DataError, UserError
from monosema.core.memory import free_memory
from monosema.data.named_models import NamedModels
from monosema.models.load import load_outline
from monosema.runs.config import RunConfig
from monosema.runs.launch import launch
from monosema.runs.needs import Needs, needs, outline_models
from monosema.runs.planning import Plan
from monosema.runs.session import build_tokens
from monosema.training import CheckpointPlan
from monosema.training.operations import step_operations

SITE = "blocks.1.hook_resid_post"


def config_of(model_folder: Path, text_file: Path, **options: object) -> RunConfig:
    plain = {
        "model": {"source": str(model_folder)},
        "tokens": {"source": str(text_file), "context_size": 32, "heldout_fraction": 0.1},
        "stream": {"hook_names": [SITE], "batch_size": 64, "chunk_contexts": 40, "model_batch_size": 8},
        "coder": {"d_sae": 640, "activation": {"kind": "TopK", "k": 4}},
        "training": {"tokens": 6400, "revive": None},
    }
    return from_plain(RunConfig, merge(plain, options))


def needs_of(model_folder: Path, text_file: Path, out: Path, **options: object) -> Needs:
    config = config_of(model_folder, text_file, **options)
    models = outline_models(config)
    return needs(config, models, build_tokens(config.tokens, models), out=out)


# the tiny Llama: 2 layers, width 16, 2 heads of 8, 1 head of keys and values, MLP 32, 257 tokens
LAYER = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32
ATTENTION = 4 * 32 * 16  # scores and their use: 2 * context * width each, for a token


def test_parameters_and_operations_of_a_tiny_llama(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    found = needs_of(model_folder, text_file, tmp_path)
    assert found.model_parameters == 2 * 257 * 16 + 2 * (LAYER + 2 * 16) + 16
    assert found.dictionary_parameters == 2 * 16 * 640 + 640 + 16
    assert found.operations.model == 2 * (2 * LAYER + ATTENTION)
    assert found.operations.encoder == 2 * 16 * 640
    assert found.operations.rest == 2 * 4 * (16 + 3 * 16)
    # a chunk of 40 contexts of 32 (BOS is no row) gives at most 1240 rows, 1216 of them in batches of 64
    assert (found.n_steps, found.n_tokens) == (100, 6400)
    assert 1216 < found.rows_in_chunk <= 1240
    # five chunks give 6080 rows, and 11 contexts the other 320
    assert found.n_model_tokens == (5 * 40 + 11) * 32
    work = found.operations
    assert work.total == (5 * 40 + 11) * 32 * work.model + 6400 * (work.encoder + work.rest)


def test_operations_end_at_the_deepest_site(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    found = needs_of(model_folder, text_file, tmp_path, stream={"hook_names": ["blocks.0.hook_resid_post"]})
    assert found.operations.model == 2 * LAYER + ATTENTION


def test_a_tiny_gpt2_by_hand(text_file: Path, tmp_path: Path) -> None:
    shape = transformers.GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2, n_inner=48)
    folder = tmp_path / "gpt2"  # no weights are there to load
    shape.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    found = needs_of(folder, text_file, tmp_path, stream={"hook_names": ["blocks.1.hook_mlp_out"]})
    matrices = 16 * 48 + 16 * 16 + 16 * 48 + 48 * 16
    biases_and_norms = 48 + 16 + 48 + 16 + 4 * 16
    assert found.model_parameters == (257 + 64) * 16 + 2 * (matrices + biases_and_norms) + 2 * 16  # embedding tied
    assert found.operations.model == 2 * (2 * matrices + ATTENTION)
    assert next(iter(found.memory)).parts["model"] == 4 * found.model_parameters


def test_memory_of_the_cpu_by_hand(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, text_file)
    models = outline_models(config)
    tokens = build_tokens(config.tokens, models)
    (cpu,) = needs(config, models, tokens, out=tmp_path).memory
    usable = int((tokens.train.contexts != 0).sum())
    n_parameters, rows = 2 * 16 * 640 + 640 + 16, round(40 * usable / tokens.train.n_contexts)
    assert cpu.device == "cpu"
    assert cpu.parts["model"] == 4 * (2 * 257 * 16 + 2 * (LAYER + 2 * 16) + 16) + 2 * 4 * 4  # and rotary frequencies
    assert cpu.parts["a forward pass"] == 4 * 8 * 32 * (16 + 2 * 16 + 4 * 32)
    assert cpu.parts["chunk"] == rows * (4 * 16 + 8)
    assert (cpu.parts["dictionary"], cpu.parts["gradients"]) == (4 * n_parameters, 4 * n_parameters)
    assert cpu.parts["optimiser"] == 8 * n_parameters
    contexts = tokens.train.contexts.numel() + tokens.heldout.contexts.numel()
    assert cpu.parts["token ids"] == 4 * contexts
    assert cpu.total == sum(cpu.parts.values())
    real = ms.Trainer(ms.SAE(16, 640, activation=ms.TopK(k=4)), config.training, 64).memory()
    assert (cpu.parts["pre-activations"], cpu.parts["a step's rows and entries"]) == (real.pre_activations, real.step)


def test_prefetch_takes_a_second_chunk(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    one, two = (needs_of(model_folder, text_file, tmp_path, stream={"prefetch": each}) for each in (None, True))
    assert two.memory[0].parts["chunk"] == 2 * one.memory[0].parts["chunk"]
    assert (one.prefetch, two.prefetch) == (False, True)


def test_checkpoints_are_as_large_as_said(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    training = {"tokens": 6 * 64, "checkpoint_every": 3, "keep_every": 2, "b_dec_init": "zeros"}
    config = config_of(model_folder, text_file, training=training, evaluation={"n_tokens": 32})
    models = outline_models(config)
    said = needs(config, models, build_tokens(config.tokens, models), out=tmp_path)
    launch(config, tmp_path / "run", progress=False)
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert [path.name[-1:] for path in kept] == ["2", "4", "6"]
    assert said.disk.n_checkpoints == len(kept) + 1
    weights = sum(file.stat().st_size for file in kept[-1].rglob("*.safetensors"))
    assert said.disk.checkpoint == pytest.approx(weights, rel=0.05)
    coder = sum(file.stat().st_size for file in (tmp_path / "run" / "coder").glob("*.safetensors"))
    assert said.disk.dictionary == pytest.approx(coder, rel=0.05)


@pytest.mark.parametrize(
    ("every", "keep", "keep_every", "expected"),
    [(10, 2, 0, (10, 3)), (0, 2, 0, (1, 1)), (60, 2, 0, (2, 2)), (10, 1, 20, (10, 6)), (10, 2, 100, (10, 3))],
)
def test_checkpoints_on_disk_at_once(every: int, keep: int, keep_every: int, expected: tuple[int, int]) -> None:
    training = ms.TrainingConfig(checkpoint_every=every, keep_checkpoints=keep, keep_every=keep_every)
    plan = CheckpointPlan.of(training, 64, 100)
    assert (plan.n_written, plan.n_at_once) == expected


def test_a_dense_step_counts_every_latent() -> None:
    coder = ms.Transcoder(8, 4, 64, activation=ms.JumpReLU(), skip=True)
    work = step_operations(coder, ms.TrainingConfig(), ms.L0(target_l0=8))
    assert (work.encoder, work.rest) == (2 * 8 * 64, 2 * 64 * (8 + 3 * 4) + 4 * 8 * 4)


def test_a_stack_adds_up_its_layers() -> None:
    work = step_operations(ms.CLT([4, 4], [4, 4], 640, activation=ms.TopK(k=4)), ms.TrainingConfig(), None)
    assert work.encoder == 2 * 2 * 4 * 640
    assert work.rest == 2 * 4 * (4 + 3 * 8) + 2 * 4 * (4 + 3 * 4)


def test_an_outline_has_the_models_sites_and_no_weights(model: ms.LanguageModel, model_folder: Path) -> None:
    outline = load_outline(str(model_folder))
    assert outline.hook_names == model.hook_names
    assert [outline.site(name).width for name in outline.hook_names] == [model.site(n).width for n in model.hook_names]
    assert all(parameter.is_meta for parameter in outline.hf.parameters())
    names = [SITE, "blocks.1.attn.hook_z[1]", "blocks.0.ln2.hook_normalized", "model.layers.0.mlp:in"]
    ids = torch.zeros(1, 8, dtype=torch.long)
    shapes = {name: value.shape for name, value in outline.capture(ids.to("meta"), names).items()}
    assert shapes == {name: value.shape for name, value in model.capture(ids, names).items()}


def test_what_has_no_outline_is_refused(tmp_path: Path) -> None:
    transformers.PhiConfig(vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'phi' is not in the architecture table"):
        load_outline(str(tmp_path))
    with pytest.raises(ConfigError, match="placed by device_map"):
        load_outline("builtin", device_map="auto")
    with pytest.raises(ConfigError, match="quantised"):
        load_outline("builtin", model_kwargs={"quantization_config": {"load_in_4bit": True}})
    with pytest.raises(UserError, match=r"there is no model at .*nowhere/at/all"):
        load_outline(str(tmp_path / "nowhere" / "at" / "all"))


def test_a_forward_pass_that_looks_at_values_is_left_uncounted(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def route(*_: object) -> None:
        raise NotImplementedError("nonzero of a meta tensor")

    monkeypatch.setattr(NamedModels, "capture", route)
    found = needs_of(model_folder, text_file, tmp_path)
    assert (found.operations.model, found.operations.total) == (None, None)
    assert "model not counted" in str(Plan(found, (), None, None))


def test_too_little_text_is_refused_as_by_train(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the run wants .* the corpus gives"):
        needs_of(model_folder, text_file, tmp_path, training={"tokens": 10_000_000})


def test_free_memory_is_no_more_than_there_is() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert free_memory(torch.device("meta")) is None


def test_memory_the_system_reports(tmp_path: Path) -> None:
    from monosema.core.memory import _available, _below_limit

    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemFree: 1 kB\nMemAvailable:       7 kB\n")
    assert _available(tmp_path / "meminfo") == 7 * 1024
    assert _available(tmp_path / "none") is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert _below_limit(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert _below_limit(tmp_path) is None


def test_the_plan_is_json(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    planned = ms.plan(config_of(model_folder, text_file), seconds=0, out=tmp_path)
    plain = json.loads(json.dumps(planned.to_dict()))
    assert plain["needs"]["memory"][0]["total"] == planned.needs.memory[0].total
    assert plain["times"] is None and plain["problems"] == []
