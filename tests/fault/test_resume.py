"""A run killed at random steps ends with the same bits as one left alone."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_language import save_text, save_tiny_model

SCRIPT = Path(__file__).parent / "run_once.py"
N_STEPS = 100


class Run:
    """The child process and where it works."""

    def __init__(self, tmp_path: Path, name: str):
        self.out = tmp_path / name
        self.inputs = [str(tmp_path / "model"), str(tmp_path / "corpus.txt"), str(self.out)]

    def start(self, *extra: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, str(SCRIPT), *self.inputs, *extra], stdout=subprocess.PIPE, text=True)

    def finish(self) -> list[int]:
        with self.start() as process:
            output = process.communicate(timeout=300)[0].splitlines()
        assert process.returncode == 0
        assert output[-1] == "done"
        return [int(line.split()[1]) for line in output[:-1]]

    def kill_at(self, line_wanted: str, *extra: str) -> list[int]:
        """Start, send SIGKILL when the child says ``line_wanted``; the steps it said."""
        steps = []
        with self.start(*extra) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step "):
                    steps.append(int(line.split()[1]))
                if line.strip() == line_wanted:
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        return steps

    def weights(self) -> bytes:
        return (self.out / "coder" / "sae_weights.safetensors").read_bytes()


@pytest.mark.fault
def test_five_sigkills_one_of_them_in_a_checkpoint_write_change_no_bit(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    save_text(tmp_path / "corpus.txt")
    alone, killed = Run(tmp_path, "alone"), Run(tmp_path, "killed")
    assert alone.finish() == list(range(1, N_STEPS + 1))
    kills = sorted(random.Random(20).sample(range(1, 80), 4))
    for step in kills:
        steps = killed.kill_at(f"step {step}")
        assert steps[-1] == step
        assert (steps[0] - 1) % 7 == 0  # it went on from the newest whole checkpoint
    killed.kill_at("writing 91", "91")
    assert list((killed.out / "checkpoints").glob(".writing-*-step_000000091"))
    assert killed.finish() == list(range(85, N_STEPS + 1))
    assert killed.weights() == alone.weights()
    assert (killed.out / "metrics.jsonl").read_text() == (alone.out / "metrics.jsonl").read_text()


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_the_run_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    save_tiny_model(tmp_path / "model")
    save_text(tmp_path / "corpus.txt")
    run = Run(tmp_path, "run")
    with run.start() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "step 12":
                process.send_signal(number)
                break
        rest = [line for line in process.stdout if line.startswith("step ")]
    assert process.returncode != 0
    stopped_at = 12 + len(rest)
    assert (run.out / "checkpoints" / "latest").read_text().strip() == f"step_{stopped_at:09d}"
    assert run.finish()[0] == stopped_at + 1
