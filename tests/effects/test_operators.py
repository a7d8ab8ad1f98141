"""What becomes an operator of the graph, and what ends the trace."""

import pytest
import torch
import torch.nn.attention

from magpy import _C
from tests.traps.differential import same_as_eager


def ops(about):
    return [getattr(op[0], "__name__", "?") for op in about["ops"]]


def observe(f, *args, **kwargs):
    out, about = _C._observe(f, *args, **kwargs)
    assert about["reason"] is None, about["reason"]
    return out, about


def reason(f, *args, **kwargs):
    return _C._observe(f, *args, **kwargs)[1]["reason"]


def test_operators_are_recorded_at_api_level_with_values_for_tensors():
    x, w = torch.randn(2, 3), torch.randn(3, 4)
    out, about = observe(lambda a: (a @ w).relu(), x)
    assert torch.equal(out, (x @ w).relu())
    assert ops(about) == ["matmul", "relu"]
    matmul, relu = about["ops"]
    assert matmul[1] == (_C.Value(0), _C.Value(1)) and matmul[3] == _C.Value(2)
    assert relu[1] == (_C.Value(2),) and relu[3] == _C.Value(3)
    assert len(about["inputs"]) == 2


def test_one_tensor_is_one_value():
    x = torch.randn(3)
    _, about = observe(lambda a, b: a + b, x, x)
    assert about["ops"][0][1] == (_C.Value(0), _C.Value(0))
    assert len(about["inputs"]) == 1


def test_an_operator_that_returns_its_argument_makes_no_value():
    x = torch.randn(3)
    _, about = observe(lambda a: a.contiguous() + 1, x)
    assert about["ops"][0][3] == _C.Value(0)


def test_tensors_inside_lists_slices_and_keywords_are_values():
    x, i = torch.randn(4, 3), torch.tensor([0, 1])
    _, about = observe(lambda a: torch.cat([a, a[i]], dim=0), x)
    assert about["ops"][1][1] == ([_C.Value(0), _C.Value(2)],)
    assert about["ops"][1][2] == {"dim": 0}


def test_operators_called_from_c_code_are_seen():
    x = torch.randn(3)
    _, about = observe(lambda a: sum([a, a]), x)
    assert ops(about) == ["add", "add"]


def test_metadata_is_no_operator():
    x = torch.randn(2, 3)
    out, about = observe(lambda a: a * (a.shape[0] + a.size(1) + a.dim() + len(a)), x)
    assert ops(about) == ["mul"]
    assert about["ops"][0][1] == (_C.Value(0), 9)


def test_names_of_types_are_metadata():
    _, about = observe(lambda a: a * len(a.type()) * len(torch.typename(a)), torch.ones(2))
    assert ops(about) == ["mul", "mul"]


def test_grad_mode_and_autocast_are_operators():
    x = torch.randn(3, 3)

    def f(a):
        with torch.no_grad():
            b = a * 2
        with torch.autocast("cpu", torch.bfloat16):
            return b @ a

    out, about = observe(f, x)
    assert out.dtype == torch.bfloat16
    names = ops(about)
    assert names[:3] == ["_set_grad_enabled", "mul", "_set_grad_enabled"]
    assert names[3] == "set_autocast_enabled" and "matmul" in names


def test_modes_that_the_program_sets_itself_are_read_back_as_set():
    def f(a):
        with torch.no_grad():
            return a * (2 if torch.is_grad_enabled() else 3)

    _, about = observe(f, torch.ones(2))
    assert about["ops"][1][1] == (_C.Value(0), 3)


def test_autograd_function_is_one_operator():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return torch.sin(a) * 2

        @staticmethod
        def backward(ctx, g):
            return g

    _, about = observe(lambda a: Double.apply(a) + 1, torch.ones(2, requires_grad=True))
    assert ops(about) == ["apply", "add"]


def test_an_autograd_function_that_takes_tensors_from_elsewhere_ends_the_trace():
    w = torch.ones(2)

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * w

        @staticmethod
        def backward(ctx, g):
            return g

    assert "no argument of it" in reason(lambda a: Scale.apply(a), torch.ones(2, requires_grad=True))


def test_what_backward_looks_up_is_read():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2

        @staticmethod
        def backward(ctx, g):
            return scaled(g)

    _, about = observe(lambda a: Scale.apply(a), torch.ones(2, requires_grad=True))
    assert ("KEY", "scaled") in [(r[0], r[2]) for r in about["reads"]]


