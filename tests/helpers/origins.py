"""The origins of the family as PyTorch networks, at any width, and their parameters in our layout."""

import importlib
import sys
from collections import OrderedDict

import torch
from torch import nn


def _torchvision():
    """torchvision, without its compiled operators where they do not load beside a CPU build of torch."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
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


def network(conv_widths, fc_widths, side, *, pad, after, groups=1, sixth=False):
    """The network of an origin, with seven classes.

    Args: side: of the maps that fc6 reads. pad: of the images, as ZeroPad2d takes it. after: after(i) makes the layers
    between conv1 or conv2 and the next convolution. groups: of conv2, conv4 and conv5. sixth: whether there is a conv6.
    """
    conv1, conv2, conv3, conv4, conv5 = conv_widths[:5]
    fc6, fc7 = fc_widths
    layers = OrderedDict(pad=nn.ZeroPad2d(pad))
    layers["conv1"] = nn.Conv2d(3, conv1, 11, 4)
    layers |= {f"after1_{i}": layer for i, layer in enumerate(after(1))}
    layers["conv2"] = nn.Conv2d(conv1, conv2, 5, padding=2, groups=groups)
    layers |= {f"after2_{i}": layer for i, layer in enumerate(after(2))}
    layers["conv3"] = nn.Conv2d(conv2, conv3, 3, padding=1)
    layers["relu3"] = nn.ReLU()
    layers["conv4"] = nn.Conv2d(conv3, conv4, 3, padding=1, groups=groups)
    layers["relu4"] = nn.ReLU()
    layers["conv5"] = nn.Conv2d(conv4, conv5, 3, padding=1, groups=groups)
    layers["relu5"] = nn.ReLU()
    layers["pool5"] = nn.MaxPool2d(3, 2)
    if sixth:
        layers["conv6"] = nn.Conv2d(conv5, conv_widths[5], 3, padding=1)
        layers["relu6c"] = nn.ReLU()
    layers["flat"] = nn.Flatten()
    layers["fc6"] = nn.Linear(conv_widths[-1] * side**2, fc6)
    layers["relu6"] = nn.ReLU()
    layers["fc7"] = nn.Linear(fc6, fc7)
    layers["relu7"] = nn.ReLU()
    layers["fc8"] = nn.Linear(fc7, 7)
    return nn.Sequential(layers)


def relu():
    return nn.ReLU()


def pool():
    return nn.MaxPool2d(3, 2)


def lrn(k):
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=k)


def source_order(norm):
    """The order of Krizhevsky's code: a linear conv1 into the norm; a second norm at conv2."""
    return lambda i: [norm(), relu(), pool()] if i == 1 else [relu(), norm(), SameMapNorm(), pool()]


RIGHT_AND_BOTTOM = (0, 3, 0, 3)  # conv1's grid hangs over these edges
ORIGINS = {
    "caffe": dict(pad=0, groups=2, after=lambda i: [relu(), lrn(1), pool()]),
    "caffenet": dict(pad=0, groups=2, after=lambda i: [relu(), pool(), lrn(1)]),
    "one_column": dict(pad=RIGHT_AND_BOTTOM, after=source_order(lambda: lrn(2))),
    "half_width": dict(pad=2, after=lambda i: [relu(), pool()]),
    "ungrouped": dict(pad=0, after=lambda i: [relu(), pool(), lrn(1)]),
    "ungrouped_224": dict(pad=RIGHT_AND_BOTTOM, after=lambda i: [relu(), pool(), lrn(1)]),
    "six_conv": dict(pad=RIGHT_AND_BOTTOM, groups=2, after=source_order(lambda: Towers(lrn(2))), sixth=True),
}


def to_ours(name, tensor, side):
    """A PyTorch parameter in our layout: convolutions HWIO; fc6's rows from (map, y, x) to (y, x, map)."""
    array = tensor.detach().float().numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if name == "fc6" and array.ndim == 2:
        return array.reshape(len(array), -1, side, side).transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.T


def randomize(net):
    """Random kernels that keep the scale of their inputs, and biases of the size of 1, so that every part counts."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        std = 1.0 if p.ndim == 1 else (2 / p[0].numel()) ** 0.5
        p.data = torch.normal(0.0, std, p.shape, generator=generator)
