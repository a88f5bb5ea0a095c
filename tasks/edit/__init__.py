"""Edits: low-rank weight changes that write facts, one batch at a time or in a sequence.

In: value vectors, factors of the preservation operators, and context templates. Out: for each edited layer a change
Delta as two thin factors. An ``edit`` artifact holds the changes of a batch, or of a sequence up to some batch;
``sequence`` artifacts are shards of a sequence's steps, from which an interrupted sequence continues.
"""
