"""A run that is read back is the network that was trained, on any devices; a workdir is one run's, whole or refused."""

import errno
import gc
import itertools
import json
import os
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from helpers.runs import Killed, kill_at
from ml_collections import ConfigDict, FrozenConfigDict

from alexnet_jax import UserError, checkpoint, main, metrics, optimizer, towers
from alexnet_jax.config import FIELDS, flat
from alexnet_jax.data import prepare
from alexnet_jax.model import AlexNet
from alexnet_jax.runs import finetune, ownership, provenance
from alexnet_jax.runs.run import load_run, read_config, read_statistics
from alexnet_jax.train import program
from configs import quickstart, six_conv


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 72, 72, 3), np.uint8)


def test_a_run_is_called_on_images(tiny_run, images):
    """Logits and activations of the centre crop, the mean removed at its place, in three lines."""
    run = load_run(tiny_run)
    logits, activations = run(images)
    centre = (images - run.statistics["mean"])[:, 4:68, 4:68]
    plain = AlexNet(FrozenConfigDict(run.config.model)).apply({"params": run.params}, centre)
    np.testing.assert_allclose(logits, plain[0], atol=1e-4)
    assert activations.keys() == plain[1].keys()
    np.testing.assert_allclose(activations["fc7"], plain[1]["fc7"], atol=1e-4)
    with pytest.raises(ValueError, match="must be"):
        run(images[:, :64, :64])


@pytest.mark.parametrize("data, tower", [(1, 2), (2, 1), (2, 2)])
def test_on_more_devices_it_says_the_same(tiny_run, images, data, tower):
    one, many = load_run(tiny_run), load_run(tiny_run, data=data, tower=tower)
    assert many.mesh.devices.size == data * tower
    expected, found = one(images)[1], many(images)[1]
    for name in expected:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * scale, err_msg=name)


def test_too_few_devices_are_named(tiny_run):
    with pytest.raises(UserError, match="devices"):
        load_run(tiny_run, data=8, tower=2)


# --- Whose a workdir is -----------------------------------------------------------------------------------------------

MACHINE = {"CPU": "80486", "cores": 1}


@pytest.fixture
def claim(config, tmp_path):
    """claim(facts, step): claims tmp_path / "run" for the config and lets go of it; a step: it has trained so far."""
    workdir = tmp_path / "run"

    def make(facts=None, step=None):
        ownership.claim(workdir, config, {"mean": np.zeros(3)}, ["a"], facts, MACHINE).close()
        if step is not None:
            (workdir / "checkpoints" / f"step_{step}").mkdir(parents=True)
        return workdir

    return make


def test_a_claim_that_is_killed_is_made_anew(config, claim, tmp_path, monkeypatch):
    """Before each of its three files takes its name; what a kill leaves, and what earlier versions left, is removed."""
    for call in (1, 2, 3):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with monkeypatch.context() as m, pytest.raises(Killed):
            kill_at(m, os, "replace", call)
            claim({"classes": "x"})
        config.batch_size += 1  # nor has anybody else's config come to stay
        workdir = claim({"classes": "x"})
        assert {p.name for p in workdir.iterdir()} == {".lock", "config.json", "statistics.npz", "provenance.json"}
        assert read_config(workdir).batch_size == config.batch_size
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    earlier = ("statistics.tmp.npz", "config.tmp", "partial.config.json")
    for name in (*earlier, "statistics.npz.tmp", "config.json.tmp", ".lock"):
        (tmp_path / "run" / name).touch()
    assert {p.name for p in claim().iterdir()} == {".lock", "config.json", "statistics.npz"}


