"""What calls of C callables read, write and refuse."""

import collections
import contextlib
import contextvars
import copy
import fnmatch
import functools
import operator
import random
import threading
import time
import warnings
import weakref

import numpy as np
import pytest
import torch

from magpy import _C

X = torch.ones(2)


def observe(f, *args, **kwargs):
    out, about = _C._observe(f, *args, **kwargs)
    assert about["reason"] is None, about["reason"]
    return about


def reads(about, kind):
    return [(r[2], r[3]) for r in about["reads"] if r[0] == kind]


def reason(f, *args, **kwargs):
    return _C._observe(f, *args, **kwargs)[1]["reason"]


class Config:
    def __init__(self, **kwargs):
        self.__dict__.update(kwargs)


def test_getattr_and_hasattr_read_the_attribute():
    config = Config(scale=2.0)
    about = observe(lambda a, c: a * c.scale if hasattr(c, "scale") else a, X, config)
    text = str(about["reads"])
    assert "'scale'" in text and "2.0" in text


def test_absent_attributes_are_reads_too():
    about = observe(lambda a, c: a * getattr(c, "scale", 1.0), X, Config(other=1))
    assert "'scale'" in str(about["reads"])


def test_dict_get_reads_one_key():
    about = observe(lambda a, d: a * d.get("k", 1), X, {"k": 3, "other": 4})
    assert ("k", ("value", 3)) in reads(about, "KEY")
    assert "other" not in str(about["reads"])


def test_dict_get_of_an_absent_key_reads_that_it_is_absent():
    about = observe(lambda a, d: a * d.get("k", 1), X, {})
    assert ("k", ("missing",)) in reads(about, "KEY")


def test_dict_values_read_the_whole_dict():
    about = observe(lambda a, d: a * sum(d.values()), X, {"a": 1, "b": 2})
    assert (None, ("value", 2)) in reads(about, "LEN")
    assert ("b", ("value", 2)) in reads(about, "KEY")


def test_len_reads_the_length_only():
    about = observe(lambda a, xs: a * len(xs), X, [5, 6])
    assert reads(about, "LEN") == [(None, ("value", 2))]
    assert reads(about, "ITEM") == []


def test_sorted_reads_what_is_sorted_and_watches_the_key():
    scale = Config(by=-1)
    about = observe(lambda a, xs: a * sorted(xs, key=lambda v: v * scale.by)[0], X, [1, 2, 3])
    assert len(reads(about, "ITEM")) >= 3
    assert "'by'" in str(about["reads"])


def test_c_callbacks_with_effects_end_the_trace():
    seen = []
    assert "list.append" in reason(lambda a: [list(map(seen.append, [1])), a][1], X)
    observe(lambda a, xs: a * sum(map(len, xs)), X, [[1], [2, 3]])


def test_c_callbacks_that_change_the_calls_own_objects_are_harmless():
    pair = collections.namedtuple("pair", "a b")
    observe(lambda a: a * pair(1, 2)._replace(a=3).a, X)
    observe(lambda a: a * list(map(max, [(1, 2)]))[0], X)


def test_blind_append_reads_nothing():
    log = [1, 2, 3]
    about = observe(lambda a: [log.append("x"), a * 2][1], X)
    assert [w[0] for w in about["writes"]] == ["LIST_APPEND"]
    assert (None, ("value", 3)) not in reads(about, "LEN")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(b=1),
        lambda d: d.pop("a"),
        lambda d: d.clear(),
        lambda d: d.setdefault("z", 1),
        lambda d: d.__setitem__("y", 1),
    ],
)
def test_changes_of_outside_dicts_are_writes(change):
    d = {"a": 1, "b": 2}
    about = observe(lambda a: [change(d), a * 2][1], X)
    assert about["writes"]


