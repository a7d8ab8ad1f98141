"""Conditions that functions of torch ask of their arguments' data before they compute, and go on: torch.istft whether
its windows cover all places, torch.cov whether weights are negative, the loss for Gaussians whether variances are.

Tensors without data do not tell. What a program's call found, which has gone on, is in all likelihood what is usual: no
element is below a bound or not a number. A trace is made for that answer, and each run checks it.
"""

from __future__ import annotations

from typing import Any

import torch

from magpy.aten_graph import Val

aten = torch.ops.aten

#: Operators by which a condition is asked.
LOOKS = frozenset({aten.equal.default, aten._local_scalar_dense.default})

_USUAL: dict[Any, bool] = {
    **dict.fromkeys((aten.lt, aten.le, aten.isnan, aten.isinf), False),
    **dict.fromkeys((aten.gt, aten.ge, aten.ne, aten.isfinite), True),
}
_THROUGH = frozenset({aten.any, aten.all, aten.view, aten.squeeze, aten._to_copy, aten.clone, aten.alias, aten.detach})
_NOT = frozenset({aten.logical_not, aten.bitwise_not})


def usual_answer(condition: Val) -> bool | None:
    """What this value, of one element, is where nothing is wrong. None if that is not known."""
    turned = False
    node = condition.node
    while node.target is not None:
        operator = node.target.overloadpacket
        if operator in _USUAL:
            return _USUAL[operator] is not turned
        if operator in _NOT:
            turned = not turned
        elif operator not in _THROUGH:
            return None
        node = node.args[0].node
    return None


def is_true(val: Val) -> bool:
    """Is it known to be true at all places?"""
    node = val.node
    if node.target is aten.full.default:
        return node.args[1] in (True, 1)
    return node.target in (aten.new_ones.default, aten.ones.default)
