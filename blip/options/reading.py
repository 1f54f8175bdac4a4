"""A configuration's file, and the options of a command line that override it, read into a typed object."""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from blip.errors import BlipError, did_you_mean
from blip.files import write_whole
from blip.options import published
from blip.options.overrides import advice, list_advice

Config = TypeVar("Config", bound=BaseModel)
RUN_CONFIG = "config.yaml"  # in the folder of a run


class ConfigError(BlipError):
    """A configuration that cannot be used; the message names the file or option, the key and the reason."""


def load_config(
    path: str | Path,
    cls: type[Config],
    overrides: list[str] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Reads a YAML file, applies `key=value` overrides (values in YAML's notation) and returns a `cls`.

    Args:
        path: the file, the folder of a run, or the name of a configuration of the package, see `find_config`.
        overrides: values of `--set`, the later ones before the earlier ones.
        options: values that have an option of their own, such as `init_from`; they come last.

    Raises:
        ConfigError: there is no such file, it is not YAML, or a key or value cannot be used. The message names the
            file, or the option that gave the value.
    """
    path = find_config(path)
    values = read_values(path, cls)
    given: dict[str, str] = {}  # key -> the option of the command line that sets it
    own = dict(values)
    for override in overrides or []:
        key, equals, text = override.partition("=")
        where = f"--set {override}"
        if not equals:
            raise ConfigError(f"{where}: expected key=value, such as --set batch_size=32")
        key, hint = _present_name(key, cls), advice(override)
        if hint and key not in cls.model_fields:
            raise ConfigError(f"{where}: {hint}")
        _check_keys({key: None}, cls, where)
        values[key], given[key] = _parse(text, where, hint), where
    for key, value in (options or {}).items():
        values[key], given[key] = value, f"--{key} {value}"
    return _validated(cls, values, str(path), given=given, own=own)


def read_values(path: Path, cls: type[BaseModel]) -> dict[str, Any]:
    """The keys and values of a file, before their types are checked; ConfigError for unknown keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected lines of `key: value`")
    if published.is_published(values, cls):
        values = published.translated(values, cls, str(path))
    values = {_present_name(key, cls): value for key, value in values.items()}
    _check_keys(values, cls, str(path))
    return values


def has_other_options(path: str | Path, cls: type[BaseModel]) -> bool:
    """Whether a file has options that a class has not: the configuration of a run of another task. ConfigError where
    it is not YAML."""
    values = _parse(Path(path).read_text(encoding="utf-8"), str(path))
    return isinstance(values, dict) and any(_present_name(str(key), cls) not in cls.model_fields for key in values)


def find_config(name: str | Path) -> Path:
    """The file of a configuration: `name` itself where it is a file or a run's folder, else the package's of that name.

    `pretrain_demo`, `pretrain_demo.yaml` and `configs/pretrain_demo.yaml` all name the packaged one, so that commands
    and configurations that name another configuration work outside a checkout.

    Raises:
        ConfigError: there is no such configuration; the message names similar ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / RUN_CONFIG).is_file():
        return path / RUN_CONFIG
    packaged = {file.stem: file for file in _packaged_configs().glob("*.yaml")}
    stem = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("configs")) and stem in packaged:
        return packaged[stem]
    here = [file.stem for file in Path("configs").glob("*.yaml")]
    near = did_you_mean(stem, {*packaged, *here}, cutoff=0.4)
    raise ConfigError(f"there is no configuration {path}" + (f"; {near}" if near else ""))


def _packaged_configs() -> Path:
    """The folder of configurations: inside an installed package, at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside, beside = package / "configs", package.parent / "configs"
    return inside if inside.is_dir() else beside


def with_options(config: Config, values: dict[str, Any], where: str) -> Config:
    """The configuration with other values; `where` names their origin in a ConfigError."""
    _check_keys(values, type(config), where)
    return _validated(type(config), {**config.model_dump(exclude_unset=True), **values}, where)


def _validated(
    cls: type[Config],
    values: dict[str, Any],
    where: str,
    *,
    given: Mapping[str, str] | None = None,
    own: dict[str, Any] | None = None,
) -> Config:
    """A `cls` of the values; ConfigError names `where`, or the option of `given` that a value comes from.

    `own`: the values without those of `given`; where these can be used, options that do not go together are blamed.
    """
    try:
        return cls(**values)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            key = str(one["loc"][0]) if one["loc"] else ""
            options = given or {}
            place = options.get(key, where)
            if not key and options and _usable(cls, own or {}, one["msg"]):
                named = [option for name, option in options.items() if name in one["msg"]]
                place = ", ".join(named or options.values())
            problems.setdefault(place, []).append(_explain(one, place != where))
        text = "\n".join(f"{place}:\n" + "\n".join(lines) for place, lines in problems.items())
        raise ConfigError(text) from error


def _usable(cls: type[BaseModel], values: dict[str, Any], message: str) -> bool:
    """Whether the values alone do not have the problem of a message."""
    try:
        cls(**values)
    except ValidationError as error:
        return message not in [one["msg"] for one in error.errors()]
    return True


def dump_config(config: BaseModel, path: str | Path) -> None:
    """Writes every key with its resolved value; `load_config` reads it back to an equal object."""
    text = StringIO()
    YAML(typ="safe", pure=True).dump(config.model_dump(mode="json"), text)
    write_whole(path, text.getvalue())


def _parse(text: str, where: str, hint: str = "") -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text) if text.strip() else ""
    except YAMLError as error:
        problem = hint or " ".join(str(error).split())
        raise ConfigError(f"{where}: not YAML: {problem}") from error


def _present_name(key: str, cls: type[BaseModel]) -> str:
    """The name of an option today; `former_names` of a class maps the names of earlier versions to it."""
    former: dict[str, str] = getattr(cls, "former_names", {})
    return former.get(key, key)


def _check_keys(values: dict, cls: type[BaseModel], where: str) -> None:
    for key in values:
        if key not in cls.model_fields:
            hint = published.hint(str(key)) or did_you_mean(key, cls.model_fields)
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")


def _explain(error: Any, on_command_line: bool) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("list_type", "tuple_type") and len(error["loc"]) == 1:
        message += f"; {list_advice(key, error['input'], on_command_line=on_command_line)}"
    return f"  {key}: {message} (got {error['input']!r})" if key else f"  {message}"
