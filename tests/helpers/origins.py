"""The family's origins as PyTorch networks, at any widths, and their parameters as ours."""

import importlib
import sys
from collections import OrderedDict

import torch
from torch import nn


def _torchvision():
    """torchvision. Its networks want none of its compiled operators, which do not load beside a CPU build of torch."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        return importlib.import_module("torchvision")


torchvision = _torchvision()


class Towers(nn.Module):
    """A norm within each half of the maps."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return torch.cat([self.norm(part) for part in x.chunk(2, dim=1)], dim=1)


class SameMapNorm(nn.Module):
    """cuda-convnet's rnorm: 5 x 5 neighbours in the same map."""

    def forward(self, x):
        return x / (1 + 0.001 * nn.functional.avg_pool2d(x * x, 5, 1, 2)) ** 0.75


def network(w, f, side, *, pad, after, groups=1, sixth=False):
    """The layers that all share; `after` has what follows conv1 and conv2 before the next convolution."""
    out = OrderedDict(pad=nn.ZeroPad2d(pad), conv1=nn.Conv2d(3, w[0], 11, 4))
    out |= {f"after1_{i}": layer for i, layer in enumerate(after(1))}
    out["conv2"] = nn.Conv2d(w[0], w[1], 5, padding=2, groups=groups)
    out |= {f"after2_{i}": layer for i, layer in enumerate(after(2))}
    out |= OrderedDict(conv3=nn.Conv2d(w[1], w[2], 3, padding=1), relu3=nn.ReLU())
    out |= OrderedDict(conv4=nn.Conv2d(w[2], w[3], 3, padding=1, groups=groups), relu4=nn.ReLU())
    out |= OrderedDict(conv5=nn.Conv2d(w[3], w[4], 3, padding=1, groups=groups), relu5=nn.ReLU())
    out["pool5"] = nn.MaxPool2d(3, 2)
    if sixth:
        out |= OrderedDict(conv6=nn.Conv2d(w[4], w[5], 3, padding=1), relu6c=nn.ReLU())
    out |= OrderedDict(flat=nn.Flatten(), fc6=nn.Linear(w[-1] * side**2, f[0]), relu6=nn.ReLU())
    out |= OrderedDict(fc7=nn.Linear(f[0], f[1]), relu7=nn.ReLU(), fc8=nn.Linear(f[1], 7))
    return nn.Sequential(out)


def relu():
    return nn.ReLU()


def pool():
    return nn.MaxPool2d(3, 2)


def lrn(k):
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=k)


def source_order(norm):
    """The code's: a linear conv1 into the norm; a second norm at conv2."""
    return lambda i: [norm(), relu(), pool()] if i == 1 else [relu(), norm(), SameMapNorm(), pool()]


HANGS = (0, 3, 0, 3)  # over the right and the bottom edge
ORIGINS = {
    "caffe": dict(pad=0, groups=2, after=lambda i: [relu(), lrn(1), pool()]),
    "caffenet": dict(pad=0, groups=2, after=lambda i: [relu(), pool(), lrn(1)]),
    "one_column": dict(pad=HANGS, after=source_order(lambda: lrn(2))),
    "half_width": dict(pad=2, after=lambda i: [relu(), pool()]),
    "ungrouped": dict(pad=0, after=lambda i: [relu(), pool(), lrn(1)]),
    "ungrouped_224": dict(pad=HANGS, after=lambda i: [relu(), pool(), lrn(1)]),
    "six_conv": dict(pad=HANGS, groups=2, after=source_order(lambda: Towers(lrn(2))), sixth=True),
}


def to_ours(name, tensor, side):
    """A PyTorch parameter as ours: convolutions HWIO; fc6's rows from (channel, y, x) to (y, x, channel)."""
    array = tensor.detach().float().numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if name == "fc6" and array.ndim == 2:
        return array.reshape(len(array), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.T


def randomize(net):
    """Kernels that keep the scale of what they see, and biases that show, so that every part counts."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        std = 1.0 if p.ndim == 1 else (2 / p[0].numel()) ** 0.5
        p.data = torch.normal(0.0, std, p.shape, generator=generator)
