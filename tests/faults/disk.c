/* A disk that forgets and fails: LD_PRELOAD for a process whose database is to survive a loss of power.
 *
 * Strategy: writes go to the real file, where the process and everybody else see them, as in a page cache. What is on
 * the disk is kept apart, as one image for each file: fsync copies into it what was written since the last one. Whoever
 * cuts the power kills the process and puts the images in the place of the files (`disk.py`).
 *
 * Rules:
 * - A file's name is on the disk only after an fsync of its folder; so is its removal.
 * - What an fsync that failed should have written is never written by a later one, as on Linux: the pages are clean.
 * - Shared memory (-shm) is never on the disk.
 *
 * DISK_FILE is the database's path; whatever begins with it is watched. DISK_IMAGES is the folder of the images: ino.N
 * for file number N, and its name once that is on the disk. DISK_SWITCHES is a file of u64, see `enum`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FSYNCS, FSYNC_US, FSYNC_ERROR, FSYNCS_FAIL, WRITE_ERROR, WRITES_FAIL, DIES_AFTER, SWITCHES };

struct written {
  ino_t file;
  off_t from, to;
};

static volatile uint64_t *switches;
static const char *database, *images;
static char folder[PATH_MAX];
static struct written *pending;
static size_t pending_count, pending_room;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_unlink)(const char *), (*real_ftruncate)(int, off_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);

__attribute__((constructor)) static void begin(void) {
  real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  real_unlink = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
  real_ftruncate = (int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate64");
  real_pwrite = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite64");
  database = getenv("DISK_FILE");
  images = getenv("DISK_IMAGES");
  const char *name = getenv("DISK_SWITCHES");
  if (!database || !images || !name) return;
  snprintf(folder, sizeof folder, "%s", database);
  *strrchr(folder, '/') = 0;
  int file = open(name, O_RDWR | O_CLOEXEC);
  void *mapped = mmap(NULL, SWITCHES * 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped != MAP_FAILED) switches = mapped;
}

static int is_watched(const char *path) {
  size_t length = strlen(database);
  if (strncmp(path, database, length)) return 0;
  return !strchr(path + length, '/') && strcmp(path + length, "-shm");
}

/* The path that a descriptor was opened by: of a watched file, of their folder, or NULL. */
static const char *path_of(int file, char *room) {
  if (!switches) return NULL;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, room, PATH_MAX - 1);
  if (length < 0) return NULL;
  room[length] = 0;
  return is_watched(room) || !strcmp(room, folder) ? room : NULL;
}

/* Counts down to the loss of power. */
static void live_on(void) {
  uint64_t left = switches[DIES_AFTER];
  if (!left) return;
  switches[DIES_AFTER] = left - 1;
  if (left == 1) kill(getpid(), SIGKILL);
}

/* Whether this one fails; UINT64_MAX: all do. */
static int fails(int which) {
  uint64_t left = switches[which];
  if (!left) return 0;
  if (left != UINT64_MAX) switches[which] = left - 1;
  return 1;
}

static void image_of(ino_t file, char *path) { snprintf(path, PATH_MAX, "%s/ino.%ju", images, (uintmax_t)file); }

static void note(int file, off_t from, off_t to) {
  struct stat found;
  if (from >= to || fstat(file, &found)) return;
  if (pending_count == pending_room) {
    pending_room = pending_room ? 2 * pending_room : 1024;
    pending = realloc(pending, pending_room * sizeof *pending);
    if (!pending) abort();
  }
  pending[pending_count++] = (struct written){found.st_ino, from, to};
}

/* Forget what was written to a file, after taking it into the image unless that failed. */
static void settle(int opened, int kept) {
  struct stat found;
  char path[PATH_MAX], bytes[65536];
  if (fstat(opened, &found)) return;
  /* It may have been opened for writing only. */
  snprintf(path, sizeof path, "/proc/self/fd/%d", opened);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  image_of(found.st_ino, path);
  int image = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  size_t left = 0;
  for (size_t i = 0; i < pending_count; i++) {
    struct written one = pending[i];
    if (one.file != found.st_ino) {
      pending[left++] = one;
      continue;
    }
    while (kept && one.from < one.to) {
      size_t want = (size_t)(one.to - one.from) < sizeof bytes ? (size_t)(one.to - one.from) : sizeof bytes;
      ssize_t got = pread(file, bytes, want, one.from);
      if (got < 0 || (got && real_pwrite(image, bytes, (size_t)got, one.from) != got)) abort();
      /* The file has been cut since. */
      if (!got) break;
      one.from += got;
    }
  }
  pending_count = left;
  if (kept && real_ftruncate(image, found.st_size)) abort();
  close(image);
  close(file);
}

