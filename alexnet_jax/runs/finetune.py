"""Fine-tuning: a run that begins with the parameters of another one (config.start, configs/finetune.py).

The start is the best checkpoint of a workdir; layers in config.start.fresh keep their initial values. A network is its
parameters and what is done with them, so the fields that say the latter must be the start's: another norm or
nonlinearity, other towers, or inputs from which something else was taken, would put the kernels before what they have
never seen. Fields may differ that act in training alone (dropout), on initial values or on rounding. Widths and
exchanges may where the shapes of the layers that are taken over agree: those of fresh layers are free.
"""

from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint
from alexnet_jax.model import shapes
from alexnet_jax.runs.run import flat, read_config, read_statistics

# Fields of the model, by their beginnings, that a start may have otherwise.
FREE = tuple(f"model.{f}" for f in ("num_classes", "conv_widths", "fc_widths", "exchange", "dropout", "dtype", "init"))
INPUTS = ("data.size", "data.mean", "data.mean_value", "data.deviation")


def check(config: ConfigDict):
    """Raises UserError, in one line, if config.start.workdir is no start for the config's network.

    That is: it holds no run; fields differ that must not, which are named; a layer has another shape, or is not there.
    Reads no weights.
    """
    workdir = Path(config.start.workdir).expanduser()
    try:
        theirs = read_config(workdir)
    except UserError as e:
        raise UserError(f"--config.start.workdir={config.start.workdir}: {e}") from e
    there, here = (flat(c) for c in (theirs, config))
    differ = {
        name: there.get(name)
        for name, value in here.items()
        if name in INPUTS or name.startswith("model.") and not name.startswith(FREE)
        if there.get(name) != value
    }
    if differ:
        said = "; ".join(f"{name}: {value} there, {here[name]} here" for name, value in differ.items())
        raise UserError(
            f"{workdir} is another function of its parameters ({said}): set these fields as there, "
            f"as --config configs/finetune.py:{workdir} does"
        )
    mine, stored = shapes(config.model, config.data.crop), shapes(theirs.model, theirs.data.crop)
    if unknown := set(config.start.fresh) - set(mine):
        raise UserError(f"--config.start.fresh names {sorted(unknown)}; the layers are {', '.join(mine)}")
    for layer in sorted(set(mine) - set(config.start.fresh)):
        for kind, leaf in mine[layer].items():
            found = stored[layer][kind].shape if layer in stored else "not there"
            if found != leaf.shape:
                raise UserError(
                    f"{layer}'s {kind} is {leaf.shape} here and {found} in {workdir}: name {layer} in "
                    "--config.start.fresh, or take the model from the start, as "
                    f"--config configs/finetune.py:{workdir} does"
                )


def statistics(config: ConfigDict, workdir: Path, own: dict) -> dict:
    """What is taken from images before this network sees them: the start's, for that is what its kernels know.

    A workdir that has trained already, and is to go on, has them too, whatever became of the start since.

    Args: own: those of the new images, float32 arrays by name; they stand in for what the start does not have.
    Raises UserError if they cannot be read.
    """
    if checkpoint.trained(workdir) is not None:
        try:
            return own | read_statistics(workdir)[0]
        except UserError:  # damaged: they were the start's
            pass
    return own | read_statistics(Path(config.start.workdir).expanduser())[0]


def parameters(config: ConfigDict, like: dict) -> dict:
    """The start's parameters of all layers but the fresh ones, {layer: {"kernel", "bias"}}, float32.

    `like` gives shapes, dtypes and shardings of all; several processes call it together and each reads its part.
    Raises UserError as `check` does, or if the workdir has no checkpoint that can be read.
    """
    check(config)
    taken = {name: layer for name, layer in like.items() if name not in config.start.fresh}
    return checkpoint.read_params(Path(config.start.workdir).expanduser(), taken)[1]
