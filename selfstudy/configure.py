"""The only module that parses, binds, clears or prints gin.

Gin itself checks no types, executes imports, and gives no hint on a misspelt name. Here each
statement is read by gin's parser, checked against the registered configurables (name, argument,
type), and only then bound. Files are data: imports, dynamic registration and `@references()`
are refused, and `include` is restricted to `config/gin` and the `gin/` of extra folders
(`selfstudy.extra`).

Precedence, applied once by `load`: `-g` files in order, then `-p`, then a search's values.
"""

import contextlib
import dataclasses
import importlib.util  # noqa: F401  (gin 0.5 uses it without importing it)
import inspect
import re
import tokenize
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from selfstudy import extra, registry, values
from util.errors import UserError, nearest

RETIRED = {
    "session.use_apex": "session.precision = 'float16'",
    "session.keep_bn_f32": "session.precision (autocast keeps batch norm in float32)",
    "BaseDataset.use_fp16": "session.precision (data stay bytes until they are on the device)",
}
# Former name -> name of a component; both are accepted, old plans contain the former.
ALIASES = {
    "Lagging": "MomentumEncoder",
    "TwoViews": "Siamese",
    "projection": "projector",
    "prediction": "predictor",
}

_NAME = re.compile(r"[\w./]+", re.ASCII)
_UNQUOTED = re.compile(r"[A-Za-z_][\w.-]*")
_MACRO = "gin.macro"
Binding = tuple[config_parser.BindingStatement, str]  # a statement and its location
INCLUDE = "include"  # key in a search's values for further files, such as a method's


@dataclasses.dataclass(frozen=True)
class Spec:
    """A configuration: names of gin files and `-p` bindings."""

    gin: tuple[str, ...] = ()
    params: tuple[str, ...] = ()


class _Delegate(config_parser.ParserDelegate):
    """Builds macros (`%name`) and refuses `@references`, which can run code."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        raise UserError(
            f"'@{scoped_selector}': references are not supported; name it in quotes"
        )

    def macro(self, name: str) -> Any:
        return gin_config.ParserDelegate().macro(name)


def load(spec: Spec, overrides: dict[str, Any] | None = None) -> None:
    """Clear gin, then bind files, `-p` and a search's values, and lock the result.

    The value of `INCLUDE` is a further file, or a list, after those of `-g`.

    `registry.discover` must have run, since gin admits no new configurables afterwards.

    Raises:
        UserError: an unknown file, name, argument or choice, or a value of a wrong type.
    """
    gin.clear_config()
    _load(spec, overrides or {})


def _load(spec: Spec, overrides: dict[str, Any]) -> None:
    _bind_all(bindings(spec, included_files(overrides)))
    for name, value in values.flatten(overrides).items():
        if name != INCLUDE:
            _bind_name(name, values.literal(name, value), "ray config")
    _substitute_macros()
    gin.finalize()


def bindings(spec: Spec, files: Sequence[str] = ()) -> Iterator[Binding]:
    """The statements of files, their includes and `-p`, in order, unchecked.

    Args:
        spec: files and `-p` bindings.
        files: further files, after those of `spec`.
    """
    for name in spec.gin:
        yield from _in_file(name, (), "-g")
    for name in files:
        yield from _in_file(name, (), "ray config")
    for text in spec.params:
        yield from _in_param(text)


def component(name: str) -> str:
    """'scope/component' of a binding's name; former names are replaced."""
    scope, slash, selector = name.rpartition(".")[0].rpartition("/")
    return f"{scope}{slash}{ALIASES.get(selector, selector)}"


def included_files(overrides: dict[str, Any]) -> list[str]:
    """Names of the files included by a search's values."""
    include = overrides.get(INCLUDE, [])
    names = list(include) if isinstance(include, (list, tuple)) else [include]
    for name in names:
        if not isinstance(name, str):
            raise UserError(
                f"ray config: '{INCLUDE}' takes names of gin files such as "
                f"'digits/r9/simclr', not {name!r}"
            )
    return names