def test_numbers_that_backward_looks_up_may_change_until_then():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 2

        @staticmethod
        def backward(ctx, g):
            return g * FACTOR

    assert "backward" in reason(lambda a: Scale.apply(a), torch.ones(2, requires_grad=True))


def scaled(g):
    return g * 3


FACTOR = 2.0


def test_a_torch_function_of_the_program_itself_is_what_it_does():
    _, about = observe(lambda a: overridable(a), torch.ones(2))
    assert "overridable" not in ops(about)


def overridable(a):
    if torch.overrides.has_torch_function_unary(a):
        return torch.overrides.handle_torch_function(overridable, (a,), a)
    return a * FACTOR


def test_an_autograd_function_that_raises_and_is_caught_ends_the_trace():
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            raise ValueError("no")

    def f(a):
        try:
            return Raises.apply(a)
        except ValueError:
            return a + 1

    assert "raised an exception" in reason(f, torch.ones(2, requires_grad=True))


def test_an_operator_that_changes_something_raises_and_is_caught():
    def f(a):
        try:
            a.add_(torch.ones(7))
        except RuntimeError:
            pass
        return a

    assert "raised an exception" in reason(f, torch.ones(2))


def test_calls_that_the_mode_does_not_see_are_recorded():
    x = torch.randn(3)
    _, about = observe(lambda a: torch.nn.Parameter(a) * torch.Tensor([1.0, 2.0, 3.0]), x)
    assert ops(about) == ["_make_subclass", "Tensor", "mul"]

    script = torch.jit.script(torch.nn.ReLU())
    function = torch.jit.trace(lambda a: a * 2, (x,))
    _, about = observe(lambda a: function(a) + 1, x)
    assert len(about["ops"]) == 2
    assert script is not None


@pytest.mark.parametrize(
    "look",
    [
        lambda a: a.sum().item(),
        lambda a: a.tolist(),
        lambda a: bool(a.sum() > 0),
        lambda a: int(a.sum()),
        lambda a: float(a.sum()),
        lambda a: 1 if a.sum() else 2,
        lambda a: torch.equal(a, a),
        lambda a: torch.allclose(a, a),
        lambda a: a.nonzero(),
        lambda a: a[a > 0],
        lambda a: torch.unique(a),
        lambda a: a.sum() in [a.sum()],
        lambda a: f"{a}",
        lambda a: range(4)[a.long().sum()],
        lambda a: torch.arange(a.long().sum()),
        lambda a: torch.zeros(a.long().sum()),
        lambda a: a[: a.long().sum()],
        lambda a: a.repeat(a.long().sum()),
        lambda a: a.expand(a.long().sum()),
        lambda a: torch.Size([a.long().sum()]),
        lambda a: a.repeat_interleave(a.long()),
    ],
)
def test_looking_at_data_ends_the_trace(look):
    assert "looks at tensor data" in reason(look, torch.ones(2))


def test_data_of_constants_may_be_looked_at():
    def f(a):
        rates = [r.item() for r in torch.linspace(0, 1, 3)]
        steps = torch.arange(4).tolist()
        if torch.tensor(3) > 2:
            return a * rates[1] + steps[3]
        return a

    out, about = observe(f, torch.ones(2))
    assert torch.equal(out, torch.full((2,), 3.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda a: torch.rand(1).item(),
        lambda a: torch.empty(1).item(),
        lambda a: torch.zeros(1).uniform_().item(),
        lambda a: (torch.zeros_like(a) + a).sum().item(),
        lambda a: torch.zeros(2).add_(a).sum().item(),
        lambda a: torch.nn.functional.dropout(torch.ones(3)).sum().item(),
        lambda a: torch.full_like(a, 1.0).copy_(a).sum().item(),
        lambda a: torch.tensor([a.sum()]).item(),
    ],
)
def test_data_that_is_no_constant_is_told_from_constants(make):
    assert reason(make, torch.ones(2)) is not None


def test_a_view_of_a_constant_that_is_written_is_no_constant():
    def f(a):
        base = torch.zeros(4)
        view = base[:2]
        view.copy_(a)
        return base.sum().item()

    assert "looks at tensor data" in reason(f, torch.ones(2))


