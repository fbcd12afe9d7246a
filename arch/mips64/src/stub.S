# The interpreter of records, mips64 (n64).
#
# In:  s0  first record (entry `batch`), or the arguments of one call in their registers (`once`)
#      s1  process id, s2 thread id, s3 closing signal
#      s4  healing context (layout in stub.rs)
# A syscall keeps s0 to s8, gp, sp and ra. It sets a3 when v0 is an error, which is positive then; here it
# is made negative, as everywhere else.
#
# A register to jump through cannot be spared, and k0 and k1 belong to the kernel. So a thread goes back by
# rt_sigreturn; unless it was in a call that goes on through its restart block, which rt_sigreturn forgets:
# then t9 is free, as in every call.
        .set    noreorder
        .set    noat
        .text
batch:  ld      $2, 0($16)
        daddiu  $12, $0, -1
        beq     $2, $12, done
        ld      $12, 24($16)
        ld      $4, 0($12)
        ld      $12, 32($16)
        ld      $5, 0($12)
        ld      $12, 40($16)
        ld      $6, 0($12)
        ld      $12, 48($16)
        ld      $7, 0($12)
        ld      $12, 56($16)
        ld      $8, 0($12)
        ld      $12, 64($16)
        ld      $9, 0($12)
        syscall
        ld      $12, 16($16)
        beqz    $7, result
        andi    $12, $12, 1
        dnegu   $2, $2
        beqz    $12, done
result: sd      $2, 8($16)              # in both cases: it is the delay slot, too
        b       batch
        daddiu  $16, $16, 72

once:   syscall
        beqz    $7, done
        move    $21, $2
        dnegu   $21, $2

done:   li      $2, 5225                # tgkill
        move    $4, $17
        move    $5, $18
        move    $6, $19
        syscall
stopped:
# Nobody stopped us: the tracer is gone. Undo, then put the thread back.
        beqz    $19, heal
        nop
        ld      $16, 0($20)
        bnez    $16, batch
        move    $19, $0                 # the second time round the signal is 0: a no-op
heal:   ld      $5, 16($20)
        beqz    $5, back
        ld      $4, 8($20)
        li      $2, 5011                # munmap
        syscall
back:   ld      $12, 24($20)
        bnez    $12, again
        li      $2, 5211                # rt_sigreturn
        daddiu  $29, $20, -120
        syscall

again:  li      $2, 5014                # rt_sigprocmask
        li      $4, 3                   # SIG_SETMASK
        daddiu  $5, $20, 672
        move    $6, $0
        li      $7, 16
        syscall
        ld      $1, 584($20)
        ld      $2, 616($20)
        mthi    $1
        mtlo    $2
        ld      $1, 80($20)
        ld      $2, 88($20)
        ld      $3, 96($20)
        ld      $4, 104($20)
        ld      $5, 112($20)
        ld      $6, 120($20)
        ld      $7, 128($20)
        ld      $8, 136($20)
        ld      $9, 144($20)
        ld      $10, 152($20)
        ld      $11, 160($20)
        ld      $12, 168($20)
        ld      $13, 176($20)
        ld      $14, 184($20)
        ld      $15, 192($20)
        ld      $16, 200($20)
        ld      $17, 208($20)
        ld      $18, 216($20)
        ld      $19, 224($20)
        ld      $21, 240($20)
        ld      $22, 248($20)
        ld      $23, 256($20)
        ld      $24, 264($20)
        ld      $25, 648($20)
        ld      $28, 296($20)
        ld      $29, 304($20)
        ld      $30, 312($20)
        ld      $31, 320($20)
        jr      $25
        ld      $20, 232($20)
