"""The command line: every verb, its options and its help. The work is done in the file named after the verb.

Light: nothing here imports torch, so that --help and a mistyped option answer at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import say
from .cli_data import data_app
from .cli_eyes import eyes_app
from .cli_judge import judge_app
from .errors import EXIT, report

__all__ = ["app", "main"]

# Common spellings of other programs, understood and not shown.
_ALIASES = {
    "cfg": "guidance", "cfg-scale": "guidance", "guidance-scale": "guidance", "negative-prompt": "negative", "count": "num-images",
    "num-inference-steps": "steps", "out": "output", "scheduler": "sampler", "prompts-file": "prompts",
}  # fmt: skip
_SPELLINGS = {"token_normalize_func": lambda token: _ALIASES.get(token, token), "help_option_names": ["-h", "--help"]}
_TRAIN_SPELLINGS = {**_SPELLINGS, "token_normalize_func": lambda token: {"output": "out"}.get(token, token)}

app = typer.Typer(name="triptych", add_completion=False, rich_markup_mode=None, context_settings=_SPELLINGS,
                  pretty_exceptions_enable=False)  # fmt: skip
app.add_typer(data_app, name="data", help="Look at data, check it, and prepare it for training.", context_settings=_SPELLINGS)
app.add_typer(eyes_app)  # without a name: its verbs stand at the top level
app.add_typer(judge_app)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress and notes stay on stderr.")]


def _say_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        say.result({}, f"triptych {__version__}", False)
        raise typer.Exit()


@app.callback(epilog="Exit codes: 0 ok, 1 a fault of ours, 2 usage, 3 bad data, 4 bad checkpoint, 5 out of memory, 6 disk full, 7 training "
              "diverged, 8 locked, 130 Ctrl+C, 143 SIGTERM. --debug, anywhere, prints the traceback of an error.")  # fmt: skip
def _triptych(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error. May stand anywhere.")] = False,
) -> None:
    """Pictures from words, by a text encoder, a generator and a decoder that you can train, swap and look into.

    \b
    triptych generate "a red apple"          draw a picture, offline
    triptych train own --data my-pictures    teach the model your own pictures
    triptych list                            what there is
    """


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...",
        help="What to draw, in English or Chinese; several = several pictures.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME|PATH",
        help="An embedded model or a model's folder.  [default: emoji]")] = None,
    n: Annotated[int, typer.Option("-n", "--num-images", help="Pictures of each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed",
        help="Picture i has seed S + i; -1 or absent: random, printed and recorded.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps from noise to picture.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="How strongly the words pull; 1 = off.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", metavar="NAME",
        help="How the steps are made; `triptych list` names them.")] = None,
    negative: Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="What to stay away from.")] = None,
    guide: Annotated[str | None, typer.Option("--guide", metavar="NAME|PATH",
        help="Eyes that hear words, a CLIP: at every step the picture is pulled to where they see more of the words in it.")] = None,
    guide_scale: Annotated[float | None, typer.Option("--guide-scale", metavar="S",
        help="How strongly --guide pulls, in units of its logit; 0 = off.  [default: 10]")] = None,
    like: Annotated[str | None, typer.Option("--like", metavar="PICTURE",
        help="A picture that these are to be like.")] = None,
    like_by: Annotated[str | None, typer.Option("--like-by", metavar="HOW",
        help="pixels (what lies where), features (what there is) or gram (style), seen by --guide's eyes.  [default: features]")] = None,
    like_scale: Annotated[float | None, typer.Option("--like-scale", metavar="S",
        help="How strongly; 0 = off, 1 = so that one sees it.  [default: 1]")] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="N|NAME", help="The class, of a model that draws classes.")] = None,
    boxes: Annotated[str | None, typer.Option("--boxes", metavar="BOXES|FILE.json",
        help='Of a model that draws layouts: "circle 0.1,0.2,0.4,0.5; heart ...", left,top,right,bottom as shares of the picture.')] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="PICTURE",
        help="What the model draws from: a small picture, a map in its colours, or a picture to be repaired.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="PICTURE", help="Of a picture to be repaired: white is drawn anew.")] = None,
    lora: Annotated[list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]",
        help="Add a LoRA, of the trainer, PEFT or kohya, to the weights; may be repeated.")] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="Size in pixels, where the decoder offers a choice.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", metavar="FILE",
        help="One prompt a line, '#' comments; inside a line --n negative --w --h --s steps --d seed --l guidance.")] = None,
    old: Annotated[str | None, typer.Option("--from", metavar="OLD.png",
        help="Draw a picture again from its own record: the same pixels.")] = None,
    strip: Annotated[int | None, typer.Option("--strip", metavar="K",
        help="Also show every K-th step: the picture growing clear, as one PNG.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE|DIR",
        help="A folder gets numbered files, a file's name an index if there are several; nothing is overwritten.  [default: out/]")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="float32 or bf16.  [default: float32]")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Draw each picture alone: equal to the last bit whatever the batch.")] = False,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Write nothing into the picture about how it was made.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Draw pictures from words.

    \b
    triptych generate "a red apple"
    triptych generate "火箭" "a blue circle left of a red square" -n 4 --seed 7 -o rockets/
    triptych generate "smiling cat" --steps 30 --guidance 4 --sampler heun -o cat.png
    triptych generate --prompts prompts.txt --model runs/own/model
    triptych generate "a castle" --model sd-folder --lora ink.safetensors:0.8 --lora gold.safetensors:-0.3
    triptych generate --from cat.png                  the same pixels again
    triptych generate "a red apple" --strip 4         watch it growing clear

    A model that needs more than words makes it from the words where it is not given, and says so.
    """
    from .generate import run
    from .jobs import Request

    run(Request(
        prompts=prompt or (), model=model, n=n, seed=seed, steps=steps, guidance=guidance, sampler=sampler, negative=negative, size=size,
        prompts_file=prompts, old=old, strip=strip, out=output, device=device, precision=precision, exact=exact, metadata=not no_metadata,
        guide=guide, guide_scale=guide_scale, like=like, like_by=like_by, like_scale=like_scale,
        label=label, boxes=boxes, image=image, mask=mask, loras=lora or (),
    ), as_json)  # fmt: skip


