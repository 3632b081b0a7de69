"""Classify images with the model.onnx beside this file: `python predict.py IMAGE ...` prints their classes.

Needs onnxruntime, numpy and Pillow. All that it knows about the network is in the file's metadata. What
cannot be read is one line on stderr, and the exit code is 1; wrong usage is 2.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MODEL = Path(__file__).with_name("model.onnx")


def rgb(name: str) -> Image.Image:
    """An image file as viewers show it (upright, in RGB)."""
    image = ImageOps.exif_transpose(Image.open(name))
    if image.mode == "F" or image.mode.startswith("I"):  # grey: floats from 0 to 1, or 16 bits
        depth = 1 if image.mode == "F" else 65535
        image = Image.fromarray((np.asarray(image, np.float64) / depth * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pixels_of(name: str, side: int) -> np.ndarray:
    """An image file as (3, side, side) float32 pixels, as the network was trained with them."""
    image = rgb(name)
    width, height = (min(length, 16 * min(image.size)) for length in image.size)  # the centre of thin images
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    width, height = (int(side * length / min(image.size)) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + side, top + side)), np.float32).transpose(2, 0, 1)


def preparation(rules: dict[str, Any]) -> Callable[[str], np.ndarray]:
    """The function that reads an image file in the form that the model takes."""
    if "in_file" in rules:  # the model itself scales and normalises uint8 pixels (height, width, 3)
        height, width = rules["inputs"][0]["shape"][1:3]
        return lambda name: np.asarray(ImageOps.fit(rgb(name), (width, height), Image.Resampling.BILINEAR))
    mean, std = (255 * np.array(rules[key], np.float32)[:, None, None] for key in ("mean", "std"))
    side = rules["resize"]["shorter_side"]
    return lambda name: (pixels_of(name, side) - mean) / std


def failed(what: str, cause: Exception) -> int:
    """One line on stderr; the exit code."""
    print(f"predict.py: {what} ({' '.join(str(cause).split())})", file=sys.stderr)
    return 1


def main(names: list[str]) -> int:
    """Print each image and its class; the exit code."""
    if not names or {"-h", "--help"} & set(names):
        print("usage: python predict.py IMAGE ...", file=sys.stdout if names else sys.stderr)
        return 0 if names else 2
    try:
        session = onnxruntime.InferenceSession(MODEL)
        rules = json.loads(session.get_modelmeta().custom_metadata_map["bcnet.preprocessing"])
        entry, count = rules["inputs"][0], rules["inputs"][0]["shape"][0]
        prepared = preparation(rules)
    except Exception as cause:
        return failed(f"{MODEL} is not a model that bcnet exported for a folder of images", cause)
    count, code = (1 if count == "batch" else count), 0
    for name in names:
        try:
            image = prepared(name)
        except Exception as cause:  # Pillow raises many kinds for a damaged file
            code = failed(f"{name} cannot be read as an image", cause)
            continue
        batch = np.repeat(image[None], count, axis=0)
        logits = session.run([rules["outputs"][0]], {entry["name"]: batch})[0][0]
        print(name, rules["classes"][logits.argmax()], sep="\t")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
