"""Supervised fine-tuning on single completions: SFT and DFT."""
