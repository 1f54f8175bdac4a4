"""BLIP-2 before a language model: what it needs, what it saves, and questions that the Q-Former reads."""

import pytest
import torch
from helpers.language import WIDTH, small
from helpers.tiny import spread
from torch import Tensor

from blip.errors import InputError
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.decoding import Decoding
from blip.models.factory import spec_of
from blip.models.language_tokens import TextBatch
from blip.network.packing import Rows
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig

pytestmark = pytest.mark.slow

QUESTIONS = torch.tensor([4, 2, 3])  # tokens
DECODING = Decoding(beams=2, max_new_tokens=5)


def build(family: str = "opt", *, text: bool = False) -> Blip2LanguageModel:
    torch.manual_seed(1)
    qformer = QFormerConfig(
        vocab_size=30, width=16, layers=2, heads=2, hidden=24, max_positions=12, image_width=12, dropout=0.0,
        queries=3, text=text,
    )  # fmt: skip
    model = spread(Blip2LanguageModel(ViTConfig(16, 8, 12, 1, 2), qformer, WIDTH), std=0.3)
    return model.attach(small(family)[0]).eval()  # type: ignore[operator]


def inputs(family: str = "opt") -> tuple[Tensor, TextBatch, Tensor]:
    """Images, texts with prompts, and ids of questions."""
    batch = small(family)[1].training(["w1 w2 w3", "w4", "w5 w6"], ["w7", "w8 w9", "w7"])
    ids = torch.randint(5, 30, (3, 4)).masked_fill(torch.arange(4) >= QUESTIONS[:, None], 0)
    return torch.randn(3, 3, 16, 16), batch, ids


@pytest.mark.parametrize("family", ["opt", "t5"])
def test_the_queries_read_the_question_where_it_is_given(family: str) -> None:
    """Each with its own question and image, in a batch as alone; what the queries have read is what is shown."""
    model = build(family, text=True)
    images, batch, ids = inputs(family)
    states = model.image_encoder(images)
    together = model.query_inputs(states, ids, QUESTIONS)
    for i, length in enumerate(QUESTIONS.tolist()):
        question, rows = ids[i : i + 1, :length], Rows(QUESTIONS[i : i + 1], length, ids.device)
        keys = model.qformer.image_keys(states[i : i + 1])
        alone = model.language_proj(model.qformer.match(question, rows, keys))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, model.query_inputs(states), atol=1e-3)
    options = {"question_ids": ids, "question_lengths": QUESTIONS}
    loss = model(images, batch.ids, batch.mask, targets=batch.targets, **options)
    assert model.language_model is not None
    expected = model.language_model.loss(together, batch.ids, batch.mask, targets=batch.targets)
    torch.testing.assert_close(loss, expected)
    prompts = small(family)[1].prompts(["w1", "w2 w3", ""])
    out = model.write(images, prompts.ids, prompts.mask, decoding=DECODING, **options)
    about = model.write_about(together, prompts.ids, prompts.mask, decoding=DECODING)
    assert torch.equal(out.ids, about.ids) and not torch.equal(
        out.scores, model.write(images, prompts.ids, prompts.mask, decoding=DECODING).scores
    )


def test_what_is_trained_is_saved_and_nothing_else() -> None:
    model = build()
    images, batch, _ = inputs()
    model.train()(images, batch.ids, batch.mask, targets=batch.targets).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == set(model.trained_state()) and trained
    assert all(name.split(".")[0] in ("image_encoder", "qformer", "language_proj") for name in trained)


def test_the_log_probability_of_a_text_is_the_loss_that_it_has() -> None:
    model = build()
    images, batch, _ = inputs()
    with torch.no_grad():
        each = model.log_probs(model.image_encoder(images), batch.ids, batch.mask, targets=batch.targets)
        loss = model(images, batch.ids, batch.mask, targets=batch.targets)
    torch.testing.assert_close(-each.sum() / (each != 0).sum(), loss)


def test_what_is_missing_is_named() -> None:
    vit, qformer = ViTConfig(16, 8, 12, 1, 2), QFormerConfig(width=16, layers=1, heads=2, image_width=12, text=False)
    images, batch, _ = inputs()
    with pytest.raises(InputError, match="has no language model"):
        Blip2LanguageModel(vit, qformer, WIDTH)(images, batch.ids, batch.mask, targets=batch.targets)
    with pytest.raises(InputError, match=f"embeddings are {WIDTH} wide, the projection before it is made for 20"):
        Blip2LanguageModel(vit, qformer, 20).attach(small("opt")[0])
    with pytest.raises(InputError, match="have 104 tokens, the language model has 96 positions"):
        build().write(images, batch.ids[:, :1], batch.mask[:, :1], decoding=Decoding(max_new_tokens=100))
    assert spec_of("blip2_language").can == {"caption", "answer"} and spec_of("blip2_language").has_language_model
