"""numpy arrays that meet tensors: every way from one to the other and back, what shares memory, what is changed by whom
and when, and arrays from outside, whose elements are read by every run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import magpy
from tests.counting import Counted
from tests.traps.differential import attempt, same_as_eager

X = torch.arange(6.0).reshape(2, 3) + 1

#: numpy says so of every function of its own that is given a tensor; a run that would warn is thrown away.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")


def told(value: Any) -> Any:
    """What can be compared of a result: of arrays also how they lie in memory."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        return "array", str(value.dtype), value.shape, value.strides, flags.owndata, flags.writeable, value.tolist()
    if isinstance(value, np.generic):
        return str(value.dtype), value.item()
    if isinstance(value, torch.Tensor):
        return "tensor", str(value.dtype), tuple(value.shape), value.stride(), value.requires_grad, value.tolist()
    if isinstance(value, (tuple, list)):
        return type(value)(told(v) for v in value)
    return value


class Outside:
    """State that programs find and that changes between calls."""

    def __init__(self) -> None:
        self.table = np.arange(6.0).reshape(2, 3)
        self.weights = np.ones(3, np.float32)
        self.places = np.array([0, 2])
        self.frozen = np.array([0.5, 1.5, 2.5], np.float32)
        self.frozen.flags.writeable = False
        self.shared = np.zeros(3, np.float32)
        self.tensor = torch.from_numpy(self.shared)


def tanh_and_back(o, x):
    return torch.from_numpy(np.tanh(x.numpy())) * 2


def copy_changed(o, x):
    a = x.numpy().copy()
    a[0] = 7
    a += 1
    a[:, 1] *= x.numpy()[:, 0]
    np.multiply(a, 2, out=a)
    a[a > 30] = 0
    return torch.from_numpy(a)


def filled(o, x):
    z = np.zeros((3, 2), np.float32)
    z[:] = x.numpy().T
    z[0, 0] = -1
    z.sort(axis=0)
    return torch.from_numpy(z), z.sum(axis=1)


def written_through(o, x):
    y = x + 1
    y.numpy()[0, 1:] = 100
    return y * 2, y


def argument_written_through(o, x):
    x.numpy()[0, 1] = 55
    view = x.numpy()[1]
    view *= 3
    return x * 1


def tensor_changed_after(o, x):
    y = x.clone()
    a = y.numpy()
    y.add_(1)
    b = a * 2
    y.mul_(10)
    return b, a + 0


def from_numpy_changed(o, x):
    a = np.ones((2, 3), np.float32)
    t = torch.from_numpy(a)
    t.add_(x)
    a[0] = 5
    return t * 2, a.copy(), a.mean(axis=0)


def joined(o, x):
    return torch.as_tensor(np.concatenate([x.numpy(), o.table.astype("f4")])).mean(0)


def ufunc_methods(o, x):
    a = x.numpy()[0].copy()
    np.add.at(a, [0, 0, 2], 1.5)
    return a, np.multiply.outer(a, o.weights), np.maximum.reduce([a, o.weights]), np.add.accumulate(a)


def branch(o, x):
    return x * 2 if (x.numpy() > 0).all() else x - 1


def rows(o, x):
    return [torch.from_numpy(row.copy()) for row in x.numpy()], [row[::-1].copy() for row in x.numpy()]


def constants(o, x):
    grid = np.stack(np.meshgrid(np.arange(2), np.linspace(0, 1, 3), indexing="ij"), -1).astype(np.float32)
    t = torch.from_numpy(grid)
    return x + t[..., 1], torch.tensor(grid).sum(), torch.eye(3)[np.array([2, 0])], grid.dtype.name


def module_like(o, x):
    h = x.detach().cpu().numpy()
    distance = ((h[:, None] - h[None]) ** 2).sum(-1)
    order = distance.argsort(axis=1)
    return x[torch.from_numpy(order[:, 0].copy())], np.where(distance > 1, 1, 0)


def sizes(o, x):
    a = x.numpy()
    return x.new_zeros(a.shape), len(a), a.ndim, a.size, x.view(int(np.prod(a.shape)))


