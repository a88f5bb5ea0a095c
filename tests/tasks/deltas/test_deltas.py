"""Delta files on real families: applied, stacked, undone, and refused where they do not belong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

import pytest
import torch

from factsmith.artifacts.errors import InputError
from factsmith.tasks.deltas.checks import check_applies, check_modules, check_stack, check_undoes
from factsmith.tasks.deltas.file import ABOUT, TENSORS, DeltaFile, read_delta
from factsmith.tasks.deltas.stack import apply_stack, undo_stack
from factsmith.tasks.deltas.weights import changes_of, checksum, checksums, state_of, weight_at
from factsmith.tasks.deltas.writing import write_delta
from factsmith.tasks.edit.delta import Delta, DenseDelta, LowRankDelta
from factsmith.tasks.edit.edit import ModuleEdit, ModulePlace, WeightEdit
from factsmith.tasks.ledger.ledger import LEDGER, Ledger, LedgerEdit, LedgerFact, write_ledger
from tests.conftest import FAMILIES, load

DTYPES = ["float32", "bfloat16", "float16"]
BASE = Ledger(base="M", weights="0" * 32)


def draw(decoder, seed: int, *, dense: bool = False, rank: int = 2) -> dict[ModulePlace, Delta]:
    """A random change of the output projections of two layers, some percent of the weights."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, Delta] = {}
    for layer in (1, 2):
        rows, columns = decoder.weight(layer).shape
        left = 0.01 * torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        thin = LowRankDelta(left, torch.randn(columns, rank, generator=generator, dtype=torch.float64))
        found[layer] = DenseDelta(thin.dense().float()) if dense else thin
    return changes_of(WeightEdit(found), decoder)


def entry(name: str, *facts: tuple[str, str]) -> LedgerEdit:
    written = tuple(LedgerFact(case_id=1, subject=one, template="{} is", target_new=new) for one, new in facts)
    return LedgerEdit(
        edit=f"edit/a/{name}", run="run", written=datetime.now(UTC), model="M", weights="0" * 32, method="memit",
        facts=written or (LedgerFact(case_id=1, subject=name, template="{} is", target_new="a"),),
    )  # fmt: skip


def made(folder: Path, decoder, new: Mapping, *, former: Mapping | None = None, **given) -> DeltaFile:
    """A delta file of ``new``, on top of the ledger ``base``."""
    folder.mkdir()
    base, own = given.pop("base", BASE), given.pop("entry", entry(folder.name))
    about = write_delta(
        folder, decoder, former or {}, new, base="M", weights="0" * 32, keeps=given.pop("keeps", "entries"), **given
    )
    write_ledger(folder, base.followed_by(*([own] if about.adds else [])).model_copy(update={"state": about.after}))
    return read_delta(folder)


def on(decoder, stacked):
    """The checksums of a model with other weights."""
    with torch.no_grad(), stacked.applied(decoder):
        return checksums(decoder)


def changed_by(decoder, *changes: Mapping[ModulePlace, Delta]) -> dict[str, str]:
    """The checksums of a model with changes, one rounded after the other."""
    former = {place: weight_at(decoder, place).clone() for one in changes for place in one}
    with torch.no_grad():
        for one in changes:
            for place, delta in one.items():
                weight_at(decoder, place).copy_(delta.added_to(weight_at(decoder, place)))
        found = checksums(decoder)
        for place, weight in former.items():
            weight_at(decoder, place).copy_(weight)
    return found