@pytest.mark.parametrize(
    "refused",
    [
        lambda a: torch.autograd.Variable(a, requires_grad=True, name="v") * 2,
        lambda a: a.numpy().data,
        lambda a: a.untyped_storage(),
        lambda a: a.data_ptr(),
        lambda a: (b := a.sin(), a.requires_grad_(), a.requires_grad_(False), a.requires_grad_(), b),
        lambda a: a.set_(torch.ones(2)),
        lambda a: torch.from_numpy(__import__("numpy").broadcast_to(1.0, 2)),
    ],
)
def test_what_writes_or_shares_unseen_ends_the_trace(refused):
    assert reason(refused, torch.ones(2)) is not None


def test_data_and_variables_that_are_only_read_are_operators():
    out, about = observe(lambda a: (torch.autograd.Variable(a) * a.data, a.data.dtype), torch.ones(2))
    assert ops(about) == ["detach", "__get__", "mul", "__get__"] and torch.equal(out[0], torch.ones(2))


def test_in_place_operators_are_recorded_and_the_canary_is_silent():
    def f(a):
        b = a.clone()
        c = b[0]
        c.add_(1)
        b.mul_(2)
        return c, b

    out, about = observe(f, torch.ones(2, 2))
    assert torch.equal(out[1], torch.tensor([[4.0, 4.0], [2.0, 2.0]]))


def test_a_write_through_an_alias_that_nobody_saw_ends_the_trace():
    x = torch.ones(3)
    alias = x.data
    raw = alias.numpy()
    with torch._C.DisableTorchFunction():
        pass

    def f(a):
        b = a + 1
        with torch._C.DisableTorchFunction():
            b.add_(1)
        return b + 1

    assert reason(f, x) is not None
    assert raw is not None


def test_how_an_input_lies_is_a_write_and_other_metadata_ends_the_trace():
    _, about = observe(lambda a: a.t_() + 1, torch.ones(2, 3))
    assert about["writes"][-1][2] == "layout"
    assert "changed in place" in reason(lambda a: a.resize_(10).sum(), torch.ones(2, 3))


def test_state_of_a_tensor_is_a_read():
    p = torch.nn.Parameter(torch.ones(2))
    _, about = observe(lambda a: a * 2 if p.grad is None else a, torch.ones(2))
    assert ("TENSOR_ATTR", "grad") in [(r[0], r[2]) for r in about["reads"]]
    p.sum().backward()
    _, about = observe(lambda a: a * p.grad, torch.ones(2))
    assert len(about["inputs"]) >= 2
    assert about["ops"][0][1][1].index in range(3)


def test_tensor_subclasses_end_the_trace():
    class Mine(torch.Tensor):
        pass

    assert "tensor subclass" in reason(lambda a: a + 1, torch.ones(2).as_subclass(Mine))


def test_inputs_in_forms_of_a_library_end_the_trace():
    assert "cannot be guarded" in reason(lambda a: a * 2, torch.eye(2).to_mkldnn())


def test_sparse_inputs_and_functions_that_are_not_known_to_take_them():
    sparse = torch.eye(2).to_sparse()
    assert "of a sparse or quantised tensor" in reason(lambda a: a.asin(), sparse)
    assert "changed in place" in reason(lambda a: a.mul_(2), sparse)
    assert "is_contiguous: of a sparse" in reason(lambda a: a.is_contiguous(), sparse)
    _, about = observe(lambda a: (a * 2).to_dense() + 1, sparse)
    assert ops(about) == ["replay", "replay", "add"]


def test_random_operators_are_operators():
    _, about = observe(lambda a: torch.rand(2) + torch.nn.functional.dropout(a), torch.ones(2))
    assert ops(about) == ["rand", "dropout", "add"]


def test_torch_modules_do_not_see_that_they_are_watched():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = layer(x)
        out, about = observe(layer, x)
    assert "_transformer_encoder_layer_fwd" in ops(about)
    assert torch.equal(out, expected)


@pytest.fixture
def checks():
    torch.compile(lambda x: x + 1, backend="magpy")(torch.ones(1))  # what numbers need is there from the first call on
    _C._accept_checks(True)
    yield
    _C._accept_checks(False)


def test_bools_and_ints_of_data_become_checks_where_they_are_accepted(checks):
    def f(a):
        if a.sum() > 0:
            return a * range(9)[a.long().sum()]
        return a - 1

    out, about = observe(f, torch.ones(2))
    assert torch.equal(out, torch.full((2,), 2.0))
    (first, second) = about["checks"]
    assert "bool(" in first[1][0] and first[3] is True
    assert "int(" in second[1][0] and second[3] == 2 and type(second[3]) is int


