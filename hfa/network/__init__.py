"""A miner's place on a subnet: keys, registrations, permits, published endpoints, and signed requests."""
