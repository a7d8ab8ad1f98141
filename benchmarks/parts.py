"""Parts that a suite of whole models hides: pointwise chains, reductions, attention, and very small models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import Built, Cases

CASES = Cases()
case = CASES.register


def _rows(size: str) -> int:
    return 16 if size == "small" else 512


def _width(size: str) -> int:
    return 32 if size == "small" else 768


# -- Pointwise ---------------------------------------------------------------------------------------------------------


class GatedUnit(nn.Module):
    """SwiGLU without its products (Shazeer 2020, arXiv:2002.05202), with a residual."""

    def forward(self, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return x + F.silu(a) * b


@case("pointwise", batch=4)
def gated_unit(size: str, batch: int) -> Built:
    shape = (batch, _rows(size), _width(size))
    return Built(GatedUnit(), (torch.randn(shape), torch.randn(shape), torch.randn(shape)))


class GeluWritten(nn.Module):
    """GELU in its tanh form, written out as many models do (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


@case("pointwise", batch=4)
def gelu_written(size: str, batch: int) -> Built:
    return Built(GeluWritten(), (torch.randn(batch, _rows(size), _width(size)),))


class BiasedScaled(nn.Module):
    """Bias, ReLU, scale and residual over images: broadcasting along channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.rand(channels, 1, 1)), nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return F.relu(x * self.scale + self.bias) + residual


@case("pointwise", batch=4)
def channel_affine(size: str, batch: int) -> Built:
    channels, side = (8, 8) if size == "small" else (64, 56)
    shape = (batch, channels, side, side)
    return Built(BiasedScaled(channels), (torch.randn(shape), torch.randn(shape)))


# -- Reductions --------------------------------------------------------------------------------------------------------


class RMSNormWritten(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467), as written in LLaMA's models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@case("reduction", batch=4)
def rms_norm(size: str, batch: int) -> Built:
    return Built(RMSNormWritten(_width(size)), (torch.randn(batch, _rows(size), _width(size)),))


class ResidualNorm(nn.Module):
    """Layer norm of a sum, both kept: the joint of a transformer's blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x + y
        return x, self.norm(x)


@case("reduction", batch=4)
def residual_norm(size: str, batch: int) -> Built:
    shape = (batch, _rows(size), _width(size))
    return Built(ResidualNorm(_width(size)), (torch.randn(shape), torch.randn(shape)))


class CrossEntropy(nn.Module):
    """Mean negative log likelihood of classes."""

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(logits, classes)


@case("reduction", batch=4)
def cross_entropy(size: str, batch: int) -> Built:
    rows, classes = batch * _rows(size) // 4, 100 if size == "small" else 8000
    return Built(CrossEntropy(), (torch.randn(rows, classes), torch.randint(0, classes, (rows,))))


class Standardize(nn.Module):
    """Zero mean and unit variance per feature: a reduction over the outer dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-5)


@case("reduction", batch=4)
def standardize(size: str, batch: int) -> Built:
    return Built(Standardize(), (torch.randn(batch * _rows(size), _width(size)),))


# -- Attention ---------------------------------------------------------------------------------------------------------


class AttentionWritten(nn.Module):
    """Multi-head attention from its parts (Vaswani et al. 2017, arXiv:1706.03762, section 3.2), optionally causal."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, w = x.shape
        q, k, v = (p(x).view(b, n, self.heads, w // self.heads).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(w // self.heads)
        if self.causal:
            scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, w))


def _attention(size: str, batch: int, length: int, causal: bool) -> Built:
    width, heads, length = (32, 4, 8) if size == "small" else (256, 8, length)
    return Built(AttentionWritten(width, heads, causal), (torch.randn(batch, length, width),))


@case("attention", batch=2)
def attention(size: str, batch: int) -> Built:
    return _attention(size, batch, 128, False)


@case("attention", batch=1)
def causal_attention(size: str, batch: int) -> Built:
    return _attention(size, batch, 512, True)


# -- Very small models -------------------------------------------------------------------------------------------------


@case("small", batch=1)
def tiny_mlp(size: str, batch: int) -> Built:
    width = 16 if size == "small" else 64
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
    return Built(nn.Sequential(*layers, nn.Linear(width, 10)), (torch.randn(batch, width),))


class Policy(nn.Module):
    """Actor and critic of a control policy on normalised observations (Schulman et al. 2017, arXiv:1707.06347)."""

    def __init__(self, observation: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation))
        self.register_buffer("var", torch.ones(observation))
        self.body = nn.Sequential(nn.Linear(observation, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.actor, self.critic = nn.Linear(hidden, actions), nn.Linear(hidden, 1)

    def forward(self, observation: Tensor) -> dict[str, Tensor]:
        x = ((observation - self.mean) / torch.sqrt(self.var + 1e-8)).clamp(-10, 10)
        x = self.body(x)
        return {"probabilities": self.actor(x).softmax(-1), "value": self.critic(x).squeeze(-1)}


@case("small", batch=1)
def policy(size: str, batch: int) -> Built:
    return Built(Policy(24, 4, 16 if size == "small" else 64), (torch.randn(batch, 24),))


@case("small", batch=1)
def tiny_cnn(size: str, batch: int) -> Built:
    width = 4 if size == "small" else 16
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * 49, 10),
    )  # fmt: skip
    return Built(model, (torch.randn(batch, 1, 28, 28),))
