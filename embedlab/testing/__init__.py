"""Test tools for authors of fine-tuning methods: the contract of every method, and tiny backbones to check it on."""

from embedlab.testing.backbones import FAMILIES, save_tiny_backbone, tiny_backbone, tiny_tokenizer
from embedlab.testing.contract import CHECKS, Check

__all__ = ["CHECKS", "FAMILIES", "Check", "save_tiny_backbone", "tiny_backbone", "tiny_tokenizer"]
