"""A class number as panel 1 (ADM, arXiv 2105.05233; DiT, arXiv 2212.09748), and the panel that says nothing at all.

Nothing is computed here but a number: the network embeds it. The number is `Prompt.label`, or that of the class whose name occurs in
`Prompt.text`; where there is neither, or no name fits, it is num_labels: "no class", which is also what the unconditional branch hears.

Without any class (`Config()` of size "unconditional") every port is silent: an unconditional network has no parameters for a
condition, and the empty Condition passes through training, guidance and sampling as any other.

Shape legend: B batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec, Prompt, Rng

__all__ = ["ClassLabel", "Config", "SIZES", "match"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """labels: a class's names, English and Chinese, "|" between them: "cat|猫".  num_labels: how many classes, where they have no names.

    Both empty: no class, no port.
    """

    labels: tuple[str, ...] = ()
    num_labels: int = 0


_CIFAR10 = (
    "airplane|飞机", "automobile|car|汽车", "bird|鸟", "cat|猫", "deer|鹿", "dog|狗", "frog|青蛙", "horse|马", "ship|船", "truck|卡车",
)  # fmt: skip

SIZES = {
    "tiny": Config(labels=("circle|圆形", "square|方块", "triangle|三角形", "star|星形", "heart|心形", "ring|圆环"), num_labels=10),
    "unconditional": Config(),
    "cifar10": Config(labels=_CIFAR10),
    "imagenet": Config(num_labels=1000),
}


class ClassLabel(nn.Module):
    """label_B, int64 in [0, num_labels]. No parameters.

    Raises ValueError for a name that is empty, and for fewer classes than names.
    """

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.config = config
        if config.num_labels and config.num_labels < len(config.labels):
            raise ValueError(f"num_labels {config.num_labels} and {len(config.labels)} names: leave num_labels at 0, or name fewer classes")
        self.num_labels = config.num_labels or len(config.labels)
        self.reads = frozenset({"text", "label"}) if self.num_labels else frozenset()
        self.gives = ConditionSpec(num_labels=self.num_labels)
        self.names = _patterns(config.labels)

    def encode(
        self, prompts: Sequence[Prompt | str], *, encode_image: Callable[[Tensor], Tensor] | None = None, rng: Rng | None = None
    ) -> Condition:
        """label_B of B prompts; an empty Condition where there are no classes. Raises ValueError for a label that is no class."""
        return self._said([self.label_of(prompt) for prompt in prompts])

    def null(self, prompts: Sequence[Prompt | str]) -> Condition:
        """ "no class", for each of the prompts."""
        return self._said([self.num_labels] * len(prompts))

    def label_of(self, prompt: Prompt | str) -> int:
        """The class's number; num_labels where no class is said."""
        said = Prompt(text=prompt) if isinstance(prompt, str) else prompt
        if not self.num_labels:
            return 0  # nobody listens
        if said.label is None:
            found = match(self.names, said.text)
            return self.num_labels if found is None else found
        if not 0 <= said.label <= self.num_labels:
            raise ValueError(f"label {said.label}: there are 0..{self.num_labels - 1}, and {self.num_labels} for no class")
        return said.label

    def _said(self, labels: list[int]) -> Condition:
        return Condition(label_B=torch.tensor(labels, dtype=torch.int64)) if self.num_labels else Condition()


def match(names: Sequence[tuple[int, str, re.Pattern[str]]], text: str) -> int | None:
    """The class of the longest name that occurs in the text, of equals that which comes first; None if none does."""
    found = [(-len(name), hit.start(), label) for label, name, pattern in names if (hit := pattern.search(text))]
    return min(found)[2] if found else None


def _patterns(labels: Sequence[str]) -> list[tuple[int, str, re.Pattern[str]]]:
    """(class, name, what finds it): a name in letters with spaces stands between word borders, perhaps in the plural; others anywhere."""
    patterns = []
    for label, every in enumerate(labels):
        for name in (one.strip() for one in every.split("|")):
            if not name:
                raise ValueError(f"labels.{label} = {every!r} holds an empty name; write names with '|' between them, as 'cat|猫'")
            if name.isascii():
                stem, ending = (name[:-1], "(y|ies)") if name[-1:] == "y" else (name, "(s|es)?")
                source = rf"(?<!\w){re.escape(stem)}{ending}(?!\w)"
            else:
                source = re.escape(name)
            patterns.append((label, name, re.compile(source, re.IGNORECASE | re.ASCII)))
    return patterns
