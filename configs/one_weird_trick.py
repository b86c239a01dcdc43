"""torchvision's AlexNet, after Krizhevsky's "One weird trick" (arXiv 1404.5997): the one that PyTorch users know.

    alexnet train --config configs/one_weird_trick.py
    alexnet convert --from torchvision --weights alexnet.pth --workdir runs/torchvision

One tower, fewer kernels in conv1 and conv2, no normalization, dropout on inputs (pytorch/vision#549). What differs
from configs/paper.py, after pytorch/vision: torchvision/models/alexnet.py, references/classification. conv4 has 256
kernels as in Krizhevsky's code; the text of his paper says 384 (pytorch/vision#704). Error of torchvision's weights on
ILSVRC-2012 validation: 43.48 % top-1, 20.93 % top-5, centre. Its random crops have random sizes and aspects; ours
are the paper's. Here: not run.
"""

from ml_collections import ConfigDict

from configs import paper, variants


def get_config(arg: str = "") -> ConfigDict:
    """torchvision's config; arg as in configs/paper.py."""
    c = paper.get_config()
    c.name = "one_weird_trick"
    c.batch_size = 256  # references/classification: 8 GPUs x 32
    c.epochs = 90

    m = c.model
    m.towers = 1
    m.conv_widths = (64, 192, 384, 256, 256)
    m.conv1_padding = (2, 2)
    m.average_pool = 6  # any image size (pytorch/vision#746)
    m.dropout_before = ("fc6", "fc7")
    m.lrn.layers = ()
    m.init = "uniform"

    o = c.optimizer
    o.algorithm = "sgd"
    o.learning_rate = 0.01
    o.weight_decay = 1e-4
    o.decay_biases = True
    o.rule = "epochs"
    o.drop_epochs = (30, 60)

    d = c.data
    d.mean = "value"
    d.mean_value = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    d.deviation = (0.229 * 255, 0.224 * 255, 0.225 * 255)
    d.color_noise = 0.0

    c.evaluation.views = 1
    return variants.select(c, arg)
