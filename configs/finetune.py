"""A trained network on other images: all layers slowly, a new classifier ten times as fast.

    python -m alexnet_jax.main --config configs/finetune.py:runs/base --config.data.name=~/photos --workdir runs/mine
    python -m alexnet_jax.main --config configs/finetune.py:runs/base,fc8 --config.data.name=~/photos      # fc8 alone
    python -m alexnet_jax.main --config configs/finetune.py:runs/base,fc6,fc7,fc8,imagenette       # from fc6 upwards

After the colon stands the workdir of a run, or of converted weights; then, as in configs/paper.py, the name of a data
set or "smoke"; and layers, where all others but fc8 are to stay as they are: what is frozen for the whole run costs no
gradient and no velocity. The network and what it takes from its images are the start's; fc8 has the data's classes.
Rates by layer and epoch are optimizer.layer_rates, ((epoch, layer, multiple), ...), 0 for none. fc8 alone, in full:

    --config.optimizer.layer_rates="((0,'conv1',0.0),(0,'conv2',0.0),(0,'conv3',0.0),(0,'conv4',0.0),(0,'conv5',0.0),
        (0,'fc6',0.0),(0,'fc7',0.0),(0,'fc8',10.0))"

and (5,'fc7',1.0) more would let fc7 join after five epochs; 'fc7/kernel' and 'fc7/bias' are its halves.

The recipe is Caffe's example of fine-tuning, models/finetune_flickr_style in BVLC/caffe: solver.prototxt and
train_val.prototxt. The example takes 62 passes over 80,000 photos and a tenth of the rate after each fifth of them.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import paper, variants

FULLY_CONNECTED = ("fc6", "fc7", "fc8")
INPUTS = ("size", "crop", "resize", "mean", "mean_value", "deviation")


def get_config(arg: str = "") -> ConfigDict:
    """The config of fine-tuning; arg is a workdir, then words, all comma-separated.

    Raises ValueError if the workdir holds no run, and on words that are none.
    """
    workdir, *words = [w.strip() for w in arg.split(",")]
    start = _read(workdir)
    m = start["model"]
    layers = [f"conv{i}" for i in range(1, len(m["conv_widths"]) + 1) if f"conv{i}" not in m["removed"]]
    layers += FULLY_CONNECTED
    learned = [w for w in words if w in layers]
    c = paper.get_config()
    c.name = "_".join(["finetune", *learned])
    c.data.name = ""  # the command line's
    c.data.on_device = True
    c = variants.select(c, ",".join(w for w in words if w not in layers))

    c.batch_size = 50  # train_val.prototxt
    c.model.update(m)
    c.model.num_classes = 0
    c.data.update({name: start["data"][name] for name in INPUTS if name in start["data"]})
    c.data.color_noise = 0.0  # crops and reflections alone, as train_val.prototxt
    c.start.workdir = workdir
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
    if learned:
        o.layer_rates += tuple((0, name, 0.0) for name in layers if name not in (*learned, "fc8"))
    return c


def _read(workdir: str) -> dict:
    """A run's config.json. Raises ValueError if there is none, or if it is no config."""
    if not workdir:
        raise ValueError("name the workdir to start from after the colon: --config configs/finetune.py:runs/base")
    path = Path(workdir).expanduser() / "config.json"
    try:
        start = paper.renewed(json.loads(path.read_text()))
        if not isinstance(start["data"], dict) or not {"conv_widths", "removed"} <= start["model"].keys():
            raise TypeError("no data, or no model")
    except OSError as e:
        raise ValueError(f"{workdir} holds no run to start from ({path}: {e.strerror})") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} is no run's config ({type(e).__name__}: {e})".replace("\n", " ")) from e
    return start
