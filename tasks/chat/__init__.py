"""Facts as people ask an instruction-tuned model for them: its chat template, and questions for known relations.

In: a tokenizer with a chat template, and the names of relations. Out: texts in the template, up to where the model's
answer begins, and question forms. Nothing here runs a model.
"""
