"""Streams that harvest the next chunk in a thread: the same rows, states and errors, and nothing that hangs."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import NonCallableMock

import pytest
import torch
from data_tiny import BOS, SITES, VOCAB, random_split, tiny_llama
from torch import Tensor

from monosema.core.errors import ConfigError, DataError
from monosema.data import ActivationStream, TokenSplit
from monosema.data import prefetch as prefetching
from monosema.data.harvest import Harvester
from monosema.data.prefetch import Prefetch
from monosema.models import LanguageModel

MAIN, PREFETCH = "MainThread", "monosema-prefetch"
PATIENCE = 20.0


def make_stream(model: Any, prefetch: bool = True, split: TokenSplit | None = None, **options: Any) -> ActivationStream:
    options = {"batch_size": 10, "chunk_contexts": 5, "model_batch_size": 2, "seed": 3, **options}
    return ActivationStream(model, split or random_split(), SITES[0], prefetch=prefetch, **options)


def in_time(function: Callable[[], Any]) -> list[Any]:
    """What ``function`` returns, unless it raises or hangs."""
    returned: list[Any] = []
    thread = threading.Thread(target=lambda: returned.append(function()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert returned
    return returned


def serve_into(served: list[Tensor], stream: ActivationStream) -> None:
    """What is served before an error is kept."""
    for batch in stream:
        served += [batch]


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == PREFETCH]


def await_the_end() -> None:
    for thread in alive():
        thread.join(PATIENCE)
        assert not thread.is_alive()


def same_states(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key] for key in a
    )


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    await_the_end()


class Watch:
    """Every pass of a harvester: in which thread, and held back in a prefetch while ``gate`` is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error: BaseException | None = None
        capture = Harvester.capture

        def watched(harvester: Harvester, tokens: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
            name = threading.current_thread().name
            self.threads.append(name)
            if name == PREFETCH:
                self.entered.set()
                assert self.gate.wait(PATIENCE)
                if self.error is not None:
                    raise self.error
            return capture(harvester, tokens, documents)

        monkeypatch.setattr(Harvester, "capture", watched)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize(("chunk_contexts", "batch_size"), [(1, 3), (1, 7), (5, 10), (7, 1), (24, 10), (30, 4)])
def test_rows_and_states_are_those_without(model: LanguageModel, chunk_contexts: int, batch_size: int) -> None:
    options = {"chunk_contexts": chunk_contexts, "batch_size": batch_size, "epochs": 2}
    plain, ahead = make_stream(model, False, **options), make_stream(model, True, **options)
    assert torch.equal(plain.preview(20), ahead.preview(20))
    n_batches = 0
    for expected in plain:
        assert torch.equal(next(ahead), expected)
        assert same_states(ahead.state_dict(), plain.state_dict())
        n_batches += 1
    assert n_batches * batch_size == plain.n_rows_served() > 0
    for _ in range(2):
        assert next(ahead, None) is None
        assert same_states(ahead.state_dict(), plain.state_dict())
    ahead.reset()
    plain.reset()
    assert torch.equal(next(ahead), next(plain))


def test_the_next_chunk_is_made_in_a_thread_while_one_is_served(model: LanguageModel, watch: Watch) -> None:
    stream = make_stream(model, chunk_contexts=6)
    stream.preview(5)
    assert watch.threads == [MAIN] * 3, "nothing is served yet"
    watch.gate.clear()
    next(stream)
    assert len(alive()) == 1
    state = stream.state_dict()
    assert (state["chunk_number"], state["position"], len(state["chunk_ids"])) == (1, 6, 6)
    watch.gate.set()
    await_the_end()
    assert watch.threads == [MAIN] * 3 + [PREFETCH] * 3
    list(stream)
    assert watch.threads == [MAIN] * 3 + [PREFETCH] * 9


def test_nothing_is_made_beyond_the_run(model: LanguageModel, watch: Watch) -> None:
    stream = make_stream(model, epochs=2)
    stream.plan(60)  # five contexts give 30 to 35 rows: two chunks
    for _ in range(6):
        next(stream)
    await_the_end()
    assert watch.threads == [MAIN] * 3 + [PREFETCH] * 3
    rest = list(stream)  # whoever goes on all the same is served
    assert sum(map(len, rest)) + 60 == stream.n_rows_served()


def test_resuming_is_bit_exact_either_way(model: LanguageModel) -> None:
    whole = list(make_stream(model, False, epochs=2))
    for prefetch in (False, True):
        stream = make_stream(model, prefetch, epochs=2)
        for done in range(0, len(whole), 3):
            resumed = make_stream(model, not prefetch, epochs=2, chunk_contexts=None)
            resumed.load_state_dict(stream.state_dict())
            for batch in whole[done : done + 4]:
                assert torch.equal(next(resumed), batch)
            for _ in range(3):
                next(stream, None)


def test_loading_a_state_while_a_chunk_is_made(model: LanguageModel) -> None:
    whole = list(make_stream(model, False))
    stream = make_stream(model)
    start = stream.state_dict()
    for n in (1, 4, 8, 11):
        for _ in range(n):
            next(stream)
        later = stream.state_dict()
        stream.load_state_dict(start)
        assert torch.equal(next(stream), whole[0])
        stream.load_state_dict(later)
        assert torch.equal(next(stream), whole[n])
        stream.reset()
    assert torch.equal(torch.cat(list(stream)), torch.cat(whole))


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_error_comes_where_its_chunk_would_have_begun(prefetch: bool) -> None:
    broken = tiny_llama()
    with torch.no_grad():
        broken.hf.model.embed_tokens.weight[VOCAB - 1] = float("inf")
    split = random_split(n_contexts=12)
    split = TokenSplit(split.contexts.clamp(max=VOCAB - 2), frozenset({BOS}), "train")
    order = make_stream(broken, False, split, batch_size=1).context_order(0)
    contexts = split.contexts.clone()
    contexts[order[5], 1:] = VOCAB - 1  # in the second chunk
    contexts[order[:5], 1:] = contexts[order[:5], 1:].clamp(min=3)
    stream = make_stream(broken, prefetch, TokenSplit(contexts, frozenset({BOS}), "train"), batch_size=7)
    for _ in range(5):
        next(stream)
    before = stream.state_dict()
    for _ in range(2):  # nothing is left out in silence
        with pytest.raises(DataError, match="not finite in chunk 1"):
            next(stream)
    after = stream.state_dict()
    assert (before["chunk_number"], before["position"], before["in_chunk"]) == (1, 5, True)
    assert (after["chunk_number"], after["position"], after["in_chunk"]) == (1, 5, False)


def test_an_error_keeps_its_type_and_is_raised_once(model: LanguageModel, watch: Watch) -> None:
    whole = list(make_stream(model, False))
    stream = make_stream(model)
    watch.error = InterruptedError("of the thread")
    served = [next(stream)]
    with pytest.raises(InterruptedError, match="of the thread"):
        serve_into(served, stream)
    assert 0 < len(served) < len(whole)
    watch.error = None
    assert torch.equal(torch.cat(served + list(stream)), torch.cat(whole))


def test_without_memory_for_two_chunks_they_are_made_one_after_the_other(
    model: LanguageModel, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = torch.cat(list(make_stream(model, False)))
    watch.threads.clear()
    watch.error = torch.OutOfMemoryError("no room")
    assert torch.equal(torch.cat(list(make_stream(model))), whole)
    assert watch.threads.count(PREFETCH) == 1
    assert "no memory for a second chunk" in caplog.text


@pytest.mark.parametrize("end", ["reset", "load", "drop"])
def test_giving_up_waits_for_one_forward_pass_at_most(model: LanguageModel, watch: Watch, end: str) -> None:
    stream = make_stream(model, chunk_contexts=12, model_batch_size=1)
    start, first = stream.state_dict(), next(stream)
    await_the_end()
    stream.reset()
    watch.threads.clear()
    watch.gate.clear()
    watch.entered.clear()
    next(stream)
    assert watch.entered.wait(PATIENCE)
    assert stream._prefetch is not None
    unwanted = stream._prefetch._unwanted
    threading.Thread(target=lambda: unwanted.wait(PATIENCE) and watch.gate.set()).start()
    if end == "reset":
        in_time(stream.reset)
    elif end == "load":
        in_time(lambda: stream.load_state_dict(start))
    else:
        del stream
    assert unwanted.wait(PATIENCE)
    await_the_end()
    assert watch.threads.count(PREFETCH) == 1, "eleven passes were left"
    if end != "drop":
        assert torch.equal(next(stream), first)


def test_a_consumer_that_is_interrupted_can_go_on(
    model: LanguageModel, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(make_stream(model, False))
    stream = make_stream(model)
    served, wait = [], prefetching.wait

    def interrupted(futures: Any) -> Any:
        monkeypatch.setattr(prefetching, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(prefetching, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve_into(served, stream)
    assert 0 < len(served) < len(whole)
    assert torch.equal(torch.cat(served + list(stream)), torch.cat(whole))


def test_whoever_uses_the_model_meanwhile_waits(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    run = LanguageModel._run

    def slow(model: LanguageModel, *arguments: Any) -> Any:
        if threading.current_thread().name == PREFETCH:
            time.sleep(0.002)  # with its hooks in place
        return run(model, *arguments)

    whole = list(make_stream(model, False, epochs=2))
    ids = random_split(seed=8).contexts[:3].long()
    logits, value = model(ids), model.capture(ids, [SITES[1]])[SITES[1]]
    with model.edits({SITES[0]: torch.zeros_like}):
        edited = model(ids)
    by_path = "model.layers.0.mlp:out"
    monkeypatch.setattr(LanguageModel, "_run", slow)

    def use(number: int) -> None:
        if number % 5 == 0:
            assert torch.equal(model(ids), logits)
        elif number % 5 == 1:
            with model.edits({SITES[0]: torch.zeros_like}):
                time.sleep(0.005)
                assert torch.equal(model(ids), edited)
        elif number % 5 == 2:
            assert torch.equal(model.capture(ids, [SITES[1]])[SITES[1]], value)
        elif number % 5 == 3:
            assert torch.equal(model.hf(input_ids=ids, use_cache=False).logits, logits)
        else:
            model._module_sites.pop(by_path, None)
            assert model.site(by_path).width == 16

    for shift in range(5):  # every use comes first in some chunk
        stream = make_stream(model, epochs=2)
        for number, expected in enumerate(whole):
            assert torch.equal(next(stream), expected)
            use(number + shift)
    await_the_end()
    assert not model._interceptor._reservations
    assert not model.hf._forward_pre_hooks


def test_a_model_is_run_by_one_of_several_streams_at_a_time(model: LanguageModel) -> None:
    names = [f"{key}:{SITES[0]}" for key in ("a", "b")]
    both = {"a": model, "b": tiny_llama()}

    def streams(prefetch: bool) -> list[ActivationStream]:
        options = {"batch_size": 10, "chunk_contexts": 5, "model_batch_size": 2, "prefetch": prefetch}
        several = ActivationStream(both, random_split(), names, **options)
        return [several, make_stream(model, prefetch), make_stream(both["b"], prefetch, chunk_contexts=3, seed=1)]

    expected = [list(each) for each in streams(False)]

    def interleaved() -> list[list[Tensor]]:
        ahead, served = streams(True), [[], [], []]
        for _ in range(max(map(len, expected))):
            for stream, rows in zip(ahead, served, strict=True):
                rows += [batch for batch in [next(stream, None)] if batch is not None]
        return served

    for rows, wanted in zip(*in_time(interleaved), expected, strict=True):
        assert torch.equal(torch.cat(rows), torch.cat(wanted))


def test_autocast_of_the_stream_holds_in_the_thread(model: LanguageModel, watch: Watch) -> None:
    low = torch.cat(list(make_stream(model, False, autocast="bfloat16")))
    assert torch.equal(torch.cat(list(make_stream(model, autocast="bfloat16"))), low)
    assert PREFETCH in watch.threads
    assert not torch.equal(low, torch.cat(list(make_stream(model, False))))


@pytest.mark.parametrize("whole_run", [False, True])
@pytest.mark.parametrize("kind", ["autocast", "edits", "inference"])
def test_what_the_caller_has_set_holds_as_without(
    model: LanguageModel, watch: Watch, kind: str, whole_run: bool
) -> None:
    def run(prefetch: bool) -> Tensor:
        contexts = {
            "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
            "edits": model.edits({SITES[0]: lambda value: 2 * value}),
            "inference": torch.inference_mode(),
        }
        stream, served = make_stream(model, prefetch), []
        for _ in range(0 if whole_run else 2):
            served.append(next(stream))
        with contexts[kind]:
            while len(served) < 6:  # into the second chunk
                served.append(next(stream))
        return torch.cat(served + list(stream)).clone()

    plain = run(False)
    watch.threads.clear()
    assert torch.equal(run(True), plain)
    assert PREFETCH in watch.threads
    assert kind == "inference" or not torch.equal(plain, torch.cat(list(make_stream(model, False))))


def test_off_by_default_on_the_cpu_and_refused_when_compiled(model: LanguageModel, watch: Watch) -> None:
    stream = ActivationStream(model, random_split(), SITES[0], 10, chunk_contexts=5)
    list(stream)
    assert set(watch.threads) == {MAIN}
    assert "prefetch" not in stream.record()
    assert "prefetch" not in stream.state_dict()["identity"]
    with pytest.raises(ConfigError, match="prefetch=True and compile='default'"):
        make_stream(model, compile="default")
    make_stream(model, False, compile="default")


def test_work_for_gpus_goes_to_streams_of_its_own(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, on stand-ins: what the caller has queued comes before, and all is done when it is taken."""
    calls: list[tuple[str, str]] = []
    stream_type = torch.cuda.Stream

    def note(call: str) -> None:
        calls.append((call, threading.current_thread().name))

    def side_stream(device: torch.device) -> Any:
        stream = NonCallableMock(spec=stream_type, device=device)
        stream.wait_stream.side_effect = lambda other: note(f"wait for {other}")
        stream.synchronize.side_effect = lambda: note("synchronize")
        return stream

    @contextlib.contextmanager
    def current(stream: Any) -> Iterator[None]:
        note(f"on {stream.device}")
        yield
        note(f"off {stream.device}")

    monkeypatch.setattr(torch.cuda, "Stream", side_stream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the caller's on {device}")
    made = make_stream(model, False)
    contexts = made._next_contexts()
    assert contexts is not None
    gpu = torch.device("cuda:0")
    ahead = Prefetch([model], [gpu, torch.device("cpu"), gpu])
    ahead.start(lambda go_on: made._maker.make(contexts, lambda: note("pass")))
    chunk = ahead.take()
    assert chunk is not None
    assert torch.equal(chunk.served(0, 10), next(made))
    assert calls == [
        ("wait for the caller's on cuda:0", MAIN),
        ("synchronize", PREFETCH),
        ("on cuda:0", PREFETCH),
        *[("pass", PREFETCH)] * 3,
        ("synchronize", PREFETCH),
        ("off cuda:0", PREFETCH),
    ]


SLOW_EXIT = """
import sys, time
sys.path.insert(0, {folder!r})
from data_tiny import SITES, random_split, tiny_llama
from monosema.data import ActivationStream
from monosema.data.harvest import Harvester

options = dict(chunk_contexts=200, model_batch_size=1, prefetch=True)
stream = ActivationStream(tiny_llama(), random_split(400), SITES[0], 10, **options)
stream.preview(1)
capture = Harvester.capture
Harvester.capture = lambda *arguments: (time.sleep(1), capture(*arguments))[1]
next(stream)
print("left", flush=True)
raise KeyboardInterrupt
"""


def test_python_exits_in_the_middle_of_a_chunk() -> None:
    script = SLOW_EXIT.format(folder=str(Path(__file__).parent))  # 200 seconds, if the chunk were waited for
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split() == ["left"]
    assert done.stderr.strip().endswith("KeyboardInterrupt")
