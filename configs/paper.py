"""The network and the training of Krizhevsky, Sutskever and Hinton (NIPS 2012), to the letter.

    python -m alexnet_jax.main --config configs/paper.py              # ImageNet, ILSVRC-2012
    python -m alexnet_jax.main --config configs/paper.py:imagenette   # the same network on ten classes
    python -m alexnet_jax.main --config configs/paper.py:glyphs       # needs no download

Hardware and time in 2012: two GTX 580 3GB, five to six days (section 1). Here on ImageNet: not run.
On Imagenette its first 7 epochs stay at chance, 90.9 % error (53 minutes on two cores, 2026-11-23): see the README.
Error in the paper, ten views: ILSVRC-2012 validation (table 2, "1 CNN") 40.7 % top-1, 18.2 % top-5; ILSVRC-2010 test
(table 1) 37.5 %, 17.0 %, and 39.0 %, 18.3 % without the ten views (its footnote).

Where the paper is silent the value is marked "ours"; where the 2012 code differs, see configs/source.py.
"""

import contextlib

from ml_collections import ConfigDict

from configs import variants


def get_config(arg: str = "") -> ConfigDict:
    """The paper's config; arg is a comma-separated list of a data set's name and "smoke" (see variants.py)."""
    c = ConfigDict()
    c.name = "paper"
    c.seed = 0
    c.batch_size = 128  # section 5
    c.epochs = 90  # section 5: "roughly 90 cycles"

    m = c.model = ConfigDict()
    m.num_classes = 1000  # section 3.5; 0: as many as the data has
    m.towers = 2  # section 3.2
    m.exchange = ("conv3", "fc6", "fc7", "fc8")  # section 3.2, figure 2: layers that read both towers
    m.conv_widths = (96, 256, 384, 384, 256)  # section 3.5; kernels over both towers. A sixth convolves what is pooled
    m.fc_widths = (4096, 4096)  # section 3.5
    m.removed = ()  # section 7 removes middle layers: any of conv3 and conv4
    m.conv1_padding = (0, 3)  # 224 -> 55: the code's grid hangs 3 pixels over the right and bottom edge
    m.activation = "relu"  # section 3.1; or tanh
    m.pool_size = 3  # section 3.4: z = 3
    m.pool_stride = 2  # section 3.4: s = 2
    m.average_pool = 0  # fc6 sees maps averaged to this side, whatever the image's size; 0: the maps as they are
    m.dropout = 0.5  # section 4.2
    m.dropout_before = ("fc7", "fc8")  # section 4.2: on the outputs of fc6 and fc7, which are the inputs of these
    m.dtype = "float32"  # of the computation; parameters and loss are float32 always
    m.lrn = ConfigDict()  # section 3.3
    m.lrn.layers = ("conv1", "conv2")  # section 3.5; () switches it off
    m.lrn.size = 5  # n
    m.lrn.k = 2.0
    m.lrn.alpha = 1e-4
    m.lrn.beta = 0.75
    m.lrn.divide_by_size = False  # the printed formula does not divide alpha by n; the code and Caffe do
    m.lrn.per_tower = True  # each GPU normalises over its own maps
    m.lrn.before_activation = ()  # layers whose norm precedes the nonlinearity; section 3.3: after it
    m.lrn.after_pool = ()  # layers whose norm follows the pool; section 3.5: it precedes it
    m.spatial_norm = ConfigDict()  # the code's second norm at conv2, which the paper does not mention
    m.spatial_norm.layers = ()
    m.spatial_norm.size = 5
    m.spatial_norm.k = 1.0
    m.spatial_norm.alpha = 1e-3
    m.spatial_norm.beta = 0.75
    m.init = "normal"  # section 5; or "uniform", within 1 / sqrt(a kernel's inputs), biases too, as PyTorch does
    # Section 5: N(0, 0.01) in every layer; biases 1 in conv2, conv4, conv5 and the hidden fully connected layers.
    m.init_std = ConfigDict({n: 0.01 for n in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")})
    m.init_bias = ConfigDict({"conv1": 0.0, "conv2": 1.0, "conv3": 0.0, "conv4": 1.0, "conv5": 1.0,
                              "fc6": 1.0, "fc7": 1.0, "fc8": 0.0})  # fmt: skip

    o = c.optimizer = ConfigDict()  # section 5
    o.algorithm = "momentum"  # or "sgd", PyTorch's momentum, whose velocity holds no rate; or "adam"
    o.learning_rate = 0.01
    o.momentum = 0.9
    o.weight_decay = 0.0005
    o.decay_biases = False  # the paper decays "weights"; the code gives biases none
    o.bias_rate = 1.0  # section 5: "an equal learning rate for all layers"; the code doubles it for biases
    o.bias_rule = "weights"  # biases' rates fall with the weights'; or "epochs": at each of bias_drop_epochs alone
    o.bias_drop_epochs = ()  # for bias_rule "epochs": by factor at the start of each; (): never, as in the code
    o.rule = "plateau"  # plateau, epochs or stages
    o.factor = 0.1  # section 5: divided by 10
    o.drops = 3  # section 5: "reduced three times prior to termination"
    o.patience = 5  # ours: epochs without a better validation error before a drop
    o.min_improvement = 0.001  # ours: by how much the top-1 error must fall to count as better
    o.drop_epochs = ()  # for rule "epochs": the learning rate falls by factor at the start of each
    o.stages = 4  # for rule "stages": equal stages ...
    o.stages_total = 250.0  # ... that divide the rate by 250 in all
    o.layer_rates = ()  # ((epoch, "conv1", multiple), ...): from then on; 0 freezes it; "conv1/bias" is its bias alone

    d = c.data = ConfigDict()
    d.name = "imagenet2012"  # a TFDS name, "glyphs", or the path of a folder of class folders
    d.train_split = "train"
    d.eval_split = "validation"
    d.validation_fraction = 0.1  # of a folder without a validation folder
    d.data_dir = ""  # where TFDS keeps its data sets; empty: $TFDS_DATA_DIR, else TFDS's own default
    d.prepared_dir = ""  # where prepared sets are written; empty: the user's cache folder
    d.size = 256  # section 2: shorter side to 256, then the centre 256x256
    d.resize = "shorter"  # section 2; or "warp", both sides to 256 whatever the aspect
    d.crop = 224  # section 4.1
    d.random_crop = True  # section 4.1
    d.flip = True  # section 4.1
    d.crop_chunk = 1  # consecutive images that share one offset and flip; 32 in the code
    d.mean = "pixel"  # section 2: per-pixel mean; or centre (its centre window, as the code), channel, value, none
    d.mean_value = (0.0, 0.0, 0.0)  # grey levels of R, G, B, for mean "value"
    d.deviation = ()  # grey levels of R, G, B by which what is left is divided; (): it stays in grey levels, section 2
    d.color_noise = 0.1  # section 4.1: standard deviation of the alphas
    d.color_noise_epochs = -1  # colour noise stops at this epoch; -1: never
    d.divide_by_noise = False  # the code divides training images by 1 + color_noise
    d.on_device = False  # hold the training set on the device as uint8 and augment there

    c.start = ConfigDict()  # from the weights of another run; see configs/finetune.py
    c.start.workdir = ""  # a run, or converted weights; "": from initial values, section 5
    c.start.fresh = ()  # layers that keep their initial values

    c.evaluation = ConfigDict()
    c.evaluation.every_epochs = 1  # ours; the plateau rule needs it
    c.evaluation.batch_size = 128
    c.evaluation.views = 10  # section 4.1: of the last evaluation; during training it is the centre crop

    c.devices = ConfigDict()
    c.devices.data = 1  # copies of the network, each on its share of the batch
    c.devices.tower = 0  # devices a network is split over; 0: one per tower if they are there, else one

    c.checkpoint_every_steps = 1000
    c.log_every_steps = 20
    return variants.select(c, arg)


def renewed(config: dict) -> dict:
    """A run's config.json with lrn.after_pool as it is now: it was true or false, for all norms at once.

    What is no config comes back as it is.
    """
    with contextlib.suppress(KeyError, TypeError):
        lrn = config["model"]["lrn"]
        if isinstance(after := lrn["after_pool"], bool):
            lrn["after_pool"] = [name for name in lrn["layers"] if after and name not in lrn["before_activation"]]
    return config
