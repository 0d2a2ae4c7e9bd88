// Preloaded, this makes every opening of a training image take SLOW_US microseconds, in whatever thread: a slow disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_for_disk(const char *path) {
  const char *name = path ? strstr(path, "/train/") : NULL;
  if (name && strchr(name, '.')) usleep(atoi(getenv("SLOW_US")));
}

#define SLOW_OPEN(name)                                                              \
  int name(const char *path, int flags, ...) {                                       \
    va_list more;                                                                    \
    va_start(more, flags);                                                           \
    int mode = va_arg(more, int);                                                    \
    va_end(more);                                                                    \
    wait_for_disk(path);                                                             \
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode); \
  }

#define SLOW_FOPEN(name)                                                             \
  void *name(const char *path, const char *mode) {                                   \
    wait_for_disk(path);                                                             \
    return ((void *(*)(const char *, const char *))dlsym(RTLD_NEXT, #name))(path, mode); \
  }

SLOW_OPEN(open)
SLOW_OPEN(open64)
SLOW_FOPEN(fopen)
SLOW_FOPEN(fopen64)
