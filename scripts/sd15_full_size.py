"""Stable Diffusion 1.5's full-size configuration with random weights: does it load and draw, in how much memory and time?

    python scripts/sd15_full_size.py                     512 x 512 in 4 steps, bf16: 4.3 GB of disk, 4 GB of memory, minutes
    python scripts/sd15_full_size.py --quick             the same with an eighth of the widths and 64 x 64, in seconds

    python scripts/sd15_full_size.py --out docs/results/sd15_full_size.json          its figures, kept

A folder as diffusers saves it is written into a temporary place, by a process of its own. Then ours and diffusers each load it and draw,
in a fresh process each, of which the peak of resident memory is read: after its imports, after loading, and at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
    "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
QUICK = {
    "unet": UNET | {"sample_size": 8, "block_out_channels": [32, 64, 128, 128], "cross_attention_dim": 96},
    "vae": VAE | {"block_out_channels": [32, 32, 64, 64], "sample_size": 64},
    "text": TEXT | {"vocab_size": 600, "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2},
}
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip
TEXTS = ["a red circle left of a blue square", "an astronaut riding a horse", "a lighthouse at dusk"]


def write(folder: Path, quick: bool) -> None:
    """Random weights of variance 1 / fan-in, float32, as published."""
    import diffusers
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from triptych.text_encoders import _clip_bpe

    chosen = QUICK if quick else {"unet": UNET, "vae": VAE, "text": TEXT}
    model = json.loads(_clip_bpe.learn(TEXTS, 600))["model"]
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    end = model["vocab"][_clip_bpe.END]
    CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77).save_pretrained(folder / "tokenizer")
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel(**chosen["unet"]), "vae": diffusers.AutoencoderKL(**chosen["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**chosen["text"], bos_token_id=end - 1, eos_token_id=end, pad_token_id=end)),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for name, part in parts.items():
        tensors = {}
        for key, shape in ((key, value.shape) for key, value in part.state_dict().items() if value.is_floating_point()):
            drawn = torch.empty(shape).normal_(generator=generator)
            plain = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            tensors[key] = drawn.mul_(shape[1:].numel() ** -0.5) if len(shape) > 1 else plain + 0.02 * drawn
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        (folder / name).mkdir()
        (part.config.save_pretrained if name == "text_encoder" else part.save_config)(folder / name)
        save_file(tensors, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})
    diffusers.DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"], "requires_safety_checker": False,
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None],
        "feature_extractor": [None, None], "image_encoder": [None, None],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))


def peak() -> float:
    """Of this process's resident memory, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(who: str, folder: Path, precision: str, steps: int, guidance: float) -> dict[str, float]:
    """Load, draw one picture, and what it took."""
    import torch

    torch.manual_seed(0)
    begun = time.perf_counter()
    if who == "theirs":
        import diffusers

        imported, at = peak(), time.perf_counter()
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, dtype={"bf16": torch.bfloat16, "float32": torch.float32}[precision]
        )
        loaded, high = time.perf_counter(), peak()
        pipe.set_progress_bar_config(disable=True)
        drawn: Any = pipe("a lighthouse at dusk", num_inference_steps=steps, guidance_scale=guidance)
        picture = drawn.images[0]
    else:
        from triptych.pipeline import load

        imported, at = peak(), time.perf_counter()
        model = load(folder, precision=precision)
        loaded, high = time.perf_counter(), peak()
        picture = model.generate(["a lighthouse at dusk"], steps=steps, guidance=guidance)[0]
    done = time.perf_counter()
    return {
        "import_s": at - begun, "load_s": loaded - at, "draw_s": done - loaded, "imported_mb": imported, "loaded_mb": high,
        "peak_mb": peak(), "width": picture.width, "height": picture.height,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small widths and pictures")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--folder", type=Path, help="keep the folder here, and use it again")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "write":
        return write(given.folder, given.quick)
    if given.part is not None:
        print(json.dumps(measure(given.part, given.folder, given.precision, given.steps, given.guidance)))
        return None
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "sd15"

        def run(part: str) -> list[str]:
            asked = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--precision", given.precision]
            asked += ["--steps", str(given.steps), "--guidance", str(given.guidance), *(["--quick"] if given.quick else [])]
            return subprocess.run(asked, check=True, text=True, stdout=subprocess.PIPE).stdout.split("\n")[:1]

        if not (folder / "model_index.json").exists():
            run("write")
        weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20
        print(f"{weights:.0f} MB of float32 weights, {given.precision}, {given.steps} steps, guidance {given.guidance:g}")
        found = {who: json.loads(run(who)[0]) for who in ("ours", "theirs")}
        print(f"{'':12}{'import s':>10}{'load s':>10}{'draw s':>10}{'imported MB':>13}{'loaded MB':>12}{'peak MB':>10}  size")
        for who, m in found.items():
            print(f"{who:12}{m['import_s']:10.2f}{m['load_s']:10.2f}{m['draw_s']:10.2f}{m['imported_mb']:13.0f}{m['loaded_mb']:12.0f}"
                  f"{m['peak_mb']:10.0f}  {m['width']} x {m['height']}")  # fmt: skip
        ours, theirs = found["ours"], found["theirs"]
        ratios = {one: ours[one] / theirs[one] for one in ("peak_mb", "load_s", "draw_s")}
        print("ours by theirs: " + ", ".join(f"{one} {ratio:.2f}" for one, ratio in ratios.items()))
        if given.out:
            kept = {name: getattr(given, name) for name in ("precision", "steps", "guidance", "quick")}
            given.out.write_text(json.dumps({**kept, "weights_mb": weights, **found, "ours_by_theirs": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
