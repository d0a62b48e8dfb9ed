"""Does pre-training help? Fine-tuning from few labels, in pairs that differ only in their initial weights."""
