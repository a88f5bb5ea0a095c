"""Which cell of a sweep comes next."""

from __future__ import annotations

from factsmith.flows.configuration.composition import compose_cell
from factsmith.flows.configuration.grid import read_grid
from factsmith.flows.sweeps.order import Order


def cells(*arguments):
    return dict(enumerate(compose_cell(cell.arguments)[0] for cell in read_grid(arguments).cells))


def test_the_most_tokens_come_first():
    order = Order(cells("model=embedded", "corpus.dynamic_multiplier=2,5,1"))
    assert [order() for _ in range(4)] == [1, 0, 2, None]


def test_cells_that_run_at_once_do_not_wait_for_each_other():
    order = Order(cells("model=embedded", "method.layers=[4],[5]", "method=memit,emmet"))
    assert [order(0), order(1)] == [0, 2], "cell 1 would wait for the keys of cell 0"
    assert order(2) == 1, "there is no other"
    order.ended(2)
    assert [order(1), order(1)] == [3, None]


def test_a_process_keeps_its_model():
    order = Order(cells("model=embedded", "model.dtype=float32,bfloat16", "method=memit,emmet,pmet"))
    assert [order(0), order(1)] == [0, 3]
    order.ended(0)
    order.ended(3)
    assert [order(1), order(0)] == [4, 1]
    assert [order(1), order(1)] == [5, 2], "no other cell of its model is left"
