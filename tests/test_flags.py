"""What is wrong with a command's flags ends in one line that names the flag and what it takes."""

import importlib
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.modules import forgotten

from alexnet_jax import UserError, main, towers
from alexnet_jax.analysis import summary
from alexnet_jax.analysis.curves import curves
from alexnet_jax.cli import commands, config_file
from alexnet_jax.cli.verbs import VERBS
from configs import paper
from experiments import sweep


def parse(*words):
    """The flags of `alexnet train`."""
    return commands.parse(main, words, "alexnet train")


def run(verb, words):
    """A verb in this process."""
    module = importlib.import_module(VERBS[verb][0])
    return module.main(commands.parse(module, words, f"alexnet {verb}"))


def one_line(*words):
    with pytest.raises(UserError) as error:
        parse(*words)
    text = str(error.value)
    assert text and "\n" not in text
    return text


C = "--config=configs/paper.py:smoke"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--config.nofield=3"], "--config.nofield: configs/paper.py has no field nofield"),
        (["--config.model.conv_width=3"], "has no field model.conv_width; is it model.conv_widths?"),
        (["--config.learning_rate=3"], "is it optimizer.learning_rate?"),
        (["--config.lr=3"], "is it optimizer.learning_rate?"),
        (["--config.optimizer.wd=3"], "is it optimizer.weight_decay"),
        (["--config.batch_size.x=3"], "is it batch_size?"),
        (["--config.model=3"], "--config.model: it is a section of fields"),
        (["--config.batch_size=many"], "takes a whole number, as in --config.batch_size=32, and 'many' was given"),
        (["--config.batch_size", "1.5"], "--config.batch_size takes a whole number.*'1.5' was given"),
        (["--config.batch_size="], "nothing was given"),
        (["--config.batch_size"], "nothing was given"),
        (["--config.data.flip=7"], "--config.data.flip takes true or false.*'7'"),
        (["--config.optimizer.learning_rate=x"], "--config.optimizer.learning_rate takes a number.*'x'"),
        (["--config.model.conv_widths=(1,"], r"--config.model.conv_widths takes a tuple, as in .*\(12, 32"),
        (["--config.model.conv_widths[0]=3"], "it is set as a whole"),
        (["--process=x"], "--process takes a whole number, and 'x' was given"),
        (["--workdr=1"], "no flag --workdr; did you mean --workdir?"),
        (["--epochs=3"], "no flag --epochs; a field of the config is set as in --config.epochs=3"),
        (["stray"], "'stray' is not a flag"),
        (["--workdir"], "--workdir takes a value"),
    ],
)
def test_overrides_name_the_field_and_what_it_takes(given, says):
    assert re.search(says, one_line(C, *given))


@pytest.mark.parametrize("words", [["--config.batch_size=3"], ["--workdir=x"], []])
def test_a_config_is_required(words):
    assert "name a config, as in --config configs/" in one_line(*words)


def test_fields_are_set_as_they_are_written():
    words = [
        "--config.data.flip", "false", "--noconfig.data.on_device", "--config.epochs", "3", "--process=2",
        "--config.optimizer.momentum", "-1", "--config.model.fc_widths=(7, 9)", "--config.name=a=b", "--distributed",
    ]  # fmt: skip
    flags = parse(*words, C)  # the config may come last
    c = flags.config
    assert flags.process == 2 and flags.distributed and c.is_locked
    assert flags.given == {
        "data.flip": False, "data.on_device": False, "epochs": 3, "optimizer.momentum": -1.0,
        "model.fc_widths": (7, 9), "name": "a=b",
    }  # fmt: skip
    assert not c.data.flip and c.epochs == 3 and c.model.fc_widths == (7, 9) and c.name == "a=b"
    assert parse(C, "--config.data.flip", "--config.epochs=3", "--config.epochs=4").given == {
        "data.flip": True,
        "epochs": 4,
    }
    assert parse(C).given == {} and parse("--config=configs/source.py", C).config.name == "paper_smoke"  # the last one


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("configs/papper.py", "there is no file 'configs/papper.py'.* is it .*/configs/paper.py"),
        ("configs/nothing.py", "there is no file 'configs/nothing.py'.*quickstart.py"),
        ("", "there is no file ''"),
        (".", ". is a folder"),
        ("configs/paper.py:mnist", "configs/paper.py: 'mnist' after the config's colon"),
        ("raises.py", r"raises.py, line 2 cannot be run \(KeyError: 'key'\)"),
        ("syntax.py", "syntax.py cannot be run .SyntaxError"),
        ("none.py", "get_config.. of none.py returns NoneType"),
        ("file", "file is not a Python file"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, monkeypatch, config, says):
    """From outside the repository."""
    (tmp_path / "raises.py").write_text("def get_config():\n    return {}['key']\n")
    (tmp_path / "syntax.py").write_text("def (\n")
    (tmp_path / "none.py").write_text("def get_config():\n    pass\n")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert re.search(says, one_line(f"--config={config}"))


