"""Judges of mint-train: they score completions by rules, by a reward model or by a language model."""
