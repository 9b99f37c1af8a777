"""A format of another package, from its registration to its files; and what no format can hold."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import monosema as ms
from monosema.core.errors import ConfigError, FileError, UnknownNameError
from monosema.core.files import read_json, write_json
from monosema.formats import DictionarySpec, Fit, Format, PartSpec, Rule, SiteSpec, register, registry, unregister
from monosema.hub import to_spec
from monosema.runs.describe import describe

SOURCE = Path(ms.__file__).parent


@dataclass(frozen=True)
class ToyFormat:
    """ReLU SAEs as lists of numbers: a whole format, as another package would add it."""

    name: str = "toy"
    files: Mapping[str, str] = field(default_factory=lambda: {"toy.json": "site and weights", "part_*.toy": "nothing"})

    def claims(self, place: Path) -> bool:
        return self._file(place).is_file()

    def read(self, place: Path) -> DictionarySpec:
        where = self._file(place)
        plain = read_json(where)
        try:
            tensors = {name: torch.tensor(plain[name]) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{where} lacks weights, or they are not numbers: {error}") from error
        part = PartSpec(**tensors, subtracts_b_dec=True, rule=Rule(name="relu"))
        site = (SiteSpec(name=plain.get("site"), width=part.d_in),)
        metadata = {"toy": plain["toy"]} if "toy" in plain else {}
        return DictionarySpec(kind="coder", parts=(part,), reads=site, writes=site, dtype="float32", metadata=metadata)

    def can_hold(self, spec: DictionarySpec) -> Fit:
        part = spec.parts[0]
        is_sae = spec.kind == "coder" and len(spec.reads) == 1 and spec.reads == spec.writes and part.W_skip is None
        if not is_sae or part.bias_mode != "input_and_output" or part.token_scaling != "none":
            return Fit("it holds SAEs with one bias, without scaling of tokens")
        if part.rule is None or part.rule.name != "relu":
            return Fit("it holds ReLU latents only")
        return Fit()

    def write(self, spec: DictionarySpec, folder: Path) -> None:
        part = spec.parts[0]
        plain = {name: getattr(part, name).tolist() for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        write_json(folder / "toy.json", {"site": spec.reads[0].name, **plain})

    def _file(self, place: Path) -> Path:
        return place if place.suffix == ".toy" else place / "toy.json"


@pytest.fixture
def toy() -> Iterator[ToyFormat]:
    register(ToyFormat())
    yield ToyFormat()
    unregister("toy")


def sae(activation: Any = None, **options: Any) -> ms.SparseCoder:
    coder = ms.SAE(4, 8, activation=activation or ms.ReLU(), hook_name="blocks.0.hook_resid_post", **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter += torch.rand(parameter.shape, generator=generator) / 8
    return coder.requires_grad_(False)


X = torch.linspace(-2, 2, 12).reshape(3, 4)


def test_a_registered_format_saves_and_loads(toy: ToyFormat, tmp_path: Path) -> None:
    assert isinstance(toy, Format)
    coder = sae()
    folder = ms.save(coder, tmp_path / "d", format="toy")
    assert [path.name for path in folder.iterdir()] == ["toy.json"]
    loaded = ms.load(folder)
    assert torch.equal(loaded(X), coder(X)) and loaded.hook_name == coder.hook_name
    assert "8 latents, ReLU()" in describe(folder)
    other = ms.save(loaded, tmp_path / "e")
    assert (other / "sae_weights.safetensors").exists(), "the default stays"
    assert torch.equal(ms.load(other)(X), coder(X))


def test_a_dictionary_may_be_one_file(toy: ToyFormat, tmp_path: Path) -> None:
    coder = sae()
    (ms.save(coder, tmp_path / "d", format="toy") / "toy.json").rename(tmp_path / "layer_0.toy")
    assert torch.equal(ms.load(tmp_path / "layer_0.toy")(X), coder(X))
    assert torch.equal(ms.load(tmp_path, "layer_0.toy")(X), coder(X))


def refused() -> dict[str, tuple[Any, str]]:
    return {
        "activation": (sae(ms.TopK(k=2)), "it holds ReLU latents only"),
        "transcoder": (ms.Transcoder(4, 4, 8, activation=ms.ReLU(), hook_name="a", hook_name_out="b"), "it holds SAEs"),
        "crosscoder": (ms.Crosscoder([4, 4], 8, activation=ms.ReLU()), "it holds SAEs"),
        "stack": (ms.CLT([4, 4], [4, 4], 8, activation=ms.ReLU()), "it holds SAEs"),
        "scaling": (sae(token_scaling="layer_norm"), "without scaling of tokens"),
    }


@pytest.mark.parametrize("what", list(refused()))
def test_what_it_cannot_hold_is_refused_with_the_formats_that_can(what: str, toy: ToyFormat, tmp_path: Path) -> None:
    coder, reason = refused()[what]
    words = rf"the format 'toy' cannot hold this dictionary: .*{reason}.*; use .*format='monosema'"
    with pytest.raises(ConfigError, match=words):
        ms.save(coder, tmp_path / "d", format="toy")
    assert not (tmp_path / "d").exists()


def test_saving_over_one_replaces_it_and_nothing_else(toy: ToyFormat, tmp_path: Path) -> None:
    folder = ms.save(sae(), tmp_path / "d", format="toy")
    (folder / "part_1.toy").write_text("")
    ms.save(sae(), folder)
    assert not (folder / "toy.json").exists() and ms.load(folder).d_sae == 8
    (folder / "part_1.toy").write_text("mine: no dictionary of this format is here")
    with pytest.raises(FileError, match=r"holds more than a dictionary \(part_1.toy\)"):
        ms.save(sae(), folder)
    assert (folder / "part_1.toy").exists()


def test_names_are_told_apart(toy: ToyFormat, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'saelen'; did you mean 'saelens'"):
        ms.save(sae(), tmp_path / "d", format="saelen")
    with pytest.raises(ConfigError, match="a format named 'saelens' is known already"):
        register(ToyFormat(name="saelens"))
    with pytest.raises(ConfigError, match="'empty' names no files"):
        register(ToyFormat(name="empty", files={}))
    with pytest.raises(UnknownNameError, match="unknown registered format 'saelens'"):
        unregister("saelens")


def test_error_texts_and_downloads_name_its_files(
    toy: ToyFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileError, match=r"\(toy.json or cfg.json is missing\); give .*a folder that holds toy.json or"):
        ms.load(tmp_path / "nothing")
    ms.save(sae(), tmp_path / "layer_0", format="toy")
    asked: list[str] = []

    def fetched(repo: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    assert ms.load("owner/name", "layer_0").d_sae == 8
    assert {"layer_0", "layer_0/toy.json", "layer_0/part_*.toy", "layer_0/cfg.json"} <= set(asked)
    with pytest.raises(FileError, match=r"repository 'owner/name' holds no layer_1/toy.json or cfg.json"):
        ms.load("owner/name", "layer_1")


def test_what_it_recorded_is_kept_by_other_formats_and_must_be_a_mapping(toy: ToyFormat, tmp_path: Path) -> None:
    plain = read_json(ms.save(sae(), tmp_path / "d", format="toy") / "toy.json")
    write_json(tmp_path / "d" / "toy.json", {**plain, "toy": {"author": "x"}})
    again = ms.save(ms.load(tmp_path / "d"), tmp_path / "again")
    assert ms.load(again).metadata["toy"] == {"author": "x"}
    write_json(tmp_path / "d" / "toy.json", {**plain, "toy": ["author"]})
    with pytest.raises(FileError, match="toy must be a mapping, got a list of 1"):
        ms.load(tmp_path / "d")


def test_a_damaged_file_of_it_is_named(toy: ToyFormat, tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text('{"W_enc": [[1.0]]}')
    with pytest.raises(FileError, match=r"toy\.json lacks weights"):
        ms.load(tmp_path)
    narrow = {"W_enc": [[1.0, 2.0]], "W_dec": [[1.0]], "b_enc": [0.0, 0.0], "b_dec": [0.0]}
    (tmp_path / "toy.json").write_text(json.dumps(narrow))
    with pytest.raises(
        FileError, match=r"holds no dictionary that can be used: .*do not fit its config: W_dec is \[1, 1\]"
    ):
        ms.load(tmp_path)


@pytest.mark.parametrize("rule", ["squared_relu", "tanhrelu", "batchtopk", "absthreshold", None])
def test_a_rule_that_a_layout_does_not_know_is_never_written_as_another(rule: str | None) -> None:
    spec = to_spec(sae())
    named = None if rule is None else Rule(name=rule)
    unknown = replace(spec, parts=(replace(spec.parts[0], rule=named),))
    assert registry.writer(spec).name == "saelens"
    assert registry.writer(unknown).name == "monosema"
    with pytest.raises(ConfigError, match=r"'saelens' cannot hold .* of an SAE for the .*; use format='monosema'"):
        registry.writer(unknown, "saelens")


@dataclass(frozen=True, kw_only=True)
class Squared:
    """An activation that nothing here knows."""

    is_variant: ClassVar[bool] = True


def test_an_activation_that_names_no_rule_is_saved_by_its_own_name_alone(tmp_path: Path) -> None:
    coder = sae()
    object.__setattr__(coder.config, "activation", Squared())
    object.__setattr__(coder.activation, "saved_rule", lambda dtype: None)
    with pytest.raises(ConfigError, match="an SAE for the activation Squared, which names no rule"):
        ms.save(coder, tmp_path / "d", format="saelens")
    folder = ms.save(coder, tmp_path / "d")
    assert read_json(folder / "cfg.json")["dictionary"]["activation"] == {"kind": "Squared"}
    with pytest.raises(FileError, match="Squared"):
        ms.load(folder)


REASONS = {
    "stack": (lambda: ms.CLT([4, 4], [4, 4], 8, activation=ms.ReLU()), "it has no stack of coders"),
    "sites": (lambda: ms.Crosscoder([4, 4], 8, activation=ms.ReLU()), "no dictionary of several sites"),
    "bias": (lambda: sae(b_dec="separate"), "no second bias"),
    "signed": (
        lambda: ms.Transcoder(4, 4, 8, activation=ms.AbsTopK(k=2), hook_name="a", hook_name_out="b", skip=True),
        "no architecture of a transcoder with a skip connection for the rule 'abstopk'",
    ),
    "norms": (lambda: sae(ms.TopK(k=2)), "do not compete by the decoder's norms"),
}


@pytest.mark.parametrize("what", list(REASONS))
def test_saelens_says_why_it_cannot_hold_a_dictionary(what: str) -> None:
    make, reason = REASONS[what]
    with pytest.raises(ConfigError, match=rf"the format 'saelens' cannot hold this dictionary: .*{reason}"):
        registry.writer(to_spec(make()), "saelens")


def test_every_file_of_a_format_says_what_is_used_of_it() -> None:
    for each in registry.formats():
        assert each.files and all(words.strip() for words in each.files.values()), each.name


def test_no_other_file_knows_a_format_by_name() -> None:
    """The registry lists the formats; ``compat`` speaks to the peers themselves."""
    own = [SOURCE / "formats/saelens", SOURCE / "formats/native.py", SOURCE / "formats/registry.py", SOURCE / "compat"]
    modules = {"monosema.formats.saelens", "monosema.formats.native"}
    for path in SOURCE.rglob("*.py"):
        source = path.read_text()
        if any(each in (path, *path.parents) for each in own) or not ("saelens" in source or "native" in source):
            continue
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            assert not modules & set(names), f"{path.relative_to(SOURCE)} imports a format"
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            assert text != "saelens", f"{path.relative_to(SOURCE)}:{node.lineno} names a format"
