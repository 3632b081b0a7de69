"""Classify images with the model.onnx beside this file: `python predict.py IMAGE ...` prints their classes.

Needs onnxruntime, numpy and Pillow. All that it knows about the network is in the file's metadata.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
rules = json.loads(session.get_modelmeta().custom_metadata_map["bcnet.preprocessing"])
mean, std = (255 * np.array(rules[key], np.float32)[:, None, None] for key in ("mean", "std"))
entry, side = rules["inputs"][0], rules["resize"]["shorter_side"]
for name in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(name))
    if image.mode == "F" or image.mode.startswith("I"):  # grey: floats from 0 to 1, or 16 bits
        depth = 1 if image.mode == "F" else 65535
        image = Image.fromarray((np.asarray(image, np.float64) / depth * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    width, height = (min(length, 16 * min(image.size)) for length in image.size)  # the centre of thin images
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    width, height = (int(side * length / min(image.size)) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32).transpose(2, 0, 1)
    batch = np.repeat(
        ((pixels - mean) / std)[None], 1 if entry["shape"][0] == "batch" else entry["shape"][0], axis=0
    )
    logits = session.run([rules["outputs"][0]], {entry["name"]: batch})[0][0]
    print(name, rules["classes"][logits.argmax()], sep="\t")
