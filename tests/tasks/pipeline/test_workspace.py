"""What a run may leave on its device."""

from __future__ import annotations

import pytest
import torch

from factsmith.artifacts.store import Store
from factsmith.tasks.pipeline.settings import RuntimeSettings
from factsmith.tasks.pipeline.workspace import Workspace

GB = 2**30


@pytest.mark.parametrize(("gigabytes", "layers"), [(24, 0), (40, 2), (80, 5)])
def test_what_is_held_leaves_half_of_a_gpu(tmp_path, monkeypatch, gigabytes, layers):
    """Beside 16 GB of weights, five layers of 1.6 GB each would fill a small one."""
    workspace = Workspace(Store(tmp_path), RuntimeSettings())
    used, size = 16 * GB, int(1.6 * GB)
    monkeypatch.setattr(Workspace, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gigabytes * GB - used, gigabytes * GB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: used)
    held = 0
    while held < 5 and workspace.can_hold(size):
        held, used = held + 1, used + size
    assert held == layers