def test_a_file_without_a_config_is_named(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(UserError, match="empty.py has no function get_config"):
        config_file.call(config_file.load(path), path, None)


def test_the_repositorys_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse("--config", "configs/paper.py:smoke", "--config.batch_size=7").config
    assert config.name == "paper_smoke" and config.batch_size == 7
    (tmp_path / "configs").mkdir()  # a folder of one's own goes first
    (tmp_path / "configs" / "paper.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'name': 'own'})\n"
    )
    assert parse("--config=configs/paper.py").config.name == "own"


@pytest.mark.parametrize("place", ["configs/mine.py", "elsewhere/mine.py", "mine.py"])
def test_a_config_file_imports_the_configs_around_it(tmp_path, monkeypatch, place):
    """Those beside it, or the current folder's, else the repository's, though none of these is installed."""
    root = config_file.checkout()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and not (Path(p) / "configs").exists()])
    before = list(sys.path)
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("from configs import paper\ndef get_config():\n    return paper.get_config('smoke')\n")
    with forgotten("configs"):
        assert parse(f"--config={file}").config.name == "paper_smoke"
        assert sys.modules["configs"].__file__ == str(root / "configs" / "__init__.py")
    own = tmp_path / "configs"
    own.mkdir(exist_ok=True)
    (own / "__init__.py").write_text("")
    (own / "paper.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(_):\n    return ConfigDict({'name': 'own'})\n"
    )
    monkeypatch.chdir(tmp_path)
    with forgotten("configs"):
        assert parse(f"--config={file}").config.name == "own"
    assert sys.path == before


@pytest.mark.parametrize(
    ("data", "tower", "says"),
    [
        (0, 0, "devices.data.* is 0"),
        (-1, 1, "devices.data.* is -1"),
        (1, -1, "devices.tower.* is -1"),
        (1, 3, "tower.* is 3"),
    ],
)
def test_devices_are_blamed_by_their_own_name(data, tower, says):
    devices = paper.get_config().devices
    devices.data, devices.tower = data, tower
    with pytest.raises(UserError, match=says):
        towers.make_mesh(devices, 2, 8)


@pytest.mark.parametrize("devices", ["0x1", "1x0", "axb", "9", "", "1x2x3", "99999999999x1", "-1x1"])
def test_devices_that_are_none_are_refused_before_they_are_made(devices):
    words = ["--config=configs/paper.py", f"--devices={devices}"]
    with pytest.raises(UserError, match="--devices"):
        commands.parse(summary, words)
    assert commands.parse(summary, [words[0], "--devices=4x2"]).devices == (4, 2)


def test_averaged_maps_have_their_row_in_the_summary(narrow):
    config = paper.get_config("smoke")
    config.model = narrow(average_pool=2, towers=1, lrn__layers=())
    mesh = towers.make_mesh(config.devices, 1, config.batch_size)
    names = [row["name"] for row in summary.layer_costs(config, mesh)]
    assert names.index("pool5") + 1 == names.index("average_pool5") < names.index("fc6")


RUN, PHOTO = "a run", "a photo"
FEATURES = ("--workdir", RUN, "--images", PHOTO, "--out", "o", "--layer")


