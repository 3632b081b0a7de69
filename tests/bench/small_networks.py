"""The configuration of the benchmarks on one's own network, in its smallest form."""

CONFIG = """
[model]
name = "cbm-resnet"
args = {widths = [4, 4, 4, 4, 4, 4, 4]}
[data]
image_size = 16
train_limit = 80
test_limit = 40
[space]
bins = 4
channel_multiple = 1
min_width = 0.25
[train]
batch_size = 20
[search]
recalibration_images = 20
"""
