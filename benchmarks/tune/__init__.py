"""`deit-fast tune`: questions about this machine, each answered by checking and timing candidates."""
