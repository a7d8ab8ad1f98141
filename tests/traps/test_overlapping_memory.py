"""Tensors with several elements at one place (expanded ones, overlapping windows): in-place changes are as in eager."""

import pytest
import torch

from tests.traps.differential import attempt, same_as_eager

pytestmark = pytest.mark.filterwarnings("ignore:Use of .* on expanded tensors is deprecated")

LAYOUTS = {
    "expand": lambda x: x.sum().expand(4),
    "rows": lambda x: x.expand(3, 4),
    "columns": lambda x: x[:, None].expand(4, 3),
    "broadcast_to": lambda x: torch.broadcast_to(x, (2, 4)),
    "transposed": lambda x: x.expand(3, 4).t(),
    "windows": lambda x: x.unfold(0, 3, 1),
    "as_strided": lambda x: x.as_strided((3, 2), (1, 1)),
    "jacrev": lambda x: torch.func.jacrev(lambda q: q.sum())(x),
    "window_steps": lambda x: x.unfold(0, 2, 2),  # these do not share places
}
CHANGES = {
    "mask": lambda a: a.masked_fill_(a > 0, 0.25),
    "setitem_mask": lambda a: a.__setitem__(a > 0, 0.25),
    "index_put": lambda a: a.index_put_((torch.tensor([0, 1]),), torch.tensor(0.5)),
    "fill": lambda a: a.fill_(0.1),
    "zero": lambda a: a.zero_(),
    "first": lambda a: a.__setitem__(0, 0.1),
    "last_of_view": lambda a: a[1:].narrow(0, 0, 1).fill_(0.1),
    "add": lambda a: a.add_(1),
    "copy": lambda a: a.copy_(torch.arange(float(a.numel())).view(a.shape)),
    "detached": lambda a: a.detach()[0].fill_(0.1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("outside", [False, True])
def test_a_change_of_elements_that_share_places_is_as_in_eager(layout, change, outside):
    def scenario(wrap):
        def program(x, given):
            base = x * 3e7  # so that sums of differences are seen
            a = given if outside else LAYOUTS[layout](base)
            CHANGES[change](a)
            return a + 0, base + 0

        compiled = wrap(program)
        for seed in range(3):
            data = torch.randn(4, generator=torch.Generator().manual_seed(seed))
            given = LAYOUTS[layout](data.clone())
            yield attempt(compiled, data, given)
            yield given

    same_as_eager(scenario)


def test_results_of_overlapping_tensors_are_changed_in_graphs():
    def scenario(wrap):
        def program(x):
            for _ in range(8):  # memory is used again and again
                x = x.unfold(0, 3, 1).sum(1)
                x += 1
                x[0] = 2
                x = torch.cat([x, x[:1].expand(2) * 2])
                x[1:3] *= 2
            return x

        compiled = wrap(program)
        for seed in range(3):
            yield compiled(torch.randn(16, generator=torch.Generator().manual_seed(seed)))

    same_as_eager(scenario, hits=2)


def test_other_changes_beside_expanded_tensors_stay_graphs():
    def scenario(wrap):
        def program(x):
            base = x * 2
            mask = base.expand(3, 4)
            base += 1  # the expanded tensor shows it
            other = mask * 2
            other += 1
            first = base[0]
            first += 1
            return mask + other

        compiled = wrap(program)
        for seed in range(3):
            yield compiled(torch.randn(4, generator=torch.Generator().manual_seed(seed)))

    same_as_eager(scenario, hits=2)
