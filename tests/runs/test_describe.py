"""What ``inspect`` says of each kind of folder."""

import signal
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.core.errors import FileError
from monosema.core.files import write_json
from monosema.data import ArrayRows
from monosema.data.cache.manifest import CachePlan, Manifest
from monosema.data.cache.shards import ShardRecord
from monosema.data.packed.manifest import FoundText, StoredShard, StoredSide, TokenPlan
from monosema.data.packed.manifest import Manifest as TokenManifest
from monosema.data.packed.tokenizer import TokenizerIdentity
from monosema.data.packing_config import Packing
from monosema.runs.describe import describe

ROWS = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))


def train(out: Path, stop_at: int | None = None) -> None:
    def stop(trainer: ms.Trainer) -> None:
        if trainer.step_number == stop_at:
            signal.raise_signal(signal.SIGINT)

    config = ms.TrainingConfig(tokens=240, lr=0.01, checkpoint_every=4)
    rows = ArrayRows(ROWS, 20, validation_fraction=0.2)
    ms.train(ms.SAE(8, 16, activation=ms.TopK(3)), rows, config, out=out, on_step=stop, progress=False)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that was stopped, and one that was given up."""
    home = tmp_path_factory.mktemp("sweep")
    train(home / "done")
    with pytest.raises(ms.RunInterrupted):
        train(home / "stopped", stop_at=6)
    with pytest.raises(ms.RunInterrupted):
        train(home / "failed", stop_at=6)
    write_json(home / "failed" / "failure.json", {"error": "step 7 is not finite"})
    return home


def test_an_unfinished_run_says_how_far_it_is(sweep: Path) -> None:
    text = describe(sweep / "stopped")
    assert "not finished: step 6, 120 of 240 tokens (50%)" in text
    assert "--name latest" in text and "resumes it" in text
    latest = describe(sweep / "stopped", "latest")
    assert "SAE, 16 latents, TopK(k=3)" in latest and "not finished: step 6, 120 of 240 tokens (50%)" in latest
    assert "not finished" not in describe(sweep / "done")


def test_a_run_that_was_given_up_says_why(sweep: Path) -> None:
    text = describe(sweep / "failed")
    assert "given up at step 6" in text and "step 7 is not finite" in text and "resumes it" not in text


def test_a_sweep_lists_its_runs(sweep: Path) -> None:
    lines = {line.split()[0]: line for line in describe(sweep).splitlines()}
    assert "3, 1 of them with a finished dictionary" in lines["runs"]
    report = ms.Report.load(sweep / "done" / "report.json")
    assert f"fve {report.fve:.4f}, l0 {report.l0:.1f}, dead_fraction {report.dead_fraction:.4f}" in lines["done"]
    assert "step 6, 120 of 240 tokens" in lines["stopped"] and "given up" in lines["failed"]
    assert "figures" in describe(sweep, "done") and "step 6" in describe(sweep, "stopped")


def test_a_damaged_dictionary_is_no_unfinished_run(sweep: Path, tmp_path: Path) -> None:
    train(tmp_path / "run")
    (tmp_path / "run" / "coder" / "cfg.json").unlink()
    with pytest.raises(FileError, match=r"holds no dictionary|written no checkpoint"):
        describe(tmp_path / "run")


def test_a_cache(tmp_path: Path) -> None:
    plan = CachePlan(
        (("blocks.0.hook_mlp_in", 8),), (("blocks.0.hook_mlp_out", 8),), "float16", 3, 50,
        {"model": {"name": "tiny"}, "tokens": {"source": "stdlib"}},
    )  # fmt: skip
    write_json(tmp_path / "plan.json", plan.plain())
    assert "is not finished (0 of 3 chunks)" in describe(tmp_path)
    record = ShardRecord("chunk-00000-0000.safetensors", 50, 2**29, "a", "b")
    write_json(tmp_path / "manifest.json", Manifest(plan, (record,)).plain())
    text = describe(tmp_path)
    for part in ("50 rows in 1 shard of float16, 0.50 GiB", "blocks.0.hook_mlp_out (8 wide)", "tiny", "stdlib"):
        assert part in text


def test_packed_tokens(tmp_path: Path) -> None:
    identity = TokenizerIdentity(name="gpt2", vocab_size=9, vocab_sha256="b", sha256="c")
    plan = TokenPlan(
        text={"source": "my_texts"}, context_size=4, heldout_fraction=0.1, packing=Packing(),
        attend_across_documents=True, marks={}, padding=0, special_token_ids=(), tokenizer=identity, shard_contexts=8,
    )  # fmt: skip
    side = StoredSide(shards=(StoredShard(file="data-00000.arrow", n_contexts=2, n_bytes=9, crc32=7),), fingerprint="e")
    TokenManifest(plan=plan, train=side).write(tmp_path)
    text = describe(tmp_path)
    assert "contexts of 4 tokens: 2 for training, 0 held out" in text and "not finished" in text
    found = FoundText(text_sha256="f", n_documents=3, n_heldout_documents=1)
    TokenManifest(plan=plan, train=side, heldout=side, text=found).write(tmp_path)
    text = describe(tmp_path)
    for part in ("2 for training, 2 held out", "my_texts", "gpt2, 9 tokens", "3, of which 1 are held out"):
        assert part in text


def test_a_feature_store(tmp_path: Path, model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    coder = ms.SAE(16, 8, activation=ms.TopK(2), hook_name="blocks.1.hook_resid_post")
    store = ms.collect_features(coder, model, tokens, n_tokens=64, contexts_per_latent=2, progress=False)
    store.save(tmp_path / "features")
    text = describe(tmp_path / "features")
    assert f"{len(store)} of 8 latents fired on {store.numbers.n_tokens} tokens (heldout)" in text
    assert "blocks.1.hook_resid_post" in text and "2 best of each latent, 32 tokens each" in text


def test_a_folder_of_nothing_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no dictionary"):
        describe(tmp_path)