@app.command(context_settings=_TRAIN_SPELLINGS)
def train(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE|FILE.yaml",
        help="A shipped recipe (`triptych list`) or your own as YAML.")] = None,
    group: Annotated[str | None, typer.Option("--all", metavar="GROUP",
        help="Train every recipe of a group, one after the other, into --out/NAME; run again, the same command goes on.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="SPEC",
        help='Train on this instead: a folder, a .tar, a .parquet, or "emoji:3,scenes:1"; see `triptych data check --help`.')] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C",
        help="Change a field of the recipe; may be repeated.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="DIR",
        help="The run's folder; with --all that of all runs.  [default: runs/RECIPE-DATE; runs/GROUP]")] = None,
    resume: Annotated[bool, typer.Option("--resume",
        help="Go on from the newest whole checkpoint of --out, or of the recipe's newest run.")] = False,
    init: Annotated[str | None, typer.Option("--init", metavar="MODEL",
        help="Start from this model's weights, with a fresh optimizer; a folder of diffusers too.")] = None,
    lora: Annotated[int | None, typer.Option("--lora", metavar="RANK", min=1,
        help="Learn thin matrices beside the weights, which stay as they are (LoRA); the run's lora/ holds them.")] = None,
    trigger: Annotated[str | None, typer.Option("--trigger", metavar="WORDS",
        help='A name for what your pictures show: it stands for "[trigger]" in a caption, or before it.')] = None,
    prior: Annotated[list[str] | None, typer.Option("--prior", metavar="PROMPT|@FILE",
        help="What must not be forgotten: pictures that the model draws for it are learnt beside yours. May be repeated; a file has one a "
        "line. Name many kinds of things, not one.")] = None,
    prior_pictures: Annotated[int, typer.Option("--prior-pictures", min=2, max=100_000, help="How many of them.")] = 100,
    dry_run: Annotated[bool, typer.Option("--dry-run",
        help="Measure and say: parameters, memory, pictures a second, hours, disk.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train a panel by a recipe. Ctrl+C saves and leaves; --resume goes on to the same bits.

    \b
    triptych train tiny                                         does it all run? under a minute
    triptych train own --data my-pictures                       fine-tune the embedded generator
    triptych train own --data my-pictures --lora 8              the same, as a LoRA of 8 ranks: less memory, a small file
    triptych train own --data robot --trigger "sks robot" --prior "a robot" --init stable-diffusion-v1-5/
    triptych train emoji --set steps=2000 --set batch=32 --dry-run
    triptych train ldm --set text_encoder=bert/scenes           another panel 1: a family's size, or a model that was trained
    triptych train emoji --out runs/mine --resume
    triptych show recipes/emoji > mine.yaml && triptych train mine.yaml
    triptych train --all emoji --dry-run                        every recipe of a group: the plan, and its minutes
    """
    if group is not None:
        given = {
            f"RECIPE {recipe}": recipe, "--resume": resume or None, "--init": init, "--lora": lora, "--trigger": trigger, "--prior": prior,
        }  # fmt: skip
        if said := next((name for name, value in given.items() if value is not None), ""):
            raise ValueError(f"--all {group} trains every recipe of the group and goes on by itself: leave {said} out")
        from .train_all import run as run_all

        return run_all(group, data=data, settings=settings or [], out=out, dry_run=dry_run, as_json=as_json)
    if recipe is None:
        raise ValueError("nothing to train: give a RECIPE, as in `triptych train tiny`, a FILE.yaml, or --all GROUP")
    from .train import run

    run(
        recipe, data=data, settings=settings or [], out=out, resume=resume, init=init, lora=lora, trigger=trigger, prior=prior or (),
        prior_pictures=prior_pictures, dry_run=dry_run, as_json=as_json,
    )  # fmt: skip


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL|LORA", help="An embedded model or a model's folder; of kohya a LoRA.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR|FILE", help="A new folder; of kohya a new file.")],
    form: Annotated[str, typer.Option("--format", metavar="NAME", help="diffusers, or kohya: a LoRA in its dialect.")] = "diffusers",
    steps: Annotated[int | None, typer.Option("--steps", help="Of the call that is printed.  [default: the model's]")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Of the call that is printed; 1 = off.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", metavar="NAME", help="Which scheduler it gets.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write a model as a folder that diffusers loads, and samples to the same picture.

    \b
    triptych export my-model --format diffusers --out my-model-diffusers
    triptych export runs/own/lora --format kohya -o own.safetensors
    """
    from .export import run

    run(model, form=form, out=out, steps=steps, guidance=guidance, sampler=sampler, as_json=as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Models, recipes, families, samplers, data.

    \b
    triptych list
    triptych list --json | jq .recipes
    """
    from .show import run_list

    run_list(as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME",
        help="A model (name or folder), a recipe or a family; KIND/NAME where several are called so.")],
    trace: Annotated[bool, typer.Option("--trace", help="Draw one picture and print the shapes, stage by stage.")] = False,
    rebuild: Annotated[str | None, typer.Option("--rebuild", metavar="PICTURE",
        help="Of an MAE: hide most of a picture and draw what it imagines there.")] = None,
    forward: Annotated[str | None, typer.Option("--forward", metavar="PICTURE",
        help="Of a process: a picture turning into noise, in ten frames from t = 0 to t = 1.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE|DIR",
        help="Where --rebuild or --forward draws; nothing is overwritten.  [default: beside it, PICTURE-rebuilt.png]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which patches --rebuild hides, which noise --forward adds.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Of --rebuild: auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Look into a model, a recipe or a family.

    A model's cards, a recipe as YAML, or a family with its paper, sizes and parameters.

    \b
    triptych show emoji                      the embedded model: data, recipe, results, limits
    triptych show emoji --trace              words -> tokens -> latents -> picture
    triptych show recipes/emoji > my.yaml    its recipe, ready for `triptych train my.yaml`
    triptych show dit                        the paper, and what each size weighs
    triptych show my-mae --rebuild cat.png   masked, rebuilt, original
    triptych show rectified_flow --forward cat.png
    """
    if sum((trace, rebuild is not None, forward is not None)) > 1:
        raise ValueError("--trace follows a prompt, --rebuild and --forward a picture; ask for one of them")
    if forward is not None:
        from .forward import draw as draw_forward

        return draw_forward(name, forward, output=output, seed=seed, as_json=as_json)
    if rebuild is not None:
        from .look import rebuild as draw

        return draw(name, rebuild, output=output, seed=seed, device=device, as_json=as_json)
    if output is not None:
        raise ValueError("-o says where --rebuild or --forward PICTURE draws; nothing else of `triptych show` writes a file")
    from .show import run

    run(name, trace=trace, as_json=as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, and lacks.

    Python, torch, device, bf16, compiler, disk, fonts, and the embedded weights' checksums.

    \b
    triptych doctor
    """
    from .doctor import run

    run(as_json)


# --- the entry point ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Every error becomes one line on stderr (and one object with --json)."""
    given = list(sys.argv[1:] if argv is None else argv)
    before_text = given[: given.index("--")] if "--" in given else given
    debug, as_json = "--debug" in before_text, "--json" in before_text
    args = [a for a in before_text if a != "--debug"] + given[len(before_text) :]
    if args in ([], ["data"]):
        args = [*args, "--help"]
    restore = _leave_on_sigterm()
    try:
        code = typer.main.get_command(app)(args=args, prog_name="triptych", standalone_mode=False)
        if code == EXIT["interrupted"]:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException as error:  # the border: nothing passes it but an exit code
        return _say_error(error, args, as_json, debug)
    finally:
        restore()


def _say_error(error: BaseException, args: list[str], as_json: bool, debug: bool) -> int:
    if isinstance(error, typer.Abort):
        error = KeyboardInterrupt()
    told_by_typer = getattr(error, "format_message", None)  # its usage errors; their class has moved between versions
    if told_by_typer is not None:
        message = " ".join(told_by_typer().split())
        error = ValueError(f"{message.rstrip('.')}; see `{' '.join(['triptych', *_verb(args)])} --help`")
    told: dict[str, Any] = report(error)
    if debug:
        traceback.print_exception(error)
    say.note(f"triptych: {told['error']['message']}")
    if as_json:
        say.result(told, "", True)
    return told["error"]["exit_code"]


def _verb(args: list[str]) -> list[str]:
    """The verb that was meant, for the hint: also of the groups whose verbs stand at the top level."""
    if args and args[0] == "data":
        return args[:2] if len(args) > 1 and args[1] in ("build", "show", "check", "cache") else args[:1]
    groups = [app, *(group.typer_instance for group in app.registered_groups if not isinstance(group.name, str))]
    verbs = {c.name or (c.callback.__name__ if c.callback else "") for group in groups if group for c in group.registered_commands}
    return args[:1] if args and args[0] in verbs else []


def _leave_on_sigterm() -> Any:
    """SIGTERM ends with 143 after all clean-up; the trainer puts its own handler in place of this one. Returns the undoing."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT["terminated"]))
    return lambda: signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
