"""What serving costs: the engine beside what people use today."""
