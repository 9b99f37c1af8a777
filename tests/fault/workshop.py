"""Runs that start in an instant: a process that has imported and loaded everything, and forks a child for each.

usage: workshop.py MODEL_FOLDER TEXT_FILE. Reads a request a line (JSON), answers a line: how the child ended, what it
was doing when it was killed, and what it said.
"""

import json
import mmap
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import monosema as ms
from monosema.data import ActivationCache, ActivationStream, write_cache
from monosema.data.cache import write
from monosema.runs import training
from monosema.runs.config import EvaluationOptions
from monosema.runs.keeper import Keeper

NOW = mmap.mmap(-1, 64)
"""What the child's main thread (first half) and the writer of checkpoints (second half) are doing."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def say(what: str, place: int) -> None:
    NOW[place : place + 32] = what.encode().ljust(32)


def noted(home: Any, name: str, what: str, place: int = 0) -> None:
    """Let what ``name`` of ``home`` does be seen from outside."""
    function = getattr(home, name)

    def call(*arguments: Any, **options: Any) -> Any:
        before = NOW[place : place + 32].decode().strip()
        say(what, place)
        try:
            return function(*arguments, **options)
        finally:
            say(before, place)

    setattr(home, name, call)


def train(request: dict[str, Any], coder: Any, source: Any, **options: Any) -> None:
    out = Path(request["out"]) / "run"
    config = ms.TrainingConfig(
        **{"tokens": 64 * 60, "lr": 0.01, "checkpoint_every": 3, "log_every": 2, "eval_every": 15, **options}
    )
    evaluation = EvaluationOptions(n_tokens=64, n_loss_tokens=64)
    ms.train(coder, source, config, out=out, evaluation=evaluation, progress=False)


def from_stream(request: dict[str, Any], model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    stream = ActivationStream(model, tokens, "blocks.1.hook_resid_post", batch_size=64, chunk_contexts=20)
    best = {"keep_best": "heldout/fve", "n_checkpoints": 3, "revive": ms.AuxK(dead_after_tokens=200)}
    train(request, ms.SAE(16, 48, activation=ms.BatchTopK(k=4, threshold_rate=0.1)), stream, **best)


def from_cache(request: dict[str, Any], model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    folder = Path(request["out"]) / "cache"
    stream = ActivationStream(model, tokens, "blocks.0.hook_resid_post", batch_size=64, chunk_contexts=24, seed=1)
    write_cache(stream, folder, tokens=1200, shard_bytes=6000, dtype="float32")
    rows = ActivationCache(folder, 64, epochs=9, mix_bytes=1, validation_fraction=0.1)
    sparsity = ms.L0(target_l0=5.0)
    train(request, ms.SAE(16, 48, activation=ms.JumpReLU()), rows, sparsity=sparsity, tokens=64 * 45)


def several(request: dict[str, Any], model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    stream = ActivationStream(model, tokens, "blocks.1.hook_resid_post", batch_size=64, chunk_contexts=20)
    resample = ms.Resample(every_tokens=640, dead_after_tokens=128)
    coders = {
        "topk": ms.SAE(16, 48, activation=ms.TopK(k=3)),
        "relu": ms.SAE(16, 48, activation=ms.ReLU(), seed=1),
    }
    train(request, coders, stream, tokens=64 * 40, eval_every=0, revive=resample)


KINDS: dict[str, Callable[..., None]] = {"stream": from_stream, "cache": from_cache, "several": several}


def watch(request: dict[str, Any]) -> Callable[[], int]:
    """Count what is done to files below ``out``; kill, cut off or lock out at the moment asked for."""
    count, matches = 0, 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, matches
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (is_write or event in CHANGES) or not str(arguments[0]).startswith(request["out"]):
            return
        count += 1
        if count == request.get("kill_at_operation"):
            os.kill(os.getpid(), signal.SIGKILL)
        pattern = request.get("trouble_with")
        if pattern and is_write and re.search(pattern, str(arguments[0])):
            matches += 1
            if matches == request["occurrence"]:
                if request["trouble"] == "full":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
                else:
                    os.chmod(Path(arguments[0]).parent, 0o555)

    sys.addaudithook(hook)
    return lambda: count


def child(request: dict[str, Any], answer: int, model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    said: dict[str, Any] = {"error": None}
    if request.get("trouble") == "locked" and os.geteuid() == 0:
        os.setuid(65534)  # nobody: root may write anywhere
    count = watch(request)
    code = 0
    try:
        KINDS[request["kind"]](request, model, tokens)
    except BaseException as error:  # noqa: BLE001 - told to the test
        said = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        code = 1
    os.write(answer, json.dumps({**said, "operations": count()}).encode())
    os._exit(code)


def serve(request: dict[str, Any], model: ms.LanguageModel, tokens: ms.Tokens) -> dict[str, Any]:
    say("start", 0)
    say("", 32)
    start = time.monotonic()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        child(request, writing, model, tokens)
    os.close(writing)
    if "kill_after" in request:
        deadline = start + request["kill_after"]
        while time.monotonic() < deadline and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)  # at most it is a process that has ended and was not waited for
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    doing = [NOW[place : place + 32].decode().strip() for place in (0, 32)]
    said = json.loads(text) if text else {}
    return {"status": status, "doing": [each for each in doing if each], "seconds": time.monotonic() - start, **said}


def main() -> None:
    torch.set_num_threads(1)
    model = ms.load_model(sys.argv[1])
    tokens = ms.load_tokens(sys.argv[2], model.tokenizer, 32, heldout_fraction=0.1)
    noted(Keeper, "_write", "checkpoint", 32)
    noted(training, "save_coder", "coder")
    noted(training, "measure", "report")
    noted(write, "write_shard", "cache shard")
    noted(ms.Trainer, "step_prepared", "step")
    maker = type(ActivationStream(model, tokens, "blocks.1.hook_resid_post", batch_size=64)._maker)
    noted(maker, "make", "harvest")
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line), model, tokens)), flush=True)


if __name__ == "__main__":
    main()
