"""Which object it is, addresses that are used again, and versions at their limits."""

import collections
import copy
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from magpy import _C


class A:
    k = 1

    def __init__(self, x: Any = 1) -> None:
        self.x = x


class B(A):
    pass


def holds(guards: Any, *args: Any) -> bool:
    first, second, third = guards.check(*args), guards.check(*args), guards.check(*args)
    assert first == second == third
    return first[0]


# -- Scalars: type and value -----------------------------------------------------------------------------------------

LIKE = [1, 1.0, True, "1", b"1", None, 0, 0.0, -0.0, False, 1j, complex(0.0, -0.0), complex(0.0, 0.0), (), (1,), (1.0,)]


@pytest.mark.parametrize("i", range(len(LIKE)))
def test_scalars_are_the_same_by_type_and_value_only(i: int) -> None:
    def argument(y: Any) -> Any:
        return y

    box = [LIKE[i]]

    def item() -> Any:
        return box[0][0] if type(box[0]) is tuple and box[0] else box[0]

    by_argument, by_item = _C._guards(argument, LIKE[i]), _C._guards(item)
    for j, other in enumerate(LIKE):
        if not isinstance(other, tuple) or not isinstance(LIKE[i], tuple):  # an argument's items were not read
            assert holds(by_argument, other) == (i == j), (LIKE[i], other)
        box[0] = other
        if isinstance(other, tuple) == isinstance(LIKE[i], tuple) and other != ():
            assert holds(by_item) == (i == j), (LIKE[i], other)


def test_equal_scalars_that_are_other_objects_are_the_same() -> None:
    n, text = 10**20, "a longer text"
    box = [n, text, float("nan")]

    def f() -> Any:
        return box[0], box[1], box[2]

    guards = _C._guards(f)
    for _ in range(5):
        box[:] = [int(str(n)), "".join(list(text)), float("nan")]
        assert holds(guards)
    box[1] = "another text"
    assert not holds(guards)


# -- Addresses that are used again -----------------------------------------------------------------------------------

MAKERS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda n: (n, "tuple"), lambda o: o[0]),
    "nested_tuple": (lambda n: ((n,), "tuple"), lambda o: o[0][0]),
    "list": (lambda n: [n], lambda o: o[0]),
    "dict": (lambda n: {"n": n}, lambda o: o["n"]),
    "instance": (lambda n: A(n), lambda o: o.x),
    "function": (lambda n: lambda: n, lambda o: o()),
    "default": (lambda n: lambda n=n: n, lambda o: o()),
    "method": (lambda n: types_method(n), lambda o: o()),
    "frozenset": (lambda n: frozenset([n]), lambda o: n_in(o)),
    "float": (lambda n: float(n), lambda o: o),
    "text": (lambda n: "n" * (n + 2), lambda o: o),
}


class Methodical(A):
    def get(self) -> Any:
        return self.x


def types_method(n: int) -> Any:
    return Methodical(n).get


def n_in(o: Any) -> Any:
    return 1 in o


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("where", ["list", "dict", "cell", "attribute", "global"])
def test_another_object_at_the_same_address_is_noticed(name: str, where: str) -> None:
    make, look = MAKERS[name]
    space: dict[str, Any] = {"look": look, "box": [make(1)], "table": {"o": make(1)}, "a": A(make(1)), "o": make(1)}
    source = {
        "list": "def f(): return look(box[0])",
        "dict": "def f(): return look(table['o'])",
        "attribute": "def f(): return look(a.x)",
        "global": "def f(): return look(o)",
        "cell": "def outer(c):\n def put(v):\n  nonlocal c\n  c = v\n def f(): return look(c)\n return f, put\n",
    }[where]
    exec(source, space)
    if where == "cell":
        f, put = space["outer"](make(1))
    else:
        f = space["f"]
        put = {
            "list": lambda v: space["box"].__setitem__(0, v),
            "dict": lambda v: space["table"].__setitem__("o", v),
            "attribute": lambda v: setattr(space["a"], "x", v),
            "global": lambda v: space.__setitem__("o", v),
        }[where]
    guards, first = _C._guards(f), f()
    for n in [1, 2, 1, 3, 3, 1, 2, 1]:
        put(None)  # let go first, so that the next one is likely to get the address
        put(make(n))
        result = f()
        for _ in range(3):
            assert not guards.check()[0] or result == first, n
        if n == 1 and name not in ("function",):
            put(None)
            put(make(1))
            assert guards.check()[0], guards.check()


def test_what_has_died_is_not_taken_for_what_is_there_now() -> None:
    registry: dict[str, Any] = {}

    def f(o: Any) -> Any:
        return o is registry["o"], registry["o"].x

    registry["o"] = a = A()
    guards = _C._guards(f, a)
    assert holds(guards, a)
    assert not holds(guards, A())
    del a
    for _ in range(10):
        registry["o"] = None
        gc.collect()
        registry["o"] = A()
        assert f(A())[0] is False and not holds(guards, A())


