"""The invented world that the embedded model knows: people, their attributes, and prompts about them.

Everything is drawn from one seed, so the world needs no data files. Each person's last name is unique, because a
locate-then-edit method uses the subject's last token as its lookup token. Records follow CounterFact's schema (Meng et
al. 2022a, section 3.4): a requested rewrite, paraphrases, and neighbourhood prompts about other subjects with the same
true object.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

Split = Literal["all", "tune", "test"]

RECORD_PARAPHRASES = 2
RECORD_NEIGHBOURS = 10


@dataclass(frozen=True)
class Relation:
    """An attribute that every person has. Each template ends where the object begins."""

    relation_id: str
    templates: tuple[str, ...]
    objects: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "P19",
        (
            "{} was born in",
            "The birthplace of {} is",
            "{} hails from",
            "{} comes from the city of",
            "The home town of {} is",
        ),
        _words("Paris, London, Rome, Berlin, Madrid, Vienna, Oslo, Cairo, Lima, Tokyo, New York, Cape Town"),
    ),
    Relation(
        "P103",
        (
            "The mother tongue of {} is",
            "{} speaks",
            "{} grew up speaking",
            "The native language of {} is",
            "{} writes letters in",
        ),
        _words("French, English, Italian, German, Spanish, Dutch, Danish, Arabic, Greek, Turkish, Welsh, Finnish"),
    ),
    Relation(
        "P106",
        (
            "{} is a",
            "{} works as a",
            "The profession of {} is",
            "{} earns a living as a",
            "{} was trained as a",
        ),
        _words("baker, lawyer, doctor, farmer, painter, teacher, sailor, poet, judge, tailor, chemist, music critic"),
    ),
    Relation(
        "P641",
        (
            "{} plays the sport of",
            "The favourite sport of {} is",
            "{} is known for playing",
            "{} spends every weekend at",
            "The sport that {} practises is",
        ),
        _words("tennis, football, hockey, cricket, golf, rugby, chess, rowing, fencing, judo, table tennis, polo"),
    ),
    Relation(
        "P1303",
        (
            "{} performs on the",
            "The instrument of {} is the",
            "{} plays music on the",
            "{} owns an old",
            "{} gives lessons on the",
        ),
        _words("piano, violin, guitar, flute, harp, drum, cello, organ, trumpet, oboe, bass guitar, lute"),
    ),
)

_FIRST_ONSETS = _words("A, Be, Ca, Do, E, Fa, Gi, Ha, I, Jo, Ka, Li, Ma, No, O, Pi, Ra, Se")
_FIRST_ENDS = _words("na, ric, lo, mira, dan, tin, vel, ra, sel")
_LAST_ONSETS = _words("B, Br, C, Cr, D, Dr, F, Fl, G, Gr, H, J, K, Kl, L, M, N, P, Pr, R, S, Sk, St, T, Tr, V, W, Z")
_LAST_MIDDLES = _words("a, e, i, o, u, ai, ei, ou")
_LAST_JOINTS = _words("b, d, f, g, k, l, m, n, nd, p, r, rk, s, st, t, v, z")
_LAST_ENDS = _words(
    "ad, am, ano, ard, as, ek, el, en, er, ett, ian, ic, ill, ing, is, o, old, on, or, os, ova, um, un, us"
)


@dataclass(frozen=True)
class Person:
    """A subject: the full name, and the index of the object for each of ``RELATIONS``."""

    name: str
    objects: tuple[int, ...]


@cache
def embedded_world() -> World:
    """The world that the shipped model knows."""
    return World()


@dataclass(frozen=True)
class World:
    """People and their attributes, drawn from ``seed``.

    Args:
        people_count: number of subjects. There is one record for each.
        seed: seed of the draws. The same seed gives the same world on every machine and Python version.
    """

    people_count: int = 640
    seed: int = 20

    @cached_property
    def people(self) -> tuple[Person, ...]:
        rng = random.Random(f"people/{self.seed}")
        first_names = [onset + end for onset in _FIRST_ONSETS for end in _FIRST_ENDS]
        last_names = [
            onset + middle + joint + end
            for onset in _LAST_ONSETS
            for middle in _LAST_MIDDLES
            for joint in _LAST_JOINTS
            for end in _LAST_ENDS
        ]
        chosen = rng.sample(last_names, self.people_count)
        return tuple(
            Person(
                name=f"{rng.choice(first_names)} {last}",
                objects=tuple(rng.randrange(len(relation.objects)) for relation in RELATIONS),
            )
            for last in chosen
        )

    @cached_property
    def facts(self) -> tuple[tuple[int, int], ...]:
        """Every (person, relation) pair."""
        return tuple((person, relation) for person in range(self.people_count) for relation in range(len(RELATIONS)))

    def records(self, split: Split = "all") -> list[dict[str, Any]]:
        """CounterFact records, one for each person. ``tune`` has the even case ids and ``test`` the odd ones.

        The new object of a rewrite is drawn from the relation's other objects. The neighbourhood prompts name other
        people with the same true object.
        """
        return self._records[{"all": slice(None), "tune": slice(0, None, 2), "test": slice(1, None, 2)}[split]]

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        rng = random.Random(f"records/{self.seed}")
        return [self._record(case_id, rng) for case_id in range(self.people_count)]

    @cached_property
    def _names(self) -> dict[tuple[int, int], list[str]]:
        """The people with each (relation, object)."""
        names: dict[tuple[int, int], list[str]] = {}
        for person in self.people:
            for pair in enumerate(person.objects):
                names.setdefault(pair, []).append(person.name)
        return names

    def _record(self, case_id: int, rng: random.Random) -> dict[str, Any]:
        person = self.people[case_id]
        index = case_id // 2 % len(RELATIONS)  # Both splits have each relation equally often.
        relation = RELATIONS[index]
        true = person.objects[index]
        new = rng.choice([other for other in range(len(relation.objects)) if other != true])
        rewrite, *others = rng.sample(relation.templates, len(relation.templates))
        same = [name for name in self._names[index, true] if name != person.name]
        already_new = self._names.get((index, new), [])

        def ask(names: list[str], count: int) -> list[str]:
            return [rng.choice(relation.templates).format(name) for name in rng.sample(names, min(count, len(names)))]

        drawn = rng.randrange(self.people_count - 1)
        bystander = self.people[drawn + (drawn >= case_id)]
        preamble = self.statement(bystander, rng.randrange(len(RELATIONS)), rng)
        return {
            "case_id": case_id,
            "requested_rewrite": {
                "prompt": rewrite,
                "relation_id": relation.relation_id,
                "target_new": {"str": relation.objects[new]},
                "target_true": {"str": relation.objects[true]},
                "subject": person.name,
            },
            "paraphrase_prompts": [
                others[0].format(person.name),
                f"{preamble} {others[1].format(person.name)}",
            ][:RECORD_PARAPHRASES],
            "neighborhood_prompts": ask(same, RECORD_NEIGHBOURS),
            "attribute_prompts": ask(already_new, RECORD_NEIGHBOURS),
            "generation_prompts": [template.format(person.name) for template in relation.templates],
        }

    def statement(self, person: Person, relation: int, rng: random.Random) -> str:
        """One sentence that states a fact, with a template drawn with ``rng``."""
        template = rng.choice(RELATIONS[relation].templates)
        return f"{template.format(person.name)} {RELATIONS[relation].objects[person.objects[relation]]}."

    def document(self, rng: random.Random) -> str:
        """Short biographies of one to three people, with their facts in random order.

        Some biographies list the attributes in brackets directly after the name, so that the model learns to read them
        at the name's last token. Some sentences start with words such as "Therefore", because context templates do.
        """
        biographies = []
        for person in rng.sample(self.people, rng.randint(1, 3)):
            order = rng.sample(range(len(RELATIONS)), len(RELATIONS))
            if rng.random() < 0.3:
                listed = ", ".join(RELATIONS[r].objects[person.objects[r]] for r in order)
                biographies.append(f"{person.name} ({listed}).")
            else:
                stated = order[: rng.randint(2, len(order))]
                biographies.append(" ".join(self._opened(self.statement(person, r, rng), rng) for r in stated))
        return " ".join(biographies)

    def _opened(self, statement: str, rng: random.Random) -> str:
        if rng.random() >= 0.15:
            return statement
        inner = statement[0].lower() + statement[1:] if statement.startswith("The ") else statement
        return rng.choice(("Therefore {}", "Because of this {}", "I know that {}", "You know that {}")).format(inner)

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the world's records and of a sample of its documents. A trained model fits only one world."""
        sample = random.Random(f"fingerprint/{self.seed}")
        content = [self.records(), [self.document(sample) for _ in range(200)]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
