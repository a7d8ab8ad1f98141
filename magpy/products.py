"""Matrix products of a graph go to whichever implementation was measured faster for their shape: the BLAS, oneDNN on
plain weights, or magpy's own tiles (csrc/gemm), which read operands where they lie and write results where they are
wanted: heads that are transposed, repeated or split off need no copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import _C, choices
from magpy.aten_builder import Builder, meta_given
from magpy.aten_graph import Graph, Node, Val, base_of, describe, each_val, map_vals, meta_of
from magpy.aten_layouts import Users, is_pointwise, users_of
from magpy.packing import PACKED, Pack, Packing

aten = torch.ops.aten

MIN_ONEDNN = 1 << 18  # multiplications from which oneDNN can be faster than its call is slow
MAX_BATCH = 6  # dims; csrc/gemm/gemm.h
MAX_BETWEEN = 60  # nodes looked at between the two products of an attention
SAMPLE_ROWS = 96  # of each of many matrices are measured
SMALL = 1 << 16  # bytes: reading less does not take long from anywhere
FAR = 1 << 23  # bytes of equal weights that are measured in turn: a model's weights have left the nearer caches

# -- The operator -----------------------------------------------------------------------------------------------------

_library = torch.library.Library("magpy", "FRAGMENT")
_library.define("matmul(Tensor a, Tensor b, Tensor? bias, int[] strides) -> Tensor")


def _matmul(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, strides: list[int]) -> torch.Tensor:
    """a [*batch, m, k] @ b [*batch, k, n] + bias [n], with the given strides; what csrc/gemm computes."""
    product = torch.matmul(a, b)
    out = torch.empty_strided(product.shape, strides, dtype=a.dtype, device=a.device)
    return out.copy_(product if bias is None else product + bias)


_library.impl("matmul", _matmul, "CompositeExplicitAutograd")
MATMUL = torch.ops.magpy.matmul.default


_library.define("grouped(Tensor a, Tensor b, Tensor ends) -> Tensor")


def _grouped(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Rows of a [m, k] up to each of ends [groups] int32, times the matrix of b [groups, k, n] of their group."""
    return aten._grouped_mm(a, b, ends)


_library.impl("grouped", _grouped, "CompositeExplicitAutograd")
GROUPED = torch.ops.magpy.grouped.default


# -- Operands ---------------------------------------------------------------------------------------------------------

Dims = list[tuple[int, int]]  # (size, stride), outermost first


