"""The way of a call: observed once, then served by its trace, for whatever a program does."""

import copy
import gc
import sys
import threading
import weakref
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import magpy
from magpy import _C, verify
from magpy.report import find_callable
from tests.compare import assert_same
from tests.counting import Counted


def compiled(fn, **options):
    return torch.compile(fn, backend="magpy", options=options or None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def observe_and_hit(fn, *args, **kwargs):
    """Two calls of `fn` compiled: the first is observed and gives one trace, the second hits; both equal eager's."""
    expected = fn(*args, **kwargs)
    fast = compiled(fn)
    with Counted() as counted:
        assert_same(fast(*args, **kwargs), expected)
    counted.assert_observed()
    with Counted() as counted:
        assert_same(fast(*args, **kwargs), expected)
    counted.assert_hit()
    return fast


def test_function():
    observe_and_hit(lambda x: torch.relu(x) * 2 + 1, torch.randn(3, 4))


def test_module_inference():
    with torch.no_grad():
        observe_and_hit(Net(), torch.randn(3, 4))


def test_module_with_gradients():
    net, x = Net(), torch.randn(3, 4)
    fast = observe_and_hit(net, x)
    other = copy.deepcopy(net)
    fast(x).sum().backward()
    other(x).sum().backward()
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert_same(mine.grad, theirs.grad)


def test_nested_results_and_arguments():
    def program(pair, *, scale, names):
        a, (b, c) = pair
        return {"sum": a + b * scale, names[0]: [c, (a, a)], "n": a.shape[0]}

    a, b, c = torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3)
    observe_and_hit(program, (a, (b, c)), scale=2.0, names=["x"])


def test_another_size_is_another_trace():
    fast = compiled(lambda x: x * 2)
    for n in (2, 3, 2, 3):
        assert_same(fast(torch.ones(n)), torch.full((n,), 2.0))
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 2


def test_another_argument_value_is_another_trace():
    fast = compiled(lambda x, flag: x + 1 if flag else x - 1)
    x = torch.ones(2)
    for flag in (True, False, True, 1, 0):
        assert_same(fast(x, flag), x + 1 if flag else x - 1)


def test_attribute_writes_are_committed():
    class Counter(nn.Module):
        last = None

        def forward(self, x):
            self.last = x * 3
            return self.last + 1

    net = Counter()
    fast = compiled(net)
    for k in range(3):
        x = torch.full((2,), float(k))
        assert_same(fast(x), x * 3 + 1)
        assert_same(net.last, x * 3)


def test_list_appends_are_committed():
    seen = []

    def program(x):
        seen.append(x + 1)
        return x * 2

    fast = compiled(program)
    for k in range(3):
        fast(torch.full((1,), float(k)))
    assert [t.item() for t in seen] == [1.0, 2.0, 3.0]


def test_in_place_operations_on_inputs_are_committed():
    def program(x, state):
        state.mul_(0.5).add_(x)
        return state * 2

    fast, mine, theirs = compiled(program), torch.ones(3), torch.ones(3)
    for k in range(4):
        x = torch.full((3,), float(k))
        assert_same(fast(x, mine), program(x, theirs))
        assert_same(mine, theirs)


def test_batch_norm_statistics():
    torch.manual_seed(0)
    net = nn.BatchNorm1d(3)
    other = copy.deepcopy(net)
    fast = compiled(net)
    for _ in range(3):
        x = torch.randn(5, 3)
        assert_same(fast(x), other(x))
        assert_same(net.running_mean, other.running_mean)
        assert net.num_batches_tracked == other.num_batches_tracked


def test_dropout_draws_eagers_numbers():
    net, x = nn.Dropout(0.5), torch.ones(100)
    fast = compiled(net)
    for _ in range(3):
        torch.manual_seed(7)
        mine = [fast(x), torch.rand(1)]
        torch.manual_seed(7)
        assert_same(mine, [net(x), torch.rand(1)])


def test_data_dependent_branch_is_right_on_both_sides():
    fast = compiled(lambda x: x * 2 if x.sum() > 0 else -x)
    x = torch.ones(3)
    for _ in range(3):
        assert_same(fast(x), x * 2)
        assert_same(fast(-x), x)
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 4
    assert find_callable(fast).describe()["fallbacks"] == []


