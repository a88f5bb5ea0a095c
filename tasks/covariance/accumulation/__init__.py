"""C0 without stored keys: sums of sections, whose partial sums last until it is made."""
