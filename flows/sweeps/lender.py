"""Lends the model of one cell to the next."""

from __future__ import annotations

from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.workspace import Workspace
from factsmith.tasks.planning.run import Run
from factsmith.tasks.planning.settings import Settings

__all__ = ["Lender"]


class Lender:
    """Lends the model, and what else cells have in common, from one cell to the next. It keeps one model.

    Args:
        store: the artifact store.
        number: number of this process among those that run cells at the same time. Each then has one of several
            ``runtime.devices``, in turn. ``None`` if cells run one after the other: each then has all of them.
    """

    def __init__(self, store: Store, number: int | None = None) -> None:
        self._store = store
        self._number = number
        self._model: str | None = None
        self._run: Run | None = None

    def run(self, settings: Settings) -> Run:
        """A run with ``settings``."""
        placed = self._placed(settings)
        model = placed.model_dump_json(include={"model", "runtime"})
        if self._run is None or model != self._model:
            self._run = None  # Two models may not have room.
            self._run, self._model = Run(placed, self._store), model
        return self._run.variant(placed)

    def _placed(self, settings: Settings) -> Settings:
        runtime = settings.runtime
        if self._number is None or runtime.devices is None:
            return settings
        devices = Workspace(self._store, runtime).devices
        device = str(devices[self._number % len(devices)])
        return settings.model_copy(update={"runtime": runtime.model_copy(update={"device": device, "devices": None})})
