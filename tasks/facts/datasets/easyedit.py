"""Records as EasyEdit and its benchmark KnowEdit have them (Wang et al. 2023; Zhang et al. 2024).

A record needs ``subject``, ``prompt`` and ``target_new``. It may have ``ground_truth`` (the true object) and
``rephrase``, ``rephrase_prompt`` or ``rephrase_prompts`` (paraphrases). ``locality`` holds prompts about other
subjects, whose answers must not change. ``portability`` holds questions about consequences of the new object. Both are
objects of named parts. A part is a list of ``{"prompt": ..., "ground_truth": ...}``, or one such object, whose fields
may be lists of equal lengths. Both may also be flat: ``locality_prompt`` and ``locality_ground_truth``. An answer may
be a list of spellings, of which the first is used. If it is a list of several things, each with spellings, the first
thing is used. A prompt without an answer is left out.

``locality`` becomes the neighbourhood, with answers of its own. All parts of ``portability`` become portability:
Logical_Generalization, Reasoning and Subject_Aliasing in KnowEdit. KnowEdit's WikiBio calls the subject ``concept``,
the prompt ``text`` and the new object, a sentence, ``labels``. Its ConvSent and Sanitation have no subject and are
refused. Prompts of the fact that end in a question mark are also its questions in a chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from factsmith.tasks.facts.reading import RawRecord, parse_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["FIELDS", "load"]

FIELDS = ("ground_truth", "rephrase", "rephrase_prompt", "rephrase_prompts", "locality", "locality_prompt")
"""Fields that mark a record as one of EasyEdit's."""

_NO_ANSWER = "<|endoftext|>"
"""What EasyEdit writes in place of a true object that is not known."""

_UNUSED = ("case_id", "portability_type", "rephrase_type", "id", "pred", "cond")


def load(settings: DatasetSettings) -> list[Record]:
    """The records of an EasyEdit or KnowEdit file. The case id of a record is its index.

    Raises:
        InputError: a field is missing or wrong. The message names the file, the index and the field.
    """
    return parse_records(settings.required_path(), _parse, unused=_UNUSED)


def _parse(raw: RawRecord) -> Record:
    named = raw.first("subject", "concept")
    if raw.value(named) is None:
        raise raw.error(
            f"field {named!r} is missing",
            got=f"fields {', '.join(map(repr, raw.fields))}"[:200],
            expected="a fact about a subject; KnowEdit's ConvSent and Sanitation are not about one",
        )
    subject = raw.text(named)
    prompt, target = raw.first("prompt", "text"), raw.first("target_new", "labels")
    true = _spelling(raw, "ground_truth", raw.value("ground_truth"))
    request = EditRequest(
        case_id=raw.index,
        subject=subject,
        template=raw.template(raw.text(prompt), subject, field=prompt),
        target_new=_spelling(raw, target, raw.value(target)) or raw.text(target),
        target_true=true if true != _NO_ANSWER else None,
    )
    rephrased = raw.first("rephrase_prompts", "rephrase_prompt", "rephrase")
    paraphrases = _texts(raw, rephrased, raw.value(rephrased))
    locality, portability = _asked(raw, "locality"), _asked(raw, "portability")
    record = Record(
        request,
        {
            "rewrite": (request.prompt,),
            "paraphrase": tuple(raw.fill(one, subject, field=rephrased) for one in paraphrases),
            "neighborhood": tuple(raw.fill(prompt, field="locality") for prompt, _ in locality),
            "portability": tuple(raw.fill(prompt, subject, field="portability") for prompt, _ in portability),
        },
        raw.index,
        answers={
            "neighborhood": tuple(answer for _, answer in locality),
            "portability": tuple(answer for _, answer in portability),
        },
    )
    asks = request.template.endswith("?")
    return record.asked_as([request.template, *(one for one in paraphrases if one.endswith("?"))] if asks else [])


def _asked(raw: RawRecord, name: str) -> list[tuple[str, str]]:
    """The prompts of ``locality`` or ``portability`` that have an answer, each with it."""
    nested, flat = raw.first(name, f"{name}_inputs"), f"{name}_prompt"
    found: list[tuple[str, str]] = []
    parts = raw.value(nested)
    if parts is not None:
        if not isinstance(parts, Mapping):
            raise raw.error(f"field {nested!r} is not an object of named parts", got=ascii(parts)[:80])
        for part, content in parts.items():
            for one in content if isinstance(content, list) else [content]:
                where = f"{nested}.{part}"
                if one is not None and not isinstance(one, Mapping):
                    raise raw.error(f"field {where!r} does not hold prompts with answers", got=ascii(one)[:80])
                if one:
                    found += _pairs(raw, where, one.get("prompt"), one.get("ground_truth"))
    answers = raw.value(f"{name}_ground_truth")
    if raw.value(flat) is not None:
        found += _pairs(raw, flat, raw.value(flat), answers)
    return found


def _pairs(raw: RawRecord, where: str, prompts: Any, answers: Any) -> Iterator[tuple[str, str]]:
    """Each of ``prompts`` with its answer: one prompt with its answer, or lists of equal lengths."""
    if isinstance(prompts, list):
        if not isinstance(answers, list) or len(answers) != len(prompts):
            raise raw.error(
                f"field {where!r} has {len(prompts)} prompts",
                got=f"answers {ascii(answers)[:80]}",
                expected="as many answers in ground_truth",
            )
    else:
        prompts, answers = [prompts], [answers]
    for prompt, answer in zip(prompts, answers, strict=True):
        text = raw.checked(prompt, f"a prompt of field {where!r}")
        if (spelling := _spelling(raw, where, answer)) is not None:
            yield text, spelling


def _texts(raw: RawRecord, name: str, value: Any) -> list[str]:
    """One text or a list of them."""
    given = [] if value is None else value if isinstance(value, list) else [value]
    return [raw.checked(one, f"field {name!r}") for one in given]


def _spelling(raw: RawRecord, where: str, answer: Any) -> str | None:
    """The first spelling of an answer; ``None`` if there is none."""
    while isinstance(answer, list):
        answer = answer[0] if answer else None
    if answer is None or answer == "":
        return None
    return raw.checked(answer, f"an answer of field {where!r}")