def test_data_looked_at_before_it_changes():
    def program(x):
        positive = bool((x > 0).all())
        x.neg_()
        return x + 1 if positive else x - 1

    fast = compiled(program)
    for sign in (1.0, -1.0, 1.0, 1.0, -1.0):
        mine, theirs = torch.full((2,), sign), torch.full((2,), sign)
        assert_same(fast(mine), program(theirs))
        assert_same(mine, theirs)


def test_other_data_draws_no_random_numbers():
    def program(x, y):
        z = torch.nn.functional.dropout(y)
        return z + 1 if x.sum() > 0 else z - 1

    fast, x, y = compiled(program), torch.ones(3), torch.ones(50)
    for sign in (1, -1, 1, -1, -1):
        torch.manual_seed(3)
        mine = [fast(x * sign, y), torch.rand(1)]
        torch.manual_seed(3)
        assert_same(mine, [program(x * sign, y), torch.rand(1)])


# -- Exceptions -------------------------------------------------------------------------------------------------------


def test_exceptions_pass_through_unchanged():
    error = ValueError("mine")

    def program(x):
        raise error

    fast = compiled(program)
    with Counted() as counted:
        for _ in range(3):
            with pytest.raises(ValueError) as caught:
                fast(torch.ones(1))
            assert caught.value is error
    assert counted.fallbacks == {}


