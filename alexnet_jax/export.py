"""A run's network as one file that other programs run: ONNX, or StableHLO as jax.export writes it.

    session = onnxruntime.InferenceSession("alexnet.onnx")
    logits, probabilities = session.run(None, {"images": crops})     # float32 (b, 3, crop, crop)

    network = jax.export.deserialize(bytearray(open("alexnet.stablehlo", "rb").read()))
    logits = network.call(crops)                                     # float32 (b, crop, crop, 3)

Both take any number of centre crops, RGB in grey levels of 0..255: the mean and the scale of the inputs are inside, as
are the parameters. Both compute in float32.
"""

import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, augment, layers
from alexnet_jax.checkpoint import Run
from alexnet_jax.formats import replacing
from alexnet_jax.model import CONV_SIZES, POOLED, AlexNet

OPSET, IR = 17, 8  # of 2022: what has been able to read ONNX for long can read these
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(run: Run, path: Path):
    """Writes the forward pass, for CPU, NVIDIA GPUs and TPUs. Raises UserError if the file cannot be written."""
    config = run.config.model.copy_and_resolve_references()
    config.dtype = "float32"
    net, (mean, deviation) = AlexNet(FrozenConfigDict(config)), _inputs(run)
    params = jax.device_get(run.params)

    def logits(images):
        return net.apply({"params": params}, (images - mean) / deviation)[0]

    side = run.config.data.crop
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, {side}, {side}, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    with replacing(path) as partial:
        partial.write_bytes(exported.serialize())


def write_onnx(run: Run, path: Path):
    """Writes the graph, with the classes (JSON), the run and its step as its metadata.

    Raises UserError if the onnx package is missing, if ONNX has no such norm, or if the file cannot be written.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("writing ONNX needs its package: pip install -e .[convert]") from error
    model = _Graph(onnx).model(run)
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())


def _inputs(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from a centre crop, (crop, crop, 3), and what then divides it, (3,), both float32."""
    d = run.config.data
    deviation = np.array(d.deviation or (1, 1, 1), np.float32)
    [black] = augment.views(np.zeros((1, d.size, d.size, 3), np.uint8), run.statistics, d, 1)
    return -np.asarray(black[0]) * deviation, deviation


