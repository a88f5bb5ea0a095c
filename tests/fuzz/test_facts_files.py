"""Facts files of any content are read correctly, or refused with a message that names the fault."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from factsmith.artifacts.errors import InputError
from factsmith.tasks.facts.record import Record
from factsmith.tasks.facts.selection import in_batches, load_records, select_records
from factsmith.tasks.facts.settings import DatasetSettings
from tests.fuzz.conftest import examples

NAMES = ["subject", "prompt", "target_new", "target_true", "paraphrase_prompts", "neighborhood_prompts", "case_id",
         "requested_rewrite", "str", "{}", "subjekt", ""]  # fmt: skip
ODD = ["\u202eevil", "a\u0000b", "\ud800", "\ufeff", "{}", "{} {}", "a" * 100_000, "\u2028", " ", "Z\u0351", "😀", "|"]

text = st.one_of(st.text(max_size=12), st.sampled_from(ODD), st.text(st.characters(categories=["Cs", "Cc", "Cf"])))
scalar = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), text
)  # fmt: skip
value = st.recursive(
    scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)),
    max_leaves=8,
)


LETTERS = st.characters(
    exclude_categories=["Cc", "Cf", "Cn", "Co", "Cs"], exclude_characters="{}", include_characters="\n\r\t"
)
"""Characters that a text may end in, and blanks, which it loses at both ends."""


def batches_of(settings: DatasetSettings, size):
    return in_batches(select_records(settings), settings, size)


@st.composite
def fact(draw) -> dict:
    """A fact that can be written, and the whole of what reading it must give."""
    subject = draw(st.text(LETTERS, min_size=1, max_size=8)).strip() or "Ilo"
    around = st.text(LETTERS, max_size=8)
    other = around.map(lambda one: one if one.strip() else "x")
    before, after = draw(around), draw(around)
    assume(subject not in before and subject not in after)
    return {
        "subject": subject,
        "prompt": f"{before}{{}}{after}".strip(),
        "target_new": draw(other),
        **draw(st.fixed_dictionaries({}, optional={"target_true": other, "paraphrase_prompts": st.lists(other)})),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("facts")


def load(folder, name: str, content: bytes, format_name: str = "facts") -> list[Record]:
    path = folder / name
    path.write_bytes(content)
    settings = DatasetSettings(name="x", format=format_name, path=path, seed=None, batches=None)
    batches = batches_of(settings, "all")
    assert all(batches)
    return load_records(settings)


def load_or_refuse(folder, name: str, content: bytes, format_name: str) -> tuple[list[Record], str]:
    try:
        return load(folder, name, content, format_name), ""
    except InputError as error:
        return [], str(error)


def refused_or_sound(folder, name: str, content: bytes) -> None:
    for format_name in ("facts", "counterfact"):
        records, refusal = load_or_refuse(folder, name, content, format_name)
        if refusal:
            assert name in refusal
            assert len(refusal) < 10_000
            continue
        assert records
        for record in records:
            request = record.request
            assert request.subject.strip()
            assert request.template.count("{}") == 1
            assert request.subject in request.prompt
            for one in (request.prompt, request.target_new, *sum(record.prompts.values(), ())):
                assert one.strip()
                one.encode()
            assert record.digest(tuple(record.prompts))


def expected(facts: list[dict]) -> list[tuple]:
    return [
        (
            one["subject"],
            one["prompt"],
            one["target_new"].strip(),
            one["target_true"].strip() if "target_true" in one else None,
            tuple(prompt.strip() for prompt in one.get("paraphrase_prompts", ())),
        )
        for one in facts
    ]


def found(records: list[Record]) -> list[tuple]:
    return [
        (
            record.request.subject,
            record.request.template,
            record.request.target_new,
            record.request.target_true,
            record.prompts["paraphrase"],
        )
        for record in records
    ]


distinct = st.lists(fact(), min_size=1, max_size=4, unique_by=lambda one: (one["subject"], one["prompt"]))


@examples(25)
@given(distinct, st.randoms(use_true_random=False), st.booleans())
def test_what_is_right_is_read_whatever_the_order_of_its_fields(folder, facts, random, escaped):
    shuffled = []
    for one in facts:
        items = list(one.items())
        random.shuffle(items)
        shuffled.append(dict(items))
    lines = [json.dumps(one, ensure_ascii=escaped) for one in shuffled]
    assert found(load(folder, "a.json", f"[{','.join(lines)}]".encode())) == expected(facts)
    assert found(load(folder, "a.jsonl", "\r\n".join(lines).encode())) == expected(facts)


@examples(25)
@given(distinct, st.sampled_from(",;\t"), st.booleans(), st.permutations(NAMES[:5]))
def test_a_table_that_any_writer_wrote_is_read(folder, facts, delimiter, bom, columns):
    def cell(one: dict, name: str) -> str:
        said = one.get(name, "")
        return said if isinstance(said, str) else "|".join(said)

    for one in facts:  # what a table cannot say, or says in other words
        for name, said in one.items():
            if isinstance(said, str):
                one[name] = said.replace("\r\n", "\n").replace("\r", "\n")
            else:
                one[name] = [prompt.replace("|", "/").replace("\r", " ").strip() or "x" for prompt in said]
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(columns)
    writer.writerows([[cell(one, name) for name in columns] for one in facts])
    content = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
    assert found(load(folder, "a.csv", content)) == expected(facts)


@examples(60)
@given(st.one_of(value, st.lists(st.dictionaries(st.sampled_from(NAMES), value, max_size=6), max_size=3)))
@example([{"subject": "\ud800", "prompt": "{}", "target_new": "x"}])
@example([{"subject": "a", "prompt": "{}", "target_new": "x", "case_id": 2**70}])
@example([{"requested_rewrite": {"subject": "a", "prompt": "{}", "target_new": {"str": "x"}, "target_true": 1}}])
def test_any_json_is_read_or_refused(folder, content):
    refused_or_sound(folder, "a.json", json.dumps(content).encode())
    lines = content if isinstance(content, list) else [content]
    refused_or_sound(folder, "a.jsonl", "\n".join(map(json.dumps, lines)).encode())


@examples(60)
@given(distinct, st.data())
def test_a_good_file_that_was_cut_or_changed_is_read_or_refused(folder, facts, data):
    text = json.dumps(facts).encode()
    lines = "\n".join(map(json.dumps, facts)).encode()
    table = ("subject;prompt;target_new\n" + "\n".join(f'"{one["subject"]}";{{}} is;x' for one in facts)).encode()
    for name, content in (("a.json", text), ("a.jsonl", lines), ("a.csv", table)):
        place = data.draw(st.integers(0, len(content) - 1))
        changed = data.draw(st.sampled_from([
            content[:place],
            content[place:],
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :],
            content[:place] + data.draw(st.binary(min_size=1, max_size=4)) + content[place:],
        ]))  # fmt: skip
        refused_or_sound(folder, name, changed)


@examples(60)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda one: one.encode("utf-8", "surrogatepass"))))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'[{"subject": ' + b"9" * 5000 + b"}]")
@example(b'[{"subject": 1e999, "subject": NaN}]')
@example('subject,prompt,target_new\n"'.encode("utf-16"))
@example(b'subject,prompt,target_new\n"a')
@example(b"subject,prompt,target_new\na\0,{},x")
@example(b"\xef\xbb\xbf")
@example(b"\xed\xa0\x80")
def test_any_bytes_are_read_or_refused(folder, content):
    for name in ("a.json", "a.jsonl", "a.csv", "a.tsv", "a.xlsx"):
        refused_or_sound(folder, name, content)


def test_what_is_no_file_is_refused(folder):
    (folder / "folder.json").mkdir()
    for path in (folder / "folder.json", folder / "a.json" / "b.json", folder / ("a" * 300), folder / "a\0.json"):
        with pytest.raises(InputError):
            load_records(DatasetSettings(name="x", format="facts", path=path))