def test_operator_errors_are_eagers():
    fast = compiled(lambda x, y: x @ y)
    fast(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        fast(torch.ones(2, 3), torch.ones(2, 2))


def test_wrong_arguments_raise_eagers_error():
    fast = compiled(lambda x: x + 1)
    with pytest.raises(TypeError, match="positional argument"):
        fast()


def test_fullgraph_error_names_reason_and_line():
    def program(x):
        return x + 1 if repr(x) else x  # the line

    fast = torch.compile(program, backend="magpy", fullgraph=True)
    with pytest.raises(magpy.FullgraphError, match=r"test_calls\.py:\d+") as caught:
        fast(torch.ones(2))
    assert isinstance(caught.value, RuntimeError)
    line = program.__code__.co_firstlineno + 1
    assert f":{line}" in str(caught.value)


# -- Limits and options -----------------------------------------------------------------------------------------------


def test_trace_limit_warns_once_and_goes_on(caplog):
    fast = compiled(lambda x: x + 1, trace_limit=2)
    with caplog.at_level("WARNING", "magpy"):
        for n in (1, 2, 3, 4, 1, 2):
            assert_same(fast(torch.zeros(n)), torch.ones(n))
    assert find_callable(fast).n_traces == 2 and find_callable(fast).hits == 2
    assert len([r for r in caplog.records if "limit of 2 traces" in r.message]) == 1
    assert magpy.stats()["fallbacks"]["TRACE_LIMIT"] >= 2


def test_verify_accepts_equal_results():
    net, x = Net(), torch.randn(2, 4)
    fast = compiled(net, verify=True)
    for _ in range(3):
        assert_same(fast(x), net(x))
    assert find_callable(fast).hits == 2


def test_verify_makes_the_call_once():
    def program(x):
        x.add_(1)
        return x * 2

    fast, x = compiled(program, verify=True), torch.zeros(2)
    for k in range(3):
        assert_same(fast(x), torch.full((2,), 2.0 * (k + 1)))


class Named:
    pass


class Kept:
    """State of every kind of place."""

    __slots__ = ("slot",)


def stores_everywhere(state):
    cell = 0

    def program(x):
        nonlocal cell
        cell = x.shape[0]
        state["dict"] = {"y": x * 2}
        state["list"].append(x + 1)
        state["items"][0] = "first"
        state["object"].name = [1, 2]
        state["slots"].slot = (x.sum(), "s")
        state["set"].add(33)
        state["queue"].appendleft(3)
        state["net"].extra = 5
        state.pop("gone", None)
        return x * 3

    return program, lambda: cell


def a_state():
    return {
        "gone": 1, "list": [0], "items": [1, 2], "object": Named(), "slots": Kept(), "set": {1, 9},
        "queue": deque([1], maxlen=3), "net": torch.nn.ReLU(),
    }  # fmt: skip


def test_verify_compares_what_is_stored():
    state = a_state()
    program, cell = stores_everywhere(state)
    fast, x = compiled(program, verify=True), torch.ones(2)
    for _ in range(4):
        state.update(a_state())
        assert_same(fast(x), x * 3)
        assert state["set"] == {1, 9, 33} and "gone" not in state and cell() == 2
        assert len(state["list"]) == 2 and state["net"].extra == 5
    assert find_callable(fast).hits >= 2


@pytest.mark.parametrize(
    ("kind", "owner", "key", "value"),
    [
        ("KEY", {"a": 1}, "a", 2),
        ("KEY", {}, "a", 2),
        ("ITEM", [1, 2], 1, 3),
        ("LIST_APPEND", [1, 2], None, 3),
        ("CONTENTS", {"a": 1}, None, {"a": 2}),
        ("CONTENTS", {1, 2}, None, {1}),
        ("CONTENTS", deque([1]), None, [2]),
        ("ATTR", Kept, "name", 1),
        ("TENSOR_ATTR", torch.ones(1), "grad", torch.ones(1)),
        ("KEY", {"a": torch.ones(2)}, "a", torch.zeros(2)),
    ],
)
def test_verify_finds_what_is_stored_otherwise(kind, owner, key, value):
    with pytest.raises(_C.VerificationError):
        verify.compare(1, 1, None, [(kind, owner, key, value)], None)
    held = verify._held(kind, owner, -1 if kind == "LIST_APPEND" else key)
    verify.compare(1, 1, None, [(kind, owner, key, *held)], None)
    if held and kind != "CONTENTS":
        with pytest.raises(_C.VerificationError):
            verify.compare(1, 1, None, [(kind, owner, key)], None)


def test_dry_run_answers_without_running():
    fast = compiled(lambda x: x + 1, dry_run=True)
    x = torch.zeros(2)
    assert_same(fast(x), torch.ones(2))
    x.fill_(5)
    assert_same(fast(x), torch.ones(2))


# -- Reset, threads, nesting ------------------------------------------------------------------------------------------


def test_reset_forgets_every_time():
    fast, x = compiled(lambda x: x + 1), torch.ones(2)
    for _ in range(3):
        fast(x)
        assert find_callable(fast).n_traces == 1
        torch.compiler.reset()
        assert find_callable(fast).n_traces == 0


def test_compiled_function_in_a_compiled_function():
    inner = compiled(lambda x: x * 2)
    observe_and_hit(lambda x: inner(x) + 1, torch.ones(2))
    assert find_callable(inner).calls == 0 or find_callable(inner).n_traces <= 1


def test_compiled_module_in_a_compiled_function():
    net = compiled(Net())
    with torch.no_grad():
        x = torch.randn(2, 4)
        fast = compiled(lambda x: net(x) + 1)
        for _ in range(2):
            assert_same(fast(x), net._orig_mod(x) + 1)


def test_recursion():
    def program(x, n):
        return x if n == 0 else fast(x + 1, n - 1)

    fast = compiled(program)
    for _ in range(2):
        assert_same(fast(torch.zeros(1), 3), torch.full((1,), 3.0))


def test_threads():
    fast, failures = compiled(lambda x: torch.relu(x) + 1), []

    def work(n):
        try:
            for _ in range(50):
                assert torch.equal(fast(torch.ones(n)), torch.full((n,), 2.0))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# -- Lifetimes --------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_alive():
    net, x = Net(), torch.randn(2, 4)
    fast = compiled(net)
    for _ in range(3):
        result = fast(x)
    watched = [weakref.ref(o) for o in (net, x, result, net.first.weight, fast)]
    del net, x, result, fast
    gc.collect()
    assert [w() is None for w in watched] == [True] * len(watched)


def test_inputs_and_results_die_at_once():
    net = Net()
    with torch.no_grad():
        fast = compiled(net)
        for _ in range(3):
            x = torch.randn(2, 4)
            result = fast(x)
            watched = weakref.ref(x), weakref.ref(result)
            del x, result
            assert watched[0]() is None and watched[1]() is None


def test_calls_leave_no_references():
    net, x = Net(), torch.randn(2, 4)
    with torch.no_grad():
        fast = compiled(net)
        for _ in range(5):
            fast(x)
        gc.collect()
        before, blocks = [sys.getrefcount(o) for o in (x, net, net.first.weight, None)][:3], sys.getallocatedblocks()
        for _ in range(2000):
            fast(x)
        gc.collect()
        assert [sys.getrefcount(o) for o in (x, net, net.first.weight)] == before
        assert sys.getallocatedblocks() - blocks < 200


# -- Seeing inside ----------------------------------------------------------------------------------------------------


def test_explain_tells_guards_and_steps():
    net, x = Net().eval(), torch.randn(2, 4)
    with torch.no_grad():
        report = magpy.explain(compiled(net), x)
    text = str(report)
    assert len(report.traces) == 1 and report.traces[0].operators >= 3
    assert any("first" in guard for guard in report.guards), text
    assert report.traces[0].steps and report.fallbacks == []
    assert_same(report.result, net(x).detach())


def test_explain_tells_fallbacks():
    def program(x):
        return x + 1 if repr(x) else x

    report = magpy.explain(program, torch.ones(1))
    assert (
        report.fallbacks[0]["file"] == __file__ and report.fallbacks[0]["line"] == program.__code__.co_firstlineno + 1
    )
    assert report.fallbacks[0]["text"] in str(report)


def test_stats():
    magpy.reset()
    fast = compiled(lambda x: x + 1)
    for _ in range(3):
        fast(torch.ones(2))
    stats = magpy.stats()
    assert (stats["calls"], stats["hits"], stats["misses"], stats["traces"], stats["segments"]) == (3, 2, 1, 1, 1)
    assert stats["fallbacks"] == {} and sum(stats["plan_steps"].values()) >= 1
    assert stats["seconds"]["observing"] > 0 and stats["seconds"]["lowering"] > 0


def test_disabled_functions_are_not_compiled():
    @torch.compiler.disable
    def inner(x):
        return x.relu()

    fast = compiled(lambda x: inner(x * 2) + 1)
    for _ in range(5):
        assert_same(fast(torch.ones(2)), torch.full((2,), 3.0))
    assert [row["reason"] for row in find_callable(fast).describe()["fallbacks"]] == ["DISABLED"]


# -- Checks: data that the program looks at ----------------------------------------------------------------------------


def test_a_branch_on_data_is_a_trace_for_each_side_with_its_effects():
    log = []

    def program(x):
        if (x > 0).all():
            log.append("positive")
            return x * 2
        log.append("other")
        return x - 1

    fast = compiled(program)
    x = torch.ones(3)
    with Counted() as counted:
        for sign in (1, -1, 1, -1, -1, 1):
            assert_same(fast(sign * x), x * 2 if sign > 0 else -x - 1)
            assert log == ["positive" if sign > 0 else "other"]
            log.clear()
    assert (counted.traces, counted.hits, counted.fallbacks) == (2, 4, {})


def test_a_run_thrown_away_by_a_check_leaves_no_mark():
    net = nn.BatchNorm1d(3)

    def program(x):
        y = F.dropout(net(x), 0.5)
        if (x > 0).all():
            return y
        return y + 1

    reference = copy.deepcopy(net)
    fast = compiled(program)
    inputs = [torch.rand(4, 3) * sign for sign in (1, -1, 1, -1, 1, -1)]
    torch.manual_seed(3)
    mine = [fast(x) for x in inputs]
    rng, trained, net = torch.get_rng_state(), net, reference
    torch.manual_seed(3)
    assert_same([t.detach() for t in mine], [program(x).detach() for x in inputs])
    assert torch.equal(rng, torch.get_rng_state())
    assert_same(list(trained.buffers()), list(reference.buffers()))


def test_data_that_is_always_different_is_given_up():
    def program(x):
        n = int(x.sum())
        return x + len(range(n))

    fast = compiled(program)
    with Counted() as counted:
        for i in range(40):
            x = torch.full((2,), float(i))
            assert_same(fast(x), program(x))
    assert counted.traces < 20 and counted.fallbacks


def test_slices_bounded_by_tensors():
    fast, x = compiled(lambda x, n: x[:n] * 2), torch.randn(5)
    for n in (1, 2, 2, 1, 3):
        assert_same(fast(x, torch.tensor(n)), x[:n] * 2)
    assert find_callable(fast).n_traces == 3 and find_callable(fast).hits == 2


def test_context_variables_with_a_default():
    import contextvars

    variable = contextvars.ContextVar("variable", default=None)

    def program(x):
        token = variable.set(x)
        try:
            return x + 1
        finally:
            variable.reset(token)

    def reader(x):
        return x + 1 if variable.get() is None else program(x)

    observe_and_hit(reader, torch.ones(2))
