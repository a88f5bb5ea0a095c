"""zsRE in MEND's evaluation schema (Levy et al. 2017; Mitchell et al. 2022): questions, and the right answers to write.

A record has ``subject``, ``src`` (the question, with the subject in it), ``rephrase``, ``answers``, ``loc`` and
``loc_ans`` (a question of Natural Questions that must not move, and its answer); ``pred``, what the T5 model said that
the set was made with, and ``alt``, a false answer, are not used here. What is written is the first of ``answers``, as
Meng et al. 2022a and 2022b do. What the model to edit says instead is not known, so a request has no true object.
``loc`` is asked as their code asks it: its "nq question: " stays, and a question mark is put behind it (EasyEdit
puts none).
"""

from __future__ import annotations

from factsmith.tasks.facts.reading import RawRecord, read_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load", "parse"]


def load(settings: DatasetSettings) -> list[Record]:
    """Records of a zsRE file (a JSON list, or JSON lines), named by their index."""
    return [parse(raw, _first_answer(raw)) for raw in read_records(settings.required_path())]


def parse(raw: RawRecord, target: str) -> Record:
    """One record of MEND's schema, with ``target`` to be written.

    Raises:
        InputError: names the file, the index and the field that is wrong.
    """
    subject = raw.text("subject").strip()
    request = EditRequest(
        case_id=raw.index,
        subject=subject,
        template=raw.template(raw.text("src").strip(), subject, field="src"),
        target_new=target.strip(),
    )
    prompts = {
        "rewrite": (request.prompt,),
        "paraphrase": (raw.text("rephrase").strip(),),
        "neighborhood": (f"{raw.text('loc').strip().removesuffix('?')}?",),
    }
    return Record(request, prompts, raw.index, answers={"neighborhood": (raw.text("loc_ans").strip(),)})


def _first_answer(raw: RawRecord) -> str:
    answers = raw.texts("answers")
    if not answers:
        raise raw.error("field 'answers' is missing or empty", got=f"fields {', '.join(map(repr, raw.fields))}"[:200])
    return answers[0]
