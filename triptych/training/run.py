"""What changes while a run goes on, and what can be done to it: one step, a look at it, a checkpoint of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from triptych.contracts import Batch, Prompt, Rng, Task
from triptych.layers.fingerprint import fingerprint_tensors
from triptych.recipe import Recipe

from . import run_folder, state
from .ema import Averages
from .optim import Optimizers, hidden_matrices, rate
from .report import Metrics, Report
from .room import Room
from .signals import Stop

if TYPE_CHECKING:
    from .judged import Judged

__all__ = ["Diverged", "Run", "device_of", "tensors_of"]

SKIPS = 10  # steps in a row without a finite loss and gradient, after which training stops
HELD_OUT = 256  # rows that validation looks at, in whole batches
OFTEN = 16  # of one picture, each with a time and a noise of its own
SHAPES = 8  # of pictures, up to which each is compiled for itself
GRAPHS = 64  # of one network: its shapes, times the phases of a step


class Diverged(RuntimeError):
    """Loss, gradient or weights are not finite. What was saved before is finite and whole."""


class Run:
    """The state of one run.

    step: steps made.  skipped, in_a_row: steps that were not finite, in all and just now.  seconds: of training so far.
    judged: the recipe's judges, None where it names none.
    """

    def __init__(
        self, recipe: Recipe, task: Task, data: Any, held_out: Any, device: str, report: Report, *, init: str | None = None,
        judged: Judged | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.task, self.data, self.report, self.init, self.judged = recipe, task, data, report, init, judged
        self.device = device_of(device)
        self.bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and _has_bf16(self.device))
        self.step = self.skipped = self.in_a_row = 0
        self.seconds = 0.0
        self.room = Room(report, Stop())
        self.validation: dict[str, float] = {}
        task.modules.to(self.device).train()
        for neighbour in vars(task).values():  # frozen panels stand beside, not among, the modules
            if isinstance(neighbour, nn.Module):
                neighbour.to(self.device)
        self._learns = {p: p.requires_grad for p in task.modules.parameters()}
        self._frozen, self.frozen = self._never_learns()
        exported = {id(p) for panel in task.panels().values() for p in panel.parameters()}
        averaged = {n: p for n, p in task.modules.named_parameters() if id(p) in exported and p.requires_grad}
        self.averages = Averages(averaged, (recipe.ema, recipe.ema / 2) if recipe.ema else ())
        self.phases: dict[str, Optimizers] = {}
        self.compiled = self._compile() if recipe.compile else []
        self._compared: set[str] = set()  # phases whose compiled gradients were seen beside plain ones
        self._examples = self._held_out_batches(held_out)

    # --- one step ---

    def batch(self, step: int) -> Batch:
        return self._here(self.data.batch(self.recipe.seed, step, self.recipe.batch))

    @contextlib.contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """The batches from this step on; the next is made while this one is learnt from."""
        with ThreadPoolExecutor(1) as pool:

            def ahead() -> Iterator[Batch]:
                coming: Future[Batch] = pool.submit(self.batch, self.step)
                for step in range(self.step + 1, self.recipe.steps + 1):
                    batch = coming.result()
                    if step < self.recipe.steps:
                        coming = pool.submit(self.batch, step)
                    yield batch

            yield ahead()

    def update(self, batch: Batch) -> dict[str, float]:
        """All phases of one step; returns what is logged. A phase that is not finite ends the step: skipped and counted."""
        recipe, rng = self.recipe, Rng.of_samples(self.recipe.seed, batch.index)
        torch.manual_seed(int(rng.keys_B[0]))  # for layers that draw by themselves (dropout)
        share, plan = rate(self.step, recipe.steps, recipe.optimizer), self.task.plan(self.step)
        values: dict[str, float] = {"loss": float("nan"), "lr": recipe.optimizer.lr * share}
        finite = True
        for place, phase in enumerate(plan):
            optimizers, turn = self._phase(phase), plan[:place].count(phase)
            losses = self._descend(batch, phase, rng.child(turn) if turn else rng)
            norm = optimizers.clip()
            logged = {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}
            if len(set(plan)) > 1:
                logged = {f"{phase}.{name}": value for name, value in logged.items()} | {"loss": logged["loss"]}
            values |= logged
            finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(losses["loss"]))
            if finite:
                optimizers.step(share)
                self.task.after_step(phase, self.step)
            self.task.modules.zero_grad(set_to_none=True)
            if not finite:
                break
        self.step += 1
        self.averages.update(self.step)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if not finite:
            self.skipped += 1
            values["skipped"] = self.skipped
            self.report.say(f"step {self.step} skipped: loss {values['loss']}, not finite ({self.in_a_row} in a row)")
        if self.in_a_row >= SKIPS:
            raise Diverged(f"{SKIPS} steps in a row were not finite, up to step {self.step}; resume from before with a lower learning rate")
        return values

    def _descend(self, batch: Batch, phase: str, rng: Rng) -> dict[str, Tensor]:
        try:
            if self.compiled and phase not in self._compared:
                self._compared.add(phase)
                self._compare(batch, phase, rng)
            with self._autocast():
                losses = self.task.losses(batch, phase, self.step, rng)
            losses["loss"].backward()
            return losses
        except Exception as error:
            if not self.compiled:
                raise
            why = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
            self._give_up_compiling(f"torch.compile gave up, going on without it: {why}")
            self.task.modules.zero_grad(set_to_none=True)
            return self._descend(batch, phase, rng)  # nothing was stepped yet: the same step again

    def _compare(self, batch: Batch, phase: str, rng: Rng) -> None:
        """Compiled code may be wrong without a word. Once a process the gradients of a phase's step are made both ways; a parameter that
        learns only in the plain one ends the compiling. Nothing else changes: neither weights, nor buffers, nor what torch draws."""
        kept, seed = {name: b.clone() for name, b in self.task.modules.named_buffers()}, int(rng.keys_B[0])
        norms: list[dict[str, float]] = []
        try:
            for way in (self.uncompiled(), contextlib.nullcontext()):
                torch.manual_seed(seed)
                with way, self._autocast():
                    losses = self.task.losses(batch, phase, self.step, rng)
                losses["loss"].backward()
                norms.append({name: float(p.grad.norm()) for name, p in self.task.modules.named_parameters() if p.grad is not None})
                self.task.modules.zero_grad(set_to_none=True)
        finally:
            with torch.no_grad():
                for name, buffer in self.task.modules.named_buffers():
                    buffer.copy_(kept[name])
            torch.manual_seed(seed)
        plain, compiled = norms
        dead = [name for name, norm in plain.items() if norm > 1e-6 * max(plain.values()) and compiled.get(name, 0.0) == 0.0]
        if dead:
            said = f"compiled, {dead[0]} gets no gradient{f', nor do {len(dead) - 1} more' if dead[1:] else ''}"
            self._give_up_compiling(f"torch.compile went wrong, going on without it: {said}")

    def _give_up_compiling(self, why: str) -> None:
        self.report.say(why)
        for module in self.compiled:
            module._compiled_call_impl = None
        self.compiled = []

    def _phase(self, phase: str) -> Optimizers:
        """The phase's optimizers; only its parameters take gradients."""
        if phase not in self.phases:
            for p, learns in self._learns.items():
                p.requires_grad_(learns)
            self.phases[phase] = Optimizers(self._trainable(phase), self.recipe.optimizer, hidden_matrices(self.task.modules))
        chosen = set(self.phases[phase].parameters.values())
        for p, learns in self._learns.items():
            p.requires_grad_(learns and p in chosen)
        return self.phases[phase]

    def _trainable(self, phase: str) -> dict[str, nn.Parameter]:
        """What a phase trains, without what the task froze when it was made."""
        return {name: p for name, p in self.task.trainable(phase).items() if self._learns[p]}

    # --- looking ---

    def measure(self, out: Path, metrics: Metrics, *, validate: bool, preview: bool) -> None:
        """Held-out measures and a strip of pictures, by the averaged weights."""
        if not ((self._examples and validate) or preview):
            return
        with self.looking():
            if self._examples and validate:
                rows = [self.task.validate(batch) for batch in self._examples]
                self.validation = {name: float(torch.cat([r[name].float() for r in rows]).mean()) for name in rows[0]}
                metrics.write(self.step, "held_out", self.validation)
                self.report.say(f"step {self.step}  held out: " + "  ".join(f"{k} {v:.4f}" for k, v in self.validation.items()))
            if preview:
                shown = self._examples[0] if self._examples else self.batch(0)
                prompts = [Prompt(text=text) for text in self.recipe.preview_prompts]
                if self.recipe.data.ports:  # words alone are not what these panels read: held-out rows say all of it
                    prompts = list(shown.prompts[:8])
                images = self.task.preview(prompts, _first(shown, 8))
                if images is not None:
                    self.room(lambda: run_folder.save_strip(images, out / "previews" / f"step-{self.step:06d}.png"))

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Inside: averaged weights, evaluation, no gradients, nothing compiled. Outside all is as it was, torch's own draws too."""
        modes = {module: module.training for module in self.task.modules.modules()}
        self.task.modules.eval()
        try:
            with self.averages.applied(), torch.no_grad(), self.uncompiled(), torch.random.fork_rng(devices=[]):
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    @property
    def measured(self) -> dict[str, float]:
        """The last held-out measures, and the last of the judges."""
        return {**self.validation, **(self.judged.scores if self.judged else {})}

    # --- keeping ---

    def files(self) -> dict[str, dict[str, Tensor]]:
        optimizer = {f"{phase}/{name}": t for phase, one in self.phases.items() for name, t in one.state().items()}
        return {"weights": self._kept(), "averages": self.averages.state(), "optimizer": optimizer}

    def _never_learns(self) -> tuple[dict[str, int], str]:
        """The panels' parameters that the task froze, each with torch's count of its changes, and their fingerprint ("" for none).

        They follow from the recipe and from what it begins with. What is frozen beside the panels (a process's running average) may
        change by other ways than a gradient.
        """
        own = {id(p) for panel in self.task.panels().values() for p in panel.parameters() if not self._learns.get(p, True)}
        found = {name: t for name, t in tensors_of(self.task.modules).items() if id(t) in own}
        return {name: t._version for name, t in found.items()}, fingerprint_tensors(found) if found else ""

    def _kept(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the weights."""
        every = tensors_of(self.task.modules)
        changed = [name for name, version in self._frozen.items() if every[name]._version != version]
        assert not changed, f"{changed[:1]} takes no gradient, and was changed all the same: no checkpoint would hold it"
        return {name: tensor for name, tensor in every.items() if name not in self._frozen}

    def save(self, out: Path) -> None:
        """Raises Diverged if a weight is not finite: such a checkpoint is never written."""
        self.check_finite()
        state.write(out, self.step, self.files(), run_folder.facts(self), keep=self.recipe.keep)

    def check_finite(self) -> None:
        """Raises Diverged."""
        for name, tensors in (("weights", self._kept()), ("averages", self.averages.state())):
            for key, tensor in tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise Diverged(f"{name} {key} is not finite at step {self.step}; nothing was saved, older checkpoints are whole")

    @torch.no_grad()
    def restore(self, checkpoint: state.Checkpoint) -> None:
        """Raises state.BadCheckpoint where tensors do not fit this run's, or were learnt beside other weights that do not learn."""
        weights, here, frozen = checkpoint.tensors("weights"), self._kept(), checkpoint.facts.get("frozen", "")
        if frozen and frozen != self.frozen:
            said = f"weights that never learn ({frozen}), and here they are {self.frozen or 'not there'}"
            raise state.BadCheckpoint(f"{checkpoint.folder} was trained beside {said}: give the --init that it began with")
        every = tensors_of(self.task.modules)
        for name in self._frozen.keys() & weights.keys():  # older checkpoints hold them
            if not torch.equal(weights.pop(name), every[name].detach().cpu()):
                raise state.BadCheckpoint(f"{checkpoint.folder}: {name!r} never learns, and here it is another: give the --init of then")
        for name in weights.keys() ^ here.keys():
            raise state.BadCheckpoint(f"{checkpoint.folder}: tensor {name!r} is on one side only")
        for name, tensor in here.items():
            if tensor.shape != weights[name].shape:
                raise state.BadCheckpoint(f"{checkpoint.folder}: {name!r} is {list(weights[name].shape)}, here it is {list(tensor.shape)}")
            tensor.copy_(weights[name])
        self.averages.load(checkpoint.tensors("averages"))
        by_phase: dict[str, dict[str, Tensor]] = {phase: {} for phase in checkpoint.facts["phases"]}
        for key, tensor in checkpoint.tensors("optimizer").items():
            phase, _, name = key.partition("/")
            by_phase[phase][name] = tensor
        for phase, tensors in by_phase.items():
            self._phase(phase)
            self.phases[phase].load(tensors)
        self.step, self.seconds = checkpoint.step, checkpoint.facts["seconds"]
        self.skipped, self.in_a_row = checkpoint.facts["skipped"], checkpoint.facts["in_a_row"]
        self.validation = dict(checkpoint.facts["validation"])

    def checkpoint_bytes(self) -> int:
        """Of one checkpoint, foretold: the optimizer's state counts before there is one (two numbers a trained parameter)."""
        trained = {n: p for phase in set(self.task.plan(0)) for n, p in self._trainable(phase).items()}
        tensors = [*self._kept().values(), *self.averages.state().values(), *trained.values(), *trained.values()]
        return sum(t.numel() * t.element_size() for t in tensors)

    # --- the machine ---

    def uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, networks run as they are written: other batch sizes and modes must not be compiled for a few calls."""
        return torch.compiler.set_stance("force_eager") if self.compiled else contextlib.nullcontext()

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _here(self, batch: Batch) -> Batch:
        return batch if batch.images_BCHW is None else replace(batch, images_BCHW=batch.images_BCHW.to(self.device))

    def _compile(self) -> list[nn.Module]:
        """Compile, in place, what the task calls as a network: `task.compiles()`, or the panels that have a `forward`.

        Every shape is compiled for itself, since which kernel a shape gets must not depend on what came before it. For the same reason
        torch must not stop after its first few and leave the others as they are: another order of them, after a kill, would learn others.
        """
        shapes = getattr(self.data, "shapes", 1)
        if shapes > SHAPES:
            said = f"pictures come in {shapes} shapes, and each would be compiled for itself"
            self.report.say(f"not compiled: {said}; up to {SHAPES} are (smaller data.buckets.slimmest, larger data.buckets.step)")
            return []
        if self.device.type == "cpu" and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
            self.report.say("not compiled: there is no C++ compiler here (c++, g++ or clang++); training is slower, and the same")
            return []
        wanted = self.task.compiles() if hasattr(self.task, "compiles") else self.task.panels().values()  # type: ignore[attr-defined]
        chosen = [m for m in wanted if type(m).forward is not nn.Module.forward]
        for module in chosen:
            module.compile(dynamic=False, isolate_recompiles=True, recompile_limit=GRAPHS)
        return chosen

    def _held_out_batches(self, held_out: Any) -> list[Batch]:
        if held_out is None:
            return []
        size, rows = self.recipe.batch, HELD_OUT
        if hasattr(held_out, "__len__"):  # few pictures say little more by being asked more often
            rows = min(rows, OFTEN * len(held_out))
        return [self._here(held_out.batch(0, k, size)) for k in range(max(1, rows // size))]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and kept buffers by name; one that has two names comes once."""
    seen: set[int] = set()
    return {name: t for name, t in module.state_dict(keep_vars=True).items() if not (id(t) in seen or seen.add(id(t)))}


def device_of(wanted: str) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _rows(batch: Batch, rows: slice) -> Batch:
    images = None if batch.images_BCHW is None else batch.images_BCHW[rows]
    return Batch(index=batch.index[rows], images_BCHW=images, prompts=batch.prompts[rows], keys=batch.keys[rows])


def _first(batch: Batch, count: int) -> Batch:
    return _rows(batch, slice(0, count))
