"""The training step and the loop around it (section 5)."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import UserError, checkpoint, inference, metrics, optimizer, towers
from alexnet_jax.cli.stopping import Stop
from alexnet_jax.data import augment
from alexnet_jax.data.batches import resident_batches, steps_in_epoch, train_batches
from alexnet_jax.data.images import SplitImages
from alexnet_jax.data.records import Prepared, Split
from alexnet_jax.evaluate import Member, evaluate
from alexnet_jax.network import network, shapes
from alexnet_jax.runs.finetune import parameters as inherited
from alexnet_jax.runs.run import Run


def train_step(
    state: dict, batch: dict, epoch: dict, constants: dict, *,
    apply: Callable, update: Callable, data: ConfigDict, frozen: frozenset = frozenset(),
):  # fmt: skip
    """One update on one batch: a pure function, compiled once for the whole run.

    Args:
      state: step int32, params, velocity; donated: its memory becomes the new state's, so do not use it again.
      batch: the arrays of train_batches, or those of resident_batches, which have `index` instead of `image`.
      epoch: what changes between epochs: `rates`, a tree like params (optimizer.rates); `noise`, how strong the colour
        noise is.
      constants: `statistics` of the training set; `key`, for dropout; `images`, the training set as uint8
        (n, size, size, 3), or None if each batch brings its images.
      apply: (params, images, dropout_key) -> (logits, activations), as towers.split makes it.
      update: of optimizer.update_rule.
      data: the config's `data` section.
      frozen: layers that do not learn: constants here, so that their gradients are not computed.
    Returns: the new state, and sums over the batch (metrics.sums).
    """
    if constants["images"] is not None:
        crops = augment.crop_and_flip(constants["images"], batch["index"], batch["offset"], batch["flip"], data.crop)
        batch = batch | {"image": crops}
    images = augment.normalize(batch, constants["statistics"], epoch["noise"], data)
    key = jax.random.fold_in(constants["key"], state["step"])
    labels = batch["label"]

    fixed = {name: layer for name, layer in state["params"].items() if name in frozen}
    learned = {name: layer for name, layer in state["params"].items() if name not in frozen}
    rates = {name: epoch["rates"][name] for name in learned}

    def loss(learned):
        logits, _ = apply(fixed | learned, images, key)
        log_probabilities = jax.nn.log_softmax(logits)
        sums = metrics.sums(log_probabilities, labels, jnp.ones(labels.shape, jnp.float32))
        return sums["loss"] / labels.shape[0], sums

    gradients, sums = jax.grad(loss, has_aux=True)(learned)
    updates, velocity = update(gradients, state["velocity"], learned, rates=rates)
    params = fixed | jax.tree.map(jnp.add, learned, updates)
    return {"step": state["step"] + 1, "params": params, "velocity": velocity}, sums


def new_state(model: nn.Module, rule, crop: int, seed: int, frozen: frozenset) -> dict:
    """The state before the first step: the config's initial values, and zero velocity for all but frozen layers.

    crop: the side of the images, in pixels.
    """
    params = model.init(jax.random.key(seed), jnp.zeros((1, crop, crop, 3)))["params"]
    velocity = rule.init({name: layer for name, layer in params.items() if name not in frozen})
    return {"step": jnp.int32(0), "params": params, "velocity": velocity}


@dataclass(frozen=True)
class Program:
    """A config's network and training step on a mesh, ready to be compiled."""

    apply: Callable  # (params, images, dropout_key=None) -> (logits, activations)
    step: Callable  # train_step, jitted: (state, batch, epoch, constants) -> (state, sums)
    new_state: Callable  # () -> the state before the first step, jitted
    state: dict  # the state's shapes, dtypes and shardings


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """The network, the training step and the first state, as train() runs them; needs no data."""
    model = network(config.model)
    apply = towers.split(model, mesh)
    rule = optimizer.update_rule(config.optimizer)
    frozen = optimizer.frozen(config.optimizer, shapes(config.model, config.data.crop), config.epochs)
    make_state = partial(new_state, model, rule, config.data.crop, config.seed, frozen)
    like = jax.eval_shape(make_state)
    shardings = towers.shardings(like, mesh)
    step = jax.jit(
        partial(train_step, apply=apply, update=rule.update, data=config.data, frozen=frozen),
        donate_argnums=0,
        out_shardings=(shardings, towers.replicated(mesh)),
        compiler_options=towers.compiler_options(mesh.devices.flat[0].platform),
    )
    return Program(apply, step, jax.jit(make_state, out_shardings=shardings), towers.abstract(like, mesh))


