"""The pieces that measure the survey's claims, at a tiny size and through random eyes: their arithmetic, and what is said of it."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.claims import (
    detr_positions,
    evidence,
    fill_survey,
    how_many_pictures,
    mask_share,
    pretraining,
    window_attention,
    words_or_labels,
    zero_shot_or_probe,
)
from scripts.claims import right_or_wrong_captions as captions
from tests import claim_rows
from tests.claim_rows import figure
from tests.contract import tiny
from triptych.data import artwork, scenes
from triptych.eyes import Eyes
from triptych.vision import mae, swin

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return tiny.eyes()


# --- arithmetic -------------------------------------------------------------------------------------------------------------


def test_auc_by_hand() -> None:
    auc = captions.auc
    assert auc(np.array([3.0, 1.0]), np.array([2.0, 0.0])) == 0.75  # of four pairs, one the wrong way round
    assert auc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5
    rng = np.random.default_rng(0)
    true, false = rng.integers(0, 9, 40) + 1.0, rng.integers(0, 9, 30).astype(float)
    counted = np.mean([(t > f) + 0.5 * (t == f) for t in true for f in false])
    assert math.isclose(auc(true, false), counted) and math.isclose(auc(true, false) + auc(false, true), 1)


def test_spearman_is_that_of_others() -> None:
    spearman = how_many_pictures.spearman
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == 1 and math.isclose(spearman([1, 2, 3, 4], [4, 3, 2, 1]), -1)
    assert how_many_pictures.ranks(np.array([5.0, 1.0, 5.0])).tolist() == [2.5, 1.0, 2.5]
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    # two neighbours exchanged of four: 1 - 6 * 2 / (4 * 15)
    assert math.isclose(spearman([1, 2, 3, 4], [1, 3, 2, 4]), 0.8)
    stats = pytest.importorskip("scipy.stats", reason="scipy (the test extra) is the judge")
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 20), rng.normal(size=20)
    assert math.isclose(spearman(x, y), stats.spearmanr(x, y).statistic, rel_tol=1e-12)


def test_bootstrap_finds_the_spread_of_a_mean() -> None:
    """Over pictures alone the interval of a mean is 1.96 deviations wide on either side; seeds that differ make it wider."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=400)
    found = evidence.estimate(lambda i: rows[i].mean(), 400)
    assert found["value"] == pytest.approx(rows.mean()) and found["low"] < found["value"] < found["high"]
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * rows.std() / 20, rel=0.1)
    both = np.stack([rows, rows + 1, rows + 2])
    wide = evidence.estimate(lambda s, i: both[np.ix_(s, i)].mean(), 3, 400)
    assert wide["high"] - wide["low"] > 5 * (found["high"] - found["low"])
    assert evidence.interval([math.nan, 1.0, 2.0, 3.0]) == (1.0, 3.0) and math.isnan(evidence.interval([math.nan])[0])
    assert evidence.interval([1.0, *[math.inf] * 99]) == (math.inf, math.inf)


def test_where_a_probe_meets_names() -> None:
    meets = zero_shot_or_probe.meets
    assert meets(0.5, [0.6, 0.7, 0.8], (1, 2, 4)) == 0 and meets(0.9, [0.6, 0.7, 0.8], (1, 2, 4)) == math.inf
    assert math.isclose(meets(0.7, [0.6, 0.7, 0.8], (1, 2, 4)), 2)
    assert math.isclose(meets(0.75, [0.6, 0.7, 0.8], (1, 2, 4)), 2 * 2**0.5)  # half way over log2 k


def test_exponents() -> None:
    assert math.isclose(window_attention.exponent({64: 1.0, 128: 4.0, 256: 16.0}), 1)
    assert math.isclose(window_attention.exponent({64: 1.0, 128: 16.0}), 2)
    for kind, core in (("window", 1), ("global", 2)):
        found = {side: window_attention.flop(kind, side)["core"] for side in (64, 128, 256)}
        assert window_attention.exponent(found) == pytest.approx(core, abs=0.01)
    # 2 blocks, 256 patches (and ViT's class token), twice 2 L^2 D
    assert window_attention.flop("window", 64)["core"] == 2 * 4 * 256 * 64 * 96
    assert window_attention.flop("global", 64)["core"] == 2 * 4 * 257 * 257 * 96


# --- what is shown and said ---------------------------------------------------------------------------------------------------


