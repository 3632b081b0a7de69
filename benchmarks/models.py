"""Which networks are read, how long that takes, how much can be searched: writes docs/reference/models.md.

    OMP_WAIT_POLICY=passive python benchmarks/models.py

The variable matters where others use the machine, too: threads that spin while they wait for each other then
take many times as long.

Packages other than torchvision (timm, efficientnet-lite-pytorch, segmentation_models_pytorch, transformers,
ultralytics) are optional: a heading whose package is missing is left out, with a note. No weights are loaded.
Names after the command limit the page to those networks; also give `--output` then.
"""

import argparse
import os
import platform
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from train_step import _processor

from bcnet.errors import SpaceError
from bcnet.space.discover import discover_space
from bcnet.space.width_space import Frozen, WidthSpace

CLASSIFIERS = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "mnasnet1_0"),
    *("regnet_x_400mf", "regnet_y_400mf", "vgg16", "vgg16_bn", "densenet121", "squeezenet1_0", "googlenet"),
    *("inception_v3", "shufflenet_v2_x1_0", "convnext_tiny"),
)
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")
DETECTION = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_resnet50_fpn")
SIDES = {"inception_v3": 299, **dict.fromkeys(("lraspp_mobilenet_v3_large", *DETECTION), 320)}
TIMM = (
    *("ghostnet_100", "mobilenetv4_conv_small", "repvgg_a0", "resnest14d", "hrnet_w18_small", "dla34"),
    *("fastvit_t8", "convnextv2_atto", "cspresnet50", "res2net50_26w_4s", "skresnet18", "mixnet_s"),
    *("mobilenetv4_hybrid_medium", "efficientvit_b0", "efficientvit_m0", "ghostnetv2_100", "repghostnet_100"),
    *("tf_mobilenetv3_small_100", "tf_mobilenetv3_large_100", "tf_efficientnet_b0", "tf_efficientnetv2_b0"),
    *("tf_efficientnet_lite0", "mobilenetv2_100", "mobileone_s0", "mnasnet_100", "semnasnet_100"),
    *("hardcorenas_a", "fbnetc_100", "fbnetv3_b", "lcnet_050", "tinynet_a", "spnasnet_100", "rexnet_100"),
    *("efficientnet_es", "mobilenet_edgetpu_v2_xs", "cspdarknet53", "darknet53", "cs3darknet_s"),
    *("ecaresnet26t", "resnetblur50", "densenetblur121d", "seresnet50", "resnet18d", "resnetv2_50"),
    *("res2next50", "gcresnet33ts", "xception41", "legacy_xception", "ese_vovnet19b_dw", "nf_resnet50"),
    *("dm_nfnet_f0", "regnetz_b16", "gernet_s", "selecsls42b", "inception_v4", "dpn68", "hgnetv2_b0"),
    *(
        "convmixer_768_32",
        "repvit_m0_9",
        "starnet_s1",
        "edgenext_xx_small",
        "mobilevit_xxs",
        "poolformer_s12",
    ),
)
LITE = tuple(f"efficientnet-lite{number}" for number in range(5))
SMP = (
    *("Unet resnet18", "Unet mobilenet_v2", "Unet efficientnet-b0", "Unet densenet121", "Unet vgg11_bn"),
    *("UnetPlusPlus resnet18", "MAnet resnet18", "Linknet resnet18", "FPN resnet18", "PSPNet resnet18"),
    *("PAN resnet18", "DeepLabV3 resnet18", "DeepLabV3Plus mobilenet_v2", "UPerNet resnet18"),
)
TRANSFORMERS = (
    *("MobileNetV1", "MobileNetV2", "ResNet", "RegNet", "ConvNext", "ConvNextV2", "EfficientNet", "Bit"),
    *("HGNetV2", "PoolFormer"),
)
YOLO = ("yolov5n", "yolov8n", "yolo11n")
OUTPUT = "it is the network's output"  # said once, above the tables
SHORT_BELOW = 0.8  # where less than this is searchable, a row names all that stays
EXPLANATION = """\
`bcnet.discover_space(model, example_input)` with its default arguments, on networks as their libraries make
them (without pretrained weights, which make no difference here).

- **seconds**: processor time, {repeats}. Discovery runs the network, traces its channels, extracts narrow
  networks and runs those, so larger images take longer.
- **groups**: widths that can be chosen independently. Channels that must be equal, as on both sides of an
  addition, are one group.
- **layers**: convolutions and linear layers that run.
- **MACs**, **parameters**: the part of the multiply-accumulates (parameters) that lies in layers (tensors)
  which can be narrowed, on either side. Products of two activations, as in attention, are not
  counted.
- **narrowest**: the share of the multiply-accumulates that is left when every group takes its narrowest
  choice.
- **what stays**: layers that keep output channels, and why, in the words of `bcnet inspect`; where the
  reasons of several layers differ only in names and numbers, the first is given. `*` stands for any number.
  Such a layer can be narrowed on its input side all the same. The layer that makes a network's output stays
  in every network: that is not repeated in the rows.
"""


