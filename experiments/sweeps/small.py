"""The ablations on Imagenette at a quarter of the width: minutes a run on two CPU cores.

The paper's layers and rules on 96 x 96 crops of 108 x 108 images. The initial values are the 2012 code's, doubled
because each unit has a quarter of the inputs. The learning rate is that of configs/imagenette_small.py. It was chosen
on the validation split that also measures the error here: all errors are slightly optimistic, the base's perhaps more
than the others.
"""

from ml_collections import ConfigDict

from configs import variants
from experiments.changes import CHANGES
from experiments.sweeps import paper

ABLATIONS = CHANGES
NARROW = 4


def get_config(arg: str = "") -> ConfigDict:
    """The base; arg as in configs/paper.py."""
    c = paper.get_config("imagenette")
    c.name = "small"
    c.batch_size = 64
    c.epochs = 12
    c.model.conv_widths = tuple(w // NARROW for w in c.model.conv_widths)
    c.model.fc_widths = (512, 512)
    for name in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        c.model.init_std[name] *= NARROW**0.5
    c.optimizer.learning_rate = 0.005
    c.optimizer.rule = "epochs"
    c.optimizer.drop_epochs = (9, 11)
    c.data.size, c.data.crop = 108, 96  # maps of 23, 11, 5 and 2 a side, with either pooling
    c.evaluation.every_epochs = 3
    c.checkpoint_every_steps = 500
    return variants.select(c, arg)
