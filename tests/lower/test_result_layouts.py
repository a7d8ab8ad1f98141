"""A result's strides are eager's, also where fake tensors tell others: programs see them by stride() and view()."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

import magpy
from magpy import choices

ROOT = Path(__file__).parents[2]
INPUTS = {
    "contiguous": lambda: torch.randn(2, 4, 4, 4),
    "channels last": lambda: torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(4, 2, 4, 4).transpose(0, 1).transpose(2, 3),
    "one channel": lambda: torch.randn(2, 1, 4, 4),
    "one image": lambda: torch.randn(1, 4, 4, 4).to(memory_format=torch.channels_last),
    "one pixel": lambda: torch.randn(2, 4, 1, 1),
}


def blocks_as_channels(x):
    """One block only: a view of `x` with strides of its own where sizes are 1."""
    n, c, h, w = x.shape
    return x.view(n, c, 1, h, 1, w).permute(0, 1, 3, 5, 2, 4).contiguous().view(n, c * h * w, 1, 1)


PROGRAMS = {
    "max_pool1d of the channels": lambda x: F.max_pool1d(x.flatten(2).permute(0, 2, 1), x.shape[1]),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "conv": lambda x: F.conv2d(x, torch.ones(3, x.shape[1], 1, 1)),
    "conv1d": lambda x: F.conv1d(x.flatten(2), torch.ones(3, x.shape[1], 1)),
    "transposed conv": lambda x: F.conv_transpose2d(x, torch.ones(x.shape[1], 3, 2, 2)),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "einsum": lambda x: torch.einsum("nchw,ncwk->nkhc", x, x.transpose(2, 3)),
    "resize": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "cat": lambda x: torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1),
    "group norm": lambda x: F.group_norm(x, 1),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(x.shape[1]), torch.ones(x.shape[1])),
    "softmax": lambda x: F.softmax(x, 1),
    "max": lambda x: x.max(1)[1],
    "topk": lambda x: x.topk(1, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "pixel shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "unfold": lambda x: F.unfold(x, 1),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "cumsum": lambda x: x.cumsum(1),
    "where": lambda x: torch.where(x > 0, x, x.mean()),
    "outer sum": lambda x: x + x.mean((2, 3), keepdim=True),
    "index": lambda x: x[:, torch.tensor([0, 0])],
    "grid": lambda x: F.grid_sample(x, torch.zeros(x.shape[0], 2, 2, 2), align_corners=False),
    "like": lambda x: torch.zeros_like(x) + torch.ones_like(x, memory_format=torch.contiguous_format),
    "clone": lambda x: x.clone(),
    "part of what the backward pass keeps": lambda x: x.exp()[..., :1],
    "part of it in another order": lambda x: x.tanh().transpose(1, 3)[..., :-1, :],
    "diagonal of it": lambda x: x.sigmoid().diagonal(0, 2, 3),
    "part of a constant": lambda x: torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :1],
    "part of a constant in another order": lambda x: torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]).t()[1:],
    "part of a constant and of its memory": lambda x: torch.tensor([1.0, 2.0, 3.0, 4.0])[1:][::2].expand(2, 2),
    "blocks as channels": lambda x: blocks_as_channels(x.contiguous()),
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_strides_are_those_of_eager(name, training):
    program = PROGRAMS[name]
    compiled = torch.compile(program, backend="magpy")
    for layout, make in INPUTS.items():
        x = make().requires_grad_(training)
        wanted = program(x)
        compiled(x)
        hits = magpy.stats()["hits"]
        got = compiled(x)
        assert magpy.stats()["hits"] == hits + 1, layout
        assert got.stride() == wanted.stride(), layout
        torch.testing.assert_close(got, wanted)


def constants_data(x):
    y = x + 1
    y.data = torch.tensor([1.0, 0, 2]).data
    return y.expand(2, 3), y[:2].view(2, 1).expand(2, 2)


def test_views_of_constants_are_laid_out_as_in_eager():
    compiled, x = torch.compile(constants_data, backend="magpy"), torch.ones(3)
    for _ in range(3):
        got = compiled(x)
        assert [t.stride() for t in got] == [t.stride() for t in constants_data(x)]
        assert [t.tolist() for t in got] == [t.tolist() for t in constants_data(x)]


EMPTY = {
    "given memory": lambda a: torch.add(a, 1, out=a),
    "in place": lambda a: a.mul_(2),
    "pointwise": lambda a: a + 1,
    "of two": lambda a: a * a.clone(),
    "given other memory": lambda a: torch.mul(a, a, out=a.new_empty(0)),
    "reduced": lambda a: a.sum(-1, keepdim=True),
    "softmax": lambda a: a.softmax(-1),
    "cat": lambda a: torch.cat([a, a]),
    "matmul": lambda a: a @ a.transpose(-1, -2),
    "index": lambda a: a[:, torch.zeros(0, dtype=torch.int64)],
    "sorted": lambda a: a.sort(-1)[0],
    "type": lambda a: a.double(),
    "clone": lambda a: a.clone(),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", EMPTY)
def test_results_without_elements(name, grad):
    """Eager's operators lay them out in several ways."""
    inputs = [torch.ones(0, 1), torch.ones(3, 0), torch.ones(2, 3)[:0, :1], torch.ones(2, 0, 4).transpose(1, 2)]
    for x in inputs:

        def program(x):
            a = x.clone() if grad else x[:].clone()
            return EMPTY[name](a), a

        with torch.set_grad_enabled(grad):
            x = x.clone().requires_grad_(grad)
            fast = torch.compile(program, backend="magpy")
            for _ in range(2):
                try:
                    expected = program(x)
                except (RuntimeError, IndexError) as error:
                    with pytest.raises(type(error)):
                        fast(x)
                    continue
                for mine, theirs in zip(fast(x), expected, strict=True):
                    assert (mine.shape, mine.stride()) == (theirs.shape, theirs.stride())
                    assert mine.dtype == theirs.dtype and mine.requires_grad == theirs.requires_grad