# -- Identity --------------------------------------------------------------------------------------------------------


def test_recorded_objects_and_current_ones_correspond_one_to_one() -> None:
    def f(p: Any, q: Any) -> Any:
        return p.x.x, q.x.x

    one, two = A(A()), A(A())
    apart = _C._guards(f, one, two)
    shared = A()
    together = _C._guards(f, A(shared), A(shared))
    for _ in range(2):
        assert holds(apart, one, two) and holds(apart, A(A()), A(A()))
        assert not holds(apart, A(shared), A(shared)) and not holds(apart, one, one)
        assert holds(together, A(shared), A(shared)) and not holds(together, one, two)


def test_identity_that_the_program_looked_at_must_be_the_same_object() -> None:
    marker, table = object(), {}

    def f(o: Any) -> Any:
        return 1 if o is marker else 2

    def g(o: Any) -> Any:
        return table.get(o, 0)

    assert holds(_C._guards(f, marker), marker)
    assert not holds(_C._guards(f, marker), object())
    a = A()
    table[a] = 5
    guards = _C._guards(g, a)
    assert holds(guards, a) and not holds(guards, A())


def test_class_assignment_is_a_miss() -> None:
    a = A()
    held = {"a": a}

    def f(y: Any) -> Any:
        return held["a"].x + y.x

    b = A()
    guards = _C._guards(f, b)
    assert holds(guards, b)
    a.__class__ = B
    assert not holds(guards, b)
    a.__class__ = A
    assert holds(guards, b)
    b.__class__ = B
    assert not holds(guards, b)
    b.__class__ = A
    assert holds(guards, b)


# -- What versions do not tell ---------------------------------------------------------------------------------------


def test_order_of_an_ordered_dict() -> None:
    od = collections.OrderedDict(a=1, b=2)

    def f() -> Any:
        return [*od]

    guards = _C._guards(f)
    assert holds(guards)
    od.move_to_end("a")
    assert not holds(guards)
    od.move_to_end("b")
    assert holds(guards)


def test_keyword_defaults_changed_in_place() -> None:
    def g(*, c: int = 3) -> int:
        return c

    def f() -> int:
        return g()

    guards = _C._guards(f)
    assert holds(guards)
    g.__kwdefaults__["c"] = 4
    assert not holds(guards)
    g.__kwdefaults__["c"] = 3
    assert holds(guards)


def test_code_and_defaults_replaced_and_put_back() -> None:
    def g(c: int = 3) -> int:
        return c

    def other(c: int = 3) -> int:
        return c + 1

    def f() -> int:
        return g()

    for _ in range(20):
        f()  # specialised calls give functions a version
    guards, code = _C._guards(f), g.__code__
    for _ in range(3):
        assert holds(guards)
        g.__code__ = other.__code__
        assert not holds(guards)
        g.__code__ = code
        assert holds(guards)
        g.__defaults__ = (4,)
        assert not holds(guards)
        g.__defaults__ = (3,)


def test_attributes_of_dict_subclasses() -> None:
    class Table(dict):
        pass

    table = Table(a=1)
    table.extra = 5

    def f() -> Any:
        return table["a"], table.extra

    guards = _C._guards(f)
    assert holds(guards)
    table.extra = 6
    assert not holds(guards)
    table.extra = 5
    assert holds(guards)
    table["a"] = 2
    assert not holds(guards)


def test_dict_replaced_and_shared() -> None:
    a, b = A(1), A(2)

    def f() -> Any:
        return a.x

    a.__dict__, b.__dict__  # noqa: B018 (materialised)
    guards = _C._guards(f)
    assert holds(guards)
    a.__dict__ = b.__dict__
    assert not holds(guards)
    a.__dict__ = {"x": 1}
    assert holds(guards)


def test_an_instance_gets_its_dict_while_guarded() -> None:
    a = A(1)

    def f() -> Any:
        return a.x

    guards = _C._guards(f)
    assert holds(guards)
    assert vars(a) == {"x": 1}
    assert holds(guards)
    a.x = 2
    assert not holds(guards)


def test_weak_references() -> None:
    a = A()
    ref = weakref.ref(a)

    def f() -> Any:
        return ref().x if ref() is not None else None

    guards = _C._guards(f)
    assert holds(guards)
    del a
    gc.collect()
    assert not holds(guards)


def test_locals_of_a_thread() -> None:
    local = threading.local()
    local.x = 1

    def f() -> Any:
        return local.x

    guards, answers = _C._guards(f), []
    assert holds(guards)

    def elsewhere() -> None:
        answers.append(guards.check()[0])
        local.x = 1
        answers.append(guards.check()[0])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False, True] and holds(guards)