def test_a_check_looks_at_a_snapshot(checks):
    def f(a):
        b = a.sum()
        positive = bool(b > 0)
        c = a.clone()
        if c.sum().eq(2):
            c.zero_()
        return c, positive

    _, about = observe(f, torch.ones(2))
    for _, args, _, _ in about["checks"]:
        _, value = args
        (made,) = [op for op in about["ops"] if op[3] == value]
        assert made[0] is torch.Tensor.clone
        assert value not in [v for op in about["ops"] for v in op[1]]


@pytest.mark.parametrize(
    ("look", "answer"),
    [
        (lambda a: hash(a.sum().item()), 2.0),
        (lambda a: float(a.sum()).hex(), 2.0),
        (lambda a: complex(a.sum()), 2 + 0j),
        (lambda a: a.tolist(), [1.0, 1.0]),
        (lambda a: a.long().reshape(2, 1).tolist(), [[1], [1]]),
    ],
)
def test_floats_and_lists_of_data_become_checks(checks, look, answer):
    (check,) = observe(look, torch.ones(2))[1]["checks"]
    assert repr(check[3]) == repr(answer)


def test_a_check_keeps_the_list_as_the_program_first_saw_it(checks):
    def f(a):
        rows = a.reshape(1, 2).tolist()
        rows[0].append("own")
        rows.clear()
        return a, rows

    (check,) = observe(f, torch.ones(2))[1]["checks"]
    assert check[3] == [[1.0, 1.0]]


def test_text_of_data_ends_the_trace(checks):
    assert reason(lambda a: (a, repr(a)), torch.ones(2)) is not None


def test_the_choice_of_an_attention_kernel_is_an_operator():
    q = torch.randn(1, 2, 4, 8)

    def f(q):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    f(q)
    _, about = observe(f, q)
    names = ops(about)
    assert "scaled_dot_product_attention" in names
    assert names.count("_set_sdp_use_math") == 2


def test_script_functions_called_through_a_wrapper_of_their_class(monkeypatch):
    """As torch.testing does it."""

    @torch.jit.script
    def mish(x):
        return x * torch.tanh(torch.nn.functional.softplus(x))

    plain = torch.jit.ScriptFunction.__call__
    monkeypatch.setattr(torch.jit.ScriptFunction, "__call__", lambda *args, **kwargs: plain(*args, **kwargs))

    def scenario(wrap):
        fast = wrap(lambda x: mish(x) + 1)
        for _ in range(3):
            yield fast(torch.rand(4))

    assert same_as_eager(scenario, hits=2).fallbacks == {}


@torch.jit.script
def halved(x):
    return x / 2


FACTORS = {"backward": 3.0}


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return halved(x)

    @staticmethod
    def backward(ctx, grad):
        return halved(grad)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * FACTORS["backward"]


@pytest.mark.parametrize("function", [Halved, Scaled])
@pytest.mark.parametrize("grad", [False, True])
def test_what_backward_uses_matters_where_gradients_are_on(function, grad):
    """A ScriptFunction is as good as a constant; an object that may change is none."""

    def scenario(wrap):
        x = torch.ones(3, requires_grad=True)
        fast = wrap(lambda x: function.apply(x) + 1)
        with torch.set_grad_enabled(grad):
            for factor in (3.0, 3.0, 5.0):
                FACTORS["backward"] = factor
                result = fast(x)
                if grad:
                    result.sum().backward()
                yield result, x

    traced = function is Halved or not grad
    assert same_as_eager(scenario, hits=2 if traced else 0).fallbacks == ({} if traced else {"UNKNOWN_C_CALLABLE": 3})


@pytest.mark.parametrize(
    "program",
    [
        lambda x: torch.ops.aten.relu(x) + 1,
        lambda x: torch.ops.aten.add.Tensor(x, x, alpha=2),
        lambda x: torch.ops.aten.mul_.Tensor(x * 1, 3),
        lambda x: torch.ops.aten.split(x, 2)[0],
        lambda x: torch.ops.prims.sin(x) + torch.ops.aten.sum.default(x),
    ],
)
def test_operators_by_torch_ops(program):
    """Overloads and packets of torch.ops are torch functions like others."""

    def scenario(wrap):
        fast = wrap(program)
        for _ in range(3):
            yield fast(torch.arange(4.0))

    assert not same_as_eager(scenario, hits=2).fallbacks
