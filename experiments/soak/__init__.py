"""A miner under load with faults injected: are answers right, is every request answered, is memory flat?"""
