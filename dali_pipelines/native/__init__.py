"""Native DALI operators for the CPU: Pillow's pixels in two operators; see docs/native.md."""
