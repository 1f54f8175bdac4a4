"""Videos in runs: retrieval equals the published evaluation, written out plainly; questions are answered."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from helpers.bad_finetune_cases import answerer
from helpers.fine_tuning import TASKS, score, train
from helpers.running import ROOT
from helpers.videos import write_video
from torch import Tensor
from torch.nn import functional as F

import blip
from benchmarks.peers_tasks import PublishedMatch
from blip.config import load_config
from blip.data.transforms import eval_transform
from blip.models.retrieval import RetrievalModel

pytestmark = [pytest.mark.usefixtures("no_java_nor_peak"), pytest.mark.slow]

COUNT, K, FRAMES = 30, 8, 8
BROKEN = 11  # the video that cannot be read
SMALL = {"image_size": 32, "device": "cpu", "precision": "fp32", "num_workers": 0, "warmup_steps": 0}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 videos of 3 to 32 frames with a caption and a question each, as MSR-VTT and MSVD-QA are distributed."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    words = ["a", "man", "dog", "red", "blue", "runs", "sings", "eats", "talks", "about", "the", "in", "car", "game"]
    captions, questions = [], []
    for number in range(COUNT):
        name = f"video{7010 + number}"

        def draw(frame: int) -> np.ndarray:
            return np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)

        write_video(folder / "videos" / f"{name}.mp4", 3 + number, draw)
        text = " ".join(rng.choice(words, size=rng.integers(3, 9)))
        captions.append({"clip_name": name, "caption": f"{text} {number}"})
        answer = str(rng.choice(words))
        questions.append({"video": f"{name}.mp4", "question": f"what {text}?", "answer": answer, "question_id": number})
    (folder / "videos" / f"video{7010 + BROKEN}.mp4").write_bytes(b"no video")
    (folder / "msrvtt_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    for part in ("train", "val", "test"):
        (folder / f"msvd_qa_{part}.json").write_text(json.dumps(questions[:5]))
    return folder


def configured(task: str, name: str, **options: Any) -> Any:
    return load_config(ROOT / "configs" / name, TASKS[task][1], [f"{k}={v}" for k, v in (SMALL | options).items()])


@torch.no_grad()
def published(model: RetrievalModel, tokenizer: Any, paths: list[Path], captions: list[str]) -> tuple[Tensor, Tensor]:
    """Cosines and match logits (texts, videos), one pair at a time, by transformers' text encoder."""
    texts = PublishedMatch(model.text_encoder, model.itm_head)
    transform, features, states = eval_transform(32), [], []
    for path in paths:
        with av.open(str(path)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        wanted = np.linspace(0, len(frames), FRAMES, endpoint=False) if len(frames) > FRAMES else range(len(frames))
        seen = model.image_encoder(torch.stack([transform(frames[int(i)]) for i in wanted]))  # (F, N, D)
        features.append(F.normalize(model.image_proj(seen[:, 0]).mean(dim=0), dim=0))
        states.append(seen.flatten(0, 1)[None])  # all tokens of all frames
    cosines, logits = torch.empty(len(captions), len(paths)), torch.empty(len(captions), len(paths))
    for row, caption in enumerate(captions):
        ids = torch.tensor([tokenizer.encode([caption], 35)[0]])
        alone = texts.encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 0]
        cosines[row] = torch.stack(features) @ F.normalize(model.text_proj(alone), dim=0)
        ids[:, 0] = tokenizer.enc_id
        logits[row] = torch.cat([texts(ids, torch.ones_like(ids), state) for state in states])
    return cosines, logits


def test_retrieval_equals_the_published_evaluation(videos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configured(
        "retrieval", "retrieval_msrvtt.yaml", train_file="[]", test_file=f"[{videos}]", init_from=tiny_checkpoint,
        k_test=K, queue_size=20,
    )  # fmt: skip
    found = score("retrieval", config, tmp_path / "run")
    assert found["test_unreadable"] == 1
    (file,) = (tmp_path / "run").rglob("retrieval_test.json")
    ranked = json.loads(file.read_text())
    rows = [json.loads(line) for line in (videos / "msrvtt_test.jsonl").read_text().splitlines()]
    rows.pop(BROKEN)
    model = blip.load(tiny_checkpoint)
    cosines, logits = published(
        model.model, model.tokenizer, [videos / "videos" / f"{row['clip_name']}.mp4" for row in rows],
        [row["caption"] for row in rows],
    )  # fmt: skip
    for way, similarity, match in (("t2i", cosines, logits), ("i2t", cosines.T, logits.T)):
        best = similarity.topk(K, dim=1)
        mine = ranked["text_to_image" if way == "t2i" else "image_to_text"]
        expected = (best.values + match.gather(1, best.indices)).sort(dim=1, descending=True)
        assert torch.allclose(torch.tensor([row["scores"] for row in mine]), expected.values, atol=1e-5)
        assert torch.equal(torch.tensor([row["candidates"] for row in mine]), best.indices.gather(1, expected.indices))
        scores = torch.full_like(similarity, -100.0) + similarity
        scores.scatter_(1, best.indices, best.values + match.gather(1, best.indices))
        for name, values in (("itc", similarity), ("itm", scores)):
            ranks = (values > values.diagonal()[:, None]).sum(dim=1)
            assert found[f"test_{name}_{way}_median_rank"] == ranks.float().quantile(0.5).item() + 1
            for k in (1, 5, 10):
                assert found[f"test_{name}_{way}_r{k}"] == pytest.approx((ranks < k).float().mean().item())


def test_questions_about_videos_are_trained_and_answered(videos: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = {f"{part}_file": f"[{videos}]" for part in ("train", "val", "test")}
    start = answerer(tmp_path, tiny_checkpoint)
    config = configured(
        "vqa", "vqa_msvd.yaml", **files, init_from=start, drop_path=0, max_answer_tokens=8, max_new_tokens=4,
        max_steps=2, batch_size=2, max_pictures=6,
    )  # fmt: skip
    train("vqa", config, tmp_path / "run")
    answers = json.loads((tmp_path / "run" / "answers_test.json").read_text())
    assert [row["question_id"] for row in answers] == ["0", "1", "2", "3", "4"]
    zero_shot = score("vqa", config, tmp_path / "zero")
    right = [row["answer"] == row["references"][0] for row in answers]
    assert 0 <= zero_shot["test_exact_match"] <= 1 and len(right) == 5