@pytest.mark.parametrize("name", ["thesis.tex", "statistics.npz", "checkpoints", "thesis.npz.tmp"])
def test_files_of_others_are_refused_and_left(claim, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("dear")
    with pytest.raises(UserError, match=f"not empty .{name}. and holds no run"):
        claim()
    assert [p.name for p in (tmp_path / "run").iterdir()] == [name] and (tmp_path / "run" / name).read_text() == "dear"


def test_a_run_that_has_nothing_yet_gives_way_to_another_config(config, claim):
    claim()
    config.batch_size = 3
    workdir = claim()
    (workdir / "metrics.jsonl").write_text("{}\n")
    config.batch_size = 4
    with pytest.raises(UserError, match="batch_size: 3 there, 4 here"):
        claim()


def test_what_a_claim_would_refuse_is_refused_before_the_data_is_prepared(config, claim, tmp_path, monkeypatch):
    """Which takes hours for ImageNet."""
    monkeypatch.setattr(main, "ready", lambda *_: pytest.fail("prepares the data"))
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/letter.txt").write_text("")
    for workdir, says in (
        (tmp_path / "file", "is a file"), (tmp_path / "file/run", "is a file"),
        (tmp_path / "foreign", "is not empty .letter.txt."),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says) as error:
            main.run(config, workdir)
        assert "name another --workdir" in str(error.value)
    claim()
    other = config.copy_and_resolve_references()
    other.batch_size, other.model.num_classes = 4, 0
    ownership.refuse_unusable(tmp_path / "run", other)  # nothing is trained: another may take its place
    (tmp_path / "run/metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"another config \(batch_size: \d+ there, 4 here\)"):
        main.run(other, tmp_path / "run")
    other.batch_size = config.batch_size
    ownership.refuse_unusable(tmp_path / "run", other)
    saved = json.loads((tmp_path / "run/config.json").read_text())
    saved["data"]["name"], other.data.name = "photos", "./photos"  # as folders could be written once
    (tmp_path / "run/config.json").write_text(json.dumps(saved))
    ownership.refuse_unusable(tmp_path / "run", other)


def test_other_data_is_refused(config, claim, photos, tmp_path, monkeypatch):
    """A photo less, a photo that moved, or another Pillow; an older run, which has no record of its data, goes on."""
    root = shutil.copytree(photos, tmp_path / "photos")
    config.data.name = str(root)
    kept = iter(range(9))

    def facts():
        config.data.prepared_dir = str(tmp_path / f"prepared{next(kept)}")
        return provenance.of_data(prepare.prepare(config.data))

    first = facts()
    workdir = claim(first, step=6)
    claim(facts())
    with monkeypatch.context() as m:
        m.setattr(prepare, "_to_jpeg", lambda *a, real=prepare._to_jpeg: real(*a)[:-2] + b"\xff\xd9")
        m.setattr(prepare, "decode", lambda jpeg, real=prepare.decode: real(jpeg) // 2)
        other = facts()
    with pytest.raises(UserError, match=rf"{workdir} was trained on \(statistics\): put .*prepared_dir says, or"):
        claim(other)
    (root / "validation" / "red" / "0.png").rename(root / "validation" / "blue" / "99.png")
    with pytest.raises(UserError, match=r"\(names of validation images; labels of validation images\)"):
        claim(facts())
    (root / "validation" / "blue" / "99.png").unlink()
    with pytest.raises(UserError, match="number of validation images: 33 there, 32 here") as e:
        claim(facts())
    assert "\n" not in str(e.value)
    (workdir / "provenance.json").unlink()
    claim(facts())


def test_another_machine_is_warned_of_for_good(claim):
    workdir = claim({"classes": "x"}, step=6)
    assert provenance.warning(MACHINE, workdir) is None
    two = MACHINE | {"cores": 2}
    said = provenance.warning(two, workdir)
    assert "cores: 1 there, 2 here" in said and "bit for bit" in said and "\n" not in said and "CPU" not in said
    (workdir / "provenance.json").write_text(provenance.text({}, two, workdir, fresh=False))
    assert provenance.warning(MACHINE, workdir)
    (workdir / "provenance.json").write_text("[]")
    with pytest.raises(UserError, match=r"provenance.json is damaged .*remove it"):
        claim({"classes": "x"})


@pytest.mark.parametrize(
    ("fields", "epochs", "says"),
    [
        ({}, 9, None),
        ({"optimizer.rule": "plateau"}, 9, None),
        ({}, 3, None),
        ({"optimizer.layer_rates": ((0, "conv1", 0.0), (3, "conv1", 1.0))}, 9, None),
        ({"optimizer.rule": "stages"}, 9, "rates depend on it"),
        ({}, 2, "2 are trained already"),
        ({"optimizer.layer_rates": ((0, "conv1", 0.0), (6, "conv1", 1.0))}, 9, "freezes conv1"),
    ],
)
def test_epochs_may_change_where_those_trained_do_not(config, claim, fields, epochs, says):
    """Of four, two are trained."""
    config.update_from_flattened_dict(fields)
    facts = {"number of training images": 96}
    workdir = claim(facts, step=12)
    config.epochs = epochs
    if says is None:
        claim(facts)
        assert read_config(workdir).epochs == epochs
        return
    with pytest.raises(UserError, match=says) as e:
        claim(facts)
    assert "\n" not in str(e.value) and "--config.epochs" in str(e.value)
    assert read_config(workdir).epochs == 4


# --- Damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A copy of tiny_run."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


def changed(workdir, field, value):
    """A run's config.json with a field changed; None: taken out."""
    tree = json.loads((workdir / "config.json").read_text())
    *sections, name = field.split(".")
    inner = tree
    for section in sections:
        inner = inner[section]
    inner.pop(name) if value is None else inner.update({name: value})
    return json.dumps(tree)


@pytest.mark.parametrize("content", ["", "[1]", "null", "7", '"x"', '{"name": "pap', "{}", "\xff"])
def test_a_config_that_is_none_is_named(copy, content):
    (copy / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"copy/config\.json is damaged .*name another --workdir") as e:
        load_run(copy)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None), ("model.lrn", None), ("data", []), ("batch_size", "many"), ("epochs", 1.5), ("name", 3),
        ("model.conv_widths", ["a"] * 5), ("model.towers", True), ("data.flip", "yes"), ("model.lrn.k", {}),
        ("model.dropout", None), ("model.lrn.alpha", float("nan")), ("model.activation", "sine"), ("data.size", 10**9),
    ],
)  # fmt: skip
def test_a_field_that_is_missing_or_holds_what_it_may_not_is_named(copy, field, value):
    (copy / "config.json").write_text(changed(copy, field, value))
    with pytest.raises(UserError, match=rf"config\.json is damaged .*{field}"):
        load_run(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model.conv_sizes", [11, 5, 3, 3, 3, 3]), ("data.crop", 10**4), ("model.towers", 5), ("model.pooled", ["conv6"])],
)
def test_fields_that_make_no_network_are_named(copy, field, value):
    (copy / "config.json").write_text(changed(copy, field, value))
    with pytest.raises(UserError, match=rf"config\.json is damaged .*{field.partition('.')[0]}") as e:
        load_run(copy)
    assert "\n" not in str(e.value)