def round_trip(decoder, tmp_path: Path, *, dense: bool, keeps: str = "entries") -> None:
    """Two deltas, one made on the other, applied and taken back: the base, to the bit."""
    before = checksums(decoder)
    first, second = draw(decoder, 1, dense=dense), draw(decoder, 2)
    one = made(tmp_path / "one", decoder, first, keeps=keeps)
    assert checksums(decoder) == before
    with torch.no_grad(), apply_stack(decoder, [one], before, None, independent=False).applied(decoder):
        middle = checksums(decoder)
        two = made(tmp_path / "two", decoder, second, base=one.ledger, keeps=keeps)
    assert middle == changed_by(decoder, first)
    check_stack([one, two], independent=False)
    both = apply_stack(decoder, [one, two], before, None, independent=False)
    assert both.exact
    after = on(decoder, both)
    assert after == changed_by(decoder, first, second)
    assert both.state == state_of(after) == two.about.after
    assert [edit.edit for edit in both.ledger.edits] == ["edit/a/one", "edit/a/two"]
    with torch.no_grad(), both.applied(decoder):
        for deltas, wanted in (([two], middle), ([one, two], before)):
            check_undoes(deltas, both.state, both.ledger, "M", independent=False)
            undone = undo_stack(decoder, deltas, after, both.ledger)
            assert undone.exact
            assert on(decoder, undone) == wanted
            assert len(undone.ledger.edits) == 2 - len(deltas)
    assert checksums(decoder) == before


def test_deltas_are_stacked_and_undone_to_the_bit_in_every_family(decoder, tmp_path):
    round_trip(decoder, tmp_path, dense=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
def test_and_in_every_data_type(gpt2_folder, tmp_path, dtype, dense):
    round_trip(load(gpt2_folder, dtype), tmp_path, dense=dense)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("keeps", ["entries", "tensors"])
@pytest.mark.parametrize("dense", [False, True])
def test_and_in_every_family_and_data_type(request, family_folder, tmp_path, family, dtype, keeps, dense):
    folder = family_folder(family) if FAMILIES[family] else request.getfixturevalue(f"{family}_folder")
    round_trip(load(folder, dtype), tmp_path, dense=dense, keeps=keeps)


def test_changes_of_any_module_have_their_place(llama_folder, tmp_path):
    decoder = load(llama_folder)
    before = checksums(decoder)
    rows, columns = decoder.blocks[3].self_attn.q_proj.weight.shape
    change = LowRankDelta(torch.ones(rows, 1, dtype=torch.float64), torch.ones(columns, 1, dtype=torch.float64))
    edit = ModuleEdit({(3, "self_attn.q_proj"): change})
    delta = made(tmp_path / "one", decoder, changes_of(edit, decoder))
    assert delta.about.tensors["3.self_attn.q_proj"].name == "model.layers.3.self_attn.q_proj.weight"
    with torch.no_grad(), edit.applied(decoder):
        wanted = checksums(decoder)
    assert on(decoder, apply_stack(decoder, [delta], before, None, independent=False)) == wanted


def test_a_delta_leads_from_one_edit_to_another_to_the_bit(gpt2_folder, tmp_path):
    """As for an edit that is made again without a fact: what it changes is rounded in other places."""
    decoder = load(gpt2_folder, "bfloat16")
    first, second = draw(decoder, 1), draw(decoder, 2)
    gone = entry("first")
    delta = made(tmp_path / "less", decoder, second, former=first, entry=entry("second"), removes=[gone])
    assert delta.about.before == state_of(changed_by(decoder, first))
    assert delta.about.after == state_of(changed_by(decoder, second))
    assert [edit.edit for edit in delta.former_ledger.edits] == ["edit/a/first"]
    # It holds both changes, of rank 2 each, and few entries.
    assert all(one.rank == 4 and one.kept < one.shape[0] * one.shape[1] / 2 for one in delta.about.tensors.values())
    with torch.no_grad():
        for place, change in first.items():
            weight_at(decoder, place).copy_(change.added_to(weight_at(decoder, place)))
    assert apply_stack(decoder, [delta], checksums(decoder), None, independent=False).exact


def test_a_removal_that_is_taken_back_below_other_edits_brings_back_what_it_removed(gpt2_folder, tmp_path):
    """In the weights, to rounding, and in the ledger."""
    decoder = load(gpt2_folder)
    first, less, later = draw(decoder, 1), draw(decoder, 2), draw(decoder, 3)
    gone, base = entry("first", ("a", "b"), ("c", "d")), checksums(decoder)
    removal = made(tmp_path / "less", decoder, less, former=first, entry=entry("less", ("a", "b")), removes=[gone])
    only = apply_stack(decoder, [made(tmp_path / "only", decoder, less)], base, None, independent=False)
    with torch.no_grad(), only.applied(decoder):
        top = made(tmp_path / "top", decoder, later, base=removal.ledger)
        both = apply_stack(decoder, [top], checksums(decoder), removal.ledger, independent=False)
        with both.applied(decoder):
            check_undoes([removal], both.state, both.ledger, "M", independent=True)
            undone = undo_stack(decoder, [removal], checksums(decoder), both.ledger)
    assert [edit.edit for edit in undone.ledger.edits] == ["edit/a/first", "edit/a/top"]
    for place, weight in undone.weights.items():
        wanted = weight_at(decoder, place) + (first[place].dense() + later[place].dense()).float()
        torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-6)