@contextlib.contextmanager
def isolate(text: str, source: str, spec: Spec | None = None) -> Iterator[None]:
    """Context with another configuration; the previous one is restored afterwards.

    Used to build a snapshot's network under its own `config.gin`. The operative record of the
    previous configuration (`operative`) is not affected.

    Args:
        text: gin text, checked like a file.
        source: name of the text in errors.
        spec: files and `-p` bindings, which override the text.

    Raises:
        UserError: as `load`.
    """
    parts = (gin_config._CONFIG, gin_config._OPERATIVE_CONFIG)
    kept = [{key: dict(arguments) for key, arguments in part.items()} for part in parts]
    locked = gin.config_is_locked()
    try:
        gin.clear_config()
        with gin.config_scope(None):
            _bind_all(_in_text(text, source, (source,)))
            _load(spec or Spec(), {})
            yield
    finally:
        gin.clear_config()
        for part, before in zip(parts, kept, strict=True):
            part.update(before)
        if locked:
            gin.finalize()


def _in_file(name: str, chain: tuple[str, ...], where: str) -> Iterator[Binding]:
    """The bindings of the file `name`; an include is looked up like a file of `-g`."""
    name = name.removesuffix(".gin")
    shown = extra.label("gin", name)
    if name in chain:
        raise UserError(f"{where}: {shown} includes itself")
    try:
        text = extra.find("gin", name).read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    except OSError:
        raise UserError(f"{where}: no {shown}{nearest(name, gin_files())}") from None
    yield from _in_text(text, shown, (*chain, name))


def gin_files() -> list[str]:
    """The names that `-g` accepts: gin files that are not fragments."""
    return [name for name in extra.names("gin") if not name.startswith("base/")]


def _in_param(text: str) -> Iterator[Binding]:
    if "\n" in text or "\r" in text:
        raise UserError(f"-p takes one binding each: {text!r}")
    name, equals, _ = text.partition("=")
    if not equals or not _NAME.fullmatch(name.strip()):
        raise UserError(
            f"-p '{text}': expected 'name = value', as in 'dataloader.batch_size = 64'"
        )
    yield from _in_text(text, f"-p '{text}'", ())


def _bind_all(bindings: Iterator[Binding]) -> None:
    for statement, where in bindings:
        _bind(statement.scope, statement.selector, statement.arg_name, statement.value, where)


def _in_text(text: str, source: str, chain: tuple[str, ...]) -> Iterator[Binding]:
    """The bindings of a text; errors name `source` and, in a file, the line."""
    for statement, where in _statements(text, source, in_file=bool(chain)):
        if isinstance(statement, config_parser.IncludeStatement):
            yield from _in_file(statement.filename, chain, where)
        elif isinstance(statement, config_parser.ImportStatement):
            raise UserError(f"{where}: import statements run code and are refused")
        elif isinstance(statement, config_parser.BindingStatement):
            yield statement, where


def _statements(text: str, source: str, in_file: bool) -> Iterator[tuple[Any, str]]:
    """The statements as read by gin's parser, each with its location."""

    def where(line: int) -> str:
        return f"{source}:{line}" if in_file else source

    parser = None
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        for statement in parser:
            yield statement, where(statement.location.line_num)
    except (UserError, SyntaxError, ValueError, RecursionError, tokenize.TokenError) as error:
        token = parser.current_token if parser else None
        line = token.start[0] if token else 1
        shown = f"{text}\n".split("\n")[line - 1]
        hint = error.text if isinstance(error, UserError) else _hint(shown, error)
        raise UserError(f"{where(line)}: {hint}") from None


def _hint(line: str, error: Exception) -> str:
    """What is wrong with the line at which gin's parser stopped."""
    name, equals, value = (part.strip() for part in line.partition("="))
    open_quote = value.startswith(("'", '"')) and value.count(value[0]) % 2
    # The parser's message differs between Python versions.
    if isinstance(error, tokenize.TokenError) or open_quote:
        return "cannot be parsed: a bracket or a quote is left open"
    if not equals or not _NAME.fullmatch(name) or value.count("[") != value.count("]"):
        return f"cannot be parsed: {error.args[0]}"
    if value.lower() in ("true", "false", "none"):
        return f"write '{name} = {value.capitalize()}'"
    if _UNQUOTED.fullmatch(value):
        return f"string values need quotes: '{name} = \"{value}\"'"
    return (
        f"{value or 'nothing'} is no value; expected one number, True, False, None, text in "
        "quotes, or a list of these"
    )


