"""zsRE in MEND's evaluation schema (Levy et al. 2017; Mitchell et al. 2022): questions and correct answers to write.

A record has ``subject``, ``src`` (the question, which contains the subject), ``rephrase``, ``answers``, ``loc`` and
``loc_ans`` (a question from Natural Questions whose answer must not change, and that answer). ``pred`` (the answer of
the T5 model that the dataset was made with) and ``alt`` (a false answer) are not used here. The target is the first of
``answers``, as in Meng et al. 2022a and 2022b. The unedited model's answer is not known, so a request has no true
object. ``loc`` is asked as in their code: it keeps its "nq question: " and gets a question mark at the end (EasyEdit
adds none). In a chat it is asked without "nq question: ".
"""

from __future__ import annotations

from factsmith.tasks.facts.reading import RawRecord, parse_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["UNUSED", "load", "parse"]

UNUSED = ("pred", "alt", "answers", "cond", "portability", "case_id")
"""Fields of the format that are not needed for every target."""

_MARK = "nq question: "


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a zsRE file (a JSON list or JSON lines). The case id of a record is its index."""
    return parse_records(settings.required_path(), lambda raw: parse(raw, _first_answer(raw)), unused=UNUSED)


def parse(raw: RawRecord, target: str) -> Record:
    """The record of an object in MEND's schema, with ``target`` as the new object.

    Raises:
        InputError: a field is missing or wrong. The message names the file, the index and the field.
    """
    subject = raw.text("subject")
    request = EditRequest(
        case_id=raw.index,
        subject=subject,
        template=raw.template(raw.text("src"), subject, field="src"),
        target_new=target,
    )
    prompts = {
        "rewrite": (request.prompt,),
        "paraphrase": (raw.text("rephrase"),),
        "neighborhood": (f"{raw.text('loc').removesuffix('?')}?",),
    }
    (rephrased,), (other,), answer = prompts["paraphrase"], prompts["neighborhood"], raw.text("loc_ans")
    record = Record(request, prompts, raw.index, answers={"neighborhood": (answer,)})
    return record.asked_as([request.template, rephrased], {other.removeprefix(_MARK): answer})


def _first_answer(raw: RawRecord) -> str:
    answers = raw.texts("answers")
    if not answers:
        raise raw.error("field 'answers' is missing or empty", got=f"fields {', '.join(map(repr, raw.fields))}"[:200])
    return answers[0]