def test_one_word_is_swapped() -> None:
    """The two captions of a pair have as many words and differ in one; of exchanged colours in two; another scene's in what there is."""
    for held_out in (False, True):
        for what, words in {"colour": (1,), "shape": (1,), "count": (1,), "binding": (2,), "left/right": (1, 2)}.items():
            for pair in captions.pairs(12, held_out, what, "en", 3):
                true, false = (said.replace("an ", "a ").split() for said in (pair.true, pair.false))
                assert len(true) == len(false), (pair.true, pair.false)
                assert sum(a != b for a, b in zip(true, false, strict=True)) in words, (pair.true, pair.false)
                assert scenes.is_held_out(pair.scene) == held_out
        for what in (*captions.SWAPS, "scene"):
            assert all(pair.true != pair.false for pair in captions.pairs(12, held_out, what, "zh", 3))
    same = captions.pairs(8, True, "language", "zh>en", 0)
    assert all(pair.true in scenes.captions(pair.scene, "zh") and pair.false in scenes.captions(pair.scene, "en") for pair in same)


def test_a_score_that_hears_parts_them(eyes: Eyes) -> None:
    class Reader:
        """Knows what each picture shows, and which words say so."""

        def image(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.arange(len(images)), len(images)).float()

        def text(self, said: list[str]) -> torch.Tensor:
            shown = self.image(torch.zeros(len(said)))
            return torch.stack([one if text in true else 1 - one for text, one in zip(said, shown, strict=True)])

    found = captions.pairs(10, True, "colour", "en", 0)
    true = {pair.true for pair in found}
    told = captions.measure(Reader(), found)
    assert told["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0} and told["wins"]["value"] == 1
    with torch.no_grad():
        random = captions.measure(eyes.sight(), found)
    assert random["n"] == 10 and 0 <= random["auc"]["low"] <= random["auc"]["high"] <= 1


def test_names_and_shots(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = zero_shot_or_probe.Class
    shapes = [classes(s, zh, lambda rng, s=s: zero_shot_or_probe.thing(s, ["red"], rng)) for s, (_, zh) in list(scenes.SHAPES.items())[:3]]
    assert classes("apple", "苹果", lambda rng: np.zeros(0)).said("en", "a picture of a {name}") == "a picture of an apple"
    assert classes("cat", "猫", lambda rng: np.zeros(0), "只").said("zh", "图中有一{measure}{name}") == "图中有一只猫"
    images, labels = zero_shot_or_probe.pictures(shapes, 2, 0, "x")
    assert images.shape == (6, 3, 128, 128) and labels.tolist() == [0, 0, 1, 1, 2, 2] and not torch.equal(images[0], images[1])
    args = type("Args", (), {"quick": True, "seed": 0, "draws": 2})
    with torch.no_grad():
        found = zero_shot_or_probe.measure(eyes.sight(), shapes, "shapes", args)
    assert found["n"] == 12 and set(found["probe"]) == {"1", "2", "4"} and set(found["zero"]["zh"]) == {"name", "template", "ensemble"}
    json.dumps(found, allow_nan=False)


def test_a_probe_learns_what_can_be_read() -> None:
    centre = torch.eye(3).double() * 5
    noise = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()
    label = torch.arange(3).repeat_interleave(4)
    assert torch.equal(zero_shot_or_probe.probe(centre[label] + 0.1 * noise, label, centre, 4), torch.arange(3))


@pytest.mark.debian
@pytest.mark.skipif(not Path(artwork.FONT).exists(), reason="needs fonts-noto-color-emoji")
def test_held_out_ideas_are_drawn() -> None:
    sets = zero_shot_or_probe.classes(0)
    assert {what: len(found) for what, found in sets.items()} == {"things": 48, "pairs": 12, "ideas": 48}
    images, _ = zero_shot_or_probe.pictures(sets["ideas"][:3], 2, 0)
    assert ((images < 0.9).any(1).flatten(1).sum(1) > 50).all()


# --- networks -----------------------------------------------------------------------------------------------------------------


def test_an_encoder_of_all_tokens_has_the_same_answer_to_give() -> None:
    """Where the encoder leaves every token alone, it does not matter that it carries more of them: only the hidden places may differ."""
    torch.manual_seed(0)
    net = mae.MAE(mae.SIZES["tiny"])
    pixels, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 16)
    for way in mask_share.WAYS.values():
        loss = way(net, pixels, noise)
        loss.backward()
        assert loss.isfinite() and net.patches.weight.grad is not None
    changed = pixels.clone()
    hidden = (noise.argsort(1).argsort(1) >= net.kept(16)).reshape(2, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    changed[hidden[:, None].expand_as(changed)] = 0.3
    seen: list[torch.Tensor] = []
    net.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for images in (pixels, changed):
        mask_share.loss_of_all(net, images, noise)
    assert torch.equal(*seen) and seen[0].shape[1] == 17, "what is hidden reached the encoder"
    counted = mask_share.flop(mae.SIZES["tiny"])
    assert counted["all"] > counted["visible"]


def test_without_its_mask_opposite_edges_meet() -> None:
    """What changes at the right edge reaches the left one in a shifted block, and with the mask it does not."""
    torch.manual_seed(0)
    block = swin.Block(16, 2, 4, 2, 2.0, True, 0.0)
    x = torch.randn(1, 8, 8, 16)
    other = x.clone()
    other[:, :, -1] += 1
    for unmasked in (False, True):
        with torch.no_grad(), window_attention.without_mask(unmasked):
            reached = (block(x)[:, :, 0] != block(other)[:, :, 0]).any()
        assert bool(reached) == unmasked
    assert swin.shift_mask((8, 8), 4, 2, torch.device("cpu")).shape[0] == 4


def test_where_the_red_thing_stands() -> None:
    asked = window_attention.Where("train").examples(24)
    assert asked.images_BCHW is not None
    for i, prompt in enumerate(asked.prompts):
        red, blue = (_middle(asked.images_BCHW[i], scenes.COLORS[color][0]) for color in ("red", "blue"))
        relation = scenes.RELATIONS[prompt.label or 0]
        axis, sign = {"left": (1, -1), "right": (1, 1), "above": (0, -1), "below": (0, 1)}[relation]
        assert sign * (red[axis] - blue[axis]) > 0
    assert {prompt.label for prompt in asked.prompts} == {0, 1, 2, 3}
    other = window_attention.Where("held_out").examples(24).images_BCHW
    assert other is not None and not torch.equal(asked.images_BCHW, other)


def _middle(image: torch.Tensor, rgb: tuple[int, int, int]) -> list[float]:
    near = ((image + 1) * 127.5 - torch.tensor(rgb)[:, None, None]).abs().amax(0) < 3
    return near.nonzero().float().mean(0).tolist()


# --- how many -----------------------------------------------------------------------------------------------------------------


def test_fewer_pictures_look_farther_away() -> None:
    rows = torch.randn(1300, 8, generator=torch.Generator().manual_seed(0))
    found = how_many_pictures.over_numbers(rows[:800], rows[800:], (50, 200, 800), "e")
    fd = {n: one["value"] for n, one in found["FD"].items()}
    assert fd["50"] > fd["200"] > fd["800"] and abs(found["FD_without_end"]["value"]) < fd["800"]
    assert found["FD"]["50"]["draws"] == 5 and found["FD"]["800"]["draws"] == 1 and "low" not in found["FD"]["800"]
    assert found["KID"]["50"]["low"] < 0 < found["KID"]["50"]["high"]


def test_agreement_knows_which_way_is_better() -> None:
    def rung(exact: float, fd: float, score: float) -> dict[str, Any]:
        told = {"exact": (exact, "higher"), "FD(e)": (fd, "lower"), "clip_score(e)": (score, "higher"), "position": (exact, "higher")}
        return {"scores": {name: {"value": value, "better": better} for name, (value, better) in told.items()}}

    found = how_many_pictures.agreements([rung(x, 1 - x, (x * 7) % 1) for x in (0.1, 0.2, 0.4, 0.6, 0.9)])
    assert set(found) == {"FD", "clip_score"} and found["FD"]["value"] == pytest.approx(1) and found["FD"]["n"] == 5
    assert found["clip_score"]["value"] < 1 and found["clip_score"]["low"] < found["clip_score"]["high"]


# --- rows -----------------------------------------------------------------------------------------------------------------------


def made_up(better: bool) -> dict[str, dict[str, Any]]:
    """Reports with the keys that rows read; `better`: the claims hold."""
    right = 0.95 if better else 0.5
    met = {"value": None, "low": None, "high": None} if better else {"value": 0.0, "low": 0.0, "high": 0.0}
    names = {language: {how: figure(right, meets=met) for how in zero_shot_or_probe.HOW} for language in ("en", "zh")}
    one_set = {"classes": 48, "chance": 1 / 48, "n": 960, "zero": names, "probe": {"1": figure(0.4), "32": figure(0.9)}}
    pairs = {language: {"n": 300, "auc": figure(right)} for language in ("en", "zh", "en>zh", "zh>en")}
    split = dict.fromkeys((*captions.SWAPS, "scene", "language"), pairs)
    ratio = {"0.75": {"ratio": 2.0, "flop_ratio": 2.4}}
    first = "0.75" if better else "0.25"
    told = {share: figure(0.6 if share == first else 0.4, classes=9) for share in ("0.25", "0.5", "0.75", "0.9")}
    arms = {share: {"probe": one, "minutes": 10.0, "pictures_per_s": 99.0} for share, one in told.items()}
    power = {"window": 1.0, "global": 2.0 if better else 1.1, "written out": 2.0}
    cost = {
        kind: {
            "sides": {"64": {"seconds": 0.1}, "512": {"seconds": 9.0 if kind != "window" else 1.0}}, "time": figure(p), "flop": p,
            "time_last_doubling": figure(p), "flop_core": p, "memory_last_doubling": None if kind == "window" else p,
        }
        for kind, p in power.items()
    }  # fmt: skip
    arm = {name: figure(0.9 if better and name == window_attention.ARMS[0] else 0.6) for name in window_attention.ARMS}
    scores = {score: {"100": figure(0.9 if better else 0.1), "10000": figure(0.1)} for score in ("FD", "precision", "recall")}
    pictures = {**scores, "KID": {"100": figure(0.0), "10000": figure(0.0)}, "FD_without_end": {"value": 0.01}}
    found = {
        "zero_shot_or_probe": {"sets": dict.fromkeys(("things", "pairs", "ideas"), one_set)},
        "right_or_wrong_captions": {"held_out": split, "trained_kinds": split},
        "mask_share": {"arms": arms, "cost": dict.fromkeys(("eyes", "MAE-B/16", "MAE-L/16"), ratio), "untrained": figure(0.3)},
        "window_attention": {"cost": cost, "shift": {"one stage": arm, "two stages": arm, "steps": 500, "seeds": 3, "chance": 0.25}},
        "no_suppression": {"found": {
            "none": {"AP": figure(0.95 if better else 0.6), "exact": figure(0.9)}, "n": 100, "doubles": figure(0.0),
            **{overlap: {"AP": figure(0.94), "exact": figure(0.9)} for overlap in ("0.7", "0.5", "0.3")},
        }},
        "vit_or_cnn": {"minutes_asked": 3, "batch": 64, "found": {"n": 100, "seeds": 1, "numbers": [500, 500_000], **{
            kind: {"flop": 23e6, "parameters": 160_000, "steps": 2500, "sets": {
                n: {"accuracy": figure(one), "stays": figure(0.9), "epochs": 1.5, "minutes": [3.2]}
                for n, one in zip(("500", "500000"), each, strict=True)
            }}
            for kind, each in {"ViT": (0.2, 0.9 if better else 0.5), "hybrid": (0.3, 0.8), "ResNet": (0.4, 0.7)}.items()
        }}},
        "panoptic": {"minutes_asked": 5, "training": {"minutes": 5.2, "pictures": 16_000}, "found": {"n": 100, **{
            way: {part: dict.fromkeys(("PQ", "SQ", "RQ"), figure(high)) for part in ("all", "things", "ground")}
            for way, high in {"masks": 0.9 if better else 0.6, "boxes": 0.7}.items()
        }}},
        "pretraining": {"minutes_asked": 3, "drawings": 6000, "found": {"classes": list("abcde"), "chance": 0.2, "arms": {
            arm: {"minutes": 3.1, "drawings": 9000, **{how: {"10": figure(high), "100": figure(high)} for how in pretraining.HOW}}
            for arm, high in {"MAE": 0.8 if better else 0.5, "supervised": 0.6, "nothing": 0.4}.items()
        }}},
        "words_or_labels": {"minutes_asked": 3, "found": {
            arm: {
                **{which: {"pair": figure(0.9 if better and arm == "words" else 0.5)} for which in ("unseen", "shown")},
                **({"minutes": 3.0, "pictures": 9000} if arm != "embedded" else {}),
            }
            for arm in words_or_labels.ARMS
        }},
        "detr_positions": {"minutes_asked": 1.5, "found": {"n": 100, "seeds": 2, "arms": {
            arm: {
                "AP": figure(0.7 if better and arm == "2-D" else 0.4), "exact": figure(0.5), "pictures": 40_000,
                "runs": [{"minutes": 1.5}, {"minutes": 1.6}],
            }
            for arm in detr_positions.ARMS
        }}},
        "how_many_pictures": {
            "real": pictures, "model": pictures, "references": 10_000, "eyes": {"model": {"name": "emoji"}},
            "agreement": {"FD": figure(0.8), "KID": figure(0.1, -0.5, 0.6)},
            "ladder": [{"scores": {"exact": {"value": value}}} for value in (0.0, 0.8)],
        },
    }  # fmt: skip
    return {name: {**report, "quick": False} for name, report in found.items()}


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("name", fill_survey.SCRIPTS)
def test_rows_say_what_was_found(name: str, better: bool) -> None:
    """Every script of the survey, of figures that one of these files makes up."""
    modules = [importlib.import_module(f"tests.{path.stem}") for path in sorted(ROOT.glob("tests/test_claims*.py"))]
    (report,) = [found[name] for one in modules if hasattr(one, "made_up") and name in (found := one.made_up(better))]
    claim_rows.check(name, report, better)


def test_numbers_are_told_with_their_intervals() -> None:
    assert evidence.around(figure(0.914, 0.88, 0.94)) == "0.91 [0.88, 0.94]" and evidence.percent(figure(0.5)) == "50.0 % [48.0, 52.0]"
    with pytest.raises(ValueError, match="neither"):
        evidence.line(evidence.Row("a", "b", "c", "d | e"))
    assert "With people: not measured" in how_many_pictures.row(made_up(True)["how_many_pictures"])["en"].verdict


def test_the_survey_is_filled_and_filled_again(tmp_path: Path) -> None:
    for name in ("survey.md", "survey.zh.md"):  # as they are, without what may have been filled in
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        before, _, rest = page.partition(fill_survey.FIRST)
        (tmp_path / name).write_text(before + rest.partition(fill_survey.LAST)[2], encoding="utf-8")
    plain = {name: (tmp_path / name).read_text(encoding="utf-8") for name in ("survey.md", "survey.zh.md")}
    folder = tmp_path / "results" / "claims"
    folder.mkdir(parents=True)
    reports = made_up(True)
    for name in fill_survey.SCRIPTS[:2]:
        (folder / f"{name}.json").write_text(json.dumps(reports[name]))
    (folder / "mask_share.json").write_text(json.dumps(reports["mask_share"] | {"quick": True}))
    assert len(fill_survey.fill(tmp_path, write=False)) == 2
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in plain} == plain
    fill_survey.fill(tmp_path)
    for name, was in plain.items():
        page = (tmp_path / name).read_text(encoding="utf-8")
        assert page.count(fill_survey.FIRST) == page.count(fill_survey.LAST) == 1
        inside = page.partition(fill_survey.FIRST)[2].partition(fill_survey.LAST)[0]
        assert inside.count("\n| 0") == 2 and "mask_share" not in inside
        assert page.index(fill_survey.LAST) < page.rindex("\n## ")
        assert set(was.splitlines()) <= set(page.splitlines()), "nothing else was touched"
    assert fill_survey.fill(tmp_path) == []  # the same again
    (folder / "mask_share.json").write_text(json.dumps(reports["mask_share"]))
    assert len(fill_survey.fill(tmp_path)) == 2 and "mask_share" in (tmp_path / "survey.md").read_text()
    for path in folder.iterdir():
        path.unlink()
    fill_survey.fill(tmp_path)  # no claims: markers alone
    assert f"{fill_survey.FIRST}\n{fill_survey.LAST}" in (tmp_path / "survey.zh.md").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_filled_is_left_alone() -> None:
    first, last = fill_survey.FIRST, fill_survey.LAST
    for page in ("# no table\n", f"{last}\n{first}\n", f"{first}\n", "## Claims shown\n\n## Next\n\n| a |\n"):
        with pytest.raises(ValueError, match=r"survey\.md"):
            fill_survey.filled(page, {}, "en")


def test_a_report_holds_what_a_reader_needs(tmp_path: Path, eyes: Eyes, capsys: pytest.CaptureFixture[str]) -> None:
    args = evidence.options("x").parse_args(["--quick", "--out", str(tmp_path), "--seed", "7"])
    report = evidence.begin(args, eyes=eyes) | made_up(True)["mask_share"] | {"quick": args.quick}
    evidence.finish(report, args, "mask_share", mask_share.row)
    told = json.loads((tmp_path / "mask_share.json").read_text())
    assert told["seed"] == 7 and told["quick"] and told["eyes"]["eyes"]["name"] == "tiny-eyes" and "minutes" in told
    assert "node" not in told["machine"] and told["machine"]["threads"] == torch.get_num_threads()
    assert capsys.readouterr().out.count("\n| 000 |") == 2
    with pytest.raises(ValueError, match="not JSON compliant"):
        evidence.finish(evidence.begin(args) | {"x": math.inf}, args, "x", mask_share.row)
