"""Dictionaries and models by name, from a stand-in hub on loopback; and folders that are not what they should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_in_hub import stand_in_hub
from tiny_language import save_tiny_model

import monosema as ms
from monosema.core.errors import FileError, UserError

FROM_HUB = """
import sys
import monosema as ms
model = ms.load_model("org/tiny")
print(model.record()["commit"], model.n_layers)
coder = ms.load("org/dictionaries", "layer_0")
print(coder.d_sae, float(coder.W_dec.abs().sum()))
for name, load in (("org/absent", ms.load_model), ("org/absent", ms.load), ("org/tiny", ms.load)):
    try:
        load(name)
    except ms.UserError as error:
        print("refused:", str(error).splitlines()[0])
"""


def activations() -> list[object]:
    return [ms.ReLU(), ms.TopK(k=3), ms.BatchTopK(k=3), ms.JumpReLU(), ms.Gated()]


def trained_like(coder: ms.SparseCoder) -> ms.SparseCoder:
    """Weights that are not those of a fresh coder."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter += 0.1 * torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
    if isinstance(coder.config.activation, ms.BatchTopK):
        coder.activation.set_threshold(0.25)
    return coder.requires_grad_(False)


@pytest.mark.parametrize("activation", activations(), ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("kind", ["sae", "output", "none", "transcoder", "skip"])
def test_saved_and_loaded_is_the_same_coder(activation: object, kind: str, tmp_path: Path) -> None:
    if kind in ("transcoder", "skip"):
        coder = ms.Transcoder(6, 5, 12, activation=activation, skip=kind == "skip", seed=3)
    else:
        coder = ms.SAE(6, 12, activation=activation, b_dec="input_and_output" if kind == "sae" else kind, seed=3)
    coder.bind("a", "a" if kind not in ("transcoder", "skip") else "b", {"model": {"name": "m"}})
    trained_like(coder)
    density = torch.linspace(-4, -1, 12)
    ms.save(coder, tmp_path / "saved", log10_density=density)
    loaded = ms.load(tmp_path / "saved")
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.encode(x), coder.encode(x))
    assert torch.equal(loaded(x), coder(x))
    assert loaded.config == coder.config
    assert loaded.metadata["model"] == {"name": "m"}
    assert torch.equal(loaded.metadata["log10_density"], density)
    ms.save(loaded, tmp_path / "again", log10_density=density)
    for name in sorted(path.name for path in (tmp_path / "saved").iterdir()):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


@pytest.mark.parametrize("kind", ["constant_norm", "layer_norm"])
@pytest.mark.parametrize("variant", ["crosscoder", "stack", "two biases"])
def test_token_scaling_is_kept_where_saelens_has_no_class(variant: str, kind: str, tmp_path: Path) -> None:
    own = {"activation": ms.ReLU(), "token_scaling": kind, "seed": 3}
    coder = {
        "crosscoder": lambda: ms.Crosscoder((3, 3), 12, **own),
        "stack": lambda: ms.CLT((3, 3), (3, 3), 6, **own),
        "two biases": lambda: ms.Transcoder(6, 6, 12, b_dec="separate", **own),
    }[variant]()
    trained_like(coder)
    loaded = ms.load(ms.save(coder, tmp_path / "saved"))
    assert (tmp_path / "saved" / "monosema.safetensors").exists()
    x = 9 * torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    assert loaded.config == coder.config
    assert torch.equal(loaded(x), coder(x))
    coder.set_token_scaling("none")
    assert not torch.allclose(loaded(x), coder(x), rtol=0.1)


def test_saving_over_a_dictionary_replaces_it_whole(tmp_path: Path) -> None:
    ms.save(ms.SAE(4, 8, activation=ms.ReLU()), tmp_path / "d")
    ms.save(ms.SAE(4, 16, activation=ms.TanhReLU()), tmp_path / "d")
    assert ms.load(tmp_path / "d").d_sae == 16
    assert not (tmp_path / "d" / "sae_weights.safetensors").exists(), "of the other format"


