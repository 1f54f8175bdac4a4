"""A tiny language model for the demonstration of BLIP-2: an OPT that is trained on captions, without images."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WIDTH, LAYERS, HEADS = 96, 4, 4
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


def train_language_model(texts: list[str], folder: Path, *, steps: int = 600, seed: int = 0) -> float:
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
    rows = [[*tokenizer(text)["input_ids"], end] for text in texts]
    losses = []
    for _ in range(steps):
        chosen = [rows[i] for i in torch.randint(len(rows), (64,)).tolist()]
        longest = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen])
        mask = (ids != 0).long()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(ids == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(float(loss.detach()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(losses[-50:]) / len(losses[-50:])
