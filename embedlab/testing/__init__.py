"""What a method's author tests against: the contract, and tiny backbones to run it on."""

from embedlab.testing.backbones import FAMILIES, save_tiny_backbone, tiny_backbone, tiny_tokenizer
from embedlab.testing.contract import CHECKS, Check

__all__ = ["CHECKS", "FAMILIES", "Check", "save_tiny_backbone", "tiny_backbone", "tiny_tokenizer"]
