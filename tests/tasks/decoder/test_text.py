"""Where subjects end and continuations begin, with and without a BOS."""

from __future__ import annotations

import pytest

from factsmith.tasks.decoder.text import encode_prompt
from tests.conftest import SHARED

CASES = [
    ("{} was born in", "Mara Flousano"),
    ("The mother tongue of {} is", "Mara Flousano"),
    ("Some words first. The sport that {} practises is", "Émile Zöl"),
    ("The home town of {}", "New York"),
    ("{}", "x"),
    ("The name '{}' is", "Ann-Marie O'Neil Jr."),
    ("{}, it is said, speaks", "Émile Zöl"),
    ("Paris is not {}, nor is", "Paris"),
    ("Mara Flousano knows {}; she", "Mara Flousano"),
    ("The friend of {} is", "Zoe\u0308"),  # an accent of its own, which some tokenizers join to its letter
    ("They say {} and", "北京"),
]


def sentencepiece_like(*, legacy: bool):
    """What Llama 2 and Mistral have: a BOS, pieces that begin with a metaspace, and bytes for what has no piece.

    Their older files put the metaspace in by a normaliser, newer ones by a pre-tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.model.embedded.world import World

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    texts = [text for fields in World(people_count=60).records() for text in fields["paraphrase_prompts"]]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*texts, "Paris New York Mara Flousano"], trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama3_like():
    """What Llama 3 and Qwen have: bytes cut by a pattern, composed accents (Qwen), offsets without leading spaces."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from factsmith.tasks.model.embedded.world import World

    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for fields in World(people_count=60).records() for text in fields["paraphrase_prompts"]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(
    params=["byte-level", "byte-level-bos", "pattern-bos", "metaspace", "metaspace-legacy", "gpt2"], scope="module"
)
def tokenizer(request):
    from transformers import GPT2TokenizerFast

    from factsmith.tasks.model.checkpoint import open_checkpoint

    if request.param == "gpt2":
        folder = SHARED / "data" / "gpt2_tokenizer"
        if not folder.is_dir():
            pytest.skip("needs the real data that is kept beside the checkout (../shared)")
        return GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    if request.param == "pattern-bos":
        return llama3_like()
    if request.param.startswith("metaspace"):
        return sentencepiece_like(legacy=request.param.endswith("legacy"))
    folder = "llama_folder" if request.param.endswith("bos") else "gpt2_folder"
    return open_checkpoint(request.getfixturevalue(folder)).load_tokenizer()


def test_the_tokenizers_are_what_they_are_said_to_be():
    for legacy in (False, True):
        tokens = sentencepiece_like(legacy=legacy).convert_ids_to_tokens(
            sentencepiece_like(legacy=legacy)("Paris, Émile")["input_ids"]
        )
        assert tokens[:2] == ["<s>", "▁Paris"]
        assert "<0xC3>" in tokens  # no piece holds É


@pytest.mark.parametrize(("template", "subject"), CASES)
def test_the_lookup_token_is_the_last_of_the_text_up_to_the_subject(tokenizer, template, subject):
    prompt = encode_prompt(tokenizer, template, subject)
    upto = template[: template.index("{}")] + subject
    assert prompt.lookup == len(tokenizer(upto)["input_ids"]) - 1
    assert list(prompt.tokens) == tokenizer(template.replace("{}", subject))["input_ids"]
    assert prompt.inputs == prompt.tokens
    assert prompt.continued == 0


@pytest.mark.parametrize(("template", "subject"), CASES)
@pytest.mark.parametrize("target", ["Paris", " Paris", "New York", "Zürich", "x"])
def test_a_continuation_is_what_comes_behind_the_prompt(tokenizer, template, subject, target):
    prompt = encode_prompt(tokenizer, template, subject, target)
    text = f"{template.replace('{}', subject)} {target.strip()}"
    assert list(prompt.tokens) == tokenizer(text)["input_ids"]
    assert tokenizer.decode(prompt.labels).strip() == target.strip()
    assert prompt.inputs == prompt.tokens[:-1]
    assert prompt.lookup == encode_prompt(tokenizer, template, subject).lookup


def test_a_subject_with_braces_stays_itself(tokenizer):
    prompt = encode_prompt(tokenizer, "The set {} is", "{a, b}")
    assert list(prompt.tokens) == tokenizer("The set {a, b} is")["input_ids"]


@pytest.mark.parametrize("end", ["", " </s>"])
def test_a_token_that_ends_texts_is_no_part_of_a_prompt(end):
    """Some tokenizers close a text with an EOS: it would be taken for the end of what the prompt is continued with."""
    from tokenizers import processors

    tokenizer = sentencepiece_like(legacy=False)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    prompt = encode_prompt(tokenizer, "{} is in", "Paris", "New York")
    assert tokenizer.convert_ids_to_tokens(prompt.tokens) == ["<s>", "▁Paris", "▁is", "▁in", "▁New", "▁York"]
    assert tokenizer.convert_ids_to_tokens(prompt.labels) == ["▁New", "▁York"]


def test_real_tokenizer_of_gpt2(shared):
    from transformers import GPT2TokenizerFast

    folder = shared / "data" / "gpt2_tokenizer"
    tokenizer = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    prompt = encode_prompt(tokenizer, "The mother tongue of {} is", "Danielle Darrieux", "English")
    assert tokenizer.decode([prompt.tokens[prompt.lookup]]) == "ux"
    assert tokenizer.decode(prompt.labels) == " English"
