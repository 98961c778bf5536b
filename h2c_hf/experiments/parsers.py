"""The argument parser of lora. Without torch."""

from ..command_line import Parser
from ..training.parsers import train


def lora() -> Parser:
    return train("lora")
