"""Jobs and answers as JSON. Few bytes stand in it, {"$base64": ...}; many travel as files, {"$file": ...}."""

import base64
import hashlib
from typing import Any, Callable

INLINE = 64 * 1024  # more bytes than this travel as files


def packed(value: Any, keep: Callable[[str, bytes], None]) -> Any:
    """A job or an answer as JSON values; `keep` gets the bytes that travel as files, with their SHA-256."""
    if isinstance(value, (list, tuple)):
        return [packed(item, keep) for item in value]
    if isinstance(value, dict):
        return {key: packed(item, keep) for key, item in value.items()}
    if not isinstance(value, bytes):
        return value
    if len(value) <= INLINE:
        return {"$base64": base64.b64encode(value).decode()}
    name = hashlib.sha256(value).hexdigest()
    keep(name, value)
    return {"$file": name, "size": len(value)}


def unpacked(value: Any, fetch: Callable[[str, int], bytes]) -> Any:
    """The job or the answer again; `fetch` gives the bytes of a file by its name and size."""
    if isinstance(value, list):
        return [unpacked(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    if "$base64" in value:
        return base64.b64decode(value["$base64"])
    if "$file" in value:
        return fetch(value["$file"], value["size"])
    return {key: unpacked(item, fetch) for key, item in value.items()}
