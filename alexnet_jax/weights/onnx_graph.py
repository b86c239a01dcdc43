"""A run's network as an ONNX graph, which runtimes of other frameworks execute.

    onnxruntime.InferenceSession("net.onnx").run(["logits"], {"images": images})  # float32 (b, 3, crop, crop)

Images are centre crops, RGB in grey levels of 0..255: the mean and the deviation are in the file, as the parameters
are. Any batch size works.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, __version__, layers
from alexnet_jax.files import replacing
from alexnet_jax.model import AlexNet
from alexnet_jax.runs.run import Run
from alexnet_jax.weights.layouts import PYTORCH, fc6_maps, from_ours
from alexnet_jax.weights.stablehlo import mean_and_deviation

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, 2022: what runtimes since then read
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}  # model.ACTIVATIONS as ONNX operators


def write(run: Run, path: Path) -> None:
    """Writes the network as ONNX.

    Input: images float32 (batch, 3, crop, crop). Outputs: logits and probabilities, float32 (batch, classes). The
    other activations have the names that model.AlexNet gives them. The metadata are step, classes and model (the
    config's section), as JSON. A bfloat16 network is written in float32, as its parameters are.
    Raises UserError if the package onnx is missing, or if the file cannot be written.
    """
    onnx = _import_onnx()
    config, side = run.config.model, run.config.data.crop
    graph = _Graph(onnx, run)
    graph.add_network(*mean_and_deviation(run))
    tensor, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [tensor("images", float32, ["batch", 3, side, side])]
    outputs = [tensor(name, float32, ["batch", config.num_classes]) for name in ("logits", "probabilities")]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "AlexNet", inputs, outputs, graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet_jax",
        producer_version=__version__,
        doc_string=_description(run.config),
    )
    metadata = {"step": run.step, "classes": run.classes, "model": json.loads(config.to_json())}
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())


def _import_onnx() -> ModuleType:
    """The package onnx, with the submodules that it does not import itself. Raises UserError if it is missing."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise UserError("writing ONNX requires the package onnx: pip install onnx") from error
    return onnx


def _description(config: ConfigDict) -> str:
    crop, size = config.data.crop, config.data.size
    text = f"images: RGB in grey levels of 0..255, the centre {crop} x {crop} of {size} x {size} pixels"
    if config.model.dtype == "bfloat16":
        text += "; trained in bfloat16, computed in float32"
    return text


class _Graph:
    """The network of a run in ONNX operators: nodes and constants. Arrays are (batch, maps, height, width).

    Methods that add something take the name of their input and return that of their output.
    """

    def __init__(self, onnx: ModuleType, run: Run):
        self.onnx, self.m = onnx, run.config.model
        self.nodes: list = []
        self.constants: list = []
        self.parameters = from_ours(run.params, PYTORCH, fc6_maps(self.m, run.params))
        crop = run.config.data.crop
        image = jax.ShapeDtypeStruct((1, crop, crop, 3), np.float32)
        apply = AlexNet(FrozenConfigDict(self.m)).apply
        self.shapes = jax.eval_shape(apply, {"params": run.params}, image)[1]  # of the activations, by name

    def add_network(self, mean: np.ndarray, deviation: np.ndarray) -> None:
        """Adds all, from "images" to "logits" and "probabilities"; see stablehlo.mean_and_deviation."""
        m, x = self.m, "images"
        if mean.any():
            x = self._add("Sub", x, self._constant(mean.transpose(2, 0, 1), "mean"))
        if (deviation != 1).any():
            x = self._add("Div", x, self._constant(deviation.transpose(2, 0, 1), "deviation"))
        for i in range(1, len(m.conv_widths) + 1):
            if f"conv{i}" not in m.removed:
                x = self._convolution(i, x)
        if m.average_pool:
            x = self._average_pool(x)
        x = self._add("Flatten", x)
        x = self._add(ACTIVATIONS[m.activation], self._connected("fc6", x), name="fc6")
        x = self._add(ACTIVATIONS[m.activation], self._connected("fc7", x), name="fc7")
        x = self._connected("fc8", x, name="logits")
        self._add("Softmax", x, name="probabilities", axis=1)

    # Nodes and constants.

    def _add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node. `name`: of its output, which gets a numbered one without it."""
        name = name or self._numbered(operator)
        self._node(operator, inputs, [name], name, attributes)
        return name

    def _split(self, x: str, parts: int) -> list[str]:
        """Equal parts of the maps, or of the units."""
        name = self._numbered("Split")
        names = [f"{name}_{i + 1}" for i in range(parts)]
        self._node("Split", [x], names, name, {"axis": 1})
        return names

    def _numbered(self, operator: str) -> str:
        return f"{operator.lower()}_{len(self.nodes)}"

    def _node(self, operator: str, inputs: Sequence[str], outputs: list[str], name: str, attributes: dict) -> None:
        node = self.onnx.helper.make_node(operator, inputs, outputs, f"{operator}:{name}", **attributes)
        self.nodes.append(node)

    def _constant(self, value: Any, name: str = "", dtype: type = np.float32) -> str:
        name = name or f"constant_{len(self.constants)}"
        array: np.ndarray = np.array(value, dtype, order="C")
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    # Layers.

    def _groups(self, layer: str) -> int:
        reads_everything = layer == "conv1" or layer in self.m.exchange
        return 1 if reads_everything else self.m.towers

    def _convolution(self, i: int, x: str) -> str:
        """Convolution i with its nonlinearity, norm and pool, in the config's order."""
        m, name = self.m, f"conv{i}"
        place = self._place_of_norm(name)
        x = self._plain_convolution(i, x)
        if place == "before the nonlinearity":
            x = self._norm(i, x)
        x = self._add(ACTIVATIONS[m.activation], x, name=name)
        if place == "before the pool":
            x = self._norm(i, x)
        if name in m.spatial_norm.layers:
            x = self._spatial_norm(i, x)
        if name in m.pooled:
            window, step = [m.pool_size, m.pool_size], [m.pool_stride, m.pool_stride]
            x = self._add("MaxPool", x, name=f"pool{i}", kernel_shape=window, strides=step)
        if place == "after the pool":
            x = self._norm(i, x)
        return x

    def _place_of_norm(self, layer: str) -> str | None:
        """Where a convolution has its norm, if it has one."""
        rule = self.m.lrn
        if layer not in rule.layers:
            return None
        if layer in rule.before_activation:
            return "before the nonlinearity"
        return "after the pool" if layer in rule.after_pool else "before the pool"

    def _plain_convolution(self, i: int, x: str) -> str:
        """The linear part of convolution i."""
        name = f"conv{i}"
        size, stride = self.m.conv_sizes[i - 1], self.m.conv_strides[i - 1]
        before, after = self.m.conv1_padding if i == 1 else (size // 2, size // 2)
        kernel = self._constant(self.parameters[name]["kernel"], f"{name}.kernel")
        bias = self._constant(self.parameters[name]["bias"], f"{name}.bias")
        return self._add(
            "Conv",
            x,
            kernel,
            bias,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=self._groups(name),
        )

    def _norm(self, i: int, x: str) -> str:
        """layers.local_response_norm."""
        rule, name, size = self.m.lrn, f"norm{i}", self.m.lrn.size
        groups = self.m.towers if rule.per_tower else 1
        alpha = rule.alpha if rule.divide_by_size else rule.alpha * size  # ONNX divides alpha by size
        if size % 2 == 0:
            return self._even_norm(name, x, groups, alpha)
        values = {"size": size, "bias": rule.k, "alpha": alpha, "beta": rule.beta}
        if groups == 1:
            return self._add("LRN", x, name=name, **values)
        towers = [self._add("LRN", tower, **values) for tower in self._split(x, groups)]
        return self._add("Concat", *towers, name=name, axis=1)

    def _even_norm(self, name: str, x: str, groups: int, alpha: float) -> str:
        """A norm over an even number of maps, which has no centre: the spec of LRN has the odd map after it, we before.

        ONNX Runtime refuses even sizes.
        """
        rule, size = self.m.lrn, self.m.lrn.size
        _, height, width, maps = self.shapes[name].shape
        rows = self._constant([0, groups, maps // groups, height * width], dtype=np.int64)
        places = self._constant([0, maps, height, width], dtype=np.int64)
        window = {"kernel_shape": [size, 1], "pads": [size // 2, 0, (size - 1) // 2, 0]}
        normed = self._response_norm(self._add("Reshape", x, rows), "", rule.k, alpha, rule.beta, window)
        return self._add("Reshape", normed, places, name=name)

    def _spatial_norm(self, i: int, x: str) -> str:
        """layers.spatial_response_norm."""
        rule = self.m.spatial_norm
        before, after = (rule.size - 1) // 2, rule.size // 2
        window = {"kernel_shape": [rule.size, rule.size], "pads": [before, before, after, after]}
        return self._response_norm(x, f"spatial_norm{i}", rule.k, rule.alpha, rule.beta, window)

    def _response_norm(self, x: str, name: str, k: float, alpha: float, beta: float, window: dict) -> str:
        """x / (k + alpha M)^beta, where M is the mean of the squares in a window, with zeros beyond the edges."""
        mean = self._add("AveragePool", self._add("Mul", x, x), count_include_pad=1, **window)
        base = self._add("Add", self._add("Mul", mean, self._constant(alpha)), self._constant(k))
        return self._add("Div", x, self._add("Pow", base, self._constant(beta)), name=name)

    def _average_pool(self, x: str) -> str:
        """layers.average_pool: a matrix from the left averages rows, one from the right columns."""
        last = len(self.m.conv_widths)
        maps = f"pool{last}" if f"conv{last}" in self.m.pooled else f"conv{last}"
        found, side = self.shapes[maps].shape[1], self.m.average_pool
        if found == side:
            return x
        averages = layers.averages(found, side)
        x = self._add("MatMul", self._constant(averages, "average_rows"), x)
        return self._add("MatMul", x, self._constant(averages.T, "average_columns"), name="average_pool5")

    def _connected(self, layer: str, x: str, name: str = "") -> str:
        """The linear part of a fully connected layer, tower by tower where each reads its own."""
        groups = self._groups(layer)
        kernel, bias = self.parameters[layer]["kernel"], self.parameters[layer]["bias"]
        if groups == 1:
            kernel_name = self._constant(kernel, f"{layer}.kernel")
            return self._add("Gemm", x, kernel_name, self._constant(bias, f"{layer}.bias"), name=name, transB=1)
        towers = []
        shares = zip(self._split(x, groups), np.split(kernel, groups), np.split(bias, groups), strict=True)
        for i, (own, kernel, bias) in enumerate(shares, 1):
            kernel_name = self._constant(kernel, f"{layer}.kernel_{i}")
            towers.append(self._add("Gemm", own, kernel_name, self._constant(bias, f"{layer}.bias_{i}"), transB=1))
        return self._add("Concat", *towers, name=name, axis=1)