/* The folder's names are on the disk as they are now. */
static void settle_names(void) {
  char from[PATH_MAX], to[2 * PATH_MAX], here[2 * PATH_MAX];
  const char *first = strrchr(database, '/') + 1;
  struct stat found;
  DIR *names = opendir(folder);
  for (struct dirent *one; names && (one = readdir(names));) {
    snprintf(here, sizeof here, "%s/%s", folder, one->d_name);
    if (!is_watched(here) || stat(here, &found)) continue;
    image_of(found.st_ino, from);
    close(open(from, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    snprintf(to, sizeof to, "%s/%s", images, one->d_name);
    real_unlink(to);
    if (link(from, to)) abort();
  }
  if (names) closedir(names);
  names = opendir(images);
  for (struct dirent *one; names && (one = readdir(names));) {
    snprintf(here, sizeof here, "%s/%s", folder, one->d_name);
    snprintf(to, sizeof to, "%s/%s", images, one->d_name);
    if (!strncmp(one->d_name, first, strlen(first)) && access(here, F_OK)) real_unlink(to);
  }
  if (names) closedir(names);
}

static int synced(int file, int (*real)(int)) {
  char room[PATH_MAX];
  const char *path = path_of(file, room);
  if (!path) return real(file);
  if (!strcmp(path, folder)) {
    pthread_mutex_lock(&lock);
    settle_names();
    pthread_mutex_unlock(&lock);
    return 0;
  }
  __atomic_add_fetch(&switches[FSYNCS], 1, __ATOMIC_RELAXED);
  live_on();
  uint64_t us = switches[FSYNC_US];
  struct timespec pause = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
  if (us) nanosleep(&pause, NULL);
  int failed = fails(FSYNCS_FAIL);
  pthread_mutex_lock(&lock);
  settle(file, !failed);
  pthread_mutex_unlock(&lock);
  if (failed) errno = (int)switches[FSYNC_ERROR];
  return failed ? -1 : 0;
}

static ssize_t written(int file, const void *bytes, size_t count, off_t at) {
  char room[PATH_MAX];
  if (!path_of(file, room)) return real_pwrite(file, bytes, count, at);
  live_on();
  if (fails(WRITES_FAIL)) {
    errno = (int)switches[WRITE_ERROR];
    return -1;
  }
  ssize_t done = real_pwrite(file, bytes, count, at);
  pthread_mutex_lock(&lock);
  note(file, at, at + done);
  pthread_mutex_unlock(&lock);
  return done;
}

static int cut_to(int file, off_t size) {
  char room[PATH_MAX];
  struct stat found;
  if (!path_of(file, room) || fstat(file, &found)) return real_ftruncate(file, size);
  live_on();
  int done = real_ftruncate(file, size);
  pthread_mutex_lock(&lock);
  if (!done) note(file, size < found.st_size ? size : found.st_size, size < found.st_size ? found.st_size : size);
  pthread_mutex_unlock(&lock);
  return done;
}

int fsync(int file) { return synced(file, real_fsync); }
int fdatasync(int file) { return synced(file, real_fdatasync); }
int ftruncate(int file, off_t size) { return cut_to(file, size); }
int ftruncate64(int file, off_t size) { return cut_to(file, size); }
ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) { return written(file, bytes, count, at); }
ssize_t pwrite64(int file, const void *bytes, size_t count, off_t at) { return written(file, bytes, count, at); }

int unlink(const char *path) {
  struct stat found;
  char image[PATH_MAX];
  int watched = switches && is_watched(path) && !stat(path, &found);
  int done = real_unlink(path);
  if (watched && !done) {
    /* The number may be given to another file at once; the name keeps what it has until the folder is synced. */
    image_of(found.st_ino, image);
    real_unlink(image);
  }
  return done;
}
