"""A worker that computes with this package, as its commands do: the training step, the network, ten views.

No GPU has run this yet; peak memory on one is what JAX's allocator counts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alexnet_jax import inference, towers
from alexnet_jax.cli.commands import set_up_libraries, use_devices
from alexnet_jax.data.records import statistics_shapes
from alexnet_jax.runs import provenance
from alexnet_jax.runs.run import Run
from alexnet_jax.train import program
from experiments.benchmark import limits
from experiments.benchmark.stepper import stepper
from experiments.benchmark.worker import Work, serve


def build(spec: dict) -> Work:
    """The work of a request, see worker.py. Its random numbers are not PyTorch's, its shapes and types are."""
    set_up_libraries()
    if spec["what"] in ("matmul", "copy"):
        step = _matmul(spec["side"], spec["dtype"]) if spec["what"] == "matmul" else _copy(spec["bytes"])
        return _work(step, lambda: {"platform": jax.default_backend()})
    config = ConfigDict(spec["config"])
    use_devices((config.devices.data, config.devices.tower))
    mesh = towers.make_mesh(config.devices, config.model.towers, config.batch_size)
    memory: dict[str, int] = {}
    if spec["what"] == "train":
        step, memory = stepper(config)
    else:
        step = {"forward": _forward, "ten-view": _ten_views}[spec["what"]](config, mesh)

    def about() -> dict:
        found = {"machine": provenance.of_machine(mesh), "platform": jax.default_backend()}
        found |= {"device": mesh.devices.flat[0].device_kind, "count": jax.device_count()}
        if held := mesh.devices.flat[0].memory_stats():  # None on CPU
            found["device_peak_bytes"] = held["peak_bytes_in_use"]
        return found | memory | limits.cost(config, mesh, spec["what"])._asdict()

    return _work(step, about, batch=config.batch_size)


def _work(step: Callable[[], Any], about: Callable[[], dict], batch: int = 0) -> Work:
    """The work of a function that starts a step and returns what it computes.

    On an accelerator steps queue up, but those of one image: what counts there is how long one takes.
    """
    last: list[Any] = []

    def start() -> None:
        last[:] = [step()]

    queued = jax.default_backend() != "cpu" and batch != 1
    return Work(start, about, lambda: jax.block_until_ready(last), queued)


def _forward(config: ConfigDict, mesh: Mesh) -> Callable[[], object]:
    apply, params = _network(config, mesh)
    options = towers.compiler_options(mesh.devices.flat[0].platform)
    logits = jax.jit(lambda params, images: apply(params, images)[0], compiler_options=options)
    pixels = (_pixels(config.batch_size, config.data.crop).astype(np.float32) - 128) / 2
    images = towers.place(pixels, towers.batch_sharding(mesh))
    return lambda: logits(params, images)


def _ten_views(config: ConfigDict, mesh: Mesh) -> Callable[[], object]:
    apply, params = _network(config, mesh)
    size = config.data.size
    statistics = {name: np.zeros(shape, np.float32) for name, shape in statistics_shapes(size).items()}
    statistics = towers.place(statistics, towers.replicated(mesh))
    forward = inference.make_forward(Run(Path(), 0, config, mesh, apply, params, statistics, []))
    images = towers.place(_pixels(config.batch_size, size), towers.batch_sharding(mesh))
    return lambda: forward(params, statistics, images, views=10)


def _network(config: ConfigDict, mesh: Mesh) -> tuple[Callable, dict]:
    """The network's apply, and parameters.

    On CPU they are constants, because to draw them would take more memory than to use them. Products of constants
    take a GPU less power, so it may clock higher than for the peer: there they are drawn.
    """
    net = program(config, mesh)
    if mesh.devices.flat[0].platform != "cpu":
        return net.apply, net.new_state()["params"]
    return net.apply, jax.tree.map(lambda s: jnp.full(s.shape, 0.01, s.dtype, device=s.sharding), net.state["params"])


def _pixels(batch: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)


def _matmul(side: int, dtype: str) -> Callable[[], object]:
    a, b = (jnp.asarray(np.random.default_rng(i).random((side, side)), dtype) for i in range(2))
    product = jax.jit(jnp.dot, compiler_options=towers.compiler_options(jax.default_backend()))
    return lambda: product(a, b)


def _copy(size: int) -> Callable[[], object]:
    """Reads and writes an array in its place."""
    negated = jax.jit(jnp.negative, donate_argnums=0)
    array = jnp.ones(size // 4)

    def step() -> jax.Array:
        nonlocal array
        array = negated(array)
        return array

    return step


if __name__ == "__main__":
    serve(build)
