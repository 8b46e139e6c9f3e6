"""Trains the demo model with images that are drawn at random: `python -m llava_gateway.demo.train [DIRECTORY]`.

The model has LLaVA-1.5's architecture and is small enough for two CPU cores: CLIP 336/14 (576 image tokens), an MLP projector, a Llama.
Two methods make the training fast. A lesson asks many questions about the same images in one pass; the attention mask hides the questions
from each other. Many batches see a random part of each image's patches, at their true positions; the last stage sees most or all of them.
The last four stages add the questions of `/v1/decisions`. They can continue from the checkpoint of the first three: `--from-stage 3`.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_gateway.demo import tokenizer as special_tokens
from llava_gateway.demo.batches import (
    ANSWER_WEIGHT,
    DESCRIPTION_WEIGHT,
    GRID,
    IGNORE,
    JUDGEMENT_WEIGHT,
    PATCH,
    PATCHES,
    SIDE,
    Batch,
    Lessons,
    Stage,
)
from llava_gateway.demo.checkpoint_files import save
from llava_gateway.demo.conversations import Mix, corpus
from llava_gateway.demo.images import COLORS

CONTEXT_LENGTH = 4096
STAGES = (
    Stage(1300, 6000, (32,), 2e-3, Mix(one_place=0.6, which_quarter=0.3)),
    Stage(1100, 7000, (40, 160, PATCHES), 1.2e-3, Mix(one_place=0.5, which_quarter=0.2)),
    Stage(200, 7000, (PATCHES,), 3e-4, Mix(one_place=0.5, which_quarter=0.1)),
    Stage(1200, 6000, (48,), 1.5e-3, Mix(one_place=0.4, which_quarter=0.1, decision=0.75)),
    Stage(1000, 6000, (48,), 1.5e-3, Mix(one_place=0.4, which_quarter=0.1, decision=0.85, aid=0.35)),
    Stage(400, 7000, (160, PATCHES), 6e-4, Mix(one_place=0.5, which_quarter=0.1, decision=0.6)),
    Stage(300, 7000, (160, PATCHES), 6e-4, Mix(one_place=0.6, which_quarter=0.1, decision=0.25, one_turn=0.4)),
    Stage(600, 6000, (48,), 1.5e-3, Mix(one_place=0.8, which_quarter=0.1, decision=0.3, one_turn=0.3)),
    Stage(400, 6000, (48,), 1.5e-3, Mix(one_place=0.5, which_quarter=0.1, decision=0.25, one_turn=0.2)),
    Stage(120, 7000, (160, PATCHES), 5e-4, Mix(one_place=0.5, which_quarter=0.1, decision=0.3, one_turn=0.3)),
)


def config(tokenizer: Tokenizer) -> LlavaConfig:
    """Return the model's configuration."""
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3, image_size=SIDE, patch_size=PATCH,
            projection_dim=96,
        ),
        text_config=LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=320, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.token_to_id(special_tokens.BOS), eos_token_id=tokenizer.token_to_id(special_tokens.EOS),
            pad_token_id=tokenizer.token_to_id(special_tokens.PAD),
        ),
        image_token_index=tokenizer.token_to_id(special_tokens.IMAGE), image_seq_length=PATCHES, vision_feature_layer=-2,
        vision_feature_select_strategy="default", tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip


