"""torch.compile(..., backend="magpy") returns and accepts what torch.compile documents."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import magpy
from magpy import _C
from magpy.report import find_callable


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, scale=1.0):
        return torch.relu(self.linear(x)) * scale


def double(x):
    return x * 2


@pytest.fixture(autouse=True)
def fresh():
    magpy.reset()
    yield
    torch.compiler.reset()


def test_module_becomes_an_optimized_module():
    net, x = Net(), torch.randn(2, 3)
    compiled = torch.compile(net, backend="magpy")
    assert isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule)
    assert isinstance(find_callable(compiled), _C.Callable)
    assert torch.equal(compiled(x), net(x)) and torch.equal(compiled(x, scale=2.0), net(x, scale=2.0))
    assert compiled.linear is net.linear
    assert list(compiled.state_dict()) == ["_orig_mod.linear.weight", "_orig_mod.linear.bias"]


def test_training_mode_is_the_modules():
    net = Net()
    compiled = torch.compile(net, backend="magpy")
    compiled.eval()
    assert not net.training and not compiled.training


def test_function_becomes_a_function():
    compiled = torch.compile(double, backend="magpy")
    assert compiled.__name__ == "double" and compiled.__wrapped__ is double
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))


def test_class_is_returned_as_itself():
    class Local(Net):
        pass

    assert torch.compile(Local, backend="magpy") is Local
    net = Local()
    x = torch.randn(1, 3)
    assert torch.equal(net(x), net.forward(x))


def test_decorated_method_binds():
    class Local(nn.Module):
        @torch.compile(backend="magpy")
        def forward(self, x):
            return x + self.n

    net = Local()
    net.n = 3
    assert torch.equal(net(torch.ones(2)), torch.full((2,), 4.0))


def test_module_compile_in_place():
    net, x = Net(), torch.randn(2, 3)
    expected = net(x)
    net.compile(backend="magpy")
    assert torch.equal(net(x), expected)
    assert find_callable(net).calls == 1


def test_callable_objects_and_builtins():
    class Adder:
        def __call__(self, x):
            return x + 1

    assert torch.equal(torch.compile(Adder(), backend="magpy")(torch.ones(1)), torch.full((1,), 2.0))
    assert torch.equal(torch.compile(torch.exp, backend="magpy")(torch.zeros(1)), torch.ones(1))


def test_other_backends_are_left_to_dynamo():
    compiled = torch.compile(double, backend="eager")
    assert find_callable(compiled) is None
    assert torch.equal(compiled(torch.ones(1)), torch.full((1,), 2.0))


def test_nested_compiles_compile_once():
    twice = torch.compile(torch.compile(double, backend="magpy"), backend="magpy")
    assert find_callable(twice).__wrapped__ is double


def test_disable_runs_the_plain_function():
    compiled = torch.compile(double, backend="magpy")
    torch.compiler.disable(compiled)(torch.ones(1))
    assert find_callable(compiled).calls == 0


def test_disable_true_returns_the_function_itself():
    assert torch.compile(double, backend="magpy", disable=True) is double


def test_deepcopy_and_pickle_give_compiled_modules_of_their_own():
    net, x = Net(), torch.randn(2, 3)
    compiled = torch.compile(net, backend="magpy", fullgraph=True, options={"trace_limit": 3})
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        inner = find_callable(other)
        assert type(other) is type(compiled) and other._orig_mod is not net and inner is not find_callable(compiled)
        assert inner.options["fullgraph"] is True and inner.options["trace_limit"] == 3
        assert torch.equal(other._orig_mod(x), net(x))


def test_hooks_of_the_compiled_module_fire():
    compiled, seen = torch.compile(Net(), backend="magpy"), []
    handle = compiled.register_forward_hook(lambda module, args, result: seen.append(1))
    compiled(torch.randn(1, 3))
    handle.remove()
    compiled(torch.randn(1, 3))
    assert seen == [1]


def test_global_hooks_fire():
    compiled, seen = torch.compile(Net(), backend="magpy"), []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, result: seen.append(type(module))
    )
    try:
        with pytest.warns(UserWarning, match="global hooks"):
            compiled(torch.randn(1, 3))
    finally:
        handle.remove()
    assert Net in seen and type(compiled) in seen


@pytest.mark.parametrize("name", ["__call__", "_call_impl"])
def test_replaced_ways_to_call_a_module_are_taken_and_left_again(name, monkeypatch):
    """torch.fx replaces them while it traces. As with torch's own backends, the compiled module is called so, too."""
    original = getattr(nn.Module, name)

    def other(self, *args, **kwargs):
        return original(self, *args, **kwargs) * 10

    for backend in ("eager", "magpy"):
        net, x = Net(), torch.rand(2, 3)
        compiled = torch.compile(net, backend=backend)
        expected = [net(x) for _ in range(2)]
        assert all(torch.allclose(compiled(x), y) for y in expected)
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, name, other)
            if name != "_call_impl":  # of the module itself it was bound when it was compiled
                assert all(torch.allclose(compiled(x), y * 10) for y in expected)
            else:
                assert all(compiled(x).max() >= y.max() * 10 for y in expected)
        assert all(torch.allclose(compiled(x), y) for y in expected)


