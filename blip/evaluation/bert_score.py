"""BERTScore (Zhang et al. 2020) with the weights of a local folder.

P pairs of a batch, T tokens, D width, N texts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from blip.console.bars import no_bars_of_transformers

PAIRS_AT_ONCE = 64


class Encoder:
    """A BERT-like model as unit vectors of tokens."""

    def __init__(self, folder: Path, layer: int | None = None):
        """`layer` whose states count: None the last one."""
        self.layer = layer
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with no_bars_of_transformers():
            self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(self.device)
        # positions of RoBERTa start at 2; its tokenizer marks the start of a word by the blank before it
        longest = getattr(self.model.config, "max_position_embeddings", 514) - 2
        self.longest = min(self.tokenizer.model_max_length, longest)
        self.blank = " " if "\u0120the" in self.tokenizer.get_vocab() else ""

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Unit vectors (P, T, D), where tokens are (P, T) and which of them are averaged (P, T)."""
        batch = self.tokenizer(
            [self.blank + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
            return_special_tokens_mask=True,
        ).to(self.device)
        special, there = batch.pop("special_tokens_mask").bool(), batch["attention_mask"].bool()
        states = self.model(**batch, output_hidden_states=True).hidden_states
        chosen = states[-1 if self.layer is None else self.layer].float()
        return chosen / chosen.norm(dim=-1, keepdim=True), there, there & ~special


@torch.inference_mode()
def bert_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], folder: Path, layer: int | None = None
) -> np.ndarray:
    """(N, 2): recall and F1 of each token's best cosine in the other text, without idf weights or baseline rescaling.

    As in the bert_score package, `[CLS]` and `[SEP]` may be matched but are not averaged. Of several references that of
    the best F1 counts.
    """
    encode = Encoder(folder, layer)
    pairs = [(i, text) for i, several in enumerate(references) for text in several]
    best = np.zeros((len(texts), 2))
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        numbers, others = zip(*pairs[start : start + PAIRS_AT_ONCE], strict=True)
        vectors, there, counted = encode([texts[i] for i in numbers])
        other_vectors, other_there, other_counted = encode(others)
        cosine = vectors @ other_vectors.mT  # (P, T of text, T of reference)
        cosine = cosine.masked_fill(~(there[:, :, None] & other_there[:, None, :]), -1)
        precision = (cosine.amax(dim=2) * counted).sum(dim=1) / counted.sum(dim=1)
        recall = (cosine.amax(dim=1) * other_counted).sum(dim=1) / other_counted.sum(dim=1)
        f1 = 2 * precision * recall / (precision + recall)
        for number, score in zip(numbers, torch.stack([recall, f1], dim=1).tolist(), strict=True):
            best[number] = max(best[number].tolist(), score, key=lambda row: row[1])
    return best
