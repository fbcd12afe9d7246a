# The interpreter of records, x86_64.
#
# In:  rbx  first record (entry `batch`), or the arguments of one call in their registers (`once`)
#      r12  process id, r13 thread id, r14 closing signal
#      r15  healing context (layout in stub.rs)
# A syscall clobbers rax, rcx and r11 only; int 0x80 rax alone (before Linux 4.17 also r8 to r11).
        .intel_syntax noprefix
        .text
batch:  mov     rax, [rbx]
        cmp     rax, -1
        je      done
        mov     rcx, [rbx + 24]
        mov     rdi, [rcx]
        mov     rcx, [rbx + 32]
        mov     rsi, [rcx]
        mov     rcx, [rbx + 40]
        mov     rdx, [rcx]
        mov     rcx, [rbx + 48]
        mov     r10, [rcx]
        mov     rcx, [rbx + 56]
        mov     r8, [rcx]
        mov     rcx, [rbx + 64]
        mov     r9, [rcx]
        test    byte ptr [rbx + 16], 2
        jnz     compat
        syscall
result: mov     [rbx + 8], rax
        cmp     rax, -4095
        jb      next
        test    byte ptr [rbx + 16], 1
        jz      done
next:   add     rbx, 72
        jmp     batch

# As 32-bit code calls. The stack pointer is the one register to spare: there is no stack.
compat: mov     rsp, rbx
        mov     ebx, edi
        mov     ecx, esi
        mov     esi, r10d
        mov     edi, r8d
        mov     ebp, r9d
        int     0x80
        cdqe
        mov     rbx, rsp
        jmp     result

once:   syscall
        mov     rbp, rax

done:   mov     eax, 234                # tgkill
        mov     rdi, r12
        mov     rsi, r13
        mov     rdx, r14
        syscall
stopped:
# Nobody stopped us: the tracer is gone. Undo, then put the thread back.
        test    r14d, r14d
        jz      heal
        xor     r14d, r14d              # the second time round the signal is 0: a no-op
        mov     rbx, [r15]
        test    rbx, rbx
        jnz     batch
heal:   mov     rdi, [r15 + 8]
        mov     rsi, [r15 + 16]
        test    rsi, rsi
        jz      mask
        mov     eax, 11                 # munmap
        syscall
mask:   mov     eax, 14                 # rt_sigprocmask
        mov     edi, 2                  # SIG_SETMASK
        lea     rsi, [r15 + 24]
        xor     edx, edx
        mov     r10d, 8
        syscall
        lea     rsp, [r15 + 32]
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rax
        pop     rcx
        pop     rdx
        pop     rsi
        pop     rdi
        iretq
