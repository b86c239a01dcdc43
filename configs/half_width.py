"""A single tower, half of the network: what many PyTorch tutorials teach as AlexNet.

    alexnet train --config configs/half_width.py:imagenette

What differs from configs/paper.py, after WZMIAOMIAO/deep-learning-for-image-processing, Test2_alexnet (model.py,
train.py), which trains it on photos of five kinds of flowers. Its TensorFlow version pads conv1 by (1, 2), as
--config.model.conv1_padding="(1,2)" does. Its random crops have random sizes and aspects; ours are the paper's.
Here the first 2 epochs on Imagenette took 10 minutes on two shared cores of an AMD EPYC; top-1 error was then 46.7 %,
centre (2026-11-24).
"""

from ml_collections import ConfigDict

from configs import paper, variants


def get_config(arg: str = "") -> ConfigDict:
    """The half network's config; arg as in configs/paper.py."""
    c = paper.get_config()
    c.name = "half_width"
    c.batch_size = 32
    c.epochs = 20  # its copies use different numbers

    m = c.model
    m.towers = 1
    m.conv_widths = (48, 128, 192, 192, 128)
    m.fc_widths = (2048, 2048)
    m.conv1_padding = (2, 2)
    m.lrn.layers = ()
    m.dropout_before = ("fc6", "fc7")  # on inputs: the classifier sees all of fc7
    # The convolutions' initial values are He et al.'s with fan-out: N(0, sqrt(2 / (size^2 features))).
    for i, (size, features) in enumerate(zip(m.conv_sizes, m.conv_widths, strict=True), start=1):
        m.init_std[f"conv{i}"] = (2 / (size**2 * features)) ** 0.5
    for name in m.init_bias:
        m.init_bias[name] = 0.0

    o = c.optimizer
    o.algorithm = "adam"
    o.learning_rate = 0.0002
    o.weight_decay = 0.0
    o.rule = "epochs"  # no drops

    d = c.data
    d.resize = "warp"
    d.mean = "value"  # pixels from -1 to 1
    d.mean_value = (127.5, 127.5, 127.5)
    d.deviation = (127.5, 127.5, 127.5)
    d.color_noise = 0.0

    c.evaluation.views = 1
    return variants.select(c, arg)
