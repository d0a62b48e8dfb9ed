"""What a run needs before it begins: the shape of its crops, its memory, time and disk space."""