def image_features(model: LlavaForConditionalGeneration, patches: Tensor, kept: Tensor) -> Tensor:
    """Return the projected features of the kept patches, of shape (images, kept, hidden).

    `patches`: (images, kept, 588) pixels. `kept`: (images, kept) indices of the patches in the image.
    """
    tower = model.model.vision_tower
    embeddings = tower.embeddings
    hidden = patches @ embeddings.patch_embedding.weight.flatten(1).T + embeddings.position_embedding(kept + 1)
    first = (embeddings.class_embedding + embeddings.position_embedding.weight[0]).expand(len(patches), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first, hidden], 1))
    for layer in tower.encoder.layers[: model.config.vision_feature_layer + 1]:
        output = layer(hidden, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
    return model.model.multi_modal_projector(hidden[:, 1:])


def loss_of(model: LlavaForConditionalGeneration, batch: Batch, probe: nn.Linear | None = None) -> tuple[Tensor, list[float]]:
    """Return the weighted cross-entropy of a batch, and the shares of correct words of three kinds.

    The kinds are colours in descriptions, colours as whole answers, and yes or no.

    `probe`: reads both colours of a judgement from the layer before the last one, and its own loss is added. The model hardly learns to
    compare two colours as long as its last layer does not have both.
    """
    language = model.model.language_model
    embeds = language.embed_tokens(batch.ids)
    is_image = batch.ids == model.config.image_token_id
    if is_image.any():
        embeds = embeds.masked_scatter(is_image[..., None], image_features(model, batch.patches, batch.kept))
    order = torch.arange(batch.ids.shape[1])
    causal = order[:, None] >= order[None, :]
    same_question = (batch.segments[:, :, None] == batch.segments[:, None, :]) | (batch.segments[:, None, :] == 0)
    mask = (causal & same_question)[:, None]
    mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    output = language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False, output_hidden_states=probe is not None
    )
    hidden = output.last_hidden_state
    has_label = batch.labels != IGNORE
    logits, labels, weights = model.lm_head(hidden[has_label]), batch.labels[has_label], batch.weights[has_label]
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    judged = batch.named != IGNORE
    if probe is not None and judged.any():
        colors = probe(output.hidden_states[-2][judged]).unflatten(-1, (2, -1))
        loss = loss + sum(nn.functional.cross_entropy(colors[:, half], (batch.named, batch.right)[half][judged]) for half in range(2))
    correct = logits.argmax(-1) == labels
    return loss, [correct[weights == weight].float().mean().item() for weight in (DESCRIPTION_WEIGHT, ANSWER_WEIGHT, JUDGEMENT_WEIGHT)]


def init_position_embeddings(model: LlavaForConditionalGeneration) -> None:
    """Set the patches' position embeddings to sines and cosines of row and column, instead of noise."""
    embedding = model.model.vision_tower.embeddings.position_embedding.weight
    quarter = embedding.shape[1] // 4
    frequencies = torch.exp(torch.arange(quarter) * (-math.log(GRID) / quarter)) * 2 * math.pi / GRID
    patches = torch.arange(PATCHES)
    with torch.no_grad():
        for half, coordinate in enumerate((patches // GRID, patches % GRID)):
            angles = coordinate[:, None] * frequencies
            embedding[1:, 2 * half * quarter : (2 * half + 1) * quarter] = 0.3 * torch.sin(angles)
            embedding[1:, (2 * half + 1) * quarter : (2 * half + 2) * quarter] = 0.3 * torch.cos(angles)


def train(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, first: int, directory: Path) -> None:
    """Train the model from the stage `first` on, and save it to `directory` every 500 steps and after each stage."""
    probe = nn.Linear(model.config.text_config.hidden_size, 2 * len(COLORS))
    for number, stage in enumerate(STAGES[first:], first):
        optimizer = torch.optim.AdamW([*model.parameters(), *probe.parameters()], lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.rate, stage.steps, pct_start=0.1)
        batches = iter(DataLoader(Lessons(tokenizer, stage, seed=number), batch_size=None, num_workers=1, prefetch_factor=4))
        start, averages = time.monotonic(), [0.0, 0.0, 0.0]
        for step in range(1, stage.steps + 1):
            loss, shares = loss_of(model, next(batches), probe)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            averages = [old if math.isnan(new) else old + (new - old) * 0.05 for old, new in zip(averages, shares, strict=True)]
            if step % 25 == 0:
                rate = (time.monotonic() - start) / step
                print(
                    f"stage {number} step {step} loss {loss.item():.4f} descriptions {averages[0]:.3f} answers {averages[1]:.3f} "
                    f"judgements {averages[2]:.3f} {rate:.2f} s/step",
                    flush=True,
                )
            if step % 500 == 0 or step == stage.steps:
                save(model, tokenizer, directory)


def main() -> None:
    """Train the demo model from random weights, or continue from a checkpoint."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument(
        "--from-stage",
        type=int,
        default=0,
        choices=range(len(STAGES)),
        help="continue with this stage from the checkpoint in the directory",
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.from_stage:
        tokenizer = Tokenizer.from_file(str(arguments.directory / "tokenizer.json"))
        model = LlavaForConditionalGeneration.from_pretrained(arguments.directory, dtype=torch.float32)
    else:
        tokenizer = special_tokens.build(corpus(random.Random(0)))
        model = LlavaForConditionalGeneration(config(tokenizer))
        init_position_embeddings(model)
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters", flush=True)
    train(model, tokenizer, arguments.from_stage, arguments.directory)


if __name__ == "__main__":
    main()
