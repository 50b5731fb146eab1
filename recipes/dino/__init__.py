"""DINO for utterances from scratch on synthesized voices, and transfer from it by few labels."""
