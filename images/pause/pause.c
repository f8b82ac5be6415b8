/*
 * The pause container: holds a pod's namespaces, reaps the processes that the pod's containers orphan when they share its
 * PID namespace, and exits on TERM or INT. It needs no C library, which keeps it at a few kilobytes.
 *
 * Signals are blocked and fetched one by one instead of handled: PID 1 gets no signal whose action is the default one,
 * unless it is blocked.
 */
#include <asm/unistd.h>

#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define SIG_BLOCK 0
#define WNOHANG 1
#define BIT(signal) (1ULL << ((signal) - 1))

static long call(long number, long a, long b, long c, long d) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
#elif defined(__arm__) && !defined(__thumb__)
    register long r7 __asm__("r7") = number;
    register long r0 __asm__("r0") = a;
    register long r1 __asm__("r1") = b;
    register long r2 __asm__("r2") = c;
    register long r3 __asm__("r3") = d;
    __asm__ volatile("svc #0" : "+r"(r0) : "r"(r7), "r"(r1), "r"(r2), "r"(r3) : "memory");
    return r0;
#else
#error "No system call is written down for this architecture (32-bit ARM needs -marm)."
#endif
}

#if defined(__x86_64__)
__attribute__((force_align_arg_pointer))
#endif
__attribute__((noreturn)) void
_start(void) {
    unsigned long long signals = BIT(SIGINT) | BIT(SIGTERM) | BIT(SIGCHLD);

    call(__NR_rt_sigprocmask, SIG_BLOCK, (long)&signals, 0, sizeof signals);
    for (;;) {
        long signal = call(__NR_rt_sigtimedwait, (long)&signals, 0, 0, sizeof signals);

        if (signal == SIGCHLD)
            while (call(__NR_wait4, -1, 0, WNOHANG, 0) > 0)
                ;
        else if (signal == SIGTERM || signal == SIGINT)
            call(__NR_exit_group, 0, 0, 0, 0);
    }
}