def _bind_name(name: str, value: Any, where: str) -> None:
    if name.count(".") < 1:
        raise UserError(f"{where}: '{name}' is not of the form 'component.argument'")
    scope, selector, argument = config_parser.parse_binding_key(name)
    _bind(scope, selector, argument, value, where)


def _bind(scope: str, selector: str, argument: str, value: Any, where: str) -> None:
    if not argument:  # a macro: `name = value`, to be used as %name
        _bind_macro(f"{scope}/{selector}" if scope else selector, value, where)
        return
    selector = ALIASES.get(selector, selector)
    name = f"{scope}/{selector}.{argument}" if scope else f"{selector}.{argument}"
    hint, default = parameters(selector, argument, where)[argument]
    _check_scope(scope, selector, where)
    if not _macros(value):  # checked when macros are substituted
        value = values.convert(name, value, hint, default, where)
    gin.bind_parameter((scope, selector, argument), value)


def _check_scope(scope: str, selector: str, where: str) -> None:
    """Refuse a scope that is never entered, which gin would accept silently."""
    used = {name for entry in _entries() for name in getattr(entry.wrapper, "uses", ())}
    name = f"{scope}/{selector.rpartition('.')[2]}"
    if scope and name not in used:
        scoped = {name for name in used if "/" in name}
        raise UserError(f"{where}: '{name}' is never used{nearest(name, scoped)}")


def _bind_macro(name: str, value: Any, where: str) -> None:
    """Bind a macro; `-p` may change one of a file, but not define a new one."""
    known = {scope for scope, selector in gin_config._CONFIG if selector == _MACRO}
    if where.startswith("-p") and name not in known:
        options = {f"{entry.name}.{name}" for entry in _entries()
                   if name in inspect.signature(_function(entry)).parameters}  # fmt: skip
        raise UserError(f"{where}: '{name}' is not of the form 'component.argument'"
                        f"{nearest(name, options)}")  # fmt: skip
    gin.bind_parameter((name, _MACRO, "value"), value)


def _substitute_macros() -> None:
    """Substitute macros by their values, checked against the argument's type.

    Done after all bindings, because a later file or `-p` may change a macro.
    """
    for (scope, selector), arguments in list(gin_config._CONFIG.items()):
        for argument, value in list(arguments.items()):
            used = ", ".join(f"%{name}" for name in _macros(value))
            if used and selector != _MACRO:
                _bind(
                    scope, selector.rpartition(".")[2], argument, _substitute(value, ()), used
                )


def _macros(value: Any) -> list[str]:
    """The names of the macros in a value."""
    if isinstance(value, gin_config.ConfigurableReference):
        return [value.scoped_selector.removesuffix(f"/{_MACRO}")]
    items = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (list, tuple, dict))
    return [name for item in items for name in _macros(item)] if nested else []


def _substitute(value: Any, chain: tuple[str, ...]) -> Any:
    """`value` with macros substituted, also in nested lists and dictionaries."""
    if isinstance(value, gin_config.ConfigurableReference):
        (name,) = _macros(value)
        known = {scope: held["value"] for (scope, selector), held in gin_config._CONFIG.items()
                 if selector == _MACRO}  # fmt: skip
        if name in chain:
            raise UserError(f"%{name} refers to itself")
        if name not in known:
            raise UserError(f"%{name} is not defined{nearest(name, known)}")
        return _substitute(known[name], (*chain, name))
    if isinstance(value, dict):
        return {key: _substitute(item, chain) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_substitute(item, chain) for item in value]
    return value


def _entries() -> list:
    """All registered configurables of selfstudy."""
    return [entry for selector, entry in gin_config._REGISTRY.items()
            if not selector.startswith("gin.")]  # fmt: skip


def _function(entry: Any) -> Any:
    return entry.wrapped.__init__ if inspect.isclass(entry.wrapped) else entry.wrapped


