"""The command `alexnet`: its verbs, their help, the flags that they share, and what is installed."""

import ast
import importlib
import os
import pkgutil
import platform
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jax
import pytest
from absl import flags as absl_flags
from helpers.modules import forgotten

import alexnet_jax
from alexnet_jax import UserError, main
from alexnet_jax.cli import commands, config_file, memory, stopping, verbs
from alexnet_jax.cli.verbs import VERBS

ROOT = Path(alexnet_jax.__file__).parents[1]
SHARED = {"--workdir", "--which", "--devices", "--batch-size", "--batch_size", "--json", "--config"}


def source(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def test_every_module_with_a_command_line_is_a_verb():
    found = set()
    for path in ROOT.glob("alexnet_jax/**/*.py"):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if {"add_flags", "main"} <= functions:
            found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert found == {module for module, _ in VERBS.values() if module.startswith("alexnet_jax.")}


@pytest.fixture(params=VERBS)
def verb(request, monkeypatch):
    """A verb, imported before output is captured: submitit keeps the stream that it finds."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # find_module adds the checkout to both
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    verbs.find_module(request.param)
    return request.param


def test_help_shows_the_docstring(verb, capsys):
    module = verbs.find_module(verb)
    with pytest.raises(SystemExit) as end:
        commands.parse(module, ["--help"], f"alexnet {verb}")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: alexnet {verb} ") and f"\n    alexnet {verb} " in said
    assert module.__doc__.strip() in said
    assert "default: None" not in said and "default: False" not in said


def test_the_overview_has_a_line_for_every_verb(capsys):
    assert verbs.run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb, (_, says) in VERBS.items():
        assert f"  {verb:10} {says}" in lines
    assert verbs.run(["--version"]) == 0
    assert capsys.readouterr().out == f"alexnet_jax {alexnet_jax.__version__}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "there is no verb 'trian'; did you mean alexnet train?"),
        (["xyz"], "there is no verb 'xyz'; there are train, evaluate, .*, benchmark: see alexnet --help"),
        (["--workdir=x"], "there is no verb '--workdir=x'; there are train"),
        ([], "name a verb; there are train"),
    ],
)
def test_a_verb_that_is_none_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        verbs.run(words)


def test_without_a_checkout_experiments_say_what_they_need(monkeypatch):
    monkeypatch.setattr(config_file, "checkout", lambda: None)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "experiments").exists()])
    for verb in ("sweep", "report", "benchmark"):
        says = f"alexnet {verb} is part of the repository.*pip install -e"
        with forgotten("experiments"), pytest.raises(UserError, match=says):
            verbs.find_module(verb)


def test_experiments_are_found_from_anywhere(monkeypatch, tmp_path):
    """By the processes that they start, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and not (Path(p) / "experiments").exists()])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    with forgotten("experiments"):
        assert verbs.find_module("sweep").__file__ == str(source("experiments.sweep"))
    code = "import os; print(os.environ['PYTHONPATH']); import experiments"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.split(":") == [str(ROOT), "elsewhere\n"]


def test_signals_are_watched_before_the_slow_imports(monkeypatch, capsys):
    called = []

    def interrupted(verb):
        called.append(verb)
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs.stopping, "watch", lambda: called.append("watch"))
    monkeypatch.setattr(verbs, "find_module", interrupted)
    for verb in ("train", "summary"):
        with pytest.raises(SystemExit) as end:
            verbs.main([verb])
        assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"
    assert called == ["watch", "train", "summary"]
    code = "import sys, alexnet_jax.cli.verbs\nprint({'jax', 'numpy', 'absl', 'ml_collections'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "set()\n"


@pytest.mark.parametrize("error", [MemoryError("17 GiB"), RuntimeError("INTERNAL: Out of memory allocating 17 GiB")])
def test_too_little_memory_is_one_line_of_any_verb(error, monkeypatch):
    def fails(words):
        raise error

    with pytest.raises(SystemExit) as end:
        commands.command(fails)
    assert "17 GiB" in end.value.code and "lower --batch-size" in end.value.code and "\n" not in end.value.code
    with pytest.raises(ZeroDivisionError):
        commands.command(lambda words: 1 // 0)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    """As in a container with a user of its own."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with pytest.raises(UserError, match="no home folder: set XDG_CACHE_HOME"):
            commands.set_up_libraries()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_second_ctrl_c_ends_a_run_at_once(monkeypatch, capsys):
    with stopping.Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run", interrupted)
    assert main.main(commands.parse(main, ["--config=configs/paper.py:smoke"])) == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err


def test_after_the_loop_signals_are_watched_as_before():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old, handlers = signal.set_wakeup_fd(writer), [signal.getsignal(s) for s in stopping.SIGNALS]
    with pytest.raises(ZeroDivisionError), stopping.Stop():
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in stopping.SIGNALS] == handlers
    assert signal.set_wakeup_fd(old) == writer
    os.close(reader)
    os.close(writer)