def test_a_run_older_than_a_field_computes_what_it_did(copy, images):
    """Without all that version 0.1.0 did not write, and with what only its first days wrote."""
    expected = load_run(copy)
    for field in [name for name, row in FIELDS.items() if row.newer]:
        (copy / "config.json").write_text(changed(copy, field, None))
    for field, value in (("start", None), ("data.train_scale", 1.0), ("model.lrn.after_pool", False)):
        (copy / "config.json").write_text(changed(copy, field, value))
    left = flat(json.loads((copy / "config.json").read_text()))
    assert len(left) == 81 + 1  # the fields of version 0.1.0: whatever is added to the table is `newer`
    found = load_run(copy)
    assert flat(found.config) == flat(expected.config)
    np.testing.assert_array_equal(found(images)[0], expected(images)[0])


def test_a_run_of_six_convolutions_older_than_their_sizes_is_read(tmp_path):
    c = six_conv.get_config()
    tree = json.loads(c.to_json())
    del tree["model"]["conv_sizes"], tree["model"]["conv_strides"], tree["model"]["pooled"], tree["start"]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert flat(read_config(tmp_path)) == flat(c)


def test_damaged_statistics_are_named_and_written_again(config, copy):
    path = copy / "statistics.npz"
    with np.load(path) as file:
        arrays = dict(file)
    locked = bytearray(path.read_bytes())
    locked[locked.index(b"PK\1\2") + 8] |= 1  # the flag of an encrypted file, for which zipfile raises RuntimeError
    contents = [b"", path.read_bytes()[:300], bytes(locked), os.urandom(300), None]
    contents += [arrays | {"mean": np.zeros((8, 8, 3))}, {n: a for n, a in arrays.items() if n != "stdevs"}]
    contents += [arrays | {"classes": np.arange(3)}]
    for content in contents:
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            np.savez(path, **content)
        with pytest.raises(UserError, match=r"statistics\.npz cannot be read .*writes it again") as e:
            load_run(copy)
        assert "\n" not in str(e.value)
        config.epochs, names = 2, [str(name) for name in arrays["classes"]]
        mine = {name: a for name, a in arrays.items() if name != "classes"}
        ownership.claim(copy, config, mine, names).close()
        assert load_run(copy).classes == names


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coroutines that orbax leaves
def test_a_checkpoint_that_is_damaged_anywhere_says_how_to_go_on(config, copy):
    """Each file of the latest emptied, cut short, noise or other JSON, beside an earlier one: one line, or no harm."""
    latest = copy / "checkpoints" / "step_12"
    shutil.copytree(latest, copy / "checkpoints" / "step_6")
    shutil.rmtree(latest)
    shutil.copytree(copy / "checkpoints" / "step_6", latest)
    like = program(config, towers.make_mesh(config.devices, 2, 16)).state
    expected, _ = checkpoint.read_whole(latest)
    refused = set()
    reads = itertools.cycle(
        [
            lambda: load_run(copy, "latest").params,
            lambda: load_run(copy, "best").params,
            lambda: checkpoint.restore(checkpoint.manager(copy), like)[1]["params"],
        ]
    )
    others = itertools.cycle((lambda whole: whole[: len(whole) // 2], lambda whole: os.urandom(len(whole))))
    gc.collect()
    gc.freeze()  # whoever refuses a checkpoint collects what it left; here that is not the whole session's
    for path in sorted(p for p in latest.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        json_too = (b"{}", b"5") if whole.startswith(b"{") else ()
        for bad in (b"", next(others)(whole), *json_too):
            path.write_bytes(bad)
            try:
                found = next(reads)()
            except UserError as e:
                assert f"step 6 is whole; remove {latest}, and the same command" in str(e), e
                assert "\n" not in str(e)
                refused.add(path.relative_to(latest).parts[0])
            else:
                np.testing.assert_array_equal(found["fc8"]["kernel"], expected["params"]["fc8"]["kernel"])
        path.write_bytes(whole)
    assert {"host", "metrics", "state"} <= refused
    shutil.rmtree(copy / "checkpoints" / "step_6")
    (latest / "state" / "_METADATA").write_bytes(b"")
    with pytest.raises(UserError, match="no other is whole"):
        load_run(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run(copy)
    assert not (copy / "checkpoints").exists()  # who reads writes nothing


def test_a_checkpoint_that_a_running_training_replaced_is_no_damage(copy, monkeypatch):
    failure = checkpoint.Failure("FileNotFoundError", passes=False, memory=False)
    monkeypatch.setattr(checkpoint, "_attempt", lambda read: (None, failure))
    with pytest.raises(UserError, match="a later one replaced it meanwhile: the same command reads that"):
        checkpoint._read(lambda: None, copy, 10)


@pytest.mark.parametrize("content", [b"5\n", b"null\n", b"[1]\n", b'{"step": 1}\n', b"\xff\xfe\n", b'{"ste\n', b"\n"])
def test_a_damaged_log_is_named_and_kept(copy, content):
    path = copy / "metrics.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + content + rest)
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is damaged: delete that line"):
        metrics.Log(copy, step=6, steps=12, batch_size=16, steps_per_epoch=6)
    assert path.read_bytes() == first + b"\n" + content + rest
    path.write_bytes(first + b"\n" + content[:-1])  # the last line, cut short by a kill, in the first epoch
    metrics.Log(copy, step=5, steps=12, batch_size=16, steps_per_epoch=6).close()
    assert path.read_bytes() == first + b"\n"


def test_a_workdir_that_is_a_file_is_refused(config, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="cannot write to the workdir"):
        ownership.claim(tmp_path / "run", config, {}, [])
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path / "run")


def test_a_start_resumes_where_its_copy_of_the_statistics_is_damaged(config, tiny_run, copy):
    config.start.workdir = str(tiny_run)
    expected = read_statistics(copy)[0]
    (copy / "statistics.npz").write_bytes(b"")
    found = finetune.statistics(config, copy, {})
    assert all((found[name] == expected[name]).all() for name in expected)


def test_a_lost_process_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """jaxlib raises some of gloo's errors as ValueError, as tensorstore does where the disk is full."""
    with checkpoint.manager(tmp_path) as checkpoints:

        def fail(text, *args, **kwargs):
            raise ValueError(text)

        for text, kind in (("UNKNOWN: Gloo AllGather failed", jax.errors.JaxRuntimeError), ("no space", UserError)):
            monkeypatch.setattr(checkpoints, "save", partial(fail, text))
            with pytest.raises(kind, match=text):
                checkpoint.save(checkpoints, 1, {"step": jnp.int32(1)}, {})


def test_the_best_and_the_latest_are_two(tmp_path):
    params = {"fc8": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    with checkpoint.manager(tmp_path) as checkpoints:
        for step, error in ((1, 0.2), (2, 0.4)):
            state = {"params": jax.tree.map(lambda p, step=step: p + step, params)}
            checkpoint.save(checkpoints, step, state, {}, error)
        checkpoint.finish(checkpoints)
    for which, step in (("best", 1), ("latest", 2)):
        at, found = checkpoint.read_params(tmp_path, params, which)
        assert at == step and (found["fc8"]["bias"] == step).all()


def test_a_run_that_is_resumed_on_other_devices_is_warned(config, tiny_run, tmp_path, capsys):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    config.epochs, config.devices.tower = 2, 2  # it is finished: no step is compiled
    assert main.run(config, workdir) == 0
    assert "devices: 1 x 1 cpu there, 1 x 2 cpu here" in capsys.readouterr().err
    mesh = towers.make_mesh(config.devices, 2, 16)
    assert provenance.of_machine(mesh).keys() == {
        "CPU", "cores", "devices", "processes", "jax", "jaxlib", "flax", "numpy",
    }  # fmt: skip


def test_a_checksum_sees_any_change_and_no_split(tiny_run):
    """A bit, two numbers that change places, a sign of zero; of the same numbers over two devices it is the same."""
    params = load_run(tiny_run).params
    expected = checkpoint.checksums({"params": params})
    assert checkpoint.checksums({"params": load_run(tiny_run, data=2, tower=2).params}) == expected
    kernel = np.array(params["conv2"]["kernel"])
    bit, swapped = kernel.copy(), kernel.copy()
    bit.view(np.uint32)[0, 0, 0, 0] ^= 1 << 31
    swapped[0, 0, 0, :2] = swapped[0, 0, 0, 1::-1]
    for other in (bit, swapped):
        found = checkpoint.checksums({"params": params | {"conv2": params["conv2"] | {"kernel": other}}})
        assert [name for name in found if found[name] != expected[name]] == ["params/conv2/kernel"]


def test_a_checksum_gathers_nothing():
    """Nor does it depend on the shape: the numbers of a flat array, each times one, three, five, ..."""
    numbers = np.random.default_rng(0).integers(0, 2**32, 2 * 3 * 4, np.uint32)
    by_hand = sum(int(n) * (2 * i + 1) for i, n in enumerate(numbers)) % 2**32
    for shape in ((24,), (4, 6), (2, 3, 4)):
        assert checkpoint.checksums({"x": jnp.asarray(numbers.view(np.int32).reshape(shape))}) == {"x": by_hand}
    mesh = towers.make_mesh(ConfigDict({"data": 1, "tower": 2}), 2, 2)
    state = program(quickstart.get_config(), mesh).state
    assert "all-gather" not in checkpoint._sums.lower(state).compile().as_text()


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"),
        MemoryError("Unable to allocate 8 bytes"),
        OSError(errno.EMFILE, "Too many open files"),
        ValueError("RESOURCE_EXHAUSTED: Error opening [... Too many open files [os_error_code='24']"),  # TensorStore's
    ],
)
def test_a_machine_that_fails_damages_no_checkpoint(copy, monkeypatch, error):
    """It is not to be removed: the checkpoint is whole."""
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "restore", lambda *_, **__: (_ for _ in ()).throw(error))
    monkeypatch.setattr(checkpoint, "read_whole", lambda folder: (_ for _ in ()).throw(error))

    def said(read):
        with pytest.raises((UserError, MemoryError)) as raised:
            read()
        return str(main.what_to_fix(raised.value, several=False))

    answers = [said(lambda: load_run(copy))]
    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", lambda *_, **__: (_ for _ in ()).throw(error))
    answers.append(said(lambda: checkpoint.manager(copy)))
    for answer in answers:
        assert "remove" not in answer and ("start the same command again" in answer) == ("open files" in str(error))
        assert ("not enough memory" in answer) == ("allocate" in str(error)) and "Failure(" not in answer


def test_an_error_of_closing_hides_no_other(monkeypatch):
    class Closes:
        def close(self):
            raise MemoryError("Unable to allocate 8 bytes")

    with pytest.raises(UserError, match="the loss is nan"), checkpoint.ending(Closes()):
        raise UserError("the loss is nan")


def test_numbers_that_are_not_those_that_were_saved_are_refused(copy):
    """As an older run's, without checksums, they would be believed."""
    [path] = (copy / "checkpoints").glob("step_*/host/metadata")
    host = json.loads(path.read_text())
    host["checksums"]["params/conv2/kernel"] ^= 1
    path.write_text(json.dumps(host))
    with pytest.raises(UserError, match="params/conv2/kernel is not what was saved"):
        load_run(copy)
    del host["checksums"]
    path.write_text(json.dumps(host))
    assert load_run(copy).params


@pytest.mark.parametrize("host", [{}, {"plateau": 5, "window": {}, "result": None}])
def test_a_checkpoint_without_what_a_resumed_run_needs_is_refused(config, copy, host):
    [path] = (copy / "checkpoints").glob("step_*/host/metadata")
    path.write_text(json.dumps(host))
    config.epochs += 1
    with pytest.raises(UserError, match="its host part is not what a run writes.*remove"):
        main.run(config, copy)


def test_records_that_are_missing_are_not_passed_over(tiny_run, tmp_path, capsys):
    """The file lost its end, or all of it; removed by hand, it begins anew and says so."""
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    path, goes_on = workdir / "metrics.jsonl", {"steps": 18, "batch_size": 16, "steps_per_epoch": 6}
    lines = path.read_text().splitlines(keepends=True)
    for content in ("", "null", lines[0], "".join(line for line in lines if json.loads(line)["step"] < 12)):
        path.write_text(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl lacks records before step 13"):
            metrics.Log(workdir, step=13, **goes_on)
        assert path.read_text() == content
    path.unlink()
    metrics.Log(workdir, step=13, **goes_on).close()
    assert path.read_text() == "" and "a new one begins at step 13" in capsys.readouterr().err


def test_tensorboards_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            raise tf.errors.ResourceExhaustedError(None, None, "events.out: No space left on device")

    monkeypatch.setattr("tensorboard.summary.Writer", Full)
    with pytest.raises(OSError, match="TensorBoard's events cannot be written .*No space left") as e:
        metrics.Log(tmp_path, step=0, steps=2, batch_size=1, steps_per_epoch=1)
    assert "\n" not in str(e.value)


def test_what_a_kill_kept_from_being_removed_is_removed_at_the_end(tmp_path):
    """Killed between the last save and its tidying, a run that is done already has nothing more to save."""
    with checkpoint.manager(tmp_path) as checkpoints:
        for step, error in ((1, 0.2), (2, 0.4), (3, 0.3)):
            checkpoint.save(checkpoints, step, {"step": jnp.int32(step)}, {}, error)
        checkpoint.finish(checkpoints)
        folder = tmp_path / "checkpoints"
        assert sorted(p.name for p in folder.iterdir()) == ["step_1", "step_3"]
        shutil.copytree(folder / "step_3", folder / "step_2")
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.finish(checkpoints)
        assert sorted(p.name for p in folder.iterdir()) == ["step_1", "step_3"]


def test_an_error_waits_for_the_save_that_is_under_way(tmp_path):
    checkpoints = checkpoint.manager(tmp_path)
    with pytest.raises(UserError, match="the loss"), checkpoint.ending(checkpoints):
        checkpoint.save(checkpoints, 1, {"step": jnp.int32(1)}, {})
        raise UserError("the loss is nan")
    assert checkpoint.read_whole(tmp_path / "checkpoints" / "step_1")[0]["step"] == 1


def test_every_file_is_strict_json(config, tmp_path):
    """A number that is not finite: null in the log, a word in a checkpoint, refused in a config."""

    def strict(text):
        return json.loads(text, parse_constant=pytest.fail)

    log = metrics.Log(tmp_path, step=0, steps=2, batch_size=1, steps_per_epoch=1)
    log.write(1, "train", {"loss": float("nan"), "top1_error": float("inf"), "learning_rate": 0.1})
    log.close()
    record = strict((tmp_path / "metrics.jsonl").read_text())
    assert record["loss"] is None and record["top1_error"] is None and record["learning_rate"] == 0.1
    state, host = {"step": jnp.int32(1)}, {"plateau": optimizer.new_plateau(), "window": {}, "result": None}
    with checkpoint.manager(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, 1, state, host)
        checkpoint.finish(checkpoints)
        path = tmp_path / "checkpoints" / "step_1" / "host" / "metadata"
        strict(path.read_text())
        assert checkpoint.restore(checkpoints, state)[2] == host
        path.write_text(json.dumps(host))  # as version 0.1.0 wrote it, with Infinity
        assert checkpoint.restore(checkpoints, state)[2] == host
    config.optimizer.min_improvement = float("nan")
    with pytest.raises(UserError, match="optimizer.min_improvement is nan"):
        ownership.claim(tmp_path / "run", config, {}, [])
    assert not (tmp_path / "run").exists()
