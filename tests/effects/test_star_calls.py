"""f(*args, **kwargs): known where looking at the starred uses nothing up, or the callee's frame shows it."""

import collections
import sys

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted
from tests.traps.differential import attempt, same_as_eager

Pair = collections.namedtuple("Pair", "a b")


class Doubles(list):
    """Gives every item twice."""

    def __iter__(self):
        for item in super().__iter__():
            yield item
            yield item


class Adder:
    def __call__(self, *tensors):
        return sum(tensors)

    def method(self, *tensors, by=1):
        return sum(tensors) * by


class Items(list):
    pass


adder = Adder()

STARS = {
    "size": lambda x: x.view(*x.size()),
    "part_of_a_size": lambda x: x.view(*x.size()[:-1], 2, 2) + torch.zeros(*x.shape[:-1], 2, 2),
    "named_tuple": lambda x: torch.add(*Pair(x, x)),
    "list_subclass": lambda x: torch.add(*Items([x, x])),
    "dict": lambda x: x + len(max(*{"a": 1, "bc": 2})),
    "dict_values": lambda x: torch.add(*{"a": x, "b": x}.values()),
    "range": lambda x: x + max(*range(3)),
    "text": lambda x: x + ord(max(*"abc")),
    "set": lambda x: x + max(*{1, 5, 3}),
    "instance_with_a_generator": lambda x: adder(*(x * i for i in range(3))),
    "method_with_a_generator": lambda x: adder.method(*(x * i for i in range(3)), by=2),
    "instance_with_a_map": lambda x: adder(*map(torch.relu, [x, -x])),
}


@pytest.mark.parametrize("name", STARS)
def test_star_is_traced(name):
    program = STARS[name]
    fast = torch.compile(program, backend="magpy")
    with Counted() as first:
        assert_same(fast(torch.ones(3, 4)), program(torch.ones(3, 4)))
    first.assert_observed()
    with Counted() as second:
        x = torch.randn(3, 4)
        assert_same(fast(x), program(x))
    second.assert_hit()


@pytest.mark.parametrize(
    "program",
    [lambda x: x * max(*(i for i in range(4))), lambda x: torch.add(*Doubles([x]))],
    ids=["generator", "iter_of_its_own"],
)
def test_star_of_code_in_a_c_call_equals_eager(program):
    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(3, 4)
        assert_same(fast(x), program(x))


def test_starred_outside_containers_are_read():
    sizes, items, table = [4, 3], Items([1.0, 2.0]), {"a": 1.0, "b": 2.0}

    def program(x):
        return x.view(*sizes) * max(*items) + min(*table.values())

    fast, x = torch.compile(program, backend="magpy"), torch.randn(3, 4)
    for change in (lambda: None, lambda: sizes.reverse(), lambda: items.append(7.0), lambda: table.update(b=-1.0)):
        change()
        for _ in range(2):
            assert_same(fast(x), program(x))


def test_a_deep_copy_of_outside_strings_is_traced():
    """copy.deepcopy compares every value with its copy by `is`; a string's copy is the string."""
    import copy

    import torch

    from tests.counting import Counted

    config = {"name": "a longer name than is interned !", "sizes": (1000, 2.5), "table": {"key": ["x y", 3]}}

    def program(x):
        mine = copy.deepcopy(config)
        mine["table"]["key"][1] += 1
        return x * mine["table"]["key"][1] + len(mine["name"])

    compiled = torch.compile(program, backend="magpy")
    x = torch.ones(2)
    with Counted() as first:
        assert torch.equal(compiled(x), program(x))
    first.assert_observed()
    with Counted() as second:
        assert torch.equal(compiled(x), program(x))
    second.assert_hit()
    config["name"] = "another"
    assert torch.equal(compiled(x), program(x))


# -- Iterators that run the program's code, starred for a C function: used up under observation, just before the call --


def outside_state(wrap):
    factor, log = 2, []

    def pairs(x):
        for i in range(3):
            log.append(i)
            yield x * i, x + factor

    def program(x):
        first, second = zip(*pairs(x), strict=True)
        third, fourth = zip(*map(lambda t: (t, t * factor), second), strict=True)
        return first, fourth, third[0] + max(*(len(t) for t in first)), set().union(*({i} for i in range(3)))

    fast = wrap(program)
    for factor in (2, 2, 3, 3):  # noqa: B007
        yield fast(torch.ones(2)), log


def nested(wrap):
    def inside(x):
        yield sum(max(*(i + j for j in range(3))) for i in range(4))
        yield torch.stack([*map(torch.add, *zip(*((x, x) for _ in range(3)), strict=True))]).sum()

    fast = wrap(lambda x: torch.add(x, x * max(*(n for n in (1, 2)))) + max(*inside(x)))
    for _ in range(3):
        yield fast(torch.ones(()))


def of_a_type(wrap):
    class Pair:
        def __init__(self, a, b=1):
            self.a, self.b = a, b

    fast = wrap(lambda x: (Pair(*(x * i for i in range(2))).b, slice(*(i for i in range(2)))))
    for _ in range(3):
        yield fast(torch.ones(2))


def raising(wrap):
    log = []

    def bad(x):
        try:
            yield x
            raise KeyError("inside")
        finally:
            log.append("closed")

    def caught(x):
        try:
            return max(*bad(x))
        except KeyError as error:
            return x + len(str(error))

    for program in (caught, lambda x: max(*bad(x)), lambda x: max(*5)):
        fast = wrap(program)
        for _ in range(3):
            yield attempt(fast, torch.ones(2)), log


def outside_iterator(wrap):
    it = iter([1, 2, 3, 4])
    fast = wrap(lambda x: x * max(*it))
    for _ in range(3):
        yield attempt(fast, torch.ones(2)), list(it)


def dropped(wrap):
    log = []

    class Countdown:
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return self

        def __next__(self):
            if not self.n:
                raise StopIteration
            self.n -= 1
            return self.n

        def __del__(self):
            log.append(self.n)

    fast = wrap(lambda x: x * max(*Countdown(4)) + len(log))
    for _ in range(3):
        yield fast(torch.ones(2)), log


def untraceable_inside(wrap):
    def ends(x):
        yield x
        open("/dev/null").close()
        sys.settrace(None)
        yield x + 1

    fast = wrap(lambda x: torch.maximum(*ends(x)))
    for _ in range(3):
        yield fast(torch.ones(()))


@pytest.mark.parametrize(
    ("scenario", "hits"),
    [
        (outside_state, 2),
        (nested, 2),
        (of_a_type, 2),
        (raising, 0),
        (outside_iterator, 0),
        (dropped, 0),
        (untraceable_inside, 0),
    ],
)
def test_star_of_the_programs_own_iterators(scenario, hits):
    counted = same_as_eager(scenario, min_hits=hits)
    assert not hits or counted.fallbacks == {}
