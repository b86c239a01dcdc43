"""A run's network as one file that other programs run: an ONNX graph, or StableHLO that JAX alone calls.

    onnxruntime.InferenceSession("net.onnx").run(["logits"], {"images": images})     # float32 (b, 3, crop, crop)
    jax.export.deserialize(bytearray(open("net.stablehlo", "rb").read())).call(images)  # float32 (b, crop, crop, 3)

Images are centre crops, RGB in grey levels of 0..255: the mean and the deviation are in the file, as the parameters
are. Any batch goes in. What comes out is what Run says of the same crops. Reading StableHLO takes jax and
flatbuffers; JAX promises to read it for six months after the version that wrote it.
"""

import json
from pathlib import Path

import jax
import jax.export
import numpy as np
from ml_collections import FrozenConfigDict

from alexnet_jax import UserError, __version__, layers
from alexnet_jax.data import augment
from alexnet_jax.files import replacing
from alexnet_jax.model import AlexNet, fc6_side
from alexnet_jax.runs.run import Run
from alexnet_jax.weights import formats

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, 2022: what runtimes of the years since read
PLATFORMS = ("cpu", "cuda", "tpu")
ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh"}  # model.ACTIVATIONS as ONNX operators
KINDS = ("kernel", "bias")


def onnx(run: Run, path: Path):
    """Writes the network as ONNX.

    Input: images float32 (batch, 3, crop, crop). Outputs: logits and probabilities, float32 (batch, classes). The
    other activations bear the names that model.AlexNet gives them. The metadata hold step, classes and model, the
    config's section, as JSON. A bfloat16 network is written in float32, as its parameters are.
    Raises UserError if the package onnx is missing, or if the file cannot be written.
    """
    library = _library()
    m, d, side = run.config.model, run.config.data, run.config.data.crop
    graph = _Graph(library, run)
    tensor, float32 = library.helper.make_tensor_value_info, library.TensorProto.FLOAT
    inputs = [tensor("images", float32, ["batch", 3, side, side])]
    outputs = [tensor(name, float32, ["batch", m.num_classes]) for name in ("logits", "probabilities")]
    proto = library.helper.make_model(
        library.helper.make_graph(graph.nodes, "AlexNet", inputs, outputs, graph.constants),
        opset_imports=[library.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet_jax",
        producer_version=__version__,
        doc_string=f"images: RGB in grey levels of 0..255, the centre {side} x {side} of {d.size} x {d.size} pixels"
        + "; trained in bfloat16, computed in float32" * (m.dtype == "bfloat16"),
    )
    about = {"step": run.step, "classes": run.classes, "model": json.loads(m.to_json())}
    library.helper.set_model_props(proto, {name: json.dumps(value) for name, value in about.items()})
    proto = library.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    library.checker.check_model(proto)
    with replacing(path) as partial:
        partial.write_bytes(proto.SerializeToString())


def stablehlo(run: Run, path: Path):
    """Writes the network as jax.export serializes it, for CPUs, GPUs and TPUs.

    Its call takes images float32 (b, crop, crop, 3) and returns logits float32 (b, classes).
    Raises UserError if the file cannot be written.
    """
    network = AlexNet(FrozenConfigDict(run.config.model))
    params = jax.tree.map(np.asarray, run.params)
    mean, deviation = _scales(run)
    crop = run.config.data.crop

    def logits(images):
        return network.apply({"params": params}, (images - mean) / deviation)[0]

    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, {crop}, {crop}, 3"), np.float32)
    exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    with replacing(path) as partial:
        partial.write_bytes(exported.serialize())


def _library():
    """The package onnx, with the submodules that it does not import itself. Raises UserError if it is missing."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise UserError("writing ONNX needs the package onnx: pip install -e .[convert]") from error
    return onnx


def _scales(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """What a centre crop loses, (crop, crop, 3) or (1, 1, 3), and what the rest is divided by, (1, 1, 3); float32."""
    d = run.config.data
    mean = augment.centre_mean(run.statistics, d, d.crop)
    return np.array(mean, np.float32, ndmin=3), np.array(d.deviation or (1, 1, 1), np.float32, ndmin=3)


class _Graph:
    """The network of a run in ONNX operators: nodes and constants. Arrays are (batch, maps, height, width)."""

    def __init__(self, library, run: Run):
        m, crop = run.config.model, run.config.data.crop
        self.library, self.m, self.nodes, self.constants = library, m, [], []
        maps = run.params["fc6"]["kernel"].shape[0] // fc6_side(m, run.params) ** 2  # that an output of fc6 reads
        self.parameters = formats.from_ours(run.params, "torchvision", maps)
        apply = AlexNet(FrozenConfigDict(m)).apply
        image = jax.ShapeDtypeStruct((1, crop, crop, 3), np.float32)
        self.shapes = jax.eval_shape(apply, {"params": run.params}, image)[1]  # of the activations, by name
        self._network(*_scales(run))

    def _add(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes) -> str | list[str]:
        """Adds a node. Returns what its output is called, `name` or one of its own; a list where it has several."""
        name = name or f"{op.lower()}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i + 1}" for i in range(outputs)]
        self.nodes.append(self.library.helper.make_node(op, inputs, names, f"{op}:{name}", **attributes))
        return names[0] if outputs == 1 else names

    def _constant(self, value, name: str = "", dtype=np.float32) -> str:
        name = name or f"constant_{len(self.constants)}"
        array = np.array(value, dtype, order="C")
        self.constants.append(self.library.numpy_helper.from_array(array, name))
        return name

    def _network(self, mean: np.ndarray, deviation: np.ndarray):
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

    def _groups(self, layer: str) -> int:
        return 1 if layer in ("conv1", *self.m.exchange) else self.m.towers

    def _convolution(self, i: int, x: str) -> str:
        """Convolution i with its nonlinearity, norm and pool, in the config's order."""
        m, name, size, stride = self.m, f"conv{i}", self.m.conv_sizes[i - 1], self.m.conv_strides[i - 1]
        before, after = m.conv1_padding if i == 1 else (size // 2, size // 2)
        kernel, bias = (self._constant(self.parameters[name][kind], f"{name}.{kind}") for kind in KINDS)
        normed = name in m.lrn.layers
        early = normed and name in m.lrn.before_activation
        x = self._add(
            "Conv", x, kernel, bias,
            kernel_shape=[size, size], strides=[stride, stride], pads=[before, before, after, after],
            group=self._groups(name),
        )  # fmt: skip
        if early:
            x = self._norm(i, x)
        x = self._add(ACTIVATIONS[m.activation], x, name=name)
        if normed and not early and name not in m.lrn.after_pool:
            x = self._norm(i, x)
        if name in m.spatial_norm.layers:
            x = self._spatial_norm(i, x)
        if name in m.pooled:
            size, stride = m.pool_size, m.pool_stride
            x = self._add("MaxPool", x, name=f"pool{i}", kernel_shape=[size, size], strides=[stride, stride])
        if normed and not early and name in m.lrn.after_pool:
            x = self._norm(i, x)
        return x

    def _norm(self, i: int, x: str) -> str:
        """layers.local_response_norm."""
        rule, name, size = self.m.lrn, f"norm{i}", self.m.lrn.size
        groups = self.m.towers if rule.per_tower else 1
        mean_alpha = rule.alpha if rule.divide_by_size else rule.alpha * size  # ONNX divides alpha by size
        if size % 2:
            values = {"size": size, "bias": rule.k, "alpha": mean_alpha, "beta": rule.beta}
            if groups == 1:
                return self._add("LRN", x, name=name, **values)
            towers = self._add("Split", x, outputs=groups, axis=1)
            return self._add("Concat", *(self._add("LRN", t, **values) for t in towers), name=name, axis=1)
        # A window of even size cannot be central: ONNX has the odd map after, we before, and ONNX Runtime takes none.
        _, height, width, maps = self.shapes[name].shape
        rows = self._constant([0, groups, maps // groups, height * width], dtype=np.int64)
        places = self._constant([0, maps, height, width], dtype=np.int64)
        mean = {"kernel_shape": [size, 1], "pads": [size // 2, 0, (size - 1) // 2, 0]}
        normed = self._response_norm(self._add("Reshape", x, rows), "", rule.k, mean_alpha, rule.beta, **mean)
        return self._add("Reshape", normed, places, name=name)

    def _spatial_norm(self, i: int, x: str) -> str:
        """layers.spatial_response_norm."""
        rule = self.m.spatial_norm
        before, after = (rule.size - 1) // 2, rule.size // 2
        mean = {"kernel_shape": [rule.size, rule.size], "pads": [before, before, after, after]}
        return self._response_norm(x, f"spatial_norm{i}", rule.k, rule.alpha, rule.beta, **mean)

    def _response_norm(self, x: str, name: str, k: float, alpha: float, beta: float, **mean) -> str:
        """x / (k + alpha M)^beta, M the mean of the squares in a window that zeros surround."""
        mean = self._add("AveragePool", self._add("Mul", x, x), count_include_pad=1, **mean)
        base = self._add("Add", self._add("Mul", mean, self._constant(alpha)), self._constant(k))
        return self._add("Div", x, self._add("Pow", base, self._constant(beta)), name=name)

    def _average_pool(self, x: str) -> str:
        """layers.average_pool: from the left it averages rows, from the right columns."""
        found, side = self.shapes["pool5"].shape[1], self.m.average_pool
        if found == side:
            return x
        averages = layers.averages(found, side)
        x = self._add("MatMul", self._constant(averages, "average_rows"), x)
        return self._add("MatMul", x, self._constant(averages.T, "average_columns"), name="average_pool5")

    def _connected(self, layer: str, x: str, name: str = "") -> str:
        """A fully connected layer on vectors, linear, tower by tower where each reads its own."""
        groups = self._groups(layer)
        if groups == 1:
            kernel, bias = (self._constant(self.parameters[layer][kind], f"{layer}.{kind}") for kind in KINDS)
            return self._add("Gemm", x, kernel, bias, name=name, transB=1)
        out = []
        for i, own in enumerate(self._add("Split", x, outputs=groups, axis=1)):
            shares = (np.split(self.parameters[layer][kind], groups)[i] for kind in KINDS)
            kernel, bias = (self._constant(s, f"{layer}.{k}_{i + 1}") for s, k in zip(shares, KINDS, strict=True))
            out.append(self._add("Gemm", own, kernel, bias, transB=1))
        return self._add("Concat", *out, name=name, axis=1)