def prefetch(batches: Iterable[dict], sharding) -> Iterator[dict]:
    """Yields batches that are on the devices already; moves each there two batches before it is used."""
    return inference.late((towers.place(batch, sharding) for batch in batches), by=2)


class Pending(NamedTuple):
    """A step that the devices may still be computing."""

    step: int
    sums: dict[str, jax.Array]  # metrics.sums of its batch
    rate: float  # the learning rate of weights


def is_recorded(step: int, config: ConfigDict, steps_per_epoch: int) -> bool:
    """Whether a record is due after a step: every so many steps, and at the end of each epoch."""
    return step % config.log_every_steps == 0 or step % steps_per_epoch == 0


def record(pending: Pending, window: dict, log: metrics.Log, config: ConfigDict, steps_per_epoch: int) -> dict:
    """Waits for a step, adds its sums to the `window`, those since the last record, and writes a record if one is due.

    Call it once the next step is under way, so that the devices do not wait for the host.
    Returns: the new window, empty after a record. Raises UserError if the loss is not finite.
    """
    step, rate = pending.step, pending.rate
    sums = {name: float(value) for name, value in jax.device_get(pending.sums).items()}  # all in one transfer
    if not math.isfinite(sums["loss"]):
        raise UserError(
            f"the loss is {sums['loss']} at step {step} with a learning rate of {rate:g}: train in a new --workdir "
            f"with a lower one, --config.optimizer.learning_rate={config.optimizer.learning_rate / 2:g}"
        )
    window = {name: window.get(name, 0.0) + value for name, value in sums.items()}
    if not is_recorded(step, config, steps_per_epoch):
        return window
    means = metrics.means(window)
    speed = log.images_per_second(step)
    log.write(step, "train", means | {"learning_rate": rate, "images_per_second": round(speed, 1)})
    log.advance(step, f"loss {means['loss']:.3f}, top-1 error {means['top1_error']:.1%}")
    return {}


def validate(run: Run, forward: inference.Forward, split: Split, views: int) -> dict:
    """The validation result of a run where it is now: views, and what `evaluate` returns."""
    images = SplitImages(split)
    with metrics.bar(len(images), f"validation, {views} view(s)", quiet=not towers.leads()) as progress:
        size = inference.batch_size(run, len(images))
        return {"views": views} | evaluate([Member(run, forward, images)], size, views, progress)


def asked_to_stop(stop: Stop, step: int, config: ConfigDict, steps_per_epoch: int) -> bool:
    """Whether a signal came. Several processes agree on it, at recorded steps only: all stop at the same step."""
    if jax.process_count() > 1 and not is_recorded(step, config, steps_per_epoch):
        return False
    return towers.any_process(stop.signal is not None)


