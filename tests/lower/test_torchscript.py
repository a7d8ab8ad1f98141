"""TorchScript functions in a graph: numbers they make tensors of, and memory they touch without an operator."""

import pytest
import torch

from tests.compare import assert_same
from tests.counting import Counted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def scripted(source: str, name: str):
    return getattr(torch.jit.CompilationUnit(source), name)


SPAN = "def span(x, n: int):\n    return torch.tensor(min(x.size(0), n))\n"
ROOT = "def root(x):\n    return torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float)) * x\n"
PAIR = "def pair(x, n: int):\n    return torch.tensor([x.size(0), n])\n"
ITEMS = "def items(x):\n    y: List[float] = x.tolist()\n    return torch.tensor(y)\n"


def test_number_made_a_tensor_bounds_slices_and_clamps():
    span, root = scripted(SPAN, "span"), scripted(ROOT, "root")

    def program(x):
        k = span(x, 2)
        return root(x)[:k], torch.clamp(x + k, 0, k * 2 - 1), k, k + 1, x[5 - k : k + 3]

    fast = torch.compile(program, backend="magpy")
    with Counted() as first:
        fast(torch.randn(6, 4))
    first.assert_observed()
    for _ in range(3):
        x = torch.randn(6, 4)
        with Counted() as hit:
            actual = fast(x)
        hit.assert_hit()
        assert_same(actual, program(x))
        actual[2].add_(5)  # the caller's own: the next call's is new
    x = torch.randn(1, 4)
    assert_same(fast(x), program(x))


@pytest.mark.parametrize("name, source", [("pair", PAIR), ("items", ITEMS)])
def test_memory_touched_without_an_operator_is_left_to_eager(name, source):
    function = scripted(source, name)

    def program(x):
        return function(x, 3) + 1 if name == "pair" else function(x) + x

    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(4)
        assert_same(fast(x), program(x))


class Scripted(torch.jit.ScriptModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.drop = torch.nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))

    @torch.jit.script_method
    def forward(self, x):
        self.count.add_(1)
        return self.drop(torch.nn.functional.mish(self.linear(x))) / self.count


class Inside(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.jit.script(torch.nn.Linear(4, 4))
        self.drop = torch.jit.script(torch.nn.Dropout(0.5))

    def forward(self, x):
        return self.drop(self.linear(x * 2)) + 1


def change(module, step):
    """Of the scripted modules' state, which no guard sees."""
    weight = module.linear.weight
    if step == 1:
        with torch.no_grad():
            weight.mul_(2)
    elif step == 2:
        module.linear.weight = torch.nn.Parameter(torch.ones(4, 4))
    elif step == 3:
        weight.data = torch.full((4, 4), 3.0)
    elif step == 4:
        module.train()
    elif step == 5:
        module.linear.load_state_dict({"weight": torch.eye(4), "bias": torch.ones(4)})


@pytest.mark.parametrize("kind", [Scripted, Inside])
@pytest.mark.parametrize("required", [False, True])
def test_state_of_scripted_modules(kind, required):
    torch.manual_seed(0)
    modules = kind().eval(), kind().eval()
    modules[1].load_state_dict(modules[0].state_dict())
    runs = torch.compile(modules[0], backend="magpy"), modules[1]
    for step in range(7):
        x = torch.randn(3, 4)
        results = []
        for run, module in zip(runs, modules, strict=True):
            change(module, step)
            torch.manual_seed(step)
            with torch.set_grad_enabled(required):
                result = run(x)
            if required:
                result.sum().backward()
            results.append([result, *[(p, p.grad) for p in module.parameters()], *module.buffers()])
        assert_same(*results)


@pytest.mark.parametrize("backend", ["magpy", "eager"])
def test_scripted_modules_themselves_are_refused_as_by_torch(backend):
    with pytest.raises(RuntimeError, match="torch.jit"):
        torch.compile(torch.jit.script(torch.nn.Linear(4, 4)), backend=backend)


class Spoken(torch.jit.ScriptModule):
    """Its attributes are kept in C++."""

    def __init__(self, scale: float = 0.5):
        super().__init__()
        self.mix = torch.nn.Parameter(torch.rand(4))
        self.scale = torch.jit.Attribute(scale, float)
        self.norm = torch.nn.BatchNorm1d(4)

    @torch.jit.script_method
    def mixed(self, x, more: int = 2, flip: bool = False):
        if flip:
            x = -x
        return self.norm(x * self.mix + more) * self.scale


def test_methods_of_scripted_modules_are_hits():
    torch.manual_seed(0)
    modules = [Spoken().eval(), torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())).eval()]

    def program(x, flip):
        mixer, layers = modules
        y = mixer.mixed(x) + mixer.mixed(layers(x), 3, flip=flip) + mixer.mixed(x, flip=flip)
        return y * mixer.mix + mixer.scale

    fast = torch.compile(program, backend="magpy")
    for step in range(4):
        x = torch.randn(3, 4)
        with Counted() as counted:
            actual = fast(x, False)
        assert_same(actual, program(x, False))
        if step:
            counted.assert_hit()
    assert_same(fast(x, True), program(x, True))
    modules[0].mix.data.zero_()  # the same tensors
    with Counted() as counted:
        actual = fast(x, False)
    counted.assert_hit()
    assert_same(actual, program(x, False))
    for change in range(3):
        if change == 0:
            modules[0].scale = 0.25
        elif change == 1:
            modules[0].mix = torch.nn.Parameter(torch.ones(4))
        else:
            modules[0].norm.train()
        for _ in range(2):
            assert_same(fast(x, False), program(x, False))


def test_scripted_modules_with_state_that_the_method_changes_are_left_to_eager():
    class Counts(torch.jit.ScriptModule):
        def __init__(self):
            super().__init__()
            self.calls = torch.jit.Attribute(0, int)

        @torch.jit.script_method
        def forward(self, x):
            self.calls += 1
            return x * self.calls

    modules = Counts(), Counts()
    runs = torch.compile(modules[0], backend="magpy"), modules[1]
    for _ in range(4):
        x = torch.randn(3)
        assert_same(*[run(x) for run in runs])


def test_wrapped_call_of_script_methods(monkeypatch):
    plain = torch._C.ScriptMethod.__call__
    monkeypatch.setattr(torch._C.ScriptMethod, "__call__", lambda *args, **kwargs: plain(*args, **kwargs))
    module = Spoken().eval()

    def program(x):
        return module.mixed(x, flip=True) * 2

    fast = torch.compile(program, backend="magpy")
    for step in range(3):
        x = torch.randn(3, 4)
        with Counted() as counted:
            assert_same(fast(x), program(x))
        if step:
            counted.assert_hit()
