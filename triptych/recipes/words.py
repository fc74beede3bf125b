"""Panel 1 alone, on texts without pictures: four classical text encoders, each with the task it was published with.

    triptych train bert-words       # hidden words
    triptych train gpt-words        # the next word
    triptych train t5-words         # spans that were cut out
    triptych train clip-words       # CLIP's text tower, the next word

Names and keywords of emoji and sentences of scenes, in English and Chinese. The first three see the same 384,000 texts, by the same kind of
vocabulary of 2,048 tokens, and have 0.53 or 0.54 M parameters, so that what differs is the network and its task. CLIP's tower has a
tokenizer of its own and 2.6 M. Any of them is then the text encoder of a generator, frozen, or learning with it:

    triptych train emoji --set text_encoder=RUN/model
"""

from __future__ import annotations

from ..recipe import Data, Family, Optimizer, Recipe, Source

__all__ = ["bert_words", "gpt_words", "t5_words", "clip_words"]


def bert_words() -> Recipe:
    """BERT (arXiv 1810.04805), small: 15 % of the words are hidden and guessed."""
    return _words("bert-words", Family(name="bert", size="scenes"), "masked_words", lr=2e-3)


def gpt_words() -> Recipe:
    """GPT-2, small: each word is guessed from those before it."""
    return _words("gpt-words", Family(name="gpt", size="scenes"), "next_word", lr=2e-3)


def t5_words() -> Recipe:
    """T5's encoder (arXiv 1910.10683), small, with a decoder of one layer that says what was cut out, and is not kept."""
    return _words("t5-words", Family(name="t5", size="scenes"), "span_corruption", lr=3e-3)


def clip_words() -> Recipe:
    """CLIP's text tower (arXiv 2103.00020), small, with 4,096 tokens of its own: the next word is guessed. 96,000 texts."""
    return _words("clip-words", Family(name="clip", size="small"), "next_word", lr=1e-3, steps=750, batch=128)


def _words(name: str, family: Family, task: str, *, lr: float, steps: int = 1500, batch: int = 256) -> Recipe:
    return Recipe(
        name=name,
        panel="text_encoders",
        family=family,
        task=task,
        data=Data(sources=(Source(name="texts"),), size=0),
        optimizer=Optimizer(lr=lr, weight_decay=0.01, warmup=0.05),
        steps=steps, batch=batch, validate_every=250, save_every=500,
    )  # fmt: skip
