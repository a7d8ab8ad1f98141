"""f(*args, **kwargs): known where looking at the starred uses nothing up, or the callee's frame shows it."""

import collections

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted

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
