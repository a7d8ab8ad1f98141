"""Does calling make the process grow? `python -m tests.growth --calls 10000` says so for each of its programs.

Each program is called until it is warm and then many times more; what then still grows with the calls is a leak: memory
blocks of Python, objects that the collector knows, memory of the C library, resident pages, references to arguments.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch._dynamo
from torch import nn

X = torch.arange(4.0)
Program = Callable[[], tuple[Callable[[], Any], list[Any]]]  # -> one call, and objects whose references are counted
PROGRAMS: dict[str, Program] = {}


def program(make: Program) -> Program:
    PROGRAMS[make.__name__] = make
    return make


def compiled(target: Any) -> Any:
    return torch.compile(target, backend="magpy")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.calls, self.log, self.table = 0, ["start"], {"n": 0}

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        self.log.append(self.calls % 2)
        if len(self.log) > 3:
            self.log.clear()
        self.table["n"] = self.calls % 3
        self.last = self.b(self.a(x))
        return {"out": self.last, "views": (self.last[:1], x), "text": f"{self.calls % 2}"}


@program
def inference() -> Any:
    net = nn.Linear(4, 4).requires_grad_(False)
    fast = compiled(net)
    return lambda: fast(X), [X, net, net.weight]


@program
def frozen_in_inference_mode() -> Any:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    fast, x = torch.compile(net, backend="magpy", options={"freezing": True}), torch.rand(1, 1, 4, 4)

    def call() -> None:
        with torch.inference_mode():
            fast(x)

    return call, [x, net, net[0].weight]


@program
def sparse() -> Any:
    places, a = torch.arange(4).expand(2, 4), torch.eye(4).to_sparse()

    def call(a: torch.Tensor, x: torch.Tensor) -> Any:
        made = torch.sparse_coo_tensor(places, x.exp(), (4, 4)).coalesce()
        return made @ x, a @ x, a * 2, torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)

    fast = compiled(call)
    return lambda: fast(a, X), [a, X, places]


@program
def state_and_structures() -> Any:
    net = Net()
    fast = compiled(net)
    x = torch.rand(3, 4)

    def call() -> None:
        with torch.no_grad():
            fast(x)

    return call, [x, net, net.a.weight, net.b.running_mean]


@program
def training() -> Any:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    fast = compiled(net)

    def call() -> None:
        fast(X).sum().backward()
        net.zero_grad()

    return call, [X, net, net[0].weight]


@program
def training_by_parts() -> Any:
    w = torch.ones(4, requires_grad=True)
    fast = compiled(lambda x: (x * w.sin(), w.cumsum(0), (x * w).sum()))

    def call() -> None:
        for part in fast(X):
            part.sum().backward()
        w.grad = None
        fast(X)  # and one that nobody differentiates

    return call, [X, w]


@program
def branches_on_data() -> Any:
    fast = compiled(lambda x: x + 1 if (x > 0).any() else x * x.sum().item())
    sign = [1]

    def call() -> None:
        sign[0] = -sign[0]
        fast(X * sign[0])

    return call, [X]


@program
def data_that_never_comes_back() -> Any:
    fast = compiled(lambda x: x * 2 if x.tolist()[0] > 0.5 else x)
    return lambda: fast(torch.rand(4)), [X]


@program
def exceptions() -> Any:
    def raising(x: torch.Tensor) -> Any:
        try:
            raise ValueError(x * 2)
        except ValueError as error:
            if len(error.args) == 1:
                raise KeyError("no") from error

    fast = compiled(raising)

    def call() -> None:
        try:
            fast(X)
        except KeyError:
            pass

    return call, [X]


@program
def failing_operators() -> Any:
    fast = compiled(lambda x, y: x @ y)
    fast(X, X)
    wrong = torch.ones(3)

    def call() -> None:
        fast(X, X)
        try:
            fast(X, wrong)
        except RuntimeError:
            pass

    return call, [X, wrong]


@program
def frames_that_fall_back() -> Any:
    def inner(x: torch.Tensor) -> Any:
        return x * 2

    def outer(x: torch.Tensor) -> Any:
        return inner(x) + len(str(sys._getframe())) * 0

    fast = compiled(outer)
    return lambda: fast(X), [X, inner]


@program
def new_objects_as_arguments() -> Any:
    class Box:
        def __init__(self, items: list[Any]) -> None:
            self.items = items

    fast = compiled(lambda box, **named: [item * box.items[0] for item in box.items] + [named["k"]])
    return lambda: fast(Box([X, X + 1]), k=Box([])), [X, Box]


@program
def lists_and_deques() -> Any:
    recent: deque[Any] = deque(maxlen=3)

    def writing(items: list[torch.Tensor]) -> Any:
        recent.append(items[0].sum())
        return {"items": [t * 2 for t in items], "n": len(recent)}

    fast, items = compiled(writing), [X, X + 1]
    return lambda: fast(items), [X, items, recent]


@program
def new_shapes() -> Any:
    fast, n = compiled(lambda x: x.sum(0) * x.shape[0]), [0]

    def call() -> None:
        n[0] = n[0] % 18 + 1  # more than there may be traces
        fast(X.expand(n[0], 4))

    return call, [X]


@program
def written_inputs_and_aliases() -> Any:
    def writing(x: torch.Tensor, y: torch.Tensor) -> Any:
        x.mul_(0.5).add_(y)
        return x, x[1:], y.view(2, 2)

    fast, x = compiled(writing), X.clone()
    return lambda: fast(x, X), [x, X]


@program
def printing_and_closures() -> Any:
    def writing(x: torch.Tensor) -> Any:
        print("printed", x.shape, file=nowhere)
        return lambda n=1: x * n

    nowhere = open(os.devnull, "w")  # noqa: SIM115
    fast = compiled(writing)
    return lambda: fast(X)(), [X]


@program
def callables_made_and_dropped() -> Any:
    def call() -> None:
        fast = compiled(lambda x: x + 1)
        fast(X), fast(X)
        torch._dynamo.eval_frame.cached_backends.clear()  # torch keeps an object for every torch.compile there ever was

    return call, [X]


# -- Measuring --------------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    blocks: int  # memory blocks of Python
    objects: int  # that the collector knows
    heap: int  # bytes of the C library in use
    resident: int  # bytes
    references: list[int]


MALLINFO = "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keep".split()


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


def heap() -> int:
    """Bytes that the C library has given out, or 0 where it does not say."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo
    info = mallinfo2()
    return info.used + info.hblkhd


