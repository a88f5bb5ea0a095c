"""How much runs at once on devices of different sizes."""

from __future__ import annotations

import pytest
import torch

from factsmith.tasks.model.cost import ModelCost
from factsmith.tasks.model.limits import Limits, fitting_limits, limits
from factsmith.tasks.pipeline.settings import RuntimeSettings

LLAMA_3_8B = ModelCost(32, 4096, 14336, 128256, 8_030_261_248, 218_103_808, 58_720_256)
GPT2_XL = ModelCost(48, 1600, 6400, 50257, 1_557_611_200, 30_720_000, 10_240_000)
GB = 2**30


def no_cost() -> ModelCost:
    raise AssertionError("the sizes of the model are not needed")


def test_a_cpu_and_what_is_set_need_no_sizes():
    assert limits(RuntimeSettings(), torch.device("cpu"), no_cost, 4) == Limits(8192, 2**31)
    both = RuntimeSettings(tokens_per_pass=77, memory_mb=99)
    assert limits(both, torch.device("cuda"), no_cost, 4) == Limits(77, 99 * 2**20)
    one = RuntimeSettings(tokens_per_pass=77)
    assert limits(one, torch.device("cpu"), no_cost, 4) == Limits(77, 2**31)


@pytest.mark.parametrize("gigabytes", [20, 24, 40, 80, 140])
@pytest.mark.parametrize(("cost", "item"), [(LLAMA_3_8B, 2), (GPT2_XL, 4)])
def test_a_pass_has_room_beside_the_weights(cost: ModelCost, item: int, gigabytes: int):
    found = fitting_limits(gigabytes * GB, cost, item)
    left = gigabytes * GB - item * cost.parameters
    assert found.most_tokens & (found.most_tokens - 1) == 0
    states = found.most_tokens * 4 * (6 * cost.width + 12 * cost.key_width)
    assert states < 0.5 * left
    assert found.memory <= left


def test_a_larger_gpu_takes_larger_passes():
    sizes = [fitting_limits(gigabytes * GB, GPT2_XL, 4).most_tokens for gigabytes in (8, 24, 80, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]
    assert sizes[3] == 65536
    assert fitting_limits(1 * GB, GPT2_XL, 4) == Limits(512, 2**29)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    found = limits(RuntimeSettings(), torch.device("cuda"), lambda: GPT2_XL, 4)
    assert found == fitting_limits(torch.cuda.get_device_properties(0).total_memory, GPT2_XL, 4)
