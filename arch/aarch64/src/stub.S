// The interpreter of records, aarch64.
//
// In:  x19  first record (entry `batch`), or the arguments of one call in their registers (`once`)
//      x20  process id, x21 thread id, x22 closing signal
//      x23  healing context (layout in stub.rs)
// A syscall clobbers x0 only.
        .text
batch:  ldr     x8, [x19]
        cmn     x8, #1
        b.eq    done
        ldr     x9, [x19, #24]
        ldr     x0, [x9]
        ldr     x9, [x19, #32]
        ldr     x1, [x9]
        ldr     x9, [x19, #40]
        ldr     x2, [x9]
        ldr     x9, [x19, #48]
        ldr     x3, [x9]
        ldr     x9, [x19, #56]
        ldr     x4, [x9]
        ldr     x9, [x19, #64]
        ldr     x5, [x9]
        svc     #0
        str     x0, [x19, #8]
        cmn     x0, #4095
        b.lo    next
        ldr     x9, [x19, #16]
        tbz     x9, #0, done
next:   add     x19, x19, #72
        b       batch

once:   svc     #0
        mov     x24, x0

done:   mov     x8, #131                // tgkill
        mov     x0, x20
        mov     x1, x21
        mov     x2, x22
        svc     #0
stopped:
// Nobody stopped us: the tracer is gone. Undo, then put the thread back.
        cbz     x22, heal
        mov     x22, #0                 // the second time round the signal is 0: a no-op
        ldr     x19, [x23]
        cbnz    x19, batch
heal:   ldp     x0, x1, [x23, #8]
        cbz     x1, frame
        mov     x8, #215                // munmap
        svc     #0
frame:  sub     sp, x23, #96            // 128 bytes of siginfo, which nobody reads, precede the context
        mov     x8, #139                // rt_sigreturn: mask, registers, and no register lost for a jump
        svc     #0
