"""next() of iterators from outside the call: every run advances them, each call by as much as in eager."""

import itertools

import pytest
import torch

from tests.counting import Counted

X = torch.arange(4.0)


class State:
    def __init__(self, iterator, **more):
        self.it = iterator
        self.log = []
        self.__dict__.update(more)


def same(program, make, calls=8, before=None, x=X):
    """Calls of the program on two equal states give the same results, logs and iterators; returns what was counted."""
    outs, states = [], [make(), make()]
    compiled = torch.compile(program, backend="magpy")
    for function, state in zip((program, compiled), states, strict=True):
        with Counted() as counted:
            rows = []
            for i in range(calls):
                if before is not None:
                    before(state, i)
                try:
                    rows.append(function(x, state))
                except Exception as error:
                    rows.append((type(error), str(error)))
            outs.append(rows)
    for a, b in zip(*outs, strict=True):
        torch.testing.assert_close(a, b) if isinstance(a, torch.Tensor) else pytest.fail(f"{a} {b}") if a != b else None
    assert states[0].log == states[1].log
    assert list(map(type, states[0].log)) == list(map(type, states[1].log))
    assert [next(states[0].it, "end") for _ in range(5)] == [next(states[1].it, "end") for _ in range(5)]
    return counted


KINDS = {
    "range": lambda: iter(range(3, 100, 2)),
    "long range": lambda: iter(range(2**70, 2**70 + 50)),
    "tuple": lambda: iter(tuple(range(50))),
    "list": lambda: iter([float(i) for i in range(50)]),
    "count": lambda: itertools.count(5),
    "negative count": lambda: itertools.count(-3),
    "texts": lambda: iter([f"name {i}" for i in range(50)]),
    "reversed": lambda: reversed([float(i) for i in range(50)]),
    "reversed tuple": lambda: reversed(tuple(range(50))),
    "cycle": lambda: itertools.cycle([3, 1, 7]),
    "cycle of one": lambda: itertools.cycle([4]),
    "cycle of a range": lambda: itertools.cycle(range(2, 7)),
    "chain": lambda: itertools.chain([1, 2], range(3, 6), (), [6, 7, 8], range(40)),
    "chain of a list": lambda: itertools.chain.from_iterable([[1, 2], [3], [4, 5, 6], list(range(40))]),
    "islice": lambda: itertools.islice(itertools.count(3), 2, 90, 3),
    "count of floats": lambda: itertools.count(0.5, 0.25),
    "repeat": lambda: itertools.repeat(2.5),
    "cycle of cycles": lambda: itertools.cycle(itertools.islice(itertools.cycle([1, 2, 3]), 5)),
}

#: Iterators that give new tuples.
PAIRS = {
    "enumerate": lambda: enumerate([float(i * i) for i in range(50)]),
    "enumerate, from 5": lambda: enumerate(range(50), 5),
    "zip": lambda: zip(range(50), [float(i) / 2 for i in range(40)], strict=False),
    "zip of an iterator with itself": lambda: zip(*[iter(range(90))] * 2, strict=True),
    "zip with cycle": lambda: zip(itertools.count(), itertools.cycle([1.5, 2.5]), strict=False),
    "cycle of zip": lambda: itertools.islice(zip([1, 2, 3], itertools.count(7), strict=False), 3),
}


def logs(x, s):
    s.log.append(next(s.it))
    return x + 1


def computes(x, s):
    return x * next(s.it) + next(s.it)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_is_kept(kind):
    assert same(logs, lambda: State(KINDS[kind]())).hits >= 6


NUMBERS = [kind for kind in KINDS if kind not in ("texts", "long range")]


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_flow_into_one_graph(kind):
    counted = same(computes, lambda: State(KINDS[kind]()))
    assert counted.hits == 7 and not counted.fallbacks


@pytest.mark.parametrize("kind", [*NUMBERS, "texts"])
def test_runs_that_are_thrown_away_put_it_back(kind):
    def program(x, s):
        value = next(s.it)
        s.log.append(value)
        even = len(value) % 2 if isinstance(value, str) else value % 3 == 1
        return x + 1 if even else x * 2

    same(program, lambda: State(KINDS[kind]()), calls=20)


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_are_taken_apart(kind):
    def program(x, s):
        i, value = next(s.it)
        s.log.append((value, i))
        return x * value + i

    counted = same(program, lambda: State(PAIRS[kind]()))
    assert kind == "cycle of zip" or (counted.hits == 7 and not counted.fallbacks)

    def decides(x, s):
        i, value = next(s.it)
        if i % 3 == 1 or value > 20:
            s.log.append(i)
            return x * value + next(s.it)[0]
        return x - value

    same(decides, lambda: State(PAIRS[kind]()), calls=20)