def parameters(selector: str, argument: str | None = None, where: str = "") -> dict[str, tuple]:
    """The configurable arguments of `selector`: name -> (annotation, default).

    Raises:
        UserError: no configurable is called `selector`, or it has no such `argument`.
    """
    retired = RETIRED.get(f"{selector}.{argument}")
    if retired:
        raise UserError(f"{where}: '{selector}.{argument}' is retired; use {retired}")
    matches = gin_config._REGISTRY.matching_selectors(selector)
    if len(matches) != 1:
        known = {entry.name for entry in _entries()}
        raise UserError(f"{where}: nothing is called '{selector}'{nearest(selector, known)}")
    entry = gin_config._REGISTRY[matches[0]]
    function = _function(entry)
    hints = typing.get_type_hints(function, include_extras=True)
    arguments = {
        key: (hints.get(key, Any), parameter.default)
        for key, parameter in inspect.signature(function).parameters.items()
        if key != "self" and key not in (entry.denylist or ())
    }
    if argument is not None and argument not in arguments:
        raise UserError(
            f"{where}: '{selector}' has no parameter '{argument}'{nearest(argument, arguments)}"
        )
    return arguments


def value(selector: str, argument: str, scope: str = "") -> Any:
    """Effective value of `selector.argument`: bound in `scope`, bound, or its default."""
    default = parameters(selector, argument)[argument][1]
    with gin.config_scope(scope or None):
        return gin.get_bindings(selector).get(argument, default)


def would_build(root: str = "session") -> dict[str, dict[str, Any]]:
    """Each configurable called when building `root` -> its arguments and their values.

    Nothing is built: follows arguments whose values are registered names (`session.task`),
    their base classes, and the `uses` of each.

    Raises:
        UserError: an argument without a default is not bound.
    """
    settings: dict[str, dict[str, Any]] = {}
    todo = [root]
    while todo:
        scope, _, selector = todo.pop(0).rpartition("/")
        name = f"{scope}/{selector}" if scope else selector
        if name in settings:
            continue
        known = parameters(selector)
        with gin.config_scope(scope or None):
            bound = gin.get_bindings(selector)
        settings[name] = {key: bound.get(key, default) for key, (_, default) in known.items()}
        for key, item in settings[name].items():
            if item is gin.REQUIRED or item is inspect.Parameter.empty:
                raise UserError(f"'{name}.{key}' has no value; add -p '{name}.{key} = ...'")
            for mark in getattr(known[key][0], "__metadata__", ()):
                if isinstance(mark, registry.Names) and item is not None:
                    todo += _configurables(registry.get(mark.kind, item))
        entry: Any = gin_config._REGISTRY.get_match(selector)
        todo += list(getattr(entry.wrapper, "uses", ()))
    return settings


def _configurables(cls: type) -> list[str]:
    """The gin names of a class and its base classes."""
    entries = (gin_config._INVERSE_REGISTRY.get(base) for base in cls.__mro__)
    named = [entry.name for entry in entries if entry]
    return named or list(getattr(cls, "uses", ()))


def current_bindings() -> dict[str, Any]:
    """All current bindings: name -> value."""
    return _flat(gin_config._CONFIG)


def operative() -> dict[str, Any]:
    """The values used so far, defaults included: name -> value."""
    return _flat(gin_config._OPERATIVE_CONFIG)


def _flat(config: dict) -> dict[str, Any]:
    flat = {}
    for (scope, selector), arguments in config.items():
        if selector.startswith("gin."):
            continue
        name = selector.rpartition(".")[2]
        for argument, item in arguments.items():
            flat[f"{scope}/{name}.{argument}" if scope else f"{name}.{argument}"] = item
    return dict(sorted(flat.items()))


def operative_text() -> str:
    """The operative configuration as gin text that parses to the same values."""
    return gin.operative_config_str()


def text_of(parts: dict[str, dict[str, Any]]) -> str:
    """`would_build` as gin text, one binding per line."""
    lines = [f"{name}.{key} = {item!r}" for name, arguments in parts.items()
             for key, item in arguments.items()]  # fmt: skip
    return "\n".join(lines)
