/* In a container of the storm: says, as long as the container lives, which GPUs it has and since when.
 *
 * One line in a file of its own in the folder that is given: first and last moment (nanoseconds of CLOCK_BOOTTIME, the same
 * clock for all containers of a host), then the UUIDs of the devices that are there. The line is written again each 5 ms.
 * A second one in the same container ends at once.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv) {
    long long first = now();
    int lock = open("/tmp/hold.lock", O_CREAT | O_RDWR, 0666);
    if (argc != 2 || lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0) return 1;
    char uuids[1024] = "", line[2048], path[512];
    DIR *folder = opendir("/run/fake-nvml");
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (!strstr(entry->d_name, ".gpu")) continue;
        snprintf(path, sizeof path, "/run/fake-nvml/%s", entry->d_name);
        FILE *file = fopen(path, "r");
        while (file && fgets(line, sizeof line, file))
            if (strncmp(line, "uuid=", 5) == 0) {
                line[strcspn(line, "\n")] = 0;
                strcat(uuids, " ");
                strncat(uuids, line + 5, 100);
            }
        if (file) fclose(file);
    }
    snprintf(path, sizeof path, "%s/%lld-%d", argv[1], first, (int)getpid());
    int out = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (out < 0) return 1;
    for (;;) {
        int length = snprintf(line, sizeof line, "%020lld %020lld%s\n", first, now(), uuids);
        if (pwrite(out, line, length, 0) < 0) return 1;
        usleep(5000);
    }
}
