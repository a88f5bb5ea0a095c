"""Chat templates like those of published models, small enough to read."""

from __future__ import annotations

__all__ = ["LLAMA_2", "PLAIN"]

PLAIN = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Writes no BOS, and a blank at the end of the generation prompt."""

LLAMA_2 = (
    "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'user' %}[INST] {{ turn.content | trim }} [/INST]"
    "{% else %} {{ turn.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""Writes a BOS, and a blank before an answer."""
