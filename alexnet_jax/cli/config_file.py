"""--config FILE and --config.FIELD=VALUE: the file is found, and what is wrong with either is said in one line.

ml_collections reads both. Its own messages name a key, or a type, and not what the user wrote.
"""

import contextlib
import difflib
import importlib.util
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from ml_collections.config_flags import tuple_parser

import configs
from alexnet_jax import UserError, one_line

OURS = Path(configs.__file__).parent
PARSERS = {  # of ml_collections: what a field of a type takes
    bool: ("true or false", flags.BooleanParser()),
    int: ("a whole number", flags.IntegerParser()),
    float: ("a number", flags.FloatParser()),
    tuple: ("a tuple", tuple_parser.TupleParser()),
}


def given(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str | None]]]:
    """(what the last --config names, [(field, value)] of --config.FIELD=VALUE); None for a value that is left out."""
    config, fields = None, []
    for i, word in enumerate(argv):
        match = re.fullmatch(r"--?(?:no)?config(?:\.([^=]*))?(?:=(.*))?", word, re.DOTALL)
        if not match:
            continue
        field, value = match.groups()
        if value is None and i + 1 < len(argv) and not argv[i + 1].startswith("-"):
            value = argv[i + 1]
        if field is None:
            config = value
        else:
            fields.append((field, value))
    return config, fields


def located(argv: Sequence[str]) -> list[str]:
    """argv with --config on a file that is there: configs/NAME.py, where there is none here, is the package's own.

    Raises UserError if there is no such file.
    """
    config, _ = given(argv)
    if config is None:
        return list(argv)
    name, colon, arg = config.partition(":")
    path = Path(name).expanduser()
    own = OURS / path.name if path.parent == Path("configs") else path
    if found := [p for p in (path, own) if p.is_file()]:
        there = f"{found[0]}{colon}{arg}"
        whole = re.compile(rf"(--?config=)?{re.escape(config)}", re.DOTALL)
        return [f"{match[1] or ''}{there}" if (match := whole.fullmatch(word)) else word for word in argv]
    what = f"{name} is a folder" if name and path.is_dir() else f"there is no file '{name}'"
    ours = sorted(p.name for p in OURS.glob("*.py") if p.stem not in ("__init__", "variants"))
    near = [str(OURS / n) for n in difflib.get_close_matches(f"{path.stem}.py", ours, 2)]
    hint = f"is it {' or '.join(near)}?" if near else f"in {OURS} are {', '.join(ours)}"
    raise UserError(f"{what}, and --config takes a Python file with get_config(); {hint}")


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
        at = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        where = f", line {at[-1]}" if at else ""
        raise UserError(f"{path}{where} cannot be run ({one_line(error)})") from error


def load(path: Path) -> ModuleType:
    """Runs a Python file as a module of its own. Raises UserError if it cannot be run."""
    with blaming(path):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None:
            raise UserError(f"{path} is no Python file: name one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def call(module: ModuleType, path: Path, arg: str | None) -> ConfigDict:
    """The ConfigDict of a module's get_config(arg), or get_config() for None. Raises UserError if it makes none."""
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path} has no function get_config(): see configs/paper.py")
    with blaming(path):
        config = module.get_config() if arg is None else module.get_config(arg)
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns {type(config).__name__} and must return a ConfigDict")
    return config


def explain(argv: Sequence[str], error: Exception) -> str:
    """What to say of an error that absl or ml_collections raised on these flags."""
    config, overrides = given(argv)
    if config is None and overrides:
        return f"name a config before --config.{overrides[0][0]}, as in --config configs/quickstart.py"
    if config is not None:
        name, colon, arg = config.partition(":")
        try:
            path = Path(name)
            tree = call(load(path), path, arg if colon else None)
            for field, value in overrides:
                check(tree, field, value, name)
        except UserError as own:
            return str(own)
    text = str(error.args[0] if error.args else error)
    if number := re.match(r"flag (--\w+)=(.*): invalid literal for int", text):
        return f"{number[1]} takes a whole number, and '{number[2]}' was given"
    return " ".join(text.split()) if "Traceback" not in text else text.strip().splitlines()[-1]


def check(config: ConfigDict, field: str, value: str | None, path: str):
    """Raises UserError if a config, of the file `path`, has no such field, or if it takes no such value.

    value: as the command line has it; None where it stands there without one.
    """
    fields = flatten_dict(config.to_dict(), sep=".")
    if field not in fields:
        raise UserError(f"--config.{field}: {unknown(field, fields, path)}")
    kind = type(fields[field])
    if kind not in PARSERS or value is None and kind is bool:
        return
    what, parser = PARSERS[kind]
    try:
        if value is None:
            raise ValueError
        parser.parse(value)
    except (TypeError, ValueError) as error:
        got = f"'{value}' was given" if value else "nothing was given"
        raise UserError(f"--config.{field} takes {what}, as in {_example(field, fields)}, and {got}") from error


def unknown(field: str, fields: dict, path: str) -> str:
    """Why `field` is none of a config's {dotted field: value}, and which are like it."""
    whole = field.partition("[")[0]
    if inside := [name for name in fields if name.startswith(f"{field}.")]:
        return f"it is a section of fields: set one, such as {_example(inside[0], fields)}"
    if whole in fields:
        return f"it is set as a whole, as in {_example(whole, fields)}"
    near = like(field, fields)
    hint = f"; is it {' or '.join(near)}?" if near else ", and none like it: configs/paper.py lists them all"
    return f"{path} has no field {field or 'without a name'}{hint}"


def like(field: str, fields: Iterable[str], most: int = 3) -> list[str]:
    """The fields whose dotted name, or whose last part, is most like `field`; none where none is."""

    def alike(name: str) -> float:
        pairs = ((field, name), (field.rpartition(".")[2], name.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    best = sorted(fields, key=alike, reverse=True)[:most]
    return [name for name in best if alike(name) > max(0.6, alike(best[0]) - 0.1)]


def _example(field: str, fields: dict) -> str:
    value = fields[field]
    return f'--config.{field}="{value}"' if isinstance(value, tuple) else f"--config.{field}={value}"
