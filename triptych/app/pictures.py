"""Picture files: the one writer and the one reader of what a picture says about itself.

A file carries three things, each for its own reader:

    parameters   A1111's text, which every gallery and prompt reader knows; as text in PNG, as EXIF UserComment elsewhere
    triptych     our record as JSON, from which the same pixels can be drawn again; `triptych` iTXt chunk, or EXIF MakerNote
    XMP          IPTC DigitalSourceType = trainedAlgorithmicMedia: made by a trained model (machine-readable marking)

The record is the truth. The `parameters` text keeps everything too, but not by its plain form alone: A1111 strips the white
space around lines and takes a line that begins with "Negative prompt:" for the start of the negative prompt. A prompt which
that would change is written a second time, JSON-quoted, under "Exact prompt" in the settings line, where A1111 ignores it.

What is read is untrusted: headers only, at most 1 MiB of text, JSON and nothing else, every field's type checked.
"""

from __future__ import annotations

import json
import os
import re
import uuid
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

__all__ = ["SCHEMA", "SUFFIXES", "format_parameters", "parse_parameters", "read", "read_parameters", "write"]

SCHEMA = 1  # of the record
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_LARGEST_TEXT = 2**20
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_DAMAGED = (OSError, SyntaxError, ValueError, Warning, KeyError, TypeError, IndexError, AttributeError)  # what Pillow's parsers raise
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'xmp:CreatorTool="Triptych" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

# Field of the record -> its type. What a record may hold beyond these is kept as it is.
_REQUIRED: dict[str, type] = {"schema": int, "prompt": str, "seed": int, "size": list, "version": str}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "negative": str, "steps": int, "guidance": (int, float), "sampler": str, "model": str, "model_hash": str, "panels": dict,
    "noise": int, "exact": bool, "precision": str, "device": str, "torch": str, "settings": dict, "batch": list, "guide": dict,
    "given": dict, "like": dict, "loras": list,
}  # fmt: skip
_INSIDE: dict[str, dict[str, type | tuple[type, ...]]] = {
    "guide": {"name": str, "fingerprint": str, "text_encoder": str, "scale": (int, float)},
    "like": {"by": str, "scale": (int, float), "picture": str, "file": str},
}
_LORA: dict[str, type | tuple[type, ...]] = {"file": str, "hash": str, "weight": (int, float)}  # of each


# --- writing ------------------------------------------------------------------------------------------------------------