@dataclass(frozen=True)
class Row:
    """One network: its space, and the seconds of every discovery."""

    name: str
    size: int
    seconds: tuple[float, ...]
    space: WidthSpace | None
    error: str = ""


def torchvision_network(name: str) -> tuple[nn.Module, Any, int]:
    """(network, example input, side of its image in pixels)."""
    size = {"inception_v3": 299, "lraspp_mobilenet_v3_large": 320}.get(
        name, 320 if name in DETECTION else 224
    )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # the default warns that it will change
    if name in (*SEGMENTATION, *DETECTION):
        options["weights_backbone"] = None
    if name == "fasterrcnn_resnet50_fpn":
        options |= {"min_size": size, "max_size": size}
    model = torchvision.models.get_model(name, weights=None, **options)
    inputs = ([torch.rand(3, size, size)],) if name in DETECTION else torch.rand(1, 3, size, size)
    return model, inputs, size


def timm_network(name: str) -> tuple[nn.Module, Any, int]:
    """(network, example input, side of its image in pixels)."""
    import timm

    return timm.create_model(name), torch.rand(1, 3, 224, 224), 224


def lite_network(name: str) -> tuple[nn.Module, Any, int]:
    """(network, example input, side of its image in pixels)."""
    from efficientnet_lite_pytorch import EfficientNet

    size = EfficientNet.get_image_size(name)
    return EfficientNet.from_name(name), torch.rand(1, 3, size, size), size


def segmentation_network(name: str) -> tuple[nn.Module, Any, int]:
    """(network, example input, side of its image); names are an architecture and an encoder."""
    import segmentation_models_pytorch

    architecture, encoder = name.split()
    model = getattr(segmentation_models_pytorch, architecture)(encoder, encoder_weights=None, classes=21)
    return model, torch.rand(1, 3, 256, 256), 256


def transformers_network(name: str) -> tuple[nn.Module, Any, int]:
    """(network, example input, side of its image in pixels)."""
    import transformers

    config = getattr(transformers, f"{name}Config")()
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    return model, torch.rand(1, 3, 224, 224), 224


def yolo_network(name: str) -> tuple[nn.Module, Any, int]:
    """(network, example input, side of its image in pixels)."""
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(f"{name}.yaml", verbose=False), torch.rand(1, 3, 320, 320), 320


HEADINGS: dict[str, tuple[tuple[str, ...], Callable[[str], tuple[nn.Module, Any, int]]]] = {
    "torchvision, classification": (CLASSIFIERS, torchvision_network),
    "torchvision, segmentation and detection": ((*SEGMENTATION, *DETECTION), torchvision_network),
    "timm": (TIMM, timm_network),
    "efficientnet-lite-pytorch": (LITE, lite_network),
    "segmentation_models_pytorch": (SMP, segmentation_network),
    "transformers": (TRANSFORMERS, transformers_network),
    "ultralytics": (YOLO, yolo_network),
}


def measure(name: str, build: Callable[[str], tuple[nn.Module, Any, int]], repeats: int) -> Row:
    """Discover a network's space, `repeats` times."""
    torch.manual_seed(0)
    model, inputs, size = build(name)
    seconds, space = [], None
    try:
        for _ in range(repeats):
            start = time.process_time()
            space = discover_space(model, inputs)
            seconds.append(time.process_time() - start)
    except SpaceError as cause:
        return Row(name, size, (), None, str(cause))
    return Row(name, size, tuple(seconds), space)


