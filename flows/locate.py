"""Flows ``known`` and ``locate``: which facts a model knows, and the layers that carry them."""

from __future__ import annotations

from prefect import flow

from factsmith.flows.reporting.figures import effects_by_role
from factsmith.flows.reporting.page import open_page
from factsmith.flows.reporting.reports import KnownReport, LocateReport
from factsmith.tasks.locate.effects import LAST_SUBJECT, LAST_TOKEN
from factsmith.tasks.locate.recall_stage import known as find_known
from factsmith.tasks.locate.stage import TABLE
from factsmith.tasks.locate.stage import locate as trace_facts
from factsmith.tasks.model.stage import model
from factsmith.tasks.planning.settings import Settings

__all__ = ["known", "locate"]


@flow(name="known")
def known(settings: Settings) -> KnownReport:
    """Find the facts of the dataset that a model knows.

    Args:
        settings: the settings, resolved. Method, corpus and trace are not read.
    """
    with open_page(settings, "known", editing=False) as run:
        workspace = run.workspace
        model(workspace, run.model)
        found = find_known(workspace, run.model, run.true_records)
        workspace.tracker.metrics(
            {"facts": found.facts, "recalled": len(found.recalled), "preferred": len(found.preferred)}
        )
        return KnownReport(
            run_id=workspace.flow_run,
            mlflow_run_id=workspace.tracker.run_id,
            stages=workspace.reports,
            facts=found.facts,
            recalled=found.recalled,
            preferred=found.preferred,
        )


@flow(name="locate")
def locate(settings: Settings) -> LocateReport:
    """Find the layers that carry facts that a model knows, by causal tracing.

    Args:
        settings: the settings, resolved. Method and corpus are not read.
    """
    with open_page(settings, "locate", editing=False) as run:
        workspace, tracker = run.workspace, run.workspace.tracker
        model(workspace, run.model)
        location = trace_facts(workspace, run.model, run.true_records, settings.trace, settings.dataset.name)
        tracker.metrics({"clean": location.clean, "corrupted": location.corrupted})
        for kind, by_role in location.effects.items():
            for role in (LAST_SUBJECT, LAST_TOKEN):
                by_layer = by_role.get(role, [])
                tracker.metrics({f"effect/{kind}/{role}/layer_{layer}": value for layer, value in enumerate(by_layer)})
        tracker.metrics({f"mediated/layer_{layer}": value for layer, value in enumerate(location.mediated)})
        tracker.tags({"layers": str(location.layers)})
        tracker.file(location.artifact.path / TABLE)
        tracker.figure(effects_by_role(location.effects, location.layers), "effects.png")
        return LocateReport(
            run_id=workspace.flow_run,
            mlflow_run_id=tracker.run_id,
            stages=workspace.reports,
            layers=location.layers,
            mediated=location.mediated,
            effects=location.effects,
            clean=location.clean,
            corrupted=location.corrupted,
            facts=location.facts,
            unknown=location.unknown,
        )
