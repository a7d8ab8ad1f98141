"""The processes that cases run in: `python -m tests.paritybench.zygote GENERATED SECONDS BYTES`.

A zygote that has imported torch forks a child for each file, which imports the file and forks a child for each case.
Requests come on stdin, one line of JSON each, and each but `close` is answered by one line on stdout:

    {"open": PATH}                              -> {"imported": bool, "reason": text}
    {"case": N, "backend": NAME, "mode": NAME}  -> {"outcome": ..., "reason": ..., "seconds": ...}
    {"close": true}

The zygote and the file's child share both streams: while the child lives, it alone reads and answers.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


class Streams:
    """Requests and answers, unbuffered: what one process has not read is left for the other."""

    def __init__(self) -> None:
        self.requests, self.answers = os.dup(0), os.dup(1)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # programs print, and may read
            os.dup2(nowhere, stream)

    def read(self) -> Answer:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.requests, 1)
            if not byte:
                os._exit(0)
            line += byte
        return json.loads(line)

    def write(self, answer: Answer) -> None:
        os.write(self.answers, json.dumps(answer).encode() + b"\n")


def main() -> None:
    generated, seconds, memory = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    streams = Streams()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # noqa: F401

    import magpy.backend
    import magpy.lower  # noqa: F401
    from tests.paritybench import outcomes, stubs

    def serve_file(path: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # an import that hangs dies of it
        try:
            cases = getattr(stubs.execute(path, finder), "TESTCASES", [])
            answer = {"imported": True, "reason": ""}
        except BaseException as error:
            answer = {"imported": False, "reason": outcomes.describe(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        streams.write(answer)
        while "case" in (request := streams.read()):

            def work(asked: Answer = request) -> Answer:
                return outcomes.run_case(cases[asked["case"]], asked["backend"], asked["mode"], seconds / 3)

            streams.write(in_child(work, seconds, memory))

    finder = stubs.prepare(generated)
    died: Answer = {}
    while True:
        request = streams.read()
        if "case" in request:
            streams.write(died)
        if "open" not in request:
            continue
        child = os.fork()
        if child == 0:
            serve_file(request["open"])
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            reason = f"the file's process died: {ending(status)}"
            died = {"imported": False, "outcome": "error", "reason": reason, "seconds": 0.0}
            streams.write(died)


def in_child(work: Callable[[], Answer], seconds: float, memory: int) -> Answer:
    """What `work` answers in a process of its own; an `error` if it ends otherwise or takes too long."""
    started = time.monotonic()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            answer = work()
        except BaseException as error:
            answer = {"outcome": "error", "reason": f"{type(error).__name__}: {error}"[:300]}
        os.write(write_end, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    try:
        os.setpgid(child, child)  # by whoever comes first
    except OSError:
        pass
    finished = select.select([read_end], [], [], seconds)[0]
    text = os.read(read_end, 1 << 16) if finished else b""
    os.close(read_end)
    if text or not finished:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    status = os.waitpid(child, 0)[1]
    if text:
        answer = json.loads(text)
    else:
        reason = f"crash: {ending(status)}" if finished else f"more than {seconds:g} seconds"
        answer = {"outcome": "error", "reason": reason}
    return answer | {"seconds": round(time.monotonic() - started, 2)}


def ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    main()
