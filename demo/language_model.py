"""A tiny language model for the demonstration of BLIP-2: an OPT that is trained on captions, without images.

It reads notes, words of a caption in any order, and writes the caption.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WIDTH, LAYERS, HEADS = 96, 3, 4
BATCH = 64
REPEATED = 4  # words that notes have twice: they are as many as there will be queries, or more
POSITIONS = 128
SPECIAL = ["<pad>", "</s>", "<unk>", "\n"]  # OPT begins texts with </s>, and BLIP-2 ends its captions by a line break


def word_tokenizer(texts: list[str]) -> Any:
    """A tokenizer of transformers with a token for each word of the texts."""
    import transformers

    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def with_notes(caption: list[int], common: set[int]) -> tuple[list[int], int]:
    """A caption behind some of its words in another order, as notes, and the number of those: (tokens, notes).

    Large language models have learned from their texts to use what precedes. This one learns it so: without notes it
    would have no use for queries before a caption either.
    """
    words = [token for token in caption if token not in common and token != caption[-1]]
    several = words + [words[i] for i in torch.randint(len(words), (REPEATED,)).tolist()]
    order = torch.randperm(len(several)).tolist()
    if float(torch.rand(())) < 0.5:  # of the others some words are missing
        order = order[: int(torch.randint(len(several), ()))]
    return [several[i] for i in order] + caption, len(order)


def train_language_model(texts: list[str], folder: Path, *, steps: int = 1000, seed: int = 0) -> float:
    """Trains an OPT on texts and writes it and its tokenizer into a folder -> the loss of the last steps."""
    import transformers

    torch.manual_seed(seed)
    tokenizer = word_tokenizer(texts)
    model = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=4 * WIDTH,
            max_position_embeddings=POSITIONS,
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    end = tokenizer.convert_tokens_to_ids("\n")
    rows = [tokenizer(text)["input_ids"] for text in texts]
    common = {token for token in rows[0] if all(token in row for row in rows[:100])}  # words that say nothing
    losses = []
    for _ in range(steps):
        chosen = [with_notes([*rows[i], end], common) for i in torch.randint(len(rows), (BATCH,)).tolist()]
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in chosen])
        targets = torch.tensor([[-100] * count + row[count:] + [-100] * (longest - len(row)) for row, count in chosen])
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(float(loss.detach()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(losses[-50:]) / len(losses[-50:])
