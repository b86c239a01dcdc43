"""--config FILE[:ARG] and --config.FIELD=VALUE: the file is found and run, its fields are set, mistakes explained.

ml_collections parses the values. Its own messages name a key or a type, not what the user wrote.
"""

import contextlib
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

import alexnet_jax
from alexnet_jax import UserError, one_line
from alexnet_jax.files import expanded

PARSERS: dict[type, tuple[str, flags.ArgumentParser]] = {  # what a field of a type takes
    bool: ("true or false", flags.BooleanParser()),
    int: ("a whole number", flags.IntegerParser()),
    float: ("a number", flags.FloatParser()),
    tuple: ("a tuple", tuple_parser.TupleParser()),
}
ABBREVIATIONS = {"lr": "learning_rate", "wd": "weight_decay"}  # that people type


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other words, the words that set a config's field) of a command line.

    `--config.FIELD VALUE` becomes one word, `--config.FIELD=VALUE`. A value may be negative, but starts with no other
    dash. Without a value, `--config.FIELD` and `--noconfig.FIELD` set true and false.
    """
    others, fields = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--(no)?config\.", word):
            others.append(word)
            continue
        takes_next = "=" not in word and not word.startswith("--no")
        if takes_next and rest and not re.match(r"-[^\d.]", rest[0]):
            word = f"{word}={rest.pop(0)}"
        fields.append(word)
    return others, fields


def read(name: str | None, words: Sequence[str]) -> tuple[ConfigDict | None, dict[str, Any]]:
    """The locked config of FILE[:ARG], and what the words `--config.FIELD=VALUE` set, {dotted field: value}.

    name: None for no config. Raises UserError, in one line, on whatever is wrong with the file, a field or a value.
    """
    if name is None:
        if words:
            raise UserError(f"name a config before {words[0].partition('=')[0]}, as in --config configs/quickstart.py")
        return None, {}
    path, arg = find(name)
    config = call(load(path), path, arg)
    private = flags.FlagValues()  # the process's own, flags.FLAGS, holds none of ours
    line = ["alexnet", *words]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=private, sys_argv=line)
        private(line)
    except Exception as error:  # ml_collections raises many kinds
        for word in words:
            refuse_wrong(config, word, str(path))
        raise UserError(" ".join(str(error.args[0] if error.args else error).split())) from error
    return holder.value, config_flags.get_override_values(private["config"])


def checkout() -> Path | None:
    """The folder of the repository, with configs/ and experiments/, if the package runs from there."""
    folder = Path(alexnet_jax.__file__).absolute().parents[1]
    return folder if (folder / "configs" / "paper.py").is_file() else None


def find(name: str) -> tuple[Path, str | None]:
    """The path and the argument that FILE[:ARG] names. Raises UserError if there is no such file.

    configs/NAME.py is a file in the current folder, or else the repository's.
    """
    file, colon, arg = name.partition(":")
    path, home = expanded(file), checkout()
    places = [path, home / path] if home and path.parent == Path("configs") else [path]
    for place in places:
        if place.is_file():
            return place, arg if colon else None
    what = f"{file} is a folder" if file and path.is_dir() else f"there is no file '{file}'"
    raise UserError(f"{what}, and --config takes a Python file with get_config(){_hint(path, home)}")


def _hint(path: Path, home: Path | None) -> str:
    """What to name instead of a file that is not there."""
    if home is None:
        return "; those of the project are in its repository, not in the installed package"
    folder = home / "configs"
    names = sorted(p.name for p in folder.glob("*.py") if p.stem not in ("__init__", "variants"))
    near = [str(folder / name) for name in difflib.get_close_matches(f"{path.stem}.py", names, 2)]
    return f"; is it {' or '.join(near)}?" if near else f"; in {folder} are {', '.join(names)}"


@contextlib.contextmanager
def importable(path: Path) -> Iterator[None]:
    """While a config file runs: it can import `configs` from around it, from the current folder or the repository."""
    around = [folder.parent for folder in path.absolute().parents if folder.name == "configs"]
    folders = [*around[:1], Path.cwd(), checkout()]
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders if folder]
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turns what a user's Python file raises into a UserError that says where in it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(error) is ValueError and str(error):  # how get_config says what is wrong with its argument
            raise UserError(f"{path}: {' '.join(str(error).split())}") from error
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{where} cannot be run ({one_line(error)})") from error


def load(path: Path) -> ModuleType:
    """Runs a Python file as a module of its own. Raises UserError if it cannot be run."""
    with blaming(path), importable(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UserError(f"{path} is not a Python file: name one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def call(module: ModuleType, path: Path, arg: str | None) -> ConfigDict:
    """The ConfigDict of a module's get_config(arg), or get_config() for None. Raises UserError if it makes none."""
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} has no function get_config(): see configs/paper.py")
    with blaming(path), importable(path):
        config = module.get_config() if arg is None else module.get_config(arg)
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns {type(config).__name__} and must return a ConfigDict")
    return config


def refuse_wrong(config: ConfigDict, word: str, path: str) -> None:
    """Raises UserError if the config, of the file `path`, has no FIELD of --config.FIELD=VALUE, or refuses VALUE."""
    name, equals, value = word.partition("=")
    field, fields = name.partition(".")[2], _flat(config)
    if field not in fields:
        raise UserError(f"--config.{field}: {unknown(field, fields, path)}")
    kind = type(fields[field])
    if kind not in PARSERS or (kind is bool and not equals):
        return
    what, parser = PARSERS[kind]
    try:
        if not equals:
            raise ValueError
        parser.parse(value)
    except (TypeError, ValueError) as error:
        got = f"'{value}' was given" if value else "nothing was given"
        raise UserError(f"--config.{field} takes {what}, as in {_example(field, fields)}, and {got}") from error


def unknown(field: str, fields: dict[str, Any], path: str) -> str:
    """Why `field` is none of a config's {dotted field: value}, and which are like it."""
    whole = field.partition("[")[0]
    if inside := [name for name in fields if name.startswith(f"{field}.")]:
        return f"it is a section of fields: set one, such as {_example(inside[0], fields)}"
    if whole in fields:
        return f"it is set as a whole, as in {_example(whole, fields)}"
    near = like(field, fields)
    hint = f"; is it {' or '.join(near)}?" if near else ", and none like it: alexnet_jax/config.py lists them all"
    return f"{path} has no field {field or 'without a name'}{hint}"


def like(field: str, fields: Iterable[str], most: int = 3) -> list[str]:
    """The fields whose dotted name, or whose last part, is most like `field`; none where none is."""
    field = ".".join(ABBREVIATIONS.get(part, part) for part in field.split("."))

    def alike(name: str) -> float:
        pairs = ((field, name), (field.rpartition(".")[2], name.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    best = sorted(fields, key=alike, reverse=True)[:most]
    return [name for name in best if alike(name) > max(0.6, alike(best[0]) - 0.1)]


def _example(field: str, fields: dict[str, Any]) -> str:
    value = fields[field]
    return f'--config.{field}="{value}"' if isinstance(value, tuple) else f"--config.{field}={value}"


def _flat(config: ConfigDict) -> dict[str, Any]:
    from flax.traverse_util import flatten_dict  # it imports JAX, which takes a second

    return flatten_dict(config.to_dict(), sep=".")
