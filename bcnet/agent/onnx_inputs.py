"""Names and shapes of an ONNX file's inputs, for a device without the onnx package. In: the file's bytes."""

from typing import Any, List, Optional, Tuple

GRAPH, INPUT, INITIALIZER = 7, 11, 5  # fields of onnx.proto's ModelProto and GraphProto


def onnx_inputs(model: bytes) -> Optional[List[Tuple[str, List[int]]]]:
    """Names and shapes (-1: dynamic) of an ONNX file's inputs; None for another file, e.g. an engine.

    The file is parsed as a protocol buffer (onnx.proto), without any library.
    """
    try:
        graphs = [value for field, value in _fields(model) if field == GRAPH]
        if not graphs:
            return None
        inputs, constants = [], set()
        for field, value in _fields(graphs[0]):
            if field == INPUT:
                entry = dict(_fields(value))
                shape = dict(_fields(dict(_fields(entry[2]))[1])).get(2, b"")
                sides = [dict(_fields(side)).get(1, -1) for number, side in _fields(shape) if number == 1]
                inputs.append((entry[1].decode(), [side if side else -1 for side in sides]))
            elif field == INITIALIZER:
                constants.add(dict(_fields(value)).get(8, b"").decode())
        return [(name, shape) for name, shape in inputs if name not in constants]
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _fields(content: Any) -> List[Tuple[int, Any]]:
    """The fields of a protobuf message: number and value, an integer or bytes. Raises ValueError."""
    view, found, place = memoryview(content), [], 0
    while place < len(view):
        key, place = _varint(view, place)
        kind = key & 7
        value: Any
        if kind == 0:
            value, place = _varint(view, place)
        elif kind in (1, 2, 5):
            length = 8 if kind == 1 else 4
            if kind == 2:
                length, place = _varint(view, place)
            value, place = bytes(view[place : place + length]), place + length
        else:
            raise ValueError("not a protocol buffer")
        if place > len(view):
            raise ValueError("truncated")
        found.append((key >> 3, value))
    return found


def _varint(view: Any, place: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("not a protocol buffer")
