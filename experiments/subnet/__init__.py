"""A validator in a box: a local subnet, several miners with real ports and keys, and the weights they would get."""
