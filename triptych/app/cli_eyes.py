"""Verbs of the command line that look at pictures: classify, search, score, detect, probe. `cli.py` takes them to the top level.

Light, as `cli.py` is: the work, and torch with it, is in `look.py` and `search.py`.
"""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["eyes_app"]

eyes_app = typer.Typer(rich_markup_mode=None)

Picture = Annotated[str, typer.Argument(metavar="IMAGE", help="A picture: PNG, JPEG, WebP, or a GIF, whose first frame is looked at.")]
Eyes = Annotated[str | None, typer.Option("--model", "-m", metavar="NAME|PATH",
    help="Eyes: an embedded name, a folder of ours, or one that transformers saved.  [default: triptych-eyes-v1]")]  # fmt: skip
Detector = Annotated[str | None, typer.Option("--model", "-m", metavar="NAME|PATH",
    help="A detector: an embedded name, a folder of ours, or one that transformers saved.  [default: triptych-detector-v1]")]  # fmt: skip
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress and notes stay on stderr.")]


@eyes_app.command()
def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Pictures; each is classified for itself.")],
    labels: Annotated[str | None, typer.Option("--labels", metavar="A,B,...|@FILE",
        help="What to choose from, in English or Chinese; a file has one a line. Not needed for eyes with classes of their own.")] = None,
    templates: Annotated[list[str] | None, typer.Option("--template", metavar="TEXT",
        help='Words around a label, as "a photo of {}"; several are averaged.  [default: {}]')] = None,
    model: Eyes = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Which label fits a picture, with probabilities.

    Labels are compared with each other alone: one of them always wins, also where none fits.

    \b
    triptych classify cat.png --labels cat,dog,rocket
    triptych classify *.png --labels 猫，狗，火箭 --json
    triptych classify cat.png --labels @animals.txt --template "a photo of {}" --template "a drawing of {}"
    triptych classify cat.png --model my-vit                 its own classes, the first five
    """
    from .look import classify

    classify(images, labels=labels, templates=templates or (), model=model, device=device, as_json=as_json)


@eyes_app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="WORDS|IMAGE", help="What to look for: words, or a picture to find the like of.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Pictures, subfolders included: .png .jpg .jpeg .webp .gif.")],
    n: Annotated[int, typer.Option("-n", "--num-images", help="How many of the best.", min=1, max=10_000)] = 10,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="SHEET.png|DIR",
        help="Also draw them on a contact sheet; nothing is overwritten.")] = None,
    model: Eyes = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Find pictures in a folder by words, or by a picture.

    The first search looks at every picture and keeps what it saw in the user's cache; later ones look at new and changed ones alone.

    \b
    triptych search "a red apple" my-pictures
    triptych search 火箭 my-pictures -n 20 -o rockets.png
    triptych search cat.png my-pictures --json
    """
    from .search import search

    search(query, folder, n=n, output=output, model=model, device=device, as_json=as_json)


@eyes_app.command()
def score(
    image: Picture,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="What it may show, in English or Chinese; a score each.")],
    model: Eyes = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """How well words fit a picture: the CLIP score, max(100 cos, 0).

    The scale belongs to the eyes: compare scores of the same eyes alone.

    \b
    triptych score cat.png "a smiling cat"
    triptych score cat.png "a smiling cat" "a rocket" 微笑的猫
    """
    from .look import score

    score(image, texts, model=model, device=device, as_json=as_json)


@eyes_app.command()
def detect(
    image: Picture,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE|DIR",
        help="Where the picture with boxes goes; nothing is overwritten.  [default: IMAGE-detected.png, beside it]")] = None,
    threshold: Annotated[float, typer.Option("--threshold", metavar="P", help="Least probability that is shown.", min=0, max=1)] = 0.5,
    model: Detector = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Find objects in a picture, and draw their boxes.

    A line each: probability, name, the middle of its box and the box's sides as shares of the picture. A detector knows the kinds
    of things and of pictures that it was trained on, the embedded one drawn scenes.

    \b
    triptych detect scene.png
    triptych detect scene.png --threshold 0.8 -o found.png
    triptych detect photo.jpg --model detr-resnet-50 --json
    """
    from .look import detect

    detect(image, output=output, threshold=threshold, model=model, device=device, as_json=as_json)


@eyes_app.command()
def probe(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A subfolder of pictures for each class.")],
    method: Annotated[str, typer.Option("--method", help="logistic (softmax regression) or ridge (least squares, faster).")] = "logistic",
    model: Eyes = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """How much of your classes eyes can tell apart: a linear probe on their frozen features.

    Five parts take turns: each is asked about by a layer that learnt from the other four.

    \b
    triptych probe my-animals
    triptych probe my-animals --model my-vit --method ridge --json
    """
    from .look import probe

    probe(folder, method=method, model=model, device=device, as_json=as_json)