@pytest.mark.parametrize("kind", [*NUMBERS, *PAIRS])
def test_runs_that_data_throws_away_put_all_of_it_back(kind):
    def program(x, s):
        value = next(s.it)
        first = value[0] if isinstance(value, tuple) else value
        y = x * first + s.limit
        if y.sum() > 90:
            s.log.append(first)
            return y + 1
        other = next(s.it)
        s.log.append(other)
        return y - (other[1] if isinstance(other, tuple) else other)

    def before(s, i):
        s.limit = torch.tensor(100.0 if i % 3 == 2 else 0.0)

    same(program, lambda: State({**KINDS, **PAIRS}[kind](), limit=None), calls=22, before=before)


def test_parts_of_one_that_are_asked_themselves():
    def program(x, s):
        i, value = next(s.it)
        s.log.append(next(s.inner))
        if s.log[-1] % 4 == 1:
            return x * i - value
        return x * next(s.it)[1] + next(s.inner) + i

    def make():
        inner = iter(range(200))
        return State(zip(itertools.count(), inner, strict=False), inner=inner)

    same(program, make, calls=14)


def test_lists_inside_that_change():
    def program(x, s):
        s.items[-1] = 5
        step = next(s.it)
        s.items.append(2)
        s.log.append(step)
        return x + s.items[0]

    for make in (itertools.cycle, enumerate, reversed, lambda items: itertools.chain(items, items)):

        def state(make=make):
            items = [1, 2, 3]
            return State(make(items), items=items)

        same(program, state, calls=7)


def test_a_check_of_data_behind_it_throws_the_run_away_too():
    def program(x, s):
        step = next(s.it)
        y = x * step
        if y.sum() > 20:
            s.log.append("large")
            return y + next(s.it)
        return y - 1

    same(program, lambda: State(itertools.count()), calls=12)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_end(n):
    def raises(x, s):
        return x + next(s.it)

    def begins_again(x, s):
        try:
            step = next(s.it)
        except StopIteration:
            s.it = iter(range(n + 1))
            step = next(s.it)
        s.log.append(step)
        return x + step

    def asks(x, s):
        step = next(s.it, None)
        return x if step is None else x + step

    for program in (raises, begins_again, asks):
        same(program, lambda: State(iter(range(n))), calls=9)
        same(program, lambda: State(iter(list(range(n)))), calls=9)


@pytest.mark.parametrize("make", [list, tuple, lambda items: range(len(items))], ids=["list", "tuple", "range"])
@pytest.mark.parametrize("items", [[0, 1, 2, 3, 4], [None] * 5, [0, 1, None, None, None], ["a"] * 5, [0.5] * 5])
@pytest.mark.parametrize("takes", [1, 2, 3])
def test_runs_that_come_to_the_end_take_nothing_that_eager_does_not(make, items, takes):
    def program(x, s):
        for _ in range(takes):
            s.log.append(next(s.it))
        return x + 1

    def before(s, i):
        if i in (6, 12):
            s.it = iter(make(items))

    same(program, lambda: State(iter(make(items))), calls=18, before=before)


def test_another_iterator_in_its_place_and_steps_between_calls():
    def between(s, i):
        if i == 3:
            next(s.it)
        if i == 5:
            s.it = iter(range(70, 90))
        if i == 7:
            s.it = itertools.count(7)

    same(computes, lambda: State(iter(range(50))), calls=10, before=between)


def test_one_iterator_in_two_places():
    def program(x, s):
        return x * next(s.it) - next(s.other)

    def make():
        iterator = iter(range(50))
        return State(iterator, other=iterator)

    assert same(program, make).hits >= 6


@pytest.mark.parametrize("change", ["before", "after", "between calls"])
def test_its_list_changes(change):
    def program(x, s):
        if change == "before":
            s.items.insert(0, 9)
        step = next(s.it)
        if change == "after":
            s.items.append(step + 1)
            s.items[-2] = 77
        s.log.append(step)
        return x + step

    def between(s, i):
        if change == "between calls":
            s.items[i + 1 :] = [i * 5, i * 7, 4]

    def make():
        items = [1, 2, 3]
        return State(iter(items), items=items)

    same(program, make, calls=6, before=between)


def test_elements_of_all_kinds():
    items = [1, 2.5, True, None, "text", (1, 2), torch.ones(4), 3, [4], 2**80, b"bytes", 5, 6]

    def program(x, s):
        value = next(s.it)
        s.log.append(repr(value))
        return x + value if isinstance(value, (int, float)) and value < 100 else x

    same(program, lambda: State(iter(items)), calls=13)


def test_counts_by_other_steps_and_large_ones():
    for make in (lambda: itertools.count(0, 3), lambda: itertools.count(0.5), lambda: itertools.count(2**63 - 4),
                 lambda: itertools.count(2**70)):  # fmt: skip
        same(logs, lambda make=make: State(make()))


