"""Datasets and facts files, and every way in which they can be wrong."""

from __future__ import annotations

import json
import logging

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.conflicts import keep_first
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.facts.selection import in_batches, load_records, select_records
from factsmith.tasks.facts.settings import DatasetSettings
from factsmith.tasks.model.embedded.world import World

FACT = {"subject": "Ada Lovelace", "prompt": "{} was born in", "target_new": "London"}


def batches_of(settings: DatasetSettings, size):
    return in_batches(select_records(settings), settings, size)


def facts(tmp_path, content, name="facts.json", **settings) -> DatasetSettings:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DatasetSettings(name="facts", format="facts", path=path, **{"seed": None, "batches": None, **settings})


def counterfact(tmp_path, records, **settings) -> DatasetSettings:
    path = tmp_path / "cf.json"
    path.write_text(json.dumps(records))
    return DatasetSettings(name="counterfact", format="counterfact", path=path, **settings)


def test_a_fact_in_each_of_its_spellings(tmp_path):
    spellings = [
        FACT,
        {**FACT, "subject": "Bob", "prompt": "Bob was born in", "note": "kept out of the way"},
        {**FACT, "subject": "Eve", "target_new": {"str": "Paris"}, "target_true": "Rome"},
        World(people_count=60).records()[3],
    ]
    lines = "\n".join(map(json.dumps, spellings))
    for settings in (facts(tmp_path, spellings), facts(tmp_path, lines + "\n\n", "facts.jsonl")):
        requests = [record.request for record in load_records(settings)]
        assert [one.template for one in requests[:3]] == ["{} was born in"] * 3
        assert requests[1].prompt == "Bob was born in"
        assert (requests[2].target_new, requests[2].target_true) == ("Paris", "Rome")
        assert requests[0].target_true is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "{} is", "target_new": "x"}, "field 'subject' is missing"),
        ({**FACT, "subject": ""}, "field 'subject' is empty"),
        ({**FACT, "subject": 5}, "field 'subject' is not text"),
        ({**FACT, "target_new": "  "}, "field 'target_new' is empty"),
        ({**FACT, "target_new": {"str": ""}}, r"field 'target_new\.str' is empty"),
        ({**FACT, "target_new": {}}, r"field 'target_new\.str' is missing"),
        ({"subject": "a", "prompt": "{}"}, "field 'target_new' is missing"),
        ({**FACT, "subject": "\ud800"}, "field 'subject' is not Unicode text"),
        ({**FACT, "prompt": "She was born in"}, "subject is not in the prompt"),
        ({**FACT, "prompt": "{} and {}"}, "more than one {}"),
        ({**FACT, "paraphrase_prompts": "one"}, "'paraphrase_prompts' is not a list of texts"),
        ({**FACT, "paraphrase_promts": []}, "field 'paraphrase_promts' is not known"),
    ],
)
def test_a_bad_record_is_named_with_file_index_and_field(tmp_path, record, message):
    with pytest.raises(InputError, match=message) as caught:
        load_records(facts(tmp_path, [FACT, record]))
    assert "Record 1 of" in str(caught.value)
    assert "facts.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("facts.json", "", "not JSON"),
        ("facts.json", "[]", "is empty"),
        ("facts.jsonl", "\n\n", "is empty"),
        ("facts.json", "{}", "Record 0 of .* field 'subject' is missing"),
        ("facts.json", "5", "Record 0 of .* is not an object"),
        ("facts.json", "[1]", "Record 0 of .* is not an object"),
        ("facts.jsonl", json.dumps(FACT) + "\n{", "Line 2 of .* is not JSON"),
        ("facts.json", "[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        load_records(facts(tmp_path, content, name))


def test_a_missing_file_is_named(tmp_path):
    settings = DatasetSettings(name="facts", format="facts", path=tmp_path / "no.json")
    with pytest.raises(InputError, match=r"no\.json does not exist"):
        load_records(settings)


def test_a_file_that_is_not_text_is_named(tmp_path):
    settings = facts(tmp_path, "x")
    settings.path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_records(settings)


def test_facts_that_contradict_each_other_are_refused(tmp_path):
    settings = facts(tmp_path, [FACT, {**FACT, "subject": "Bob"}, {**FACT, "target_new": "Paris"}])
    with pytest.raises(InputError, match="Records 0 and 2 of .* contradict each other") as caught:
        load_records(settings)
    assert "'London' and 'Paris'" in caught.value.details["got"]


def test_a_dataset_keeps_the_first_of_a_contradiction_and_says_so(tmp_path, caplog):
    records = World(people_count=60).records()[:4]
    twin = json.loads(json.dumps(records[1]))
    twin["case_id"] = 99
    twin["requested_rewrite"]["target_new"]["str"] = "another"
    settings = counterfact(tmp_path, [*records, twin], seed=None, batches=None)
    with caplog.at_level(logging.WARNING):
        (batch,) = batches_of(settings, "all")
    assert [record.request.case_id for record in batch] == [0, 1, 2, 3]
    assert "1 of 5 records" in caplog.text


def asking(case: int, subject: str, prompt: str, target: str, relation: str | None) -> Record:
    return Record(EditRequest(case, subject, prompt, target), {}, case, relation=relation)


def test_the_first_of_two_objects_of_a_relation_is_kept_for_any_prompt(caplog):
    records = [
        asking(0, "Lyon", "{} is a twin city of", "Toronto", "P190"),
        asking(1, "Lyon", "The twin city of {} is", "Manila", "P190"),  # contradicts 0 in other words
        asking(2, "Lyon", "The twin city of {} is", "Toronto", "P190"),  # agrees with 0 in other words
        asking(3, "Lyon", "{} is in", "Manila", "P17"),  # another relation
        asking(4, "Bonn", "{} is a twin city of", "Manila", "P190"),  # another subject
        asking(5, "Lyon", "{} is in", "Manila", "P17"),  # repeats 3
        asking(6, "Lyon", "{} is in", "Peru", None),  # contradicts 3 in the same words
        asking(7, "Lyon", "{} lies in", "Peru", None),  # of no known relation: nothing to contradict
        asking(8, "Lyon", "{} lies in", "Chad", None),  # contradicts 7
        asking(9, "Bonn", "In {} one finds", "Rome", "P190"),  # contradicts 4
    ]
    with caplog.at_level(logging.WARNING):
        kept = keep_first(records)
    assert [record.place for record in kept] == [0, 2, 3, 4, 7]
    assert "5 of 10 records" in caplog.text
    caplog.clear()
    assert keep_first(kept) == kept
    assert not caplog.records


def test_what_is_dropped_contradicts_nothing():
    """The second is dropped for its prompt, so its relation is free for the third."""
    records = [
        asking(0, "Lyon", "{} is in", "Peru", "P17"),
        asking(1, "Lyon", "{} is in", "Chad", "P30"),
        asking(2, "Lyon", "The continent of {} is", "Asia", "P30"),
    ]
    assert [record.place for record in keep_first(records)] == [0, 2]


def test_facts_that_contradict_each_other_in_other_words_are_refused(tmp_path):
    records = World(people_count=60).records()[:3]
    twin = json.loads(json.dumps(records[1]))
    twin["requested_rewrite"]["prompt"] = "Of {} one says"
    assert len(load_records(facts(tmp_path, [*records, twin]))) == 4
    twin["requested_rewrite"]["target_new"]["str"] = "another"
    with pytest.raises(InputError, match="Records 1 and 3 of .* contradict each other") as caught:
        load_records(facts(tmp_path, [*records, twin]))
    rewrite = records[1]["requested_rewrite"]
    first = f"{rewrite['prompt'].format(rewrite['subject'])!r}: {rewrite['target_new']['str']!r}"
    assert caught.value.details["got"] == f"{first} and 'Of {rewrite['subject']} one says': 'another'"


def test_a_repeated_fact_counts_once(tmp_path):
    (batch,) = batches_of(facts(tmp_path, [FACT, FACT]), "all")
    assert len(batch) == 1


def cases(batches) -> list[list[int]]:
    return [[record.request.case_id for record in batch] for batch in batches]


def test_batches_are_chosen_by_case_seed_and_limit(tmp_path):
    records = World(people_count=60).records()
    (tmp_path / "cases.json").write_text(json.dumps([5, 7, 9, 11, 13]))
    chosen = counterfact(tmp_path, records, cases=tmp_path / "cases.json", seed=None, batches=2)
    assert cases(batches_of(chosen, 2)) == [[5, 7], [9, 11]]
    every = counterfact(tmp_path, records, cases=[5, 7, 9], seed=None, batches=None)
    assert cases(batches_of(every, 2)) == [[5, 7], [9]]
    assert cases(batches_of(every, "all")) == [[5, 7, 9]]
    shuffled = counterfact(tmp_path, records, seed=4, limit=6, batches=1)
    (one,) = cases(batches_of(shuffled, "all"))
    assert len(one) == 6
    assert one != sorted(one)
    assert cases(batches_of(shuffled, 6)) == [one]
    # A larger draw begins with the smaller one, so that what was computed for it is used again.
    assert cases(batches_of(counterfact(tmp_path, records, seed=4, limit=12), 12))[0][:6] == one


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"cases": [5, 1000]}, 1, "asks for cases"),
        ({"batches": 10}, 16, "has 60 records for 10 batches of 16"),
        ({"limit": 3}, 4, "has 3 records"),
    ],
)
def test_records_that_are_not_there(tmp_path, settings, size, message):
    with pytest.raises(InputError, match=message):
        batches_of(counterfact(tmp_path, World(people_count=60).records(), **settings), size)


