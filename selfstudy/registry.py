"""Names that users type in strings, and the classes that they stand for.

`session.task = 'RotateTask'` and `Wrapper.model_choice = 'rotate'` resolve here, so that a
misspelt name is answered with the nearest known one. A file in `datasets/`, `tasks/`,
`models/` or `methods/` registers its classes by decorating them; nothing else is to be edited.
So does a file of a folder that SELFSTUDY_EXTRA names, see `selfstudy.extra`.
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


REQUIRED: Any = gin.REQUIRED  # the default of an argument that a configuration must give
config_scope = gin.config_scope  # `with config_scope('train'):` calls under that scope


def configurable(
    name: str | None = None, denylist: Sequence[str] = ()
) -> Callable[[Configurable], Configurable]:
    """Decorator that lets gin files and `-p` bind the arguments of a class or function.

    Gin's own, with the type of what it decorates, which it keeps.

    Args:
        name: what configurations call it; None is its own name.
        denylist: arguments that our code gives and nobody binds.

    Raises:
        ValueError: another module has a configurable of this name; gin itself would take both,
            and find neither.
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
    """The class of `kind` called `name`; a `UserError` names the nearest when there is none."""
    try:
        return _known[kind][name]
    except (KeyError, TypeError):
        raise UserError(f"no {kind} is called {name!r}{nearest(name, _known[kind])}") from None


def names(kind: str) -> list[str]:
    """All registered names of `kind`, sorted."""
    return sorted(_known[kind])


def discover() -> None:
    """Import every file that may register something: ours by name, then those of extra folders.

    Raises:
        UserError: an extra folder is missing, or one of its files fails.
    """
    for package in PACKAGES:
        found = importlib.import_module(f"selfstudy.{package}")
        for module in sorted(info.name for info in pkgutil.iter_modules(found.__path__)):
            importlib.import_module(f"selfstudy.{package}.{module}")
    for module in MODULES:
        importlib.import_module(f"selfstudy.{module}")
    extra.load()
