/* libnvidia-ml.so.1 of a driver that is not there: GPUs are files of a folder, as the real NVML's are devices of a host.
 *
 * The folder is that of FAKE_NVML, else /run/fake-nvml. All files are lines of KEY=VALUE and are read anew at each call,
 * so that a GPU may change, fail or be lost under a process that has it open; which GPUs there are is read at nvmlInit.
 *     driver     driver=VERSION  nvml=VERSION  cuda=13000
 *                fail=PATTERN CODE [N]     calls whose name matches (as a shell's pattern) give CODE, from the Nth on
 *                hang=PATTERN [N]          the same, and they never return
 *     I.gpu      the GPU of index I: see FakeGpu in __init__.py
 *     I.J.mig    its MIG instance in slot J
 * Calls are counted in each process for itself. In a container each CDI device brings the files of its own, so that it
 * sees what it was given and nothing else. Names and versions say that it is fake: nobody shall take a result on it for
 * one on a GPU.
 */
#include <dirent.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef unsigned long long u64;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15
};
enum { FILES = 64, TEXT = 1 << 16, RULES = 64, NONE = 0xFFFFFFFF };

typedef struct device {
    char path[512];
    int number, slot;        /* slot -1: a whole GPU */
    struct device *parent;   /* of a MIG instance */
    u64 calls;
    char text[TEXT];
} device;

static device *devices[FILES], *instances[FILES];
static unsigned count, instance_count, opened;

/* --- files ---------------------------------------------------------------------------------------------------------- */

static const char *folder(void) { return getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "/run/fake-nvml"; }

static void read_text(const char *path, char *text) {
    FILE *file = fopen(path, "r");
    size_t length = file ? fread(text, 1, TEXT - 1, file) : 0;
    text[length] = 0;
    if (file) fclose(file);
}

/* The value of the nth line with this key, cut at the line's end; NULL without one. */
static const char *nth(const char *text, const char *key, unsigned n, char *value, size_t size) {
    size_t length = strlen(key);
    for (const char *line = text; *line;) {
        size_t whole = strcspn(line, "\n");
        if (whole > length && strncmp(line, key, length) == 0 && line[length] == '=' && n-- == 0) {
            snprintf(value, size, "%.*s", (int)(whole - length - 1), line + length + 1);
            return value;
        }
        line += whole + (line[whole] == '\n');
    }
    return NULL;
}

static u64 number(device *of, const char *key, u64 otherwise) {
    char value[64];
    return nth(of->text, key, 0, value, sizeof value) ? strtoull(value, NULL, 0) : otherwise;
}

