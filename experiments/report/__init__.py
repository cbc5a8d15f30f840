"""One page of any set of runs: what was compared, how it went, and where it comes from."""