ROUTES: dict[str, tuple[Callable, int]] = {  # program, hits in 4 calls
    "tanh and back": (tanh_and_back, 3),
    "from_numpy of a constant": (lambda o, x: x * torch.from_numpy(np.arange(3, dtype=np.float32)), 3),
    "tensor of an array from outside": (lambda o, x: x + torch.tensor(o.table).float(), 3),
    "from_numpy of an array from outside": (lambda o, x: x + torch.from_numpy(o.weights), 3),
    "as_tensor": (lambda o, x: (torch.as_tensor(o.table, dtype=torch.float32) + x, torch.as_tensor(x.numpy()) + 1), 3),
    "tensor of a list of arrays": (lambda o, x: torch.tensor([x.numpy(), o.table.astype(np.float32)]), 3),
    "FloatTensor": (lambda o, x: torch.FloatTensor(o.table) + x, 3),
    "new_tensor": (lambda o, x: x.new_tensor(o.table), 3),
    "read only": (lambda o, x: x * torch.tensor(o.frozen), 3),
    "index": (lambda o, x: (x[:, o.places], x[:, np.array([0, 2])]), 3),
    "tensor times array": (lambda o, x: (x * o.table, x + o.weights, x == o.table), 3),
    "ufunc of a tensor": (lambda o, x: np.sqrt(x), 3),
    "array of tensors": (lambda o, x: (np.array(x), np.asarray(x + 1), np.stack([x, x])), 3),
    "array results": (lambda o, x: (np.add(x.numpy(), 1), x.numpy().T, x.numpy()[:, ::2], x.numpy().astype("i8")), 3),
    "reductions": (lambda o, x: (x.numpy().sum(0), np.mean(x.numpy(), axis=1), np.cumsum(x.numpy())), 3),
    "item": (lambda o, x: x * x.numpy().item(3) + o.table.item(1), 3),
    "copy changed": (copy_changed, 3),
    "filled": (filled, 3),
    "written through": (written_through, 3),
    "argument written through": (argument_written_through, 3),
    "tensor changed after": (tensor_changed_after, 3),
    "from_numpy changed": (from_numpy_changed, 3),
    "joined": (joined, 3),
    "methods of ufuncs": (ufunc_methods, 3),
    "branch": (branch, 3),
    "rows": (rows, 3),
    "constants": (constants, 3),
    "distances": (module_like, 2),
    "sizes": (sizes, 3),
    "number": (lambda o, x: x * float(np.mean(x.numpy())), 0),
    "mask": (lambda o, x: (x[x.numpy() > 3], np.nonzero(x.numpy() > 3)), 0),
    "unique": (lambda o, x: np.unique(x.numpy().round(), return_inverse=True), 0),
    "scalars": (lambda o, x: (x.numpy().max(), int(x.numpy()[0, 0]), x.numpy().tolist(), str(o.places)), 0),
    "outside and shared": (lambda o, x: (x + o.tensor, torch.from_numpy(o.shared) * x), 3),
}


@pytest.mark.parametrize("name", ROUTES)
def test_every_route_gives_what_eager_gives(name):
    program, hits = ROUTES[name]

    def scenario(wrap):
        o = Outside()
        fast = wrap(lambda x: program(o, x))
        for i in range(4):
            x = (X + i).clone()
            o.table[0] += i
            o.weights[1] = i
            o.shared[0] = i
            yield told(fast(x)), x, told(o.table)

    same_as_eager(scenario, min_hits=hits)


WRITERS: dict[str, Callable] = {
    "item": lambda o, x: o.weights.__setitem__(0, 3) or torch.from_numpy(o.weights) * x,
    "in place": lambda o, x: np.add(o.weights, x.numpy()[0], out=o.weights) * 2,
    "torch": lambda o, x: torch.from_numpy(o.weights).add_(x[0]) + 1,
    "both": lambda o, x: (torch.from_numpy(o.shared).add_(x[0]), o.tensor + 1)[1],
    "view": lambda o, x: np.copyto(o.table[0], x.numpy()[1]) or x + torch.tensor(o.table[0, 1:2]),
    "attribute": lambda o, x: setattr(o, "weights", (x * 2).numpy()[0]) or x,
    "read only": lambda o, x: attempt(lambda: o.frozen.__setitem__(0, 1)) and x,
}


