"""The miner: an authenticated HTTP API over engines, on a subnet."""