class _Graph:
    """model.AlexNet once more, operation by operation, on (batch, channel, height, width) arrays."""

    def __init__(self, onnx):
        self.onnx, self.nodes, self.constants = onnx, [], []

    def constant(self, array, name: str) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes):
        names = [f"{op}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def model(self, run: Run):
        """The whole as onnx.ModelProto."""
        helper, m, crop = self.onnx.helper, run.config.model, run.config.data.crop
        mean, deviation = _inputs(run)
        x = self.add("Sub", "images", self.constant(mean.transpose(2, 0, 1), "mean"))
        x = self.add("Div", x, self.constant(deviation.reshape(3, 1, 1), "deviation"))
        logits = self.network(x, m, jax.device_get(run.params), crop)
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        self.nodes.append(helper.make_node("Softmax", [logits], ["probabilities"], axis=1))

        def value(name, *shape):
            return helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, ["batch", *shape])

        outputs = [value("logits", m.num_classes), value("probabilities", m.num_classes)]
        graph = helper.make_graph(
            self.nodes, run.config.name, [value("images", 3, crop, crop)], outputs, self.constants
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        made.producer_name = "alexnet_jax"
        about = {"classes": json.dumps(run.classes), "workdir": run.workdir.name, "step": str(run.step)}
        helper.set_model_props(made, about)
        return made

    def network(self, x: str, m: ConfigDict, params: dict, crop: int) -> str:
        """From images, mean removed, to logits."""
        activation = {"relu": "Relu", "tanh": "Tanh"}[m.activation]
        side = crop
        for i, size in enumerate(CONV_SIZES[: len(m.conv_widths)], start=1):
            name = f"conv{i}"
            if name in m.removed:
                continue
            before, after = tuple(m.conv1_padding) if i == 1 else (size // 2, size // 2)
            stride = 4 if i == 1 else 1
            side = (side + before + after - size) // stride + 1
            kernel = self.constant(params[name]["kernel"].transpose(3, 2, 0, 1), f"{name}.kernel")
            bias = self.constant(params[name]["bias"], f"{name}.bias")
            groups = 1 if i == 1 or name in m.exchange else m.towers
            x = self.add(
                "Conv", x, kernel, bias, strides=[stride] * 2, pads=[before, before, after, after], group=groups
            )
            normed, early = name in m.lrn.layers, name in m.lrn.before_activation
            x = self.norm(x, m) if normed and early else x
            x = self.add(activation, x)
            x = self.norm(x, m) if normed and not early and not m.lrn.after_pool else x
            x = self.spatial_norm(x, m.spatial_norm) if name in m.spatial_norm.layers else x
            if name in POOLED:
                x = self.add("MaxPool", x, kernel_shape=[m.pool_size] * 2, strides=[m.pool_stride] * 2)
                side = (side - m.pool_size) // m.pool_stride + 1
            x = self.norm(x, m) if normed and not early and m.lrn.after_pool else x
        if m.average_pool and m.average_pool != side:
            averages = layers.averages(side, m.average_pool)
            x = self.add("MatMul", self.constant(averages, "average.rows"), x)
            x = self.add("MatMul", x, self.constant(averages.T, "average.columns"))
            side = m.average_pool
        x = self.add(activation, self.dense("fc6", x, m, params, side))
        x = self.add(activation, self.dense("fc7", x, m, params, 1))
        return self.dense("fc8", x, m, params, 1)

    def dense(self, name: str, x: str, m: ConfigDict, params: dict, side: int) -> str:
        """A fully connected layer: its kernel's rows go from (y, x, map) to (map, y, x), tower by tower."""
        towers = 1 if name in m.exchange else m.towers
        parts = self.add("Split", x, outputs=towers, axis=1) if towers > 1 else [x]
        kernels = np.split(params[name]["kernel"], towers, axis=1)
        products = []
        for i, (part, kernel) in enumerate(zip(parts, kernels, strict=True)):
            rows = kernel.reshape(side, side, -1, kernel.shape[1]).transpose(2, 0, 1, 3).reshape(kernel.shape)
            flat = self.add("Flatten", part) if name == "fc6" else part
            products.append(self.add("MatMul", flat, self.constant(rows, f"{name}.kernel.{i}")))
        x = self.add("Concat", *products, axis=1) if towers > 1 else products[0]
        return self.add("Add", x, self.constant(params[name]["bias"], f"{name}.bias"))

    def norm(self, x: str, m: ConfigDict) -> str:
        """Local response normalization; ONNX divides alpha by the size."""
        rule = m.lrn
        if rule.size % 2 == 0:
            raise UserError(
                f"ONNX's LRN has odd sizes alone, and model.lrn.size is {rule.size}: --to stablehlo takes it"
            )
        alpha = rule.alpha if rule.divide_by_size else rule.alpha * rule.size
        rule = {"alpha": alpha, "beta": rule.beta, "bias": rule.k, "size": rule.size}
        if not m.lrn.per_tower or m.towers == 1:
            return self.add("LRN", x, **rule)
        parts = self.add("Split", x, outputs=m.towers, axis=1)
        return self.add("Concat", *(self.add("LRN", part, **rule) for part in parts), axis=1)

    def spatial_norm(self, x: str, rule: ConfigDict) -> str:
        """The code's norm within a map: the mean over size x size places, zeros beyond the edge."""
        before, after = (rule.size - 1) // 2, rule.size // 2
        mean = self.add(
            "AveragePool", self.add("Mul", x, x),
            kernel_shape=[rule.size] * 2, pads=[before, before, after, after], count_include_pad=1,
        )  # fmt: skip
        k, alpha, beta = (self.constant([rule[f]], f"spatial.{f}.{len(self.nodes)}") for f in ("k", "alpha", "beta"))
        return self.add("Div", x, self.add("Pow", self.add("Add", self.add("Mul", mean, alpha), k), beta))
