"""Peaks of a device for tests, slow enough for widths to matter in a small network."""

PEAKS = """
[roofline]
fp32_tflops = 0.236
fp16_tflops = 0.472
int8_tops = 0.9
bandwidth_gb_s = 25.6
launch_us = 3.4
source = "figures of this test"
"""
