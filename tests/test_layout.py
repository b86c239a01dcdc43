"""The shape of the package and of the experiments: who imports whom, and what runs without TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import write_config

import alexnet_jax
import experiments

PACKAGE, BESIDE = Path(alexnet_jax.__file__).parent, Path(experiments.__file__).parent
# A file imports only from lower floors, or from its own floor to its left.
FLOORS = [
    ["files", "cli.stopping", "cli.memory", "cli.config_file", "cli.commands", "data.classes"],
    [
        "data.host", "data.records", "data.photos", "data.glyphs", "data.sources", "data.prepare", "data.augment",
        "data.batches", "data.images",
    ],
    ["layers", "towers", "model", "cifar", "network", "optimizer", "config", "metrics", "checkpoint"],
    ["runs.run", "runs.provenance", "runs.ownership", "runs.finetune", "inference", "evaluate", "train"],
    [
        "analysis.specialisation", "analysis.plots", "analysis.curves", "analysis.features", "analysis.predict",
        "analysis.neighbours", "analysis.retrieve", "analysis.figures", "analysis.cost", "analysis.summary",
        "weights.layouts", "weights.pytorch", "weights.caffe", "weights.ilsvrc", "weights.npy", "weights.stablehlo",
        "weights.onnx_graph", "weights.convert",
    ],
    ["cli.verbs", "main", "__main__"],
]  # fmt: skip
ORDER = [name for floor in FLOORS for name in floor]
# In experiments, too, a file imports only what stands before it.
EXPERIMENTS = [
    "changes", "results", "record.kernels", "record.ensemble", "record.entry", "record.file",
    "record.command",
    "benchmark.stepper", "jobs", "sweep",
    "sweeps.paper", "sweeps.small", "sweeps.smoke", "sweeps.finetune", "sweeps.ablations", "sweeps.ablation_rates",
    "sweeps.start", "sweeps.towers", "sweeps.cifar10", "sweeps.cifar10_norm", "sweeps.figure1",
    "benchmark.worker", "benchmark.limits", "benchmark.ours", "benchmark.peer", "benchmark.turns", "benchmark.machine",
    "benchmark.steps", "benchmark.table", "benchmark.split", "benchmark.scaling", "benchmark.input_pipeline",
    "benchmark.command", "benchmark.__main__",
    "report.intervals", "report.rows", "report.table", "report.pictures", "report.page", "report.command",
    "claims.measures", "claims.figure1", "claims.studies", "claims.claims", "claims.page", "claims.pictures",
    "claims.command",
    "torture.processes", "torture.cases", "torture.compare", "torture.trials", "torture.kills", "torture.disk",
    "torture.fields", "torture.images", "torture.files", "torture.__main__",
]  # fmt: skip


def imports(path, top_only=False):
    """The modules a file imports, full names; those at its top level only, if asked."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


@pytest.mark.parametrize(("folder", "order"), [(PACKAGE, ORDER), (BESIDE, EXPERIMENTS)])
def test_every_file_has_its_place(folder, order):
    there = (p.relative_to(folder).with_suffix("") for p in folder.rglob("*.py") if p.stem != "__init__")
    assert sorted(order) == sorted(".".join(path.parts) for path in there)


@pytest.mark.parametrize(
    ("folder", "order", "name"),
    [(PACKAGE, ORDER, name) for name in ORDER] + [(BESIDE, EXPERIMENTS, name) for name in EXPERIMENTS],
)
def test_files_import_one_way(folder, order, name):
    path = folder / f"{name.replace('.', '/')}.py"
    assert "TYPE_CHECKING" not in path.read_text()
    ours = {m.removeprefix(f"{folder.name}.") for m in imports(path)} & set(order)
    later = [m for m in ours if order.index(m) >= order.index(name)]
    assert not later, f"{name}.py imports {later}, which stand after it"


@pytest.mark.parametrize("name", ORDER)
def test_each_library_has_its_place(name):
    found = imports(PACKAGE / f"{name.replace('.', '/')}.py")
    assert name == "checkpoint" or not any(m.startswith("orbax") for m in found)
    assert name == "towers" or not any(m.endswith(("shard_map", "make_mesh", "mesh_utils")) for m in found)
    tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text())
    called = {getattr(n.func, "attr", "") for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert name == "towers" or not called & {"shard_map", "Mesh", "create_device_mesh"}
    top = imports(PACKAGE / f"{name.replace('.', '/')}.py", top_only=True)
    assert not any(m.split(".")[0] in ("tensorflow", "tensorflow_datasets", "onnx") for m in top)
    assert not any(m.split(".")[0] in ("configs", "experiments") for m in found)  # they are not installed with it
    assert not any(m.split(".")[0] == "torch" for m in (top if name == "weights.pytorch" else found))


@pytest.mark.slow
def test_trains_where_tensorflow_is_not_installed(chain_config, tiny_run, tmp_path):
    """From a prepared set held on the device; tiny_run has prepared it."""
    config = chain_config
    config.epochs, config.data.on_device = 1, True
    code = (
        "import sys\nsys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "from alexnet_jax.cli import verbs\nverbs.main(['train', *sys.argv[1:]])"
    )
    flags = [f"--config={write_config(config, tmp_path / 'config.py')}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "top-1 error" in done.stdout
