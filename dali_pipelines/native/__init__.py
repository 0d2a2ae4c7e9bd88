"""Native DALI operators for the CPU: Pillow's pixels, decoded, resized and augmented in two operators; see docs/native.md."""
