"""Importing a ParityBench file where most of what its project imports is not installed.

A file is executed; each import, name or attribute that is missing at its top level is replaced by a stub, and the file
is executed again, until it runs through. Only what failed is replaced: a file's own `except ImportError` still works.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import types
from typing import Any
from unittest.mock import MagicMock

import numpy

ATTEMPTS = 80
# The line of imports that every file has.
COMMON = (
    "matplotlib numpy pandas scipy sklearn tensorflow torchaudio torchtext torchvision paritybench expecttest".split()
)
# Modules and names that later versions removed, and what still has their meaning.
REMOVED_MODULES: dict[str, dict[str, Any]] = {
    "torch._six": {
        "container_abcs": collections.abc,
        "string_classes": (str, bytes),
        "int_classes": int,
        "inf": float("inf"),
        "nan": float("nan"),
    }
}
REMOVED_FROM_NUMPY = {
    "float": float,
    "int": int,
    "object": object,
    "complex": complex,
    "float_": numpy.float64,
    "product": numpy.prod,
    "Inf": numpy.inf,
    "NaN": numpy.nan,
}


class StubClass(type):
    """A class that has every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{cls.__name__}.{name}")


def stub_attribute(name: str, module: str) -> Any:
    """A class that can be inherited from where the name looks like a class, else a mock."""
    if name[:1].isupper() and not name.isupper():
        return StubClass(name, (), {"__module__": module, "__init__": lambda self, *args, **kwargs: None})
    return MagicMock(name=f"{module}.{name}")


class StubModule(types.ModuleType):
    """A module that has every attribute."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = stub_attribute(name, self.__name__)
        setattr(self, name, value)
        return value


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last: finds the modules in `names`, and all below them, as stubs."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        parts = fullname.split(".")
        if not any(".".join(parts[:n]) in self.names for n in range(1, len(parts) + 1)):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(REMOVED_MODULES.get(module.__name__, {}))


class Pretrained(collections.OrderedDict[str, Any]):
    """Stands for weights that would come from the network; loading it changes nothing."""


def prepare(generated: str) -> StubFinder:
    """Make ParityBench's helper module and what every file imports importable. Once per process."""
    import torch.hub
    import torch.utils.model_zoo

    finder = StubFinder()
    sys.meta_path.append(finder)
    for name in COMMON:
        try:
            importlib.import_module(name)
        except Exception:  # not installed, or it does not work with this torch
            for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
                del sys.modules[loaded]
            finder.names.add(name)
            importlib.import_module(name)
    for name, value in REMOVED_FROM_NUMPY.items():
        if name not in numpy.__dict__:
            setattr(numpy, name, value)

    load = torch.nn.Module.load_state_dict

    def load_state_dict(self: torch.nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state, Pretrained) else load(self, state, *args, **kwargs)

    torch.nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    torch.hub.load_state_dict_from_url = lambda *args, **kwargs: Pretrained()
    torch.utils.model_zoo.load_url = torch.hub.load_state_dict_from_url
    helpers = "_paritybench_helpers.py"
    for folder in (generated, os.path.join(os.path.dirname(generated), "paritybench")):
        if os.path.exists(os.path.join(folder, helpers)):
            execute(os.path.join(folder, helpers), finder)
            break
    return finder


def execute(path: str, finder: StubFinder) -> types.ModuleType:
    """The file at `path` as a module. Raises what no stub helps against."""
    with open(path) as file:
        code = compile(file.read(), path, "exec")
    name = os.path.basename(path).removesuffix(".py")
    for _ in range(ATTEMPTS):
        module = sys.modules[name] = types.ModuleType(name)
        module.__file__ = path
        try:
            exec(code, module.__dict__)
            return module
        except (ImportError, AttributeError) as error:
            if not supply(error, finder):
                raise
    raise ImportError(f"{path}: still misses something after {ATTEMPTS} stubs")


def supply(error: Exception, finder: StubFinder) -> bool:
    """Put a stub where `error` says that something is missing. False if there is nothing to put."""
    if isinstance(error, ModuleNotFoundError):
        if not error.name or error.name in finder.names:
            return False
        finder.names.add(error.name)
        if sys.modules.get(error.name, error) is None:
            del sys.modules[error.name]
        parent, _, child = error.name.rpartition(".")
        if parent in sys.modules and not hasattr(sys.modules[parent], "__path__"):  # "is not a package"
            stub = sys.modules[error.name] = StubModule(error.name)
            setattr(sys.modules[parent], child, stub)
        return True
    message = str(error)
    if isinstance(error, ImportError):
        origin = r"from (?:partially initialized module )?'(?P<module>[\w.]+)'"
        found = re.search(rf"cannot import name '(?P<name>\w+)' {origin}", message)
        if not found:
            return replace_failed_module(error)
    else:
        found = re.search(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'", message)
    if not found or found["module"] not in sys.modules or hasattr(sys.modules[found["module"]], found["name"]):
        return False
    setattr(sys.modules[found["module"]], found["name"], stub_attribute(found["name"], found["module"]))
    return True


def replace_failed_module(error: ImportError) -> bool:
    """Put a stub in place of the installed module that raised `error` while the file imported it."""
    trace = error.__traceback__
    frames = []
    while trace:
        if trace.tb_frame.f_code.co_name == "<module>":
            frames.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    if len(frames) < 2 or isinstance(sys.modules.get(frames[1]), StubModule):
        return False
    stub = sys.modules[frames[1]] = StubModule(frames[1])
    parent, _, child = frames[1].rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, stub)
    return True