def test_changes_of_inside_containers_are_no_writes():
    def f(a):
        d, xs, q = {}, [], collections.deque()
        d.update(k=1)
        d.pop("k")
        xs.extend([1, 2])
        xs.sort()
        q.append(3)
        s = set(xs)
        s.add(q.popleft())
        return a * len(s)

    about = observe(f, X)
    assert about["writes"] == []


def test_setattr_is_a_write():
    c = Config(n=1)
    about = observe(lambda a: [setattr(c, "n", 2), a][1] * 2, X)
    assert len(about["writes"]) == 1


def test_isinstance_reads_the_type():
    about = observe(lambda a, c: a * (1 if isinstance(c, Config) else 2), X, Config())
    assert reads(about, "TYPE")


def test_abstract_classes_are_guarded_by_their_cache_token():
    about = observe(lambda a, xs: a * (1 if isinstance(xs, collections.abc.MutableMapping) else 2), X, Config())
    assert reads(about, "STATE_CALL")


def test_calling_a_class_reads_how_it_makes_instances():
    class Point:
        def __init__(self, x):
            self.x = x

    about = observe(lambda a: a * Point(3).x, X)
    assert ("__init__") in [r[0] for r in reads(about, "TYPE_ATTR")]


def test_partials_and_bound_methods_are_unwrapped():
    c = Config(scale=2)
    scaled = functools.partial(torch.mul, other=c.scale)
    about = observe(lambda a: scaled(a), X)
    keys = [r[0] for r in reads(about, "MEMBER")]
    assert {"func", "args", "keywords"} <= set(keys)


def test_weak_references_read_their_referent():
    c = Config(scale=2)
    ref = weakref.ref(c)
    about = observe(lambda a: a * ref().scale, X)
    assert reads(about, "DEREF")


def test_context_variables_are_locations():
    var = contextvars.ContextVar("v", default=2)
    about = observe(lambda a: a * var.get(), X)
    assert len(reads(about, "CONTEXT_VAR")) == 1

    def scoped(a):
        token = var.set(5)
        try:
            return a * var.get()
        finally:
            var.reset(token)

    about = observe(scoped, X)
    assert about["ops"][0][1][1] == 5
    assert [w[0] for w in about["writes"]] == ["CONTEXT_VAR"]


def test_operator_getters_read_like_the_expressions():
    c, d = Config(n=2), {"k": 3}
    n, k = operator.attrgetter("n"), operator.itemgetter("k")
    about = observe(lambda a: a * n(c) * k(d), X)
    assert ("k", ("value", 3)) in reads(about, "KEY")
    assert "'n'" in str(about["reads"])


def test_locks_that_are_given_back_are_no_effect():
    lock, rlock = threading.Lock(), threading.RLock()

    def f(a):
        with lock, rlock:
            return a * 2

    about = observe(f, X)
    assert about["writes"] == []
    assert "not released" in reason(lambda a: [lock.acquire(), a][1], X)
    lock.release()


def test_print_is_put_off(capsys):
    about = observe(lambda a: [print("hello", 3, end="!"), a][1] * 2, X)
    assert capsys.readouterr().out == "hello 3!"
    ((kind, _, callable_, args),) = about["writes"]
    assert kind == "CALL" and args == (("hello", 3), {"end": "!"}, ())
    callable_(*args[0], **args[1])
    assert capsys.readouterr().out == "hello 3!"


def test_print_of_what_may_change_prints_a_copy(capsys):
    values = [1]
    ((_, _, _, args),) = observe(lambda a, v: [print(v), v.append(2), a][2], X, values)["writes"][:1]
    assert args[0] == ([1],) and values == [1, 2]


def test_warnings_are_put_off_with_their_place():
    def f(a):
        warnings.warn("careful", stacklevel=1)
        return a * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        about = observe(f, X)
    ((kind, _, callable_, args),) = about["writes"]
    assert kind == "CALL" and callable_ is warnings.warn
    frame = args[2][-1].__code__
    assert args[0] == ("careful",) and args[1] == {"stacklevel": 1}
    assert (frame.co_filename, frame.co_firstlineno) == (__file__, f.__code__.co_firstlineno + 1)


