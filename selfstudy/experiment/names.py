"""Misspelt names are refused before torch is imported, from an index of the sources.

The index is read with `ast` in a tenth of a second; importing what registers the names takes
two. Whatever the index is not sure of is left to `configure.load`, whose words these are.
"""

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paths
from selfstudy import configure
from selfstudy.configure import ALIASES, RETIRED, Spec
from util.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[1]
Definition = ast.FunctionDef | ast.ClassDef


@dataclasses.dataclass
class Index:
    """What the sources register.

    Attributes:
        arguments: configurable -> its arguments, each with the kind of registered name that
            it takes ('' for other values); None where they are inherited.
        denied: configurable -> arguments that nobody binds.
        names: kind -> its registered names; None where some are computed.
    """

    arguments: dict[str, dict[str, str] | None] = dataclasses.field(default_factory=dict)
    denied: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    names: dict[str, set[str] | None] = dataclasses.field(default_factory=dict)


def check(spec: Spec, search: dict[str, Any] | None = None) -> None:
    """Refuse names of files, components, arguments and registered classes that do not exist.

    Args:
        spec: files and `-p` bindings.
        search: the search space of a ray config.

    Raises:
        UserError: as `configure.load`.
    """
    if paths.EXTRA_DIRS:  # those folders register names of their own
        return
    index = scan()
    search = search or {}
    files = search.get(configure.INCLUDE, [])
    files = [files] if isinstance(files, str) else files if isinstance(files, list) else []
    for statement, where in configure.bindings(spec, files):
        _check(index, statement.selector, statement.arg_name, statement.value, where)
    for name in search:
        selector, dot, argument = name.rpartition(".")
        if dot:
            _check(index, selector.rpartition("/")[2], argument, None, "ray config")


def _check(index: Index, selector: str, argument: str, value: Any, where: str) -> None:
    selector = ALIASES.get(selector, selector)
    if not argument or "." in selector or f"{selector}.{argument}" in RETIRED:
        return  # a macro, a name with its module, a message of its own
    if selector not in index.arguments:
        hint = nearest(selector, index.arguments)
        raise UserError(f"{where}: nothing is called '{selector}'{hint}")
    arguments = index.arguments[selector]
    if arguments is None:
        return
    if argument not in arguments:
        hint = nearest(argument, arguments.keys() - index.denied[selector])
        raise UserError(f"{where}: '{selector}' has no parameter '{argument}'{hint}")
    kind = arguments[argument]
    known = index.names.get(kind)
    if known and isinstance(value, str) and value not in known:
        raise UserError(f"{where}: no {kind} is called {value!r}{nearest(value, known)}")


def scan() -> Index:
    """The index of all files of the package that decorate something."""
    index = Index()
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "configurable(" in text or "register(" in text:
            _scan_file(ast.parse(text), index)
    return index


def _scan_file(tree: ast.Module, index: Index) -> None:
    decorators: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            for call in _calls(node.decorator_list):
                decorators.add(id(call))
                _add(node, call, index)
    for call in _calls(ast.walk(tree)):
        if _called(call) == "register" and id(call) not in decorators:
            for kind in _texts(call.args[:1]):  # in a loop, for names that are computed
                index.names[kind] = None


def _calls(nodes: Any) -> Iterator[ast.Call]:
    return (node for node in nodes if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _texts(nodes: list[ast.expr]) -> list[str]:
    return [node.value for node in nodes
            if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip


def _add(node: Definition, call: ast.Call, index: Index) -> None:
    """Enter what a decorator registers."""
    given = _texts([*call.args, *(item.value for item in call.keywords if item.arg == "name")])
    if _called(call) == "register":
        kind, name = (given + [node.name])[:2]
        names = index.names.setdefault(kind, set())
        if names is not None:
            names.add(name)
    elif _called(call) == "configurable":
        name = given[0] if given else node.name
        index.arguments[name] = _arguments(node)
        denied = [item.value for item in call.keywords if item.arg == "denylist"]
        index.denied[name] = {text for item in denied for text in _texts([*_items(item)])}


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, (ast.List, ast.Tuple)) else []


def _arguments(node: Definition) -> dict[str, str] | None:
    """Argument -> the kind of registered name that it takes."""
    if isinstance(node, ast.ClassDef):
        own = [item for item in node.body
               if isinstance(item, ast.FunctionDef) and item.name == "__init__"]  # fmt: skip
        return _arguments(own[0]) if own else None
    given = node.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return {item.arg: _kind(item.annotation) for item in arguments if item.arg != "self"}


def _kind(annotation: ast.expr | None) -> str:
    """The kind that `Annotated[str, Names(kind)]` names; '' of another annotation."""
    marks = [call for call in _calls(ast.walk(annotation)) if _called(call) == "Names"] if (
        annotation) else []  # fmt: skip
    return next(iter(_texts(marks[0].args)), "") if len(marks) == 1 else ""
