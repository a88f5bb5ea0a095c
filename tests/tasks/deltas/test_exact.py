"""Changes that are taken back to the bit."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factsmith.tasks.deltas.exact import kept, negated, put_back, sum_of
from factsmith.tasks.edit.delta import DenseDelta, LowRankDelta

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def same_bits(one, other) -> bool:
    kind = INTEGERS[one.dtype]
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def test_only_entries_that_lose_bits_are_kept():
    """bfloat16 has 8 bits: steps of 2**-7 from 1 to 2, and of 2**-5 from 4 to 8. Of 1 + 2**-7 + 3, 4 is left."""
    weight = torch.tensor([[1 + 2**-7, 1.0, -0.0, 1.5, 2, 2, 2, 2]], dtype=torch.bfloat16)
    delta = DenseDelta(torch.tensor([[3.0, 3.0, 0.0, 0.25, 0, 0, 0, 0]]))
    changed = delta.added_to(weight)
    assert changed.tolist() == [[4.0, 4.0, 0.0, 1.75, 2, 2, 2, 2]]
    back = negated(delta).added_to(changed)
    assert back.tolist() == [[1.0, 1.0, 0.0, 1.5, 2, 2, 2, 2]]
    found = kept(back, weight)
    assert found.index.tolist() == [0, 2]  # Minus zero has another bit than zero.
    assert found.index.dtype == torch.int32
    assert same_bits(put_back(back, found), weight)
    assert kept(weight, weight) is None
    assert kept(weight, weight, whole=True).index is None


def test_whole_tensors_are_kept_where_places_take_more_space():
    wanted = torch.ones(2, 8)
    few, many = wanted.clone(), wanted.clone()
    few[0, :7] = 0  # 7 entries of 4 bytes with places of 4 bytes take 56 of 64 bytes.
    many[0, :] = many[1, 0] = 0
    assert kept(few, wanted).index.tolist() == [*range(7)]
    assert kept(many, wanted).index is None
    assert torch.equal(put_back(many, kept(many, wanted)), wanted)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(list(INTEGERS)),
    rank=st.integers(1, 5),
    scale=st.floats(1e-6, 10),
    seed=st.integers(0, 2**31),
    dense=st.booleans(),
    transposed=st.booleans(),
)
def test_every_change_is_taken_back_to_the_bit(dtype, rank, scale, seed, dense, transposed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 9, generator=generator).to(dtype)
    weight = weight.T.contiguous().T if transposed else weight  # as a view of what a Conv1D stores
    left = scale * torch.randn(12, rank, generator=generator, dtype=torch.float64)
    delta = LowRankDelta(left, torch.randn(9, rank, generator=generator, dtype=torch.float64))
    delta = DenseDelta(delta.dense().float()) if dense else delta
    changed = delta.added_to(weight)
    back = negated(delta).added_to(changed)
    assert same_bits(put_back(back, kept(back, weight)), weight)


def test_sums_are_thin_while_that_is_smaller():
    ones = LowRankDelta(torch.ones(4, 1), torch.ones(4, 1))
    two = sum_of(ones, negated(ones))
    assert isinstance(two, LowRankDelta)  # 2 * (4 + 4) numbers are as many as 4 * 4.
    assert torch.equal(two.dense(), torch.zeros(4, 4))
    three = sum_of(two, ones)
    assert isinstance(three, DenseDelta)
    assert torch.equal(sum_of(three, DenseDelta(torch.eye(4))).dense(), torch.ones(4, 4) + torch.eye(4))
