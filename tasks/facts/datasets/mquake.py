"""MQuAKE (Zhong et al. 2023): instances of one to four edits, with questions about a chain of facts that they change.

MQuAKE-CF and MQuAKE-T have the same schema. ``requested_rewrite`` lists the edits of an instance in CounterFact's form,
each with a ``question``, which is a paraphrase here, and its question in a chat. ``questions`` are multi-hop questions,
which the edited model should answer with ``new_answer`` or one of ``new_answer_alias``. ``new_single_hops`` are the
facts of the chain after the edits. The fields that describe the chain before the edits are not used: the unedited model
is asked for the new answers too.

An instance becomes one record for each edit. They are written together, whatever ``method.batch_size``, which counts
instances here. The first record of an instance has the questions about the chain.
"""

from __future__ import annotations

from factsmith.tasks.facts.datasets.counterfact import case_id
from factsmith.tasks.facts.reading import RawRecord, parse_records
from factsmith.tasks.facts.record import Question, QuestionSet, Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.facts.texts import TemplateError, template_of

__all__ = ["load"]

_UNUSED = ("answer", "answer_alias", "answer_extended", "single_hops", "orig")


def load(settings: DatasetSettings) -> list[Record]:
    """The records of an MQuAKE file, those of an instance one after the other.

    Raises:
        InputError: a field is missing or wrong. The message names the file, the index and the field.
    """
    return parse_records(settings.required_path(), _parse, unused=_UNUSED)


def _parse(raw: RawRecord) -> list[Record]:
    number = case_id(raw)
    edits, hops = _some(raw, "requested_rewrite"), _some(raw, "new_single_hops")
    requests = [_request(edit, number) for edit in edits]
    # A hop that states an edited fact is asked as it was written. It also has the aliases of the new object.
    written = {request.prompt: request.target_new for request in requests}
    states_edit = [written.get(hop.text("cloze")) == hop.text("answer") for hop in hops]
    answers = [_answers(hop, "answer", "answer_alias") for hop in hops]
    spellings = {
        hop.text("cloze"): answer for hop, answer, states in zip(hops, answers, states_edit, strict=True) if states
    }
    chain = tuple(
        Question(hop.text("cloze" if states else "question"), (answer,), is_question=not states)
        for hop, answer, states in zip(hops, answers, states_edit, strict=True)
    )
    new = _answers(raw, "new_answer", "new_answer_alias")
    multi_hop = tuple(Question(question, (new,), is_question=True) for question in raw.texts("questions"))
    if not multi_hop:
        raise raw.error("field 'questions' is missing or empty")
    of_instance = {"hops": (QuestionSet(chain, every=True),), "multi_hop": (QuestionSet(multi_hop, every=False),)}
    records: list[Record] = []
    for edit, request in zip(edits, requests, strict=True):
        question = edit.optional_text("question")
        asked = Question(request.prompt, (spellings.get(request.prompt, (request.target_new,)),))
        records.append(
            Record(
                request,
                {"rewrite": (request.prompt,), "paraphrase": (question,) if question else ()},
                raw.index,
                relation=edit.optional_text("relation_id"),
                sets={"edit": (QuestionSet((asked,), every=True),), **({} if records else of_instance)},
                group=raw.index,
            ).asked_as(_forms(request.subject, question))
        )
    return records


def _forms(subject: str, question: str | None) -> list[str]:
    """The question of an edit with ``{}`` in place of the subject, for a chat; none if that place is not clear."""
    try:
        return [template_of(question, subject)] if question else []
    except TemplateError:
        return []


def _request(edit: RawRecord, number: int) -> EditRequest:
    subject = edit.text("subject")
    return EditRequest(
        case_id=number,
        subject=subject,
        template=edit.template(edit.text("prompt"), subject),
        target_new=edit.text("target_new", "str"),
        target_true=edit.optional_text("target_true", "str"),
    )


def _some(raw: RawRecord, name: str) -> list[RawRecord]:
    """The objects under ``name``, at least one."""
    found = raw.parts(name)
    if not found:
        raise raw.error(f"field {name!r} is missing or empty", expected="a list of objects")
    return found


def _answers(raw: RawRecord, name: str, aliases: str) -> tuple[str, ...]:
    """An answer and its aliases."""
    return (raw.text(name), *raw.texts(aliases))
