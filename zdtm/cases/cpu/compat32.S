# A 32-bit program: fills registers, a TLS segment, a vector register and memory, waits in read(2) on its standard
# input, and looks whether all is as it was. Exits with 0, or with the number of what is not.
# cc -m32 -nostdlib -static: needs no 32-bit library.

        .equ    EXIT, 1
        .equ    READ, 3
        .equ    GETPID, 20
        .equ    KILL, 37
        .equ    SIGRETURN, 119
        .equ    RT_SIGACTION, 174
        .equ    SET_THREAD_AREA, 243
        .equ    SIGUSR1, 10
        .equ    WORDS, 16384

        .text
        .globl  _start
_start:
        movl    $memory, %edi
        movl    $WORDS, %ecx
        movl    $12345, %eax
1:      movl    %eax, (%edi)
        imull   $1664525, %eax, %eax
        addl    $1013904223, %eax
        addl    $4, %edi
        loop    1b

        movl    $RT_SIGACTION, %eax
        movl    $SIGUSR1, %ebx
        movl    $action, %ecx
        xorl    %edx, %edx
        movl    $8, %esi
        int     $0x80
        testl   %eax, %eax
        movl    $10, %ebx
        jnz     exit

        movl    $SET_THREAD_AREA, %eax
        movl    $descriptor, %ebx
        int     $0x80
        testl   %eax, %eax
        movl    $11, %ebx
        jnz     exit
        movl    descriptor, %eax
        leal    3(, %eax, 8), %eax
        movw    %ax, %gs

        movups  vector, %xmm0
        movups  vector, %xmm7

        movl    $READ, %eax
        xorl    %ebx, %ebx
        movl    $byte, %ecx
        movl    $1, %edx
        movl    $0x11223344, %esi
        movl    $0x55667788, %edi
        movl    $0x99aabbcc, %ebp
        int     $0x80

        cmpl    $1, %eax
        movl    $1, %eax
        jne     failed
        movl    $2, %eax
        testl   %ebx, %ebx
        jnz     failed
        cmpl    $byte, %ecx
        jne     failed
        cmpl    $0x11223344, %esi
        jne     failed
        cmpl    $0x55667788, %edi
        jne     failed
        cmpl    $0x99aabbcc, %ebp
        jne     failed

        movl    $3, %eax
        cmpl    $0x74757677, %gs:0
        jne     failed

        movups  %xmm0, found
        movups  %xmm7, found + 16
        movl    $vector, %esi
        movl    $found, %edi
        movl    $4, %ecx
        repe    cmpsl
        movl    $4, %eax
        jne     failed
        movl    $vector, %esi
        movl    $4, %ecx
        repe    cmpsl
        jne     failed

        movl    $memory, %edi
        movl    $WORDS, %ecx
        movl    $12345, %edx
2:      cmpl    %edx, (%edi)
        movl    $5, %eax
        jne     failed
        imull   $1664525, %edx, %edx
        addl    $1013904223, %edx
        addl    $4, %edi
        loop    2b

        movl    $GETPID, %eax
        int     $0x80
        movl    %eax, %ebx
        movl    $KILL, %eax
        movl    $SIGUSR1, %ecx
        int     $0x80
        movl    $6, %eax
        cmpl    $1, hits
        jne     failed
        xorl    %eax, %eax

failed: movl    %eax, %ebx
exit:   movl    $EXIT, %eax
        int     $0x80

handler:
        incl    hits
        ret

restorer:
        popl    %eax
        movl    $SIGRETURN, %eax
        int     $0x80

        .data
        .balign 16
vector: .long   0x01234567, 0x89abcdef, 0xfedcba98, 0x76543210
action: .long   handler, 0x04000000, restorer, 0, 0
# Any free slot, at `tls`, 4 GiB long; 32-bit, in pages, usable.
descriptor:
        .long   -1, tls, 0xfffff, 0x51
tls:    .long   0x74757677
hits:   .long   0

        .bss
        .balign 16
found:  .space  32
byte:   .space  4
memory: .space  4 * WORDS

        .section .note.GNU-stack, "", @progbits
