"""The deployments that `factsmith serve` runs on this machine: their flows, schedules and parameters."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.context import refresh_global_settings_context
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.schedules import Cron, Interval, Schedule
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from factsmith.artifacts.errors import InputError, closest
from factsmith.flows.configuration.parameters import deployment_parameters
from factsmith.flows.evaluate import evaluate
from factsmith.flows.precompute import precompute
from factsmith.flows.run import run

__all__ = ["CRONS", "When", "check_server", "deployments", "keep_serving", "named_server", "use_server"]

_FLOWS: dict[str, Flow[..., Any]] = {flow.name: flow for flow in (precompute, evaluate, run)}

CRONS = {"precompute": "0 2 * * *", "evaluate": "0 * * * *", "run": None}
"""The default schedule of each flow. ``run`` has none: it runs when somebody asks for it."""


@dataclass(frozen=True)
class When:
    """The schedule of a deployment: a cron, an interval, or neither, which schedules nothing.

    Attributes:
        cron: five fields: minute, hour, day of the month, month, day of the week.
        interval: seconds between the starts of two runs.
        timezone: IANA name of the cron's time zone.
    """

    cron: str | None = None
    interval: int | None = None
    timezone: str = "UTC"

    def __str__(self) -> str:
        if self.interval is not None:
            return f"every {timedelta(seconds=self.interval)}"
        return f"{self.cron} ({self.timezone})" if self.cron else "when asked for"

    @property
    def schedules(self) -> list[Schedule]:
        if self.interval is not None:
            return [Interval(timedelta(seconds=self.interval), timezone=self.timezone)]
        return [Cron(self.cron, timezone=self.timezone)] if self.cron else []


def deployments(
    arguments: Sequence[str], only: Sequence[str], when: When, *, name: str
) -> list[tuple[RunnerDeployment, When]]:
    """Deployments, each with its schedule.

    Args:
        arguments: choices and settings of the runs.
        only: names of the flows to deploy; empty for all of them.
        when: a schedule that replaces the default ones, unless it has neither cron nor interval.
        name: name of the deployments. Their addresses are ``FLOW/NAME``.

    Raises:
        InputError: an unknown flow, or a schedule that cannot be used.
    """
    for flow in only:
        if flow not in _FLOWS:
            raise InputError(f"There is no flow {flow!r} to serve.", remedy=closest(flow, _FLOWS))
    if when.cron is not None and when.interval is not None:
        raise InputError("A schedule has a cron or an interval, not both.", remedy="leave out one of them")
    parameters = {"settings": deployment_parameters(arguments)}
    made = []
    for flow in only or _FLOWS:
        its = when if when.cron or when.interval is not None else replace(when, cron=CRONS[flow])
        try:
            deployment = _FLOWS[flow].to_deployment(
                name,
                schedules=its.schedules,
                parameters=parameters,
                description=(_FLOWS[flow].description or "").partition("\n\n")[0],
                tags=["factsmith"],
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        except (ValidationError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error).splitlines()[0]
            raise InputError(
                f"{flow}/{name} cannot be scheduled.",
                got=f"{its}: {reason}",
                expected="a cron of five fields such as '0 2 * * *', and a time zone such as Europe/Paris",
            ) from None
        assert isinstance(deployment, RunnerDeployment)
        made.append((deployment, its))
    return made


def named_server() -> str | None:
    """The address of the Prefect server that the settings of Prefect name, such as ``PREFECT_API_URL``."""
    address: str | None = PREFECT_API_URL.value()
    return address


def use_server(api: str) -> None:
    """Use a Prefect server from now on, here and in the runs that are started from here."""
    os.environ["PREFECT_API_URL"] = api
    refresh_global_settings_context()


def check_server() -> str:
    """The address of Prefect's server.

    Raises:
        InputError: there is none, or it does not answer.
    """
    start = (
        "`PREFECT_SERVER_ANALYTICS_ENABLED=false prefect server start` in another terminal, "
        "and here `export PREFECT_API_URL=http://127.0.0.1:4200/api`; or leave --no-server out"
    )
    address = PREFECT_API_URL.value()
    if not address:
        raise InputError("Schedules need a Prefect server.", got="PREFECT_API_URL is not set", remedy=start)
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            raise InputError("Prefect's server does not answer.", got=f"PREFECT_API_URL={address}", remedy=start)
    return str(address)


class _Runner(Runner):
    def handle_sigterm(self, *_: Any) -> None:
        """End as Ctrl-C does. Prefect would exit inside the event loop, with a traceback."""
        signal.raise_signal(signal.SIGINT)


def keep_serving(served: Sequence[RunnerDeployment]) -> None:
    """Register deployments and run what is due, one run at a time, until interrupted. Then pause them.

    Raises:
        InputError: the server did not answer at the end, so the deployments could not be paused.
    """
    runner = _Runner(limit=1, pause_on_shutdown=False)
    ids = [str(runner.add_deployment(one)) for one in served]
    with get_client(sync_client=True) as client:
        for one in ids:
            _pause(client, one)  # Forgets runs that were due while nobody served them: one run catches up as well.
            client.resume_deployment(one)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs ignore SIGINT.
    try:
        asyncio.run(runner.start())
    except KeyboardInterrupt:
        pass
    finally:
        _stop(ids)


def _stop(ids: Sequence[str]) -> None:
    """Pause deployments, and mark the runs that end with this process as crashed. Nobody else would."""
    state = {"type": {"any_": [StateType.PENDING, StateType.RUNNING]}}
    of_ours = FlowRunFilter.model_validate({"deployment_id": {"any_": list(ids)}, "state": state})
    crashed: State[Any] = Crashed(message="`factsmith serve` was stopped; the next run continues from here")
    try:
        with get_client(sync_client=True) as client:
            for one in ids:
                _pause(client, one)
            for run_left in client.read_flow_runs(flow_run_filter=of_ours):
                client.set_flow_run_state(run_left.id, crashed, force=True)
    except httpx.HTTPError as error:
        raise InputError(
            "Stopped, but the schedules could not be paused: Prefect's server does not answer.",
            got=str(error),
            remedy="none is needed: runs that are due before the next `factsmith serve` are forgotten then",
        ) from None


def _pause(client: SyncPrefectClient, deployment: str) -> None:
    """Pause a deployment and delete its scheduled runs, which the client's own method would leave."""
    client.request("POST", "/deployments/{id}/pause_deployment", path_params={"id": deployment})
