"""Small worlds: a namespace with a function `f` whose result shows everything it reads, and generated changes of it.

Every change of every location that can be reached from the namespace is made, one at a time. The program itself says
what it amounts to: guards that still hold must mean that the program still does the same.
"""

import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

MISSING = object()


class Text(str):
    """A str that is not exactly a str."""


def shown(value: Any) -> Any:
    """What can be told apart by looking at a result: exact types and values, signs of zeros, contents of containers."""
    if isinstance(value, (list, tuple)):
        return type(value), [shown(v) for v in value]
    if isinstance(value, dict):
        return type(value), [(shown(k), shown(v)) for k, v in value.items()]
    return type(value), repr(value) if isinstance(value, (int, float, str, bytes, complex, type(None))) else None


class World:
    """One program: `source` defines f and ARGS (a tuple); a fresh copy of everything is made for each test."""

    def __init__(self, source: str) -> None:
        self.space: dict[str, Any] = {"__name__": "world"}
        exec(compile(source, "world.py", "exec"), self.space)
        self.f: Callable[..., Any] = self.space["f"]
        self.args: tuple[Any, ...] = self.space.pop("ARGS")

    def run(self) -> Any:
        try:
            return shown(self.f(*self.args))
        except Exception as e:  # an exception is a result, too
            return type(e)

    def locations(self) -> list["Location"]:
        found: list[Location] = []
        seen: set[int] = set()

        def visit(value: Any, path: str) -> None:
            if id(value) in seen or isinstance(value, (str, int, float, bytes, complex, type(None))):
                return
            seen.add(id(value))
            for location in children(value, path):
                found.append(location)
                inside = location.get()
                if inside is not MISSING:
                    visit(inside, location.path)

        for name in [n for n in self.space if not n.startswith("__") and n != "f"]:
            location = dict_item(self.space, name, name)
            found.append(location)
            visit(location.get(), name)
        visit(self.f, "f")
        for i, value in enumerate(self.args):
            visit(value, f"argument {i}")
        return found


class Location:
    """A place outside of the program whose value can be read, replaced and (perhaps) deleted."""

    def __init__(
        self,
        path: str,
        get: Callable[[], Any],
        put: Callable[[Any], None],
        drop: Callable[[], None] | None,
        restore: Callable[[Any], None] | None = None,
    ) -> None:
        self.path, self.get, self.put, self.drop = path, get, put, drop
        self.restore = restore or (lambda old: (drop() if drop else None) if old is MISSING else put(old))


def refuse(value: Any) -> None:
    raise TypeError("this cannot be changed")


def dict_item(d: dict, key: Any, path: str) -> Location:
    items = dict(d)

    def restore(old: Any) -> None:  # with the order, which can be read too
        if old is MISSING:
            del d[key]
        elif key in d:
            d[key] = old
        else:
            d.clear()
            d.update(items)

    return Location(
        path, lambda: d.get(key, MISSING), lambda v: d.__setitem__(key, v), lambda: d.__delitem__(key), restore
    )


def attribute(o: Any, name: str, path: str) -> Location:
    def drop() -> None:
        delattr(o, name)

    return Location(path, lambda: getattr(o, name, MISSING), lambda v: setattr(o, name, v), drop)


def class_item(c: type, name: str, path: str) -> Location:
    return Location(
        path, lambda: c.__dict__.get(name, MISSING), lambda v: setattr(c, name, v), lambda: delattr(c, name)
    )


def cell_contents(cell: Any, path: str) -> Location:
    def get() -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return MISSING

    def drop() -> None:
        del cell.cell_contents

    return Location(path, get, lambda v: setattr(cell, "cell_contents", v), drop)


