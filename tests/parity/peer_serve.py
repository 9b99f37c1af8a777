"""The peers' end of ``peer.Peer``: runs in their interpreters, so it imports nothing of ours and nothing of theirs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def serve(commands: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answer requests from standard input until it ends. What the peer prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = dict(commands[request.pop("command")](**request))
        except Exception as error:  # noqa: BLE001 - whatever the peer raises is the answer
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer) + "\n")
