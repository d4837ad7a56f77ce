"""Modules that only some tests need, imported by the first of these."""

import importlib
from typing import Any


class Later:
    """A module, or something in it, that is imported when it is first used.

    Collecting the tests imports every test file, and each worker of pytest-xdist collects all.

    Args:
        module: its full name.
        name: of what is meant in it; '' is the module itself.
    """

    def __init__(self, module: str, name: str = ""):
        self._meant = module, name

    def _get(self) -> Any:
        module, name = self._meant
        found = importlib.import_module(module)
        return getattr(found, name) if name else found

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._get()(*args, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_pytest")):  # pytest looks at all that a test file has
            raise AttributeError(name)
        return getattr(self._get(), name)
