"""A worker that computes in PyTorch what ours.py computes in JAX: the network, its training and its ten views.

It is written as a user of PyTorch writes it for speed: channels_last, torch.compile, grouped convolutions for the
towers, the fused SGD; bfloat16 is torch.autocast's. A `tuned` request also has a norm written for torch.compile, and
freezes the weights into programs that do not train.

No GPU has run this yet: what it does for one follows PyTorch's documentation.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._inductor.config
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from alexnet_jax import UserError
from experiments.benchmark.worker import Work, serve

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Norm(nn.Module):
    """Local response normalization over each tower's own maps, or over all of them.

    tuned: a sum of shifted maps and two square roots for the power, which torch.compile fuses; x must be 4-dimensional.
    """

    def __init__(self, rule: ConfigDict, towers: int, tuned: bool):
        super().__init__()
        self.groups = towers if rule.per_tower else 1
        self.size, self.k, self.beta = rule.size, rule.k, rule.beta
        self.alpha = rule.alpha / rule.size if rule.divide_by_size else rule.alpha
        self.tuned = tuned and rule.beta == 0.75

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (b, c, h, w); returns the same shape."""
        if not self.tuned:
            alpha = self.alpha * self.size  # PyTorch divides by it
            parts = [
                functional.local_response_norm(p, self.size, alpha, self.beta, self.k) for p in x.chunk(self.groups, 1)
            ]
            return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        grouped = x.unflatten(1, (self.groups, -1))
        maps = grouped.shape[2]
        window = (self.size // 2, (self.size - 1) // 2)
        squares = functional.pad(grouped * grouped, (0, 0, 0, 0, *window))
        total = squares[:, :, :maps]
        for i in range(1, self.size):
            total = total + squares[:, :, i : i + maps]
        root = (self.k + self.alpha * total).rsqrt()
        return (grouped * (root * root.sqrt())).flatten(1, 2)


def network(config: ConfigDict, tuned: bool = False) -> nn.Sequential:
    """The network of a config, its layers named conv1 .. fc8; it maps float32 (b, 3, crop, crop) to logits.

    tuned: see Norm. Raises UserError if the config has what only ours computes.
    """
    m, crop = config.model, config.data.crop
    if m.layers:
        raise UserError("PyTorch's side has no chains of layers: leave --peer out")
    if m.spatial_norm.layers or (m.towers > 1 and not {"fc6", "fc7", "fc8"} <= set(m.exchange)):
        raise UserError("PyTorch's side has no spatial norm, and no towers in fc6 and fc7: leave --peer out")
    before, after = m.conv1_padding
    net = nn.Sequential()
    net.add_module("pad", nn.ZeroPad2d((before, after, before, after)))
    maps = 3
    for i, width in enumerate(m.conv_widths, start=1):
        name = f"conv{i}"
        if name in m.removed:
            continue
        size, stride = m.conv_sizes[i - 1], m.conv_strides[i - 1]
        groups = 1 if i == 1 or name in m.exchange else m.towers
        net.add_module(name, nn.Conv2d(maps, width, size, stride, 0 if i == 1 else size // 2, groups=groups))
        for j, layer in enumerate(_after(m, name, tuned)):
            net.add_module(f"after_{name}_{j}", layer)
        maps = width
    if m.average_pool:
        net.add_module("average_pool", nn.AdaptiveAvgPool2d(m.average_pool))
    net.add_module("flat", nn.Flatten())
    with torch.no_grad():
        units = net(torch.zeros(1, 3, crop, crop)).shape[1]
    for name, width in zip(("fc6", "fc7", "fc8"), (*m.fc_widths, m.num_classes), strict=True):
        if m.dropout and name in m.dropout_before:
            net.add_module(f"dropout_{name}", nn.Dropout(m.dropout))
        net.add_module(name, nn.Linear(units, width))
        if name != "fc8":
            net.add_module(f"after_{name}", ACTIVATIONS[m.activation]())
        units = width
    return net


def _after(m: ConfigDict, name: str, tuned: bool) -> list[nn.Module]:
    """What follows a convolution: nonlinearity, norm and pool, in the config's order."""
    layers: list[nn.Module] = [ACTIVATIONS[m.activation]()]
    if name in m.pooled:
        layers.append(nn.MaxPool2d(m.pool_size, m.pool_stride))
    if name in m.lrn.layers:
        place = 0 if name in m.lrn.before_activation else len(layers) if name in m.lrn.after_pool else 1
        layers.insert(place, Norm(m.lrn, m.towers, tuned))
    return layers


def normalize(batch: dict, statistics: dict, noise: torch.Tensor, config: ConfigDict) -> torch.Tensor:
    """augment.normalize for images (b, 3, crop, crop), channels last; the other arguments are the same, as tensors."""
    images = batch["image"].float()
    if config.mean == "pixel":  # the mean image where each crop lies, mirrored with it
        places = torch.arange(config.crop, device=images.device)
        rows = batch["offset"][:, :1] + places
        columns = batch["offset"][:, 1:] + torch.where(batch["flip"][:, None], places.flip(0), places)
        images = images - statistics["mean"][rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    else:
        images = images - _mean(statistics, config)
    shift = noise * (batch["noise"] * statistics["stdevs"]) @ statistics["vectors"].T
    images = images + shift[:, :, None, None]
    if config.divide_by_noise:
        images = images / (1 + noise)
    return _scaled(images, config)


def views(images: torch.Tensor, statistics: dict, config: ConfigDict) -> list[torch.Tensor]:
    """augment.views: the ten crops of images uint8 (b, 3, size, size)."""
    crop, far = config.crop, images.shape[2] - config.crop
    pixels = images.float() - (statistics["mean"].permute(2, 0, 1) if config.mean == "pixel" else 0)
    places = [(y, x) for y in (0, far) for x in (0, far)] + [(far // 2, far // 2)]
    crops = [pixels[:, :, y : y + crop, x : x + crop] for y, x in places]
    if config.mean != "pixel":
        crops = [c - _mean(statistics, config) for c in crops]
    crops = [_scaled(c, config) for c in crops]
    return [view for c in crops for view in (c, c.flip(3))]


def _mean(statistics: dict, config: ConfigDict) -> torch.Tensor:
    """augment.centre_mean, for (b, 3, crop, crop)."""
    at = (config.size - config.crop) // 2
    if config.mean in ("pixel", "centre"):
        return statistics["mean"][at : at + config.crop, at : at + config.crop].permute(2, 0, 1)
    channels = {"channel": statistics["channel_mean"], "value": torch.tensor(list(config.mean_value))}
    return channels.get(config.mean, torch.zeros(3)).to(statistics["mean"].device)[:, None, None]


def _scaled(images: torch.Tensor, config: ConfigDict) -> torch.Tensor:
    if not config.deviation:
        return images
    return images / torch.tensor(list(config.deviation), device=images.device)[:, None, None]


def make_optimizer(net: nn.Module, config: ConfigDict, rate: float) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, for biases as the config says. At a constant rate it is the paper's update.

    Raises UserError for Adam.
    """
    if config.algorithm == "adam":
        raise UserError("PyTorch's side has no Adam: leave --peer out")
    kernels = [p for name, p in net.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    groups = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {
            "params": biases,
            "weight_decay": config.weight_decay if config.decay_biases else 0.0,
            "lr": rate * config.bias_rate,
        },
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)


def make_loss(net: nn.Module, config: ConfigDict) -> Callable[..., torch.Tensor]:
    """The function loss(batch, statistics, noise) of a training batch, to be compiled."""

    def loss(batch: dict, statistics: dict, noise: torch.Tensor) -> torch.Tensor:
        images = normalize(batch, statistics, noise, config.data)
        with _autocast(config, images.device):
            return functional.cross_entropy(net(images), batch["label"])

    return loss


def make_views(net: nn.Module, config: ConfigDict, compiled: Callable[[Any], Any] = torch.compile) -> Callable:
    """The function of (images, statistics) that gives the logarithms of the mean of ten views' softmax outputs."""

    @compiled
    def see(crop: torch.Tensor) -> torch.Tensor:
        with _autocast(config, crop.device):
            logits = net(crop)
        return functional.log_softmax(logits.float(), dim=1)

    @compiled
    def cut(images: torch.Tensor, statistics: dict) -> list[torch.Tensor]:
        return views(images, statistics, config.data)

    def ten_views(images: torch.Tensor, statistics: dict) -> torch.Tensor:
        seen = torch.stack([see(crop) for crop in cut(images, statistics)])
        return torch.logsumexp(seen, dim=0) - float(np.log(10))

    return ten_views


def _autocast(config: ConfigDict, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16")


# --- What is measured -------------------------------------------------------------------------------------------------


def build(spec: dict) -> Work:
    """The work of a request, see worker.py. Its random numbers are not ours', its shapes and types are."""
    wanted = torch.cuda.is_available() and os.environ.get("JAX_PLATFORMS") != "cpu"  # as ours
    device = torch.device("cuda" if wanted else "cpu")
    torch.set_float32_matmul_precision("high")  # on a GPU TF32, as JAX by default; no effect on CPU
    torch.backends.cudnn.benchmark = True  # on a GPU it tries cuDNN's algorithms, as XLA does; no effect on CPU
    torch.manual_seed(0)
    if spec["what"] == "matmul":
        step = _matmul(spec["side"], getattr(torch, spec["dtype"]), device)
    elif spec["what"] == "copy":
        step = _copy(spec["bytes"], device)
    else:
        torch._inductor.config.freezing = spec["tuned"] and spec["what"] != "train"
        step = WORK[spec["what"]](ConfigDict(spec["config"]), device, spec["tuned"])

    def about() -> dict:
        found = {"torch": torch.__version__, "platform": device.type}
        if device.type == "cuda":
            found["device_peak_bytes"] = torch.cuda.max_memory_allocated()
            found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        return found

    if device.type == "cpu":
        return Work(step, about)
    one_image = spec.get("config", {}).get("batch_size") == 1
    return Work(step, about, torch.cuda.synchronize, queued=not one_image)


def _train(config: ConfigDict, device: torch.device, tuned: bool) -> Callable[[], object]:
    net = network(config, tuned).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(net, config.optimizer, rate=0.0)  # as in ours: random images would teach nothing
    loss = torch.compile(make_loss(net, config))
    b, d = config.batch_size, config.data
    batch = {
        "image": _pixels(b, d.crop, device),
        "label": torch.randint(0, config.model.num_classes, (b,), device=device),
        "offset": torch.randint(0, d.size - d.crop + 1, (b, 2), device=device),
        "flip": torch.rand(b, device=device) < 0.5,
        "noise": torch.randn(b, 3, device=device),
    }
    statistics, noise = _statistics(d.size, device), torch.zeros((), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(batch, statistics, noise).backward()
        optimizer.step()

    return step


def _forward(config: ConfigDict, device: torch.device, tuned: bool) -> Callable[[], object]:
    net = network(config, tuned).to(device, memory_format=torch.channels_last).eval()
    images = (_pixels(config.batch_size, config.data.crop, device).float() - 128) / 2
    compiled = torch.compile(net)

    @torch.inference_mode()
    def step() -> None:
        with _autocast(config, device):
            compiled(images)

    return step


def _ten_views(config: ConfigDict, device: torch.device, tuned: bool) -> Callable[[], object]:
    net = network(config, tuned).to(device, memory_format=torch.channels_last).eval()
    images, statistics = _pixels(config.batch_size, config.data.size, device), _statistics(config.data.size, device)
    ten_views = torch.inference_mode()(make_views(net, config))
    return lambda: ten_views(images, statistics)


WORK: dict[str, Callable[[ConfigDict, torch.device, bool], Callable[[], object]]] = {
    "train": _train,
    "forward": _forward,
    "ten-view": _ten_views,
}


def _pixels(batch: int, side: int, device: torch.device) -> torch.Tensor:
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    return pixels.to(memory_format=torch.channels_last)


def _statistics(size: int, device: torch.device) -> dict[str, torch.Tensor]:
    shapes = {"mean": (size, size, 3), "channel_mean": (3,), "stdevs": (3,), "vectors": (3, 3)}
    return {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}


def _matmul(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=device)
    return lambda: torch.mm(a, b, out=out)


def _copy(size: int, device: torch.device) -> Callable[[], object]:
    a, b = (torch.ones(size // 4, device=device) for _ in range(2))
    return lambda: b.copy_(a)


if __name__ == "__main__":
    serve(build)
