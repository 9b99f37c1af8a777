"""A peer's interpreter as a child process: one JSON request a line in, one JSON answer a line out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class PeerError(Exception):
    """What the peer raised: ``kind`` is its class, the message its own."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Peer:
    """Runs ``script`` with ``python``; ``call`` is one request.

    Importing a peer takes seconds, so one process serves all tests.
    """

    def __init__(self, python: Path, script: str, log: Path):
        self._log = log
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # the peer must not see our packages
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, HERE / script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def call(self, command: str, **arguments: Any) -> Mapping[str, Any]:
        """The peer's answer; ``PeerError`` where it raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the peer ended: {self._log.read_text()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"], answer["message"])
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)
