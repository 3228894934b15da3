"""What travels between processes, as plain dataclasses of the standard library, and the one frame format."""