def test_saving_over_anything_else_is_refused_and_leaves_it(tmp_path: Path) -> None:
    ms.save(ms.SAE(4, 8, activation=ms.ReLU()), tmp_path / "d")
    (tmp_path / "d" / "notes.md").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match=r"holds more than a dictionary \(notes.md\)"):
        ms.save(ms.SAE(4, 16, activation=ms.ReLU()), tmp_path / "d")
    with pytest.raises(FileError, match="is a file"):
        ms.save(ms.SAE(4, 16, activation=ms.ReLU()), tmp_path / "file")
    assert (tmp_path / "d" / "notes.md").read_text() == (tmp_path / "file").read_text() == "mine"
    assert ms.load(tmp_path / "d").d_sae == 8


def broken(tmp_path: Path, change: str) -> Path:
    folder = ms.save(ms.SAE(4, 8, activation=ms.ReLU()), tmp_path / "d")
    config = json.loads((folder / "cfg.json").read_text())
    weights = folder / "sae_weights.safetensors"
    if change == "no weights":
        weights.unlink()
    elif change == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif change == "pickle":
        torch.save({"W_enc": torch.zeros(2)}, weights)
    elif change == "shape":
        config["d_sae"] = 9
    elif change == "architecture":
        config["architecture"] = "jumprelo"
    elif change == "no width":
        del config["d_in"]
    (folder / "cfg.json").write_text("[1, 2" if change == "json" else json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no weights", "no sae_weights.safetensors"),
        ("cut", r"cannot read .*sae_weights.safetensors: the file is cut short .*download or copy it again"),
        ("pickle", r"cannot read .*sae_weights.safetensors: .* no safetensors file"),
        ("shape", r"W_enc is \[4, 8\], cfg.json says \[4, 9\]"),
        ("architecture", "did you mean 'jumprelu'"),
        ("no width", "does not state d_in"),
        ("json", "not valid JSON"),
    ],
)
def test_a_damaged_folder_is_named(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ms.load(broken(tmp_path, change))


def test_an_untrained_batchtopk_has_no_threshold_to_save(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no threshold yet"):
        ms.save(ms.SAE(4, 8, activation=ms.BatchTopK(k=2)), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_names_are_downloaded_from_the_hub(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    coder = ms.SAE(16, 24, activation=ms.TopK(k=2), seed=9)
    ms.save(coder, tmp_path / "dictionaries" / "layer_0")
    with stand_in_hub({"org/tiny": tmp_path / "model", "org/dictionaries": tmp_path / "dictionaries"}) as (url, seen):
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        result = subprocess.run(
            [sys.executable, "-c", FROM_HUB], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "0000000000000000000000000000000000000001 2"
    assert lines[1].split()[0] == "24"
    assert float(lines[1].split()[1]) == pytest.approx(float(coder.W_dec.detach().abs().sum()), rel=1e-6)
    assert len([line for line in lines if line.startswith("refused: ")]) == 3
    assert "GET org/dictionaries/resolve" in " ".join(seen)


def test_a_name_without_network_is_a_clear_error() -> None:
    with pytest.raises(FileError, match=r"no folder 'org/absent' here, and no such repository.*folder that holds cfg"):
        ms.load("org/absent")


def test_a_native_folder_that_was_cut_short_is_named(tmp_path: Path) -> None:
    ms.save(ms.Crosscoder([4, 4], 8, activation=ms.ReLU()), tmp_path / "d")
    weights = tmp_path / "d" / "monosema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(FileError, match=r"cannot read .*monosema.safetensors: the file is cut short .*copy it again"):
        ms.load(tmp_path / "d")


def test_a_missing_folder_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", looked_up)
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", Path("runs/nowhere"), "a/b/c"):
        with pytest.raises(FileError, match=r"there is no folder .*; give the path of a run folder, or of a folder"):
            ms.load(source)
    with pytest.raises(AssertionError, match="the hub was asked"):
        ms.load("owner/name")
    with pytest.raises(FileError, match=r"holds no dictionary under 'a' .*give the path of a run folder"):
        ms.load(tmp_path, "a")
