@ The interpreter of records, 32-bit ARM (A32 code).
@
@ In:  r8   first record (entry `batch`), or the arguments of one call in their registers (`once`)
@      r9   process id, r10 thread id, r11 closing signal
@      r12  healing context (layout in stub.rs)
@ A syscall clobbers r0 only.
        .syntax unified
        .arch   armv7-a
        .arm
        .text
batch:  ldr     r7, [r8]
        cmn     r7, #1
        beq     done
        ldr     r6, [r8, #12]
        ldr     r0, [r6]
        ldr     r6, [r8, #16]
        ldr     r1, [r6]
        ldr     r6, [r8, #20]
        ldr     r2, [r6]
        ldr     r6, [r8, #24]
        ldr     r3, [r6]
        ldr     r6, [r8, #28]
        ldr     r4, [r6]
        ldr     r6, [r8, #32]
        ldr     r5, [r6]
        svc     #0
        str     r0, [r8, #4]
        cmn     r0, #4096
        bls     next
        ldr     r6, [r8, #8]
        tst     r6, #1
        beq     done
next:   add     r8, r8, #36
        b       batch

once:   svc     #0
        mov     r8, r0

done:   mov     r7, #268                @ tgkill
        mov     r0, r9
        mov     r1, r10
        mov     r2, r11
        svc     #0
stopped:
@ Nobody stopped us: the tracer is gone. Undo, then put the thread back.
        cmp     r11, #0
        beq     heal
        mov     r11, #0                 @ the second time round the signal is 0: a no-op
        ldr     r8, [r12]
        cmp     r8, #0
        bne     batch
heal:   ldr     r0, [r12, #4]
        ldr     r1, [r12, #8]
        cmp     r1, #0
        beq     frame
        mov     r7, #91                 @ munmap
        svc     #0
frame:  add     sp, r12, #16
        mov     r7, #119                @ sigreturn: mask, registers, and no register lost for a jump
        svc     #0
