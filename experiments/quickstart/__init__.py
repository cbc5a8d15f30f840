"""The whole road in a few minutes: train, evaluate, deploy, ask."""
