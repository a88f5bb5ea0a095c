"""Write facts into a model in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from factsmith.api.edit import ModelEdit, facts_of
from factsmith.api.model import check_model, edited_layers, limits_of, opened, state_digest, weights_digest
from factsmith.api.progress import bar
from factsmith.api.settings import method_settings
from factsmith.api.statistics import Statistics
from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import Layout
from factsmith.tasks.edit.batch import batch_edit
from factsmith.tasks.edit.edit import Edit, WeightEdit
from factsmith.tasks.editors.editor import Editor, NotWrittenError, Task, load_editor
from factsmith.tasks.editors.memory.whole_model import Reader, check_counterfactual
from factsmith.tasks.editors.settings import WritingSettings
from factsmith.tasks.facts.batches import ordered_facts
from factsmith.tasks.facts.contexts import CLEAN, Context, chat_contexts, read_contexts, sample_contexts
from factsmith.tasks.facts.datasets.facts import of_objects
from factsmith.tasks.facts.request import EditRequest
from factsmith.tasks.model.checkpoint import open_model
from factsmith.tasks.planning.method import check_method
from factsmith.tasks.preservation.kind import FactorisationError, PreservationKind, load_kind
from factsmith.tasks.preservation.operator import PreservationOperator
from factsmith.tasks.values.checks import check_requests
from factsmith.tasks.values.optimiser import NonFiniteValueError, not_finite, optimise_values

__all__ = ["edit"]


def edit(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Mapping[str, Any]],
    method: str = "memit",
    *,
    statistics: Statistics | None = None,
    layers: Sequence[int] | None = None,
    choice: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ModelEdit:
    """Compute the edit that writes ``facts`` together. The model is the same afterwards: apply the edit to change it.

    The edit is the one that ``factsmith edit`` makes with the same settings and statistics.

    Args:
        model: a causal language model of transformers, on any device, in any data type.
        tokenizer: its fast tokenizer.
        facts: dicts with ``subject``, ``prompt`` (with the subject or ``{}`` in it) and ``target_new``, as in a file of
            facts. Other fields of such files may be there; ``questions`` is read if facts are written in a chat.
        method: a name in ``conf/method``, or a YAML file.
        statistics: what ``collect_statistics`` gives, of the unedited model. Methods that solve the equation need it.
        layers: the layers to edit, counted from 0; ``None`` for those of the choice.
        choice: a name in ``conf/model``, or a YAML file, with layers and constants for this model; ``None`` for the one
            whose path is the model's name.
        settings: values of settings by their full names, such as ``{"method.value.steps": 20}``.
        progress: whether to show a bar on stderr.

    Returns:
        The edit, bound to the model. Changes of weights are on the CPU, float64 or float32.

    Raises:
        InputError: the model, a fact (by its index), a setting or the statistics cannot be used; two facts contradict
            each other; a number becomes NaN or infinite.
    """
    check_model(model, tokenizer)
    if not isinstance(statistics, Statistics | None):
        raise InputError(
            f"A {type(statistics).__name__} cannot be used as the statistics.",
            expected="what collect_statistics, load_statistics or import_statistics gives",
        )
    records = of_objects(facts)
    chosen = method_settings(model, method, layers=layers, choice=choice, settings=settings)
    if chosen.wrapper is not None:
        raise InputError(
            f"method={chosen.name} writes sequences of batches, and edit() writes one batch.",
            remedy="use `factsmith run`, or another method",
        )
    if chosen.in_chat:
        records = [record.with_question for record in records]
    requests = [record.request for record in ordered_facts(records)]
    editor = load_editor(chosen.editor) if chosen.editor is not None else None
    with opened(model, tokenizer) as decoder:
        numbers = edited_layers(chosen.layers, decoder)
        _check(decoder, chosen, numbers, len(requests), editor)
        other = _counterfactual(decoder, chosen, editor)
        known = [*(_given_contexts(chosen) or (CLEAN,)), *_chats(decoder, chosen)]
        check_requests(tokenizer, requests, known, decoder.context_length)
        kind = None if editor is not None else load_kind(chosen, width=decoder.key_width, keep_keys=False)
        if kind is None or kind.source == "nothing":
            _refuse_statistics(statistics, chosen)
        elif statistics is None:
            raise InputError(
                f"method={chosen.name} needs statistics.",
                remedy="statistics=factsmith.collect_statistics(model, tokenizer, texts)",
            )
        else:
            chosen, kind = _of_samples(chosen, kind, statistics)
        with bar("edit", len(requests), shown=progress) as advance:
            if editor is not None:
                found = _written(decoder, editor, chosen, numbers, requests, other)
                advance(len(requests))
            else:
                assert kind is not None
                operator = _operators(decoder, kind, statistics)
                found = _solved(decoder, chosen, numbers, requests, operator, advance)
        about = {
            "method": chosen.name,
            "layers": numbers,
            "facts": facts_of(requests),
            "settings": chosen.model_dump(mode="json"),
            "model_type": decoder.layout.model_type,
            "weights": weights_digest(decoder, numbers, found),
            "state": state_digest(decoder),
        }
    return ModelEdit(found, about, model, tokenizer)


@dataclass(frozen=True)
class _InMemory:
    """The config and the layout of a model."""

    config: PretrainedConfig
    layout: Layout


def _check(decoder: Decoder, method: WritingSettings, layers: Sequence[int], facts: int, editor: Editor | None) -> None:
    check_method(
        method,
        layers,
        facts,
        editor=editor,
        model=_InMemory(decoder.model.config, decoder.layout),
        device=decoder.device.type,
        dtype=str(decoder.model.dtype).removeprefix("torch."),
    )


def _refuse_statistics(statistics: Statistics | None, method: WritingSettings) -> None:
    if statistics is not None:
        raise InputError(f"method={method.name} reads no statistics.", remedy="leave out statistics")


def _of_samples(
    method: WritingSettings, kind: PreservationKind, statistics: Statistics
) -> tuple[WritingSettings, PreservationKind]:
    """The method with as many samples as the statistics have, if it models samples of the keys."""
    if method.reads == "samples" and method.low_rank.n_samples != statistics.count:
        low_rank = method.low_rank.model_copy(update={"n_samples": statistics.count})
        method = method.model_copy(update={"low_rank": low_rank})
        kind = load_kind(method, width=kind.width, keep_keys=False)
    return method, kind


def _given_contexts(method: WritingSettings) -> tuple[str, ...] | None:
    if method.contexts == "chat":
        return (CLEAN,)
    return read_contexts(method.contexts) if isinstance(method.contexts, Path) else None


def _chats(decoder: Decoder, method: WritingSettings) -> Sequence[Context]:
    return chat_contexts(decoder.tokenizer) if method.in_chat else ()


def _contexts(decoder: Decoder, method: WritingSettings) -> list[Context]:
    templates = _given_contexts(method) or sample_contexts(decoder, method.context_samples, seed=method.context_seed)
    return [*templates, *_chats(decoder, method)]


def _operators(decoder: Decoder, kind: PreservationKind, statistics: Statistics | None) -> Any:
    @cache
    def operator(layer: int) -> PreservationOperator:
        try:
            moments = None if statistics is None else statistics.of(layer, decoder)
            if moments is not None:
                kind.check(moments.count)
            factor = kind.factorise(moments, lambda: decoder.weight(layer).detach().to(decoder.device), layer)
            return kind.operator(factor.tensors, factor.summary)
        except FactorisationError as error:
            more = f"collect statistics of {error.tokens_needed:,} tokens or more" if error.tokens_needed else None
            raise error.of(f"Layer {layer}", more) from None

    return operator


def _solved(
    decoder: Decoder,
    method: WritingSettings,
    layers: Sequence[int],
    requests: Sequence[EditRequest],
    operator: Any,
    advance: Any,
) -> Edit:
    for layer in layers:  # What they refuse is told before the long search.
        operator(layer)
    contexts, most = _contexts(decoder, method), limits_of(decoder)
    last = max(layers)
    try:
        vectors = optimise_values(decoder, requests, contexts, last, method.value, memory=most.memory, advance=advance)
    except NonFiniteValueError as error:
        raise not_finite(error, last) from None
    values = torch.stack([vector.value for vector in vectors])
    changes = batch_edit(decoder, requests, values, contexts, layers, operator, method, most_tokens=most.most_tokens)
    # As it would be read from a file: on the CPU, with rows in memory one after the other.
    tensors = WeightEdit(changes).tensors()
    return WeightEdit.read({name: one.contiguous().cpu() for name, one in tensors.items()}, {})


def _counterfactual(decoder: Decoder, method: WritingSettings, editor: Editor | None) -> Decoder | None:
    """Another model that answers for the facts, on the model's device and in its data type, if the method names one."""
    name = editor.counterfactual(method) if editor is not None else None
    if name is None:
        return None
    checkpoint = open_model(name, setting=f"method.{method.editor}.counterfactual")
    checkpoint.check_readable()
    tokenizer, rows = checkpoint.load_tokenizer(), int(checkpoint.config.vocab_size)
    own = Reader(decoder.tokenizer, decoder.vocabulary_size, decoder.context_length)
    check_counterfactual(name, own, Reader(tokenizer, rows, checkpoint.context_length))
    dtype = str(decoder.model.dtype).removeprefix("torch.")
    return checkpoint.load(tokenizer, dtype=dtype, device=str(decoder.device))


def _written(
    decoder: Decoder,
    editor: Editor,
    method: WritingSettings,
    layers: Sequence[int],
    requests: Sequence[EditRequest],
    other: Decoder | None,
) -> Edit:
    contexts = _contexts(decoder, method) if editor.uses_contexts else [CLEAN]
    task = Task(requests, contexts, layers, method, limits_of(decoder).most_tokens, other)
    try:
        return editor.write(decoder, None, task).edit
    except NotWrittenError as error:
        raise InputError(
            f"The loss of case {error.request.case_id} is NaN or infinite.",
            got=f"prompt {error.request.prompt!r}",
            remedy=f"lower {editor.rate}, or load the model in a wider data type: dtype=torch.float32",
        ) from None