def _split(dims: Dims, sizes: Sequence[int]) -> list[Dims] | None:
    """`dims` regrouped: for each of `sizes` the dims that make it up; None where that is not possible."""
    rest = [dim for dim in dims if dim[0] != 1][::-1]
    groups: list[Dims] = []
    for size in sizes:
        group: Dims = []
        while size > 1:
            if not rest:
                return None
            n, stride = rest.pop()
            if n <= size and size % n == 0:
                group.append((n, stride))
                size //= n
            elif n > size and n % size == 0:
                group.append((size, stride * (n // size)))
                rest.append((n // size, stride))
                size = 1
            else:
                return None
        groups.append(group)
    return None if rest else groups


def _common(lists: list[Dims]) -> tuple[list[int], list[list[int]]] | None:
    """Batch dims of several operands cut alike: the sizes, and the strides of each."""
    work = [[dim for dim in dims if dim[0] != 1][::-1] for dims in lists]
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in lists]
    while any(work):
        if not all(work):
            return None
        n = min(dims[-1][0] for dims in work)
        for dims, out in zip(work, strides, strict=True):
            size, stride = dims.pop()
            if size % n:
                return None
            out.append(stride * (size // n))
            if size != n:
                dims.append((size // n, stride))
        sizes.append(n)
    return sizes, strides


class Layout:
    """Where the elements of a value lie: `dims` for each of its dims, in the memory of `origin` from `offset` on."""

    def __init__(self, origin: Val, dims: list[Dims], offset: int):
        self.origin, self.dims, self.offset = origin, dims, offset


def _plain_layout(val: Val) -> Layout:
    return Layout(val, [[dim] for dim in zip(*val.meta[2:4], strict=True)], val.meta[4])


def _is_copy(node: Node) -> bool:
    """A copy that changes nothing but strides."""
    if node.target is aten._to_copy.default:
        return node.args[0].meta[:2] == node.val.meta[:2]
    return node.target is aten.clone.default


def _permutation(node: Node) -> list[int]:
    """Which dim of its argument each dim of the node's result is."""
    n = len(node.val.meta[2])
    if node.target is aten.permute.default:
        return [d % n for d in node.args[1]]
    order = list(range(n))
    if n >= 2:
        a, b = (0, 1) if node.target is aten.t.default else (d % n for d in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    return order


def _permuted(node: Node, of: Layout) -> list[Dims]:
    return [of.dims[d] for d in _permutation(node)]


def _regrouped(node: Node, of: Layout) -> list[Dims] | None:
    return _split([dim for dims in of.dims for dim in dims], node.val.meta[2])


def _expanded(node: Node, of: Layout) -> list[Dims]:
    sizes = node.val.meta[2]
    old = node.args[0].meta[2]
    new = len(sizes) - len(old)
    return [of.dims[d - new] if d >= new and old[d - new] == n else [(n, 0)] for d, n in enumerate(sizes)]


# How views change dims. unsqueeze and squeeze only move dims of size 1, which regrouping leaves out.
_VIEWS: dict[Any, Callable[[Node, Layout], list[Dims] | None]] = {
    **dict.fromkeys(
        (
            aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.unsqueeze.default,
            aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
        ),
        _regrouped,
    ),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _permuted),
    aten.expand.default: _expanded,
}  # fmt: skip


def _layout(val: Val) -> Layout:
    """Where the elements of `val` lie without the copies before it."""
    node = val.node
    if node.target is not None and _is_copy(node):
        return _layout(node.args[0])
    rule = _VIEWS.get(node.target)
    if rule is None:
        return _plain_layout(val)
    of = _layout(node.args[0])
    dims = rule(node, of)
    return _plain_layout(val) if dims is None else Layout(of.origin, dims, of.offset)


def _one(dims: Dims) -> int | None:
    """The stride of dims that can be walked with one; None if there is none."""
    dims = [dim for dim in dims if dim[0] != 1]
    for (_, outer), (size, stride) in zip(dims, dims[1:], strict=False):
        if outer != size * stride:
            return None
    return dims[-1][1] if dims else 1


class _Matrices:
    """An operand of a product: batch dims and the strides of its matrices. Rows that one stride cannot walk (images
    whose channels come first) are matrices of a batch: `split` has the sizes of these dims, `rows` what is left."""

    def __init__(self, val: Val, may_split: bool = False):
        layout = _layout(val)
        self.rows, self.columns = val.meta[2][-2:]
        self.split: list[int] = []
        col, dims = _one(layout.dims[-1]), [dim for dim in layout.dims[-2] if dim[0] != 1]
        outer: Dims = []
        while may_split and _one(dims) is None:
            outer.append(dims.pop(0))
        row = _one(dims)
        if row is None or col is None:
            layout, outer = _plain_layout(val), []
            row, col = val.meta[3][-2:]
        self.layout, self.row, self.col = layout, row, col
        self.batch: Dims = [dim for dims in layout.dims[:-2] for dim in dims] + outer
        self.split = [size for size, _ in outer]
        self.rows //= math.prod(self.split)

    def cut(self, sizes: list[int]) -> None:
        """Split rows that one stride walks: the outer dims are to have `sizes`."""
        inner = self.rows // math.prod(sizes)
        for i, size in enumerate(sizes):
            self.batch.append((size, self.row * inner * math.prod(sizes[i + 1 :])))
        self.rows, self.split = inner, list(sizes)

    def view(self, build: Builder, sizes: list[int], strides: list[int], turned: bool = False) -> Val:
        """The operand with the batch dims given; transposed if `turned`."""
        matrix = [(self.rows, self.row), (self.columns, self.col)]
        if turned:
            matrix.reverse()
        dims = [*zip(sizes, strides, strict=True), *matrix]
        return _as_strided(build, self.layout.origin, [n for n, _ in dims], [s for _, s in dims], self.layout.offset)


def _as_strided(build: Builder, val: Val, sizes: Sequence[int], strides: Sequence[int], offset: int) -> Val:
    if (tuple(sizes), tuple(strides), offset) == tuple(val.meta[2:]):
        return val
    return build(aten.as_strided.default, val, list(sizes), list(strides), offset)


def _viewed(build: Builder, node: Node, val: Val) -> Val:
    """The view `node` of another value."""
    try:
        return build(node.target, val, *node.args[1:])
    except RuntimeError as error:  # of these strides there is no such view
        raise _Keep from error


def contiguous(sizes: Sequence[int]) -> list[int]:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return strides[::-1]


# -- Where the result is wanted ---------------------------------------------------------------------------------------


def _wanted_as(val: Val, users: Users, outputs: set[Val]) -> tuple[list[Node], list[Dims]] | None:
    """If the product `val` is wanted in another order, by a copy or by pointwise operators behind views that turn it:
    the nodes up to the copy or the last view, and for each dim of `val` the dims in the memory of that one, which is
    contiguous."""
    chain: list[Node] = []
    now = val
    while True:
        using = users.get(now, ())
        if now in outputs or not using:
            return None
        node = using[0]
        if len(using) == 1 and node.target is aten.clone.default:
            chain.append(node)
            if list(node.val.meta[3]) != contiguous(node.val.meta[2]):
                return None
            break
        if len(using) == 1 and node.target in _VIEWS:
            chain.append(node)
            now = node.val
        elif chain and all(is_pointwise(user) for user in using):
            meta = (*now.meta[:3], tuple(contiguous(now.meta[2])), 0)
            if meta == now.meta or any(meta_given(user, {now: meta}) != user.val.meta for user in using):
                return None
            break
        else:
            return None
    sizes, layout = now.meta[2], _layout(now)
    strides = contiguous(sizes)
    if layout.origin is not val:
        return None
    # each dim in the product's memory, outermost first, with its stride in the copy's
    pairs: list[tuple[int, int, int]] = []
    for dims, step in zip(layout.dims, strides, strict=True):
        for size, stride in reversed([dim for dim in dims if dim[0] != 1]):
            pairs.append((stride, size, step))
            step *= size
    pairs.sort(reverse=True)
    if [stride for stride, *_ in pairs] != contiguous([size for _, size, _ in pairs]):
        return None  # a part of it, or parts repeated
    if math.prod(size for _, size, _ in pairs) != math.prod(val.meta[2]):
        return None
    groups = _split([(size, step) for _, size, step in pairs], val.meta[2])
    return None if groups is None else (chain, groups)


# -- One product ------------------------------------------------------------------------------------------------------


class _Keep(Exception):
    """The operator stays as it is."""


def _plan(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, strides: list[int], packed: int = 0
) -> Callable[..., Any]:
    """The own product of tensors like these, ready to run; with other operands than these if they are given. packed:
    how many columns there are packed in b."""
    graph = Graph()
    given = [t for t in (a, b, bias) if t is not None]
    vals = [graph.add_placeholder(meta_of(t)) for t in given]
    arguments = (vals[0], vals[1], vals[2] if bias is not None else None, strides)
    node = Node(PACKED, (*arguments, packed)) if packed else Node(MATMUL, arguments)
    sizes = (*a.shape[:-1], packed or b.shape[-1])
    node.vals = [Val(node, 0, (a.dtype, a.device, sizes, tuple(strides), 0))]
    graph.nodes.append(node)
    graph.outputs.append(node.val)
    plan = _C.compile_graph(*describe(graph), fuse=False)
    return lambda left=a, right=b: plan((left, right, *given[2:]))


def _filled(sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    return torch.empty_strided(tuple(sizes), tuple(strides), device="cpu").fill_(0.5)


class _Turns:
    """Equal tensors, a different one at each `take()`: as many as make up `bytes`, or one small one."""

    def __init__(self, tensor: torch.Tensor, bytes: int):
        size = tensor.numel() * tensor.element_size()
        n = max(1, bytes // size) if size >= SMALL else 1
        self._all = [tensor, *(torch.empty_strided(tensor.shape, tensor.stride()).fill_(0.5) for _ in range(n - 1))]
        self._next = 0

    def take(self) -> torch.Tensor:
        self._next = (self._next + 1) % len(self._all)
        return self._all[self._next]


def _text(sizes: Sequence[int], strides: Sequence[int]) -> str:
    return "/".join(str(s) for n, s in zip(sizes, strides, strict=True) if n != 1)


def _sample(sizes: Sequence[int]) -> list[int]:
    """Sizes of many matrices, cut down to what is measured: two of them along each dim, some rows. What a product
    costs is the same for each row, and results that leave the cache would hide it."""
    return [*(min(n, 2) for n in sizes[:-2]), min(sizes[-2], SAMPLE_ROWS), sizes[-1]] if len(sizes) > 2 else list(sizes)


def plain(val: Val) -> bool:
    return val.meta[0] is torch.float32 and val.meta[1].type == "cpu" and 0 not in val.meta[2]


class _Product:
    """One mm, addmm, bmm or baddbmm as x @ w + bias."""

    def __init__(self, node: Node):
        target = node.target
        self.node = node
        self.bias: Val | None = None
        if target is aten.addmm.default:
            bias, x, w, beta, alpha = node.args
            if beta != 1 or alpha != 1:
                raise _Keep
            self.bias = bias
        else:
            x, w = node.args[:2]
        if not all(plain(v) for v in each_val(node.args)) or not plain(node.val):
            raise _Keep
        self.x, self.w = x, w
        (self.m, self.k), self.n = x.meta[2][-2:], w.meta[2][-1]
        if self.k == 0:
            raise _Keep
        steps = zip(*node.val.meta[2:4], contiguous(node.val.meta[2]), strict=True)
        if any(n > 1 and got != plain for n, got, plain in steps):
            raise _Keep
        columns = (self.n,)
        if self.bias is not None and (self.bias.meta[2] != columns or (self.n > 1 and self.bias.meta[3] != (1,))):
            raise _Keep

    def own(self, build: Builder, users: Users, outputs: set[Val]) -> tuple[Val, list[Node]]:
        """Nodes of the own product. Returns its result, and the nodes up to the copy that it stands for, or none."""
        a, b = _Matrices(self.x, may_split=True), _Matrices(self.w)
        wanted = _wanted_as(self.node.val, users, outputs)
        cut = None
        if wanted is not None and not a.split and _one(wanted[1][-2]) is None and _one(wanted[1][-1]) is not None:
            a.cut([size for size, _ in wanted[1][-2] if size != 1][:-1])
        repeated: Dims = [(size, 0) for size in a.split]
        if wanted is not None:
            chain, (*batch, rows, columns) = wanted
            parts = _split(rows, [*a.split, a.rows])
            row, col = None if parts is None else _one(parts[-1]), _one(columns)
            if parts is not None and row is not None and col is not None and (col == 1 or self.n == 1 or row == 1):
                c_dims = [dim for dims in (*batch, *parts[:-1]) for dim in dims]
                cut = _common([a.batch, b.batch + repeated, c_dims])
        if cut is not None:
            sizes, (a_strides, b_strides, c_strides) = cut
        else:
            chain, row, col = [], self.n, 1
            plain = _common([a.batch, b.batch + repeated])
            if plain is None:
                raise _Keep
            sizes, (a_strides, b_strides) = plain
            c_strides = [s * a.rows * self.n for s in contiguous(sizes)]
        if len(sizes) > MAX_BATCH:
            raise _Keep
        last = chain[-1].val if chain else self.node.val
        if col == 1 or self.n == 1:
            left, right = a.view(build, sizes, a_strides), b.view(build, sizes, b_strides)
            made = build(MATMUL, left, right, self.bias, [*c_strides, row, 1])
            return _as_strided(build, made, last.meta[2], contiguous(last.meta[2]), 0), chain
        # the result's columns are wanted as rows: the product of the transposed operands
        left, right = b.view(build, sizes, b_strides, True), a.view(build, sizes, a_strides, True)
        made = build(MATMUL, left, right, None, [*c_strides, col, 1])
        made = _as_strided(build, made, last.meta[2], contiguous(last.meta[2]), 0)
        if self.bias is None:
            return made, chain
        bias = build(aten.expand.default, self.bias, list(self.node.val.meta[2]))
        for node in chain:
            if not _is_copy(node):
                bias = _viewed(build, node, bias)
        return build(aten.add.Tensor, made, bias), chain

    def turned(self) -> bool | None:
        """Are the weights [n, k] in memory? None: neither so nor [k, n]."""
        strides = tuple(s if n != 1 else 0 for n, s in zip(*self.w.meta[2:4], strict=True))
        return True if strides == (1, self.k) else False if strides == (self.n, 1) else None

    def for_onednn(self) -> bool:
        """Are these operands oneDNN takes as they are?"""
        mkldnn = torch.backends.mkldnn
        if not mkldnn.is_available() or not mkldnn.enabled:  # type: ignore[truthy-function]
            return False
        m, k, n = self.m, self.k, self.n
        if len(self.x.meta[2]) != 2 or m * k * n < MIN_ONEDNN or min(m, k, n) < 2 or self.turned() is None:
            return False
        return tuple(self.x.meta[3]) == (k, 1)

    def onednn(self, build: Builder) -> Val:
        node, k, n = self.w.node, self.k, self.n
        if node.target is aten.permute.default and node.args[0].meta[2] == (n, k):
            turned = node.args[0]  # the weight as the program has it
        else:
            turned = build(aten.permute.default, self.w, [1, 0])
        made = Node(LINEAR, (self.x, turned, self.bias, "none", [], ""))
        made.vals = [Val(made, 0, (torch.float32, self.x.meta[1], (self.m, n), (n, 1), 0))]
        build.nodes.append(made)
        return made.val

    def candidates(self, own: Node | None, chained: bool, pack: Pack | None) -> dict[str, Callable[[], Any]]:
        """Calls on tensors like the operands. `own` is the own product's node, if there can be one; it comes first,
        and stays without a clear loss, where the product is part of an attention (`chained`). pack: what it may have
        packed."""
        sizes = _sample(self.node.val.meta[2])
        if own is not None and len(sizes) > 2:
            own_sizes = self._own_sample(own)
            sizes = [math.prod(own_sizes[:-2]), *own_sizes[-2:]]
        x_sizes, w_sizes = ([*sizes[:-2], rows, n] for rows, n in ((sizes[-2], self.k), (self.k, sizes[-1])))
        x, w = (_filled(s, v.meta[3]) for s, v in ((x_sizes, self.x), (w_sizes, self.w)))
        bias = None if self.bias is None else _filled(*self.bias.meta[2:4])
        out = torch.empty(sizes, device="cpu")
        far = FAR if base_of(self.w).node.target is None else 0
        weights = _Turns(w, far)
        calls: dict[str, Callable[[], Any]] = {}
        if self.node.target is aten.addmm.default:
            calls["blas"] = lambda: aten.addmm.out(bias, x, weights.take(), out=out)
        elif self.node.target is aten.mm.default:
            calls["blas"] = lambda: aten.mm.out(x, weights.take(), out=out)
        else:
            calls["blas"] = lambda: aten.bmm.out(x, weights.take(), out=out)
        if self.for_onednn():
            calls["onednn"] = lambda: LINEAR(x, weights.take().t(), bias, "none", [], "")
        if own is not None:
            a, b = (_filled(s, v.meta[3]) for s, v in self._own_samples(own))
            plan = _plan(a, b, bias if own.args[2] is not None else None, own.args[3])
            if base_of(own.args[0]) is base_of(self.w):  # transposed
                own_weights = _Turns(a, far)
                calls["own"] = lambda: plan(own_weights.take(), b)
            else:
                own_weights = _Turns(b, far)
                calls["own"] = lambda: plan(a, own_weights.take())
            if pack is not None:
                packed = _Turns(_filled((_C._packed_size(*pack.sizes),), (1,)), far)
                small = _plan(a, packed.take(), bias if own.args[2] is not None else None, own.args[3], pack.sizes[1])
                content, copy = (bytes(bytearray(pack.compared_bytes)) for _ in range(2))
                calls["packed"] = lambda: content == copy and small(a, packed.take())
        preferred = own is not None and (chained or self._needs_copy(own))
        return dict(sorted(calls.items(), key=lambda row: row[0] != "own")) if preferred else calls

    def _needs_copy(self, own: Node) -> bool:
        """Does another product than the own one need its operand or its result copied?"""
        return len(own.val.meta[2]) > len(self.node.val.meta[2])

    def _own_sample(self, own: Node) -> list[int]:
        """Sizes of the own product's result that are measured: where it is one matrix for the others, all of it."""
        sizes = own.val.meta[2]
        return _sample(sizes) if len(self.node.val.meta[2]) > 2 else list(sizes)

    def _own_samples(self, own: Node) -> list[tuple[list[int], Val]]:
        *batch, rows, columns = self._own_sample(own)
        return [([*batch, rows, self.k], own.args[0]), ([*batch, self.k, columns], own.args[1])]

    def name(self, own: Node | None, chained: bool, pack: Pack | None) -> str:
        """Names the choice."""
        many = self._own_sample(own) if own is not None else _sample(self.node.val.meta[2])
        text = f"{math.prod(many[:-2])}*{many[-2]}x{self.k}x{self.n}{' chained' if chained else ''}"
        for val in (self.x, self.w):
            text += " " + _text(*val.meta[2:4])
        if own is not None:
            text += " own " + " ".join(_text(*val.meta[2:4]) for val in own.args[:2]) + f" {own.args[3]}"
        far = " far" if base_of(self.w).node.target is None else ""
        frozen = f" frozen {pack.compared_bytes}" if pack is not None else ""
        return f"product float32 {text}{' bias' if self.bias is not None else ''}{far}{frozen}"


LINEAR = torch.ops.mkldnn._linear_pointwise.default
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


# -- The pass ---------------------------------------------------------------------------------------------------------


def rewrite(graph: Graph) -> None:
    """Choose for every attention and every matrix product, in place."""
    from magpy import attention  # made of products

    attention.rewrite(graph)
    users, outputs = users_of(graph), {v for v in graph.outputs if v is not None}
    chained = _chained(graph)
    new: dict[Val, Val] = {}
    gone: set[Node] = set()
    kept: list[Node] = []
    for node in graph.nodes:
        if node in gone:
            continue
        node.args = map_vals(lambda v: new.get(v, v), node.args)
        made = None
        if node.target in PRODUCTS or node.target is aten._grouped_mm.default:
            build = Builder()
            try:
                if node.target in PRODUCTS:
                    made = _choose(node, build, users, outputs, node in chained, graph.packing)
                else:
                    made = _choose_grouped(node, build), []
            except _Keep:
                made = None
        if made is None:
            kept.append(node)
            continue
        out, chain = made
        kept += build.nodes
        new[chain[-1].val if chain else node.val] = out
        gone.update(chain)
    graph.nodes = kept
    graph.outputs = [new.get(v, v) if v is not None else None for v in graph.outputs]


def _chained(graph: Graph) -> set[Node]:
    """Products whose rows become the left side of another product (attention), and those others."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.target is not aten.bmm.default:
            continue
        todo = [node.args[0].node]
        seen: set[Node] = set()
        while todo and len(seen) < MAX_BETWEEN:
            before = todo.pop()
            if before in seen or before.target is None:
                continue
            seen.add(before)
            if before.target is aten.bmm.default:
                if before.val.meta[2] == node.args[0].meta[2]:
                    found |= {before, node}
                continue
            todo += [v.node for v in each_val(before.args)]
    return found


def _choose_grouped(node: Node, build: Builder) -> Val:
    """Groups of rows, each times its own matrix, by the own product. Raises _Keep if torch's is faster."""
    a, b, ends, *rest = node.args
    if ends is None or any(arg is not None for arg in rest) or not plain(a) or not plain(b) or not plain(node.val):
        raise _Keep
    if (len(a.meta[2]), len(b.meta[2])) != (2, 3) or ends.meta[0] is not torch.int32 or ends.meta[3] != (1,):
        raise _Keep
    if list(node.val.meta[3]) != contiguous(node.val.meta[2]) or any(s < 0 for s in (*a.meta[3], *b.meta[3])):
        raise _Keep

    def candidates() -> dict[str, Callable[[], Any]]:
        """Groups of equal sizes."""
        x, w = (_filled(*v.meta[2:4]) for v in (a, b))
        rows, groups = x.shape[0], w.shape[0]
        places = torch.tensor([rows * (g + 1) // groups for g in range(groups)], dtype=torch.int32, device="cpu")
        graph = Graph()
        values = [graph.add_placeholder(meta_of(t)) for t in (x, w, places)]
        own = Node(GROUPED, tuple(values))
        own.vals = [Val(own, 0, (*node.val.meta[:4], 0))]
        graph.nodes.append(own)
        graph.outputs.append(own.val)
        plan = _C.compile_graph(*describe(graph), fuse=False)
        return {"operator": lambda: aten._grouped_mm(x, w, places), "own": lambda: plan((x, w, places))}

    text = " ".join(f"{'x'.join(map(str, v.meta[2]))} {_text(*v.meta[2:4])}" for v in (a, b))
    if choices.choose(f"grouped product float32 {text}", candidates) != "own":
        raise _Keep
    made = Node(GROUPED, (a, b, ends))
    made.vals = [Val(made, 0, (*node.val.meta[:4], 0))]
    build.nodes.append(made)
    return made.val


def _choose(
    node: Node, build: Builder, users: Users, outputs: set[Val], chained: bool, packing: Packing | None
) -> tuple[Val, list[Node]] | None:
    product = _Product(node)
    own: tuple[Val, list[Node]] | None = None
    trial = Builder()
    try:
        own = product.own(trial, users, outputs)
    except _Keep:
        own = None
    made = next((n for n in trial.nodes if n.target is MATMUL), None)
    pack = packing.of(made.args[1]) if packing is not None and made is not None else None
    name = choices.choose(product.name(made, chained, pack), lambda: product.candidates(made, chained, pack))
    if name in ("own", "packed") and own is not None:
        if name == "packed" and packing is not None and made is not None and pack is not None:
            packing.add(made, pack)
        build.nodes = trial.nodes
        return own
    if name == "onednn":
        return product.onednn(build), []
    return None
