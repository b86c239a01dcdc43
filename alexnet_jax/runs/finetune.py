"""Fine-tuning: a run that begins with the parameters of another one, its start (config.start, configs/finetune.py).

The parameters are those of the best checkpoint of start.workdir; layers in start.fresh keep their initial values. A
network is its parameters and the function that is computed from them. So the fields that define this function, and what
an image becomes before it, must be the start's: with another norm, another nonlinearity, other towers or other inputs
its kernels would see what they were not trained for. Other fields may differ. Shapes must agree in the layers that are
taken over; fresh layers are free.
"""

from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint
from alexnet_jax.config import FIELDS, FUNCTION, INPUT, VIEW, fields, fields_of, flat, layers_of, refuse_wrong_values
from alexnet_jax.files import expanded
from alexnet_jax.network import shapes
from alexnet_jax.optimizer import KINDS
from alexnet_jax.runs.run import read_config, read_statistics


def resolved(config: ConfigDict, workdir: Path | None = None, given: Collection[str] = ()) -> ConfigDict:
    """The config with what it takes from its start filled in; a resolved config comes back as it is.

    Where start.adopt is set, the model section but for its number of classes, and the fields of data that say what the
    network is given, become the start's; start.adopt is then unset. Where start.learned names layers, all layers that
    are neither learned nor fresh are frozen by entries of optimizer.layer_rates.

    Args:
      workdir: of the run itself; if it has trained already its own config is taken, and the start may be gone.
      given: dotted names of fields that keep their values, such as those that the command line set.
    Raises UserError, in one line, if a field holds what it may not, or if there is no start to take from.
    """
    refuse_wrong_values(config)
    if not config.start.adopt and not config.start.learned:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():  # a start may have initial values for a sixth convolution, where config has none
        if config.start.adopt:
            trained = workdir is not None and checkpoint.latest_step(workdir) is not None
            _adopt(config, read_config(workdir) if workdir and trained else _read_start(config), given)
        if config.start.learned:
            config.optimizer.layer_rates = (*config.optimizer.layer_rates, *_frozen_entries(config))
    return config


def _adopt(config: ConfigDict, theirs: ConfigDict, given: Collection[str]):
    model = {name for name in FIELDS if name.startswith("model.")} - {"model.num_classes"}
    taken = (model | fields_of(INPUT, VIEW)) - set(given)
    config.update_from_flattened_dict({name: value for name, value in fields(theirs).items() if name in taken})
    config.start.adopt = False


def _frozen_entries(config: ConfigDict) -> list[tuple[int, str, float]]:
    """Entries of optimizer.layer_rates that freeze the layers neither learned nor fresh; those that it lacks yet."""
    m, start = config.model, config.start
    kept = {*m.removed, *start.learned, *start.fresh}
    first = {name: multiple for epoch, name, multiple in config.optimizer.layer_rates if epoch == 0}  # the last counts
    every = [layer for layer in layers_of(m) if layer not in kept]
    parts = [f"{layer}/{kind}" for layer in every for kind in KINDS if f"{layer}/{kind}" in first]
    return [(0, name, 0.0) for name in (*every, *parts) if first.get(name) != 0]


def _read_start(config: ConfigDict) -> ConfigDict:
    """The config of the start. Raises UserError, naming the field, if there is none."""
    if not config.start.workdir:
        raise UserError("name the run to start from, as in --config.start.workdir=runs/base")
    try:
        return read_config(expanded(config.start.workdir))
    except UserError as e:
        raise UserError(f"--config.start.workdir={config.start.workdir}: {e}") from e


def refuse_other_function(config: ConfigDict):
    """Raises UserError, in one line, if the network cannot begin with the parameters of config.start.workdir.

    That is: it holds no run; fields that must be the start's differ, and are named; or a layer that is not fresh is
    missing there, or has another shape. Reads no weights.
    """
    theirs = _read_start(config)
    there, here = flat(theirs), flat(config)
    differ = [name for name, row in FIELDS.items() if row.purpose in (FUNCTION, INPUT) and there[name] != here[name]]
    if _chain(config.model, config.start.fresh) != _chain(theirs.model, config.start.fresh):
        differ.append("model.layers")
    if differ:
        said = "; ".join(f"{name}: {there[name]} there, {here[name]} here" for name in differ)
        raise UserError(
            f"{config.start.workdir} is another function of its parameters ({said}): set these fields as there, or "
            "take them from there with --config.start.adopt=True"
        )
    mine, stored = shapes(config.model, config.data.crop), shapes(theirs.model, theirs.data.crop)
    if unknown := set(config.start.fresh) - set(mine):
        raise UserError(f"--config.start.fresh names {sorted(unknown)}; the layers are {', '.join(mine)}")
    for layer in sorted(set(mine) - set(config.start.fresh)):
        for kind, leaf in mine[layer].items():
            found = stored[layer][kind].shape if layer in stored else "missing"
            if found != leaf.shape:
                raise UserError(
                    f"{layer}'s {kind} is {leaf.shape} here and {found} in {config.start.workdir}: name {layer} in "
                    "--config.start.fresh, or take the model from there with --config.start.adopt=True"
                )


def _chain(m: ConfigDict, fresh: Collection[str]) -> list[tuple]:
    """What of `model.layers` determines the function, apart from shapes: kinds and order, sizes, not initial values."""
    found = []
    for name, kind, *rest in m.layers:
        if not rest:
            found.append((kind,))
        elif name not in fresh:
            found.append((name, kind, *rest[1:-1]))
    return found


def statistics(config: ConfigDict, workdir: Path, own: dict) -> dict:
    """The statistics that images are prepared with: the start's, as its kernels were trained with them.

    A workdir that has trained already has them too, and the start may be gone.

    Args: own: those of the new images, float32 arrays by name; they are used for what the start does not have.
    Raises UserError if they cannot be read.
    """
    if checkpoint.latest_step(workdir) is not None:
        try:
            return own | read_statistics(workdir)[0]
        except UserError:  # damaged: read the start's, which they were copied from
            pass
    return own | read_statistics(expanded(config.start.workdir))[0]


def parameters(config: ConfigDict, like: dict) -> dict:
    """The start's parameters of all layers but the fresh ones, {layer: {"kernel", "bias"}}, float32.

    Several processes call this together, and each reads its part.

    Args: config: one that refuse_other_function takes; like: shapes, dtypes and shardings of all layers.
    Raises UserError if the start has no checkpoint that can be read.
    """
    taken = {name: layer for name, layer in like.items() if name not in config.start.fresh}
    return checkpoint.read_params(expanded(config.start.workdir), taken)[1]
