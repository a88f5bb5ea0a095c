"""What edits do to text that is not about the facts: perplexity, and drift from the unedited model.

In: blocks of the corpus that C0 does not cover, and edits. Out: ``perplexity`` artifacts, for sequences, and ``drift``
artifacts.
"""
