"""Train the weights that bcnet carries for `digit-scenes`: bcnet/models/digit_scenes.safetensors.

Each epoch sees new images of the training scans; the test images are only used for the accuracy at the end.

    python benchmarks/train_digit_scenes.py [OUT] [EPOCHS]
"""

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bcnet.data.sources.digit_scenes import SIDE, digit_scenes, scans, scenes
from bcnet.data.splits import Split
from bcnet.models import PACKAGED
from bcnet.models.digits import digit_scenes as network

EPOCHS, PER_SCAN, BATCH, RATE = 40, 10, 128, 0.1
FIRST_SEED = 100  # of an epoch's images; those of `digit_scenes` itself are below


def normalised(images: Tensor) -> Tensor:
    (mean,), (std,) = PACKAGED["digit-scenes"].mean, PACKAGED["digit-scenes"].std
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def accuracy(model: nn.Module, part: Split) -> float:
    model.eval()
    with torch.inference_mode():
        answers = [model(normalised(images)).argmax(1) for images in part.images.split(256)]
    return float((torch.cat(answers) == part.labels).float().mean())


def main(out: Path, epochs: int) -> None:
    torch.manual_seed(0)
    training = scans()[0]
    model = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (PER_SCAN * len(training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
    begun = time.process_time()
    for epoch in range(epochs):
        part = scenes(training, PER_SCAN, FIRST_SEED + epoch, SIDE)
        total = 0.0
        model.train()
        for index in torch.randperm(len(part)).split(BATCH)[: steps // epochs]:
            loss = nn.functional.cross_entropy(model(normalised(part.images[index])), part.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.process_time() - begun
        print(f"epoch {epoch + 1}: loss {total * epochs / steps:.4f}, {seconds:.0f} s", flush=True)
    # Half precision is half the size, and exact when it is loaded into float32.
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    save_file(state, out)
    reached = accuracy(model, digit_scenes(SIDE)[1])
    print(f"{reached:.4f} on the test images; {out.stat().st_size:,} bytes: {out}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]) if given else PACKAGED["digit-scenes"].file, int(given[1]) if given[1:] else EPOCHS)
