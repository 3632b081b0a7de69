"""Jobs and answers as JSON: short `bytes` as {"$base64": ...}, long ones in files, as {"$file": ...}."""

import base64
import hashlib
from typing import Any, Callable

INLINE = 64 * 1024  # longer `bytes` are sent as files


def packed(value: Any, keep: Callable[[str, bytes], None]) -> Any:
    """A job or an answer as JSON values; `keep` receives the name (SHA-256) and content of each file."""
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
    """The job or answer of a packed one; `fetch` returns the content of a file by its name and size."""
    if isinstance(value, list):
        return [unpacked(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    if "$base64" in value:
        return base64.b64decode(value["$base64"])
    if "$file" in value:
        return fetch(value["$file"], value["size"])
    return {key: unpacked(item, fetch) for key, item in value.items()}
