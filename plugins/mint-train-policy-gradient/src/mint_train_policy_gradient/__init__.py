"""An offline policy gradient: importance-weighted, clipped as in PPO where asked."""
