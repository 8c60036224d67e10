/* Another time of day for the server that this is preloaded into; its monotonic clock stays as it is.
 *
 * CLOCK names a file of 4 kB, in numbers of 64 bits: how many settings there are, then for each from which real time on
 * it holds (microseconds since the epoch), what is shown then, and how many times as fast it goes on from there.
 *
 * Nothing here allocates memory or looks up symbols: allocators ask for the time before either works. (libfaketime
 * does, and Debian's Redis, with jemalloc, does not start under it.)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SIZE 4096

static const volatile int64_t *settings;

static int64_t real(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

static int64_t shown(void) {
    if (settings == NULL) {
        const char *path = getenv("CLOCK");
        int file = path == NULL ? -1 : open(path, O_RDONLY);
        void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, SIZE, PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        if (mapped == MAP_FAILED) return real();
        settings = mapped;
    }
    int64_t number = settings[0], now = real();
    if (number == 0) return now;
    const volatile int64_t *last = settings + 1 + 3 * (number - 1);
    return last[1] + (now - last[0]) * last[2];
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    int64_t now = shown();
    (void)zone;
    time->tv_sec = now / 1000000;
    time->tv_usec = now % 1000000;
    return 0;
}

time_t time(time_t *seconds) {
    time_t now = shown() / 1000000;
    if (seconds != NULL) *seconds = now;
    return now;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock != CLOCK_REALTIME) return syscall(SYS_clock_gettime, clock, time);
    int64_t now = shown();
    time->tv_sec = now / 1000000;
    time->tv_nsec = now % 1000000 * 1000;
    return 0;
}