@pytest.mark.parametrize("content", ["{}", '["a"]', "[1.5]", "[true]", "nonsense"])
def test_a_list_of_cases_that_is_none(tmp_path, content):
    (tmp_path / "cases.json").write_text(content)
    settings = counterfact(tmp_path, World(people_count=60).records(), cases=tmp_path / "cases.json")
    with pytest.raises(InputError):
        batches_of(settings, 1)


def test_an_unknown_format_has_a_suggestion():
    with pytest.raises(InputError) as caught:
        load_records(DatasetSettings(name="x", format="counterfacts"))
    assert "did you mean 'counterfact'" in caught.value.details["remedy"]


def test_real_counterfact(shared):
    settings = DatasetSettings(name="cf", format="counterfact", path=shared / "data" / "counterfact.json")
    records = load_records(settings)
    assert len(records) == 1906
    assert records[0].request.prompt == "The mother tongue of Danielle Darrieux is"
    assert len(records[0].prompts["neighborhood"]) == 10
    asked = [record for record in records if "portability" in record.prompts]
    assert len(asked) == 1003
    assert {len(record.prompts["portability"]) == len(record.answers["portability"]) == 1 for record in asked} == {True}
    assert records[0].prompts["question"] == ("What is the native language of Danielle Darrieux?",)
    assert records[0].prompts["question_neighborhood"] == ("What is the native language of Léon Blum?",)
    assert all(record.question and record.prompts["question_paraphrase"] for record in records)
    assert sum(bool(record.prompts["question_neighborhood"]) for record in records) > 1890


