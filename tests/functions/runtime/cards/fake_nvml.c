/* NVML of a machine that has no card, for tests: as many cards as FAKE_CARDS says, each of 100 W, read from the clock. FAKE_SLICES
   cuts each into slices of the profiles that it lists, as in "1g.10gb,3g.40gb"; with FAKE_SILENT no card tells its energy. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, CARD = 0x100, MOST = 7 };
typedef size_t handle; /* 0x100 × (card + 1) + slice + 1, whose last two digits are 0 of a card */

static int number(const char *name) { const char *told = getenv(name); return told ? atoi(told) : 0; }
static int card_of(handle each) { return (int)(each / CARD) - 1; }
static int slice_of(handle each) { return (int)(each % CARD) - 1; }

static int profile(int slice, char *into) {
    const char *left = getenv("FAKE_SLICES");
    for (int each = 0; left && *left; each++) {
        size_t length = strcspn(left, ",");
        if (each == slice) { memcpy(into, left, length); into[length] = 0; return 1; }
        left += length + (left[length] == ',');
    }
    return 0;
}

int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "as the test wants it"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_CARDS"); return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned card, handle *found) {
    *found = CARD * (card + 1);
    return card < (unsigned)number("FAKE_CARDS") ? OK : NOT_FOUND;
}

int nvmlDeviceGetName(handle each, char *name, unsigned size) {
    char told[32];
    if (slice_of(each) < 0) snprintf(name, size, "NVIDIA H100 80GB HBM3");
    else { profile(slice_of(each), told); snprintf(name, size, "NVIDIA H100 80GB HBM3 MIG %s", told); }
    return OK;
}

int nvmlDeviceGetUUID(handle each, char *uuid, unsigned size) {
    if (slice_of(each) < 0) snprintf(uuid, size, "GPU-fake-%d", card_of(each));
    else snprintf(uuid, size, "MIG-fake-%d-%d", card_of(each), slice_of(each));
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, handle *found) {
    int card, slice;
    if (sscanf(uuid, "GPU-fake-%d", &card) == 1) *found = CARD * (card + 1);
    else if (sscanf(uuid, "MIG-fake-%d-%d", &card, &slice) == 2) *found = CARD * (card + 1) + slice + 1;
    else return NOT_FOUND;
    return card < number("FAKE_CARDS") ? OK : NOT_FOUND;
}

int nvmlDeviceGetTotalEnergyConsumption(handle each, unsigned long long *millijoules) {
    struct timespec now;
    if (getenv("FAKE_SILENT") || slice_of(each) >= 0) return NOT_SUPPORTED;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = 100ULL * (now.tv_sec * 1000ULL + now.tv_nsec / 1000000);
    return OK;
}

int nvmlDeviceGetMigMode(handle card, unsigned *now, unsigned *next) {
    *now = *next = getenv("FAKE_SLICES") != NULL;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(handle card, unsigned *count) { *count = MOST; return OK; }
int nvmlDeviceIsMigDeviceHandle(handle each, unsigned *is) { *is = slice_of(each) >= 0; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(handle card, unsigned slice, handle *found) {
    char told[32];
    *found = card + slice + 1;
    return profile((int)slice, told) ? OK : NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle slice, handle *card) {
    *card = CARD * (card_of(slice) + 1);
    return OK;
}

int nvmlDeviceGetAttributes_v2(handle slice, unsigned *attributes) {
    char told[32];
    if (!profile(slice_of(slice), told)) return NOT_FOUND;
    attributes[6] = atoi(told); /* gpuInstanceSliceCount */
    return OK;
}
