"""What the server says of itself: lines with context, counters."""
