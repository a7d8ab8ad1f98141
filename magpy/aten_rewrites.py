"""Passes that spell operators as views, pointwise operators and concatenations, where torch's own operator costs more
than a kernel: pooling, resampling, padding by reflection or repetition.

They run on the finished functional graph, where it is known which results nobody wants (the indices of a maximum
pool). The new nodes give the same numbers, in tensors of the same strides; where that cannot be said, the operator
stays.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from magpy import _C, aten_resampling, choices, own_kernels, products
from magpy.aten_builder import Builder, Keep, stand_in
from magpy.aten_graph import Graph, Node, Val, call, describe, each_val, is_view, map_vals

aten = torch.ops.aten

MAX_WINDOW = 25  # taps of a pool that are read one by one
MAX_ROWS = 16  # of a convolution that is made a product
MAX_PAD = 3  # rows or columns on a side: each is a piece of a concatenation


# -- Rules ------------------------------------------------------------------------------------------------------------


def _twice(values: list[int], default: list[int] | None = None) -> list[int]:
    values = list(values) or list(default or [])
    return values * 2 if len(values) == 1 else values


def _taps(
    build: Builder, x: Val, kernel: list[int], stride: list[int], out: tuple[int, ...], sort: bool = False
) -> list[Val]:
    """The elements at each place of the window, as views of the (padded) input. sort: of its columns sorted, which pays
    where `x` is there already; in one kernel with what computes it, that would be computed element by element."""
    if kernel[0] * kernel[1] > MAX_WINDOW:
        raise Keep
    h, w = len(out) - 2, len(out) - 1
    columns = _sorted_columns(build, x, stride[1]) if sort and kernel[1] > stride[1] > 1 else []
    views = []
    for i in range(kernel[0]):
        rows = [build.cut(c, h, i, i + stride[0] * (out[h] - 1) + 1, stride[0]) for c in columns or [x]]
        for j in range(kernel[1]):
            if columns:
                views.append(build.cut(rows[j % stride[1]], w, j // stride[1], j // stride[1] + out[w]))
            else:
                views.append(build.cut(rows[0], w, j, j + stride[1] * (out[w] - 1) + 1, stride[1]))
    return views


def _sorted_columns(build: Builder, x: Val, step: int) -> list[Val]:
    """x[..., k::step] for each k < step, each in one piece: windows that overlap read them several times. Empty if `x`
    is not contiguous."""
    *rest, columns = x.meta[2]
    if x.meta[3] != tuple(torch.empty(x.meta[2], device="meta").stride()):
        return []
    whole = -(-columns // step) * step
    if whole > columns:
        x = build(aten.constant_pad_nd.default, x, [0, whole - columns], 0.0)
    n = len(rest)
    x = build(aten.view.default, x, [*rest, whole // step, step])
    x = build(aten.permute.default, x, [*range(n), n + 1, n])
    x = build(aten.clone.default, x, memory_format=torch.contiguous_format)
    return [build(aten.select.int, x, n, k) for k in range(step)]


def _padded(
    build: Builder, x: Val, padding: list[int], kernel: list[int], stride: list[int], out: tuple[int, ...], fill: float
) -> Val:
    """`x` with `fill` around, as far as windows reach."""
    pads: list[int] = []
    for side in (1, 0):
        n = x.meta[2][side - 2]
        reach = (out[side - 2] - 1) * stride[side] + kernel[side]
        pads += [padding[side], max(0, reach - padding[side] - n)]
    return build(aten.constant_pad_nd.default, x, pads, fill) if any(pads) else x


def _corners(build: Builder, n: int, stride: int, padding: int) -> Val:
    """Where n windows begin along a dim of the input: whole numbers, negative where that is before it."""
    at = build(aten.mul.Tensor, build.iota(n, torch.float32), float(stride))
    return build(aten.sub.Tensor, at, float(padding))


def _max_pool2d(build: Builder, node: Node) -> Val:
    x, kernel, stride, padding, dilation, _ = node.args
    kernel, padding, dilation = _twice(kernel), _twice(padding), _twice(dilation)
    stride = _twice(stride, kernel)
    if dilation != [1, 1] or not x.meta[0].is_floating_point:
        raise Keep
    out = node.val.meta[2]
    x = _padded(build, x, padding, kernel, stride, out, float("-inf"))
    first, *rest = _taps(build, x, kernel, stride, out)
    for tap in rest:
        first = build(aten.maximum.default, first, tap)
    return first if rest else build(aten.clone.default, first)


def _max_pool2d_with_places(build: Builder, node: Node) -> tuple[Val, Val]:
    """Maxima and where they are in the plane of the input: the first of equal ones, the last NaN."""
    x, kernel, stride, padding, dilation, _ = node.args
    kernel, padding, dilation = _twice(kernel), _twice(padding), _twice(dilation)
    stride = _twice(stride, kernel)
    width, plane = x.meta[2][-1], x.meta[2][-2] * x.meta[2][-1]
    if dilation != [1, 1] or x.meta[0] is not torch.float32 or plane >= 2**24 or not own_kernels.usable():
        raise Keep
    if any(pad >= size for pad, size in zip(padding, kernel, strict=True)):
        raise Keep
    out = node.val.meta[2]
    corners = []  # the upper left corners of windows, and how far they are outside
    for side in (0, 1):
        at = _corners(build, out[side - 2], stride[side], padding[side])
        corners.append(build(aten.unsqueeze.default, at, 1) if side == 0 else at)
    cut = [build(aten.clamp_min.default, build(aten.neg.default, corner), 0.0) for corner in corners]
    # A window of nothing but -inf gives its first element. Distances from the corner are whole and small: floats.
    far = build(aten.add.Tensor, build(aten.mul.Tensor, cut[0], float(width)), cut[1])
    most: Any = float("-inf")
    x = _padded(build, x, padding, kernel, stride, out, most)
    for k, tap in enumerate(_taps(build, x, kernel, stride, out, sort=True)):
        more = build(aten.gt.Tensor if k else aten.gt.Scalar, tap, most)
        after = build(aten.logical_or.default, more, build(aten.isnan.default, tap))
        distance = float(k // kernel[1] * width + k % kernel[1])
        far = build(aten.where.ScalarSelf, after, distance, far)
        most = build(aten.where.self if k else aten.where.ScalarOther, after, tap, most)
    row = build(aten.mul.Tensor, build(aten._to_copy.default, corners[0], dtype=torch.int64), width)
    corner = build(aten.add.Tensor, row, build(aten._to_copy.default, corners[1], dtype=torch.int64))
    place = build(aten.add.Tensor, build(aten._to_copy.default, far, dtype=torch.int64), corner)
    return most, place


def _avg_pool2d(build: Builder, node: Node) -> Val:
    x, kernel, stride, padding, ceil_mode, count_pad, divisor = node.args
    kernel, padding = _twice(kernel), _twice(padding)
    stride = _twice(stride, kernel)
    out = node.val.meta[2]
    sizes = zip(out[-2:], kernel, stride, padding, x.meta[2][-2:], strict=True)
    inside = all((o - 1) * s + k <= n + 2 * p for o, k, s, p, n in sizes)  # no window is cut
    cut = divisor is None and ((ceil_mode and not inside) or (any(padding) and not count_pad))
    dtype = x.meta[0]
    if not dtype.is_floating_point or dtype is torch.float64:
        raise Keep
    if dtype is not torch.float32:
        x = build(aten._to_copy.default, x, dtype=torch.float32)
    padded = _padded(build, x, padding, kernel, stride, out, 0.0)
    total, *rest = _taps(build, padded, kernel, stride, out)
    for tap in rest:
        total = build(aten.add.Tensor, total, tap)
    count: Any = divisor or kernel[0] * kernel[1]
    if cut:
        sides = []  # elements in a window, as far as they count
        for side in (0, 1):
            corner = _corners(build, out[side - 2], stride[side], padding[side])
            around = padding[side] if count_pad else 0
            end = build(aten.add.Tensor, corner, float(kernel[side]))
            end = build(aten.clamp_max.default, end, float(x.meta[2][side - 2] + around))
            sides.append(build(aten.sub.Tensor, end, build(aten.clamp_min.default, corner, float(-around))))
        count = build(aten.mul.Tensor, build(aten.unsqueeze.default, sides[0], 1), sides[1])
    mean = build(aten.div.Tensor, total, count)
    return mean if dtype is torch.float32 else build(aten._to_copy.default, mean, dtype=dtype)


def _even_windows(node: Node) -> list[int]:
    """The window of an adaptive pool whose windows are all alike and side by side."""
    x, size = node.args
    kernel = [n // o for n, o in zip(x.meta[2][-2:], size, strict=True)]
    if any(k * o != n for k, o, n in zip(kernel, size, x.meta[2][-2:], strict=True)):
        raise Keep
    return kernel


def _adaptive_avg_pool2d(build: Builder, node: Node) -> Val:
    kernel = _even_windows(node)
    if node.args[0].meta[0] is not torch.float32 or kernel[0] * kernel[1] > MAX_WINDOW:
        raise Keep
    pool = Node(aten.avg_pool2d.default, (node.args[0], kernel, kernel, [0, 0], False, True, None))
    pool.vals = node.vals
    return _avg_pool2d(build, pool)


def _adaptive_max_pool2d(build: Builder, node: Node) -> Val:
    kernel = _even_windows(node)
    if list(node.args[1]) == [1, 1]:
        return build(aten.amax.default, node.args[0], [-2, -1], True)
    pool = Node(aten.max_pool2d_with_indices.default, (node.args[0], kernel, kernel, [0, 0], [1, 1], False))
    pool.vals = node.vals
    return _max_pool2d(build, pool)


def _pad_by_pieces(build: Builder, node: Node, before: Callable, after: Callable) -> Val:
    x, pads = node.args
    if max(pads) > MAX_PAD or min(pads) < 0:
        raise Keep
    for k in range(0, len(pads), 2):
        dim = len(x.meta[2]) - 1 - k // 2
        n = x.meta[2][dim]
        low = [build.cut(x, dim, i, i + 1) for i in map(before, range(pads[k], 0, -1))]
        high = [build.cut(x, dim, i, i + 1) for i in (after(n, j) for j in range(1, pads[k + 1] + 1))]
        if low or high:
            x = build(aten.cat.default, [*low, x, *high], dim)
    return x


def _reflection_pad(build: Builder, node: Node) -> Val:
    return _pad_by_pieces(build, node, lambda i: i, lambda n, j: n - 1 - j)


def _replication_pad(build: Builder, node: Node) -> Val:
    return _pad_by_pieces(build, node, lambda i: 0, lambda n, j: n - 1)


def _max_dim(build: Builder, node: Node) -> Val:
    """The greatest elements without their places."""
    x, dim, keepdim = node.args
    return build(aten.amax.default if node.target is aten.max.dim else aten.amin.default, x, [dim], keepdim)


# -- Convolutions -----------------------------------------------------------------------------------------------------


def _forms(node: Node) -> list[str]:
    """Kernels of our own that may compute this convolution."""
    return [*(["product"] if _is_product(node) else []), *_library_forms(node)]


def _is_product(node: Node) -> bool:
    """Is it a product with a matrix of weights, of patches that do not overlap or of so few rows that to copy them
    costs nothing, or are there groups of channels, whose products the library does not have?"""
    x, w, _, stride, padding, dilation, transposed, _, groups = node.args
    taps = w.meta[2][2:]
    if transposed or any(padding) or x.meta[0] is not torch.float32 or list(stride) != list(taps):
        return False
    if math.prod(taps) > 1:  # patches
        return groups == 1 and all(n == 1 for n in dilation) and _row_major(w.meta)
    if groups == 1:
        return math.prod(x.meta[2]) // x.meta[2][1] <= MAX_ROWS
    return groups < x.meta[2][1] and _row_major(w.meta)


def _library_forms(node: Node) -> list[str]:
    """Forms of the library of convolutions (csrc/ir/conv.h)."""
    x, w, _, stride, padding, dilation, transposed, output_padding, groups = node.args
    taps, one = w.meta[2][2:], [1, 1]
    if x.meta[0] is not torch.float32 or not own_kernels.convolutions_usable():
        return []
    if groups != 1:
        return ["depthwise"] if not transposed and groups == x.meta[2][1] == w.meta[2][0] else []
    plain = stride == dilation == one
    if not transposed:
        return ["direct", "winograd", "winograd2"] if plain and taps == (3, 3) else ["direct"]
    if taps == (2, 2) and stride == [2, 2] or taps == (1, 1) and plain:
        return ["direct"]
    return ["winograd", "winograd2"] if taps == (3, 3) and plain and not any(output_padding) else []


def _convolution(build: Builder, node: Node) -> Val:
    """The same convolution by a kernel of our own on the plain weight, if that is faster than oneDNN."""
    form = _best_form(node, lambda arguments: call(node.target, arguments))
    return _in_form(build, node, node.args[:2], form)


def _best_form(node: Node, operator: Callable[[list[Any]], Any], of: str = "convolution") -> str:
    """The fastest form for a convolution. `operator` does the same with tensors for the arguments. Raises Keep if that
    is faster."""
    forms = _forms(node)
    key = f"{of} float32 {_shape_text(node)} {'/'.join(forms)}"
    form = choices.choose(key, lambda: _ways(node, forms, operator)) if forms else None
    if form not in forms:
        raise Keep
    return form


def _row_major(meta: tuple, start: int = 0) -> bool:
    """Do the dims from `start` on lie in row-major order without gaps?"""
    sizes, strides = meta[2][start:], meta[3][start:]
    return all(n == 1 or got == want for n, got, want in zip(sizes, strides, _strides(sizes), strict=True))


def _strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))


def _in_form(build: Builder, node: Node, operands: Sequence[Val], form: str) -> Val:
    return (_by_product if form == "product" else _by_kernel)(build, node, operands, form)


def _by_product(build: Builder, node: Node, operands: Sequence[Val], form: str) -> Val:
    """The convolution of `operands` as [positions, channels in of a patch] @ [channels in of a patch, channels out], or
    for each image and each group of channels as [channels out, channels in] @ [channels in, positions]."""
    x, w = operands
    n, channels = x.meta[2][:2]
    if node.args[-1] > 1:
        return _by_products(build, node, operands)
    taps, space = w.meta[2][2:], node.val.meta[2][2:]
    dims, row = len(space), channels * math.prod(taps)
    for d in range(dims):
        if x.meta[2][d + 2] != space[d] * taps[d]:  # what is left beside the last patch
            x = build(aten.slice.Tensor, x, d + 2, 0, space[d] * taps[d])
    if math.prod(taps) > 1:
        x = build(
            aten.view.default, x, [n, channels, *(size for pair in zip(space, taps, strict=True) for size in pair)]
        )
        places = [*range(2, 2 * dims + 2, 2), 1, *range(3, 2 * dims + 2, 2)]
    else:
        places = [*range(2, dims + 2), 1]
    rows = build(aten.permute.default, x, [0, *places])
    if math.prod(space) > 1 or math.prod(taps) > 1:
        rows = build(aten.clone.default, rows, memory_format=torch.contiguous_format)
    rows = build(aten.view.default, rows, [n * math.prod(space), row])
    weight = build(aten.permute.default, build(aten.view.default, w, [w.meta[2][0], row]), [1, 0])
    bias = node.args[2]
    made = build(aten.mm.default, rows, weight) if bias is None else build(aten.addmm.default, bias, rows, weight)
    made = build(aten.view.default, made, [n, *space, w.meta[2][0]])
    made = build(aten.permute.default, made, [0, dims + 1, *range(1, dims + 1)])
    return made if _lies_alike(made.meta, node.val.meta) else _laid(build, made, node.val.meta)


def _by_products(build: Builder, node: Node, operands: Sequence[Val]) -> Val:
    x, w = operands
    n, groups, outs, ins = x.meta[2][0], node.args[-1], w.meta[2][0], w.meta[2][1]
    weight = build(aten.view.default, w, [1, groups, outs // groups, ins])
    if not _row_major(x.meta):  # products read through copies, these and those of weights
        x = build(aten.clone.default, x, memory_format=torch.contiguous_format)
    if n > 1:
        weight = build(aten.expand.default, weight, [n, groups, outs // groups, ins])
        weight = build(aten.clone.default, weight, memory_format=torch.contiguous_format)
    weight = build(aten.view.default, weight, [n * groups, outs // groups, ins])
    made = build(aten.bmm.default, weight, build(aten.view.default, x, [n * groups, ins, math.prod(x.meta[2][2:])]))
    made = build(aten.view.default, made, list(node.val.meta[2]))
    if node.args[2] is not None:
        made = build(aten.add.Tensor, made, build(aten.view.default, node.args[2], [outs, *[1] * (len(x.meta[2]) - 2)]))
    return made if _lies_alike(made.meta, node.val.meta) else _laid(build, made, node.val.meta)


def _laid(build: Builder, made: Val, meta: tuple) -> Val:
    """Copied, to lie as `meta` says: rows of columns or, for images, channels last."""
    plain = _row_major(meta)
    if not plain and len(meta[2]) != 4:
        raise Keep
    return build(aten.clone.default, made, memory_format=torch.contiguous_format if plain else torch.channels_last)


def _by_kernel(build: Builder, node: Node, operands: Sequence[Val], form: str) -> Val:
    """The convolution of `operands` by a kernel, between copies where these or the result have channels last."""
    x, w = (
        v if _row_major(v.meta, start) else build(aten.clone.default, v, memory_format=torch.contiguous_format)
        for v, start in zip(operands, (2, 0), strict=True)
    )
    made = Node(node.target, (x, w, *node.args[2:]))
    made.form = form
    wanted = node.val.meta
    plain = _row_major(wanted)
    made.vals = [Val(made, 0, wanted if plain else (*wanted[:3], _strides(wanted[2]), 0))]
    build.nodes.append(made)
    return made.val if plain else _laid(build, made.val, wanted)


def _input_gradient(node: Node) -> list[Node] | None:
    """The backward pass of a convolution with its first result by a kernel of our own, if that is faster: it is a
    transposed convolution of the gradient."""
    gradient, x, w, biases, stride, padding, dilation, transposed, output_padding, groups, mask = node.args
    given = node.vals[0]
    if not mask[0] or given is None or transposed or given.meta[1].type != "cpu" or 0 in given.meta[2]:
        return None
    alone = Node(aten.convolution.default, (gradient, w, None, stride, padding, dilation, True, output_padding, groups))
    alone.vals = [Val(alone, 0, given.meta)]

    def operator(arguments: list[Any]) -> Any:
        like = stand_in(x, "cpu")
        rest = (biases, stride, padding, dilation, False, output_padding, groups, [True, False, False])
        return call(node.target, [arguments[0], like, arguments[1], *rest])

    build = Builder()
    try:
        made = _by_kernel(build, alone, (gradient, w), _best_form(alone, operator, "gradient of convolution"))
    except Keep:
        return None
    if made.meta[3] != given.meta[3]:
        return None
    parts = build.nodes
    if any(mask[1:]):
        others = Node(node.target, (*node.args[:-1], [False, *mask[1:]]))
        others.vals = [None, *(None if v is None else Val(others, v.position, v.meta) for v in node.vals[1:])]
        parts = [others, *parts]
    return parts


def _shape_text(node: Node) -> str:
    x, w, _, stride, padding, dilation, transposed, _, groups = node.args
    sizes = " ".join("x".join(map(str, v.meta[2])) for v in (x, w))
    orders = [str(v.meta[3]) for v, start in ((x, 2), (w, 0), (node.val, 0)) if not _row_major(v.meta, start)]
    rest = f"{' transposed' if transposed else ''} groups={groups} {' '.join(orders)}".rstrip()
    return f"{sizes} {stride} {padding} {dilation}{rest}"


def _ways(node: Node, forms: list[str], operator: Callable[[list[Any]], Any]) -> dict[str, Callable]:
    """The convolution by the kernels of these forms and by `operator`, as calls that can be timed."""
    ways: dict[str, Callable] = {}
    tensors = [stand_in(v, "cpu").fill_(0.5) for v in node.args[:2]]
    for form in forms:
        graph = Graph()
        operands = [graph.add_placeholder((*v.meta[:4], 0)) for v in node.args[:2]]
        alone = Node(node.target, (*operands, None, *node.args[3:]))
        alone.vals = [Val(alone, 0, node.val.meta)]
        build = Builder()
        with contextlib.suppress(RuntimeError, Keep):
            graph.outputs = [_in_form(build, alone, operands, form)]
            graph.nodes = build.nodes
            if form == "product":
                products.rewrite(graph)
            plan = _C.compile_graph(*describe(graph))
            if form == "product" or "kernel" in {step[0] for step in plan.steps} <= {"kernel", "alloc", "release"}:
                ways[form] = functools.partial(_seconds, plan, tensors)
    arguments = [*tensors, None, *node.args[3:]]
    return {**ways, "operator": lambda: operator(arguments)}


def _seconds(plan: Any, tensors: list[torch.Tensor]) -> float:
    """A run without the allocation of its result, which in a graph is mostly in the arena."""
    return sum(row[3] for row in plan.profile(lambda: plan(tensors), 1) if row[0] != "alloc")


# What is rewritten: the first result of these operators, where the others are not used,
RULES: dict[Any, Callable[[Builder, Node], Val]] = {
    aten.max_pool2d_with_indices.default: _max_pool2d,
    aten.avg_pool2d.default: _avg_pool2d,
    aten.max.dim: _max_dim,
    aten.min.dim: _max_dim,
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool2d,
    aten.reflection_pad1d.default: _reflection_pad,
    aten.reflection_pad2d.default: _reflection_pad,
    aten.replication_pad1d.default: _replication_pad,
    aten.replication_pad2d.default: _replication_pad,
    aten.convolution.default: _convolution,
    **aten_resampling.RULES,
}
# and all results of these.
RULES_FOR_ALL: dict[Any, Callable[[Builder, Node], tuple[Val, ...]]] = {
    aten.max_pool2d_with_indices.default: _max_pool2d_with_places,
}


# -- The pass ---------------------------------------------------------------------------------------------------------


def rewrite(graph: Graph) -> None:
    """Apply the rules, in place."""
    outputs = {v for v in graph.outputs if v is not None}
    wanted = {v for node in graph.nodes for v in each_val(node.args)} | outputs
    for node in reversed(graph.nodes):  # whose views are outputs
        if is_view(node.target) and not outputs.isdisjoint(node.vals):
            outputs.update(each_val(node.args))
    new: dict[Val, Val] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node.args = map_vals(lambda v: new.get(v, v), node.args)
        alone = not wanted.intersection(node.vals[1:])
        rule: Callable[[Builder, Node], Any] | None = (RULES if alone else RULES_FOR_ALL).get(node.target)
        made = _apply(rule, node, alone, outputs) if rule else None
        if made is None:
            kept.append(node)
            continue
        nodes, vals = made
        kept += nodes
        new.update(vals)
    graph.nodes = kept
    graph.outputs = [new.get(v, v) if v is not None else None for v in graph.outputs]


def _lies_alike(a: tuple, b: tuple) -> bool:
    """The same sizes, offset and strides; those of dims of one element do not matter."""
    return a[2] == b[2] and a[4] == b[4] and all(s == t for n, s, t in zip(a[2], a[3], b[3], strict=True) if n != 1)


def _apply(
    rule: Callable[[Builder, Node], Any], node: Node, alone: bool, outputs: set[Val]
) -> tuple[list[Node], dict[Val, Val]] | None:
    """The new nodes and what stands for which result, or None. Who sees an output sees the strides of dims of one
    element, too."""
    if node.val.meta[1].type != "cpu" or 0 in node.val.meta[2]:
        return None
    build = Builder()
    try:
        outs = rule(build, node)
    except Keep:
        return None
    outs = (outs,) if alone else outs
    made = {new.node for new in outs}
    if not build.nodes or not made.issubset(build.nodes):
        return None
    vals = {}
    for old, new in zip(node.vals, outs, strict=False):
        if old is None:
            continue
        if new.meta[0] != old.meta[0] or not _lies_alike(new.meta, old.meta):
            return None
        if old in outputs and new.meta[3] != old.meta[3]:
            new = build(aten.as_strided.default, new, *map(list, old.meta[2:4]), old.meta[4])
        vals[old] = new
    return build.nodes, vals
