"""The estimate in docs/serving.md: each of its numbers follows from those before it."""

import pytest
from source import ROOT


PAGE = " ".join((ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split())
PROMPT, NEW, AT_ONCE = 512, 128, 512
FLOPS, BANDWIDTH = 0.40 * 989e12, 0.60 * 4.8e12

SHARER_LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
SHARER_READ = 31 * SHARER_LAYER
SHARER_PASS = PROMPT * (2 * SHARER_READ + 4 * PROMPT / 2 * 4096 * 31)
RECEIVER = 494e6 - 151_936 * 896
RECEIVER_ATTENTION = 4 * PROMPT / 2 * 896 * 24
BRIDGE_ATTENTION = 48 * 4 * PROMPT * 128
RECEIVER_PASS = PROMPT * (2 * RECEIVER + RECEIVER_ATTENTION + 2 * 22.3e6 + BRIDGE_ATTENTION)
BRIDGED = FLOPS / (SHARER_PASS + RECEIVER_PASS)  # requests a second
POSITION = 24 * 2 * 2 * 64 * 2  # bytes
WEIGHTS = 2 * 494e6


def step(positions: float) -> float:
    """Seconds of a decoding step whose requests hold `positions` each."""
    return (WEIGHTS + AT_ONCE * positions * POSITION) / BANDWIDTH


DECODED = AT_ONCE / 0.005 / NEW  # requests a second
ONE, EIGHT = 1 / (1 / BRIDGED + 1 / DECODED), 7 * BRIDGED


@pytest.mark.parametrize(
    "text",
    [
        f"leave {32 * SHARER_LAYER / 1e9:.2f} G in 32 layers",
        f"{SHARER_READ / 1e9:.2f} G, {2 * SHARER_READ / 1e9:.1f} GFLOP a token",
        f"4,096 x 31 = {4 * 256 * 4096 * 31 / 1e9:.2f} GFLOP",
        f"= {SHARER_PASS / 1e12:.2f} TFLOP",
        f"are {RECEIVER / 1e6:.0f} M: {2 * RECEIVER / 1e9:.2f} GFLOP a token",
        f"896 x 24 = {RECEIVER_ATTENTION / 1e9:.2f} for attention",
        f"2 x 22.3 M = {2 * 22.3e6 / 1e9:.2f}",
        f"512 x 128 = {BRIDGE_ATTENTION / 1e9:.2f}",
        f"= {RECEIVER_PASS / 1e12:.2f} TFLOP",
        f"{(SHARER_PASS + RECEIVER_PASS) / 1e12:.2f} TFLOP a request",
        f"{1e3 / BRIDGED:.1f} ms, **{BRIDGED:.1f} requests a second**",
        f"{POSITION:,} bytes a position",
        f"576 positions {576 * POSITION / 1e6:.1f} MB",
        f"({WEIGHTS / 1e9:.2f} + {AT_ONCE * 576 * POSITION / 1e9:.2f}) GB over 0.60 x 4.8 TB/s = "
        f"{1e3 * step(576):.1f} ms",
        f"{DECODED:.0f} requests a second: {DECODED / BRIDGED:.0f} times as many",
        f"4,096 x 2 bytes: {24 * 4096 * 4096 * 2 / 1e9:.1f} GB",
        f"{110e9 / POSITION / 1e6:.0f} M positions, {round(110e9 / POSITION / (PROMPT + NEW), -3):,.0f} "
        "requests",
        f"| {ONE:.0f}: a request takes 1/{BRIDGED:.1f} s to bridge and 1/{DECODED:.0f} s to decode | "
        f"{round(ONE * NEW, -2):,.0f} |",
        f"| 7 x {BRIDGED:.1f} = {EIGHT:.0f} | {round(EIGHT * NEW, -2):,.0f} |",
        f"{EIGHT:.0f} / {DECODED:.0f} = {100 * EIGHT / DECODED:.0f} % busy",
        f"511 x {POSITION:,} bytes = {511 * POSITION / 1e6:.1f} MB; {EIGHT:.0f} a second are "
        f"{EIGHT * 511 * POSITION / 1e9:.2f} GB/s",
        f"{8 * EIGHT * 511 * POSITION / 1e9:.0f} Gbit/s, into the worker",
        f"{512 * 33 * 4096 * 2 / 1e6:.0f} MB a request, {EIGHT * 512 * 33 * 4096 * 2 / 1e9:.0f} GB/s",
        f"so {1023 * POSITION / 1e6:.1f} MB and {8 * EIGHT * 1023 * POSITION / 1e9:.0f} Gbit/s",
        f"0.99 + {AT_ONCE * 1088 * POSITION / 1e9:.2f} GB a step: {1e3 * step(1088):.1f} ms",
    ],
)
def test_the_number_follows(text):
    assert text in PAGE
