"""How long a run would take, and what it would cost: measured rates of a machine, or published ones of a GPU."""
