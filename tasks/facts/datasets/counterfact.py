"""CounterFact (Meng et al. 2022a, section 3.4): counterfactual objects, paraphrases, and a neighbourhood to preserve.

Records of later editions have ``portability``: a question about a consequence of the new object, and its answer
(Yao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from factsmith.tasks.chat.questions import question_forms, subject_in
from factsmith.tasks.decoder.text import PLACEHOLDER
from factsmith.tasks.facts.reading import RawRecord, parse_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["UNUSED", "case_id", "load", "parse", "portability", "scored", "with_questions"]

UNUSED = ("pararel_idx", "attribute_prompts")
"""Fields of the format that no metric needs."""


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a CounterFact file (a JSON list or JSON lines)."""
    return with_questions(parse_records(settings.required_path(), parse, unused=UNUSED))


def parse(raw: RawRecord) -> Record:
    """The record of an object in CounterFact's schema.

    Raises:
        InputError: a field is missing or wrong. The message names the file, the index and the field.
    """
    number = case_id(raw)
    subject = raw.text("requested_rewrite", "subject")
    request = EditRequest(
        case_id=number,
        subject=subject,
        template=raw.template(raw.text("requested_rewrite", "prompt"), subject),
        target_new=raw.text("requested_rewrite", "target_new", "str"),
        target_true=raw.text("requested_rewrite", "target_true", "str"),
    )
    return scored(raw, request, raw.optional_text("requested_rewrite", "relation_id"))


def case_id(raw: RawRecord) -> int:
    """The case id of ``raw``; its index if it has none."""
    given = raw.value("case_id")
    number = raw.index if given is None else given
    if type(number) is not int or abs(number) >= 2**63:
        raise raw.error("field 'case_id' is not a 64-bit integer", got=repr(number)[:80])
    return number


def scored(raw: RawRecord, request: EditRequest, relation: str | None = None) -> Record:
    """The record of ``request`` with the scoring prompts of ``raw``."""
    prompts = {
        "rewrite": (request.prompt,),
        "paraphrase": raw.prompts("paraphrase_prompts", request.subject),
        "neighborhood": raw.prompts("neighborhood_prompts"),
        "generation": raw.prompts("generation_prompts", request.subject),
    }
    answers = {}
    given = raw.value("portability")
    # Other datasets have a field of this name with another schema.
    if isinstance(given, Mapping) and given.keys() & {"New Question", "New Answer"}:
        question, answer = portability(raw)
        prompts["portability"] = (question,)
        answers["portability"] = (answer,)
    questions = [raw.template(one, request.subject, field="questions") for one in raw.texts("questions")]
    return Record(request, prompts, raw.index, answers, relation).asked_as(questions)


def with_questions(records: Sequence[Record]) -> list[Record]:
    """The records, of which those without questions have those of their relation, if it is known.

    A neighbour is asked about by the same question. Its subject is recovered from the first neighbourhood prompt that
    has the form of a prompt of the relation, as the records' own prompts have them.
    """
    prompts: dict[str | None, set[str]] = {}
    for record in records:
        prompts.setdefault(record.relation, set()).add(record.request.template)
    return [
        one if one.question else _asked_as(one, question_forms(one.relation), prompts[one.relation]) for one in records
    ]


def _asked_as(record: Record, forms: Sequence[str], prompts: Collection[str]) -> Record:
    true = record.request.target_true
    subjects = (subject_in(prompt, prompts) for prompt in record.prompts["neighborhood"])
    neighbor = next(filter(None, subjects), None) if forms else None
    return record.asked_as(forms, {forms[0].replace(PLACEHOLDER, neighbor, 1): true} if neighbor and true else {})


def portability(raw: RawRecord) -> tuple[str, str]:
    """The portability question of ``raw``, and its answer."""
    return raw.text("portability", "New Question"), raw.text("portability", "New Answer")
