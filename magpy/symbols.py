"""Numbers that are data: which functions and operators let them stay open, and how an operator takes one.

In a recording such a number is a value of the graph, a tensor without dimensions of double or int64. Eager gives an
operator a Python number instead, which takes part in type promotion otherwise and is rounded once, to the type that
the operator computes in: the rules here do the same with the tensor.
"""

from __future__ import annotations

import collections
import datetime
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from magpy import _C

Rule = Callable[[Any, list, dict], Any]


class Number:
    """An open number among the arguments of an operator that is replayed."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    @property
    def sample(self) -> int | float:
        """A Python number of its type."""
        return 1.0 if self.tensor.dtype is torch.float64 else 1

    def beside(self, *others: Any) -> torch.Tensor:
        """As an operand beside `others` (tensors, numbers): promotes their type as a Python number does."""
        tensors = [t for t in others if isinstance(t, torch.Tensor)]
        same_kind = [t for t in tensors if t.dim() and t.dtype.is_floating_point]
        if same_kind and len(tensors) == 1:
            return self.tensor  # it changes no type, and is rounded to the one that the operator computes in
        dtype = torch.result_type(tensors[0], self.sample) if tensors else _default(self.sample)
        for t in tensors[1:]:
            dtype = torch.promote_types(dtype, torch.result_type(t, self.sample))
        return self.typed(dtype)

    def typed(self, dtype: torch.dtype) -> torch.Tensor:
        return self.tensor.to(dtype)


def _default(sample: float) -> torch.dtype:
    return torch.get_default_dtype() if isinstance(sample, float) else torch.int64


def call(func: Any, args: list, kwargs: dict) -> Any:
    """Call a recorded operator some of whose arguments are Numbers."""
    return _RULES[func](func, args, kwargs)


def read_as_numbers(func: Any, kwargs: dict) -> dict:
    """The same with Numbers for tensors that torch reads as numbers (alpha, value). `kwargs` if there are none."""
    try:
        rule = _RULES.get(func)
    except TypeError:  # it has no hash
        return kwargs
    if rule not in (_scaled, _weighted):
        return kwargs
    read = {
        name: Number(value.detach().to(torch.float64 if value.is_floating_point() else torch.int64))
        for name, value in kwargs.items()
        if name in ("alpha", "value")
        and isinstance(value, torch.Tensor)
        and value.numel() == 1
        and not value.is_complex()
        and value.dtype is not torch.bool
    }
    return {**kwargs, **read} if read else kwargs


# -- Rules ------------------------------------------------------------------------------------------------------------


def _tensors(func: Any, args: list, kwargs: dict) -> Any:
    """Operand for operand: a tensor in the place of each number."""
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]

    def operand(a: Any) -> Any:
        return a.beside(*others) if isinstance(a, Number) else a

    return func(*[operand(a) for a in args], **{k: operand(a) for k, a in kwargs.items()})


def _scaled(func: Any, args: list, kwargs: dict) -> Any:
    """alpha of add and sub."""
    kwargs = dict(kwargs)
    alpha, other = kwargs.pop("alpha", None), kwargs.pop("other", None)
    args = [*args] if other is None else [*args, other]
    if isinstance(alpha, Number):
        second = args[1].beside(args[0]) if isinstance(args[1], Number) else args[1]
        args[1] = second * alpha.typed(torch.result_type(args[0], second))
    elif alpha is not None:
        kwargs["alpha"] = alpha
    return _tensors(func, args, kwargs)


def _filled(func: Any, args: list, kwargs: dict) -> Any:
    """full, full_like, new_full: the number is the last argument, or fill_value."""
    args, kwargs = list(args), dict(kwargs)
    number = kwargs.pop("fill_value") if "fill_value" in kwargs else args.pop()
    if kwargs.get("dtype") is None and func is torch.full:
        kwargs["dtype"] = _default(number.sample)
    empty: Any = {
        torch.full: torch.empty,
        torch.full_like: torch.empty_like,
        torch.Tensor.new_full: torch.Tensor.new_empty,
    }[func]
    result = empty(*args, **kwargs)
    return result.fill_(number.typed(result.dtype))


def _into(func: Any, args: list, kwargs: dict) -> Any:
    """fill_, masked_fill, an item that is set: the number becomes an element of the first argument."""
    dtype = args[0].dtype

    def operand(a: Any) -> Any:
        return a.typed(dtype) if isinstance(a, Number) else a

    return func(*[operand(a) for a in args], **{k: operand(a) for k, a in kwargs.items()})


def _made(func: Any, args: list, kwargs: dict) -> Any:
    """torch.tensor and as_tensor of numbers and of lists of them."""
    kwargs = {**dict(zip(("dtype", "device"), args[1:], strict=False)), **kwargs}
    data = kwargs.pop("data") if "data" in kwargs else args[0]
    flat: list[Any] = []
    sizes = _gather(data, flat)
    if sizes is None:
        raise NotImplementedError("a tensor of numbers")
    floats = any(isinstance(a.sample if isinstance(a, Number) else a, float) for a in flat)
    dtype = kwargs.get("dtype") or _default(1.0 if floats else 1)
    items = [a.typed(dtype) if isinstance(a, Number) else torch.tensor(a, dtype=dtype) for a in flat]
    result = torch.stack(items).reshape(sizes).to(device=kwargs.get("device"))
    return result.requires_grad_() if kwargs.get("requires_grad") else result


def _gather(data: Any, flat: list[Any]) -> list[int] | None:
    """The sizes of a nested list of numbers, whose items are appended to `flat`; None if it is not a plain one."""
    if isinstance(data, (Number, int, float)):
        flat.append(data)
        return []
    if not isinstance(data, (list, tuple)) or not data:
        return None
    inner = [_gather(item, flat) for item in data]
    return None if inner[0] is None or any(sizes != inner[0] for sizes in inner) else [len(data), *inner[0]]


def _bounded(func: Any, args: list, kwargs: dict) -> Any:
    """clamp: with one tensor for a bound, both are."""
    x = args[0]

    def bound(a: Any) -> Any:
        if isinstance(a, Number):
            return a.beside(x)
        if isinstance(a, (int, float)):
            return torch.tensor(a, dtype=torch.result_type(x, a))
        return a

    return func(x, *[bound(a) for a in args[1:]], **{k: bound(a) for k, a in kwargs.items()})


def _weighted(func: Any, args: list, kwargs: dict) -> Any:
    """addcmul and addcdiv: the number weighs the product or quotient, in the type of the first operand."""
    kwargs = dict(kwargs)
    weight = kwargs.pop("value").typed(args[0].dtype)
    first, second = (*args[1:], *[kwargs[name] for name in ("tensor1", "tensor2") if name in kwargs])
    product = weight * first / second if "div" in func.__name__ else weight * first * second
    return args[0].add_(product) if func.__name__.endswith("_") else args[0] + product


def _each(func: Any, args: list, kwargs: dict) -> Any:
    """Operators over lists (torch._foreach_*), which optimizers use: the method that they are named after, tensor by
    tensor."""
    method = getattr(torch.Tensor, func.__name__.removeprefix("_foreach_"))
    tensors, *given = args
    alpha = {"alpha": kwargs["alpha"]} if "alpha" in kwargs else {}
    given += [value for name, value in kwargs.items() if name != "alpha"]
    weights = _RULES.get(method) is _weighted and len(given) == 3
    results = []
    for i, tensor in enumerate(tensors):
        items = [value[i] if isinstance(value, (list, tuple)) else value for value in given]
        keywords = {"value": items.pop()} if weights else alpha
        open_ = any(isinstance(item, Number) for item in (*items, *keywords.values()))
        items = [tensor, *items]
        results.append(call(method, items, keywords) if open_ else method(*items, **keywords))
    return tensors if func.__name__.endswith("_") else tuple(results)


def _batch_norm(func: Any, args: list, kwargs: dict) -> Any:
    """The statistics of this batch alone, then mixed into the running ones by the momentum."""
    given = inspect.signature(F.batch_norm).bind(*args, **kwargs).arguments
    momentum, mean, var = given.pop("momentum"), given["running_mean"], given["running_var"]
    if not given.get("training") or mean is None:
        return F.batch_norm(**given)
    with torch.no_grad():
        given["running_mean"], given["running_var"] = torch.zeros_like(mean), torch.zeros_like(var)
    out = F.batch_norm(**given, momentum=1.0)
    batch_mean, batch_var = given["running_mean"], given["running_var"]
    with torch.no_grad():
        for running, batch in ((mean, batch_mean), (var, batch_var)):
            share = momentum.typed(torch.float64 if running.dtype is torch.float64 else torch.float32)
            running.copy_(share * batch + (1 - share) * running)
    return out


# -- Tables -----------------------------------------------------------------------------------------------------------

_RULES: dict[Any, Rule] = {}
_PLACES: dict[Any, tuple] = {}  # operator -> positions and names that may be numbers; True: in lists, too


def _allow(rule: Rule, places: tuple, owner: Any, names: str) -> None:
    for name in names.split():
        func = getattr(owner, name)
        _RULES[func] = rule
        _PLACES[func] = places


_operand = (0, 1, "other")
_arithmetic = "mul multiply div divide true_divide floor_divide remainder fmod pow float_power"
_relations = "eq ne lt le gt ge greater greater_equal less less_equal not_equal"
_allow(_tensors, _operand, torch, f"{_arithmetic} {_relations}")
_allow(_tensors, (*_operand, "exponent"), torch, "pow float_power")
_allow(_tensors, (*_operand, "exponent"), torch.Tensor, f"{_arithmetic} {_relations}")
_allow(_tensors, _operand, torch.Tensor, "mul_ div_ multiply_ divide_ true_divide_ floor_divide_ remainder_ fmod_ pow_")
_allow(
    _tensors,
    _operand,
    torch.Tensor,
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ "
    "__itruediv__ __floordiv__ __rfloordiv__ __ifloordiv__ __mod__ __rmod__ __imod__ __pow__ __rpow__ __ipow__ "
    "__eq__ __ne__ __lt__ __le__ __gt__ __ge__",
)
_allow(_scaled, (*_operand, "alpha"), torch, "add sub subtract")
_allow(_scaled, (*_operand, "alpha"), torch.Tensor, "add sub subtract add_ sub_ subtract_")
_allow(_tensors, (1, 2), torch, "where")
_allow(_filled, (1, "fill_value"), torch, "full full_like")
_allow(_filled, (2, "fill_value"), torch.Tensor, "new_full")
_allow(_into, (1, "value"), torch.Tensor, "fill_")
_allow(_into, (2, "value"), torch.Tensor, "masked_fill masked_fill_ __setitem__")
_allow(_into, (2, "value"), torch, "masked_fill")
_allow(_into, (2, "weight"), torch, "lerp")
_allow(_into, (2, "weight"), torch.Tensor, "lerp lerp_")
_allow(_weighted, ("value",), torch, "addcmul addcdiv")
_allow(_weighted, ("value",), torch.Tensor, "addcmul addcdiv addcmul_ addcdiv_")
_allow(
    _each,
    (1, 2, 3, "scalar", "scalars", "alpha", "value", "weight", "exponent", True),
    torch,
    " ".join(
        f"_foreach_{name}{end}"
        for name in ("add", "sub", "mul", "div", "pow", "addcmul", "addcdiv", "lerp")
        for end in ("", "_")
    ),
)
_allow(_made, (0, "data", True), torch, "tensor as_tensor")
_allow(_bounded, (1, 2, "min", "max"), torch, "clamp clip clamp_min clamp_max")
_allow(_bounded, (1, 2, "min", "max"), torch.Tensor, "clamp clip clamp_min clamp_max clamp_ clip_")
_allow(_batch_norm, (6, "momentum"), F, "batch_norm")

#: C functions of numbers that give a number: their names in expressions.
FUNCTIONS: dict[Any, str] = {
    abs: "abs",
    round: "round",
    pow: "pow",
    min: "min",
    max: "max",
    sum: "sum",
    float: "float",
    int: "int",
    bool: "bool",
    **{
        getattr(math, name): f"math.{name}"
        for name in (
            "sqrt exp expm1 exp2 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh "
            "atanh pow fabs floor ceil trunc fmod remainder hypot degrees radians erf erfc gamma lgamma copysign gcd "
            "cbrt"
        ).split()
    },
}

#: C functions that only carry their arguments on; those that look at one from a number on, or use what methods of the
#: others give, with that number.
CARRIERS: dict[Any, int | None] = {
    **dict.fromkeys(
        (
            type,
            slice,
            getattr,
            setattr,
            hasattr,
            vars,
            callable,
            iter,
            next,
            print,
            super,
            property,
            object,
            list,
            tuple,
            zip,
            enumerate,
            reversed,
            list.append,
            list.extend,
            list.copy,
            list.reverse,
            list.clear,
            dict.values,
            dict.items,
            dict.keys,
            dict.copy,
            dict.clear,
            tuple.__iter__,
            list.__iter__,
            object.__setattr__,
            object.__getattribute__,
            object.__init__,
            collections.deque.append,
            collections.deque.appendleft,
            collections.deque.popleft,
            collections.OrderedDict.items,
            collections.OrderedDict.values,
            collections.OrderedDict.keys,
        ),
        None,
    ),
    **dict.fromkeys((dict.get, list.pop, dict.pop, len), 1),
    **dict.fromkeys((isinstance, issubclass, type.__instancecheck__, type.__subclasscheck__), 2),
}
for _name in dir(torch._C):
    if _name.startswith("_has_torch_function"):
        CARRIERS[getattr(torch._C, _name)] = None

#: C functions that look at nothing but the values of their arguments, where those are of plain types, beside those that
#: the table of effects calls pure: what a run has drawn goes through them again.
STEPS: dict[Any, None] = dict.fromkeys(
    (
        *(len, format, repr, str, int, float, bytes, bool, complex, str.format, bytes.fromhex, float.fromhex),
        *(datetime.date.strftime, datetime.date.__format__, datetime.time.strftime, datetime.time.__format__),
        *(datetime.datetime.timestamp, datetime.datetime.astimezone),
        *(datetime.datetime.fromtimestamp, datetime.date.fromtimestamp),
    )
)


def register() -> None:
    """Tell the recorder. Numbers read from tensors stay open from then on."""
    from magpy import steps

    _C._number_tables(FUNCTIONS, CARRIERS, STEPS, _PLACES, steps.evaluate, steps.compute, steps.check, steps.sized)


register()
