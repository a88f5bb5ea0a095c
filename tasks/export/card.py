"""The README of an export: a model card for the hub, which says what was edited, from what, how and how well."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from factsmith.tasks.evaluation.resampling import EXPLAINED
from factsmith.tasks.export.form import Form
from factsmith.tasks.pipeline.markdown import markdown_table

__all__ = ["escaped", "model_card"]

_MOST_FACTS = 50
"""Most facts that the card lists. ``factsmith.json`` has all of them."""

_SPECIAL = re.compile(r"[\\`*{}\[\]<>#|~$@!]|(?<!\w)_|_(?!\w)|(?<=:)//|(?<=www)\.")
"""What Markdown, or the hub's additions to it, would read as more than text: also addresses and names of accounts."""


def model_card(form: Form, about: Mapping[str, Any]) -> str:
    """The card of an export, in Markdown below a header in YAML.

    Args:
        form: its form.
        about: what its ``factsmith.json`` says.
    """
    facts, settings = about["facts"], about["settings"]
    name, method = settings.get("model", {}).get("name") or about["model"], about["method"]
    wrote = "1 fact was" if len(facts) == 1 else f"{len(facts):,} facts were"
    parts = [
        f"# {escaped(name)}, edited",
        f"{wrote} written into {_base(about)} by the method {escaped(method)} of Factsmith. {form.title}".strip(),
        "## Use",
        f"```{form.language}\n{form.usage(about).replace('```', '')}\n```",
        *form.notes(about),
        "## Facts",
        _facts(facts),
        "## Scores",
        _scores(about.get("scores") or {}),
        "## Origin",
        _origin(about),
        "An edit changes what the model says about these facts. It may also change what it says about others, and no "
        "score above proves that it does not. `factsmith.json` has all facts, settings and versions.",
    ]
    return f"---\n{_header(form, about)}---\n\n" + "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that the user gave, on one line, so that Markdown shows it as it is."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(lambda found: "".join(f"&#{ord(one)};" for one in found[0]), line.replace("&", "&amp;"))


def _header(form: Form, about: Mapping[str, Any]) -> str:
    found = ModelCardData(
        base_model=about["model"] if "revision" in about else None,  # The hub takes identifiers only.
        library_name=form.library,
        pipeline_tag="text-generation",
        tags=["factsmith", "knowledge-editing", *form.tags],
    )
    return found.to_yaml() + "\n"


def _base(about: Mapping[str, Any]) -> str:
    name = escaped(about["model"])
    return (
        f"the model [{name}](https://huggingface.co/{about['model']})" if "revision" in about else f"the model {name}"
    )


def _facts(facts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (escaped(one["template"].replace("{}", one["subject"], 1)), escaped(one["target_new"]))
        for one in facts[:_MOST_FACTS]
    ]
    more = f"\n\nand {len(facts) - _MOST_FACTS:,} more" if len(facts) > _MOST_FACTS else ""
    return markdown_table(["prompt", "new object"], rows) + more


def _scores(scores: Mapping[str, Any]) -> str:
    if "metrics" in scores:
        rows = [
            (
                escaped(name),
                _number(one["before"]),
                _number(one["after"]),
                f"{one['low']:.1f} to {one['high']:.1f}" if "low" in one else "",
                escaped(one["meaning"]),
            )
            for name, one in scores["metrics"].items()
        ]
        text = f"Of {scores['facts']:,} facts, in percent; 95 % {EXPLAINED[scores['intervals_over']]}."
        return f"{markdown_table(['', 'before', 'after', '95 %', 'meaning'], rows)}\n\n{text}"
    if "facts_held" in scores:
        return (
            f"{scores['facts_held']:,} of {scores['facts']:,} facts hold: the edited model's answer starts with the "
            f"new object. Before the edit, {scores['facts_held_before']:,} did. No other text was scored."
        )
    return "This edit was not scored."


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _origin(about: Mapping[str, Any]) -> str:
    method = about["settings"]["method"]
    rows = [
        ("base model", escaped(about["model"])),
        *([("commit of the base", escaped(about["revision"]))] if "revision" in about else []),
        ("fingerprint of its weights", about["weights"]),
        ("method", escaped(about["method"])),
        ("layers", ", ".join(map(str, method["layers"]))),
        ("edit", about["edit"]),
        ("run", about["run"]),
    ]
    if (cut := about.get("truncation")) is not None:
        worst = max(one["error"] for one in cut["changes"])
        rows.append(("truncated", f"to rank {cut['rank']}; relative error at most {worst:.2%}; exact: {cut['exact']}"))
    return markdown_table(["", ""], rows)