def test_without_the_former_weights_a_delta_is_undone_to_rounding(gpt2_folder, tmp_path):
    decoder = load(gpt2_folder)
    before = {place: weight_at(decoder, place).clone() for place in draw(decoder, 1)}
    one = made(tmp_path / "one", decoder, draw(decoder, 1), keeps="nothing")
    with torch.no_grad():
        applied = apply_stack(decoder, [one], checksums(decoder), None, independent=False)
        with applied.applied(decoder):
            undone = undo_stack(decoder, [one], checksums(decoder), applied.ledger)
    assert not undone.exact
    assert undone.ledger.state == undone.state != one.about.before
    for place, weight in undone.weights.items():
        torch.testing.assert_close(weight, before[place], rtol=0, atol=1e-7)  # An ulp of 1 is 1.2e-7.


def test_the_size_of_what_is_kept(gpt2_folder, tmp_path):
    decoder = load(gpt2_folder)
    change = draw(decoder, 1)
    sizes = [
        (made(tmp_path / keeps, decoder, change, keeps=keeps).folder / TENSORS).stat().st_size
        for keeps in ("nothing", "entries", "tensors")
    ]
    whole = sum(weight_at(decoder, place).nbytes for place in change)
    assert sizes[0] < sizes[1] < sizes[2]
    assert whole <= sizes[2] - sizes[0] <= whole + 500  # and the header


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def chain(gpt2_folder, tmp_path):
    """A model, three deltas on top of each other, and one that is independent of the first."""
    decoder = load(gpt2_folder)
    sums, deltas = checksums(decoder), [made(tmp_path / "a", decoder, draw(decoder, 1))]
    for name, seed in (("b", 2), ("c", 3)):
        with torch.no_grad(), apply_stack(decoder, deltas, sums, None, independent=False).applied(decoder):
            deltas.append(made(tmp_path / name, decoder, draw(decoder, seed), base=deltas[-1].ledger))
    other = made(tmp_path / "other", decoder, draw(decoder, 4), entry=entry("other", ("a", "b")))
    return decoder, sums, deltas, other


def test_only_the_order_in_which_deltas_were_made_is_accepted(chain):
    deltas = chain[2]
    for order in permutations(deltas):
        if list(order) == deltas:
            check_stack(order, independent=False)
            continue
        with pytest.raises(InputError, match=r"give them in this order: \S+/a \S+/b \S+/c"):
            check_stack(order, independent=False)
    with pytest.raises(InputError, match="give the delta between them"):
        check_stack([deltas[0], deltas[2]], independent=False)
    with pytest.raises(InputError, match="given twice"):
        check_stack([*deltas, deltas[1]], independent=False)


