"""Random stacks: what any number of deltas make of a model is taken back, from the top to any of them, to the bit."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factsmith.tasks.deltas.checks import check_applies, check_stack, check_undoes
from factsmith.tasks.deltas.stack import apply_stack, undo_stack
from factsmith.tasks.deltas.weights import checksums, state_of
from tests.conftest import load
from tests.tasks.deltas.test_deltas import BASE, DTYPES, draw, made, on

_ONE = st.tuples(
    st.integers(0, 2**31), st.integers(1, 4), st.booleans(), st.sampled_from(["entries", "tensors"])
)  # seed, rank, dense, what is kept


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dtype=st.sampled_from(DTYPES), ones=st.lists(_ONE, min_size=1, max_size=4), data=st.data())
def test_a_stack_is_taken_back_from_the_top_to_the_bit(gpt2_folder, tmp_path_factory, dtype, ones, data):
    decoder, folder = load(gpt2_folder, dtype), tmp_path_factory.mktemp("stack")
    deltas, states = [], [checksums(decoder)]
    for number, (seed, rank, dense, keeps) in enumerate(ones):
        changes = draw(decoder, seed, rank=rank, dense=dense)
        base = deltas[-1].ledger if deltas else BASE
        if deltas:
            with torch.no_grad(), apply_stack(decoder, deltas, states[0], None, independent=False).applied(decoder):
                deltas.append(made(folder / str(number), decoder, changes, base=base, keeps=keeps))
        else:
            deltas.append(made(folder / str(number), decoder, changes, base=base, keeps=keeps))
        states.append(on(decoder, apply_stack(decoder, deltas, states[0], None, independent=False)))
    check_stack(deltas, independent=False)
    check_applies(deltas, state_of(states[0]), None, "M", independent=False)
    whole = apply_stack(decoder, deltas, states[0], None, independent=False)
    assert whole.exact
    kept = data.draw(st.integers(0, len(deltas) - 1), label="deltas that stay")
    with torch.no_grad(), whole.applied(decoder):
        check_undoes(deltas[kept:], whole.state, whole.ledger, "M", independent=False)
        undone = undo_stack(decoder, deltas[kept:], states[-1], whole.ledger)
        assert undone.exact
        assert on(decoder, undone) == states[kept]
    assert [edit.edit for edit in undone.ledger.edits] == [f"edit/a/{number}" for number in range(kept)]
    assert checksums(decoder) == states[0]