# --------------------------------------------------------------------------------------------------------- tables


TABLE = (
    'subject,prompt,target_new,target_true,paraphrase_prompts,note\r\n'
    '"Lovelace, Ada",{} was born in,London,,"The town of Lovelace, Ada is | She, ""Ada"", is from",\r\n'
    '\r\n'
    'Bob,"Bob\r\nwas born in",Paris,Rome,,x\r\n'
    ',,,,,\r\n'
)  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_table_says_what_json_says(tmp_path, encoding, newline):
    path = tmp_path / "facts.CSV"
    path.write_bytes(TABLE.replace("\r\n", newline).encode(encoding))
    as_json = [
        {
            "subject": "Lovelace, Ada",
            "prompt": "{} was born in",
            "target_new": "London",
            "paraphrase_prompts": ["The town of Lovelace, Ada is", 'She, "Ada", is from'],
        },
        {"subject": "Bob", "prompt": "Bob\nwas born in", "target_new": "Paris", "target_true": "Rome"},
    ]
    table = load_records(DatasetSettings(name="facts", format="facts", path=path))
    assert table == load_records(facts(tmp_path, as_json))
    assert [record.place for record in table] == [0, 1]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_the_delimiter_is_the_one_that_finds_the_columns(tmp_path, name, delimiter):
    rows = [["subject", "prompt", "target_new", "a,b;c"], ["Ada", "{}, who; was", "a, b; c", ""]]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    (record,) = load_records(facts(tmp_path, text, name))
    assert (record.request.template, record.request.target_new) == ("{}, who; was", "a, b; c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("subject,prompt,target_new\n", "is empty"),
        ("subject,prompt\nAda,{} is\n", "no column 'target_new'"),
        ("Subject,prompt,target_new\nAda,{} is,x\n", "no column 'subject'(.|\n)*did you mean 'subject'"),
        ("subject,prompt,target_new,prompt\n", "two columns 'prompt'"),
        ("subject,prompt,target_new\nAda,{} is,x\nBob,{} is, or was,x\n", "Line 3 of .* has 4 cells"),
        ('subject,prompt,target_new\nAda,"{}\nis",x\nBob,{} is,\n', "Record 1 of .*line 4.*'target_new' is empty"),
        ('subject,prompt,target_new\nAda,"{} is" or,x\n', "Line 2 of .* is not a row"),
        ('subject,prompt,target_new\nAda,{} is,"x\n', "Line 2 of .* is not a row"),
        ("subject,prompt,target_new,target_tru\nAda,{} is,x,y\n", "'target_tru' is not known"),
        ("subject,prompt,target_new,paraphrase_prompts\nAda,{} is,x,a||b\n", "line 2.*: text 1 of the list"),
        ("subject,prompt,target_new\nAda,{} is,x\nAda,{} is,y\n", "Records 0 and 1 of .* contradict"),
        (f"subject,prompt,target_new\nAda,{{}} is,{'x' * 200_000}\n", "Line 2 of .* is not a row"),
    ],
)  # fmt: skip
def test_a_bad_table_is_named_with_file_line_and_column(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_records(facts(tmp_path, text, "facts.csv"))
    assert "facts.csv" in str(caught.value)


def test_a_field_given_twice_is_refused(tmp_path):
    twice = '{"subject": "Ada", "prompt": "{} is", "target_new": "x", "target_new": "y"}'
    for name, text in (("facts.json", f"[{twice}]"), ("facts.jsonl", twice)):
        with pytest.raises(InputError, match="'target_new' is given twice"):
            load_records(facts(tmp_path, text, name))


def test_a_fault_in_json_lines_is_named_with_its_line(tmp_path):
    text = f"{json.dumps(FACT)}\n\n{json.dumps({**FACT, 'subject': 3})}"
    with pytest.raises(InputError, match=r"Record 1 of .*facts\.jsonl \(counted from 0; line 3\)"):
        load_records(facts(tmp_path, text, "facts.jsonl"))


def test_a_case_that_two_records_go_by_is_not_asked_for(tmp_path):
    records = World(people_count=60).records()[:3]
    records[2]["case_id"] = 1
    with pytest.raises(InputError, match="asks for case 1, but 2 records"):
        batches_of(counterfact(tmp_path, records, cases=[1]), 1)
    assert len(batches_of(counterfact(tmp_path, records, cases=[0]), 1)) == 1


@pytest.mark.parametrize("blank", [" ", "\n", "\u00a0", "\u200b", " \ufeff\t"])
def test_blanks_around_any_text_of_any_format_change_nothing(tmp_path, blank):
    plain = {
        **FACT,
        "target_true": "Paris",
        "paraphrase_prompts": ["Ada Lovelace is from"],
        "neighborhood_prompts": ["Bob is from"],
        "generation_prompts": ["{} was"],
        "portability": {"New Question": "Which country is she from?", "New Answer": "England"},
    }
    nested = World(people_count=60).records()[3]
    for make, name, record in ((facts, "facts.json", plain), (counterfact, "cf.json", nested)):
        (one,) = load_records(make(tmp_path, [record]))
        (other,) = load_records(make(tmp_path, [around(record, blank)]))
        assert one == other, name
        assert one.digest(tuple(one.prompts)) == other.digest(tuple(one.prompts))
        assert one.request.digest == other.request.digest


def around(value, blank):
    """``value`` with ``blank`` before and after each text in it."""
    if isinstance(value, dict):
        return {name: around(one, blank) for name, one in value.items()}
    if isinstance(value, list):
        return [around(one, blank) for one in value]
    return f"{blank}{value}{blank}" if isinstance(value, str) else value


@pytest.mark.parametrize("target", ["Spanish\u200d", "\u202eSpanish", "Spanish\x00", "\ue000", "Spanish\ufe0f"])
def test_a_text_that_ends_invisibly_is_refused(tmp_path, target):
    with pytest.raises(InputError, match=r"'target_new' starts or ends with a character that cannot be seen, U\+"):
        load_records(facts(tmp_path, [{**FACT, "target_new": target}]))


@pytest.mark.parametrize("target", ["\u2764\ufe0f", "1\ufe0f\u20e3", "\u845b\U000e0100", "\U0001fae8", "cafe\u0301"])
def test_a_text_may_end_in_what_changes_the_sign_before_it(tmp_path, caplog, target):
    (record,) = load_records(facts(tmp_path, [{**FACT, "target_new": target}]))
    assert record.request.target_new == target
    assert not caplog.records


def test_characters_that_cannot_be_seen_are_told_once(tmp_path, caplog):
    written = [
        {**FACT, "subject": "Mu\u0308n\u00adchen"},
        {**FACT, "prompt": "{} wrote \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f52c"},  # These have an effect.
        {**FACT, "paraphrase_prompts": ["Ada\u00a0Lovelace is", "Ada\ufe0f Lovelace\ufeff is"]},
    ]
    first, *_ = load_records(facts(tmp_path, written))
    assert first.request.subject == written[0]["subject"]
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.endswith(
        "reads characters that cannot be seen: U+00AD in field 'subject' of record 0, U+FE0F in text 1 of the list in "
        "field 'paraphrase_prompts' of record 2, U+FEFF in text 1 of the list in field 'paraphrase_prompts' of record 2"
    )


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [
        ("Zoe\u0308 Ray", "Zoe\u0308 Ray is from"),
        ("Zo\u00eb\u00a0Ray", "Zo\u00eb\u00a0Ray is from"),
        ("Zo\u00eb Ray", "{}  is from"),
        ("Zo\u200b\u00eb Ray", "{} is from"),
    ],
)
def test_facts_that_look_the_same_contradict_each_other(tmp_path, subject, prompt):
    plain = {"subject": "Zo\u00eb Ray", "prompt": "{} is from", "target_new": "Rome"}
    other = {"subject": subject, "prompt": prompt, "target_new": "Oslo"}
    with pytest.raises(InputError, match="Records 0 and 1 of .* contradict each other"):
        load_records(facts(tmp_path, [plain, other]))
    agreed = load_records(facts(tmp_path, [plain, {**other, "target_new": "Rome"}]))
    assert len(keep_first(agreed)) == 1


