"""Tensors: metadata on every call, aliasing of arguments, parameters, modules."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from magpy import _C


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def base() -> torch.Tensor:
    return torch.zeros(3, 4)


OTHERS: dict[str, Callable[[], torch.Tensor]] = {
    "shape": lambda: torch.zeros(4, 3),
    "rank": lambda: torch.zeros(3, 4, 1),
    "stride": lambda: torch.zeros(4, 3).t(),
    "expanded": lambda: torch.zeros(1, 4).expand(3, 4),
    "float64": lambda: base().double(),
    "int32": lambda: base().int(),
    "complex": lambda: base().to(torch.complex64),
    "meta": lambda: base().to("meta"),
    "requires_grad": lambda: base().requires_grad_(),
    "not_a_leaf": lambda: base().requires_grad_() * 1,
    "parameter": lambda: nn.Parameter(base(), requires_grad=False),
    "sparse": lambda: base().to_sparse(),
    "number": lambda: 1.0,  # type: ignore[dict-item, return-value]
    "none": lambda: None,  # type: ignore[dict-item, return-value]
}


def test_flags_are_read_in_place() -> None:
    assert _C._tensor_in_place()


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_tensor_is_a_miss_both_ways(name: str) -> None:
    x, other = base(), OTHERS[name]()
    guards = _C._guards(double, x)
    for _ in range(2):
        assert guards.check(x) == (True, None)
        assert guards.check(base()) == (True, None)
        holds, why = guards.check(other)
        assert not holds and "x" in why
    if isinstance(other, torch.Tensor) and other.layout is torch.strided:
        guards = _C._guards(double, other)
        assert guards.check(OTHERS[name]())[0]
        assert not guards.check(x)[0]


@pytest.mark.parametrize("dims", range(8))
def test_every_size_and_stride_is_compared(dims: int) -> None:
    """Up to five dimensions are compared in place, more through torch."""
    shape = (2,) * dims
    guards = _C._guards(double, torch.zeros(shape))
    assert guards.check(torch.ones(shape))[0]
    for d in range(dims):
        assert not guards.check(torch.zeros(shape[:d] + (3,) + shape[d + 1 :]))[0]
        longer = torch.zeros(shape[:d] + (4,) + shape[d + 1 :])
        assert (
            not guards.check(longer.narrow(d, 0, 2))[0]
            or longer.narrow(d, 0, 2).stride() == torch.zeros(shape).stride()
        )
        assert not guards.check(torch.zeros(shape[:d] + (1,) + shape[d + 1 :]).expand(shape))[0]
    for dtype in (torch.float64, torch.float16, torch.bool, torch.int64):
        assert not guards.check(torch.zeros(shape, dtype=dtype))[0]


@pytest.mark.parametrize("make", [lambda t: t.conj(), lambda t: torch.view_as_real(t), lambda t: t.conj().imag])
def test_lazy_bits_are_metadata(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def same(t: torch.Tensor) -> torch.Tensor:
        return make(t).resolve_conj().resolve_neg().clone()

    t = torch.randn(3, dtype=torch.complex64)
    lazy, plain = make(t), same(t)
    guards = _C._guards(double, lazy)
    assert guards.check(make(torch.randn(3, dtype=torch.complex64)))[0]
    alike = lazy.is_conj() == plain.is_conj() and lazy.is_neg() == plain.is_neg() and lazy.stride() == plain.stride()
    assert guards.check(plain)[0] == alike


def test_inference_tensors_differ_from_normal_ones() -> None:
    with torch.inference_mode():
        inference = torch.zeros(3, 4)
    guards = _C._guards(double, base())
    assert not guards.check(inference)[0]


def test_a_subclass_is_another_type() -> None:
    class Sub(torch.Tensor):
        pass

    guards = _C._guards(double, base())
    assert not guards.check(base().as_subclass(Sub))[0]


def test_values_do_not_matter_and_views_of_the_same_shape_are_alike() -> None:
    guards = _C._guards(double, base())
    assert guards.check(torch.full((3, 4), float("nan")))[0]
    assert guards.check(torch.zeros(6, 4)[3:])[0]


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


def test_which_arguments_are_the_same_object_is_guarded_both_ways() -> None:
    x, y = base(), base()
    apart, together = _C._guards(add, x, y), _C._guards(add, x, x)
    for _ in range(2):
        assert apart.check(x, y)[0] and not apart.check(x, x)[0]
        assert together.check(x, x)[0] and together.check(y, y)[0] and not together.check(x, y)[0]
        assert apart.check(y, x)[0]


def test_keyword_arguments_are_matched_by_name() -> None:
    x, y = base(), torch.zeros(4)
    guards = _C._guards(add, x, y=y)
    assert guards.check(x, y=y)[0]
    assert not guards.check(x, y)[0]
    assert not guards.check(x, z=y)[0]
    assert not guards.check(y, y=x)[0]


def test_the_inputs_are_those_of_the_call() -> None:
    guards = _C._guards(add, base(), torch.zeros(4))
    x, y = base(), torch.ones(4)
    inputs = guards.inputs(x, y)
    assert inputs[0] is x and inputs[1] is y


def in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    return x + y


def test_memory_must_overlap_as_it_did_where_an_input_is_written() -> None:
    def new() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        whole = torch.zeros(10)
        return whole[:4], whole[4:8], whole[2:6]

    low, high, middle = new()
    guards = _C._guards(in_place, low, high)
    for _ in range(2):
        low, high, middle = new()
        assert guards.check(low, high)[0] and guards.check(high, low)[0]
        assert not guards.check(low, middle)[0] and not guards.check(middle, high)[0]
        assert guards.check(torch.zeros(4), torch.zeros(4))[0]
    guards = _C._guards(in_place, low, middle)
    assert guards.check(low, middle)[0] and guards.check(*(new()[i] for i in (0, 1)))[0] is False
    assert not guards.check(middle, low)[0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.children_list = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.linear(x)) * self.scale
        for child in self.children_list:
            x = child(x)
        return x


@pytest.fixture
def net() -> Net:
    return Net().eval()


def holds(guards, x: torch.Tensor) -> bool:
    first, second = guards.check(x), guards.check(x)
    assert first == second
    return first[0]


def hook(*args: object) -> None:
    return None


MODULE_CHANGES: dict[str, Callable[[Net], object]] = {
    "train": lambda m: m.train(),
    "train_child": lambda m: m.norm.train(),
    "scale": lambda m: setattr(m, "scale", 3.0),
    "scale_int": lambda m: setattr(m, "scale", 2),
    "forward_hook": lambda m: m.linear.register_forward_hook(hook),
    "forward_pre_hook": lambda m: m.children_list[1].register_forward_pre_hook(hook),
    "parameter_type": lambda m: m.linear.double(),
    "data": lambda m: setattr(m.linear.weight, "data", torch.zeros(4, 4).double()),
    "frozen": lambda m: m.linear.weight.requires_grad_(False),
    "no_bias": lambda m: setattr(m.linear, "bias", None),
    "new_child": lambda m: m.children_list.append(nn.Linear(4, 4)),
    "fewer_children": lambda m: m.children_list.__delitem__(1),
    "other_child": lambda m: m.children_list.__setitem__(1, nn.Identity()),
    "wider_child": lambda m: m.children_list.__setitem__(1, nn.Linear(4, 4, bias=False).eval()),
    "tied": lambda m: setattr(m.children_list[1], "weight", m.linear.weight),
    "forward_on_instance": lambda m: setattr(m.linear, "forward", torch.sin),
    "momentum": lambda m: setattr(m.norm, "eps", 1e-2),
    "buffer_type": lambda m: setattr(m.norm, "running_mean", torch.zeros(4).double()),
}


@pytest.mark.parametrize("name", MODULE_CHANGES)
def test_a_change_of_a_module_that_was_read_is_a_miss(net: Net, name: str) -> None:
    x = torch.zeros(2, 4)
    guards = _C._guards(net, x)
    assert holds(guards, x)
    MODULE_CHANGES[name](net)
    assert not holds(guards, x)


MODULE_NO_CHANGES: dict[str, Callable[[Net], object]] = {
    "load_state_dict": lambda m: m.load_state_dict(Net().state_dict()),
    "in_place": lambda m: m.linear.weight.data.add_(1),
    "data": lambda m: setattr(m.linear.weight, "data", torch.zeros(4, 4)),
    "new_parameter": lambda m: setattr(m.linear, "weight", nn.Parameter(torch.zeros(4, 4))),
    "new_child": lambda m: m.children_list.__setitem__(1, nn.Linear(4, 4).eval()),
    "unread": lambda m: setattr(m, "unread", 1),
    "hook_and_back": lambda m: m.linear.register_forward_hook(hook).remove(),
    "train_and_back": lambda m: m.train().eval(),
    "grad": lambda m: m(torch.zeros(2, 4)).sum().backward(),
}


@pytest.mark.parametrize("name", MODULE_NO_CHANGES)
def test_what_a_module_may_change(net: Net, name: str) -> None:
    x = torch.zeros(2, 4)
    guards = _C._guards(net, x)
    assert holds(guards, x)
    for _ in range(3):
        MODULE_NO_CHANGES[name](net)
        assert holds(guards, x)


def test_inputs_follow_a_replaced_parameter(net: Net) -> None:
    x = torch.zeros(2, 4)
    guards = _C._guards(net, x)
    assert guards.check(x)[0]
    new = nn.Parameter(torch.ones(4, 4))
    net.linear.weight = new
    assert any(t is new for t in guards.inputs(x))
    assert any(t is new for t in guards.inputs(x))


def test_an_argument_that_is_a_parameter_is_another_case(net: Net) -> None:
    x = net.linear.weight
    guards = _C._guards(net, torch.zeros(4, 4, requires_grad=True))
    assert not guards.check(x)[0]


def test_modes_are_part_of_the_guards(net: Net) -> None:
    x = torch.zeros(2, 4)
    guards = _C._guards(net, x)
    assert holds(guards, x)
    with torch.no_grad():
        assert not holds(guards, x)
    assert holds(guards, x)


def test_guards_keep_no_argument_and_no_module_alive() -> None:
    import gc
    import weakref

    net, x = Net().eval(), torch.zeros(2, 4)
    child = net.children_list[1]
    with torch.no_grad():  # the result's graph would keep its inputs
        guards = _C._guards(lambda m, t: m(t), net, x)
        assert guards.check(net, x)[0] and guards.check(net, x)[0]
    watched = [weakref.ref(o) for o in (net, child, x, net.linear.weight)]
    del net, child, x
    gc.collect()
    assert [w() for w in watched] == [None] * 4


def test_a_list_of_tensors_may_be_another_list_each_time() -> None:
    def total(tensors: list[torch.Tensor]) -> torch.Tensor:
        return tensors[0] + tensors[1]

    x, y = base(), base()
    guards = _C._guards(total, [x, y])
    for _ in range(4):
        assert guards.check([base(), base()])[0]
        assert not guards.check([x, x])[0]
        assert not guards.check([x, torch.zeros(2)])[0]
        assert not guards.check((x, y))[0]
    same = [x, y]
    for _ in range(4):
        assert guards.check(same)[0]
    same[1] = torch.zeros(2)
    assert not guards.check(same)[0]
    same[1] = base()
    for _ in range(4):
        assert guards.check(same)[0]
        assert guards.inputs(same)[1] is same[1]
