"""A trained network on other images: all layers slowly, a new classifier ten times as fast.

    alexnet train --config configs/finetune.py --config.start.workdir=runs/base --config.data.name=~/photos

start.workdir is the workdir of a run, or of converted weights. The network and what it takes from its images come from
there; fc8 is new and has the data's classes. As everywhere a data set can be named after the colon, as in
configs/finetune.py:imagenette.

To train some layers alone, name them: fc8 alone, or from fc6 upwards. The others stay exactly as they are, and cost no
gradient and no velocity:

    --config.start.learned="('fc8',)"
    --config.start.learned="('fc6','fc7','fc8')"

This adds an entry (0, layer, 0.0) to optimizer.layer_rates for each of the others. Write entries (epoch, layer,
multiple) yourself for more: here fc7 joins fc8 after five epochs. 'fc7/kernel' and 'fc7/bias' are its halves.

    --config.optimizer.layer_rates="((0,'conv1',0.0),(0,'conv2',0.0),(0,'conv3',0.0),(0,'conv4',0.0),(0,'conv5',0.0),
        (0,'fc6',0.0),(0,'fc7',0.0),(5,'fc7',1.0),(0,'fc8',10.0))"

The recipe is Caffe's example of fine-tuning, models/finetune_flickr_style in BVLC/caffe: solver.prototxt and
train_val.prototxt. The example makes 62 passes over 80,000 photos and divides the rate by ten after each fifth of them.
"""

from ml_collections import ConfigDict

from configs import paper, variants


def get_config(arg: str = "") -> ConfigDict:
    """The config of fine-tuning; arg as in configs/paper.py."""
    c = paper.get_config()
    c.name = "finetune"
    c.data.name = ""  # the command line's
    c.data.on_device = True
    c = variants.select(c, arg)

    c.batch_size = 50  # train_val.prototxt
    c.model.num_classes = 0
    c.data.color_noise = 0.0  # crops and reflections alone, as train_val.prototxt
    c.start.workdir = ""  # the command line's
    c.start.adopt = True
    c.start.fresh = ("fc8",)

    o = c.optimizer
    o.learning_rate = 0.001  # solver.prototxt, a tenth of what the network was trained with
    o.momentum = 0.9  # solver.prototxt
    o.weight_decay = 0.0005  # solver.prototxt
    o.bias_rate = 2.0  # train_val.prototxt
    o.rule = "epochs"
    c.epochs = min(c.epochs, 20)  # ours
    o.drop_epochs = (12, 18)  # ours
    o.layer_rates = ((0, "fc8", 10.0),)  # train_val.prototxt
    return c
