/* Hides instruction sets from the programs that it is preloaded into, so that they run on their kernels for older processors.
 *
 *     cc -O2 -shared -fPIC -o hide.so hide.c -ldl
 *     LD_PRELOAD=$PWD/hide.so HIDE=avx512 python ...
 *
 * HIDE=vnni hides VNNI and AMX (what is left is AVX-512), HIDE=avx512 all of AVX-512 as well (what is left is AVX2). Linux on
 * x86-64 can let CPUID fault (arch_prctl(2), ARCH_SET_CPUID) where the processor supports it; the fault's handler answers without
 * the hidden bits (Intel SDM, volume 2, CPUID, leaf 7). Programs that ask the kernel instead (/proc/cpuinfo) see no difference.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SET_CPUID 0x1012
#define BIT(n) (1u << (n))

enum { NOTHING, VNNI, AVX512 };
static int hidden = NOTHING;
static struct sigaction of_program; /* what the program wants done on SIGSEGV */
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static void without_hidden(unsigned leaf, unsigned part, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  if (leaf == 7 && part == 0) {
    *c &= ~BIT(11);                                                       /* AVX512_VNNI */
    *d &= ~(BIT(2) | BIT(3) | BIT(22) | BIT(23) | BIT(24) | BIT(25));     /* 4VNNIW, 4FMAPS, AMX_BF16, AVX512_FP16, AMX_TILE, AMX_INT8 */
    if (hidden == AVX512) {
      *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(28) | BIT(30) | BIT(31)); /* F, DQ, IFMA, CD, BW, VL */
      *c &= ~(BIT(1) | BIT(6) | BIT(12) | BIT(14));                       /* VBMI, VBMI2, BITALG, VPOPCNTDQ */
      *d &= ~BIT(8);                                                      /* VP2INTERSECT */
    }
  } else if (leaf == 7 && part == 1) {
    *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));                         /* AVX_VNNI, AVX512_BF16, AMX_FP16, AVX_IFMA */
    *d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));                /* AVX_VNNI_INT8, AVX_NE_CONVERT, AMX_COMPLEX, AVX_VNNI_INT16, AVX10 */
  } else if (leaf == 0x1d || leaf == 0x1e) {
    *a = *b = *c = *d = 0;                                                /* AMX tiles */
  }
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)registers[REG_RIP];
  if (info->si_code == SI_KERNEL && at[0] == 0x0f && at[1] == 0xa2) {
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, SET_CPUID, 1);
    __cpuid_count(leaf, part, a, b, c, d);
    syscall(SYS_arch_prctl, SET_CPUID, 0);
    without_hidden(leaf, part, &a, &b, &c, &d);
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
    return;
  }
  if (of_program.sa_flags & SA_SIGINFO && of_program.sa_sigaction) {
    of_program.sa_sigaction(signal_number, info, context);
  } else if (of_program.sa_handler != SIG_DFL && of_program.sa_handler != SIG_IGN) {
    of_program.sa_handler(signal_number);
  } else {
    struct sigaction by_default = {.sa_handler = SIG_DFL};
    real_sigaction(SIGSEGV, &by_default, NULL);
    raise(SIGSEGV);
  }
}

int sigaction(int signal_number, const struct sigaction *wanted, struct sigaction *before) {
  if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
  if (signal_number != SIGSEGV || hidden == NOTHING) return real_sigaction(signal_number, wanted, before);
  if (before) *before = of_program;
  if (wanted) of_program = *wanted;
  return 0;
}

__attribute__((constructor)) static void hide(void) {
  const char *what = getenv("HIDE");
  if (!what) return;
  int wanted = !strcmp(what, "vnni") ? VNNI : !strcmp(what, "avx512") ? AVX512 : NOTHING;
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
  real_sigaction = dlsym(RTLD_NEXT, "sigaction");
  real_sigaction(SIGSEGV, &action, NULL);
  if (wanted == NOTHING || syscall(SYS_arch_prctl, SET_CPUID, 0)) {
    fprintf(stderr, "hide: HIDE must be vnni or avx512, and the processor must let CPUID fault; got HIDE=%s\n", what);
    exit(2);
  }
  hidden = wanted;
}
