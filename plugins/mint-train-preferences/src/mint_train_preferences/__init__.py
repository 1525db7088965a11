"""Losses on pairs, from many papers: IPO, SimPO, ORPO, APO, NCA and more."""