def test_call_of_the_compiled_modules_own_class_is_bound_when_it_is_compiled():
    """torch's OptimizedModule keeps the method, whatever the backend: a later change of the class is not seen."""

    for backend in ("eager", "magpy"):

        class Local(Net):
            def __call__(self, x):
                return super().__call__(x) + 1

        net, x = Local(), torch.rand(2, 3)
        compiled, expected = torch.compile(net, backend=backend), net(x)
        Local.__call__ = lambda self, x: x * 10
        assert torch.allclose(compiled(x), expected) and torch.equal(net(x), x * 10)


def test_lazy_modules_initialise_themselves():
    compiled = torch.compile(nn.LazyLinear(4), backend="magpy")
    assert compiled(torch.randn(2, 3)).shape == (2, 4)
    assert compiled(torch.randn(2, 3)).shape == (2, 4)


# -- Options, mode, dynamic ------------------------------------------------------------------------------------------


def test_unknown_option_is_rejected_with_the_known_ones():
    with pytest.raises(RuntimeError, match="'nonsense', known options are: .*trace_limit.*verify"):
        torch.compile(double, backend="magpy", options={"nonsense": 1})


def test_option_of_wrong_type_is_rejected():
    with pytest.raises(RuntimeError, match="'verify' must be a bool, got int"):
        torch.compile(double, backend="magpy", options={"verify": 1})


def test_modes():
    for mode in ("default", "reduce-overhead", "max-autotune"):
        torch.compile(double, backend="magpy", mode=mode)(torch.ones(1))
    with pytest.raises(RuntimeError, match="Unrecognized mode=nonsense"):
        torch.compile(double, backend="magpy", mode="nonsense")


def test_recompile_limit_is_the_trace_limit():
    compiled = torch.compile(double, backend="magpy", recompile_limit=2)
    assert find_callable(compiled).options["trace_limit"] == 2


# -- Stance ------------------------------------------------------------------------------------------------------------


def test_force_eager_is_read_on_every_call():
    compiled = torch.compile(double, backend="magpy")
    with torch.compiler.set_stance("force_eager"):
        compiled(torch.ones(1))
    assert find_callable(compiled).calls == 0
    compiled(torch.ones(1))
    assert find_callable(compiled).calls == 1


def test_fail_on_recompile_raises_on_a_miss():
    compiled = torch.compile(double, backend="magpy")
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="function name: 'double'"):
        compiled(torch.ones(1))


def test_eager_on_recompile_does_not_observe():
    compiled = torch.compile(double, backend="magpy")
    with torch.compiler.set_stance("eager_on_recompile"):
        compiled(torch.ones(1))
    assert find_callable(compiled).n_traces == 0 and magpy.stats()["fallbacks"] == {}


def test_eager_then_compile_leaves_the_first_call_alone():
    compiled = torch.compile(double, backend="magpy")
    with torch.compiler.set_stance("eager_then_compile"):
        compiled(torch.ones(1))
        assert find_callable(compiled).calls == 0
        compiled(torch.ones(1))
        assert find_callable(compiled).calls == 1


def test_force_backend_goes_to_that_backend():
    seen = []

    def backend(gm, inputs):
        seen.append(gm)
        return gm.forward

    compiled = torch.compile(double, backend="magpy")
    with torch.compiler.set_stance(force_backend=backend):
        assert torch.equal(compiled(torch.ones(1)), torch.full((1,), 2.0))
    assert len(seen) == 1 and find_callable(compiled).calls == 0


# -- Package ----------------------------------------------------------------------------------------------------------


def test_import_of_magpy_imports_no_torch():
    code = (
        "import sys, magpy; assert 'torch' not in sys.modules, 'torch'; magpy.FullgraphError; magpy.VerificationError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_looking_up_the_name_imports_magpy():
    code = (
        "import sys, torch; assert 'magpy' not in sys.modules\n"
        "f = torch.compile(lambda x: x + 1, backend='magpy')\n"
        "assert 'magpy' in sys.modules and f(torch.ones(1)).item() == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_on_the_command_line():
    out = subprocess.run([sys.executable, "-m", "magpy", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == f"magpy {magpy.__version__}"


def test_missing_take_over_point_is_a_clear_error():
    code = "import torch._dynamo.eval_frame as e\ndel e.OptimizedModule._call_lazy_check\nimport magpy.backend"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "magpy cannot take over torch.compile" in out.stderr and "_call_lazy_check" in out.stderr
