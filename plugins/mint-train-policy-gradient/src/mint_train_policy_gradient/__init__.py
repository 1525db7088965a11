"""Losses on sampled completions: policy gradients, clipped, weighted and tapered."""
