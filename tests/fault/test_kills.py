"""Runs killed at random moments, again and again, end as ones left alone, to the last bit.

``FAULT_RUNS`` runs (5 by default, 100 in ``make fault``) with ``FAULT_SEED``.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from fault_runs import Workshop, results

from monosema.runs.describe import describe

N_RUNS = int(os.environ.get("FAULT_RUNS", "5"))
SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
KINDS = ("stream", "cache", "several")


@pytest.mark.fault
def test_killed_runs_end_as_ones_left_alone(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, doing, n_kills = random.Random(SEED), Counter[str](), Counter[int]()
    with capsys.disabled():
        print(f"\n{N_RUNS} runs, FAULT_SEED={SEED}", flush=True)
    for number in range(N_RUNS):
        kind = KINDS[number % len(KINDS)]
        alone = workshop.alone(kind, tmp_path)
        killed = 0
        while killed == 0:  # one that ended before its moment came is no case
            out = tmp_path / f"run-{number}-{chance.randrange(10**9)}"
            for _ in range(chance.randint(1, 4)):
                if chance.random() < 0.5:
                    moment = {"kill_after": chance.uniform(0, workshop.seconds[kind])}
                else:
                    moment = {"kill_at_operation": chance.randint(1, workshop.operations[kind])}
                answer = workshop.run(kind, out, **moment)
                where = f"run {number} ({kind}), seed {SEED}, {moment}"
                if answer["status"] == -signal.SIGKILL:
                    killed += 1
                    doing.update(answer["doing"])
                else:
                    assert answer["status"] == 0, f"{where}: {answer.get('traceback', answer)}"
        answer = workshop.run(kind, out)
        assert answer["status"] == 0, f"run {number} ({kind}), seed {SEED}: {answer.get('traceback', answer)}"
        expected, found = results(alone), results(out)
        different = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        assert not different, f"run {number} ({kind}), seed {SEED}, killed {killed} times: {different}"
        for name in ("run",) if kind != "several" else ("run/topk", "run/relu"):
            assert "damaged" not in describe(out / name)
        n_kills[killed] += 1
        if (number + 1) % 10 == 0:
            with capsys.disabled():
                print(f"{number + 1} of {N_RUNS} ended equal; killed while: {dict(doing)}", flush=True)
    with capsys.disabled():
        print(f"all equal; killed {sum(n * times for n, times in n_kills.items())} times while: {dict(doing)}")
