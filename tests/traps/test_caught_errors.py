"""Operators that raise, and programs that catch it: served where the error follows from what guards ask for."""

from __future__ import annotations

import pytest
import torch

from tests.traps.differential import same_as_eager


def reshaped(x, y):
    try:
        flat = x.t().view(-1)
    except RuntimeError:
        flat = x.t().reshape(-1)
    return flat * 2


def multiplied(x, y):
    try:
        return x @ y
    except Exception as error:
        return x @ y.t(), str(error)


def added(x, y):
    try:
        return x + y
    except RuntimeError as error:
        return x * 2, type(error), error


def joined(x, y):
    try:
        return torch.cat([x, y], 1)
    except RuntimeError:
        return torch.cat([x.flatten(), y.flatten()])


def indexed(x, y):
    rows = []
    try:
        for i in range(100):
            rows.append(x[i] * y[0, 0])
    except IndexError:
        pass
    return torch.stack(rows)


def sized(x, y):
    try:
        n = x.size(2)
    except IndexError:
        n = y.size(0)
    return x * n


def of_an_intermediate(x, y):
    z = (x * 2).sum(0)
    try:
        z = z.view(7, 7)
    except RuntimeError as error:
        z = z + len(str(error))
    return z - y.sum()


def raised_again(x, y):
    try:
        try:
            return x.view(-1, 5)
        except RuntimeError as error:
            raise ValueError("no") from error
    except ValueError as error:
        return x + (1 if isinstance(error.__cause__, RuntimeError) else 0)


PROGRAMS = (reshaped, multiplied, added, joined, indexed, sized, of_an_intermediate, raised_again)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("required", [False, True])
def test_what_follows_from_sizes(program, required):
    def scenario(wrap):
        run = wrap(program)
        for sizes in [((3, 4), (3, 4))] * 3 + [((4, 4), (4, 4))] * 2 + [((3, 4), (3, 4)), ((5, 3), (3, 5))]:
            x, y = (torch.randn(size, requires_grad=required) for size in sizes)
            result = run(x, y)
            yield result
            if required:
                (result[0] if isinstance(result, tuple) else result).sum().backward()
                yield x, y

    same_as_eager(scenario, min_hits=4)


def looked_up(x, y):
    try:
        return torch.nn.functional.embedding(x.long(), y)
    except IndexError:
        return x * 2


def factored(x, y):
    try:
        return torch.linalg.cholesky(x)
    except RuntimeError:
        return x + 1


def selected(x, y):
    try:
        return x[y.long()]
    except IndexError:
        return x - 1


def number(x, y):
    try:
        return x * int(y[:, 0])
    except (RuntimeError, ValueError, TypeError):
        return x * 3


def in_place(x, y):
    z = x.clone()
    try:
        z.add_(1).sub_(y[0, :3])
    except RuntimeError:
        z = z * 2
    return z


@pytest.mark.parametrize("program", [looked_up, factored, selected, number, in_place])
def test_what_follows_from_data_is_left_to_eager(program):
    """The same tensors by their sizes: now the operator raises, now it does not."""

    def scenario(wrap):
        run = wrap(program)
        for step in range(6):
            x, y = torch.eye(4) if step % 2 else -torch.eye(4) * 9, torch.full((4, 4), 9.0 * (step % 3))
            yield run(x, y)

    same_as_eager(scenario)
