"""CounterFact (Meng et al. 2022a, section 3.4): counterfactual objects, paraphrases, and a neighbourhood to preserve.

Records of later editions have ``portability``: a question about a consequence of the new object, and its answer
(Yao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

from factsmith.tasks.facts.reading import RawRecord, read_records
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.settings import DatasetSettings

__all__ = ["load", "parse", "portability", "scored"]


def load(settings: DatasetSettings) -> list[Record]:
    """The records of a CounterFact file (a JSON list or JSON lines)."""
    return [parse(raw) for raw in read_records(settings.required_path())]


def parse(raw: RawRecord) -> Record:
    """The record of an object in CounterFact's schema.

    Raises:
        InputError: a field is missing or wrong. The message names the file, the index and the field.
    """
    case_id = raw.fields.get("case_id", raw.index)
    if type(case_id) is not int or abs(case_id) >= 2**63:
        raise raw.error("field 'case_id' is not a 64-bit integer", got=repr(case_id)[:80])
    subject = raw.text("requested_rewrite", "subject")
    request = EditRequest(
        case_id=case_id,
        subject=subject,
        template=raw.template(raw.text("requested_rewrite", "prompt"), subject),
        target_new=raw.text("requested_rewrite", "target_new", "str"),
        target_true=raw.text("requested_rewrite", "target_true", "str"),
    )
    rewrite = raw.fields["requested_rewrite"]
    relation = raw.text("requested_rewrite", "relation_id") if rewrite.get("relation_id") is not None else None
    return scored(raw, request, relation)


def scored(raw: RawRecord, request: EditRequest, relation: str | None = None) -> Record:
    """The record of ``request`` with the scoring prompts of ``raw``."""
    prompts = {
        "rewrite": (request.prompt,),
        "paraphrase": raw.texts("paraphrase_prompts"),
        "neighborhood": raw.texts("neighborhood_prompts"),
        "generation": raw.texts("generation_prompts"),
    }
    answers = {}
    given = raw.fields.get("portability")
    # Other datasets have a field of this name with another schema.
    if isinstance(given, Mapping) and given.keys() & {"New Question", "New Answer"}:
        question, answer = portability(raw)
        prompts["portability"] = (question,)
        answers["portability"] = (answer,)
    return Record(request, prompts, raw.index, answers, relation)


def portability(raw: RawRecord) -> tuple[str, str]:
    """The portability question of ``raw``, and its answer."""
    return raw.text("portability", "New Question").strip(), raw.text("portability", "New Answer").strip()
