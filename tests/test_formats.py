"""Files that lie, are cut short or would run code are refused in one line, and nothing in them is run."""

import importlib
import os
import pickle
import subprocess
import sys

import numpy as np
import safetensors.numpy
import torch
from helpers import foreign
from helpers.foreign import FCS, SIDE, WIDTHS, caffe_net, refuse


def test_missing_layers_and_non_finite_numbers(tmp_path):
    _, layers = caffe_net()
    path = tmp_path / "net.caffemodel"
    path.write_bytes(foreign.caffemodel({n: m for n, m in layers.items() if n != "conv4"}, old=False))
    refuse("conv4 is missing there", "caffe", path)
    path.write_bytes(foreign.caffemodel(layers | {"fc9": layers["fc8"]}, old=False))
    refuse("fc9 is .* there, missing here", "caffe", path)
    layers["fc7"].bias.data[3] = float("nan")
    path.write_bytes(foreign.caffemodel(layers, old=True))
    refuse("fc7 .* contains NaN or infinity", "caffe", path)
    state = {f"{n}.weight": m.weight.detach().numpy() for n, m in layers.items()}
    safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
    refuse("conv1 has no bias", "safetensors", tmp_path / "net.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
    refuse(r"state_dict\(\)", "torchvision", tmp_path / "net.pth")
    refuse("there is no file", "torchvision", tmp_path / "none.pth")


def test_caffes_files_that_are_incomplete_or_lie(tmp_path):
    _, layers = caffe_net()
    whole, path = foreign.caffemodel(layers, old=False), tmp_path / "net.caffemodel"
    for content, match in (
        (whole[: len(whole) // 2], "cannot be read"),
        (b"\x89HDF\r\n", "cannot be read"),
        (b"", "no weights"),
        (bytes(1000), "cannot be read"),
    ):
        path.write_bytes(content)
        refuse(match, "caffe", path)
    net = foreign.CAFFE["NetParameter"]()
    layer = net.layer.add(name="conv1")
    for _ in range(2):
        layer.blobs.add().shape.dim.extend([2**40, 2**40])
    path.write_bytes(net.SerializeToString())
    refuse("0 bytes for numbers of shape", "caffe", path)
    net.layer[0].blobs[0].shape.dim[:] = [1] * 65  # more than NumPy has
    net.layer[0].blobs[0].data.extend([1.0])
    path.write_bytes(net.SerializeToString())
    refuse("4 bytes for numbers of shape", "caffe", path)
    net = foreign.CAFFE["NetParameter"]()
    net.layers.add().layer.name = "conv1"
    path.write_bytes(net.SerializeToString())
    refuse("V0", "caffe", path)


class Evil:
    """Pickles as a call of any function."""

    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def test_malicious_pickles_run_nothing(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "net.npy"
    touch, opening = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    calls = [
        Evil(os.system, touch), Evil(subprocess.run, touch), Evil(eval, opening), Evil(exec, opening),
        Evil(getattr, "", "join"), Evil(importlib.import_module, "this"), Evil(np.load, str(mark)),
        Evil(np.memmap, str(mark), "u1", "w+", 0, (4,)), Evil(np.testing.assert_equal, 1, 1),
    ]  # fmt: skip
    for evil in calls:
        for protocol in (0, 2, 4):
            path.write_bytes(foreign.npy(pickle.dumps(np.array({"conv1": [evil, evil]}, object), protocol)))
            refuse("asks to run .* nothing was run", "npy", path)
    # Names inside NumPy, dotted names, the extension registry, a stand-in whose state is replaced by a function.
    for opcodes in (
        b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        b"cnumpy.core.multiarray\nfromstring\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02\x82\x01.",
        b"cnumpy\ndtype\n(}S'call'\ncposix\nsystem\nsbS'touch'\n\x85R.",
        b"(S'a'\nios\nsystem\n.",
    ):
        path.write_bytes(foreign.npy(opcodes))
        says = "unregistered extension" if opcodes == b"\x80\x02\x82\x01." else "asks to run .* nothing was run"
        refuse(says, "npy", path)
    assert not mark.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["net.npy"]


def test_names_that_grow_when_they_are_written_out_are_not(tmp_path):
    """A few hundred bytes of nested sets that would be written as gigabytes."""
    grown = frozenset()
    for _ in range(40):
        grown = frozenset({frozenset({grown}), grown})
    (tmp_path / "net.npy").write_bytes(foreign.npy(pickle.dumps(np.array({grown: [1, 2]}, object), 4)))
    refuse("cannot be read as an .npy of weights", "npy", tmp_path / "net.npy")


def test_keys_that_take_years_to_hash_are_refused(tmp_path):
    """A few hundred bytes of tuples within tuples, as keys of a dict, one or several, and in a set."""
    nested = b"K\x00" + b"q\x00h\x00\x86" * 60  # x = (x, x), sixty times
    net = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n)U\x01b\x87R(K\x01)NK\x00]"
    for opcodes in (
        net + b"}" + nested + b"K\x01sa", net + b"}(" + nested + b"K\x01ua", net + b"(" + nested + b"K\x01da",
        b"\x80\x04\x8f(" + nested + b"\x90", b"\x80\x04(" + nested + b"\x91",
    ):  # fmt: skip
        (tmp_path / "net.npy").write_bytes(foreign.npy(opcodes + b"tb."))
        refuse("cannot be read as an .npy of weights", "npy", tmp_path / "net.npy")


def test_pickles_that_lie_about_sizes(tmp_path):
    """None of them makes us allocate the memory that it names."""
    path = tmp_path / "net.npy"

    def array(dims, code=b"f4", raw=b"U\x04abcd"):
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + dims + b"U\x01b\x87R(K\x01" + dims
        kind = b"cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R"
        kind += b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        return start + kind + b"\x89" + raw + b"tb"

    huge = b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"  # 2**40 in a tuple
    net = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n)U\x01b\x87R(K\x01)NK\x00]}U\x05conv1]("
    for opcodes in (
        net + 2 * array(huge) + b"esatb.",  # a shape without its numbers
        net + 2 * array(b"J\xff\xff\xff\xff\x85") + b"esatb.",
        net + 2 * array(b"K\x01\x85", b"V9") + b"esatb.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # the memo's place 2**31
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # a bytearray of 2**40
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00.",  # bytes of as many
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x01\x00\x00.",  # a frame of as many
    ):
        path.write_bytes(foreign.npy(opcodes))
        refuse("cannot be read as an .npy of weights", "npy", path)
    good = foreign.python2(foreign.tensorflow(caffe_net()[1], SIDE))
    for content in (good[:-2000], good[:100], b"", b"\x93NUMPY\x09\x00", np.lib.format.magic(1, 0) + b"\xff\xff{"):
        path.write_bytes(content)
        refuse("cannot be read as an .npy of weights", "npy", path)
    np.save(path, np.zeros(3))
    refuse("it is an array", "npy", path)


def test_arrays_of_other_dimensions(tmp_path):
    state = {f"{n}.{kind}": p.detach().numpy() for n, m in caffe_net()[1].items() for kind, p in m.named_parameters()}
    path = tmp_path / "net.safetensors"
    for name, shape in (("fc8.bias", ()), ("fc8.bias", (7, 1)), ("conv1.weight", (3,)), ("conv1.weight", ())):
        safetensors.numpy.save_file(state | {name: np.ones(shape, np.float32)}, path)
        refuse(f"{name.partition('.')[0]} has a kernel of shape .* and a bias of shape", "safetensors", path)
    safetensors.numpy.save_file(state | {"conv1.weight": np.ones((8, 3, 11, 11, 1), np.float32)}, path)
    refuse("conv1 is 11 x 11 x 1 x 3 x 8 with 8 biases there", "safetensors", path)


def test_damaged_state_dicts(tmp_path, monkeypatch):
    net = foreign.TorchVision(WIDTHS, FCS, 7)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    safetensors.numpy.save_file({n: p.numpy() for n, p in net.state_dict().items()}, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for content in (whole[: len(whole) // 2], whole[:9], b"", b"\xff" * 100):
            (tmp_path / name).write_bytes(content)
            refuse("cannot be read", "torchvision", tmp_path / name)
    state = net.state_dict() | {"features.0.weight": torch.zeros(1).expand(2**30, 2**9)}  # a number said to be 2**39
    torch.save(state, tmp_path / "w.pth")
    refuse("without the numbers", "torchvision", tmp_path / "w.pth")
    torch.save({n: p.long() for n, p in net.state_dict().items()}, tmp_path / "w.pth")
    refuse("holds int64", "torchvision", tmp_path / "w.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    refuse(r"pip install torch, or name a \.safetensors", "torchvision", tmp_path / "w.pth")


def test_messages_on_what_is_not_a_state_dict(tmp_path):
    path, x = tmp_path / "w.pth", torch.ones(3, 3)
    for found, says in (
        ([x], "it holds an object of type list"),
        ({"a.weight": 3}, "'a.weight' is not a plain tensor"),
        ({"a.weight": x.to_sparse()}, "not a plain tensor"),
        ({"state_dict": 3}, "it holds an object of type int"),
        (torch.nn.Linear(2, 2), "hold more than tensors"),
    ):
        torch.save(found, path)
        refuse(says, "torchvision", path)
    path.write_bytes(b"\xff" * 100)
    refuse(r"its 100 bytes are not PyTorch's, are incomplete, or hold more", "torchvision", path)
    refuse("is a folder", "torchvision", tmp_path)
