"""The judge of detectors against a slow one written from COCO's definition, and against cases that were counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.contracts import Prompt
from triptych.data import scenes
from triptych.data.graph import CLASSES, COLORS, Object, Scene
from triptych.judges._samples import counts
from triptych.judges.detection import Config, Detection, panoptic_quality

Said = tuple[float, int, tuple[float, float, float, float]]  # score, class, box
There = tuple[int, tuple[float, float, float, float]]

LEFT, RIGHT = (0.25, 0.5, 0.2, 0.2), (0.75, 0.5, 0.2, 0.2)
NEAR_LEFT = (0.27, 0.5, 0.2, 0.2)  # shares 0.18 of 0.22 with LEFT: IoU 9/11, right up to 0.80
K = 4


class Told:
    """A detector that says what it was told to say of each picture in turn."""

    name = "told"

    def __init__(self, said: Sequence[Sequence[Said]], colors: Sequence[Sequence[int]] | None = None, queries: int = 0) -> None:
        self.said, self.told, self.queries = said, colors, queries or max(1, *(len(one) for one in said), 1)

    def detect(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        probability_BQC = torch.zeros(len(self.said), self.queries, K + 1, dtype=torch.float64)
        probability_BQC[..., -1] = 1
        boxes_BQ4 = torch.full((len(self.said), self.queries, 4), 0.01, dtype=torch.float64)
        for i, one in enumerate(self.said):
            for q, (score, number, box) in enumerate(one):
                probability_BQC[i, q, number], probability_BQC[i, q, -1] = score, 1 - score
                boxes_BQ4[i, q] = torch.tensor(box, dtype=torch.float64)
        return (probability_BQC + 1e-12).log(), boxes_BQ4

    def colors(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.told is not None
        color_BQC = torch.zeros(len(self.said), self.queries, 3)
        for i, row in enumerate(self.told):
            for q, color in enumerate(row):
                color_BQC[i, q, color] = 5
        return (*self.detect(images_BCHW), color_BQC)


def asked(there: Sequence[There], colors: Sequence[str | None] = ()) -> Prompt:
    objects = tuple(Object(shape="star", color=c, size="", cx=0, cy=0, r=0) for c in colors)
    boxes = torch.tensor([[number, *box] for number, box in there], dtype=torch.float64).reshape(-1, 5)
    return Prompt(text="x", boxes_N5=boxes, truth=Scene(objects=objects))


def judged(said: Sequence[Sequence[Said]], there: Sequence[Sequence[There]], **config: Any) -> dict[str, float]:
    judge = Detection(Config(**{"resamples": 0, **config}), eyes=Told(said))
    judge.add(torch.zeros(len(said), 3, 8, 8), [asked(one) for one in there])
    return judge.result()


# --- average precision, from the definition ---------------------------------------------------------------------------------


def shared(a: Sequence[float], b: Sequence[float]) -> float:
    across = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    down = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    both = max(0.0, across) * max(0.0, down)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def slow(said: Sequence[Sequence[Said]], there: Sequence[Sequence[There]]) -> dict[str, float]:
    """AP, AP50, AP75, AR by loops: nothing is shared with the judge but the definition."""
    classes = sorted({number for one in there for number, _ in one})
    precisions: dict[tuple[int, int], float] = {}
    recalls: list[float] = []
    for number in classes:
        for step in range(10):
            least, row, total = 0.5 + 0.05 * step, [], 0
            for i, (detections, objects) in enumerate(zip(said, there, strict=True)):
                mine = sorted((d for d in detections if d[1] == number), key=lambda d: -d[0])[:100]
                free = [box for other, box in objects if other == number]
                total += len(free)
                for place, (score, _, box) in enumerate(mine):
                    near = [one for one in free if shared(box, one) >= least - 1e-12]
                    if near:
                        free.remove(max(near, key=lambda one: shared(box, one)))
                    row.append((-score, i, place, bool(near)))
            found, curve = 0, []
            for rank, (_, _, _, right) in enumerate(sorted(row), start=1):
                found += right
                curve.append((found / total, found / rank))
            wanted = [max((p for r, p in curve if r >= hundredth / 100 - 1e-12), default=0.0) for hundredth in range(101)]
            precisions[number, step] = sum(wanted) / 101
            recalls.append(found / total)
    out = {"AR": sum(recalls) / len(recalls)}
    for name, steps in (("AP", range(10)), ("AP50", [0]), ("AP75", [5])):
        values = [p for (_, step), p in precisions.items() if step in steps]
        out[name] = sum(values) / len(values)
    return out


def random_case(seed: int, pictures: int = 8, queries: int = 9, ties: bool = False) -> tuple[list[list[Said]], list[list[There]]]:
    """Class 3 never occurs and is seen all the same; some pictures hold nothing; detections lie near objects, or anywhere."""
    random = torch.Generator().manual_seed(seed)
    said: list[list[Said]] = []
    there: list[list[There]] = []
    for _ in range(pictures):
        boxes = torch.rand(int(torch.randint(0, 5, (), generator=random)), 4, generator=random).double() * 0.4 + 0.2
        numbers = torch.randint(0, 3, (len(boxes),), generator=random).tolist()
        there.append([(number, tuple(box)) for number, box in zip(numbers, boxes.tolist(), strict=True)])
        one: list[Said] = []
        for _ in range(queries):
            number, box = int(torch.randint(0, K, (), generator=random)), torch.rand(4, generator=random).double() * 0.4 + 0.2
            if len(boxes) and torch.rand((), generator=random) < 0.8:
                j = int(torch.randint(0, len(boxes), (), generator=random))
                number, box = numbers[j], boxes[j] + 0.03 * torch.randn(4, generator=random).double()
            score = float(torch.rand((), generator=random)) * 0.4 + 0.55
            one.append((round(score, 1) if ties else score, number, tuple(box.tolist())))  # type: ignore[arg-type]
        said.append(one)
    return said, there


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_cocos(seed: int, ties: bool) -> None:
    said, there = random_case(seed, ties=ties)
    found, wanted = judged(said, there), slow(said, there)
    assert 0.05 < wanted["AP"] < 0.95
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_of_a_class_a_hundred_detections_a_picture_count() -> None:
    wrong: list[Said] = [(0.9, 0, RIGHT)] * 99 + [(0.9, 1, RIGHT)] * 99
    assert judged([[*wrong, (0.5, 0, LEFT)]], [[(0, LEFT)]])["AR"] == 1
    assert judged([[*wrong, (0.9, 0, RIGHT), (0.5, 0, LEFT)]], [[(0, LEFT)]])["AR"] == 0


def test_how_pictures_come_does_not_matter() -> None:
    said, there = random_case(3)
    whole, pieces = judged(said, there, resamples=20), Detection(Config(resamples=20), eyes=None)
    for i in range(len(said)):
        pieces.eyes = Told([said[i]])
        pieces.add(torch.zeros(1, 3, 8, 8), [asked(there[i])])
    assert pieces.result() == pytest.approx(whole)


# --- by hand ----------------------------------------------------------------------------------------------------------------


def test_perfect() -> None:
    out = judged([[(0.9, 0, LEFT), (0.8, 1, RIGHT)], [(0.7, 1, LEFT)]], [[(0, LEFT), (1, RIGHT)], [(1, LEFT)]])
    assert [out[name] for name in ("AP", "AP50", "AP75", "AR", "exact", "class", "matched", "iou")] == pytest.approx([1.0] * 8)
    assert out["place"] == pytest.approx(0)
    assert (out["n"], out["n_objects"], out["n_classes"]) == (2, 3, 2)
    assert "color" not in out


def test_a_double_costs_precision_and_not_recall() -> None:
    # one class, two objects: right, double, right. Recall 1/2 at precision 1, recall 1 at 2/3: 51 of the 101 points, and 50.
    out = judged([[(0.9, 0, LEFT), (0.8, 0, LEFT), (0.7, 0, RIGHT)]], [[(0, LEFT), (0, RIGHT)]])
    assert out["AP"] == out["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert out["AR"] == 1
    assert out["exact"] == 0


def test_a_double_that_is_the_least_sure_costs_nothing_but_exactness() -> None:
    out = judged([[(0.9, 0, LEFT), (0.8, 0, LEFT)]], [[(0, LEFT)]])
    assert (out["AP"], out["exact"]) == (1, 0)


def test_the_surer_detection_has_the_object_though_another_fits_better() -> None:
    # the surer takes the object where 9/11 is enough (0.50..0.80), and the other comes second; above, the surer is wrong and comes first
    out = judged([[(0.9, 0, NEAR_LEFT), (0.8, 0, LEFT)]], [[(0, LEFT)]])
    assert out["AP50"] == out["AP75"] == 1
    assert out["AP"] == pytest.approx((7 * 1 + 3 * 1 / 2) / 10)
    assert out["iou"] == pytest.approx(9 / 11)
    assert out["place"] == pytest.approx(0.02)


def test_wrong_class() -> None:
    out = judged([[(0.9, 1, LEFT)]], [[(0, LEFT)]])
    assert (out["AP"], out["AR"], out["class"], out["matched"], out["exact"]) == (0, 0, 0, 1, 0)


def test_half_of_the_objects() -> None:
    out = judged([[(0.9, 0, LEFT)]], [[(0, LEFT), (0, RIGHT)]])
    assert out["AP"] == pytest.approx(51 / 101)  # recall 0, 0.01, ..., 0.50
    assert (out["AR"], out["matched"], out["class"], out["exact"]) == (0.5, 0.5, 1, 0)


def test_a_class_that_never_occurs_is_no_class() -> None:
    assert judged([[(0.9, 0, LEFT), (0.99, 3, RIGHT)]], [[(0, LEFT)]])["AP"] == 1


def test_what_is_invented_in_an_empty_picture_counts() -> None:
    said, there = [[(0.9, 0, LEFT)], [(0.95, 0, LEFT)]], [[(0, LEFT)], []]
    out = judged(said, there)
    assert (out["AP"], out["exact_0"], out["exact_1"], out["exact"]) == (0.5, 0, 1, 0.5)


def test_nothing_there_and_nothing_said() -> None:
    out = judged([[], []], [[], []], resamples=5)
    assert (out["n"], out["n_objects"], out["exact"], out["exact_0"]) == (2, 0, 1, 1)
    assert not {"AP", "AR", "class", "place", "matched"} & set(out)


def test_no_detection_at_all() -> None:
    out = judged([[], []], [[(0, LEFT)], [(1, RIGHT)]], resamples=5)
    assert (out["AP"], out["AR"], out["exact"], out["matched"]) == (0, 0, 0, 0)
    assert not {"class", "place", "iou"} & set(out)


def test_average_precision_hears_whispers_and_exact_does_not() -> None:
    out = judged([[(0.9, 0, LEFT), (0.2, 0, RIGHT)]], [[(0, LEFT), (0, RIGHT)]])
    assert (out["AP"], out["exact"]) == (1, 0)
    assert judged([[(0.9, 0, LEFT), (0.2, 0, RIGHT)]], [[(0, LEFT), (0, RIGHT)]], threshold=0.1)["exact"] == 1


def test_exact_gives_each_object_its_own_detection() -> None:
    wide = (0.28, 0.5, 0.26, 0.2)  # overlaps both by more than a half; the other fits LEFT alone
    two: list[There] = [(0, LEFT), (0, (0.32, 0.5, 0.2, 0.2))]
    assert judged([[(0.9, 0, wide), (0.8, 0, (0.2, 0.5, 0.2, 0.2))]], [two])["exact"] == 1
    assert judged([[(0.9, 0, wide), (0.8, 0, (0.9, 0.5, 0.2, 0.2))]], [two])["exact"] == 0


def test_by_number_and_by_class() -> None:
    judge = Detection(Config(resamples=0), eyes=Told([[(0.9, 0, LEFT)], [(0.9, 0, LEFT)]]), classes=("a", "b", "c", "d"))
    judge.add(torch.zeros(2, 3, 8, 8), [asked([(0, LEFT)]), asked([(0, LEFT), (1, RIGHT)])])
    assert judge.by_class() == {"b": 0, "a": 1}
    assert judge.each() == {"exact": [1.0, 0.0]}
    out = judge.result()
    assert (out["exact_1"], out["exact_1_n"], out["exact_2"], out["exact_2_n"], out["AP"]) == (1, 1, 0, 1, 0.5)
    assert out["exact_low"] < 0.5 < out["exact_high"]


# --- colours ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "color", "none", "exact"),
    [([0, 2], 1, 1, 1), ([1, 2], 0, 1, 0), ([0, 1], 1, 0, 0), ([2, 2], 0, 1, 0)],
)
def test_colours(told: list[int], color: int, none: int, exact: int) -> None:
    """Of a red thing and of one that has no colour; 2 = none."""
    judge = Detection(Config(resamples=0), eyes=Told([[(0.9, 0, LEFT), (0.8, 1, RIGHT)]], [told]), colors=("red", "blue"))
    judge.add(torch.zeros(1, 3, 8, 8), [asked([(0, LEFT), (1, RIGHT)], ["red", None])])
    out = judge.result()
    assert (out["color"], out["no color"], out["exact"], out["class"], out["AP"]) == (color, none, exact, 1, 1)


def test_real_scenes_read_right_are_exact() -> None:
    class Reads:
        """What a detector of the scenes would say that makes no mistake, of objects in turned order."""

        name = "reads"

        def colors(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits_BQC, boxes_BQ4, color_BQC = torch.zeros(20, 6, 49), torch.full((20, 6, 4), 0.5), torch.zeros(20, 6, 11)
            logits_BQC[..., -1] = 9
            for i, prompt in enumerate(prompts):
                assert prompt.boxes_N5 is not None
                for q, (row, one) in enumerate(zip(prompt.boxes_N5.flip(0), prompt.truth.objects[::-1], strict=True)):
                    logits_BQC[i, q, int(row[0])], boxes_BQ4[i, q] = 15, row[1:]
                    color_BQC[i, q, list(COLORS).index(one.color) if one.color else 10] = 3
            return logits_BQC, boxes_BQ4, color_BQC

    rows = [scenes.ScenesSource(size=16, cutouts=False).row(0, position) for position in range(20)]
    prompts = [row.prompt for row in rows]
    judge = Detection(Config(resamples=5), eyes=Reads(), classes=CLASSES, colors=tuple(COLORS))
    judge.add(torch.zeros(20, 3, 16, 16), prompts)
    out = judge.result()
    assert [out[name] for name in ("AP", "AR", "class", "color", "exact")] == pytest.approx([1.0] * 5)
    assert out["n_objects"] > 20


# --- doubles, intervals, errors ---------------------------------------------------------------------------------------------


def test_suppression_takes_the_double_and_nothing_else() -> None:
    said: list[list[Said]] = [[(0.9, 0, LEFT), (0.8, 0, NEAR_LEFT), (0.7, 1, LEFT), (0.6, 0, RIGHT)]]
    there: list[list[There]] = [[(0, LEFT), (1, LEFT), (0, RIGHT)]]
    plain, without = judged(said, there), judged(said, there, overlap_nms=0.5)
    assert (without["AP"], without["AR"], without["exact"]) == (1, 1, 1)
    assert (plain["AP"], plain["exact"]) == (pytest.approx((1 + (51 + 50 * 2 / 3) / 101) / 2), 0)
    assert judged(said, there, overlap_nms=0.9)["AP"] == plain["AP"]  # 9/11 is less


@pytest.mark.parametrize("pictures", [3, 6])  # of three, a resample may miss a class: then that is none of its classes
def test_a_resample_is_what_repeated_pictures_would_give(pictures: int) -> None:
    said, there = random_case(5, pictures=pictures)
    there[0].append((3, LEFT))
    out, drawn = judged(said, there, resamples=12, seed=4), counts(pictures, 12, 4)
    assert any(row[0] == 0 for row in drawn)
    again = [[i for i, times in enumerate(row.tolist()) for _ in range(times)] for row in drawn]
    each = [slow([said[i] for i in row], [there[i] for i in row]) for row in again]
    for name in ("AP", "AP50", "AR"):
        half = 1.959964 * torch.tensor([one[name] for one in each], dtype=torch.float64).std().item()
        assert out[f"{name}_low"] == pytest.approx(max(0, out[name] - half), abs=1e-9)
        assert out[f"{name}_high"] == pytest.approx(min(1, out[name] + half), abs=1e-9)


def test_intervals_hold_their_values_and_narrow() -> None:
    said, there = random_case(1, pictures=80)
    few, many = judged(said[:10], there[:10], resamples=100), judged(said, there, resamples=100)
    for name in ("AP", "AP50", "AP75", "AR", "place", "iou", "class", "matched", "exact"):
        assert 0 <= many[f"{name}_low"] <= many[name] <= many[f"{name}_high"] <= 1
    assert many["AP_high"] - many["AP_low"] < 0.7 * (few["AP_high"] - few["AP_low"])
    assert many["AP_low"] < many["AP"] < many["AP_high"]
    assert judged(said, there, resamples=100) == many
    assert many["resamples"] == 100
    assert "AP_low" not in judged(said[:1], there[:1], resamples=100)


def test_errors_say_what_to_do() -> None:
    eyes, picture = Told([[(0.9, 0, LEFT)]], [[0]]), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="1 pictures, but 2 prompts"):
        Detection(Config(), eyes=eyes).add(picture, [asked([]), asked([])])
    with pytest.raises(ValueError, match="says no boxes"):
        Detection(Config(), eyes=eyes).add(picture, [Prompt(text="a cat")])
    with pytest.raises(ValueError, match="knows 4 classes, 2 were named"):
        Detection(Config(), eyes=eyes, classes=("a", "b")).add(picture, [asked([])])
    with pytest.raises(ValueError, match=r"classes 7\.\.7, but told knows 0\.\.3"):
        Detection(Config(), eyes=eyes).add(picture, [asked([(7, LEFT)])])
    with pytest.raises(ValueError, match="knows 2 colours, 1 were named"):
        Detection(Config(), eyes=eyes, colors=("red",)).add(picture, [asked([(0, LEFT)], ["red"])])
    with pytest.raises(ValueError, match="1 boxes, but colours of 0 objects"):
        Detection(Config(), eyes=eyes, colors=("red", "blue")).add(picture, [asked([(0, LEFT)])])
    with pytest.raises(ValueError, match="not finite"):
        Detection(Config(), eyes=Told([[(0.9, 0, (float("nan"), 0, 1, 1))]])).add(picture, [asked([])])
    with pytest.raises(ValueError, match="no pictures"):
        Detection(Config(), eyes=eyes).result()


# --- panoptic quality -------------------------------------------------------------------------------------------------------


def strip(start: int, end: int) -> Tensor:
    """Pixels start..end of a picture of 2 x 10."""
    return ((torch.arange(20) >= start) & (torch.arange(20) < end)).view(2, 10)


def quality(said: Sequence[tuple[int, Tensor]], there: Sequence[tuple[int, Tensor]]) -> dict[str, float]:
    def apart(parts: Sequence[tuple[int, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        masks = torch.stack([mask for _, mask in parts]) if parts else torch.zeros(0, 2, 10, dtype=torch.bool)
        return [masks], [torch.tensor([number for number, _ in parts], dtype=torch.int64)]

    return panoptic_quality(*apart(said), *apart(there))


def test_panoptic_quality_by_hand() -> None:
    there = [(0, strip(0, 10)), (1, strip(10, 20))]
    assert quality(there, there) == {"PQ": 1, "SQ": 1, "RQ": 1, "n_classes": 2}
    # class 0: 8 of 10 pixels, and something invented: IoU 0.8, TP 1, FP 1; class 1: missed
    out = quality([(0, strip(0, 8)), (0, strip(12, 14))], there)
    assert out == pytest.approx({"PQ": 0.8 / 1.5 / 2, "SQ": 0.8 / 2, "RQ": 1 / 1.5 / 2, "n_classes": 2})
    # IoU of exactly a half is no match: one too many and one too few; class 1 is invented
    out = quality([(0, strip(0, 5)), (1, strip(10, 20))], [(0, strip(0, 10))])
    assert out == {"PQ": 0, "SQ": 0, "RQ": 0, "n_classes": 2}
    # the right mask under a wrong name
    assert quality([(1, strip(0, 10))], [(0, strip(0, 10))])["PQ"] == 0


def test_a_pixel_belongs_to_the_surer_mask() -> None:
    there = [(0, strip(0, 10))]
    late = [(0, strip(0, 10)), (1, strip(0, 10))]
    assert quality(late, there) == {"PQ": 1, "SQ": 1, "RQ": 1, "n_classes": 1}  # the second keeps no pixel: it is nothing
    assert quality(late[::-1], there)["PQ"] == 0
    out = quality([(1, strip(8, 20)), (0, strip(0, 10)), (0, strip(0, 9))], there)  # eight pixels are left to the second, none to the third
    assert out == pytest.approx({"PQ": 0.4, "SQ": 0.4, "RQ": 0.5, "n_classes": 2})


def test_panoptic_quality_sums_over_pictures_before_it_divides() -> None:
    masks, empty = strip(0, 10)[None], torch.zeros(0, 2, 10, dtype=torch.bool)
    one, none = torch.tensor([0]), torch.zeros(0, dtype=torch.int64)
    out = panoptic_quality([masks, empty, masks], [one, none, one], [masks, masks, empty], [one, one, none])
    assert out == {"PQ": 0.5, "SQ": 1.0, "RQ": 0.5, "n_classes": 1}  # TP, FN, FP
    assert panoptic_quality([empty], [none], [empty], [none]) == {"n_classes": 0}
    with pytest.raises(ValueError, match="true masks overlap"):
        panoptic_quality([empty], [none], [torch.cat([masks, masks])], [torch.tensor([0, 1])])
