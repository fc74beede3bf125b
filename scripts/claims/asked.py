"""What the claims about networks share: compositions that no training showed, what a detector reads in pictures of them, and verdicts.

Held out are pairs of colour and shape, relations and numbers (`triptych.data.graph`): training shows each part of them, never the whole.
The real pictures of the same scenes say where the scale ends: what the detector misreads there, no drawing can be blamed for.

Shape legend: N pictures, C channels, H W grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from scripts.claims import chains, evidence
from triptych.contracts import Prompt
from triptych.judges.objects import Seen
from triptych.recipe import Data

__all__ = ["VERDICTS", "alike", "held_out", "judged", "read", "said_of"]

VERDICTS = {1: ("holds", "成立"), 0: ("not decided", "未能分出"), -1: ("does not hold", "不成立")}


def held_out(spec: Data, n: int, seed: int) -> tuple[Tensor, list[Prompt]]:
    """The first n scenes of the split that training never shows, [N, 3, H, W], and their prompts with `truth` and boxes."""
    return chains.real_pictures(spec, n, seed, "held_out")


def read(detector: Any, images_NCHW: Tensor) -> list[list[Seen]]:
    """What the detector sees in each picture, as the judge of objects reads it."""
    return chains.reader(detector).read(images_NCHW)


def alike(seen: Sequence[Seen], prompt: Prompt) -> float:
    """Things of the same shape and colour, asked for and seen, as a share of all that were asked for or seen; 1 = the same things."""
    asked, there = Counter((thing.shape, thing.color) for thing in prompt.truth.objects), Counter(one.kind for one in seen)
    return sum((asked & there).values()) / sum((asked | there).values())


def judged(detector: Any, images_NCHW: Tensor, prompts: Sequence[Prompt]) -> dict[str, dict[str, float]]:
    """exact: scenes that are right in all, with Wilson's interval.  things: the mean of `alike`, with that of its bootstrap."""
    share_N = np.array([alike(seen, prompt) for seen, prompt in zip(read(detector, images_NCHW), prompts, strict=True)])
    things = evidence.estimate(lambda i: share_N[i].mean(), len(share_N))
    return {"exact": chains.exact(detector, images_NCHW, prompts), "things": things}


def said_of(sides: Mapping[str, int], of: tuple[str, str]) -> tuple[str, str]:
    """One verdict over several settings, in English and Chinese. sides: setting -> 1: as claimed, 0: not told apart, -1: the reverse.

    of: what the settings are, such as "t =".
    """
    won, lost = ([name for name, side in sides.items() if side == sign] for sign in (1, -1))
    if lost:
        return f"does not hold at {of[0]} {', '.join(lost)}", f"{of[1]} {'、'.join(lost)} 时不成立"
    if won and len(won) < len(sides):
        return f"holds at {of[0]} {', '.join(won)}", f"{of[1]} {'、'.join(won)} 时成立"
    return VERDICTS[bool(won)]
