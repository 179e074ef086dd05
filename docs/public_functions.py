"""Let the site show public functions that have the names of packages: search, export, compress."""

from __future__ import annotations

from typing import Any

import griffe

PACKAGE = "autocompress"


class PublicFunctions(griffe.Extension):
    """Put the functions of `autocompress/__init__.py` back in the place of its packages."""

    def __init__(self) -> None:
        self.functions: dict[str, griffe.Function] = {}

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Remember a public function, before a package of the same name is read."""
        if func.parent is not None and func.parent.path == PACKAGE:
            self.functions[func.name] = func

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Show the functions; on this page nothing asks for the packages."""
        for name, func in self.functions.items():
            if pkg.path == PACKAGE:
                pkg.set_member(name, func)