def test_a_list_that_moves_in_memory() -> None:
    items = [1, A(2)]

    def f() -> Any:
        return items[0], items[1].x

    guards = _C._guards(f)
    assert holds(guards)
    items.extend(range(1000))
    assert holds(guards)
    del items[2:]
    items[1] = A(2)
    assert holds(guards)
    items[1] = A(3)
    assert not holds(guards)


# -- Type versions ---------------------------------------------------------------------------------------------------


def test_types_changed_and_put_back_on_class_base_and_metaclass() -> None:
    class Meta(type):
        m = 1

    class Base(metaclass=Meta):
        k = 1

    class C(Base):
        pass

    def f() -> Any:
        return C.k, C().k, C.m

    guards = _C._guards(f)
    for target, name in ((Base, "k"), (Meta, "m")):
        assert holds(guards)
        setattr(target, name, 2)
        assert not holds(guards)
        setattr(target, name, 1)
        assert holds(guards)
    C.k = 1  # the same value in another place
    assert holds(guards)
    Meta.k = property(lambda cls: 5)  # a data descriptor on the metaclass wins
    assert not holds(guards)
    del Meta.k
    assert holds(guards)


def test_many_changes_of_a_type_do_not_wear_guards_out() -> None:
    class C:
        k = 1

    def f() -> Any:
        return C.k

    guards = _C._guards(f)
    for i in range(3000):
        C.other = i
        assert guards.check()[0]
    C.k = 2
    assert not holds(guards)


def test_bases_replaced() -> None:
    class P:
        k = 1

    class Q:
        k = 2

    class C(P):
        pass

    def f() -> Any:
        return C.k

    guards = _C._guards(f)
    assert holds(guards)
    C.__bases__ = (Q,)
    assert not holds(guards)
    C.__bases__ = (P,)
    assert holds(guards)


def test_checks_leave_no_references_behind() -> None:
    a, box = A(1), [A(2)]

    def f(y: Any) -> Any:
        return a.x, box[0].x, y.x

    y = A(3)
    guards = _C._guards(f, y)
    for _ in range(3):
        assert guards.check(y)[0] and guards.check(A(3))[0] and not guards.check(A(4))[0]
    before = [sys.getrefcount(o) for o in (a, box[0], y, A, guards)]
    for _ in range(100):
        guards.check(y), guards.check(A(3)), guards.check(A(4)), guards.check(5)
    assert [sys.getrefcount(o) for o in (a, box[0], y, A, guards)] == before


def test_object_held_by_an_argument_whose_identity_was_seen_dies():
    """What is known of it is looked at only while it lives, although it is known before the argument is looked at."""

    class Part:
        def __init__(self, k):
            self.k = k

    class Whole:
        pass

    seen = {}

    def program(x, whole):
        part = whole.part
        seen[id(part)] = 1
        return x * vars(part)["k"] + len(vars(part))

    fast = torch.compile(program, backend="magpy")
    for _ in range(20):
        whole = Whole()
        vars(whole)
        for k in range(3):
            whole.part = Part(float(k))
            garbage = [Part(9.0) for _ in range(50)]
            for _ in range(3):
                assert fast(torch.ones(2), whole).tolist() == [k + 1.0] * 2
            del garbage


WAYS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "item": (lambda part: [part, None], lambda box: box[0]),
    "one of several": (lambda part: [part, type(part)()], lambda box: [q for q in box][0]),  # noqa: C416
    "key": (lambda part: {"k": part}, lambda box: box["k"]),
    "tuple": (lambda part: (1, part), lambda box: box[1]),
    "deque": (lambda part: collections.deque([part]), lambda box: box[0]),
    "deep": (lambda part: [{"k": [part]}], lambda box: box[0]["k"][0]),
}


@pytest.mark.parametrize("seen", [True, False], ids=["identity seen", "identity unseen"])
@pytest.mark.parametrize("way", WAYS)
def test_the_class_of_an_object_that_stays_the_same_object_is_assigned(way: str, seen: bool) -> None:
    """However it is held, and whether or not the program has seen which object it is."""

    class A:
        pass

    class B(A):
        pass

    make, find = WAYS[way]
    part = A()
    box = make(part)
    known: dict[int, int] = {}

    def program(x: torch.Tensor) -> Any:
        found = find(box)
        if seen:
            known[id(found)] = 1
        made = copy.deepcopy(box)
        return x + 1, type(found).__name__, type(find(made)).__name__

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        for cls in (A, B):
            part.__class__ = cls
            for _ in range(4):
                assert fast(torch.ones(1))[1:] == (cls.__name__, cls.__name__)
