"""Calls that give another result each time: compiled calls make them again, in eager's order, and leave the generators
where eager leaves them, also when a run is thrown away."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import magpy
from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted

X = torch.tensor([1.0, 2.0, 0.5])
own = random.Random(5)
generator = np.random.default_rng(5)
legacy = np.random.RandomState(5)


class Jitter(nn.Module):
    """Augmentation as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.rng = random.Random(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rng.random() < 0.5:
            x = x * self.rng.uniform(0.8, 1.2)
        return self.linear(x + self.rng.gauss(0, 0.1))


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if random.random() < 0.5 else x - random.random()


def with_data(x: torch.Tensor) -> torch.Tensor:
    y = x * random.random()
    if y.sum() > 1.75:
        return y * random.uniform(1, 2)
    return y + np.random.rand()


def seeded(x: torch.Tensor) -> torch.Tensor:
    random.seed(3)
    np.random.seed(3)
    return x * random.random() + np.random.rand()


def rejected(x: torch.Tensor) -> torch.Tensor:
    while (r := random.random()) > 0.7:
        pass
    return x * r


jitter = Jitter()
PROGRAMS: dict[str, tuple[Callable[[torch.Tensor], Any], int]] = {  # and the least number of hits in 24 calls
    "random": (lambda x: x * random.random(), 23),
    "uniform": (lambda x: x * random.uniform(-1, 1) + random.random(), 23),
    "randint": (lambda x: x + random.randint(0, 1000), 23),
    "randrange": (lambda x: x * random.randrange(3, 70, 2), 23),
    "gauss": (lambda x: x + random.gauss(0, 1), 23),
    "normalvariate": (lambda x: x + random.normalvariate(0.0, 1.0), 23),
    "betavariate": (lambda x: x * random.betavariate(0.4, 0.4), 23),
    "getrandbits": (lambda x: x + random.getrandbits(5), 23),
    "arithmetic": (lambda x: x * (1 - 0.5 * random.random()) ** 2, 23),
    "numpy": (lambda x: x * np.random.rand() + np.random.randn(), 23),
    "numpy uniform": (lambda x: x * np.random.uniform(0.5, 2.0) + np.random.randint(0, 9), 23),
    "numpy beta": (lambda x: x * (lam := np.random.beta(0.2, 0.2)) + x.flip(0) * (1 - lam), 23),
    "numpy generator": (lambda x: x * generator.random() + generator.normal(), 23),
    "numpy legacy": (lambda x: x * legacy.uniform() + legacy.rand(), 23),
    "own generator": (lambda x: x * own.random() + own.randint(1, 6), 23),
    "in the result": (lambda x: (x + 1, random.random(), [random.randint(0, 9)]), 23),
    "unused": (lambda x: [random.random(), x + 1][1], 23),
    "branch": (branch, 20),
    "module": (jitter.forward, 20),
    "choice": (lambda x: x * random.choice([1, 2, 3]), 23),
    "shuffle": (lambda x: x[(order := [0, 1, 2], random.shuffle(order))[0]], 23),
    "sample": (lambda x: x[random.sample(range(3), 2)], 23),
    "data and draws": (with_data, 18),
    "seeded": (seeded, 23),
    "rejection": (rejected, 10),
    "made inside": (lambda x: x * (r := random.Random(3)).random() + r.gauss(0, 1) + r.choice([1, 2]), 23),
    "made inside, by chance": (lambda x: x * (random.Random(None).random() < 2), 0),
    "torch's own": (lambda x: x * torch.rand(3) * random.random(), 23),
}


def states() -> list[Any]:
    numpy_state = np.random.get_state(legacy=False)
    return [
        random.getstate(),
        own.getstate(),
        jitter.rng.getstate(),
        repr(numpy_state),
        repr(legacy.get_state(legacy=False)),
        repr(generator.bit_generator.state),
        torch.get_rng_state().tolist(),
    ]


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    own.seed(number)
    jitter.rng.seed(number)
    legacy.seed(number)
    generator.bit_generator.state = np.random.PCG64(number).state


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_sequence_is_eagers(name: str) -> None:
    program, hits = PROGRAMS[name]
    seed(1)
    with torch.no_grad():
        expected = [program(X + k % 3) for k in range(24)]
    after = states()
    fast = torch.compile(program, backend="magpy")
    seed(1)
    with torch.no_grad(), Counted() as counted:
        mine = [fast(X + k % 3) for k in range(24)]
    assert states() == after
    assert_same(mine, expected)
    assert counted.hits >= hits and (not counted.fallbacks or not hits), (vars(counted), magpy.stats()["fallbacks"])


def test_a_run_that_is_thrown_away_puts_every_generator_back() -> None:
    """The float from the data is another one each time: traces are tried in vain and dropped."""

    def program(x: torch.Tensor) -> Any:
        y = x * random.random() + np.random.rand() + own.gauss(0, 1) + generator.random()
        return y, x[0].item() in (1.0, 2.0), torch.rand(2)

    fast = torch.compile(program, backend="magpy")
    inputs = [X + k for k in (0, 1, 0, 2, 1, 3, 0, 4, 5, 6, 7)]
    seed(2)
    expected = [program(x) for x in inputs]
    after = states()
    seed(2)
    assert_same([fast(x) for x in inputs], expected)
    assert states() == after


def test_generators_seeded_between_calls() -> None:
    fast = torch.compile(lambda x: x * random.random() + np.random.rand(), backend="magpy")
    seed(4)
    first = fast(X)
    with Counted() as counted:
        for _ in range(3):
            seed(4)
            assert_same(fast(X), first)
    counted.assert_hit(3)


def test_another_generator_is_another_trace() -> None:
    class Holder:
        rng: Any = random.Random(1)

    def program(x: torch.Tensor, holder: Holder) -> torch.Tensor:
        return x * holder.rng.random()

    fast = torch.compile(program, backend="magpy")
    holder, twin = Holder(), Holder()
    holder.rng, twin.rng = random.Random(1), random.Random(1)
    for _ in range(3):
        assert_same(fast(X, holder), program(X, twin))
    holder.rng, twin.rng = random.Random(2), random.Random(2)
    for _ in range(3):
        assert_same(fast(X, holder), program(X, twin))

    class Loaded(random.Random):
        def random(self) -> float:
            return 0.25

    holder.rng = Loaded()
    assert_same(fast(X, holder), X * 0.25)


def test_gradients_flow_past_draws() -> None:
    net = nn.Linear(3, 3)
    fast = torch.compile(lambda x: net(x) * random.random() + random.randint(1, 5), backend="magpy")
    grads = []
    for function in (fast, lambda x: net(x) * random.random() + random.randint(1, 5)):
        seed(3)
        grads.append([])
        for _ in range(4):
            net.zero_grad()
            function(X).sum().backward()
            grads[-1].append(net.weight.grad.clone())  # type: ignore[union-attr]
    assert_same(*grads)
    assert find_callable(fast).hits == 3


def test_values_that_are_new_each_time_are_given_up() -> None:
    fast = torch.compile(lambda x: x + len({os.urandom(4): 1}), backend="magpy")
    with Counted() as counted:
        for _ in range(20):
            assert_same(fast(X), X + 1)
    assert counted.traces < 10 and find_callable(fast).n_traces == 0
    assert "another one each time" in find_callable(fast).describe()["fallbacks"][-1]["text"]


# -- The time ---------------------------------------------------------------------------------------------------------


def test_the_time_goes_on() -> None:
    def program(x: torch.Tensor) -> Any:
        start = time.perf_counter()
        y = torch.tanh(x @ x) @ x
        return y, time.perf_counter() - start, time.time(), time.monotonic_ns()

    fast = torch.compile(program, backend="magpy")
    x = torch.rand(200, 200)
    last, last_ns = time.time(), time.monotonic_ns()
    with Counted() as counted:
        for _ in range(5):
            y, took, now, now_ns = fast(x)
            assert 0 < took < 60 and last <= now <= time.time() and last_ns <= now_ns <= time.monotonic_ns()
            assert type(now) is float and type(now_ns) is int
            last, last_ns = now, now_ns
            torch.testing.assert_close(y, torch.tanh(x @ x) @ x)
    assert counted.hits == 4 and not counted.fallbacks


def test_what_happens_after_some_time() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.interval, self.logged = 0.0, 1e9, 0
            self.spent = 0.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            start = time.time()
            y = x * 2
            if start - self.last > self.interval:
                self.logged += 1
            self.spent += time.time() - start
            return y

    net = Net()
    net.last = time.time()
    fast = torch.compile(net, backend="magpy")
    for _ in range(3):
        fast(X)
    assert net.logged == 0 and net.spent > 0
    net.interval = -1.0
    fast(X)
    assert net.logged == 1


def test_sleeping_is_an_effect() -> None:
    fast = torch.compile(lambda x: [time.sleep(0.001), x + 1][1], backend="magpy")
    fast(X)
    start = time.perf_counter()
    with Counted() as counted:
        fast(X)
    counted.assert_hit()
    assert time.perf_counter() - start >= 0.001


# -- The rest of the world --------------------------------------------------------------------------------------------


def test_files_that_appear(tmp_path: Path) -> None:
    file = str(tmp_path / "flag")
    fast = torch.compile(lambda x: x * 2 if os.path.exists(file) else x + 1, backend="magpy")
    for there in (False, False, True, True, False):
        if there:
            Path(file).touch()
        else:
            Path(file).unlink(missing_ok=True)
        assert_same(fast(X), X * 2 if there else X + 1)
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 3


def test_the_environment_is_written_at_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGPY_TEST_DRAWS", "0")

    def program(x: torch.Tensor) -> torch.Tensor:
        os.environ["MAGPY_TEST_DRAWS"] = "1"
        return x + 1

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        monkeypatch.setenv("MAGPY_TEST_DRAWS", "0")
        with Counted() as counted:
            fast(X)
        assert os.environ["MAGPY_TEST_DRAWS"] == "1"
        with os.popen("echo $MAGPY_TEST_DRAWS") as shell:
            assert shell.read() == "1\n"
    counted.assert_hit()


# -- Declared by the user ---------------------------------------------------------------------------------------------


def test_declared_opaque_functions() -> None:
    readings = itertools.count(1)

    @magpy.opaque
    def sensor(scale: float) -> float:
        return next(readings) * scale

    fast = torch.compile(lambda x: x * sensor(0.5) if sensor(1.0) < 100 else x, backend="magpy")
    with Counted() as counted:
        results = [fast(X) for _ in range(4)]
    assert_same(results, [X * 0.5 * (2 * k + 1 + 1) for k in range(4)])
    assert counted.hits == 3 and not counted.fallbacks


def test_an_opaque_function_sees_the_state_of_its_own_time() -> None:
    class Holder:
        level = 1

    holder = Holder()

    @magpy.opaque
    def level() -> int:
        return holder.level

    def program(x: torch.Tensor) -> torch.Tensor:
        holder.level = 5
        return x * level()

    fast = torch.compile(program, backend="magpy")
    for start in (1, 2, 3):
        holder.level = start
        assert_same(fast(X), X * 5)


def test_an_opaque_function_that_raises() -> None:
    failing = False

    @magpy.opaque
    def sensor() -> float:
        if failing:
            raise OSError("unplugged")
        return 1.0

    fast = torch.compile(lambda x: x * sensor(), backend="magpy")
    fast(X), fast(X)
    failing = True
    with pytest.raises(OSError, match="unplugged"):
        fast(X)
    failing = False
    assert_same(fast(X), X)


def test_option_verify_draws_what_eager_draws() -> None:
    fast = torch.compile(lambda x: x * random.random() + np.random.rand(), backend="magpy", options={"verify": True})
    seed(5)
    mine = [fast(X) for _ in range(4)]
    seed(5)
    assert_same(mine, [X * random.random() + np.random.rand() for _ in range(4)])
