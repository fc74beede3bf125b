"""What text encoders learn from words alone: guess hidden words (BERT), or the next one (GPT).

Shape legend: B batch, L tokens, D width, V vocabulary, M masked words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Batch, Prompt, Rng
from ..layers.one_phase import OnePhase

__all__ = ["FromTexts", "Guesser", "MaskedWords", "NextWord"]


class FromTexts(OnePhase):
    """A task of panel 1 alone, which learns its vocabulary first where it has none, from `vocabulary_texts` texts."""

    def __init__(self, panel: Any, vocabulary_texts: int) -> None:
        self.panel, self.vocabulary_texts = panel, vocabulary_texts
        self.modules = nn.ModuleDict({"text_encoder": panel})

    def panels(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.panel}

    def prepare_data(self, dataset: Any) -> None:
        """Called once, before training."""
        if not self.panel.has_vocabulary:
            self.panel.learn_vocabulary(dataset.texts(self.vocabulary_texts))


# --- hidden words -----------------------------------------------------------------------------------------------------------


class Guesser:
    """A base of text encoders that hear to both sides: hidden words, guessed. They have `_states(ids_BL, mask_BL) -> [B, L, D]`."""

    def masked_words(
        self, prompts: Sequence[Prompt | str], rng: Rng, fraction: float = 0.15, head: Callable[[Tensor, Tensor], Tensor] = F.linear
    ) -> dict[str, Tensor]:
        """Hide words and guess them (BERT, arXiv 1810.04805, section 3.1). Each row hides `fraction` of its words, and one at least.

        Of the hidden words 80 % become [MASK], 10 % another word, 10 % stay. Draws come from the row's own stream.
        head(states [M, D], embedding [V, D]) -> logits [M, V]. Without one the embedding alone guesses (arXiv 1608.05859).
        Returns row_M (which row each masked word is of), loss_M and right_M. Prompts without words have none.
        """
        panel: Any = self
        ids_BL, mask_BL = panel.ids(prompts)
        length = ids_BL.shape[1]
        draws_B3L = rng.uniform("masked words", (3, panel.config.context_length))[..., :length].to(ids_BL.device)
        which_BL, how_BL, other_BL = draws_B3L.unbind(1)
        place_L = torch.arange(length, device=ids_BL.device)
        word_BL = (place_L > 0) & (place_L < mask_BL.sum(dim=1, keepdim=True) - 1)  # all but the first, the last and padding
        which_BL = which_BL.masked_fill(~word_BL, 2.0)
        hidden_BL = word_BL & ((which_BL < fraction) | (which_BL == which_BL.amin(dim=1, keepdim=True)))
        ordinary_V = panel.tokenizer.ordinary_V.to(ids_BL.device)
        random_BL = ordinary_V[(other_BL * len(ordinary_V)).long()]
        said_BL = torch.where(how_BL < 0.8, panel.tokenizer.mask, torch.where(how_BL < 0.9, random_BL, ids_BL))
        states_BLD = panel._states(torch.where(hidden_BL, said_BL, ids_BL), mask_BL)
        row_M, at_M = hidden_BL.nonzero(as_tuple=True)
        logits_MV, target_M = head(states_BLD[row_M, at_M], panel.embedding.weight).float(), ids_BL[row_M, at_M]
        loss_M = F.cross_entropy(logits_MV, target_M, reduction="none")
        return {"row_M": row_M, "loss_M": loss_M, "right_M": logits_MV.argmax(dim=1) == target_M}


class MaskedWords(FromTexts):
    """The task: panel 1 learns from texts alone. `mask`: the share of words hidden.

    A panel with a `masked_words_head()` guesses through it: it learns too, and is not exported.
    vocabulary_texts: how many texts the vocabulary is learnt from, where the panel has none.
    """

    def __init__(
        self, panel: Any, *, neighbours: Mapping[str, Any] | None = None, mask: float = 0.15, vocabulary_texts: int = 100_000
    ) -> None:
        if not 0 < mask < 1:
            raise ValueError(f"mask {mask} is no share of words; take one between 0 and 1, as 0.15")
        super().__init__(panel, vocabulary_texts)
        self.mask, self.head = mask, F.linear
        if hasattr(panel, "masked_words_head"):
            self.head = self.modules["head"] = panel.masked_words_head()

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss: the mean over the batch's masked words; right: the share guessed."""
        found = self.panel.masked_words(batch.prompts, rng, self.mask, self.head)
        count = max(1, len(found["loss_M"]))  # nothing but empty prompts: 0
        return {"loss": found["loss_M"].sum() / count, "right": found["right_M"].sum() / count}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """loss and right, [B]: the row's means over words whose masking never changes; 0 for a row without words."""
        rows = len(batch.prompts)
        found = self.panel.masked_words(batch.prompts, Rng.of_samples(0, batch.index), self.mask, self.head)
        count_B = torch.bincount(found["row_M"], minlength=rows).clamp(min=1)
        return {
            "loss": torch.bincount(found["row_M"], found["loss_M"], minlength=rows).float() / count_B,
            "right": torch.bincount(found["row_M"], found["right_M"].float(), minlength=rows).float() / count_B,
        }


# --- the next word ------------------------------------------------------------------------------------------------------------


class NextWord(FromTexts):
    """The task: panel 1 learns from texts alone, each word from those before it. The embedding is the head as well (arXiv 1608.05859).

    vocabulary_texts: how many texts the vocabulary is learnt from, where the panel has none.
    """

    def __init__(self, panel: Any, *, neighbours: Mapping[str, Any] | None = None, vocabulary_texts: int = 100_000) -> None:
        super().__init__(panel, vocabulary_texts)

    def _guessed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """loss_BL and right_BL of each next word, 0 where there is none, and how many a row has; [end] is a word, [start] is not."""
        ids_BL, mask_BL = self.panel.ids(batch.prompts)
        states_BLD = self.panel.condition(ids_BL, mask_BL).tokens_BLD
        logits_BLV = F.linear(states_BLD[:, : ids_BL.shape[1] - 1], self.panel.embedding.weight).float()
        target_BL, there_BL = ids_BL[:, 1:], mask_BL[:, 1:]
        loss_BL = F.cross_entropy(logits_BLV.transpose(1, 2), target_BL, reduction="none") * there_BL
        return loss_BL, (logits_BLV.argmax(-1) == target_BL) * there_BL, there_BL.sum(dim=1)

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss: the mean over the batch's words; right: the share guessed."""
        loss_BL, right_BL, count_B = self._guessed(batch)
        return {"loss": loss_BL.sum() / count_B.sum(), "right": right_BL.sum() / count_B.sum()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """loss and right, [B]: the row's means."""
        loss_BL, right_BL, count_B = self._guessed(batch)
        return {"loss": loss_BL.sum(dim=1) / count_B, "right": right_BL.sum(dim=1) / count_B}
