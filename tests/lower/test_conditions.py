"""Functions of torch that look at their arguments before they compute: a run that finds what is usual is served by the
trace, any other one gives what eager does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.counting import Counted


def spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.stft(x.reshape(1, -1), 8, 2, window=torch.hann_window(8), return_complex=True)


PROGRAMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "istft": lambda x: torch.istft(spectrum(x), 8, 2, window=torch.hann_window(8)),
    "istft of a learned window": lambda x: torch.istft(spectrum(x), 8, 2, window=x[0, :8].sigmoid()),
    "istft without a window": lambda x: torch.istft(torch.stft(x, 8, 2, return_complex=True), 8, 2, length=8),
    "cov": torch.cov,
    "cov with weights": lambda x: torch.cov(x, fweights=torch.arange(10), aweights=x[0].abs()),
    "corrcoef": torch.corrcoef,
    "gaussian_nll_loss": lambda x: F.gaussian_nll_loss(x, x.detach() + 1, x * x),
    "gaussian_nll_loss, no reduction": lambda x: F.gaussian_nll_loss(x, x + 1, x.exp(), full=True, reduction="none"),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_trace_serves_usual_arguments(name: str, requires_grad: bool) -> None:
    program = PROGRAMS[name]
    fast = torch.compile(lambda x: program(x), backend="magpy")
    with Counted() as counted:
        for step in range(3):
            torch.manual_seed(step)
            data = torch.randn(4, 10)
            found = []
            for call in (program, fast):
                x = data.clone().requires_grad_(requires_grad)
                result = call(x)
                gradients = torch.autograd.grad(result.square().sum(), [x]) if requires_grad else ()
                found.append((result, *gradients))
            torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert counted.hits == 2 and not counted.fallbacks


def test_arguments_that_a_function_refuses() -> None:
    fast = torch.compile(lambda x, var: F.gaussian_nll_loss(x, x + 1, var), backend="magpy")
    x = torch.randn(3)
    fast(x, torch.ones(3))
    with pytest.raises(ValueError, match="negative"):
        fast(x, torch.tensor([1.0, -1.0, 1.0]))
    fast = torch.compile(lambda x, window: torch.istft(spectrum(x), 8, 2, window=window), backend="magpy")
    x = torch.randn(24)
    fast(x, torch.ones(8))
    with pytest.raises(RuntimeError, match="window overlap add min"):
        fast(x, torch.zeros(8))


@pytest.mark.filterwarnings("ignore:cov")
def test_unusual_arguments_that_a_function_takes() -> None:
    def program(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.cov(x, fweights=weights)

    fast = torch.compile(program, backend="magpy")
    x = torch.randn(2, 3)
    for weights in ([1, 2, 1], [1, 0, 0], [2, 2, 2], [0, 1, 0]):
        given = torch.tensor(weights)
        torch.testing.assert_close(fast(x, given), program(x, given), equal_nan=True)
