"""Interventional refinement of hubert-mini on a grid of synthesized speech, and what it gives."""
