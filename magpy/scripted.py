"""TorchScript modules inside a call: what stands in the place of what reads their state in C++, where no guard sees it.

A method is called as a TorchScript function made of the same instructions, to which what it reads is given as
arguments. Each function here answers (what is called instead, the guard of what was read, the objects that it holds),
or None where nothing can stand in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

StandIn = tuple[Callable[..., Any], "Same", list[Any]]

# Instructions that write the module's attributes, or whose inside is not seen.
_REFUSED = frozenset("prim::SetAttr prim::CallMethod prim::CallFunction prim::PythonOp prim::CreateObject "
                     "prim::fork prim::awaitable".split())  # fmt: skip
_SCALARS = (bool, int, float, str, type(None))
_VALUES = (torch.Tensor, torch.nn.Parameter, *_SCALARS)
_NOTHING = object()
_MODULE: Any = torch._C.ScriptModule


class Plain(NamedTuple):
    """A method as a function of its own arguments and of what is at `places`: names of attributes, one in the other."""

    function: torch.jit.ScriptFunction
    places: tuple[tuple[str, ...], ...]


_known: weakref.WeakKeyDictionary[Any, Plain | None] = weakref.WeakKeyDictionary()


def _plain(method: torch._C.ScriptMethod) -> Plain | None:
    """None: it does more than to read attributes. Holds as long as the method lives: its code does not change."""
    if method not in _known:
        _known[method] = _make_plain(method)
    return _known[method]


def _make_plain(method: Any) -> Plain | None:
    graph = method.inlined_graph.copy()
    if any(graph.findAllNodes(kind, True) for kind in _REFUSED):
        return None
    module = next(graph.inputs())
    inputs: dict[tuple[str, ...], Any] = {}
    nodes = list(graph.findAllNodes("prim::GetAttr", True))
    for node in nodes:
        if (place := _place(node, module)) is None:
            return None
        out = node.output()
        if isinstance(out.type(), torch._C.ClassType):  # a module inside: it is asked for attributes in turn
            continue
        if place not in inputs:
            inputs[place] = graph.addInput()
            inputs[place].setType(out.type())
        out.replaceAllUsesWith(inputs[place])
    for node in reversed(nodes):
        if node.output().uses():
            return None  # the module itself is used
        node.destroy()
    if module.uses():
        return None
    graph.eraseInput(0)
    return Plain(torch._C._create_function_from_graph(method.name, graph), tuple(inputs))


def _place(node: Any, module: Any) -> tuple[str, ...] | None:
    """Names from the module to what a GetAttr gives, or None."""
    names: list[str] = []
    while node.kind() == "prim::GetAttr":
        names.insert(0, node.s("name"))
        source = node.input()
        if source.debugName() == module.debugName():
            return tuple(names)
        node = source.node()
    return None


def _find(owner: Any, place: Sequence[str]) -> Any:
    """What is there, or _NOTHING."""
    found: Any = owner.owner if isinstance(owner, torch._C.ScriptMethod) else owner
    for name in place:
        if not isinstance(found, _MODULE) or not found.hasattr(name):
            return _NOTHING
        found = found.getattr(name)
    return found


class Same:
    """Called by a guard: are these values still there?"""

    __slots__ = ("held", "owner", "places")  # no weak references: the trace keeps it

    def __init__(self, owner: Any, places: Sequence[Sequence[str]], values: Sequence[Any]):
        self.owner = weakref.ref(owner)
        self.places = places
        self.held = [weakref.ref(value) if isinstance(value, torch.Tensor) else value for value in values]

    def __call__(self) -> bool:
        owner = self.owner()
        return owner is not None and all(map(self._is_there, self.places, self.held, [owner] * len(self.held)))

    def _is_there(self, place: Sequence[str], held: Any, owner: Any) -> bool:
        found = _find(owner, place)
        if isinstance(held, weakref.ref):
            return found is held()
        return type(found) is type(held) and repr(found) == repr(held)  # bit by bit


class Has(Same):
    """Called by a guard: is there (not) such a thing? A place is the name of what is asked, and its argument."""

    __slots__ = ()

    def _is_there(self, place: Sequence[str], held: Any, owner: Any) -> bool:
        return getattr(owner, place[0])(place[1]) == held


def method(method: torch._C.ScriptMethod, given: int, unbound: int, names: Sequence[str]) -> StandIn | None:
    """For a call with so many positional arguments and others of these names. unbound: the method itself comes first,
    uncounted."""
    made = _plain(method)
    if made is None:
        return None
    arguments = method.schema.arguments[1:]
    rest = []  # of the arguments behind the positional ones: name and default
    for argument in arguments[given:]:
        default = argument.default_value if argument.has_default_value() else _NOTHING
        if argument.name not in names and not isinstance(default, _SCALARS):
            return None
        rest.append((argument.name, None if default is _NOTHING else default))
    if given > len(arguments) or not {name for name, _ in rest}.issuperset(names):
        return None  # it raises
    values = [_find(method, place) for place in made.places]
    if not all(type(value) in _VALUES for value in values):
        return None
    function, order, state = made.function, tuple(rest), tuple(values)

    def call(*args: Any, **kwargs: Any) -> Any:
        named = [kwargs[name] if name in kwargs else default for name, default in order]
        return function(*args[unbound:], *named, *state)

    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return call, Same(method, made.places, values), [function, *tensors]


def attribute(owner: torch._C.ScriptModule, asked: str, name: Any) -> StandIn | None:
    """For a call of this method of a module of C++, of one argument: getattr, or one that answers True or False."""
    if not isinstance(owner, _MODULE) or type(name) is not str:
        return None
    if asked != "getattr":
        has = getattr(owner, asked)(name)
        return lambda *_: has, Has(owner, ((asked, name),), (has,)), []
    value = _find(owner, (name,))
    if type(value) not in _VALUES:
        return None
    return lambda *_: value, Same(owner, ((name,),), (value,)), [value] if isinstance(value, torch.Tensor) else []