def train(config: ConfigDict, prepared: Prepared, mesh: Mesh, workdir: Path) -> dict | None:
    """Trains, evaluates and writes checkpoints; resumes from the workdir's latest checkpoint if there is one.

    Returns: the last validation result, or None if SIGTERM or Ctrl-C stopped the run; its state is then saved.
    Raises UserError if the loss is not finite, if a file cannot be written or is damaged, or if the network cannot
    start from config.start.workdir.
    """
    batch_size, seed = config.batch_size, config.seed
    steps_per_epoch = steps_in_epoch(len(prepared.train), batch_size)
    steps = config.epochs * steps_per_epoch

    # --- the network, new or from the latest checkpoint ----------------------------------------------------------
    net = program(config, mesh)
    checkpoints = checkpoint.manager(workdir)
    # What a resumed run needs besides the state: the sums since the last record, and the last validation result.
    host: dict[str, Any] = {"plateau": optimizer.new_plateau(), "window": {}, "result": None}
    if found := checkpoint.restore(checkpoints, net.state, needs=("plateau", "window")):
        first, state, host = found
        host["plateau"] = optimizer.new_plateau() | host["plateau"]
    else:
        first, state = 0, net.new_state()
        if config.start.workdir:
            state["params"] |= inherited(config, net.state["params"])

    # --- data ---------------------------------------------------------------------------------------------------
    everywhere = towers.replicated(mesh)
    part = towers.share(mesh)
    span = {"shard": part, "seed": seed, "batch_size": batch_size, "first_step": first, "last_step": steps}
    if config.data.on_device:
        images = towers.place(prepared.train.images(progress=towers.leads()), everywhere)
        batches = resident_batches(prepared.train.labels, config.data, **span)
    else:
        images = None
        batches = train_batches(prepared.train, config.data, **span)
    statistics = towers.place(prepared.statistics, everywhere)
    key = jax.jit(lambda: jax.random.fold_in(jax.random.key(seed), 1), out_shardings=everywhere)()
    constants = {"statistics": statistics, "key": key, "images": images}

    # --- validation: the run as evaluate.py takes it, with its parameters later, and what it is evaluated by -----
    run = Run(workdir, first, config, mesh, net.apply, net.state["params"], statistics, prepared.classes)
    forward = inference.make_forward(run)

    # --- records ------------------------------------------------------------------------------------------------
    where = workdir if towers.leads() else None
    log = metrics.Log(where, step=first, steps=steps, batch_size=batch_size, steps_per_epoch=steps_per_epoch)
    if first:
        log.say(f"resumed at step {first} of {steps}")

    # --- the loop -----------------------------------------------------------------------------------------------
    pending, stopping = None, False
    with Stop() as stop, contextlib.closing(log), contextlib.closing(batches), checkpoint.ending(checkpoints):
        for step, batch in enumerate(prefetch(batches, towers.batch_sharding(mesh)), first + 1):
            epoch = (step - 1) // steps_per_epoch
            if pending is None or (step - 1) % steps_per_epoch == 0:
                rate = optimizer.learning_rate(config.optimizer, epoch, config.epochs, host["plateau"])
                now = {
                    "rates": optimizer.rates(config.optimizer, state["params"], rate, epoch),
                    "noise": np.float32(augment.noise_strength(config.data, epoch)),
                }
                now = towers.place(now, everywhere)  # once: for each step it would take as long as a short step
            state, sums = net.step(state, batch, now, constants)
            if pending is not None:
                host["window"] = record(pending, host["window"], log, config, steps_per_epoch)
            pending = Pending(step, sums, rate)

            epoch_ends = step % steps_per_epoch == 0
            stopping = not epoch_ends and asked_to_stop(stop, step, config, steps_per_epoch)
            if not (epoch_ends or stopping or step % config.checkpoint_every_steps == 0):
                continue

            # --- what is done between epochs, and before a checkpoint within one
            host["window"] = record(pending, host["window"], log, config, steps_per_epoch)
            pending, error = None, None
            run = replace(run, step=step, params=state["params"])
            due = epoch_ends and (epoch + 1) % config.evaluation.every_epochs == 0
            if due or step == steps:
                result = host["result"] = validate(run, forward, prepared.evaluation, views=1)
                error = result["top1_error"]
                if due:  # else only because the run ends: it must not count if the run is extended
                    passed = config.evaluation.every_epochs
                    host["plateau"] = optimizer.watch(config.optimizer, host["plateau"], error, passed)
                log.write(step, "validation", result | {"learning_rate": rate})
                log.say(
                    f"epoch {epoch + 1}: validation loss {result['loss']:.3f}, top-1 error {error:.2%}, "
                    f"top-5 error {result['top5_error']:.2%}"
                )
            if step == steps and config.evaluation.views > 1:
                result = host["result"] = validate(run, forward, prepared.evaluation, config.evaluation.views)
                log.write(step, "validation", result | {"learning_rate": rate})
            checkpoint.save(checkpoints, step, state, host, error)
            if epoch_ends:
                log.resume_clock(step)
                stopping = asked_to_stop(stop, step, config, steps_per_epoch)
            if stopping:
                break
        checkpoint.finish(checkpoints)
    return None if stopping else host.get("result")
