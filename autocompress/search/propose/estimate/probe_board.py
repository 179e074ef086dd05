"""Divide the measurements of single changes among the workers of a search.

The study is the board: it holds the list of changes, who has taken which, and what was measured. A
change that a worker took without measuring it is taken again, so that no worker is waited for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import optuna

from autocompress.candidate import ModuleConfig
from autocompress.search.propose.estimate.probe_meter import Effect, Probe

LIST = "probes"  # study attribute: the list that is measured
PLACE = "probe:"  # study attribute, with the id of the list and the index in it


@dataclass
class ProbeBoard:
    """Take changes from the list, and tell what they do.

    Two workers that take a change at the same time both measure it, with the same result.

    Attributes:
        study: of the search.
        worker: id of this worker.
    """

    study: optuna.Study
    worker: str
    _list: str = ""  # id of the list that this object has opened or seen last
    _probes: list[Probe] = field(default_factory=list)

    def measure_all(
        self,
        order: Sequence[Probe],
        measure: Callable[[str, ModuleConfig], Effect],
        is_over: Callable[[], bool],
        report: Callable[[float], None],
    ) -> dict[Probe, Effect]:
        """Open a list, measure it together with all workers that take part, and close it.

        Args:
            order: the changes, the most important one first.
            measure: measures one.
            is_over: returns True when the time is over.
            report: takes the share of the list that is measured.

        Returns:
            What was measured by any worker, in the order of the list.
        """
        self._list, self._probes = uuid.uuid4().hex[:12], list(order)
        rows = [[module, config.to_json()] for module, config in order]
        self._set(LIST, {"id": self._list, "probes": rows})
        try:
            while not is_over():
                places = self._places()
                place = self._next(places, or_unfinished=True)
                if place is None:
                    break
                report(len(_told(places)) / len(order))
                self._measure(place, measure)
        finally:
            self._set(LIST, {"id": self._list, "probes": []})
        told = _told(self._places())
        return {order[place]: told[place] for place in sorted(told)}

    def measure_one(self, measure: Callable[[str, ModuleConfig], Effect]) -> bool:
        """Measure one change of the list of another worker.

        Args:
            measure: measures one.

        Returns:
            False if there is none to take.
        """
        attribute = self.study.user_attrs.get(LIST, {"id": "", "probes": []})
        if attribute["id"] != self._list or not attribute["probes"]:
            self._list = attribute["id"]
            self._probes = [(module, ModuleConfig(**of)) for module, of in attribute["probes"]]
        place = self._next(self._places(), or_unfinished=False)
        if place is None:
            return False
        self._measure(place, measure)
        return True

    def _measure(self, place: int, measure: Callable[[str, ModuleConfig], Effect]) -> None:
        name, entry = f"{PLACE}{self._list}:{place}", {"worker": self.worker}
        self._set(name, entry)
        self._set(name, {**entry, "effect": asdict(measure(*self._probes[place]))})

    def _next(self, places: Mapping[int, Mapping[str, Any]], or_unfinished: bool) -> int | None:
        """Return the first place that nobody has taken; if there is none, one without a result."""
        for place in range(len(self._probes)):
            if place not in places:
                return place
        unfinished = [place for place in range(len(self._probes)) if "effect" not in places[place]]
        return unfinished[0] if or_unfinished and unfinished else None

    def _places(self) -> dict[int, Mapping[str, Any]]:
        """Return the entries of the list by place."""
        attributes, found = self.study.user_attrs, {}
        for place in range(len(self._probes)):
            entry = attributes.get(f"{PLACE}{self._list}:{place}")
            if entry is not None:
                found[place] = entry
        return found

    def _set(self, name: str, value: Mapping[str, Any]) -> None:
        self.study.set_user_attr(name, dict(value))


def _told(places: Mapping[int, Mapping[str, Any]]) -> dict[int, Effect]:
    """Return the effects of the places that have one."""
    return {
        place: Effect(**entry["effect"]) for place, entry in places.items() if "effect" in entry
    }
