"""Ask: what a model makes of prompts, to compare the unedited model with the edited one.

In: prompts, a decoder. Out: a reply to each prompt; nothing in the store.
"""
