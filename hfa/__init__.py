"""hfa: a laboratory for long memory. Train, measure and deploy linear-time language models."""
