"""Models that tests and benchmarks run: from transformers by config, and written here from their papers.

Weights are random; nothing is downloaded.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.cases import Built, Cases  # noqa: E402

CASES = Cases()
case = CASES.register


def _tokens(batch: int, length: int, vocabulary: int = 1000) -> dict[str, Tensor]:
    return {
        "input_ids": torch.randint(2, vocabulary, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }


# -- From transformers, by config ------------------------------------------------------------------------------------


def bert_config(size: str, layers: int | None = None) -> Any:
    from transformers import BertConfig

    small = size == "small"
    return BertConfig(
        vocab_size=1000,
        hidden_size=64 if small else 256,
        num_hidden_layers=layers or (2 if small else 4),
        num_attention_heads=4,
        intermediate_size=128 if small else 1024,
        max_position_embeddings=128,
    )


@case("transformer", batch=2)
def bert(size: str, batch: int) -> Built:
    from transformers import BertModel

    return Built(BertModel(bert_config(size)), kwargs=_tokens(batch, 16 if size == "small" else 64))


@case("transformer", batch=2)
def deberta(size: str, batch: int) -> Built:
    from transformers import DebertaConfig, DebertaModel

    small = size == "small"
    config = DebertaConfig(
        vocab_size=1000,
        hidden_size=64 if small else 256,
        num_hidden_layers=2 if small else 4,
        num_attention_heads=4,
        intermediate_size=128 if small else 1024,
        max_position_embeddings=128,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
    )
    return Built(DebertaModel(config), kwargs=_tokens(batch, 16 if small else 64))


@case("transformer", batch=2)
def gpt2(size: str, batch: int) -> Built:
    from transformers import GPT2Config, GPT2Model

    small = size == "small"
    config = GPT2Config(
        vocab_size=1000,
        n_positions=128,
        n_embd=64 if small else 256,
        n_layer=2 if small else 4,
        n_head=4,
        use_cache=False,
    )
    return Built(GPT2Model(config), kwargs=_tokens(batch, 16 if small else 64))


@case("transformer", batch=2)
def bart(size: str, batch: int) -> Built:
    from transformers import BartConfig, BartModel

    small = size == "small"
    width = 64 if small else 256
    config = BartConfig(
        vocab_size=1000,
        d_model=width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        max_position_embeddings=128,
        use_cache=False,
    )
    decoder = torch.randint(2, 1000, (batch, 12 if small else 48))
    return Built(BartModel(config), kwargs={**_tokens(batch, 16 if small else 64), "decoder_input_ids": decoder})


@case("transformer", batch=2)
def t5(size: str, batch: int) -> Built:
    from transformers import T5Config, T5Model

    small = size == "small"
    width = 64 if small else 256
    config = T5Config(
        vocab_size=1000, d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=2, num_heads=4, use_cache=False
    )
    decoder = torch.randint(2, 1000, (batch, 12 if small else 48))
    return Built(T5Model(config), kwargs={**_tokens(batch, 16 if small else 64), "decoder_input_ids": decoder})


@case("transformer", batch=2)
def vit(size: str, batch: int) -> Built:
    from transformers import ViTConfig, ViTModel

    small = size == "small"
    side = 32 if small else 128
    config = ViTConfig(
        hidden_size=64 if small else 256,
        num_hidden_layers=2 if small else 4,
        num_attention_heads=4,
        intermediate_size=128 if small else 1024,
        image_size=side,
        patch_size=8 if small else 16,
    )
    return Built(ViTModel(config), kwargs={"pixel_values": torch.randn(batch, 3, side, side)})


@case("convolution", batch=2)
def hf_resnet(size: str, batch: int) -> Built:
    from transformers import ResNetConfig, ResNetModel

    small = size == "small"
    config = ResNetConfig(
        embedding_size=16 if small else 64,
        hidden_sizes=[16, 32] if small else [64, 128, 256, 512],
        depths=[1, 1] if small else [2, 2, 2, 2],
        layer_type="basic",
    )
    side = 32 if small else 112
    return Built(ResNetModel(config), kwargs={"pixel_values": torch.randn(batch, 3, side, side)})


@case("mixed", batch=2)
def align(size: str, batch: int) -> Built:
    from transformers import AlignConfig, AlignModel

    small = size == "small"
    text = {
        "vocab_size": 1000,
        "hidden_size": 64 if small else 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128 if small else 512,
        "max_position_embeddings": 64,
    }
    vision: dict[str, Any] = {
        "image_size": 32 if small else 64,
        "width_coefficient": 0.5 if small else 1.0,
        "depth_coefficient": 0.5 if small else 1.0,
    }
    if small:  # three stages instead of EfficientNet's seven
        vision |= {"in_channels": [32, 16, 24], "out_channels": [16, 24, 128], "kernel_sizes": [3, 3, 5]}
        vision |= {"strides": [1, 2, 2], "num_block_repeats": [1, 1, 1], "expand_ratios": [1, 4, 4]}
    # the vision tower's last width must be the common width
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=64 if small else 320)
    side = vision["image_size"]
    return Built(AlignModel(config), kwargs={**_tokens(batch, 12), "pixel_values": torch.randn(batch, 3, side, side)})


# -- Written from their papers -----------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Residual block of ResNet-18 (He et al. 2016, arXiv:1512.03385, figure 2)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + residual)


class Bottleneck(nn.Module):
    """Bottleneck block of ResNet-50 (arXiv:1512.03385, figure 5)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != out:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet for images (arXiv:1512.03385, table 1)."""

    def __init__(self, block: type, depths: list[int], width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        inputs, stages = width, []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(block(inputs, width << i, 2 if i and not j else 1))
                inputs = (width << i) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@case("convolution", batch=2)
def resnet18(size: str, batch: int) -> Built:
    small = size == "small"
    side = 64 if small else 128
    model = ResNet(BasicBlock, [2, 2, 2, 2], 8 if small else 64, 10 if small else 1000)
    return Built(model, (torch.randn(batch, 3, side, side),))


@case("convolution", batch=2)
def resnet50(size: str, batch: int) -> Built:
    small = size == "small"
    side = 64 if small else 128
    model = ResNet(Bottleneck, [1, 2, 1, 1] if small else [3, 4, 6, 3], 8 if small else 64, 10 if small else 1000)
    return Built(model, (torch.randn(batch, 3, side, side),))


class DenseLayer(nn.Module):
    """Composite function with bottleneck of DenseNet-B (Huang et al. 2017, arXiv:1608.06993, section 3)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = torch.cat(features, 1)
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """Every layer sees the concatenation of all earlier ones."""

    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        for i in range(depth):
            self[f"layer{i + 1}"] = DenseLayer(inputs + i * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """DenseNet-121: depths 6, 12, 24, 16, growth 32 (arXiv:1608.06993, table 1)."""

    def __init__(self, depths: list[int], growth: int = 32, classes: int = 1000) -> None:
        super().__init__()
        width = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        for i, depth in enumerate(depths):
            layers.append(DenseBlock(width, growth, depth))
            width += depth * growth
            if i + 1 < len(depths):
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
                width //= 2
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


@case("convolution", batch=2)
def densenet121(size: str, batch: int) -> Built:
    small = size == "small"
    side = 64 if small else 128
    model = DenseNet([2, 2, 2] if small else [6, 12, 24, 16], 8 if small else 32, 10 if small else 1000)
    return Built(model, (torch.randn(batch, 3, side, side),))


class LSTMCellLoop(nn.Module):
    """An LSTM cell written out (Hochreiter and Schmidhuber 1997, with forget gate) and looped over time in Python."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.ih = nn.Linear(inputs, 4 * hidden)
        self.hh = nn.Linear(hidden, 4 * hidden)

    def cell(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.ih(x) + self.hh(h)).split(self.hidden, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, xs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs = []
        for t in range(xs.size(0)):
            state = self.cell(xs[t], state)
            outputs.append(state[0])
        return torch.stack(outputs), state


@case("small", batch=16)
def lstm_loop(size: str, batch: int) -> Built:
    hidden, steps = (16, 4) if size == "small" else (128, 16)
    state = (torch.zeros(batch, hidden), torch.zeros(batch, hidden))
    return Built(LSTMCellLoop(hidden, hidden), (torch.randn(steps, batch, hidden), state))


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for a in (inputs, outputs):
            layers += [nn.Conv2d(a, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597): contracting and expanding path with skip connections."""

    def __init__(self, width: int, depth: int, classes: int = 2) -> None:
        super().__init__()
        sizes = [width << i for i in range(depth)]
        self.down = nn.ModuleList([DoubleConv(a, b) for a, b in zip([3, *sizes[:-1]], sizes, strict=True)])
        steps = list(zip(sizes[:-1], sizes[1:], strict=True))[::-1]
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in steps])
        self.merge = nn.ModuleList([DoubleConv(2 * a, a) for a, _ in steps])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