def to_its_end(x, s):
    for step in s.it:
        s.log.append(step)
        x = x * step if isinstance(step, (int, float)) and step < 100 else x + 1
    return x


def some_of_it(x, s):
    for step in s.it:
        x = x + step if isinstance(step, (int, float)) else x * 2
        s.log.append(step)
        if len(s.log) % 3 == 0:
            break
    else:
        x = -x
    return x


def one_of_it(x, s):
    for step in s.it:
        s.log.append(step)
        return x + 1
    return x * 0


def in_a_comprehension(x, s):
    return x, [step for step in s.it]  # noqa: C416


def twice(x, s):
    for step in s.it:
        for other in s.it:
            x = x + other
            break
        s.log.append(step)
        if s.log[-1] != step:
            break
    return x


SHORT = {
    "range": lambda: iter(range(3, 10)),
    "long range": lambda: iter(range(2**70, 2**70 + 5)),
    "tuple": lambda: iter((1, 2.5, 7, -1)),
    "list": lambda: iter([1, 2, 3, 4.5, 6]),
    "texts": lambda: iter(["a", "bc", "d", "a"]),
    "all kinds": lambda: iter([1, None, True, "t", 2.5, None]),
    "nothing": lambda: iter([]),
    "tuples": lambda: iter([(1,), ("a", 2)]),
    "reversed": lambda: reversed([1, 2, 3, 4.5, 6]),
    "cycle": lambda: itertools.islice(itertools.cycle([1, 2, 3]), 11),
    "chain": lambda: itertools.chain([1, 2], (), range(3, 6)),
    "enumerate": lambda: enumerate([1, 2.5, 7, -1]),
}


@pytest.mark.parametrize("program", [to_its_end, some_of_it, one_of_it, in_a_comprehension, twice])
@pytest.mark.parametrize("kind", SHORT)
def test_loops(program, kind):
    def before(s, i):
        if i in (4, 7, 8):
            s.it = SHORT[kind]()

    same(program, lambda: State(SHORT[kind]()), calls=11, before=before)
    same(program, lambda: State(SHORT[kind]()), calls=9)


@pytest.mark.parametrize("kind", ["range", "list", "tuple"])
def test_a_loop_over_what_is_left_of_it_is_one_trace(kind):
    def program(x, s):
        for step in s.it:
            return x * step
        return x

    assert same(program, lambda: State(KINDS[kind]()), calls=12).hits == 11


def test_loops_over_iterators_at_their_end_and_lists_that_grow():
    def grows(x, s):
        for step in s.it:
            x = x + step
        s.items.append(len(s.items))
        return x

    def grows_inside(x, s):
        for step in s.it:
            x = x + step
            if len(s.items) < 9:
                s.items.append(step + 1)
        return x

    def between(s, i):
        if i % 2:
            s.items.append(70 + i)
        if i == 5:
            s.it = iter(s.items)

    def make():
        items = [1, 2]
        return State(iter(items), items=items)

    for program in (grows, grows_inside, to_its_end):
        same(program, make, calls=9, before=between)


def test_a_run_with_a_loop_that_is_thrown_away_leaves_the_iterator():
    def program(x, s):
        if x.sum() > s.limit:
            return x * 2
        for step in s.it:
            x = x + step
        return x

    for kind in ("range", "list", "tuple"):

        def between(s, i):
            s.limit = (100, 100, 0, 100)[i % 4]

        def given(s, i, kind=kind):
            between(s, i)
            if i % 3 == 0:
                s.it = SHORT[kind]()

        same(program, lambda kind=kind: State(SHORT[kind](), limit=100), calls=12, before=given)


def test_none_in_a_list_is_no_end():
    def program(x, s):
        return x + 1 if next(s.it) is None else x * 2

    same(program, lambda: State(iter([None, None, None])), calls=6)
    same(one_of_it, lambda: State(iter([None, None, None])), calls=6)


def test_loops_over_iterators_of_tensors():
    def program(x, s):
        for y in s.it:
            x = x + y
        return x

    same(program, lambda: State(iter([torch.ones(4), torch.arange(4.0)])), calls=4)


def test_loops_over_iterators_that_are_arguments():
    def program(x, it):
        for step in it:
            x = x + step
        return x

    compiled = torch.compile(program, backend="magpy")
    for i in range(4):
        assert torch.equal(compiled(X, iter([i, 2])), program(X, iter([i, 2])))


def test_iterators_that_run_code_are_left_to_python():
    def gives():
        yield from range(50)

    for make in (gives, lambda: map(abs, range(50)), lambda: itertools.cycle(gives()), lambda: (i for i in range(50))):
        counted = same(computes, lambda make=make: State(make()))
        assert not counted.hits and set(counted.fallbacks) == {"EXTERNAL_ITERATOR"}
