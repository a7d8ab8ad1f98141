"""Runs generated kernels against eager: graph -> description -> schedule -> shared object -> tensors.

Operators that are no kernels are executed by torch, views by as_strided, the arena is one byte tensor: a plan executor
in Python, slow and simple, so that a difference to eager is a fault of the kernels or of the schedule.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from magpy import _C

SCALAR_TYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex64: 9,
    torch.complex128: 10,
    torch.bool: 11,
    torch.bfloat16: 15,
}
DTYPES = {code: dtype for dtype, code in SCALAR_TYPES.items()}
MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}
FLAGS = (
    "-O3 -march=native -mprefer-vector-width={bits} -ffp-contract=fast -fno-math-errno -fno-trapping-math "
    "-fopenmp-simd -shared -fPIC -Wall -Wno-unused-function -Wno-unused-variable "
    "-Wno-aggressive-loop-optimizations -Werror"
)


def compile_source(source: str, bits: int = 512, more_flags: str = "") -> ctypes.CDLL:
    """Compile a C source into a shared object (kept in a temporary directory by content) and load it."""
    flags = f"{FLAGS.format(bits=bits)} {more_flags}"
    key = hashlib.sha256((source + flags).encode()).hexdigest()[:24]
    folder = os.path.join(tempfile.gettempdir(), f"magpy-kernel-tests-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, key)
    if not os.path.exists(path + ".so"):
        with open(path + ".c", "w") as f:
            f.write(source)
        partial = f"{path}.{os.getpid()}.tmp"
        command = ["cc", *flags.split(), "-o", partial, path + ".c", "-lm"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[:4000]
        os.rename(partial, path + ".so")
    return ctypes.CDLL(path + ".so")


def describe_meta(value: torch.Tensor | None) -> tuple | None:
    """(dtype, device, sizes, strides, offset) of a (fake) tensor."""
    if value is None:
        return None
    return (
        SCALAR_TYPES[value.dtype],
        0,
        tuple(int(s) for s in value.shape),
        tuple(int(s) for s in value.stride()),
        int(value.storage_offset()),
    )


class Description:
    """An ATen FX graph as graph.h describes graphs, with the operators by node number for the executor."""

    def __init__(self, gm: torch.fx.GraphModule) -> None:
        self.nodes: list[tuple] = []
        self.outputs: tuple[int, ...] = ()
        self.calls: list[tuple] = []
        self.first: list[int] = []
        self.n_values = 0
        values: dict[torch.fx.Node, int] = {}
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                self._add(values, node, "placeholder", None, ())
            elif node.op == "get_attr":
                raise NotImplementedError("constants are inputs in these tests")
            elif node.op == "output":
                outputs = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
                self.outputs = tuple(values[o] if isinstance(o, torch.fx.Node) else -1 for o in outputs)
            elif node.target.__name__ == "getitem":
                values[node] = values[node.args[0]] + node.args[1]
            else:
                self._add(values, node, str(node.target), node.target, self._args(node, values))

    def _add(self, values: dict, node: torch.fx.Node, op: str, target: object, args: tuple) -> None:
        values[node] = self.n_values
        result = node.meta["val"]
        results = result if isinstance(result, (tuple, list)) else [result]
        self.nodes.append((op, target, args, tuple(describe_meta(r) for r in results)))
        self.first.append(self.n_values)
        self.calls.append((node.target, node.args, node.kwargs, dict(values), len(results)))
        self.n_values += len(results)

    def _args(self, node: torch.fx.Node, values: dict) -> tuple:
        schema = node.target._schema.arguments
        out = []
        for i, arg in enumerate(schema):
            if i < len(node.args):
                out.append(self._arg(node.args[i], values))
            elif arg.name in node.kwargs:
                out.append(self._arg(node.kwargs[arg.name], values))
            else:
                out.append(self._arg(arg.default_value if arg.has_default_value() else None, values))
        return tuple(out)

    def _arg(self, arg: object, values: dict) -> object:
        if isinstance(arg, torch.fx.Node):
            return ("v", values[arg])
        if isinstance(arg, torch.dtype):
            return ("dtype", SCALAR_TYPES[arg])
        if isinstance(arg, torch.layout):
            return ("layout", 0)
        if isinstance(arg, torch.device):
            return ("device", 0)
        if isinstance(arg, torch.memory_format):
            return ("memory_format", MEMORY_FORMATS[arg])
        if isinstance(arg, (list, tuple)):
            return [self._arg(a, values) for a in arg]
        return arg


def trace(fn, inputs, decompositions=None) -> torch.fx.GraphModule:
    """The functional ATen graph of fn(*inputs)."""
    gm = make_fx(lambda *args: fn(*args), tracing_mode="fake", decomposition_table=decompositions or {})(*inputs)
    gm.graph.eliminate_dead_code()
    return gm


class Compiled:
    """A scheduled graph that can be called. `schedule` is _C._schedule's result."""

    def __init__(self, gm: torch.fx.GraphModule, fuse: bool = True, bits: int = 512) -> None:
        self.description = Description(gm)
        self.schedule = _C._schedule(
            tuple(self.description.nodes), self.description.outputs, fuse=fuse, vector_bits=bits
        )
        self.library = compile_source(self.schedule["source"], bits) if self.schedule["source"] else None

    @property
    def kernels(self) -> list[dict]:
        return self.schedule["kernels"]

    def ops(self) -> list[str]:
        """Operators that no kernel covers, in order."""
        return [self.description.nodes[i][0] for kind, i in self.schedule["steps"] if kind == "op"]

    def __call__(self, *inputs: torch.Tensor, pieces: int = 3) -> list:
        """Run all steps; every kernel's iterations are given to it in `pieces` ranges."""
        places = self.schedule["places"]
        arena = torch.full((self.schedule["arena_bytes"] + 64,), 0xC5, dtype=torch.uint8)
        start = -arena.data_ptr() % 64
        tensors: dict[int, torch.Tensor] = {}
        released: set[int] = set()

        def value(v: int) -> torch.Tensor:
            assert v not in released, f"value {v} is used after its release"
            place = places[v]
            if v in tensors:
                return tensors[v]
            code, _, sizes, strides, offset = place["meta"]
            dtype = DTYPES[code]
            if place["home"] == "input":
                tensors[v] = inputs[place["index"]]
            elif place["home"] == "output":
                tensors[v] = poison(torch.empty_strided(sizes, strides, dtype=dtype))
            elif place["home"] == "arena":
                n = 1 + sum((s - 1) * t for s, t in zip(sizes, strides, strict=True))
                n *= torch.empty((), dtype=dtype).element_size()
                at = start + place["arena_offset"]
                assert place["arena_offset"] % 64 == 0 and place["arena_offset"] + n <= self.schedule["arena_bytes"]
                tensors[v] = arena[at : at + n].view(dtype).as_strided(sizes, strides)
            elif place["home"] == "view":
                base = value(place["base"])
                if places[place["base"]]["home"] == "arena":  # its storage begins at its place in the arena
                    offset += base.storage_offset()
                tensors[v] = torch.as_strided(base, sizes, strides, offset)
            else:
                raise AssertionError(f"value {v} has no home")
            return tensors[v]

        for kind, index in self.schedule["steps"]:
            if kind == "kernel":
                self._run_kernel(self.kernels[index], value, pieces)
            elif kind == "op":
                self._run_op(index, value, tensors)
            elif kind == "view":
                value(index)
            else:
                released.add(index)
                if places[index]["home"] == "arena":
                    poison(tensors[index])
                tensors.pop(index, None)
        return [None if v < 0 else value(v) for v in self.description.outputs]

    def _run_kernel(self, kernel: dict, value, pieces: int) -> None:
        function = getattr(self.library, kernel["name"])
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        function.restype = None
        bad = ctypes.c_int(0)  # only kernels that check indices are given it
        addresses = [value(v).data_ptr() for v in kernel["values"]] + [ctypes.addressof(bad)] * kernel["checks"]
        pointers = (ctypes.c_void_p * len(addresses))(*addresses)
        extent = kernel["extent"]
        bounds = [extent * i // pieces for i in range(pieces + 1)]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            function(ctypes.addressof(pointers), begin, end)
        if bad.value:
            raise IndexError(f"{kernel['name']} found an index out of range")

    def _run_op(self, index: int, value, tensors: dict) -> None:
        target, args, kwargs, values, n = self.description.calls[index]

        def fill(arg):
            if isinstance(arg, torch.fx.Node):
                return value(values[arg])
            if isinstance(arg, (list, tuple)):
                return type(arg)(fill(a) for a in arg)
            return arg

        result = target(*fill(args), **{k: fill(v) for k, v in kwargs.items()})
        results = result if isinstance(result, (tuple, list)) else [result]
        for i, r in enumerate(results):
            tensors[self.description.first[index] + i] = r


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Make uninitialised or dead memory loud."""
    if tensor.dtype.is_floating_point:
        return tensor.fill_(float("nan"))
    return tensor.fill_(1) if tensor.dtype == torch.bool else tensor.fill_(77)
