# A firmware that fills the guest's memory, counts on the first serial port a hundred times a second, and writes to
# DIRTY pages of its memory each time. It needs no BIOS, no disk and no kernel, and halts in between.
#
# Memory: 0x1000 stack, 0x2000 interrupt table, 0x3000 variables, 1 MiB and up what is filled and written to.

        .set    COM1, 0x3f8
        .set    count, 0x3000           # what was counted last
        .set    top, 0x3004             # the end of memory
        .set    next, 0x3008            # the page that is written to next

        .code16
        .org    0
start16:
        cli
        lgdtl   %cs:(gdt_at - start16)
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $start32

        .code32
start32:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x2000, %esp

        # How much there is: CMOS counts what lies above 16 MiB, in units of 64 KiB.
        movb    $0x35, %al
        outb    %al, $0x70
        inb     $0x71, %al
        movb    %al, %ah
        movb    $0x34, %al
        outb    %al, $0x70
        inb     $0x71, %al
        movzwl  %ax, %eax
        shll    $16, %eax
        addl    $0x1000000, %eax
        movl    %eax, top
        movl    $0, count
        movl    $0x100000, next

        # What looks random (Knuth's and Lewis's generator), so that no compression makes it smaller.
        movl    $0x100000, %edi
        movl    top, %ecx
fill:   imull   $1664525, %eax, %eax
        addl    $1013904223, %eax
        stosl
        cmpl    %ecx, %edi
        jb      fill

        # One interrupt: the timer's, as number 32.
        movl    $timer, %eax
        movw    %ax, 0x2000 + 32 * 8
        movw    $8, 0x2000 + 32 * 8 + 2
        movw    $0x8e00, 0x2000 + 32 * 8 + 4
        shrl    $16, %eax
        movw    %ax, 0x2000 + 32 * 8 + 6
        lidtl   idt_at
        movb    $0x11, %al
        outb    %al, $0x20
        movb    $32, %al
        outb    %al, $0x21
        movb    $4, %al
        outb    %al, $0x21
        movb    $1, %al
        outb    %al, $0x21
        movb    $0xfe, %al
        outb    %al, $0x21
        movb    $0x34, %al              # 1193182 Hz / 11932: a hundred a second
        outb    %al, $0x43
        movb    $(11932 & 255), %al
        outb    %al, $0x40
        movb    $(11932 >> 8), %al
        outb    %al, $0x40

        movl    $0x1ff, 0xfee000f0      # the local APIC passes it on
        movl    $0x700, 0xfee00350
        movw    $0x443, %dx             # an ib700 watchdog that nobody feeds ends after two seconds
        movb    $14, %al
        outb    %al, %dx
        sti
idle:   hlt
        jmp     idle

timer:  pushal
        movb    $0x20, %al
        outb    %al, $0x20
        incl    count

        movl    $DIRTY, %ecx
        movl    next, %edi
        movl    count, %eax
        jecxz   print
dirty:  movl    %eax, (%edi)
        addl    $4096, %edi
        cmpl    top, %edi
        jb      1f
        movl    $0x100000, %edi
1:      loop    dirty
        movl    %edi, next

        # "count 123\n"
print:  movl    $word, %esi
        movw    $COM1, %dx
        movl    $6, %ecx
        rep outsb
        movl    count, %eax
        movl    $0x2ff0, %edi           # digits, from the last to the first
        movb    $10, (%edi)
        movl    $10, %ebx
1:      xorl    %edx, %edx
        divl    %ebx
        addb    $'0', %dl
        decl    %edi
        movb    %dl, (%edi)
        testl   %eax, %eax
        jnz     1b
        movl    $0x2ff1, %ecx
        subl    %edi, %ecx
        movl    %edi, %esi
        movw    $COM1, %dx
        rep outsb
        popal
        iretl

word:   .ascii  "count "

        .balign 8
gdt:    .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_at: .word   23
        .long   gdt
idt_at: .word   33 * 8 - 1
        .long   0x2000

        # Where the processor begins.
        .code16
        .org    0xfff0
        ljmpw   $0xf000, $(start16 - start16)
        .org    0x10000
