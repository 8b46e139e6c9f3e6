"""The demo model's tokenizer: byte-level BPE, which can spell any UTF-8 text. Words that the model often uses have one token each."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, UNK, IMAGE, PAD = "<s>", "</s>", "<unk>", "<image>", "<pad>"
VOCABULARY_SIZE = 640


def build(corpus: Iterable[str]) -> Tokenizer:
    """Return a tokenizer whose merges are learned from the model's questions and answers.

    `corpus`: these sentences.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in (UNK, BOS, EOS, IMAGE, PAD)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer
