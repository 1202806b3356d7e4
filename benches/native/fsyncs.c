/* Counts what is forced to disk, and makes it take longer on request: LD_PRELOAD for the durable rows of the benchmark.
 *
 * BENCH_FSYNCS names a file of two u64: how many times fsync or fdatasync was called, and how many microseconds each of
 * them is to last on top of what it lasts. The benchmark reads the one and writes the other while the process runs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *shared;

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("BENCH_FSYNCS");
  int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) shared = mapped;
}

static int counted(const char *name, int file) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  if (shared) {
    __atomic_add_fetch(&shared[0], 1, __ATOMIC_RELAXED);
    uint64_t us = shared[1];
    struct timespec pause = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    if (us) nanosleep(&pause, NULL);
  }
  return real(file);
}

int fsync(int file) { return counted("fsync", file); }
int fdatasync(int file) { return counted("fdatasync", file); }