def write(image: Image.Image, path: str | Path, record: Mapping[str, Any] | None, *, overwrite: bool = False) -> None:
    """Write PNG (exact), WebP (lossless) or JPEG, by the suffix; whole or not at all. `record=None`: no word about how it was made.

    Raises FileExistsError unless `overwrite`, ValueError for another suffix, a record that lacks a field, or one too long for EXIF.
    """
    path = Path(path)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a file without a suffix'}; there are: {', '.join(SUFFIXES)}")
    buffer = BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG", pnginfo=_png_chunks(record))
    else:
        extra = {} if record is None else {"exif": _exif(record, path), "xmp": _XMP.encode()}
        image.save(buffer, kind, **extra, **({"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0}))
    temporary = path.with_name(f".{path.name[:60]}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path) if overwrite else _move_to_new(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _move_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a rename it fails where something is already, also in a race
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(17, "is there already", str(path)) from None
        os.replace(temporary, path)


def _png_chunks(record: Mapping[str, Any] | None) -> PngImagePlugin.PngInfo | None:
    if record is None:
        return None
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", _encodable(format_parameters(record)))
    chunks.add_itxt("triptych", json.dumps(_checked(record)))
    chunks.add_itxt("XML:com.adobe.xmp", _XMP)
    return chunks


def _exif(record: Mapping[str, Any], path: Path) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD).update({
        _USER_COMMENT: b"UNICODE\0" + _encodable(format_parameters(record)).encode("utf-16-be"),
        _MAKER_NOTE: b"triptych\0" + json.dumps(_checked(record)).encode(),
    })  # fmt: skip
    data = exif.tobytes()
    if len(data) > 65_000:
        raise ValueError(f"{path}: the record has {len(data)} bytes and EXIF holds 65,000; write a .png, or use --no-metadata")
    return data


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8; the JSON record keeps it


# --- reading ------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[str, Any] | None:
    """The record of a picture that we wrote, None for any other picture.

    Raises ValueError for a file that is no PNG, JPEG or WebP, and for a damaged or hostile record.
    """
    text = _texts(path)[0]
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its record is not JSON: {str(error)[:200]}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}: its record is a {type(record).__name__}, expected an object")
    try:
        return _checked(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_parameters(path: str | Path) -> dict[str, Any] | None:
    """What A1111's text in a picture of anybody's says, None where there is none. Raises ValueError as `read` does."""
    text = _texts(path)[1]
    return None if text is None else parse_parameters(text)


def _texts(path: str | Path) -> tuple[str | None, str | None]:
    """(our record, the parameters text): read from the header; pixels are never decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                if image.format == "PNG":
                    return _small(image.info.get("triptych"), path), _small(image.info.get("parameters"), path)
                ifd = image.getexif().get_ifd(_EXIF_IFD)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no PNG, JPEG or WebP picture") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is damaged, or no picture to be trusted: {str(error)[:200]}") from None
    note, comment = ifd.get(_MAKER_NOTE), ifd.get(_USER_COMMENT)
    record = note[9:].decode("utf-8", "replace") if isinstance(note, bytes) and note.startswith(b"triptych\0") else None
    return _small(record, path), _small(_comment(comment), path)


def _comment(value: Any) -> str | None:
    if not isinstance(value, bytes):
        return None
    if value.startswith(b"UNICODE\0"):
        return value[8:].decode("utf-16-be", "replace")
    return value[8:].decode("utf-8", "replace") if value.startswith(b"ASCII\0\0\0") else None


def _small(text: Any, path: str | Path) -> str | None:
    if text is not None and len(text) > _LARGEST_TEXT:
        raise ValueError(f"{path}: a text of {len(text)} characters in a picture; at most {_LARGEST_TEXT} are read")
    return None if text is None else str(text)


def _checked(record: Mapping[str, Any]) -> dict[str, Any]:
    for name, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if record.get(name) is not None or name in _REQUIRED:
            _check_type(name, record.get(name), kind)
    for field, inside in _INSIDE.items():
        for name, kind in inside.items() if record.get(field) is not None else ():
            _check_type(f"{field}.{name}", record[field].get(name), kind)
    for one in record.get("loras") or ():
        for name, kind in _LORA.items():
            _check_type(f"loras.{name}", one.get(name) if isinstance(one, dict) else None, kind)
    for name in ("size", "batch"):
        pair = record.get(name)
        if pair is not None and not (len(pair) == 2 and all(type(n) is int and 0 <= n < 2**31 for n in pair)):
            raise ValueError(f"field {name!r} of the record is {str(pair)[:60]}, expected two whole numbers")
    if record["schema"] > SCHEMA:
        raise ValueError(f"the record is of schema {record['schema']}, this Triptych reads up to {SCHEMA}; a newer one made it")
    return dict(record)


def _check_type(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = kind.__name__ if isinstance(kind, type) else "number"
        raise ValueError(f"field {name!r} of the record is {str(value)[:60]!r}, expected {wanted}")


# --- the parameters text ------------------------------------------------------------------------------------------------

_LINE = {
    "Steps": "steps", "Sampler": "sampler", "CFG scale": "guidance", "Seed": "seed", "Size": "size", "Model hash": "model_hash",
    "Model": "model", "Version": "version", "Exact prompt": "prompt", "Exact negative prompt": "negative",
}  # fmt: skip
_SAMPLERS = {"dpmpp_2m": "DPM++ 2M", "euler": "Euler", "heun": "Heun"}  # ours -> A1111's
_NUMBERS = {"steps": int, "guidance": float, "seed": int}
_PAIR = re.compile(r'(\w[\w /-]{1,60}): *("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')  # A1111's, but linear in time


def format_parameters(record: Mapping[str, Any]) -> str:
    """A record as A1111's text. Whatever the prompt holds, `parse_parameters` gives the same fields back."""
    prompt, negative = record["prompt"], record.get("negative") or ""
    body: list[str] = [prompt] + ([f"Negative prompt: {negative}"] if negative else [])
    values = {name: record.get(name) for name in _LINE.values()}
    values["size"] = "x".join(str(n) for n in record["size"])
    values["sampler"] = _SAMPLERS.get(values["sampler"] or "", values["sampler"])
    values["guidance"] = None if values["guidance"] is None else repr(float(values["guidance"])).removesuffix(".0")
    plain = _split_body("\n".join(body).lstrip().split("\n"))
    values["prompt"] = None if plain[0] == prompt else prompt
    values["negative"] = None if plain[1] == negative else negative
    pairs = [f"{key}: {_quoted(values[name], name)}" for key, name in _LINE.items() if values[name] is not None]
    pairs += [f"{key}: {_quoted(value, key)}" for key, value in record.get("other", {}).items()]
    return "\n".join([*body, ", ".join(pairs)])


def parse_parameters(text: str) -> dict[str, Any]:
    """A1111's text, ours or another program's, as fields of a record; keys that a record does not know stand in "other".

    A last line with fewer than three pairs belongs to the prompt, as with A1111. Never raises.
    """
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    fields: dict[str, Any] = {}
    fields["prompt"], fields["negative"] = _split_body(lines)
    other = {}
    for key, value in pairs:
        name = _LINE.get(key)
        read = _read_value(name, _unquoted(value))
        if name is None or read is None:
            other[key] = _unquoted(value)
        else:
            fields[name] = read
    return fields | ({"other": other} if other else {})


def _split_body(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in (line.strip() for line in lines):
        if line.startswith("Negative prompt:"):
            into, line = negative, line[16:].strip()
        if into or line:  # A1111 drops what is empty at the start of either
            into.append(line)
    return "\n".join(prompt), "\n".join(negative)


def _quoted(value: Any, name: str) -> str:
    text = str(value)
    safe = text == text.strip() and text and not any(c in text for c in ',:\n\r"') and name not in ("prompt", "negative")
    return text if safe else json.dumps(text, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except (ValueError, RecursionError):
            pass
    return value


def _read_value(name: str | None, value: str) -> Any:
    """The field's value, None where it does not read as one."""
    try:
        if name == "size":
            width, height = value.split("x")
            return [int(width), int(height)]
        if name == "sampler":
            return next((ours for ours, theirs in _SAMPLERS.items() if theirs == value), value)
        return _NUMBERS.get(name or "", str)(value)
    except ValueError:
        return None
