"""Causal tracing against hooks on whole passes, in any batches."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from factsmith.tasks.decoder.text import encode_prompt
from factsmith.tasks.locate.effects import LAST_SUBJECT, LAST_TOKEN, ROLES, average, probabilities, role, rows_of
from factsmith.tasks.locate.proposal import critical_layers
from factsmith.tasks.locate.restoration import window
from factsmith.tasks.locate.runs import KINDS, Traced, draw_noise
from factsmith.tasks.locate.settings import TraceSettings
from factsmith.tasks.locate.trace import embedding_deviation, trace
from tests.conftest import DEVICES, hidden_of, load, load_plain, plain_blocks, plain_projection

SETTINGS = TraceSettings(samples=3, window=2, noise=3.0)
FACTS = [
    Traced((5, 9, 31, 44, 8, 17), 1, 3, 12),
    Traced((7, 61, 8), 1, 1, 30),
    Traced((4, 90, 91, 92, 93, 6, 13, 21), 1, 4, 77),
    Traced((5, 9, 31), 0, 2, 12),
]


class Plain:
    """The same, written as hooks on whole forward passes of transformers' own model, one run at a time."""

    def __init__(self, folder):
        self.model = load_plain(folder)
        self.blocks = plain_blocks(self.model)
        # What enters block 0; BLOOM normalises the embeddings before.
        inner = self.model.base_model
        self.embedding = getattr(inner, "word_embeddings_layernorm", self.model.get_input_embeddings())

    def module(self, kind, layer):
        block = self.blocks[layer]
        if kind == "hidden":
            return block
        if kind == "mlp":
            return plain_projection(block)
        names = ("attn", "self_attn", "attention", "self_attention")
        (found,) = (getattr(block, name) for name in names if hasattr(block, name))
        return found.dense if type(block).__name__ == "BloomBlock" else found

    @torch.no_grad()
    def run(self, fact, noise=None, restored=(), position=0, look=()):
        """P(object), and outputs of the modules ``look``; ``restored`` holds (kind, layer, clean output)."""
        seen, handles = {}, []

        def corrupt(_, __, output):
            output = output.clone()
            output[0, fact.first : fact.last + 1] += noise
            return output

        def put(clean):
            def hook(_, __, output):
                whole = output[0] if isinstance(output, tuple) else output
                whole = whole.clone()
                whole.view(len(fact.tokens), -1)[position] = clean.view(len(fact.tokens), -1)[position]
                return (whole, *output[1:]) if isinstance(output, tuple) else whole

            return hook

        def take(key):
            return lambda _, __, output: seen.update({key: hidden_of(output).clone()})

        if noise is not None:
            handles.append(self.embedding.register_forward_hook(corrupt))
        handles += [self.module(kind, layer).register_forward_hook(put(clean)) for kind, layer, clean in restored]
        handles += [self.module(*key).register_forward_hook(take(key)) for key in look]
        logits = self.model(input_ids=torch.tensor([fact.tokens])).logits[0, -1]
        for handle in handles:
            handle.remove()
        return float(logits.double().softmax(-1)[fact.wanted]), seen


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("facts", [FACTS[::2], pytest.param(FACTS, marks=pytest.mark.slow)], ids=["two", "all"])
def test_effects_are_those_of_hooks_on_whole_passes(model_folder, facts, device):
    """The two facts are traced together, the shorter one with padding, in several passes."""
    decoder, plain = load(model_folder, device=device), Plain(model_folder)
    layers = range(decoder.block_count)
    deviation = 3 * embedding_deviation(decoder, most_tokens=50)
    for fact, effects in zip(facts, trace(decoder, facts, SETTINGS, most_tokens=400), strict=True):
        every = [(kind, layer) for kind in KINDS for layer in layers]
        clean, states = plain.run(fact, look=every)
        draws = deviation * draw_noise(fact, SETTINGS, decoder.width)
        drowned = [plain.run(fact, noise, look=every) for noise in draws]
        corrupted = sum(one for one, _ in drowned) / len(draws)
        assert effects.clean == pytest.approx(clean, abs=1e-6)
        assert effects.corrupted == pytest.approx(corrupted, abs=1e-6)
        for kind in KINDS:
            assert effects.indirect[kind].shape == (len(layers), len(fact.tokens) - fact.first)
            for layer in layers:
                of = [layer] if kind == "hidden" else range(*window(layer, 2, len(layers)))
                restored = [(kind, one, states[kind, one]) for one in of]
                for offset, found in enumerate(effects.indirect[kind][layer].tolist()):
                    runs = [plain.run(fact, noise, restored, fact.first + offset)[0] for noise in draws]
                    assert found == pytest.approx(sum(runs) / len(runs) - corrupted, abs=1e-6), (kind, layer, offset)
        for layer in layers:
            runs = []
            for noise, (_, old) in zip(draws, drowned, strict=True):
                frozen = [("mlp", above, old["mlp", above]) for above in layers if above > layer]
                restored = [("hidden", layer, states["hidden", layer]), *frozen]
                runs.append(plain.run(fact, noise, restored, fact.last)[0])
            assert float(effects.severed[layer]) == pytest.approx(sum(runs) / len(runs) - corrupted, abs=1e-6)


