"""Language models of the published numbers and small random ones, with their tokenizers."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip.checkpoints.blip2_names import LAVIS_LANGUAGE_MODEL, lavis, whole_bias
from blip.checkpoints.format import load_strict
from blip.checkpoints.names import rename
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.language_models import LanguageModel, language_model
from blip.models.language_tokens import LanguageTokens
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig


@dataclass
class GoldenTexts:
    """A kind of stage 2 with its settings and numbers, and the language model from its folder."""

    settings: dict[str, Any]
    numbers: dict[str, Tensor]
    model: LanguageModel
    tokens: LanguageTokens
    prefix: str  # of the names of numbers: opt or t5

    def number(self, name: str) -> Tensor:
        """The number of this name for the first batch."""
        return self.numbers[f"{self.prefix}_{name}0"]


@lru_cache
def golden_texts(folder: Path, kind: str) -> GoldenTexts:
    """The texts end before they are cut, as published."""
    settings = json.loads((folder / f"{kind}.json").read_text())
    with np.load(folder / f"{kind}.npz") as file:
        numbers = {name: torch.from_numpy(file[name]) for name in file.files}
    prefix = kind.split("_")[0]
    module, tokenizer = golden_module(folder, prefix, settings.get("dense_act_fn"))
    model, tokens = language_model(module, tokenizer, settings["max_txt_len"], end_may_be_cut=True)
    return GoldenTexts(settings, numbers, model.eval(), tokens, prefix)


def golden_module(folder: Path, name: str, activation: str | None = None) -> tuple[Any, Any]:
    """The module and the tokenizer of a folder, in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    loader = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    more = {"dense_act_fn": activation} if activation else {}
    module = loader.from_pretrained(folder / name, dtype=torch.float32, **more)
    return module, AutoTokenizer.from_pretrained(folder / name)


@dataclass
class GoldenImages:
    """The whole model of a kind of stage 2 with the weights of before the first step, or of after the last."""

    texts: GoldenTexts
    model: Blip2LanguageModel
    kind: str

    def ours(self, published: str) -> str:
        """Our name of a published parameter."""
        whole = re.sub(r"attn\.[qv]_bias$", "attn.qkv.bias", published)
        return str(rename(whole, lavis("seq2seq" if self.texts.prefix == "t5" else "causal")))

    def of_published(self, name: str, tensors: dict[str, Any]) -> Any:
        """The tensor that the published code calls `name`, of those by our names."""
        whole = tensors[self.ours(name)]
        if name.endswith("attn.q_bias"):
            return whole.chunk(3)[0]
        return whole.chunk(3)[2] if name.endswith("attn.v_bias") else whole

    def load(self, folder: Path, file: str) -> dict[str, Tensor]:
        """The published tensors of a file by our names, with the frozen tower where it leaves that out."""
        state = torch.load(folder / file, weights_only=True)["model"]
        if not any(name.startswith("visual_encoder.") for name in state):
            tower = torch.load(folder / "eva_vit.pth", weights_only=True)
            state |= {f"visual_encoder.{name}": tensor for name, tensor in tower.items()}
        kept = {n: x for n, x in state.items() if not n.endswith("position_ids") and not LAVIS_LANGUAGE_MODEL.match(n)}
        return {self.ours(name): tensor for name, tensor in whole_bias(kept).items()}


def golden_images(folder: Path, kind: str) -> GoldenImages:
    """In evaluation mode: dropout was off."""
    meta, texts = json.loads((folder / "meta.json").read_text()), golden_texts(folder, kind)
    vit, q, eps = meta["vit"], meta["qformer"], meta["layer_norm_eps"]
    sizes = ViTConfig(
        texts.numbers["image0"].shape[-1], vit["patch_size"], vit["width"], vit["depth"], vit["heads"],
        vit["mlp_ratio"], norm_eps=eps["ln_vision"], block_eps=eps["vit"],
    )  # fmt: skip
    qformer = QFormerConfig(
        meta["bert_vocab"], q["hidden"], q["layers"], q["heads"], q["intermediate"], q["max_positions"], vit["width"],
        queries=q["query_tokens"], cross_every=q["cross_attention_freq"], text=False,
    )  # fmt: skip
    model = Blip2LanguageModel(sizes, qformer, texts.model.width)
    golden = GoldenImages(texts, model, kind)
    load_strict(model, golden.load(folder, texts.settings.get("weights", f"{kind}.pth")), "model")
    model.attach(texts.model)
    model.image_encoder.requires_grad_(not texts.settings["freeze_vit"])
    model.image_encoder.norm.requires_grad_(True)
    golden.model = model.eval()
    return golden


# ---- small random models ---------------------------------------------------------------------------------------------

WORDS = [f"w{number}" for number in range(60)]
FAMILIES = ("opt", "gpt2", "llama", "t5")
WIDTH = 24


@lru_cache
def random_module(family: str, seed: int = 0) -> Any:
    """A tiny model of transformers in float32 whose texts vary with every number that it reads.

    The vocabulary is that of `small_tokenizer`; OPT has more rows than that, as published.
    """
    import transformers as t

    sizes = {"vocab_size": len(WORDS) + 4}
    layered = {"num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "opt": lambda: t.OPTConfig(
            vocab_size=len(WORDS) + 7, hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=48, dropout=0.1,
            max_position_embeddings=96, init_std=0.3, pad_token_id=1, bos_token_id=2, eos_token_id=2, **layered,
        ),
        "gpt2": lambda: t.GPT2Config(
            n_embd=WIDTH, n_layer=2, n_head=4, n_positions=96, initializer_range=0.3, bos_token_id=2, eos_token_id=2,
            **sizes,
        ),
        "llama": lambda: t.LlamaConfig(
            hidden_size=WIDTH, intermediate_size=48, num_key_value_heads=2, initializer_range=0.3, pad_token_id=1,
            bos_token_id=2, eos_token_id=3, max_position_embeddings=96, **sizes, **layered,
        ),
        "t5": lambda: t.T5Config(
            d_model=WIDTH, d_kv=6, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.1, feed_forward_proj="gated-gelu",
            tie_word_embeddings=False, pad_token_id=1, eos_token_id=3, decoder_start_token_id=1,
            relative_attention_num_buckets=8, relative_attention_max_distance=16, **sizes,
        ),
    }  # fmt: skip
    torch.manual_seed(seed)
    loader = t.AutoModelForSeq2SeqLM if family == "t5" else t.AutoModelForCausalLM
    module = loader.from_config(configs[family](), attn_implementation="sdpa").eval()
    if family == "t5":
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.fill_(1)
    return module


@lru_cache
def small_tokenizer(family: str) -> Any:
    """Words of `WORDS` apart; OPT's ends with a line break that is one token, T5 puts `</s>` behind a text."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["\n" if family == "opt" else "<unk>", "<pad>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" +|(?=\n)"), "removed")
    if family in ("opt", "llama"):
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    if family == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    end = {"opt": "<s>", "gpt2": "<s>"}.get(family, "</s>")
    start = {} if family == "t5" else {"bos_token": "<s>"}
    pad = {} if family == "gpt2" else {"pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, **start, **pad)


def small(family: str, max_tokens: int = 16, **options: Any) -> tuple[LanguageModel, LanguageTokens]:
    """The adapter of `random_module`, and that of its tokenizer."""
    return language_model(random_module(family), small_tokenizer(family), max_tokens, **options)


def words(generator: torch.Generator, fewest: int, most: int) -> str:
    """A text of random words."""
    count = int(torch.randint(fewest, most + 1, (1,), generator=generator))
    return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=generator).tolist())