def test_a_subject_of_other_characters_than_the_prompts_is_told_as_such(tmp_path):
    fact = {"subject": "Zo\u00eb Ray", "prompt": "Zoe\u0308 Ray is from", "target_new": "Rome"}
    with pytest.raises(InputError, match="looks the same, but consists of other characters"):
        load_records(facts(tmp_path, [fact]))


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Russia", "Russian law says that Russia is", "Russian law says that {} is"),
        ("Ann", "Annual reports of Ann's", "Annual reports of {}'s"),
        ("GPT-2", "GPT-20 and GPT-2 are", "GPT-20 and {} are"),
        ("中国", "中国的首都是", "{}的首都是"),
        ("Paris", "{}, not to be confused with another, is", "{}, not to be confused with another, is"),
        ("Paris", "Paris Hilton was not born in {subject}, which is", "Paris Hilton was not born in {}, which is"),
        ("Zoe", "Zoe\u0308 and Zoe live", "Zoe\u0308 and {} live"),
    ],
)
def test_the_subject_is_found_as_whole_words(tmp_path, subject, prompt, template):
    (record,) = load_records(facts(tmp_path, [{**FACT, "subject": subject, "prompt": prompt}]))
    assert record.request.template == template


@pytest.mark.parametrize(
    ("subject", "prompt", "message"),
    [
        ("Russia", "The Russian language is", "only a part of a longer word"),
        ("Deutschland", "Deutschlands Hauptstadt ist", "only a part of a longer word"),
        ("Paris", "Paris is Paris because", "in the prompt 2 times"),
        ("Ena Covus", "Ena Covus speaks {}", "has {} and the subject as well"),
        ("Paris", "{subject} is {subject}", "marks several places"),
        ("Paris", "{subject} is {}", "marks several places"),
        ("paris", "Paris is", "the subject is not in the prompt"),
    ],
)
def test_an_unclear_place_of_the_subject_is_refused(tmp_path, subject, prompt, message):
    with pytest.raises(InputError, match=message):
        load_records(facts(tmp_path, [{**FACT, "subject": subject, "prompt": prompt}]))


