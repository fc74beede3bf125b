"""What an SVG says about itself: title, description, keywords and creator, out of the RDF block (Dublin Core) in its <metadata>.

Read with expat directly, a few kilobytes a file: parsing ends at the first </cc:Work>. What makes XML dangerous is entities, and they
are off but for one use that is harmless: a short text without a reference in it (Adobe Illustrator names its namespaces so). Nesting,
which is what grows without bound, files and addresses are refused where they are declared, before anything could use them. That is
what the package defusedxml adds to Python's own parser, hence nothing is installed for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Work", "read"]

CHUNK, MOST = 8192, 2**20  # bytes: at a time, and in all before the metadata must have ended


@dataclass
class Work:
    """As written, white space folded. keywords: in the order of the file, empty ones left away."""

    title: str = ""
    description: str = ""
    creator: str = ""
    keywords: list[str] = field(default_factory=list)


class _Done(Exception):
    pass


def read(path: Path) -> Work:
    """Raises ValueError with the reason: not well-formed up to there, an entity that is refused, no metadata; OSError as `open` does."""
    from xml.parsers import expat

    work, stack, text = Work(), [], []

    def start(name: str, _: dict[str, str]) -> None:
        stack.append(name.rpartition(" ")[2])  # "namespace local"
        text.clear()

    def end(_: str) -> None:
        place = stack[stack.index("Work") + 1 :] if "Work" in stack else None
        words = " ".join("".join(text).split())
        text.clear()
        stack.pop()
        match place:
            case []:
                raise _Done
            case ["title"]:
                work.title = words
            case ["description"]:
                work.description = words
            case ["creator", *_, "title"]:
                work.creator = words
            case ["subject", *_, "li"] if words:
                work.keywords.append(words)

    def declared(name: str, _parameter: bool, value: str | None, *_: object) -> None:
        if value is None or "&" in value or "%" in value or len(value) > 1000:
            raise ValueError(f"entity {name!r} is refused: only a short text without references is taken")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = text.append, declared
    try:
        with open(path, "rb") as file:
            for _ in range(MOST // CHUNK):
                chunk = file.read(CHUNK)
                parser.Parse(chunk, not chunk)
                if not chunk:
                    break
    except expat.ExpatError as error:
        raise ValueError(str(error)) from None
    except _Done:
        return work
    raise ValueError("no metadata (rdf:RDF with a cc:Work)" if not chunk else f"no metadata in its first {MOST} bytes")