def test_a_platform_that_is_not_there_is_one_line():
    """JAX says so of a platform that it does not know, and fails an assertion where its plugin is missing."""
    for name in ("cuda", "abacus"):
        done = subprocess.run(
            [sys.executable, "-m", "alexnet_jax", "train", "--config=configs/paper.py:smoke"],
            env=os.environ | {"JAX_PLATFORMS": name}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        says = f"error: JAX finds no device here with JAX_PLATFORMS={name}: unset it, or set it to cpu"
        assert done.stderr.strip() == says


def test_no_module_registers_global_flags():
    for module in pkgutil.walk_packages(alexnet_jax.__path__, "alexnet_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    owners = [owner for owner in absl_flags.FLAGS.flags_by_module_dict() if owner.startswith("alexnet_jax")]
    assert not owners
    assert "config" not in absl_flags.FLAGS


@pytest.mark.parametrize("module", sorted({module for module, _ in VERBS.values()}))
def test_shared_flags_are_defined_once(module):
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
            assert not names & SHARED, f"{module} defines {names & SHARED}: cli/commands.py does"


def test_a_verb_can_choose_the_config_that_is_not_given():
    """As convert does: the config of the weights' origin, whose fields the command line may set."""

    def origins(flags):
        return None if flags.origin == "safetensors" else f"configs/{flags.origin}.py"

    def add_flags(parser):
        parser.add_argument("--origin", default="caffe", help="what they come from")
        commands.add_config(parser, required=False, default=origins)

    module = ModuleType("verb", "Does it.\n\n    alexnet verb")
    module.add_flags = add_flags
    assert commands.parse(module, []).config.name == "caffe"
    flags = commands.parse(module, ["--config.batch_size=3", "--origin=source"])
    assert flags.config.name == "source" and flags.config.batch_size == 3 and flags.given == {"batch_size": 3}
    assert commands.parse(module, ["--config=configs/paper.py"]).config.name == "paper"
    flags = commands.parse(module, ["--origin=safetensors"])
    assert flags.config is None and flags.given == {}
    with pytest.raises(UserError, match="name a config before --config.batch_size"):
        commands.parse(module, ["--origin=safetensors", "--config.batch_size=3"])


def test_the_help_tells_a_default_once(capsys):
    module = ModuleType("verb", "Does it.")
    module.add_flags = lambda parser: [
        parser.add_argument("--a", default=7, help="a number"),
        parser.add_argument("--b", default=8, help="a number (default: eight)"),
        parser.add_argument("--c", help="a number"),
    ]
    with pytest.raises(SystemExit):
        commands.parse(module, ["--help"])
    said = capsys.readouterr().out
    assert "a number (default: 7)" in said and said.count("default") == 2


def test_the_package_alone_is_installed():
    setuptools = pytest.importorskip("setuptools")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = setuptools.find_packages(ROOT, **settings["tool"]["setuptools"]["packages"]["find"])
    rooms = [path.parent.relative_to(ROOT) for path in ROOT.glob("alexnet_jax/**/__init__.py")]
    assert sorted(packages) == sorted(".".join(room.parts) for room in rooms)
    for package, files in settings["tool"]["setuptools"]["package-data"].items():
        for name in files:
            assert (source(package).with_suffix("") / name).is_file()
    data = [p for p in (ROOT / "alexnet_jax").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert len(data) == sum(map(len, settings["tool"]["setuptools"]["package-data"].values()))
    module, function = settings["project"]["scripts"]["alexnet"].split(":")
    assert getattr(importlib.import_module(module), function) is verbs.program


@pytest.mark.parametrize(
    "library, already, restarts",
    [("glibc", None, True), ("glibc", "", False), ("glibc", "glibc.malloc.check=1", False), ("", None, False)],
)
def test_a_command_starts_again_with_large_pages_once(library, already, restarts, monkeypatch):
    calls = []
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "alexnet_jax", "train"])
    monkeypatch.setattr(sys, "argv", ["alexnet_jax/__main__.py", "train"])
    monkeypatch.setattr(os, "execv", lambda path, words: calls.append((path, words, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if already is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", already)
    memory.restart()
    memory.restart()  # in the process that was started
    words = [sys.executable, "-X", "utf8", "-m", "alexnet_jax", "train"]
    assert calls == [(sys.executable, words, memory.TUNABLES)] * restarts


def test_a_command_that_cannot_start_again_goes_on(monkeypatch):
    tried = []

    def refused(path, words):
        tried.append(path)
        raise PermissionError(path)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", sys.orig_argv[-1:])
    monkeypatch.setattr(os, "execv", refused)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    memory.restart()
    assert tried


def test_a_command_inside_another_program_does_not_start_that_again(monkeypatch):
    """As when a debugger runs it by runpy: orig_argv is the debugger's."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", ["alexnet_jax/__main__.py", "train"])
    monkeypatch.setattr(os, "execv", lambda path, words: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    memory.restart()