@pytest.mark.parametrize(
    ("command", "given", "says"),
    [
        ("evaluate", ["--workdir", RUN, "--dense", "1"], "less than the 64 pixels"),
        ("evaluate", ["--workdir", RUN, "--dense", "1000000000"], "--dense is 1000000000"),
        ("evaluate", ["--workdir", RUN, "--dense", "-5"], "--dense is -5"),
        ("predict", ["--workdir", RUN, PHOTO, "--top", "0"], "--top is 0"),
        ("predict", ["--workdir", "missing", PHOTO], "missing holds no run"),
        ("predict", ["--workdir", "empty", PHOTO], "empty holds no run"),
        ("retrieve", ["--workdir", RUN, "--queries", "1000000000"], "--queries is 1000000000"),
        ("retrieve", ["--workdir", RUN, "--query", "empty"], "empty|no photo"),
        ("features", [*FEATURES, "fc7", "--devices", "0x1"], "0x1"),
        ("features", [*FEATURES, "x"], "no layer x"),
        ("features", [*FEATURES, "fc7", "--batch_size", "0"], "--batch-size=0"),
        ("retrieve", ["--workdir", RUN, "--query", PHOTO, "--no-pixels"], "--no-pixels is for the images of a --split"),
        ("retrieve", ["--workdir", RUN, "--out", "hits.pdf"], "hits.pdf, and the picture is a PNG"),
        ("figures", ["--workdir", RUN, "--towers", "2"], "--towers has no effect here, as a run knows its towers"),
        ("figures", ["--weights", "a.npz", "--what", "curves"], "--what has no effect here, as --weights draws"),
        (
            "figures",
            ["--workdir", RUN, "--workdir", RUN, "--which", "latest"],
            "--which has no effect here, as sev",
        ),
        (
            "convert",
            ["--from", "caffe", "--weights", "x", "--workdir", "y", "--which", "latest"],
            "--which is for --to",
        ),
        ("convert", ["--to", "onnx", "--workdir", RUN, "--config.epochs=3"], "fields of a config are for --from"),
        ("figures", ["--weights", ""], "is no file"),
        ("figures", ["--weights", "empty"], "empty is no file"),
        ("figures", ["--weights", "fifo"], "fifo is no file"),
        ("figures", ["--weights", "missing.npz"], "there is no file missing.npz"),
        ("figures", ["--weights", "conv1.npy"], "conv1.npy is no .npz: --weights takes an .npz"),
        ("figures", ["--weights", "net.pth"], "net.pth is no .npz.*alexnet convert"),
        ("figures", ["--weights", "file"], "file is no .npz, or not a whole one"),
        ("figures", ["--weights", "integers.npz"], "conv1 in integers.npz is int8"),
        ("figures", ["--weights", "pickled.npz"], "plain arrays"),
        ("benchmark", ["input", "--repeats", "0"], "--repeats"),
        ("benchmark", ["trian"], "no 'trian'; did you mean train"),
        ("benchmark", ["x"], "no 'x'; there are train, forward"),
        ("benchmark", ["train", "--batch", "64,0"], "--batch is '64,0'"),
        ("benchmark", ["train", "--network", "resnet"], "names 'resnet', and there are paper, ungrouped, torchvision"),
        ("benchmark", ["split"], "name a config: alexnet benchmark split --config"),
        ("benchmark", ["scaling", "--axis", "depth"], "--axis names 'depth'"),
        ("benchmark", ["scaling", "--out", "a.svg"], "must end with .png"),
        ("benchmark", ["scaling", "--save", "file"], "file is not a file of alexnet benchmark scaling"),
        ("benchmark", ["input", "--seconds", "nan"], "--seconds"),
        ("sweep", ["--sweep", "smoke", "--seeds", "1000000000"], "--seeds"),
        (partial(sweep.make_executor, "local", Path("file/jobs")), [], "cannot write to file/jobs.*--workdir"),
        ("report", ["missing"], "there is no folder missing"),
        ("report", ["file", "empty"], "no run in file, empty"),
    ],
)
def test_commands_name_what_is_wrong(tiny_run, photos, tmp_path, monkeypatch, command, given, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "net.pth").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    np.save(tmp_path / "conv1.npy", np.ones((8, 3, 5, 5)))
    np.savez(tmp_path / "integers.npz", a=np.ones((8, 3, 5, 5), np.int8))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], object))
    known = {RUN: str(tiny_run), PHOTO: str(photos / "validation" / "red" / "0.png")}
    with pytest.raises(UserError, match=says) as error:
        words = [known.get(word, word) for word in given]
        run(command, words) if isinstance(command, str) else command(words)
    assert "\n" not in str(error.value)


def test_records_of_any_kind_are_drawn_as_far_as_they_go(tmp_path):
    good = {"step": 1, "epoch": 0.5, "split": "train", "loss": 1.0}
    odd = [{}, {"split": 3}, *(good | c for c in ({"loss": "x"}, {"step": None}, {"epoch": [1]}, {"loss": 10**400}))]
    assert curves({"run": [good, *odd]}, tmp_path / "a.png").read_bytes() == (
        curves({"run": [good]}, tmp_path / "b.png").read_bytes()
    )


def test_a_device_is_not_replaced_by_a_picture(tmp_path):
    os.mkfifo(tmp_path / "device.png")
    with pytest.raises(UserError, match="is a device or a pipe"):
        curves({"run": []}, tmp_path / "device.png")
    assert (tmp_path / "device.png").is_fifo()


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (UserError("fix it"), "error: fix it"),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 1),
        (OSError(28, "No space left on device", "x"), "error: No space left on device: x"),
        (SystemExit(3), 3),
    ],
)
def test_a_command_ends_in_one_line(raised, status):
    def fails(argv):
        raise raised

    with pytest.raises(SystemExit) as error:
        commands.command(fails)
    assert error.value.code == status


def test_a_closed_standard_output_is_no_error(tmp_path):
    """As of a service: what the command writes to files is there."""
    code = "import os\nfrom alexnet_jax.cli.commands import command\ncommand(lambda words: os.mkdir(words[0]))"
    words = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", code, str(tmp_path / "x")]
    done = subprocess.run(words, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"") and (tmp_path / "x").exists()


def test_a_reader_that_leaves_and_a_full_disk_are_one_line():
    """`| head -1` and `> /dev/full`, of a process that prints more than a pipe holds."""
    code = "from alexnet_jax.cli.commands import command\ncommand(lambda argv: print('x' * 2**20))"
    ran = [sys.executable, "-c", code]
    process = subprocess.Popen(ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1
    with open("/dev/full", "w") as full:
        done = subprocess.run(ran, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == "error: No space left on device\n"
