"""Generating text token by token: greedy, sampled, and by beam search.

The caller gives a `Step`: a function from the newest tokens to the logits of the next one, which keeps the tokens that
precede. Nothing here depends on what the text is about.

Shapes: B prompts, R texts being generated (rows), T tokens of a prompt, L new tokens, V words, K beams.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from blip.errors import InputError
from blip.hardware.profile import profile_of
from blip.models.decoding import NEVER, Decoding, Generated, Step, check_numbers, constrained, draw


@torch.no_grad()
def generate(
    step: Step,
    prompt: Tensor,
    decoding: Decoding,
    *,
    end_id: int,
    pad_id: int,
    uniforms: Tensor | None = None,
) -> Generated:
    """Continues prompts of equal length (B, T).

    Samples are drawn by `uniforms` (B * num_return, max_new_tokens), see `decoding.uniforms_of`, so that a text depends
    on its own numbers alone; without them by torch's global generator, in the way of transformers' `generate`.

    A GPU is waited for once in several tokens, to learn which texts have ended (`Profile.steps_between_checks`). What
    has ended and is continued until then changes nothing.

    Raises:
        InputError: more beams than half of the vocabulary, or scores to sample from that are not numbers.
    """
    if decoding.beams > 1:
        return BeamSearch(step, prompt, decoding, end_id=end_id, pad_id=pad_id).run()
    return _one_by_one(step, prompt, decoding, end_id=end_id, pad_id=pad_id, uniforms=uniforms)


# ---- greedy and sampling ---------------------------------------------------------------------------------------------


def _one_by_one(
    step: Step, prompt: Tensor, decoding: Decoding, *, end_id: int, pad_id: int, uniforms: Tensor | None
) -> Generated:
    count, length, each, device = len(prompt), prompt.shape[1], decoding.num_return, prompt.device
    texts = _with_room(prompt.repeat_interleave(each, dim=0), decoding.max_new_tokens, pad_id)  # (R, T+max)
    log_probs = torch.zeros(len(texts), decoding.max_new_tokens, device=device)
    uniforms = None if uniforms is None else uniforms.to(device, non_blocking=True)
    logits = step(prompt).float()  # (B, V)
    if each > 1:
        step.select(torch.arange(count, device=device).repeat_interleave(each), each)
        logits = logits.repeat_interleave(each, dim=0)
    rows = torch.arange(len(texts), device=device)  # (R',) the text that each row of the step continues
    writing = torch.ones_like(rows, dtype=torch.bool)  # (R',) whether it has no end yet
    tokens_of = torch.zeros_like(rows)  # (R,) new tokens of each text
    for new in range(decoding.max_new_tokens):
        scores = constrained(logits, texts[rows, : length + new], new, decoding=decoding, end_id=end_id)
        if decoding.sample:
            tokens = draw(scores, decoding, None if uniforms is None else uniforms[rows, new])  # (R',)
        else:
            tokens = scores.argmax(dim=1)
        written = logits.log_softmax(dim=1).gather(1, tokens[:, None]).squeeze(1)
        texts[rows, length + new] = tokens.where(writing, pad_id)
        log_probs[rows, new] = written.where(writing, 0)
        tokens_of[rows] += writing
        writing = writing & (tokens != end_id)
        if new + 1 == decoding.max_new_tokens:
            break
        if _is_checked(new, device):
            still = writing.cpu()
            if not still.any():
                break
            kept, per_image = _still_writing(still.view(-1, each))
            if len(kept) < len(rows):
                kept, each = kept.to(device, non_blocking=True), per_image
                step.select(kept, each)
                rows, tokens, writing = rows[kept], tokens[kept], writing[kept]
        logits = step(tokens[:, None]).float()
    if decoding.sample:
        check_numbers(log_probs)
    longest = int(tokens_of.max())
    return Generated(texts[:, length : length + longest], log_probs[:, :longest], log_probs.sum(dim=1))


def _is_checked(new: int, device: torch.device) -> bool:
    """Whether the device is asked, after `new` tokens and one more, which texts have ended."""
    return (new + 1) % profile_of(device).steps_between_checks == 0


def _with_room(prompt: Tensor, room: int, pad_id: int) -> Tensor:
    """(R, T) -> (R, T+room), padded."""
    return torch.cat([prompt, prompt.new_full((len(prompt), room), pad_id)], dim=1)


def _still_writing(writing: Tensor) -> tuple[Tensor, int]:
    """writing (B, n), True at unfinished texts, on the CPU -> (rows to continue with, rows of each image).

    Images without an unfinished text are dropped. Every other image keeps as many rows as the one with most unfinished
    texts, so that the texts of an image stay side by side.
    """
    per_image = int(writing.sum(dim=1).max())
    images = writing.any(dim=1).nonzero().squeeze(1)
    unfinished_first = (~writing[images]).long().argsort(dim=1, stable=True)[:, :per_image]
    return (images[:, None] * writing.shape[1] + unfinished_first).flatten(), per_image


# ---- beam search -----------------------------------------------------------------------------------------------------


@dataclass
class Continuations:
    """The 2K best continuations of the beams of each prompt by one token, the best first."""

    sums: Tensor  # (B, 2K) log-probability of the whole text, penalties included
    texts: Tensor  # (B, 2K, T+max)
    log_probs: Tensor  # (B, 2K, max)
    rows: Tensor  # (B, 2K) the row of the step that each continues
    ended: Tensor  # (B, 2K) boolean: the newest token is the end


class BeamSearch:
    """The K likeliest texts of each prompt, extended together by one token a step.

    A step extends the K open beams by every word (`_extend`), keeps the texts that end among the K best continuations
    (`_finish`), and cuts the others to the K best open ones (`_cut`). A prompt is done when none of its open beams can
    beat its K finished texts, judged at the present length.

    Published rules differ in the length by which a sum of log-probabilities is divided: that of transformers 5
    (`generated`) counts the new tokens, the end token included; that of BLIP's transformers 4.15 (`whole`) counts
    prompt and new tokens without the end token. At the last step the latter keeps the K best open beams, the former
    those of rank K or better. `whole_blip2`, that of stage 2 of BLIP-2 (transformers 4.33), judges whether a prompt is
    done at the length with the newest token, `whole` at the length before it.
    """

    def __init__(self, step: Step, prompt: Tensor, decoding: Decoding, *, end_id: int, pad_id: int):
        self.step, self.decoding, self.end_id, self.pad_id = step, decoding, end_id, pad_id
        self.length = prompt.shape[1]
        count, room, device = len(prompt), decoding.max_new_tokens, prompt.device
        self.whole = decoding.length_norm != "generated"
        self.prompts = torch.arange(count, device=device)  # (B,) those that were not done at the last check
        self.done = torch.zeros_like(self.prompts, dtype=torch.bool)  # (B,)
        self.texts = _with_room(prompt, room, pad_id)[:, None]  # (B, beams, T+max): one beam at first, then K
        self.sums = torch.zeros(count, 1, device=device)  # (B, beams)
        self.log_probs = torch.zeros(count, 1, room, device=device)
        self.finished_texts = self.texts.repeat(1, decoding.beams, 1)  # (B, K, T+max)
        self.finished_scores = torch.full((count, decoding.beams), NEVER, device=device)
        self.finished_log_probs = self.log_probs.repeat(1, decoding.beams, 1)

    def run(self) -> Generated:
        """Generates until every prompt is done or `max_new_tokens` are there."""
        logits = self.step(self.texts[:, 0, : self.length])
        for new in range(self.decoding.max_new_tokens):
            last = new + 1 == self.decoding.max_new_tokens
            continuations = self._extend(logits.float(), new)
            ended = continuations.ended
            if last and not self.whole:  # every text ends here, whatever its last token
                ended = torch.ones_like(ended)
            self._finish(continuations, ended, new)
            rows = self._cut(continuations, new)
            if last:
                break
            if _is_checked(new, rows.device):
                rows = self._without_done(rows)
                if not len(rows):
                    break
            self.step.select(rows.flatten(), self.decoding.beams)
            logits = self.step(self.texts.flatten(0, 1)[:, self.length + new, None])
        if last and self.whole:
            self._keep_best(self.sums / self._divisor(new + 1), self.texts, self.log_probs)
        return self._result()

    def _divisor(self, new: int) -> float:
        """The divisor of a text's sum of log-probabilities, where it has `new` tokens beyond the prompt."""
        return float((self.length + new if self.whole else new) ** self.decoding.length_penalty)

    def _extend(self, logits: Tensor, new: int) -> Continuations:
        """logits (B*beams, V) -> the best continuations by one token."""
        count, beams = self.sums.shape
        raw = logits.log_softmax(dim=1)
        written = self.texts.flatten(0, 1)[:, : self.length + new]
        scores = constrained(raw, written, new, decoding=self.decoding, end_id=self.end_id)
        words = scores.shape[1]
        total = (scores.view(count, beams, words) + self.sums[..., None]).flatten(1)  # (B, beams*V)
        if total.shape[1] < 2 * self.decoding.beams:
            raise InputError(
                f"{self.decoding.beams} beams need a vocabulary of {2 * self.decoding.beams} tokens or more"
            )
        sums, best = total.topk(2 * self.decoding.beams, dim=1)
        beam, tokens = best // words, best % words
        texts, log_probs = _take(self.texts, beam), _take(self.log_probs, beam)
        texts[:, :, self.length + new] = tokens
        log_probs[:, :, new] = raw.view(count, -1).gather(1, best)
        rows = torch.arange(count, device=beam.device)[:, None] * beams + beam
        return Continuations(sums, texts, log_probs, rows, tokens == self.end_id)

    def _finish(self, continuations: Continuations, ended: Tensor, new: int) -> None:
        """Adds to the finished texts those of the K best continuations that end; `ended` (B, 2K)."""
        first = torch.arange(ended.shape[1], device=ended.device) < self.decoding.beams
        # the published length excludes the end token
        scores = continuations.sums / self._divisor(new if self.whole else new + 1)
        self._keep_best(scores.masked_fill(~(ended & first), NEVER), continuations.texts, continuations.log_probs)

    def _keep_best(self, scores: Tensor, texts: Tensor, log_probs: Tensor) -> None:
        """Keeps the best K of the finished texts and of these (B, n), shaped as in `Continuations`.

        Prompts that are done keep what they have.
        """
        at = self.prompts
        scores, best = torch.cat([self.finished_scores[at], scores], dim=1).topk(self.decoding.beams, dim=1)
        best = torch.arange(best.shape[1], device=best.device).where(self.done[:, None], best)
        self.finished_scores[at] = self.finished_scores[at].where(self.done[:, None], scores)
        self.finished_texts[at] = _take(torch.cat([self.finished_texts[at], texts], dim=1), best)
        self.finished_log_probs[at] = _take(torch.cat([self.finished_log_probs[at], log_probs], dim=1), best)

    def _cut(self, continuations: Continuations, new: int) -> Tensor:
        """Cuts the beams to the K best continuations without an end token, and notes which prompts are `done`.

        Returns the rows of the step that they continue (B, K).
        """
        self.sums, best = continuations.sums.masked_fill(continuations.ended, NEVER).topk(self.decoding.beams, dim=1)
        self.texts, self.log_probs = _take(continuations.texts, best), _take(continuations.log_probs, best)
        reachable = self.sums[:, 0] / self._divisor(new + 1)
        if self.whole:  # the published rules: the best continuation, ended or not
            before = self.decoding.length_norm == "whole"
            reachable = continuations.sums[:, 0] / self._divisor(new if before else new + 1)
        worst = self.finished_scores[self.prompts].min(dim=1).values
        self.done = self.done | ((worst > NEVER) & (reachable <= worst))
        return continuations.rows.gather(1, best)

    def _without_done(self, rows: Tensor) -> Tensor:
        """Drops the prompts that are done; returns the `rows` (B', K) of the others."""
        open_ones = (~self.done.cpu()).nonzero().squeeze(1)
        if len(open_ones) == len(rows):
            return rows
        index = open_ones.to(rows.device, non_blocking=True)
        for name in ("prompts", "done", "texts", "sums", "log_probs"):
            setattr(self, name, getattr(self, name)[index])
        return rows[index]

    def _result(self) -> Generated:
        keep = self.decoding.num_return
        ids = self.finished_texts[:, :keep, self.length :].flatten(0, 1)
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        longest = int((places * (ids != self.pad_id)).max())
        log_probs = self.finished_log_probs[:, :keep].flatten(0, 1)
        return Generated(ids[:, :longest], log_probs[:, :longest], self.finished_scores[:, :keep].flatten())


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (B, beams, ...) at index (B, n) -> (B, n, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