def test_a_placeholder_in_a_scoring_prompt_stands_for_the_subject(tmp_path):
    (record,) = load_records(facts(tmp_path, [{**FACT, "paraphrase_prompts": ["The birthplace of {} is"]}]))
    assert record.prompts["paraphrase"] == ("The birthplace of Ada Lovelace is",)
    with pytest.raises(InputError, match="asks about other subjects"):
        load_records(facts(tmp_path, [{**FACT, "neighborhood_prompts": ["The birthplace of {} is"]}]))


def test_null_is_the_same_as_a_missing_field(tmp_path):
    optional = ("case_id", "target_true", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
    nothing = dict.fromkeys((*optional, "portability", "requested_rewrite"))
    assert load_records(facts(tmp_path, [{**FACT, **nothing}])) == load_records(facts(tmp_path, [FACT]))
    nested = World(people_count=60).records()[3]
    for name in ("case_id", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts"):
        absent = {key: value for key, value in nested.items() if key != name}
        with_null = load_records(counterfact(tmp_path, [{**nested, name: None}]))
        assert with_null == load_records(counterfact(tmp_path, [absent]))
    with pytest.raises(InputError, match="field 'subject' is missing"):
        load_records(facts(tmp_path, [{**FACT, "subject": None}]))


def test_the_same_fact_with_another_blank_is_dropped_with_a_word(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        (batch,) = batches_of(facts(tmp_path, [FACT, {**FACT, "target_new": " London"}]), "all")
    assert [record.place for record in batch] == [0]
    assert "dropped 1 of 2 records" in caplog.text


def test_fields_that_nothing_reads_are_named_once(tmp_path, caplog):
    records = [{**FACT, "subject": name, "source": "web", "year": 1815} for name in ("Ada", "Bob", "Eve")]
    with caplog.at_level(logging.WARNING):
        load_records(facts(tmp_path, records))
    (message,) = caplog.messages
    assert message.endswith("facts.json: nothing reads the fields 'source', 'year'")


def test_all_bad_records_are_counted(tmp_path):
    records = [FACT, {**FACT, "subject": ""}, FACT, {**FACT, "prompt": "She is"}, {**FACT, "target_new": 5}]
    with pytest.raises(InputError, match=r"Record 1 of .*'subject' is empty\. 2 more records cannot be used: 3, 4\."):
        load_records(facts(tmp_path, records))


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "facts", "facts.txt"])
def test_json_is_read_by_its_content(tmp_path, name):
    records = [FACT, {**FACT, "subject": "Bob"}]
    expected = load_records(facts(tmp_path, records))
    lines = "\n".join(map(json.dumps, records))
    assert load_records(facts(tmp_path, records, name)) == load_records(facts(tmp_path, lines, name)) == expected
    with pytest.raises(InputError, match="Line 3 of .* is not JSON"):
        load_records(facts(tmp_path, lines + "\n{", name))


def test_no_blank_separates_prompt_and_object_in_a_script_without_blanks(tmp_path):
    chinese = {"subject": "中国", "prompt": "中国的首都是", "target_new": "上海"}
    plain, mixed = (
        load_records(facts(tmp_path, [chinese], separator=separator))[0].request for separator in ("blank", "auto")
    )
    assert plain.digest != mixed.digest
    assert mixed.digest == load_records(facts(tmp_path, [chinese], separator="none"))[0].request.digest
    english = [load_records(facts(tmp_path, [FACT], separator=one))[0].request for one in ("auto", "blank", "none")]
    assert english[0].digest == english[1].digest != english[2].digest


def test_questions_are_asked_as_given_or_as_their_relation_has_them(tmp_path):
    given = {"subject": "Ada Lovelace", "prompt": "{} lives in", "target_new": "Cairo"}
    questions = ["Where does {} live?", "In which city is the home of Ada Lovelace?"]
    city = {"prompt": "{} is located in", "relation_id": "P17", "target_new": {"str": "Chad"}}
    rewrite = {**city, "subject": "Bonn", "target_true": {"str": "Germany"}}
    neighbors = ["Ulm lies in", "Kiel, which has ports, is located in", "Köln, in"]
    other = {"requested_rewrite": {**rewrite, "prompt": "{}, in", "subject": "Jena"}, "neighborhood_prompts": []}
    schema = {"requested_rewrite": rewrite, "neighborhood_prompts": neighbors, "paraphrase_prompts": []}
    own, none, related, alone = load_records(facts(tmp_path, [{**given, "questions": questions}, given, schema, other]))

    assert own.question == "Where does {} live?"
    assert own.prompts["question"] == ("Where does Ada Lovelace live?",)
    assert own.prompts["question_paraphrase"] == ("In which city is the home of Ada Lovelace?",)
    assert none.question is None
    assert "question" not in none.prompts
    assert related.prompts["question"] == ("In which country is Bonn?",)
    assert len(related.prompts["question_paraphrase"]) == 2
    # No prompt of the file has the form of the first, and of the second it would find "Kiel, which has ports,".
    assert related.prompts["question_neighborhood"] == ("In which country is Köln?",)
    assert related.answers["question_neighborhood"] == ("Germany",)
    assert alone.prompts["question_neighborhood"] == ()

    with pytest.raises(InputError, match=r"the subject is not in the prompt .*'questions'"):
        load_records(facts(tmp_path, [{**given, "questions": ["Where does she live?"]}]))