def changed_by_item(x):
    y = x[..., :1].clone()
    y[y.argmax()] = 0
    return y


def changed_row(x):
    y = x[..., :1].clone()
    y[0] = 0
    return y, y * 2


def changed_turned(x):
    y = x.t().clone()[:1]
    y[0] = 0
    return y


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("program", [changed_by_item, changed_row, changed_turned], ids=lambda f: f.__name__)
def test_strides_of_sizes_1_after_changes_in_place(program, grad):
    fast = torch.compile(program, backend="magpy")
    for _ in range(3):
        x = torch.randn(1, 3).requires_grad_(grad)
        for a, b in zip(pytree.tree_leaves(fast(x)), pytree.tree_leaves(program(x)), strict=True):
            assert (a.stride(), a.tolist()) == (b.stride(), b.tolist())


SHOWN = {"itself": lambda y: y, "detached": lambda y: y.detach(), "view": lambda y: y[:1], "turned": lambda y: y.mT}
SINGLE = [(1, 1, 6), (1, 6, 1), (6, 1, 1), (1, 1, 2, 3), (1, 6, 1, 1), (6, 1, 1, 1)]


def unlike_eager_without_kernels():
    """Convolutions that are products, whose sizes are 1: where operators are really called, each gives strides of its
    own to such dims."""
    choices.choose = lambda what, make: "product" if "product" in make() else next(iter(make()))
    for sizes in SINGLE:
        for shown, show in SHOWN.items():
            for outs in (1, 2):
                x, w = torch.ones(sizes), torch.ones(outs, sizes[1], *[1] * (len(sizes) - 2))
                conv = F.conv1d if len(sizes) == 3 else F.conv2d
                program = lambda x, w, conv=conv, show=show: show(conv(x, w))  # noqa: E731
                wanted = program(x, w).stride()
                compiled = torch.compile(program, backend="magpy")
                got = [compiled(x, w).stride() for _ in range(3)]
                if set(got) != {wanted}:
                    yield f"{sizes} {outs} {shown}: {got} is not {wanted}"


def test_convolutions_that_are_products_without_kernels(tmp_path):
    code = "from tests.lower.test_result_layouts import *\nprint(*unlike_eager_without_kernels(), sep='\\n')"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "", "CC": "UNSET", "MAGPY_CACHE_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    assert not made.stdout.strip(), made.stdout
