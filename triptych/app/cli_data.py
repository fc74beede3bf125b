"""`triptych data`: look at data, check it, prepare it, and see what is kept of it. Light, as `cli.py` is."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["data_app"]

data_app = typer.Typer(rich_markup_mode=None)
cache_app = typer.Typer(rich_markup_mode=None)
data_app.add_typer(cache_app, name="cache", help="What is kept so that it need not be made again. All of it may go at any time.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress and notes stay on stderr.")]
Size = Annotated[int, typer.Option("--size", help="Side of the pictures in pixels.", min=1, max=4096)]
Spec = Annotated[str, typer.Argument(metavar="SPEC",
    help='"emoji", "scenes", a mixture "emoji:3,scenes:1", or a place of pictures: a folder, a .tar, a .parquet, a .txt. How it is read is '
    'seen from what is there; said, it stands behind it: "DIR?form=classes&template=a {class}". Options: form, captions, lines, column, '
    "template, trigger; form=texts reads the .txt files of a folder as texts alone.")]  # fmt: skip


@data_app.command("build")
def data_build(spec: Spec, size: Size = 32, as_json: Json = False) -> None:
    """Fill the caches, so that training starts at once.

    \b
    triptych data build emoji
    triptych data build emoji:3,scenes:1 --size 128
    """
    from .data import run_build

    run_build(spec, size, as_json)


@data_app.command("show")
def data_show(
    spec: Spec,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="SHEET.png",
        help="Where the sheet goes.  [default: sheet.png]")] = None,
    n: Annotated[int, typer.Option("-n", "--num-images", help="Pictures on the sheet.", min=1, max=4096)] = 64,
    columns: Annotated[int, typer.Option("--columns", help="Pictures in a row.", min=1, max=256)] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Which ones.")] = 0,
    held_out: Annotated[bool, typer.Option("--held-out", help="The held-out split, which no training sees.")] = False,
    size: Size = 128,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Draw a sheet of pictures with their captions, as a training hears them.

    \b
    triptych data show scenes -o scenes.png
    triptych data show my-pictures -n 100 --columns 10
    triptych data show "shards/?column=caption_en"
    """
    from .data import run_show

    run_show(spec, output, n=n, columns=columns, seed=seed, held_out=held_out, size=size, as_json=as_json)


@data_app.command("check")
def data_check(
    spec: Spec,
    size: Annotated[int, typer.Option("--size", help="Side of the pictures; buckets are about as large as its square.",
        min=1, max=4096)] = 32,
    page: Annotated[str | None, typer.Option("--page", metavar="CHECK.html",
        help="Write a page with thumbnails too: one file that any browser opens.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME|PATH",
        help="Whose text encoder says which captions are too long.")] = "emoji",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Tell what is there, and name what is broken, missing, too long, or there twice.

    Of a place of pictures: counts, sizes, formats, languages, duplicates (near ones too), buckets. Exit code 3 if training could not
    use it: more than one picture in a hundred is broken.

    \b
    triptych data check my-pictures
    triptych data check my-pictures --page check.html
    triptych data check "photos?form=classes" --size 64 --json
    triptych data check emoji:3,scenes:1 --json
    """
    from .data import run_check

    run_check(spec, size, page, model, as_json)


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """What is kept, where, how large it is, and when it was last used.

    \b
    triptych data cache list
    """
    from .data import run_cache_list

    run_cache_list(as_json)


@cache_app.command("clear")
def cache_clear(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...",
        help="What to remove, as `list` names it; * stands for anything. Nothing named: all of it.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Remove what is kept. Whoever needs it makes it again.

    \b
    triptych data cache clear
    triptych data cache clear "album-*"
    """
    from .data import run_cache_clear

    run_cache_clear(names or [], as_json)
