"""Losses on single rated completions: KTO and APO-zero (unpaired)."""
