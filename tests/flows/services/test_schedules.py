"""Deployments: their flows and schedules, and what cannot be scheduled or served."""

from __future__ import annotations

import socket

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.cli import invoke_and_assert

from factsmith.artifacts.errors import InputError
from factsmith.flows.services import servers
from factsmith.flows.services.schedules import CRONS, When, check_server, deployments
from tests.conftest import ROOT
from tests.servers import free_ports


@pytest.mark.parametrize("option", ["--port", "--mlflow-port"])
def test_a_port_of_serve_that_is_taken(refused, home, monkeypatch, option):
    other = "--mlflow-port" if option == "--port" else "--port"
    with socket.socket() as taken, temporary_settings({PREFECT_API_URL: None}):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(servers, "_serving", lambda *_: pytest.fail("a server was started"))
        message = refused("serve", option, port, other, str(free_ports(1)[0]))
        assert f"Port {port} of 127.0.0.1 cannot be used" in message
        assert f"choose another with {option}" in message


def test_prefect_yaml_deploys_three_flows(prefect_server, monkeypatch):
    monkeypatch.chdir(ROOT)
    url = PREFECT_API_URL.value()
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="local", type="process"))
        invoke_and_assert(["--no-prompt", "deploy", "--all"], expected_code=0)
        of_the_pool = WorkPoolFilter.model_validate({"name": {"any_": ["local"]}})
        deployed = {
            client.read_flow(one.flow_id).name: one for one in client.read_deployments(work_pool_filter=of_the_pool)
        }
    assert set(deployed) == set(CRONS)
    for flow, one in deployed.items():
        assert [schedule.schedule.cron for schedule in one.schedules] == [cron for cron in [CRONS[flow]] if cron]
        assert one.entrypoint == f"factsmith.flows.{flow}.{flow}"

    # What its form does not allow is refused before a run begins.
    path = f"{url}/deployments/{deployed['precompute'].id}/create_flow_run"
    for settings, message in [
        ({"method": "memmit"}, "memmit"),
        ({"changes": {"method": {"slack": -1}}}, "minimum of 0"),
        ({"changes": {"method": {"slak": 1}}}, "slak"),
    ]:
        answer = httpx.post(path, json={"parameters": {"settings": settings}}, timeout=60)
        assert answer.status_code == 409
        assert message in answer.text
    assert httpx.post(path, json={"parameters": {"settings": {"method": "emmet"}}}, timeout=60).status_code == 201


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (When(cron="at noon"), "at noon"),
        (When(cron="0 2 * * *", timezone="Atlantis/Poseidonis"), "Atlantis"),
        (When(cron="0 2 * * *", interval=5), "not both"),
        (When(interval=0), "greater than 0"),
    ],
)
def test_a_time_that_is_none(when, message):
    with pytest.raises(InputError) as caught:
        deployments([], [], when, name="tiny")
    assert message in str(caught.value)


def test_a_flow_that_is_not_served():
    with pytest.raises(InputError, match="did you mean 'evaluate'"):
        deployments([], ["evalute"], When(), name="tiny")


def test_each_flow_has_its_own_time_unless_one_is_given():
    def crons(when: When) -> dict[str, list[str]]:
        made = deployments([], [], when, name="tiny")
        return {one.flow_name: [schedule.schedule.cron for schedule in one.schedules or []] for one, _ in made}

    assert crons(When()) == {flow: [cron] if cron else [] for flow, cron in CRONS.items()}
    assert crons(When(cron="30 4 * * 1")) == {flow: ["30 4 * * 1"] for flow in CRONS}


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/api"])
def test_a_server_that_is_not_there(url):
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(InputError, match="prefect server start"):
        check_server()
