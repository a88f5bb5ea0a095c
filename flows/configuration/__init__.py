"""From arguments such as ``method=emmet method.batch_size=64`` to validated settings, and to grids of them."""