@pytest.mark.parametrize("name", WRITERS)
def test_arrays_from_outside_that_the_call_changes(name):
    def scenario(wrap):
        o = Outside()
        fast = wrap(lambda x: WRITERS[name](o, x))
        for i in range(4):
            yield told(attempt(fast, (X + i).clone())), told(o.weights), told(o.table), told(o.shared), o.tensor

    same_as_eager(scenario)


def test_an_argument_that_is_an_array_is_an_input():
    def scenario(wrap):
        fast = wrap(lambda a, x: (torch.from_numpy(a) * x, a + 1, a))
        for i in range(3):
            a = np.full(3, i, np.float32)
            product, more, same = fast(a, X)
            yield product, told(more), same is a
        for a in (np.ones((2, 3), np.float32), np.ones(3), np.ones(6, np.float32)[::2], np.ones(3, np.float32)[::-1]):
            yield told(attempt(fast, a, X))

    same_as_eager(scenario, min_hits=2)


def test_results_share_memory_as_in_eager():
    def scenario(wrap):
        def program(x, a):
            y = x * 2
            return y, y.numpy(), y.numpy()[0], torch.from_numpy(a), a[1:], x.numpy()

        fast = wrap(program)
        for i in range(3):
            x, a = (X + i).clone(), np.arange(3.0)
            y, whole, row, t, part, own = fast(x, a)
            y[0, 0] = 40
            whole[0, 1] = 41
            row[2] = 42
            t[1] = 43
            part[1] = 44
            own[1, 1] = 45
            yield y, whole.tolist(), row.tolist(), t, part.tolist(), x, a.tolist()

    same_as_eager(scenario, min_hits=2)


def test_an_array_that_owns_its_memory_and_a_tensor_over_it_fall_back():
    def scenario(wrap):
        def program(x):
            a = x.numpy() * 2
            return a, torch.from_numpy(a)

        fast = wrap(program)
        for _ in range(3):
            a, t = fast(X)
            t[0, 0] = 9
            yield told(a), t

    same_as_eager(scenario)


def test_errors_and_warnings_of_numpy_are_the_programs():
    def scenario(wrap):
        divide = wrap(lambda x: torch.from_numpy(1 / x.numpy()))
        solve = wrap(lambda x: torch.from_numpy(np.linalg.inv(x.numpy())))
        index = wrap(lambda x, i: torch.from_numpy(x.numpy()[i.numpy()]))
        for k in (1.0, 2.0, 0.0, 3.0):
            with np.testing.suppress_warnings() as seen:
                log = seen.record(RuntimeWarning)
                yield divide(X * k)
                yield [str(w.message) for w in log]
        for k in (1.0, 2.0, 0.0):
            yield attempt(solve, torch.eye(3) * k)
        for place in (0, 1, 2, 1):
            yield attempt(index, X, torch.tensor([place]))

    same_as_eager(scenario)


NAN = float("nan")
NAN_FUNCTIONS = {
    "nanmean": lambda a: np.nanmean(a, axis=0),
    "nanmean of all": lambda a: np.asarray(np.nanmean(a, keepdims=True)),
    "nansum": lambda a: np.nansum(a, axis=1),
    "nanmax": lambda a: np.nanmax(a, 1),
    "nanmin": lambda a: np.nanmin(a, axis=(0, 1), keepdims=True),
    "nanstd": lambda a: np.nanstd(a, axis=1, ddof=1),
    "nanvar": lambda a: np.nanvar(a, 0),
    "nanmedian": lambda a: np.nanmedian(a, axis=1),
    "nanpercentile": lambda a: np.nanpercentile(a, [25, 75], axis=1),
    "nanquantile": lambda a: np.nanquantile(a, 0.5, 1),
    "nanargmax": lambda a: np.nanargmax(a, axis=1),
    "nancumsum": lambda a: np.nancumsum(a, axis=0),
    "nanprod": lambda a: np.nanprod(a, axis=0),
}


