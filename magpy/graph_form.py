"""Graphs as plain data, for files: JSON of lists, numbers and names, which is read without running anything.

graph  {"inputs": [meta], "constants": [[meta, base64]], "nodes": [[operator, args, metas, form]],
        "outputs": [value]}
meta   [dtype, device, sizes, strides, offset]; null for a result that the operator does not give
value  a number, in the order of `aten_graph.number`; -1 for none
args   null, bool, int, float, str and lists as they are; what else there is, as an object with one key
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import torch

from magpy.aten_graph import Graph, Node, Val, name_of_op, number
from magpy.graph_key import MAX_CONSTANTS, Uncacheable, bytes_of, op_named

# -- Writing ----------------------------------------------------------------------------------------------------------


def graph_data(graph: Graph) -> dict[str, Any]:
    """Raises Uncacheable for what the form has no place for."""
    number(graph)
    constants = [[meta_data(_dense_meta(t)), base64.b64encode(bytes_of(t)).decode()] for t in graph.constants]
    if sum(len(text) for _, text in constants) > 2 * MAX_CONSTANTS:
        raise Uncacheable("large constant tensors")
    return {
        "inputs": [meta_data(node.val.meta) for node in graph.placeholders],
        "constants": constants,
        "nodes": [_node_data(node) for node in graph.nodes],
        "outputs": [-1 if val is None else val.number for val in graph.outputs],
    }


def _dense_meta(tensor: torch.Tensor) -> tuple:
    """A constant is kept as its elements in order, with the strides that it has."""
    return (tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), 0)


def meta_data(meta: tuple) -> list:
    dtype, device, sizes, strides, offset = meta
    return [dtype and str(dtype).removeprefix("torch."), str(device), list(sizes), list(strides), offset]


def _node_data(node: Node) -> list:
    metas = [None if val is None else meta_data(val.meta) for val in node.vals]
    return [op_data(node.target), [arg_data(arg) for arg in node.args], metas, node.form]


def op_data(target: Any) -> str:
    text = name_of_op(target)
    if op_named(text) is not target:
        raise Uncacheable(f"the operator {text}")
    return text


def arg_data(arg: Any) -> Any:
    kind = type(arg)
    if arg is None or kind in (bool, int, str):
        return arg
    if kind is float:
        return arg if math.isfinite(arg) else {"float": struct.pack("<d", arg).hex()}
    if kind is Val:
        return {"value": arg.number}
    if kind is list:
        return [arg_data(a) for a in arg]
    if kind in (tuple, torch.Size):
        return {"tuple": [arg_data(a) for a in arg]}
    if kind is complex:
        return {"complex": [arg_data(arg.real), arg_data(arg.imag)]}
    if kind is torch.device:
        return {"device": str(arg)}
    if kind in (torch.dtype, torch.layout, torch.memory_format):
        return {"torch": str(arg).removeprefix("torch.")}
    raise Uncacheable(f"an argument of type {kind.__name__}")


# -- Reading ----------------------------------------------------------------------------------------------------------


def graph_of(data: dict[str, Any]) -> Graph:
    """The graph that graph_data was given. Raises whatever it meets in data of another form."""
    graph = Graph()
    vals: list[Val | None] = []
    for meta in data["inputs"]:
        vals.append(graph.add_placeholder(meta_of_data(meta)))
    graph.constants = [_constant(meta_of_data(meta), base64.b64decode(text)) for meta, text in data["constants"]]
    for op, args, metas, form in data["nodes"]:
        node = Node(op_of(op), tuple([arg_of(arg, vals) for arg in args]))
        node.form = form
        node.vals = [None if m is None else Val(node, i, meta_of_data(m)) for i, m in enumerate(metas)]
        vals += node.vals
        graph.nodes.append(node)
    graph.outputs = [None if k < 0 else vals[k] for k in data["outputs"]]
    return graph


def op_of(text: str) -> Any:
    target = op_named(text)
    if target is None:
        raise ValueError(f"the operator {text}")
    return target


def meta_of_data(data: list) -> tuple:
    dtype, device, sizes, strides, offset = data
    return (dtype and _named(dtype), _device(device), tuple(sizes), tuple(strides), offset)


def _named(name: str) -> Any:
    found = getattr(torch, name)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise ValueError(f"torch.{name}")
    return found


_devices: dict[str, torch.device] = {}


def _device(text: str) -> torch.device:
    device = _devices.get(text)
    if device is None:
        device = _devices[text] = torch.device(text)
    return device


def _constant(meta: tuple, content: bytes) -> torch.Tensor:
    dtype, device, sizes, strides, _ = meta
    made = torch.empty_strided(sizes, strides, dtype=dtype, device=device)
    if made.numel():
        made.copy_(torch.frombuffer(bytearray(content), dtype=dtype).reshape(sizes))
    return made


def arg_of(data: Any, vals: list[Val | None]) -> Any:
    if type(data) is list:
        return [arg_of(d, vals) for d in data]
    if type(data) is not dict:
        return data
    ((kind, value),) = data.items()
    if kind == "value":
        val = vals[value]
        if val is None:
            raise ValueError("a value that there is not")
        return val
    if kind == "tuple":
        return tuple([arg_of(d, vals) for d in value])
    return _READERS[kind](value)


_READERS: dict[str, Any] = {
    "float": lambda bits: struct.unpack("<d", bytes.fromhex(bits))[0],
    "complex": lambda parts: complex(*[arg_of(part, []) for part in parts]),
    "device": _device,
    "torch": _named,
}
