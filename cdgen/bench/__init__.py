"""`cdgen bench`: the sampling op compared with other ways to sample that are installed on this machine."""
