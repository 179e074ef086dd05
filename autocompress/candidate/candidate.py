"""Describe one compressed model: a config per module, and the distillation for recovery.

A search proposes candidates; all rooms behind it read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autocompress.argument_types import shown
from autocompress.candidate.distillation import UNTRAINED, Distillation
from autocompress.candidate.module_config import UNTOUCHED, ModuleConfig
from autocompress.errors import SpaceError


def config_error(name: str, config: Any) -> SpaceError:
    """Return the error of a value that is no config.

    Args:
        name: of the module.
        config: the value that came.
    """
    near = "weight_bits=8"
    if isinstance(config, Mapping):
        near = ", ".join(f"{key}={value!r}" for key, value in config.items())
    return SpaceError(
        f"candidate: module {name!r}: expected a ModuleConfig, got {shown(config)}; "
        f"nearest: ModuleConfig({near})"
    )


def _is_named(pair: Any) -> bool:
    """Return True for a (name, config) pair."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        return False
    return isinstance(pair[0], str) and isinstance(pair[1], ModuleConfig)


@dataclass(frozen=True)
class Candidate:
    """Describe one compressed model.

    `of` makes a candidate from any configs; equal compressions give equal candidates.

    Attributes:
        modules: (name, effective config) of every compressed module, by name.
        distillation: the recovery.
    """

    modules: tuple[tuple[str, ModuleConfig], ...] = ()
    distillation: Distillation = UNTRAINED

    def __post_init__(self) -> None:
        if not isinstance(self.modules, tuple) or not all(map(_is_named, self.modules)):
            near = "Candidate.of({'name': ModuleConfig(weight_bits=8)})"
            raise SpaceError(
                "candidate: modules must be pairs of names and configs, got "
                f"{shown(self.modules)}; nearest: {near}"
            )
        if not isinstance(self.distillation, Distillation):
            raise SpaceError(
                f"candidate: expected a Distillation, got {shown(self.distillation)}; nearest: "
                "Distillation()"
            )

    @classmethod
    def of(
        cls, modules: Mapping[str, ModuleConfig], distillation: Distillation | None = None
    ) -> Candidate:
        """Return the candidate of some configs.

        Args:
            modules: configs by module name; they need not be effective.
            distillation: the recovery; None trains nothing.

        Raises:
            SpaceError: there is no mapping, or a value of it is no valid config.
        """
        if not isinstance(modules, Mapping):
            raise SpaceError(
                "candidate: modules must be a mapping from names to configs, got "
                f"{shown(modules)}; nearest: {{'name': ModuleConfig(weight_bits=8)}}"
            )
        touched = []
        for name, config in modules.items():
            if not isinstance(name, str):
                raise SpaceError(
                    f"candidate: names of modules must be texts, got {shown(name)}; "
                    f"nearest: {str(name)!r}"
                )
            if not isinstance(config, ModuleConfig):
                raise config_error(name, config)
            effective = config.effective()
            if effective != UNTOUCHED:
                touched.append((name, effective))
        return cls(tuple(sorted(touched)), UNTRAINED if distillation is None else distillation)

    @cached_property
    def _by_name(self) -> Mapping[str, ModuleConfig]:
        return dict(self.modules)

    def config(self, name: str) -> ModuleConfig:
        """Return the config of one module.

        Args:
            name: any module; a module without a config is left untouched.
        """
        return self._by_name.get(name, UNTOUCHED)

    @cached_property
    def digest(self) -> str:
        """Return a hash; equal candidates have equal ones, in every process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:24]

    def to_json(self) -> dict[str, Any]:
        """Return plain types; `from_json` reverses it."""
        modules = {name: config.to_json() for name, config in self.modules}
        return {"modules": modules, "distillation": self.distillation.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        """Read a candidate, the reverse of `to_json`.

        Args:
            data: configs and distillation.

        Raises:
            ValueError: a field is unknown.
        """
        modules = {
            name: ModuleConfig.from_json(f"candidate: module {name}", config)
            for name, config in data["modules"].items()
        }
        return cls.of(modules, Distillation.from_json(data.get("distillation", {})))
