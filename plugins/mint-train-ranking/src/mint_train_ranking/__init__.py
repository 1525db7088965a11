"""Losses on ranked completions: Plackett-Luce, ListMLE and LiPO."""
