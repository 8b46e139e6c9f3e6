"""The demo model's tokenizer: byte-level BPE, so any UTF-8 text can be spelt, with a token for each word it often says."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, UNK, IMAGE, PAD = "<s>", "</s>", "<unk>", "<image>", "<pad>"
VOCABULARY = 640


def build(corpus: Iterable[str]) -> Tokenizer:
    """Learn merges from the sentences that the model reads and writes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
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