def children(value: Any, path: str) -> Iterator[Location]:
    if isinstance(value, dict):
        for key in list(value):
            yield dict_item(value, key, f"{path}[{key!r}]")
        yield dict_item(value, "added", f"{path}['added']")
    elif isinstance(value, (list, deque)):
        for i in range(len(value)):
            yield Location(f"{path}[{i}]", lambda i=i: value[i], lambda v, i=i: value.__setitem__(i, v), None)
        yield Location(f"{path}.append", lambda: MISSING, value.append, lambda: value.pop() and None)
    elif isinstance(value, set):
        items = set(value)
        yield Location(f"{path}.add", lambda: MISSING, value.add, lambda: value.intersection_update(items))
    elif isinstance(value, tuple):
        for i, item in enumerate(value):  # cannot be changed itself, but what it holds can
            yield Location(f"{path}[{i}]", lambda item=item: item, refuse, None)
    elif isinstance(value, types.FunctionType):
        yield attribute(value, "__code__", f"{path}.__code__")
        yield attribute(value, "__defaults__", f"{path}.__defaults__")
        yield attribute(value, "__kwdefaults__", f"{path}.__kwdefaults__")
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield cell_contents(cell, f"{path}.<{name}>")
    elif isinstance(value, types.MethodType):
        yield Location(f"{path}.__self__", lambda: value.__self__, refuse, None)
        yield Location(f"{path}.__func__", lambda: value.__func__, refuse, None)
    elif isinstance(value, type):
        for name in [
            n for n in value.__dict__ if not n.startswith("__") or n in ("__call__", "__getattr__", "__getitem__")
        ]:
            yield class_item(value, name, f"{path}.{name}")
        for name in ("added", "__getattr__", "__bool__", "__len__", "__getattribute__"):
            if name not in value.__dict__:
                yield class_item(value, name, f"{path}.{name}")
    elif type(value).__module__ == "world":
        for name in list(vars(value)) if hasattr(value, "__dict__") else []:
            yield attribute(value, name, f"{path}.{name}")
        for name in getattr(type(value), "__slots__", ()):
            yield attribute(value, name, f"{path}.{name}")
        if hasattr(value, "__dict__"):
            for name in ("added", "method", "x"):
                if name not in vars(value):
                    yield Location(
                        f"{path}.{name}",
                        lambda o=value, n=name: vars(o).get(n, MISSING),
                        lambda v, o=value, n=name: setattr(o, n, v),
                        lambda o=value, n=name: delattr(o, n),
                    )
        yield Location(f"{path}.__class__", lambda: value.__class__, lambda v: setattr(value, "__class__", v), None)


def another(*args: Any, **kwargs: Any) -> str:
    """A Python function to put in a function's place."""
    return "another"


def changes(value: Any) -> Iterator[tuple[str, Any]]:
    """(what is done, new value) for a location that holds `value`."""
    if value is MISSING:
        yield "set to 7", 7
        yield "set to a function", another
    elif isinstance(value, bool):
        yield "negated", not value
        yield "made int", int(value)
    elif isinstance(value, int):
        yield "plus one", value + 1
        yield "made float", float(value)
        yield "made huge", value + 2**70
        if value in (0, 1):
            yield "made bool", bool(value)
    elif isinstance(value, float):
        yield "negated", -value
        yield "made nan", float("nan")
        if value == int(value):
            yield "made int", int(value)
    elif isinstance(value, str):
        yield "longer", value + "x"
        yield "made a subclass", Text(value)
        yield "equal copy", "".join(list(value))
    elif isinstance(value, tuple):
        yield "longer", value + (1,)
        yield "shorter", value[1:]
        yield "made a list", list(value)
        yield "equal copy", tuple(list(value))
    elif type(value) in (dict, OrderedDict):
        yield "equal copy", type(value)(value)
        yield "emptied", type(value)()
        yield "other order", type(value)(reversed(list(value.items())))
    elif type(value) is list:
        yield "equal copy", list(value)
        yield "reversed", value[::-1]
        yield "made a tuple", tuple(value)
    elif isinstance(value, types.FunctionType):
        yield "another function", another
    elif isinstance(value, types.CodeType):
        if not value.co_freevars:
            yield "another function's code", another.__code__
    elif type(value) is type:
        yield "a subclass", type(value.__name__, (value,), {"__module__": "world"})
        yield "a subclass with a method", type(value.__name__, (value,), {"__module__": "world", "method": another})
    elif type(value).__module__ == "world" and hasattr(value, "__dict__") and not isinstance(value, type):
        copy = type(value).__new__(type(value))
        vars(copy).update(vars(value))
        yield "equal copy", copy
    yield "None", None
    yield "an object", object()
