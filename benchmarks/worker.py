"""One process a side. The parent writes a line of JSON and reads one: `prepare` a lane, `time` it, tell what the `machine` can do.

Every side has a process of its own, so that neither gets the other's settings of malloc, nor its imports; while one computes the
other waits for a line, and costs nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Worker"]

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """The parent's handle of a side's process. `with Worker("ours", 2, folder, setting) as w: w.ask("time", ...)`."""

    def __init__(self, side: str, threads: int, folder: Path, setting: dict[str, Any]) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side, str(threads), str(folder), json.dumps(setting)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self.side = side

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Raises RuntimeError with the worker's own words."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"what": what, **more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"{self.side}: {what}: {answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class _Side:
    """Within the process: lanes by name, each a function that computes once."""

    def __init__(self, side: str, threads: int, folder: Path, setting: dict[str, Any]) -> None:
        import torch

        from benchmarks.setting import Setting

        torch.set_num_threads(threads)
        torch._dynamo.config.recompile_limit = 64  # many lanes compile the same classes in one process
        self.side, self.folder, self.setting = side, folder, Setting(**setting)
        if side != "diffusers":
            from triptych.layers.memory import keep_freed_memory

            keep_freed_memory()  # as `triptych generate` and the trainer do
        self.lanes: dict[str, Callable[[], Any]] = {}

    def machine(self) -> dict[str, Any]:
        from benchmarks.machine import ceilings

        return ceilings()

    def make(self, models: list[str]) -> dict[str, Any]:
        from benchmarks.peers import diffusers_models, diffusers_unets
        from benchmarks.unets import SHAPES

        for model in models:
            if model in SHAPES:
                diffusers_unets.make(SHAPES[model], self.folder / model)
            else:
                diffusers_models.make(model, self.setting, self.folder / model)
        return {}

    def prepare(self, key: str, lane: dict[str, Any]) -> dict[str, Any]:
        """Build, compile, warm up. Returns seconds of warm-up, FLOP of one call, and the file that holds what it computed."""
        import torch
        from safetensors.torch import save_file
        from torch.utils.flop_counter import FlopCounterMode

        from benchmarks.setting import Lane, inputs

        lane_ = Lane(**lane)
        if lane_.model.startswith(("unet", "sd-")):
            run = self._unet(lane_)
        else:
            rows = self.setting.batch if lane_.job == "training" else lane_.pictures
            run = self._build(lane_, inputs(self.setting, rows))
        counter = FlopCounterMode(display=False, custom_mapping=_flop_formulas())
        with torch.compiler.set_stance("force_eager"):  # the counter does not see into compiled code
            run()  # the trainer's first step is made more than once, to compare
            with counter:
                run()
        begun = time.perf_counter()
        for _ in range(2):
            out = run()
        seconds = time.perf_counter() - begun
        self.lanes[key] = run
        path = self.folder / f"{self.side}-{len(self.lanes)}.safetensors"
        save_file({"out": out.detach().float().contiguous()}, path)
        return {"seconds": seconds, "flop": counter.get_total_flops(), "out": str(path)}

    def _build(self, lane: Any, given: Any) -> Callable[[], Any]:
        import torch

        bf16 = lane.precision == "bf16"
        dtype = torch.bfloat16 if bf16 and lane.job != "training" else torch.float32
        if self.side == "ours":
            from benchmarks import ours
            from triptych.layers.linear import pack

            network = ours.network_of(lane.model, self.setting, self.folder).to(dtype)
            if lane.job == "training":
                return ours.training(network, lane.model, given, bf16, lane.compiled)  # the trainer compiles by itself
            pack(network)  # as `triptych.load` does
            side: Any = ours
        else:
            from benchmarks.peers import diffusers_models, diffusers_sample, diffusers_train

            network, side = diffusers_models.load(lane.model, self.folder / lane.model, dtype), diffusers_sample
        if lane.compiled:
            network.compile(dynamic=False)
        if lane.job == "training":
            return diffusers_train.training(network, lane.model, given, bf16)
        return (side.evaluation if lane.job == "evaluation" else side.trajectory)(network, lane.model, given, dtype, self.setting)

    def _unet(self, lane: Any) -> Callable[[], Any]:
        """A lane of `unets.SHAPES`."""
        import torch

        from benchmarks import unets

        shape, folder, bf16 = unets.SHAPES[lane.model], self.folder / lane.model, lane.precision == "bf16"
        dtype = torch.bfloat16 if bf16 and lane.job != "training" else torch.float32
        given = unets.inputs(shape, shape.batch if lane.job == "training" else lane.pictures)
        if self.side == "ours":
            from triptych.layers import conv, linear

            if lane.job == "loading":
                return unets.loading(folder, dtype)
            network = unets.load(folder, dtype)
            if lane.job == "training":
                return unets.training(network, given, bf16, lane.compiled)
            if lane.compiled:
                network.compile(dynamic=False)
            else:
                linear.pack(network)
                conv.pack(network)
            return unets.evaluation(network, given)
        from benchmarks.peers import diffusers_train, diffusers_unets

        if lane.job == "loading":
            return diffusers_unets.loading(shape, folder, dtype)
        unet = diffusers_unets.load(shape, folder, dtype)
        if lane.compiled:
            unet.compile(dynamic=False)
        if lane.job == "training":
            loop, latents = diffusers_train.Loop(unet, bf16=bf16), given.noise_PCHW.clamp(-1, 1)
            return lambda: loop.step(latents, given.tokens_PLD)
        return diffusers_unets.evaluation(unet, given, dtype, lane.channels_last)

    def time(self, key: str, repeats: int) -> dict[str, Any]:
        """Seconds of each of `repeats` calls; of many short ones the first is not counted, since the caches were somebody else's."""
        run, seconds = self.lanes[key], []
        if repeats > 2:
            run()
        for _ in range(repeats):
            begun = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begun)
        return {"seconds": seconds}


def _flop_formulas() -> dict[Any, Any]:
    """torch's counter knows its own products; the one of `triptych.layers.linear` has another name, and attention another on a CPU."""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
        rows = 1
        for side in x[:-1]:
            rows *= side
        return 2 * rows * weight[0] * weight[1]

    def attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, q, k, v)

    return {
        torch.ops.mkldnn._linear_pointwise: linear,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }


def main() -> None:
    side, threads, folder, setting = sys.argv[1:5]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    here = _Side(side, int(threads), Path(folder), json.loads(setting))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(here, asked.pop("what"))(**asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