def test_restoring_all_that_the_noise_changes_brings_the_clean_run_back(decoder):
    """A subject that ends the prompt and is one token long leaves one state in each layer that differs."""
    (effects,) = trace(decoder, [Traced((4, 90, 91, 6), 3, 3, 77)], SETTINGS, most_tokens=100)
    lost = torch.full((decoder.block_count, 1), effects.clean - effects.corrupted, dtype=torch.float64)
    assert abs(effects.clean - effects.corrupted) > 1e-5
    assert torch.allclose(effects.indirect["hidden"], lost, atol=1e-7)


def test_a_restoration_computes_only_what_it_changes(decoder):
    """Positions before the restored one, and blocks below it, would be the same as without it.

    In the last block, only the last position is read.
    """
    fact, layers = FACTS[2], range(decoder.block_count)
    positions = [0 for _ in layers]

    def count(layer):
        def hook(_, inputs):
            positions[layer] += inputs[0].shape[:-1].numel()

        return decoder.projection(layer).register_forward_pre_hook(hook)

    handles = [count(layer) for layer in layers]
    trace(decoder, [fact], SETTINGS, most_tokens=100)
    for handle in handles:
        handle.remove()
    length, draws = len(fact.tokens), SETTINGS.samples
    firsts = [*layers, *2 * [window(layer, 2, len(layers))[0] for layer in layers]]
    for layer in layers:
        # One clean run, and for each draw one corrupted run and one with each of the two parts restored everywhere.
        runs = length * (1 + 3 * draws)
        last = layer == layers[-1]
        from_each = [1 if last else length - position for position in range(fact.first, length)]
        below = sum(first < layer for first in firsts)
        severed = layer * (1 if last else length - fact.last)
        assert positions[layer] == runs + draws * (below * sum(from_each) + severed)


def test_progress_ends_with_all_layers_of_all_facts(decoder):
    told = []
    trace(decoder, FACTS, SETTINGS, most_tokens=100, advance=told.append)
    assert sum(told) == len(FACTS) * decoder.block_count
    assert min(told) >= 0
    assert len([layers for layers in told if layers]) > len(FACTS)


def test_without_noise_nothing_comes_back_because_nothing_is_lost(decoder):
    for effects in trace(decoder, FACTS, TraceSettings(samples=2, noise=0), most_tokens=100):
        assert effects.corrupted == pytest.approx(effects.clean, abs=1e-6)
        for found in (*effects.indirect.values(), effects.severed):
            assert found.abs().max() < 1e-6


def test_the_last_state_of_the_last_token_is_all_there_is(decoder):
    for effects in trace(decoder, FACTS, SETTINGS, most_tokens=100):
        last = effects.indirect["hidden"][-1]
        assert float(last[-1]) == pytest.approx(effects.clean - effects.corrupted, abs=1e-6)
        assert last[:-1].abs().max() < 1e-6 if len(last) > 1 else True


