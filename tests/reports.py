"""Reports of sweeps, made by hand."""

from __future__ import annotations

from factsmith.flows.reporting.sweeps.reports import CellReport, SweepReport


def cell(score: float | None = None, spread: float = 2.0, error: str | None = None, **place) -> CellReport:
    names = {"m": "method", "b": "method.batch_size", "d": "corpus.dynamic_multiplier"}
    metrics = dict.fromkeys(("ES", "PS", "NS", "S"), score)
    return CellReport(
        place={names[key]: str(value) for key, value in place.items()},
        facts=4,
        tokens=0 if place.get("d") == "auto" else 100 * int(place.get("d", 1)),
        metrics={} if error else {"before": dict.fromkeys(metrics, 0.0), "after": metrics},
        intervals={} if error or score is None else dict.fromkeys(metrics, (score - spread, score + spread)),
        error=error,
    )


def report_of(*cells: CellReport) -> SweepReport:
    return SweepReport(
        run_id="r", mlflow_run_id="m", name="by-hand", axes=[[key] for key in cells[0].place],
        metrics=["ES", "PS", "NS", "S"], mean=("S", ["ES", "PS", "NS"]), cells=list(cells),
    )  # fmt: skip
