"""Bring the FID's own Inception weights into a form that Triptych reads: the public .pth, checked by its SHA-256, to safetensors.

    python scripts/inception_weights.py pt_inception-2015-12-05-6726825d.pth inception.safetensors

The file is of https://github.com/mseitzer/pytorch-fid (release fid_weights). Nothing is read from a file of another hash.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from triptych.vision.inception import PUBLISHED, save_original


def main(source: str, target: str) -> None:
    found = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if found != PUBLISHED:
        sys.exit(f"{source} has SHA-256 {found}, the published file {PUBLISHED}")
    tensors = torch.load(source, map_location="cpu", weights_only=True)
    save_original(target, tensors, found)
    print(f"written: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
