"""A request's body to pictures: multipart, raw bytes or base64 in JSON, every limit checked before decoding."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from convlens.serving.settings import ServeSettings

__all__ = ["Refused", "bodies", "pictures_in", "pixels_of"]

Headers = Sequence[tuple[bytes, bytes]]
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_ONE, _JSON, _FORM = "application/octet-stream", "application/json", "multipart/form-data"
_CURL = "application/x-www-form-urlencoded"  # what curl says of --data-binary unless it is told
_RAW = ("image/", "audio/", "text/")


class Refused(Exception):
    """A request that is not answered: HTTP status, a short code, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


async def bodies(
    headers: Headers, receive: Any, settings: ServeSettings, hold: Callable[[int], None]
) -> list[bytes]:
    """The bytes of each picture of a request.

    Args:
        headers: names in lower case, as ASGI has them.
        receive: ASGI's.
        settings: the limits.
        hold: told the bytes that are kept, before the next are read; may raise.

    Raises:
        Refused: 413 too large or too many, 415 another content type, 400 anything else that is wrong.
    """
    kind = _kind_of(_header(headers, b"content-type"))
    raw = await _read(headers, receive, settings.body_bytes, hold)
    if kind == _FORM:
        return _counted(await _from_form(headers, raw, settings.images), settings.images)
    return _counted([raw] if kind == _ONE else _from_json(raw), settings.images)


def pictures_in(content_type: str, raw: bytes, most: int) -> list[bytes] | None:
    """The bytes of each picture of a whole body; None for a form, which `bodies` reads. Errors as there."""
    kind = _kind_of(content_type)
    if kind == _FORM:
        return None
    return _counted([raw] if kind == _ONE else _from_json(raw), most)


def _kind_of(content_type: str) -> str:
    """`_ONE` picture as it is, `_JSON` or a `_FORM`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in (_JSON, _FORM):
        return kind
    if kind in ("", _ONE, _CURL) or kind.startswith(_RAW):
        return _ONE
    expected = "an image, application/octet-stream, multipart/form-data or application/json"
    raise Refused(415, "content_type", f"expected {expected}, received {kind[:100]!r}")


def _counted(found: list[bytes], most: int) -> list[bytes]:
    if not found or not all(found):
        raise Refused(400, "empty", "expected at least one picture, received none or an empty one")
    if len(found) > most:
        raise Refused(413, "too_many", f"expected at most {most} pictures, received {len(found)}")
    return found


def pixels_of(raw: bytes) -> int:
    """Pixels that a picture's header promises; 0 for what is no picture, which is left to the decoder to say."""
    if raw[:16] == _PNG_START and raw.count(b"IHDR") == 1:  # opening one takes as long as decoding a small one
        return int.from_bytes(raw[16:20], "big") * int.from_bytes(raw[20:24], "big")
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        return 1 << 62
    except Exception:  # the decoder says what is wrong with it
        return 0
    return width * height


async def _read(headers: Headers, receive: Any, limit: int, hold: Callable[[int], None]) -> bytes:
    stated = _header(headers, b"content-length") or "0"
    length = int(stated) if stated.isdigit() and len(stated) < 20 else 0
    if length > limit:
        raise Refused(413, "body", f"expected at most {limit:,} bytes, received {length:,}")
    parts, count = [], 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "disconnected", "the connection was closed before the whole body had come")
        part = message.get("body", b"")
        count += len(part)
        hold(len(part))
        if count > limit:
            raise Refused(413, "body", f"expected at most {limit:,} bytes")
        parts.append(part)
        more = message.get("more_body", False)
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def _header(headers: Headers, name: bytes) -> str:
    return next((value.decode("latin-1") for found, value in headers if found == name), "")


def _from_json(raw: bytes) -> list[bytes]:
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "json", f"expected JSON, received something else ({error})") from None
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise Refused(400, "json", 'expected {"images": ["base64 …", …]}')
    try:
        return [base64.b64decode(one, validate=True) for one in images]
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "base64", f"expected base64, received something else ({error})") from None


async def _from_form(headers: Headers, raw: bytes, most: int) -> list[bytes]:
    from starlette.datastructures import Headers as FormHeaders
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> Any:
        yield raw

    try:
        form = await MultiPartParser(
            FormHeaders(raw=list(headers)), stream(), max_files=most + 1, max_fields=most
        ).parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise Refused(400, "multipart", f"expected a form with files ({error})") from None
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    try:
        return [await part.read() for part in files]
    finally:
        await form.close()
