"""First contact with a GPU: checks and times everything in the repository that needs one. See docs/gpu.md."""
