"""Registry of the names that users type in strings, and their classes.

`session.task = 'RotateTask'` and `Wrapper.model_choice = 'rotate'` resolve here, so that a
misspelt name yields an error with the nearest known one. A file in `datasets/`, `tasks/`,
`models/` or `methods/` registers its classes by decorators; no other file has to be edited. The
same holds for files of a folder in SELFSTUDY_EXTRA, see `selfstudy.extra`.
"""

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gin
from gin import config as gin_config

from selfstudy import extra
from util.errors import UserError, nearest

Class = TypeVar("Class", bound=type)
Configurable = TypeVar("Configurable", bound=Callable[..., Any])
PACKAGES = ("datasets", "tasks", "models", "methods")
MODULES = ("train.session", "train.simulation", "evaluate.frozen", "job")  # the jobs

_known: dict[str, dict[str, type]] = defaultdict(dict)


class Names:
    """Marks a string argument as a registered name: `task: Annotated[str, Names('task')]`."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"Names({self.kind!r})"


def register(kind: str, name: str | None = None) -> Callable[[Class], Class]:
    """Class decorator that adds a class of `kind` under `name` (default: the class's own).

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(cls: Class) -> Class:
        key = name or cls.__name__
        other = _known[kind].setdefault(key, cls)
        if other is not cls:
            raise ValueError(f"{kind} '{key}' is both {other} and {cls}")
        return cls

    return add


REQUIRED: Any = gin.REQUIRED  # default of an argument that a configuration must bind
config_scope = gin.config_scope  # context manager: `with config_scope('train'):`


def configurable(
    name: str | None = None, denylist: Sequence[str] = ()
) -> Callable[[Configurable], Configurable]:
    """Decorator that lets gin files and `-p` bind the arguments of a class or function.

    As `gin.configurable`, but preserving the decorated type.

    Args:
        name: in configurations; None is the function's or class's own.
        denylist: arguments given by our code, which cannot be bound.

    Raises:
        ValueError: another module has a configurable of this name; gin would accept both, and
            then resolve neither.
    """
    decorator: Any = gin.configurable(name, denylist=list(denylist) or None)

    def add(target: Configurable) -> Configurable:
        key, module = name or target.__name__, target.__module__
        for selector in gin_config._REGISTRY.matching_selectors(key):
            if selector != f"{module}.{key}":
                raise ValueError(f"'{key}' is already the configurable {selector}")
        return decorator(target)

    return add


def get(kind: str, name: str) -> Any:
    """The class registered as `name`; a `UserError` for an unknown name gives the nearest."""
    try:
        return _known[kind][name]
    except (KeyError, TypeError):
        raise UserError(f"no {kind} is called {name!r}{nearest(name, _known[kind])}") from None


def names(kind: str) -> list[str]:
    """All registered names of `kind`, sorted."""
    return sorted(_known[kind])


def discover() -> None:
    """Import all modules that register classes: ours by name, then those of extra folders.

    Raises:
        UserError: an extra folder is missing, or one of its files fails.
    """
    for package in PACKAGES:
        root = importlib.import_module(f"selfstudy.{package}")
        for module in sorted(info.name for info in pkgutil.iter_modules(root.__path__)):
            importlib.import_module(f"selfstudy.{package}.{module}")
    for module in MODULES:
        importlib.import_module(f"selfstudy.{module}")
    extra.load()
