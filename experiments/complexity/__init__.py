"""What every design costs: time, memory and bytes against length, ours beside what people use today."""
