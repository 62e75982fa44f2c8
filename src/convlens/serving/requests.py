"""A request's body to pictures: multipart, raw bytes or base64 in JSON, every limit checked before decoding."""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

from PIL import Image
from starlette.requests import Request

from convlens.serving.settings import ServeSettings

__all__ = ["Refused", "bodies", "check_pixels"]


class Refused(Exception):
    """A request that is not answered: HTTP status, a short code, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


async def bodies(request: Request, settings: ServeSettings) -> list[bytes]:
    """The bytes of each picture of a request.

    Raises:
        Refused: 413 too large or too many, 415 another content type, 400 anything else that is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    raw = await _read(request, settings.body_bytes)
    if kind == "application/json":
        found = _from_json(raw)
    elif kind == "multipart/form-data":
        found = await _from_form(request, raw, settings.images)
    elif kind.startswith(("image/", "audio/", "text/")) or kind in ("", "application/octet-stream"):
        found = [raw]
    else:
        expected = "an image, application/octet-stream, multipart/form-data or application/json"
        raise Refused(415, "content_type", f"expected {expected}, received {kind!r}")
    if not found or not all(found):
        raise Refused(400, "empty", "expected at least one picture, received none or an empty one")
    if len(found) > settings.images:
        raise Refused(413, "too_many", f"expected at most {settings.images} pictures, received {len(found)}")
    return found


def check_pixels(raw: bytes, limit: int) -> None:
    """Refuse a picture whose header promises too many pixels; what is no picture is left to the decoder."""
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            width, height = picture.size
    except Exception:  # the decoder says what is wrong with it
        return
    if width * height > limit:
        raise Refused(413, "pixels", f"expected at most {limit:,} pixels, received {width}×{height}")


async def _read(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise Refused(413, "body", f"expected at most {limit:,} bytes, received {int(length):,}")
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise Refused(413, "body", f"expected at most {limit:,} bytes")
    return bytes(read)


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


async def _from_form(request: Request, raw: bytes, most: int) -> list[bytes]:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def stream() -> Any:
        yield raw

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=most + 1, max_fields=most).parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise Refused(400, "multipart", f"expected a form with files ({error})") from None
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    try:
        return [await part.read() for part in files]
    finally:
        await form.close()
