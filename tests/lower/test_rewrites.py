"""Operators spelled as views and pointwise operators give what torch's own give, strides and NaN included."""

import pytest
import torch
import torch.nn.functional as F

import magpy

PLAIN = torch.randn(2, 5, 13, 17, generator=torch.Generator().manual_seed(0))
PLAIN[0, 0, 3, 3] = float("nan")
INF = float("inf")
LAST = PLAIN.to(memory_format=torch.channels_last)


def chain(x):
    wide = [F.interpolate(t, scale_factor=2) for t in (F.elu(x), x)]
    return F.pad(torch.cat(wide, 1), (1, 1, 1, 1), mode="reflect")


POOLS = [
    (3, 2, 1, False),
    (2, 2, 0, False),
    (3, 1, 1, False),
    (3, 2, 1, True),
    (2, 3, 0, True),
    ((3, 2), (2, 1), (1, 0), False),
]
PROGRAMS = [
    *[(f"max_pool2d{p}", lambda x, p=p: F.max_pool2d(x, *p[:3], 1, p[3]), "max_pool2d") for p in POOLS],
    *[(f"avg_pool2d{p}", lambda x, p=p: F.avg_pool2d(x, *p[:3], p[3]), "avg_pool2d") for p in POOLS],
    *[(f"avg_pool2d{p} of what is inside", lambda x, p=p: F.avg_pool2d(x, *p, False), "avg_pool2d") for p in POOLS],
    ("avg_pool2d of whole windows", lambda x: F.avg_pool2d(x[..., :12, :16], 2, 2, 0, True, False), "avg_pool2d"),
    ("avg_pool2d without padding's count", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "avg_pool2d"),
    ("avg_pool2d of doubles", lambda x: F.avg_pool2d(x.double(), 3, 2, 1), None),
    ("avg_pool2d of halves", lambda x: F.avg_pool2d(x.bfloat16(), 3, 2, 1, True), "avg_pool2d"),
    ("avg_pool2d of halves, whole windows", lambda x: F.avg_pool2d(x.half(), 2), "avg_pool2d"),
    ("avg_pool1d", lambda x: F.avg_pool1d(x[0], 3, 2, 1, True, False), "avg_pool"),
    ("avg_pool2d divisor", lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), "avg_pool2d"),
    ("max_pool2d dilated", lambda x: F.max_pool2d(x, 3, 2, 1, dilation=2), None),
    *[
        (f"max_pool2d{p} with places", lambda x, p=p: F.max_pool2d(x, *p[:3], 1, p[3], True), "max_pool2d")
        for p in POOLS
    ],
    ("places of equal maxima", lambda x: F.max_pool2d(x.round(), 3, 2, 1, return_indices=True), "max_pool2d"),
    ("places in nothing", lambda x: F.max_pool2d(x * 0 - INF, 3, 2, 1, return_indices=True), "max_pool2d"),
    ("places of halves", lambda x: F.max_pool2d(x.bfloat16(), 3, 2, 1, return_indices=True), None),
    ("places, dilated", lambda x: F.max_pool2d(x, 3, 2, 1, 2, return_indices=True), None),
    ("max.dim", lambda x: x.max(-1).values, "max"),
    ("min.dim", lambda x: x.min(1, keepdim=True).values, "min"),
    ("max.dim indices", lambda x: x.max(-1), None),
    ("nearest by 2", lambda x: F.interpolate(x, scale_factor=2), "upsample"),
    ("nearest by size", lambda x: F.interpolate(x, size=(26, 68)), "upsample"),
    ("nearest by 3", lambda x: F.interpolate(x, scale_factor=3), "upsample"),
    ("nearest by 2.5", lambda x: F.interpolate(x, scale_factor=2.5), "upsample"),
    ("nearest down", lambda x: F.interpolate(x, scale_factor=0.37), "upsample"),
    ("nearest of sizes", lambda x: F.interpolate(x, size=(7, 91)), "upsample"),
    ("nearest of one dim", lambda x: F.interpolate(x[0], size=29), "upsample"),
    ("nearest of three dims", lambda x: F.interpolate(x[:, None], size=(7, 9, 30)), "upsample"),
    *[
        (f"linear {size} {a}", lambda x, s=size, a=a: F.interpolate(x, s, mode="bilinear", align_corners=a), "upsample")
        for a in (False, True)
        for size in ((26, 34), (13, 40), (1, 5), (5, 1), (7, 31), (13, 17))
    ],
    ("linear by 2.5", lambda x: F.interpolate(x, scale_factor=2.5, mode="bilinear"), "upsample"),
    ("linear by 0.4", lambda x: F.interpolate(x, scale_factor=(0.4, 1.9), mode="bilinear"), "upsample"),
    ("linear doubles", lambda x: F.interpolate(x.double(), scale_factor=1.7, mode="bilinear"), "upsample"),
    ("linear halves", lambda x: F.interpolate(x.bfloat16(), scale_factor=2, mode="bilinear"), "upsample"),
    ("linear of one dim", lambda x: F.interpolate(x[0], size=29, mode="linear"), "upsample"),
    ("linear of three dims", lambda x: F.interpolate(x[:, None], size=(7, 9, 30), mode="trilinear"), "upsample"),
    ("linear of computed", lambda x: F.interpolate(F.elu(x), size=(7, 30), mode="bilinear").relu(), "upsample"),
    ("adaptive mean", lambda x: F.adaptive_avg_pool2d(x[..., :12, :15], (4, 5)), "adaptive"),
    ("adaptive mean of uneven windows", lambda x: F.adaptive_avg_pool2d(x, (4, 5)), None),
    ("adaptive max", lambda x: F.adaptive_max_pool2d(x[..., :12, :15], (4, 5)), "adaptive"),
    ("adaptive max of all", lambda x: F.adaptive_max_pool2d(x, 1).flatten(1), "adaptive"),
    ("max_pool1d", lambda x: F.max_pool1d(x[0], 3, 2) + 1, "max_pool"),
    ("reflection", lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"), "reflection_pad"),
    ("replication", lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"), "replication_pad"),
    ("wide reflection", lambda x: F.pad(x, (5, 4, 3, 2), mode="reflect"), None),
    ("repeat", lambda x: x.repeat(2, 1, 3, 2) * 2, "repeat"),
    ("repeat in front", lambda x: x.repeat(3, 1, 2, 1, 1), "repeat"),
    ("repeat of a view", lambda x: x.transpose(1, 3).repeat(1, 2, 2, 1), "repeat"),
    ("repeat of a number", lambda x: x.max().repeat(3) + x.nan_to_num().sum(0).repeat(0, 1, 1).sum(), "aten.repeat_"),
    ("chain", lambda x: chain(x), "pad"),
]  # fmt: skip


@pytest.mark.parametrize("layout", [PLAIN, LAST], ids=["plain", "channels_last"])
@pytest.mark.parametrize("name, program, gone", PROGRAMS, ids=[row[0] for row in PROGRAMS])
def test_rewritten_operators_equal_eager(name, program, gone, layout):
    compiled = torch.compile(program, backend="magpy", fullgraph=True)
    with torch.no_grad():
        expected = program(layout)
        results = [compiled(layout) for _ in range(2)][-1]
    pairs = zip(expected, results, strict=True) if isinstance(expected, tuple) else [(expected, results)]
    for want, got in pairs:
        torch.testing.assert_close(got, want, equal_nan=True)
        assert got.stride() == want.stride()
    if gone is not None and layout is PLAIN:
        (trace,) = magpy.explain(compiled).traces
        assert not [step for step in trace.steps if gone in step[1] and step[0] != "kernel"]


def test_inputs_of_three_dims_are_pooled():
    compiled = torch.compile(lambda x: F.max_pool2d(x, 3, 2, 1), backend="magpy", fullgraph=True)
    assert torch.equal(compiled(PLAIN[1]), F.max_pool2d(PLAIN[1], 3, 2, 1))
    assert torch.equal(compiled(PLAIN[1]), F.max_pool2d(PLAIN[1], 3, 2, 1))