@pytest.mark.parametrize("name", NAN_FUNCTIONS)
def test_functions_that_pass_over_nans(name):
    """They warn, or raise, where a slice holds too few numbers: then the call is eager's."""
    function = NAN_FUNCTIONS[name]
    rows = [[[1.0, NAN, 3.0], [4.0, 5.0, NAN]], [[7.0, 8.0, 9.0], [NAN, 2.0, 1.0]], [[NAN] * 3, [1.0, NAN, 2.0]]]

    def scenario(wrap):
        fast = wrap(lambda x: torch.from_numpy(np.array(function(x.numpy()))) * 2)
        for k in (0, 1, 0, 2, 1, 0):
            with np.testing.suppress_warnings() as seen:
                log = seen.record(RuntimeWarning)
                yield attempt(fast, torch.tensor(rows[k]))
                yield [str(w.message) for w in log]

    same_as_eager(scenario, min_hits=3)


def crossed(x: torch.Tensor) -> torch.Tensor:
    a = x.numpy()
    return x + torch.from_numpy(np.cross(a[0, :2], a[1, :2]).reshape(1).copy())


def with_a_tensor(x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.add(x.numpy(), x))


@pytest.mark.parametrize("program", [crossed, with_a_tensor])
@pytest.mark.parametrize("action", ["ignore", "always", "default", "module", "once", "error", "of this module"])
def test_warnings_come_from_the_programs_line_or_not_at_all(
    program: Callable[[torch.Tensor], torch.Tensor], action: str
) -> None:
    """Under every filter: as often as in eager, from the same file and line. Ignored ones do not end the trace."""

    def calls(function: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
        with warnings.catch_warnings(record=True) as seen:
            if action == "of this module":
                warnings.simplefilter("ignore")
                warnings.filterwarnings("always", module=__name__.replace(".", r"\."))
            else:
                warnings.simplefilter(action)  # type: ignore[arg-type]
            globals().pop("__warningregistry__", None)
            out: list[Any] = [told(attempt(function, X)) for _ in range(4)]
            before = list(warnings.filters)
            return [repr(out), [(str(w.message), w.category, w.filename, w.lineno) for w in seen], len(before)]

    expected = calls(program)
    with Counted() as counted:
        assert calls(torch.compile(program, backend="magpy")) == expected
    assert "RUN_FAILED" not in counted.fallbacks or action != "ignore"
    if action == "ignore":
        assert counted.hits == 3


def test_lowering_warns_of_nothing() -> None:
    """What the observed call has warned of is not said again from inside magpy."""

    def program(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(x.sum()) + x.new_tensor(x)

    with warnings.catch_warnings(record=True) as eager:
        warnings.simplefilter("always")
        program(X)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.compile(program, backend="magpy")(X)
    assert [(str(w.message), w.filename, w.lineno) for w in seen] == [
        (str(w.message), w.filename, w.lineno) for w in eager
    ]


def test_training_around_arrays():
    def scenario(wrap):
        torch.manual_seed(3)
        layer = nn.Linear(3, 3)

        def loss(x):
            y = layer(x)
            best = y.detach().numpy().argmax(axis=1)
            return nn.functional.cross_entropy(y, torch.from_numpy(best)) + (y * torch.tensor(np.ones(3))).mean()

        fast = wrap(loss)
        for i in range(4):
            value = fast(X + i)
            value.backward()
            yield value, layer.weight.grad.clone()

    same_as_eager(scenario, min_hits=3)


def test_the_reason_names_what_numpy_did():
    fast = torch.compile(lambda x: np.array(x.numpy(), dtype=object), backend="magpy", fullgraph=True)
    with pytest.raises(magpy.FullgraphError, match="numpy with data: a result whose elements torch has no type for"):
        fast(X)


def test_programs_of_many_steps_with_changes_between_them():
    steps = [
        lambda a, b: a + b, lambda a, b: a[::2].sum() * b, lambda a, b: np.where(a > b, a, b), lambda a, b: a[::-1] - b,
        lambda a, b: a.__iadd__(b), lambda a, b: a.__setitem__(0, b[1]) or a, lambda a, b: np.clip(a, -3, 3) * b,
        lambda a, b: a[1:].__setitem__(slice(None), b[:-1]) or a, lambda a, b: np.sort(a) @ b * np.ones_like(a),
        lambda a, b: torch.from_numpy(a).mul_(2) is None or a, lambda a, b: np.roll(a, 1) / 4,
        lambda a, b: a.copy() * -1,
    ]  # fmt: skip
    for seed in range(12):
        chosen = np.random.RandomState(seed).randint(0, len(steps), 5)

        def scenario(wrap, chosen=chosen):
            kept = np.linspace(-1, 2, 4)

            def program(x):
                a, b = x.numpy() * 1.0, kept
                for k in chosen:
                    a, b = steps[k](a, b), a
                return torch.from_numpy(np.ascontiguousarray(a)) + x, b * 2

            fast = wrap(program)
            for i in range(3):
                kept[i] = i
                yield (
                    told(attempt(fast, torch.tensor([0.5, -1.0, 3.0, 2.0], dtype=torch.float64) * (i + 1))),
                    told(kept),
                )

        same_as_eager(scenario)


GENERATOR = np.random.default_rng(5)
LEGACY = np.random.RandomState(5)
CHOICES = [0, 2, 1]


def shuffled_places(x):
    places = np.arange(3)
    np.random.shuffle(places)
    more = np.arange(6.0).reshape(3, 2)
    GENERATOR.shuffle(more)
    return x[:, places], torch.from_numpy(more), places


def mixed(x):
    lam = np.random.beta(0.3, 0.3)
    order = np.random.permutation(x.shape[0])
    noise = torch.from_numpy(np.random.randn(*x.shape).astype(np.float32))
    return lam * x, (1 - lam) * x[order], noise * np.random.rand(), order


def thrown_away(x):
    noise = np.random.uniform(-1, 1, size=(2, 3))
    y = x + torch.tensor(noise, dtype=torch.float32)
    if y.sum() > 21:
        return y * np.random.rand()
    return y - torch.from_numpy(np.random.normal(size=3))


def of_its_own(x):
    state = np.random.RandomState(3)
    a = np.arange(3)
    state.shuffle(a)
    return x[:, a] * np.random.default_rng(4).normal(size=3).tolist()[1] + torch.from_numpy(state.rand(3))


DRAWS: dict[str, tuple[Callable, int]] = {  # program, hits in 6 calls
    "rand": (lambda x: x + torch.from_numpy(np.random.rand(2, 3)), 5),
    "normal": (lambda x: torch.tensor(np.random.normal(0, 0.1, size=x.shape), dtype=x.dtype) + x, 5),
    "FloatTensor": (lambda x: torch.FloatTensor(np.random.uniform(0, 1, 3)) * x, 5),
    "randint": (lambda x: x[:, np.random.randint(0, 3, size=4)], 5),
    "choice": (lambda x: x[:, np.random.choice(3, 2, replace=False)], 5),
    "choice of a list": (lambda x: x[:, np.random.choice(CHOICES, 5)], 5),
    "choice of an array": (lambda x: np.random.choice(np.array([0.5, 2.0]), size=(2,), p=[0.25, 0.75]), 5),
    "permutation": (lambda x: x[torch.from_numpy(np.random.permutation(2))], 5),
    "permutation of an array": (lambda x: np.random.permutation(np.arange(4) * 2), 5),
    "generator": (lambda x: x * torch.from_numpy(GENERATOR.random((2, 3))) + GENERATOR.integers(0, 5, 3), 5),
    "legacy": (lambda x: LEGACY.randn(3) + x.numpy() * LEGACY.rand(2, 1), 5),
    "result": (lambda x: (np.random.rand(3), np.random.randint(0, 9, (2, 2))), 5),
    "shuffle": (shuffled_places, 5),
    "mixed": (mixed, 5),
    "thrown away": (thrown_away, 2),
    "of its own": (of_its_own, 5),
    "seeded": (lambda x: (np.random.seed(7), np.random.rand(2))[1], 5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_arrays_are_drawn_by_every_run(name):
    program, hits = DRAWS[name]

    def scenario(wrap):
        np.random.seed(11)
        GENERATOR.bit_generator.state = np.random.PCG64(12).state
        LEGACY.seed(13)
        CHOICES[:] = [0, 2, 1]
        fast = wrap(program)
        for i in range(6):
            yield told(fast(X + i % 2)), np.random.get_state()[1].tolist(), np.random.get_state()[2]
            yield repr(GENERATOR.bit_generator.state), LEGACY.get_state()[1].tolist(), LEGACY.get_state()[2]
        CHOICES[0] = 1
        yield told(fast(X))

    same_as_eager(scenario, min_hits=hits)


def test_shuffling_data_lists_and_arrays_from_outside():
    def scenario(wrap):
        np.random.seed(3)
        outside, items = np.arange(5.0), [1, 2, 3, 4]

        def data(x):
            a = x.numpy().copy()
            np.random.shuffle(a)
            return a

        programs = (
            data, lambda x: np.random.shuffle(outside) or x, lambda x: np.random.shuffle(items) or x,
            lambda x: np.random.RandomState(1).shuffle(outside) or x, lambda x: np.random.permutation(outside),
        )  # fmt: skip
        for program in programs:
            fast = wrap(program)
            for _ in range(3):
                yield told(fast(X)), outside.tolist(), list(items), np.random.get_state()[2]

    same_as_eager(scenario)


class Holder:
    """Its array is made by Python code that numpy calls."""

    factor = 1.0

    def __array__(self, dtype=None, copy=None):
        return np.full(3, self.factor, np.float32)


def test_code_of_the_program_that_numpy_calls_is_watched():
    def scenario(wrap):
        holder, scale = Holder(), [2.0]
        twice = np.frompyfunc(lambda v: float(v) * scale[0], 1, 1)
        along = wrap(lambda x: x * float(np.apply_along_axis(lambda r: r.sum() * scale[0], 0, np.ones(3))))
        asked = wrap(lambda x: x * torch.tensor(np.asarray(holder)))
        own = wrap(lambda x: x * float(twice(np.float64(3.0))))
        chosen = wrap(lambda x: x * float(np.sum(np.asarray([holder, holder]))))
        for i in range(3):
            holder.factor = float(i)
            scale[0] = i + 2.0
            yield along(X), asked(X), own(X), attempt(chosen, X)

    same_as_eager(scenario)


def test_types_of_elements_are_constants():
    def scenario(wrap):
        fast = wrap(
            lambda x: (x.numpy().dtype, np.zeros(2, x.numpy().dtype), np.dtype("i4"), np.result_type(x.numpy(), 1.0))
        )
        for _ in range(3):
            yield str(told(fast(X)))

    same_as_eager(scenario, min_hits=2)


def test_read_only_arrays_from_outside_lie_as_they_do():
    def scenario(wrap):
        whole = np.arange(24.0).reshape(4, 6)
        for array in (whole[:, ::2], whole.T, np.broadcast_to(whole[0], (3, 6)), whole[1:, 3:], whole[:0], whole[::-1]):
            array = array[:]
            array.flags.writeable = False

            def program(x, array=array):
                return (
                    torch.tensor(array[:, 1:]),
                    array[1:2].sum(axis=0),
                    x + torch.tensor(array.T.copy()).sum(),
                    array * 2,
                )

            fast = wrap(program)
            for i in range(3):
                whole[1, 2] = whole[0, 0] = i
                yield told(attempt(fast, X))

    same_as_eager(scenario, min_hits=8)


def test_arrays_whose_elements_share_memory():
    def scenario(wrap):
        def program(x):
            a = np.broadcast_to(x.numpy()[0], (4, 3))
            b, c = np.broadcast_arrays(x.numpy()[:, :1], np.arange(3))
            return (
                torch.tensor(a) * 2,
                a + 1,
                a[2],
                torch.tensor(b),
                c * 2,
                np.stack(np.meshgrid(x.numpy()[0], x.numpy()[1])),
            )

        fast = wrap(program)
        for i in range(3):
            yield told(fast(X + i))

    same_as_eager(scenario, min_hits=2)


@pytest.mark.parametrize("made", [False, True], ids=["tensor of outside", "tensor of inference mode"])
@pytest.mark.parametrize("called", [False, True], ids=["called outside", "called in inference mode"])
def test_a_tensor_over_an_inputs_memory_is_of_the_mode_that_made_it(made, called):
    """A view is of its base's mode, but torch.from_numpy knows no base."""

    def scenario(wrap):
        fast = wrap(lambda x: (torch.from_numpy(x.detach().numpy()).detach(), x.view(-1), x + 1))
        for _ in range(3):
            with torch.inference_mode(made):
                x = torch.ones(2, 3)
            with torch.inference_mode(called):
                results = fast(x)
            yield results, [(t.is_inference(), t.data_ptr() == x.data_ptr()) for t in results]

    same_as_eager(scenario)
