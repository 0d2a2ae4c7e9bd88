"""Memory that is freed stays with the process: used again, it costs no page fault."""

import subprocess
import sys

SOURCE = """
import ctypes, resource
from deit_fast.keep_memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults_of_use(size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_use()
print(faults_of_use())
assert keep_freed_memory()
faults_of_use()
print(faults_of_use())
"""


def test_memory_is_used_again():
    """64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB, and glibc gives such a block back at once."""
    answer = subprocess.run([sys.executable, "-c", SOURCE], capture_output=True, text=True, check=True)
    before, after = map(int, answer.stdout.split())
    assert before >= 32
    assert after < 16
