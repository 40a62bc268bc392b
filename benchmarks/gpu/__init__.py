"""Checks and times everything in the repository that needs a GPU. docs/gpu.md describes it."""
