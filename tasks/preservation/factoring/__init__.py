"""Kinds of preservation as stages know them: what each is made from, what is kept of it. One file a kind."""