def line(row: Row) -> str:
    """The network's line of its table."""
    if row.space is None:
        return f"| {row.name} | {row.size} | | | | | | | cannot be read: {row.error} |"
    return (
        f"| {row.name} | {row.size} | {min(row.seconds):.1f} | {len(row.space.groups)} | "
        f"{len(row.space.layers)} | {percent(row.space.searchable_macs())} | "
        f"{percent(row.space.searchable_params())} | {percent(narrowest(row.space))} | "
        f"{stays(row.space) or '-'} |"
    )


def narrowest(space: WidthSpace) -> float:
    """The narrowest network's share of the full one's multiply-accumulates."""
    return space.macs(space.smallest()) / space.macs(space.largest())


def percent(part: float) -> str:
    """To a tenth."""
    return f"{part:.1%}".replace("%", " %")


def stays(space: WidthSpace) -> str:
    """Frozen layers, those with the same reason together."""
    alike: dict[str, list[Frozen]] = {}
    for entry in space.frozen:
        if entry.reason != OUTPUT:
            alike.setdefault(re.sub(r"'[^']*'|\d+(, \d+)*", "*", entry.reason), []).append(entry)
    everything = space.searchable_macs() < SHORT_BELOW
    return "; ".join(
        f"{names([entry.name for entry in entries], everything)}: {entries[0].reason}"
        for entries in alike.values()
    ).replace("|", "\\|")


def names(layers: list[str], everything: bool) -> str:
    """Layers whose names differ in numbers only, as one pattern; the first patterns, or every one."""
    patterns: dict[str, list[str]] = {}
    for layer in dict.fromkeys(layers):
        patterns.setdefault(re.sub(r"\d+(?=\.|-|$)", "*", layer), []).append(layer)
    shown = [f"`{found[0] if len(found) == 1 else pattern}`" for pattern, found in patterns.items()]
    if not everything and len(shown) > 3:
        shown = [*shown[:3], "..."]
    count = sum(len(found) for found in patterns.values())
    return shown[0] if count == 1 else f"{count} layers ({', '.join(shown)})"


def page(tables: dict[str, list[Row]], repeats: int) -> str:
    """The whole of docs/reference/models.md."""
    measured = [row.seconds for rows in tables.values() for row in rows if len(row.seconds) > 1]
    noise = np.median([max(seconds) / min(seconds) for seconds in measured]) if measured else 1.0
    parts = [
        "# Networks that are read",
        EXPLANATION.format(repeats="run once" if repeats == 1 else f"the least of {repeats} runs").strip(),
        f"Made by `OMP_WAIT_POLICY=passive python benchmarks/models.py` on {machine()}."
        + (
            f" The slower discovery of a network took {noise:.2f} times as long as the faster one (median "
            "over all of them)."
            if repeats > 1
            else ""
        ),
    ]
    for heading, rows in tables.items():
        parts.append(f"## {heading}")
        parts.append(
            "| network | pixels | seconds | groups | layers | MACs | parameters | narrowest | what stays |\n"
            "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(line(row) for row in rows)
        )
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """Processor, threads and versions."""
    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    try:
        import timm

        versions += f", timm {timm.__version__}"
    except ImportError:
        pass
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}, "
        f"Python {platform.python_version()}"
    )


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help="default: all of them")
    add("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    add("--repeats", type=int, default=2, help="discoveries of each network (default: 2)")
    add("--output", type=Path, default=Path("docs/reference/models.md"), help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # those of the libraries' constructors
    measure("resnet18", torchvision_network, 1)  # imports, and what PyTorch does once
    tables: dict[str, list[Row]] = {}
    for heading, (networks, build) in HEADINGS.items():
        rows = []
        for name in networks:
            if options.networks and name not in options.networks:
                continue
            try:
                rows.append(measure(name, build, options.repeats))
            except ImportError as cause:
                print(f"{heading} is left out: {cause}")
                break
            print(line(rows[-1]), flush=True)
        if rows:
            tables[heading] = rows
    options.output.write_text(page(tables, options.repeats), encoding="utf-8")


if __name__ == "__main__":
    main()