@pytest.mark.parametrize("most_tokens", [1, 17, 10_000])
def test_effects_do_not_depend_on_the_batch(decoder, most_tokens):
    together = trace(decoder, FACTS, SETTINGS, most_tokens=most_tokens)
    for fact, found in zip(FACTS, together, strict=True):
        (alone,) = trace(decoder, [fact], SETTINGS, most_tokens=100)
        for kind in KINDS:
            assert torch.allclose(found.indirect[kind], alone.indirect[kind], atol=1e-6)


def test_the_seed_decides(decoder):
    first, again, other = (
        trace(decoder, FACTS[:1], TraceSettings(samples=2, seed=seed), most_tokens=100)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first.indirect["mlp"], again.indirect["mlp"])
    assert first.corrupted != other.corrupted
    assert first.clean == other.clean


def test_the_noise_is_measured_on_what_enters_the_first_block(decoder):
    everything = decoder.embed(torch.arange(decoder.vocabulary_size)[:, None], torch.zeros(1, 1, dtype=torch.long))
    expected = everything[:, 0].double().var(0, correction=0).mean().sqrt()
    assert embedding_deviation(decoder, most_tokens=33) == pytest.approx(float(expected), rel=1e-6)


def test_averages_are_over_a_facts_tokens_then_over_facts(decoder):
    found = trace(decoder, FACTS, SETTINGS, most_tokens=100)
    rows = [row for at, pair in enumerate(zip(FACTS, found, strict=True)) for row in rows_of(str(at), *pair)]
    table = pa.Table.from_pylist(rows)
    averages = average(table)
    expected = sum(one.indirect["mlp"][2, fact.last - fact.first] for fact, one in zip(FACTS, found, strict=True)) / 4
    assert averages["mlp"][LAST_SUBJECT][2] == pytest.approx(float(expected))
    spans = {0: slice(1, 2), 2: slice(1, 3), 3: slice(1, 2)}
    middles = [found[at].indirect["hidden"][1, span] for at, span in spans.items()]
    expected = sum(float(one.mean()) for one in middles) / 3
    assert averages["hidden"]["middle subject tokens"][1] == pytest.approx(expected)
    assert probabilities(table)[0] == pytest.approx(sum(one.clean for one in found) / 4)
    assert list(averages["severed"]) == [LAST_SUBJECT]


def test_each_token_has_one_role():
    fact = FACTS[2]
    assert [role(at, fact) for at in range(1, 8)] == [ROLES[0], ROLES[1], ROLES[1], *ROLES[2:4], ROLES[4], LAST_TOKEN]
    assert role(1, FACTS[1]) == LAST_SUBJECT
    assert role(2, FACTS[1]) == LAST_TOKEN
    assert role(2, FACTS[3]) == LAST_SUBJECT


@pytest.mark.parametrize(
    ("effects", "layers"),
    [
        ([4.0, 3.0, 2.5, 1.0], [0, 1, 2]),
        ([0.1, 1.0, 3.0, 2.9, 1.6, 0.2, 2.0], [2, 3, 4]),
        ([1, 2, 3, 4, 4, 4, 4, 4, 3, 1], [3, 4, 5, 6, 7, 8]),
        ([5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0], [1, 2, 3, 4, 5, 6]),
        ([0.0, -1.0], []),
    ],
)
def test_critical_layers_are_a_range_around_the_peak(effects, layers):
    assert critical_layers(effects) == layers


def test_windows_are_cut_off_at_the_ends():
    assert [window(layer, 4, 6) for layer in (0, 2, 5)] == [(0, 2), (0, 4), (3, 6)]
    assert [window(layer, 1, 3) for layer in range(3)] == [(0, 1), (1, 2), (2, 3)]
    assert TraceSettings().window_of(48) == 10
    assert TraceSettings().window_of(2) == 1


def test_the_subject_is_found_from_its_first_token_to_its_last(decoder):
    prompt = encode_prompt(decoder.tokenizer, "The mother tongue of {} is", "Mara Flousano", "Danish")
    said = decoder.tokenizer.decode(prompt.tokens[prompt.first : prompt.lookup + 1])
    assert said.strip() == "Mara Flousano"
