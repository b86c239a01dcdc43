"""What the 2012 code ran: network #145 of computerhistory/AlexNet-Source-Code, which gave the paper's numbers.

    python -m alexnet_jax.main --config configs/source.py
    python -m alexnet_jax.main --config configs/source.py:imagenette

Where it differs from the paper's words, and so from configs/paper.py, is all that stands here; files and lines are of
that repository. Error noted there on ILSVRC-2012 validation (layer-params-145.cfg:182): 40.66 % top-1, 18.21 % top-5 in
ten views. Here on ImageNet: not run.
"""

from ml_collections import ConfigDict

from configs import paper, variants


def get_config(arg: str = "") -> ConfigDict:
    """The 2012 code's config; arg as in configs/paper.py."""
    c = paper.get_config()
    c.name = "source"
    c.epochs = 91  # layer-params-145.cfg:165-182, the ILSVRC-2012 run

    m = c.model
    m.lrn.divide_by_size = True  # layer.py:1183
    m.lrn.before_activation = ("conv1",)  # layers-145.cfg: conv1 is linear, ReLU comes after pool1, which commutes
    m.spatial_norm.layers = ("conv2",)  # layers-145.cfg:107, cnorm2
    for name in ("conv3", "conv4", "conv5"):
        m.init_std[name] = 0.03  # layers-145.cfg

    o = c.optimizer
    o.bias_rate = 2.0  # epsB 0.02 beside epsW 0.01
    o.rule = "epochs"  # by hand, layer-params-145.cfg:165-182
    o.drop_epochs = (25, 51, 79)
    o.layer_rates = ((67, "conv1", 0.1), (72, "conv1", 0.0))  # conv1 is slowed, then frozen

    d = c.data
    d.crop_chunk = 32  # convdata_jpeg.py:77
    d.mean = "centre"  # convdata_jpeg.py:95, 210
    d.color_noise_epochs = 67  # switched off late
    d.divide_by_noise = True  # convdata_jpeg.py:155-179: by 1.1
    return variants.select(c, arg)