static nvmlReturn_t copy(char *to, unsigned length, const char *from) {
    if (!from) return NOT_SUPPORTED;
    if (strlen(from) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

static nvmlReturn_t text_of(device *of, const char *key, char *to, unsigned length) {
    char value[512];
    return copy(to, length, nth(of->text, key, 0, value, sizeof value));
}

/* A number that is not in the file is one that this GPU does not tell. */
static nvmlReturn_t number_of(device *of, const char *key, unsigned *to) {
    u64 found = number(of, key, (u64)-1);
    if (found == (u64)-1) return NOT_SUPPORTED;
    *to = (unsigned)found;
    return SUCCESS;
}

/* --- faults --------------------------------------------------------------------------------------------------------- */

/* How often this rule has matched in this process, this time included. */
static u64 matched(const char *rule) {
    static struct { char rule[256]; u64 times; } known[RULES];
    for (unsigned index = 0; index < RULES; index++) {
        if (!known[index].rule[0]) snprintf(known[index].rule, sizeof known->rule, "%s", rule);
        if (strcmp(known[index].rule, rule) == 0) return ++known[index].times;
    }
    return 1;
}

static nvmlReturn_t planted(const char *call) {
    static char text[TEXT];
    char path[512], rule[200], name[220], pattern[128];
    snprintf(path, sizeof path, "%s/driver", folder());
    read_text(path, text);
    for (unsigned index = 0; nth(text, "hang", index, rule, sizeof rule); index++) {
        u64 from = 1;
        snprintf(name, sizeof name, "hang %s", rule);
        if (sscanf(rule, "%127s %llu", pattern, &from) >= 1 && !fnmatch(pattern, call, 0) && matched(name) >= from)
            for (;;) pause();
    }
    for (unsigned index = 0; nth(text, "fail", index, rule, sizeof rule); index++) {
        u64 from = 1;
        int code = 999;
        snprintf(name, sizeof name, "fail %s", rule);
        if (sscanf(rule, "%127s %d %llu", pattern, &code, &from) >= 1 && !fnmatch(pattern, call, 0) &&
            matched(name) >= from)
            return code;
    }
    return SUCCESS;
}

/* What each call begins with. A device is lost at once (lost=CODE) or from the nth call about it on (lost_at=N). */
static nvmlReturn_t enter(const char *call, device *of) {
    nvmlReturn_t code = planted(call);
    if (code) return code;
    if (!opened) return UNINITIALIZED;
    if (!of) return SUCCESS;
    read_text(of->path, of->text);
    if (of->parent) read_text(of->parent->path, of->parent->text);
    device *whole = of->parent ? of->parent : of;
    u64 at = number(whole, "lost_at", 0);
    whole->calls++;
    code = (nvmlReturn_t)number(whole, "lost", 0);
    return code ? code : at && whole->calls >= at ? GPU_IS_LOST : SUCCESS;
}
#define ENTER(of) do { nvmlReturn_t entered = enter(__func__, of); if (entered) return entered; } while (0)
/* Of a whole GPU alone: the real library refuses most questions about an instance. */
#define WHOLE(of) do { ENTER(of); if ((of)->parent) return NOT_SUPPORTED; } while (0)
#define TELL(call, key) nvmlReturn_t call(device *of, unsigned *to) { WHOLE(of); return number_of(of, key, to); }

/* --- the library itself --------------------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b) {
    const device *one = *(device *const *)a, *other = *(device *const *)b;
    return one->number != other->number ? one->number - other->number : one->slot - other->slot;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    nvmlReturn_t code = planted(__func__);
    if (code) return code;
    if (opened++) return SUCCESS;
    count = instance_count = 0;
    DIR *listing = opendir(folder());
    if (!listing) return SUCCESS;
    for (struct dirent *entry; (entry = readdir(listing));) {
        int index, slot = -1;
        const char *end = strrchr(entry->d_name, '.');
        int whole = end && strcmp(end, ".gpu") == 0 && sscanf(entry->d_name, "%d.gpu", &index) == 1;
        int part = end && strcmp(end, ".mig") == 0 && sscanf(entry->d_name, "%d.%d.mig", &index, &slot) == 2;
        if (!(whole && count < FILES) && !(part && instance_count < FILES)) continue;
        device *found = calloc(1, sizeof *found);
        snprintf(found->path, sizeof found->path, "%s/%s", folder(), entry->d_name);
        found->number = index;
        found->slot = slot;
        if (whole) devices[count++] = found;
        else instances[instance_count++] = found;
    }
    closedir(listing);
    qsort(devices, count, sizeof *devices, by_number);
    qsort(instances, instance_count, sizeof *instances, by_number);
    for (unsigned index = 0; index < instance_count; index++)
        for (unsigned whole = 0; whole < count; whole++)
            if (devices[whole]->number == instances[index]->number) instances[index]->parent = devices[whole];
    return SUCCESS;
}
nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
nvmlReturn_t nvmlShutdown(void) {
    ENTER(NULL);
    opened--;
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case 4: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case 9: return "Driver Not Loaded";
        case 10: return "Timeout";
        case 12: return "NVML Shared Library Not Found";
        case 13: return "Function Not Found";
        case GPU_IS_LOST: return "GPU is lost";
        case 16: return "GPU requires restart";
        case 17: return "The operating system has blocked the request.";
        case 18: return "RM has detected an NVML/RM version mismatch.";
        case 999: return "Unknown Error";
        default: return "Failed (fake NVML)";
    }
}

static nvmlReturn_t version(const char *key, char *to, unsigned length, const char *otherwise) {
    static char text[TEXT];
    char path[512], value[128];
    snprintf(path, sizeof path, "%s/driver", folder());
    read_text(path, text);
    return copy(to, length, nth(text, key, 0, value, sizeof value) ? value : otherwise);
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *to, unsigned length) {
    ENTER(NULL);
    return version("driver", to, length, "580.0-fake");
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *to, unsigned length) {
    ENTER(NULL);
    return version("nvml", to, length, "13.580.0-fake");
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *to) {
    char text[32];
    ENTER(NULL);
    version("cuda", text, sizeof text, "13000");
    *to = atoi(text);
    return SUCCESS;
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *to) { return nvmlSystemGetCudaDriverVersion_v2(to); }
nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    char path[64], text[256] = "";
    ENTER(NULL);
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *file = fopen(path, "r");
    if (!file) return NOT_FOUND;
    if (fgets(text, sizeof text, file)) text[strcspn(text, "\n")] = 0;
    fclose(file);
    return copy(name, length, text);
}

/* --- devices -------------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *to) { ENTER(NULL); *to = count; return SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, device **handle) {
    ENTER(NULL);
    if (index >= count) return INVALID_ARGUMENT;
    ENTER(devices[index]);
    *handle = devices[index];
    return SUCCESS;
}

static nvmlReturn_t by_text(const char *key, const char *wanted, device **handle) {
    char value[128];
    for (unsigned index = 0; index < count + instance_count; index++) {
        device *one = index < count ? devices[index] : instances[index - count];
        read_text(one->path, one->text);
        if (nth(one->text, key, 0, value, sizeof value) && strcasecmp(value, wanted) == 0) {
            *handle = one;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, device **handle) {
    ENTER(NULL);
    return by_text("uuid", uuid, handle);
}
nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus, device **handle) {
    ENTER(NULL);
    return by_text("bus", bus, handle);
}
nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, device **handle) {
    ENTER(NULL);
    return by_text("serial", serial, handle);
}

nvmlReturn_t nvmlDeviceGetUUID(device *of, char *to, unsigned length) {
    ENTER(of);
    return text_of(of, "uuid", to, length);
}
nvmlReturn_t nvmlDeviceGetName(device *of, char *to, unsigned length) {
    ENTER(of);
    return text_of(of, "name", to, length);
}
nvmlReturn_t nvmlDeviceGetSerial(device *of, char *to, unsigned length) {
    WHOLE(of);
    return text_of(of, "serial", to, length);
}
nvmlReturn_t nvmlDeviceGetIndex(device *of, unsigned *to) {
    WHOLE(of);
    for (unsigned index = 0; index < count; index++)
        if (devices[index] == of) *to = index;
    return SUCCESS;
}
TELL(nvmlDeviceGetMinorNumber, "minor")
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(device *of, int *major, int *minor) {
    char value[32];
    ENTER(of);
    device *whole = of->parent ? of->parent : of;
    if (!nth(whole->text, "capability", 0, value, sizeof value)) return NOT_SUPPORTED;
    return sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

typedef struct { u64 total, free, used; } memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
nvmlReturn_t nvmlDeviceGetMemoryInfo(device *of, memory *to) {
    ENTER(of);
    to->total = number(of, "memory_total", 0);
    to->used = number(of, "memory_used", 0);
    to->free = to->total - to->used;
    return to->total ? SUCCESS : NOT_SUPPORTED; /* unified memory has none of its own */
}
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(device *of, memory_v2 *to) {
    ENTER(of);
    to->total = number(of, "memory_total", 0);
    to->reserved = number(of, "memory_reserved", 0);
    to->used = number(of, "memory_used", 0);
    to->free = to->total - to->used - to->reserved;
    return to->total ? SUCCESS : NOT_SUPPORTED;
}

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;
static nvmlReturn_t fill_pci(const char *bus, pci *to) {
    unsigned function;
    memset(to, 0, sizeof *to);
    if (!bus || sscanf(bus, "%x:%x:%x.%x", &to->domain, &to->bus, &to->device, &function) != 4) return NOT_SUPPORTED;
    snprintf(to->legacy, sizeof to->legacy, "%04X:%02X:%02X.%X", to->domain & 0xFFFF, to->bus & 0xFF,
             to->device & 0xFF, function & 0xF);
    snprintf(to->bus_id, sizeof to->bus_id, "%08X:%02X:%02X.%X", to->domain, to->bus, to->device, function);
    to->id = 0x233510DE; /* an H200's */
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(device *of, pci *to) {
    char value[64];
    WHOLE(of);
    return fill_pci(nth(of->text, "bus", 0, value, sizeof value), to);
}

/* --- what it does and how it is ------------------------------------------------------------------------------------- */

typedef struct { unsigned gpu, memory; } utilization;
nvmlReturn_t nvmlDeviceGetUtilizationRates(device *of, utilization *to) {
    WHOLE(of);
    if (number(of, "mig", 0)) return NOT_SUPPORTED; /* as the real one, while it is cut into instances */
    to->memory = (unsigned)number(of, "memory_utilisation", 0);
    return number_of(of, "utilisation", &to->gpu);
}
nvmlReturn_t nvmlDeviceGetTemperature(device *of, int sensor, unsigned *to) {
    WHOLE(of);
    return sensor ? INVALID_ARGUMENT : number_of(of, "temperature", to);
}
typedef struct { unsigned version; int sensor, temperature; } temperature;
nvmlReturn_t nvmlDeviceGetTemperatureV(device *of, temperature *to) {
    WHOLE(of);
    return to->sensor ? INVALID_ARGUMENT : number_of(of, "temperature", (unsigned *)&to->temperature);
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(device *of, int kind, unsigned *to) {
    WHOLE(of);
    (void)kind;
    return number_of(of, "temperature_limit", to);
}
TELL(nvmlDeviceGetPowerUsage, "power")
TELL(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
TELL(nvmlDeviceGetPersistenceMode, "persistence")
TELL(nvmlDeviceGetPerformanceState, "performance_state")
TELL(nvmlDeviceGetCurrPcieLinkGeneration, "link_generation")
TELL(nvmlDeviceGetCurrPcieLinkWidth, "link_width")
TELL(nvmlDeviceGetMaxPcieLinkGeneration, "link_generation_max")
TELL(nvmlDeviceGetMaxPcieLinkWidth, "link_width_max")
TELL(nvmlDeviceGetComputeMode, "compute_mode")
TELL(nvmlDeviceGetAccountingMode, "accounting")
TELL(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(device *of, u64 *to) {
    WHOLE(of);
    *to = number(of, "throttle", 0);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(device *of, u64 *to) {
    WHOLE(of);
    *to = number(of, "throttle", 0);
    return SUCCESS;
}
static nvmlReturn_t clock_of(device *of, int kind, const char *suffix, unsigned *to) {
    static const char *kinds[] = {"graphics", "sm", "memory", "video"};
    char key[64];
    if (kind < 0 || kind > 3) return INVALID_ARGUMENT;
    snprintf(key, sizeof key, "clock_%s%s", kinds[kind], suffix);
    return number_of(of, key, to);
}
nvmlReturn_t nvmlDeviceGetClockInfo(device *of, int kind, unsigned *to) { WHOLE(of); return clock_of(of, kind, "", to); }
nvmlReturn_t nvmlDeviceGetMaxClockInfo(device *of, int kind, unsigned *to) {
    WHOLE(of);
    return clock_of(of, kind, "_max", to);
}

nvmlReturn_t nvmlDeviceGetEccMode(device *of, unsigned *now, unsigned *pending) {
    WHOLE(of);
    nvmlReturn_t code = number_of(of, "ecc", now);
    *pending = code ? 0 : (unsigned)number(of, "ecc_pending", *now);
    return code;
}
/* kind: 0 corrected, 1 uncorrected; counter: 0 volatile (since the driver was loaded), 1 aggregate */
nvmlReturn_t nvmlDeviceGetTotalEccErrors(device *of, int kind, int counter, u64 *to) {
    WHOLE(of);
    if (!number(of, "ecc", 0)) return NOT_SUPPORTED;
    char key[64];
    snprintf(key, sizeof key, "ecc_%s%s", kind ? "uncorrected" : "corrected", counter ? "_aggregate" : "");
    *to = number(of, key, 0);
    return SUCCESS;
}
/* cause: 0 several single-bit errors, 1 a double-bit error */
static nvmlReturn_t retired(device *of, int cause, unsigned *length, u64 *pages, u64 *times) {
    unsigned found = (unsigned)number(of, cause ? "retired_double" : "retired_single", 0), given = *length;
    *length = found;
    if (found > given || (found && !pages)) return INSUFFICIENT_SIZE;
    for (unsigned index = 0; index < found; index++) {
        pages[index] = 0x1000ull * (index + 1);
        if (times) times[index] = 1700000000ull + index;
    }
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRetiredPages(device *of, int cause, unsigned *length, u64 *pages) {
    WHOLE(of);
    return retired(of, cause, length, pages, NULL);
}
nvmlReturn_t nvmlDeviceGetRetiredPages_v2(device *of, int cause, unsigned *length, u64 *pages, u64 *times) {
    WHOLE(of);
    return retired(of, cause, length, pages, times);
}
nvmlReturn_t nvmlDeviceGetRemappedRows(device *of, unsigned *fixed, unsigned *lost, unsigned *pending, unsigned *failed) {
    WHOLE(of);
    *fixed = (unsigned)number(of, "remapped_corrected", 0);
    *lost = (unsigned)number(of, "remapped_uncorrected", 0);
    *pending = (unsigned)number(of, "remapped_pending", 0);
    *failed = (unsigned)number(of, "remapped_failed", 0);
    return SUCCESS;
}

/* sample=MICROSECONDS VALUE, the oldest first: what the driver remembers of its load. */
typedef struct { u64 time; union { unsigned word; u64 wide; } value; } sample;
nvmlReturn_t nvmlDeviceGetSamples(device *of, int kind, u64 since, int *type, unsigned *length, sample *to) {
    char line[128];
    unsigned found = 0, given = *length;
    WHOLE(of);
    if (kind != 1) return NOT_SUPPORTED; /* GPU utilisation */
    if (number(of, "mig", 0)) return NOT_SUPPORTED;
    *type = 1; /* unsigned int */
    for (unsigned index = 0; nth(of->text, "sample", index, line, sizeof line); index++) {
        u64 time = 0;
        unsigned value = 0;
        sscanf(line, "%llu %u", &time, &value);
        if (time <= since) continue;
        if (to && found < given) to[found] = (sample){time, {value}};
        found++;
    }
    *length = to && found > given ? given : found;
    return found ? SUCCESS : NOT_FOUND;
}

/* --- processes ------------------------------------------------------------------------------------------------------ */

typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } process;

/* process=PID BYTES; an instance's are its GPU's too */
static void listed(device *from, const char *key, unsigned given, process *to, unsigned *found) {
    char line[128];
    for (unsigned index = 0; nth(from->text, key, index, line, sizeof line); index++, ++*found) {
        process one = {0, 0, NONE, NONE};
        sscanf(line, "%u %llu", &one.pid, &one.used);
        if (from->parent) {
            one.gpu_instance = (unsigned)number(from, "gpu_instance", from->slot);
            one.compute_instance = (unsigned)number(from, "compute_instance", 0);
        }
        if (to && *found < given) to[*found] = one;
    }
}
static nvmlReturn_t processes(device *of, const char *key, unsigned *length, process *to) {
    unsigned found = 0, given = *length;
    listed(of, key, given, to, &found);
    for (unsigned index = 0; index < instance_count; index++)
        if (instances[index]->parent == of) {
            read_text(instances[index]->path, instances[index]->text);
            listed(instances[index], key, given, to, &found);
        }
    *length = found;
    return found > given || (found && !to) ? INSUFFICIENT_SIZE : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(device *of, unsigned *length, process *to) {
    ENTER(of);
    return processes(of, "process", length, to);
}
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(device *of, unsigned *length, process *to) {
    ENTER(of);
    return processes(of, "process", length, to);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(device *of, unsigned *length, process *to) {
    ENTER(of);
    return processes(of, "graphics_process", length, to);
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(device *of, unsigned *length, process *to) {
    ENTER(of);
    return processes(of, "graphics_process", length, to);
}
nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(device *of, unsigned *length, process *to) {
    ENTER(of);
    return processes(of, "mps_process", length, to);
}

/* accounted=PID START_MICROSECONDS MILLISECONDS RUNNING: what accounting mode remembers, ended processes included */
typedef struct { unsigned gpu, memory; u64 most, time, start; unsigned running, reserved[5]; } accounted;
nvmlReturn_t nvmlDeviceGetAccountingBufferSize(device *of, unsigned *to) { WHOLE(of); *to = 4000; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetAccountingPids(device *of, unsigned *length, unsigned *pids) {
    char line[128];
    unsigned found = 0, given = *length;
    WHOLE(of);
    for (; nth(of->text, "accounted", found, line, sizeof line); found++)
        if (pids && found < given) sscanf(line, "%u", &pids[found]);
    *length = found;
    return found > given || (found && !pids) ? INSUFFICIENT_SIZE : SUCCESS;
}
nvmlReturn_t nvmlDeviceGetAccountingStats(device *of, unsigned pid, accounted *to) {
    char line[128];
    WHOLE(of);
    for (unsigned index = 0; nth(of->text, "accounted", index, line, sizeof line); index++) {
        unsigned one = 0;
        memset(to, 0, sizeof *to);
        sscanf(line, "%u %llu %llu %u", &one, &to->start, &to->time, &to->running);
        if (one == pid) return SUCCESS;
    }
    return NOT_FOUND;
}

/* --- how GPUs are joined -------------------------------------------------------------------------------------------- */

/* nvlink=BUS, nvlink=switch or nvlink=down, one line for each link */
nvmlReturn_t nvmlDeviceGetNvLinkState(device *of, unsigned link, unsigned *active) {
    char value[64];
    WHOLE(of);
    if (!nth(of->text, "nvlink", link, value, sizeof value)) return link ? INVALID_ARGUMENT : NOT_SUPPORTED;
    *active = strcmp(value, "down") != 0;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetNvLinkVersion(device *of, unsigned link, unsigned *to) {
    char value[64];
    WHOLE(of);
    if (!nth(of->text, "nvlink", link, value, sizeof value)) return NOT_SUPPORTED;
    *to = 4;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(device *of, unsigned link, unsigned *to) {
    char value[64];
    WHOLE(of);
    if (!nth(of->text, "nvlink", link, value, sizeof value)) return NOT_SUPPORTED;
    *to = strcmp(value, "switch") == 0 ? 2 : strcmp(value, "down") == 0 ? 0xFF : 0;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(device *of, unsigned link, pci *to) {
    char value[64];
    WHOLE(of);
    if (!nth(of->text, "nvlink", link, value, sizeof value)) return NOT_SUPPORTED;
    return fill_pci(strcmp(value, "switch") == 0 ? "0000:05:00.0" : value, to);
}
static int joined(device *from, device *to) {
    char bus[64], value[64];
    int through = 0;
    for (unsigned link = 0; nth(to->text, "nvlink", link, value, sizeof value); link++)
        through |= strcmp(value, "switch") == 0;
    if (!nth(to->text, "bus", 0, bus, sizeof bus)) return 0;
    for (unsigned link = 0; nth(from->text, "nvlink", link, value, sizeof value); link++)
        if (strcasecmp(value, bus) == 0 || (through && strcmp(value, "switch") == 0)) return 1;
    return 0;
}
/* what: 0 read, 1 write, 2 NVLink, 3 atomics, 4 PCIe. The answer: 0 fine, 5 not supported */
nvmlReturn_t nvmlDeviceGetP2PStatus(device *of, device *other, int what, int *to) {
    WHOLE(of);
    WHOLE(other);
    *to = what == 2 && !joined(of, other) ? 5 : 0;
    return SUCCESS;
}
/* Of an NVSwitch host: 1 not started, 2 in progress, 3 completed */
typedef struct { unsigned char cluster[16]; nvmlReturn_t status; unsigned clique, state; } fabric;
nvmlReturn_t nvmlDeviceGetGpuFabricInfo(device *of, fabric *to) {
    WHOLE(of);
    memset(to, 0, sizeof *to);
    to->status = (nvmlReturn_t)number(of, "fabric_status", 0);
    return number_of(of, "fabric_state", &to->state);
}
nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(device *of, device *other, int *level) {
    WHOLE(of);
    WHOLE(other);
    int one_switch = number(of, "pcie_switch", NONE) == number(other, "pcie_switch", NONE);
    int one_node = number(of, "node", NONE) == number(other, "node", NONE);
    *level = of == other ? 0 : one_switch ? 10 : one_node ? 40 : 50;
    return SUCCESS;
}

/* --- MIG ------------------------------------------------------------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetMigMode(device *of, unsigned *now, unsigned *pending) {
    WHOLE(of);
    nvmlReturn_t code = number_of(of, "mig", now); /* without the key it is a GPU of before Ampere */
    *pending = code ? 0 : (unsigned)number(of, "mig_pending", *now);
    return code;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(device *of, unsigned *to) {
    WHOLE(of);
    *to = number(of, "mig", (u64)-1) == (u64)-1 ? 0 : 7;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(device *of, unsigned slot, device **handle) {
    WHOLE(of);
    if (!number(of, "mig", 0)) return NOT_SUPPORTED;
    for (unsigned index = 0; index < instance_count; index++)
        if (instances[index]->parent == of && instances[index]->slot == (int)slot) {
            *handle = instances[index];
            return SUCCESS;
        }
    return slot < 7 ? NOT_FOUND : INVALID_ARGUMENT;
}
nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device *of, device **handle) {
    ENTER(of);
    if (!of->parent) return INVALID_ARGUMENT;
    *handle = of->parent;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceIsMigDeviceHandle(device *of, unsigned *to) { ENTER(of); *to = of->parent != NULL; return SUCCESS; }
nvmlReturn_t nvmlDeviceGetGpuInstanceId(device *of, unsigned *to) {
    ENTER(of);
    if (!of->parent) return INVALID_ARGUMENT;
    *to = (unsigned)number(of, "gpu_instance", of->slot);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeInstanceId(device *of, unsigned *to) {
    ENTER(of);
    if (!of->parent) return INVALID_ARGUMENT;
    *to = (unsigned)number(of, "compute_instance", 0);
    return SUCCESS;
}
