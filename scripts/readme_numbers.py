"""Write the tables of the embedded model and of the eyes into both READMEs, from their cards and from what was measured.

    python scripts/measure_emoji.py && python scripts/measure_eyes.py
    triptych judge emoji --n 400 --report out && cp out/judgement.json docs/results/emoji-judged.json
    python scripts/readme_numbers.py

Everything between the two `numbers` marks is replaced: no figure there is typed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACES = ("text_encoder", "generator", "decoder")
WORDS = {
    "en": {
        "text_encoder": "text encoder", "generator": "generator", "decoder": "decoder", "panel": "panel", "family": "family",
        "parameters": "parameters", "size": "MB", "hours": "hours of training", "measure": "measure", "reached": "reached", "n": "N",
        "interval": "95 % interval", "five": "among the nearest five",
        "names_en": "nearest of all {all} pictures is the right one, English names",
        "names_zh": "the same, Chinese names", "combinations": "held-out combinations: among the nearest five",
        "combinations_copier": "the same for a copier of the nearest training caption",
        "scenes_seen": "two objects: both colours, right order", "scenes_held_out": "the same, compositions never shown",
        "exact": "scenes: every shape, colour, number and place right, as the detector reads it (real pictures: {real:.0f} %)",
        "clip": "eyes: CLIP", "detr": "eyes: detector of scenes",
        "found_en": "eyes: held-out combination found among all {all} pictures within five, English", "found_zh": "the same, Chinese",
        "ideas": "eyes: a single idea never seen, found among {n} such within five, English (chance {chance:.0f} %)",
        "read": "eyes: every object of a held-out scene read right (class, colour, place)",
        "note": "Trained on {hardware}. Distances are plain, between 16 x 16 RGB averages; "
        "`scripts/measure_emoji.py` and `scripts/measure_eyes.py` measure all of it again (seed {seed}).",
    },
    "zh": {
        "text_encoder": "文本编码器", "generator": "生成器", "decoder": "解码器", "panel": "面板", "family": "家族",
        "parameters": "参数", "size": "MB", "hours": "训练小时数", "measure": "指标", "reached": "结果", "n": "N", "interval": "95 % 区间",
        "names_en": "在全部 {all} 张图中最近的一张就是正确的那张，英文名称", "five": "在最近的五张之内",
        "names_zh": "同上，中文名称", "combinations": "留出的组合：在最近的五张之内",
        "combinations_copier": "同上，只会照抄最近训练标题的程序",
        "scenes_seen": "两个物体：两种颜色都对，次序也对", "scenes_held_out": "同上，训练中从未出现的组合",
        "exact": "一到四个图形的场景：形状、颜色、数目、位置全对，由检测器来读（真实图片 {real:.0f} %）",
        "clip": "眼睛：CLIP", "detr": "眼睛：场景检测器",
        "found_en": "眼睛：留出的组合，在全部 {all} 张图中排进前五，英文", "found_zh": "同上，中文",
        "ideas": "眼睛：从未见过的单个概念，在 {n} 个同类中排进前五，英文（随机 {chance:.0f} %）",
        "read": "眼睛：留出场景中的每个物体都读对（类别、颜色、位置）",
        "note": "训练硬件：{hardware}。距离是 16 x 16 RGB 平均图之间的普通距离；"
        "`scripts/measure_emoji.py` 和 `scripts/measure_eyes.py` 可重新测得全部数字（种子 {seed}）。",
    },
}  # fmt: skip


def table(language: str) -> str:
    w, report = WORDS[language], json.loads((ROOT / "docs/results/emoji.json").read_text())
    seen = json.loads((ROOT / "docs/results/eyes.json").read_text())
    weights = ROOT / "triptych/weights"
    lines = [f"| {w['panel']} | {w['family']} | {w['parameters']} | {w['size']} | {w['hours']} |", "|---|---|---|---|---|"]
    panels = [(place, weights / "emoji" / place) for place in PLACES]
    panels += [("clip", weights / "triptych-eyes-v1/vision"), ("detr", weights / "triptych-detector-v1/vision")]
    for name, folder in panels:
        card, config = (json.loads((folder / f"{file}.json").read_text()) for file in ("card", "config"))
        megabytes = (folder / "model.safetensors").stat().st_size / 1e6
        if name == "generator":
            w = w | {"note": w["note"].format(hardware=card["hardware"], seed=report["seed"])}
        lines.append(f"| {w[name]} | `{config['family']}` | {card['parameters']:,} | {megabytes:.2f} | {card['hours']:.2f} |")

    def row(label: str, key: str, measure: str = "top1", found: dict | None = None) -> str:
        found = found or report[key]
        interval = f"{100 * found[measure + '_low']:.1f} - {100 * found[measure + '_high']:.1f}"
        return f"| {label} | {100 * found[measure]:.1f} % | {interval} | {int(found['n'])} |"

    lines += ["", f"| {w['measure']} | {w['reached']} | {w['interval']} | {w['n']} |", "|---|---|---|---|"]
    for key in ("names_en", "names_zh"):
        lines += [row(w[key].format(all="3,635"), key), row(w["five"], key, "top5")]
    lines += [row(w["combinations"], "combinations", "top5"), row(w["combinations_copier"], "combinations_copier", "top5")]
    lines += [row(w[key], key, "right") for key in ("scenes_seen", "scenes_held_out")]
    judged = json.loads((ROOT / "docs/results/emoji-judged.json").read_text())
    exact = judged["models"][0]["scores"]["exact"]
    exact = {"exact": exact["value"], "exact_low": exact["low"], "exact_high": exact["high"], "n": exact["n"]}
    lines.append(row(w["exact"].format(real=100 * judged["measures"]["exact"]["ceiling"]), "", "exact", exact))
    clip, ideas = seen["clip"], seen["clip"]["ideas_en"]
    lines += [row(w[f"found_{one}"].format(all="3,635"), "", "top5", clip[f"combinations_{one}_of_all"]) for one in ("en", "zh")]
    lines.append(row(w["ideas"].format(n=ideas["n"], chance=100 * ideas["chance_5"]), "", "text_to_image_5", ideas))
    lines.append(row(w["read"], "", "exact", seen["detector"]))
    return "\n".join([*lines, "", w["note"]])


def main() -> None:
    for name, language in (("README.md", "en"), ("README.zh.md", "zh")):
        path = ROOT / name
        before, opened, rest = path.read_text().partition("<!-- numbers -->\n")
        _, closed, after = rest.partition("\n<!-- /numbers -->")
        if not opened or not closed:
            raise SystemExit(f"{name} lacks its two numbers marks")
        path.write_text(before + opened + table(language) + closed + after)
        print(f"{name}: written")


if __name__ == "__main__":
    main()