def test_a_delta_is_refused_on_other_weights_and_on_its_own(chain, llama_folder):
    decoder, sums, (a, b, _), _ = chain
    check_applies([a], state_of(sums), None, "M", independent=False)
    with pytest.raises(InputError, match="was not made for the weights of M") as caught:
        check_applies([b], state_of(sums), None, "M", independent=False)
    assert "with the edits of run" in str(caught.value)
    applied = apply_stack(decoder, [a, b], sums, None, independent=False)
    for one in (a, b):  # One is below, and the other on top.
        with pytest.raises(InputError, match="M has the delta .* already"):
            check_applies([one], applied.state, applied.ledger, "M", independent=False)
    check_modules([a], decoder, "M")
    with pytest.raises(InputError, match="no such weight"):
        check_modules([a], load(llama_folder), "L")


def test_a_delta_below_others_is_not_undone_alone(chain):
    decoder, sums, (a, b, c), other = chain
    applied = apply_stack(decoder, [a, b, c], sums, None, independent=False)
    with pytest.raises(InputError, match="has other edits on top"):
        check_undoes([b], applied.state, applied.ledger, "M", independent=False)
    with pytest.raises(InputError, match="does not have the delta"):
        check_undoes([other], applied.state, applied.ledger, "M", independent=True)
    check_undoes([b], applied.state, applied.ledger, "M", independent=True)
    with torch.no_grad(), applied.applied(decoder):
        undone = undo_stack(decoder, [b], checksums(decoder), applied.ledger)
    assert not undone.exact
    assert [edit.edit for edit in undone.ledger.edits] == ["edit/a/a", "edit/a/c"]


def test_independent_deltas_are_added_up_only_if_that_is_asked_for(chain, tmp_path):
    decoder, sums, (a, *_), other = chain
    with pytest.raises(InputError, match="both were made on the same weights"):
        check_stack([a, other], independent=False)
    check_stack([a, other], independent=True)
    check_applies([a, other], state_of(sums), None, "M", independent=True)
    truncated = made(tmp_path / "truncated", decoder, draw(decoder, 1, rank=1), entry=entry("t", ("a", "b")))
    with pytest.raises(InputError, match="other and .*truncated write the same facts"):
        check_stack([a, other, truncated], independent=True)
    found = apply_stack(decoder, [a, other], sums, None, independent=True)
    for place, weight in found.weights.items():
        total = a.new[place].dense() + other.new[place].dense()
        wanted = (weight_at(decoder, place).double() + total.float()).float()  # One sum, rounded once.
        torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-7)
    assert [edit.edit for edit in found.ledger.edits] == ["edit/a/a", "edit/a/other"]
    assert not found.exact
    assert found.expected is None


def test_a_file_that_is_not_as_it_was_written_is_refused(chain, tmp_path):
    folder = chain[2][0].folder
    whole = {name: (folder / name).read_bytes() for name in (ABOUT, TENSORS, LEDGER)}
    about = json.loads(whole[ABOUT])
    bad = {
        TENSORS: [whole[TENSORS][:-1], whole[TENSORS][:-1] + bytes([whole[TENSORS][-1] ^ 1]), b""],
        LEDGER: [b"", b"[]"],
        ABOUT: [
            b"",
            json.dumps({**about, "version": 2}).encode(),
            json.dumps({**about, "adds": 5}).encode(),
            json.dumps({**about, "tensors": {}}).encode(),
            json.dumps({**about, "before": "x"}).encode(),
        ],
    }
    for name, contents in bad.items():
        for content in contents:
            (folder / name).write_bytes(content)
            with pytest.raises(InputError):
                read_delta(folder)
        (folder / name).unlink()
        with pytest.raises(InputError, match=f"no {name}"):
            read_delta(folder)
        (folder / name).write_bytes(whole[name])
    assert read_delta(folder).about == chain[2][0].about
    with pytest.raises(InputError, match="no such folder"):
        read_delta(tmp_path / "none")


def test_a_checksum_is_of_numbers_and_not_of_their_layout():
    rows = torch.arange(6.0).reshape(2, 3)
    assert checksum(rows) == checksum(rows.T.contiguous().T)
    different = [rows, rows.T, rows.reshape(3, 2), rows.reshape(6), rows.double(), rows + 1, torch.tensor(1.0)]
    assert len({checksum(one) for one in different}) == len(different)