def size(counted: list[Any]) -> Size:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    references = [sys.getrefcount(each) for each in counted]
    return Size(sys.getallocatedblocks(), len(gc.get_objects()), heap(), pages * os.sysconf("SC_PAGE_SIZE"), references)


ROUNDS = 3  # of stretches that must all show growth: free lists and caches of Python's fill up slowly, a leak goes on


def growth(name: str, calls: int, warm: int) -> str | None:
    """What grows with the calls of a program, or None: what grows in each of four stretches of calls, and again in
    rounds of longer ones, is a leak."""
    torch.manual_seed(0)
    call, counted = PROGRAMS[name]()
    for _ in range(warm):
        call()
    found = None
    for number in range(ROUNDS):
        found = _grown(call, counted, calls << number)
        if found is None:
            break
    return found


def _grown(call: Callable[[], Any], counted: list[Any], calls: int) -> str | None:
    sizes = [size(counted)]
    for _ in range(4):
        for _ in range(calls // 4):
            call()
        sizes.append(size(counted))
    steps = list(zip(sizes, sizes[1:], strict=False))
    if sizes[-1].references != sizes[0].references:
        return f"references {sizes[0].references} -> {sizes[-1].references}"
    for field, least in (("blocks", 25), ("objects", 8), ("heap", 4096), ("resident", 1 << 16)):
        grown = [getattr(b, field) - getattr(a, field) for a, b in steps]
        if all(each > max(least, calls // 400) for each in grown):
            return f"{field} grow by {grown} in stretches of {calls // 4} calls"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.growth")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--warm", type=int, default=300)
    parser.add_argument("names", nargs="*", help=", ".join(PROGRAMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    for name in options.names or PROGRAMS:
        calls = options.calls // 20 if name == "callables_made_and_dropped" else options.calls
        found = growth(name, calls, options.warm)
        failed += found is not None
        print(f"{name}: {found or 'does not grow'} ({calls} calls)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
