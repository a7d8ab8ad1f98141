"""Weights of matrix products, packed as the tiles of csrc/gemm read them: copies, which only freezing makes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from magpy import _C
from magpy.aten_graph import Graph, Node, Val, base_of

_library = torch.library.Library("magpy", "FRAGMENT")
_library.define("packed_matmul(Tensor a, Tensor b, Tensor? bias, int[] strides, int n) -> Tensor")


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A matrix of float32 [k, n] of any strides, packed. Not for tensors without data."""
    k, n = weight.shape
    packed = torch.empty(_C._packed_size(k, n), dtype=torch.float32, device="cpu")
    _C._pack_weight(weight.data_ptr(), (k, n), weight.stride(), packed.data_ptr())
    return packed


def unpacked(packed: torch.Tensor, k: int, n: int) -> torch.Tensor:
    """The matrix [k, n] again."""
    width = _C._packed_size(1, 1)
    whole = n // width * width
    parts = [packed[: whole * k].view(-1, k, width).transpose(0, 1).reshape(k, whole)]
    if n > whole:
        columns = width // 2 if n - whole <= width // 2 else width
        parts.append(packed[whole * k : (whole + columns) * k].view(k, columns)[:, : n - whole])
    return torch.cat(parts, 1)


def _packed_matmul(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, strides: list[int], n: int
) -> torch.Tensor:
    return torch.ops.magpy.matmul(a, unpacked(b, a.shape[-1], n), bias, strides)


_library.impl("packed_matmul", _packed_matmul, "CompositeExplicitAutograd")
PACKED = torch.ops.magpy.packed_matmul.default


class Pack(NamedTuple):
    """What is packed: the matrix [k, n] in the memory of `source`, a placeholder, from its first element on."""

    source: Val
    sizes: tuple[int, int]
    strides: tuple[int, int]
    offset: int

    @property
    def compared_bytes(self) -> int:
        """How much each run compares to see that the source has not changed."""
        size = math.prod(self.source.meta[2]) * 4
        return size if size <= _C.COMPARED_BYTES else 0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The source's tensor, packed."""
        return pack(torch.as_strided(tensor, self.sizes, self.strides, tensor.storage_offset() + self.offset))


class Packing:
    """Which placeholders of a graph may be packed, and what has been: for each pack a further placeholder, the last
    ones of the graph, in this order."""

    def __init__(self, graph: Graph, frozen: set[Val]):
        self._graph, self._frozen = graph, frozen
        self.packs: dict[Pack, Val] = {}

    def of(self, b: Val) -> Pack | None:
        """The pack of the right side [*batch, k, n] of a product, if it is one matrix of a weight."""
        source, (*batch, k, n), (*steps, row, column) = base_of(b), *b.meta[2:4]
        if source not in self._frozen or any(n > 1 and step for n, step in zip(batch, steps, strict=True)):
            return None
        return Pack(source, (k, n), (row, column), b.meta[4] - source.meta[4])

    def add(self, product: Node, pack: Pack) -> None:
        """Have a magpy.matmul multiply by what is packed, in place."""
        if pack not in self.packs:
            device = product.val.meta[1]
            self.packs[pack] = self._graph.add_placeholder(
                (torch.float32, device, (_C._packed_size(*pack.sizes),), (1,), 0)
            )
        a, _, bias, strides = product.args
        product.target, product.args = PACKED, (a, self.packs[pack], bias, strides, pack.sizes[1])
