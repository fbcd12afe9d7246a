"""Stays in a restartable sequence for ever, for rseq.rs. x86_64, glibc 2.35."""
import ctypes, mmap, struct, sys

libc = ctypes.CDLL(None)
offset = ctypes.c_long.in_dll(libc, "__rseq_offset").value
pointer = ctypes.c_ulong()
libc.syscall(158, 0x1003, ctypes.byref(pointer))  # arch_prctl(ARCH_GET_FS)
area = pointer.value + offset

page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
base = ctypes.addressof(ctypes.c_char.from_buffer(page))
descriptor, counter = base + 1024, base + 2048
entry = b"\x48\xb8" + struct.pack("Q", descriptor)  # mov rax, descriptor
entry += b"\x48\xb9" + struct.pack("Q", area + 8)  # mov rcx, &area.rseq_cs
entry += b"\x48\x89\x01"  # mov [rcx], rax
start = len(entry)
code = entry + b"\xeb\xfe"  # jmp .
end = len(code)
code += b"\x0f\x0b" + struct.pack("I", 0x53053053)  # ud2, signature
abort = len(code)
code += b"\x48\xba" + struct.pack("Q", counter) + b"\x48\xff\x02"  # mov rdx, counter; inc [rdx]
code += b"\xe9" + struct.pack("i", -(len(code) + 5))  # jmp entry
page[: len(code)] = code
page[1024:1056] = struct.pack("IIQQQ", 0, 0, base + start, end - start, base + abort)
print(base + abort, counter, flush=True)
ctypes.CFUNCTYPE(None)(base)()