@pytest.mark.parametrize(
    ("opaque", "name"),
    [
        (lambda a: a * time.time(), "time.time"),
        (lambda a: a * random.random(), "random"),
        (lambda a: open("/nowhere"), "open"),
    ],
)
def test_what_gives_another_result_each_time_ends_the_trace(opaque, name):
    try:
        why = reason(opaque, X)
    except (OSError, NameError):
        return
    assert name in why


def test_outside_iterators_end_the_trace():
    it = iter([1, 2, 3])
    assert "iterator" in reason(lambda a: a * next(it), X)
    assert "iterator" in reason(lambda a: a * sum(it), X)
    gen = (i for i in range(3))
    assert "iterator" in reason(lambda a: a * list(gen)[0], X)


def test_inside_iterators_are_followed():
    def f(a, xs):
        it = iter(xs)
        first = next(it)
        pairs = dict(zip(["a", "b"], it, strict=True))
        return a * (first + pairs["a"] + sum(v for _, v in enumerate(xs)))

    observe(f, X, [1, 2, 3])


def test_format_fields_that_look_inside_end_the_trace():
    c = Config(n=2)
    inside, plain = "{0.n}", "{:d} {name}"
    assert "field" in reason(lambda a: a * len(inside.format(c)), X)
    observe(lambda a: a * len(plain.format(3, name="x")), X)


def test_cached_functions_of_libraries_give_what_they_gave():
    table = functools.lru_cache(fnmatch.translate)
    table("*.py")
    about = observe(lambda a: a * len(table("*.py")), X)
    assert (("*.py",), ("value", fnmatch.translate("*.py"))) in reads(about, "STATE_CALL")


def test_what_a_cache_holds_is_read_without_counting():
    @functools.lru_cache
    def table(n):
        return n * 2

    table(3)
    about = observe(lambda a: a * table(3), X)
    assert reads(about, "CACHED") == [((3,), ("value", 6))]
    assert [w[0] for w in about["writes"]] == ["CALL"] and table.cache_info().hits == 1


def test_copies_read_what_is_copied():
    c = Config(n=2)
    copy.copy(c)  # the class remembers the names of its slots from now on
    about = observe(lambda a: a * copy.copy(c).n, X)
    assert "'n'" in str(about["reads"])


def test_super_is_followed():
    class Base:
        def f(self, a):
            return a * 2

    class Derived(Base):
        def f(self, a):
            return super().f(a) + 1

    about = observe(lambda a, o: o.f(a), X, Derived())
    assert reads(about, "SUPER_ATTR")


def test_user_classes_with_a_metaclass_call():
    class Meta(type):
        def __call__(cls, *args):
            return super().__call__(*args)

    class P(metaclass=Meta):
        def __init__(self, n):
            self.n = n

    observe(lambda a: a * P(2).n, X)


def test_classes_and_functions_made_inside_are_the_calls_own():
    def f(a):
        class Local:
            n = 2

        def inner(b):
            return b * Local.n

        return inner(a) * type("T", (), {"k": 3}).k

    observe(f, X)


def test_numpy_on_constants_is_pure():
    def f(a):
        n = int(np.prod(a.shape))
        return a * float(np.sqrt(n)) + np.arange(3).tolist()[2]

    observe(f, X)


def test_numpy_on_outside_arrays_ends_the_trace():
    table = np.ones(2)
    assert reason(lambda a: a * float(np.sum(table)), X) is not None
    assert reason(lambda a: np.add(a, a), X) is not None
    assert reason(lambda a: a * np.random.rand(), X) is not None


def test_print_where_stdout_is_replaced_ends_the_trace():
    def f(a):
        with contextlib.redirect_stdout(None):
            print("unseen")
        return a * 2

    assert reason(f, X) is not None


def test_subclasses_are_outside_state():
    assert "__subclasses__" in reason(lambda a: a * len(Config.__subclasses__()), X)
