"""Any optimiser of PyTorch's kind in place of fused Adam."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from training_tiny import BATCH, D, F, batches, differences, snapshot

import monosema as ms
from monosema.coders import SAE, BatchTopK
from monosema.core.errors import ConfigError
from monosema.training import Trainer, TrainingConfig

CONFIG = TrainingConfig(tokens=12 * BATCH, lr=1e-2, beta2=0.95, log_every=4)
MAKERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, betas=(0.9, 0.95), foreach=False),
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "sgd": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    "rprop": torch.optim.Rprop,
}


def trainer(make=None) -> Trainer:
    coder = SAE(D, F, activation=BatchTopK(k=3), dtype="float64", seed=1)
    made = Trainer(coder, CONFIG, BATCH, optimizer=make)
    made.initialise(batches(1)[0])
    return made


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.coder.named_parameters()}


def test_plain_adam_goes_where_the_fused_one_goes():
    fused, plain = trainer(), trainer(MAKERS["adam"])
    for batch in batches(12):
        fused.step(batch)
        plain.step(batch)
    for name, value in weights(fused).items():
        torch.testing.assert_close(weights(plain)[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_trains_skips_bad_steps_and_goes_on_from_its_state(name):
    data, whole = batches(12), trainer(MAKERS[name])
    start = weights(whole)
    for batch in data[:6]:
        whole.step(batch)
    assert any(not torch.equal(value, start[key]) for key, value in weights(whole).items())
    before = snapshot(whole)
    broken = data[0].clone()
    broken[0, 0] = math.nan
    whole.step(broken)
    assert set(differences(before, snapshot(whole))) == {"plain", "first_bad_step"}
    whole.load_state_dict({k: v for k, v in before.items() if k != "plain"}, before["plain"])
    resumed = trainer(MAKERS[name])
    resumed.load_state_dict({k: v for k, v in before.items() if k != "plain"}, before["plain"])
    for batch in data[6:]:
        whole.step(batch)
        resumed.step(batch)
    assert differences(snapshot(whole), snapshot(resumed)) == []


def test_the_runs_learning_rate_is_the_optimisers():
    seen = []

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    made = trainer(lambda parameters: Noted([{"params": parameters[:1]}, {"params": parameters[1:]}]))
    for batch in batches(3):
        made.step(batch)
    assert [each[0] for each in seen] == [each[1] for each in seen]
    assert seen[-1][0] == made.metrics()["lr"] <= made.lr


def test_one_that_leaves_parameters_out_is_refused():
    with pytest.raises(ConfigError, match="every parameter"):
        trainer(lambda parameters: torch.optim.SGD(parameters[1:]))


def test_a_run_records_it_and_is_not_gone_on_with_by_another(tmp_path: Path):
    rows = torch.cat(batches(12)).float()

    def run(**options):
        coder = ms.SAE(D, F, activation=ms.BatchTopK(k=3))
        return ms.train(coder, rows, CONFIG, batch_size=BATCH, out=tmp_path / "run", progress=False, **options)

    run(optimizer=torch.optim.NAdam)
    assert "torch.optim.nadam.NAdam" in (tmp_path / "run" / "config.yaml").read_text()
    assert run(optimizer=torch.optim.NAdam).resumed_from == run(optimizer=torch.optim.NAdam).n_steps
    with pytest.raises(ConfigError, match="optimizer"):
        run()
    with pytest.raises(ConfigError, match="optimizer"):
        run(optimizer=torch.optim.Adagrad)