@case("convolution", batch=1)
def unet(size: str, batch: int) -> Built:
    small = size == "small"
    side = 32 if small else 96
    return Built(UNet(8 if small else 32, 3 if small else 4), (torch.randn(batch, 3, side, side),))


class DepthNet(nn.Module):
    """Convolutional depth network: encoder, ELU decoder with nearest upsampling, disparities at several scales
    (Godard et al. 2019, arXiv:1806.01260, appendix)."""

    def __init__(self, width: int, scales: int = 3) -> None:
        super().__init__()
        self.scales = scales
        widths = [width << min(i, 3) for i in range(scales + 1)]
        stages = [nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())]
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            stages.append(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()))
        self.encoder = nn.ModuleList(stages)
        self.reduce = nn.ModuleList([nn.Conv2d(widths[i + 1], widths[i], 3) for i in range(scales)])
        self.fuse = nn.ModuleList([nn.Conv2d(2 * widths[i], widths[i], 3) for i in range(scales)])
        self.heads = nn.ModuleDict({str(i): nn.Conv2d(widths[i], 1, 3) for i in range(scales)})
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, image: Tensor) -> dict[tuple[str, int], Tensor]:
        x = (image - 0.45) / 0.225
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        disparities = {}
        for i in range(self.scales - 1, -1, -1):
            x = F.elu(self.reduce[i](self.pad(x)))
            x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), features[i]], 1)
            x = F.elu(self.fuse[i](self.pad(x)))
            disparities["disp", i] = torch.sigmoid(self.heads[str(i)](self.pad(x)))
        return disparities


@case("convolution", batch=1)
def depth_net(size: str, batch: int) -> Built:
    small = size == "small"
    side = 64 if small else 128
    return Built(DepthNet(8 if small else 32), (torch.rand(batch, 3, side, side),))


class MixerBlock(nn.Module):
    """Token mixing and channel mixing MLPs (Tolstikhin et al. 2021, arXiv:2105.01601, figure 1)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class MLPMixer(nn.Module):
    """MLP-Mixer for images."""

    def __init__(self, side: int, patch: int, width: int, depth: int, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*[MixerBlock((side // patch) ** 2, width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


@case("linear", batch=2)
def mlp_mixer(size: str, batch: int) -> Built:
    small = size == "small"
    side = 32 if small else 128
    model = MLPMixer(side, 8 if small else 16, 32 if small else 256, 2 if small else 4)
    return Built(model, (torch.randn(batch, 3, side, side),))
