"""Every figure can be drawn, also if some metrics are missing."""

from __future__ import annotations

from io import BytesIO

import pytest

from factsmith.flows.reporting import figures

CURVES = {
    "sequence/S": {0: 1.0, 2: 90.0, 5: 80.0},
    "sequence/first_100/S": {0: 1.0, 2: 90.0, 5: 85.0},
    "sequence/perplexity": {0: 10.0, 2: 11.0, 5: 200.0},
}
MEASURES = {"change/relative/layer_0": {1: 0.1, 5: 0.2}, "change/relative/layer_1": {1: 0.2, 5: 0.3}}
EFFECTS = {
    kind: {role: [0.0, 0.2, 0.1] for role in ("first subject token", "last subject token", "last token")}
    for kind in ("hidden", "mlp", "attention")
}


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [
        (figures.before_and_after, ({"ES": 0.0, "PS": None, "S": 1.0}, {"ES": 99.0, "PS": None, "S": 95.0})),
        (figures.before_and_after, ({"Eff*": 0.0}, {"Eff*": None})),
        (figures.effects_by_role, (EFFECTS, [1, 2])),
        (figures.effects_by_role, (EFFECTS, [])),
        (
            figures.score_by_multiplier,
            ({"memit": {"1": {1.0: (60.0, 55.0, 65.0), 10.0: (90.0, 88.0, 93.0)}}}, "S", 0.95),
        ),
        (figures.leverage_by_multiplier, ({0: {1.0: 40.0, 10.0: 1.1}, 1: {1.0: float("inf"), 10.0: 1.2}}, 1.25)),
        (figures.spectra, ({0: [3.0, 1.0, 0.1], 1: [2.0, 1.0, 0.0]},)),
        (figures.trajectory_figure, (CURVES, MEASURES, ["S"])),
        (figures.trajectories_figure, ({"S of all facts, percent": {"memit": {0: 1.0, 5: 90.0}}, "perplexity": {}},)),
    ],
)
def test_a_figure_is_drawn(draw, arguments):
    file = BytesIO()
    draw(*arguments).savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    assert len(file.getvalue()) > 5000
