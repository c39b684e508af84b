/*
 * Steps a saved model without Python: C, the library and a file of numbers. Write the file once,
 *
 *     python -c 'import ssmn; ssmn.Engine.load("controller").save_image("controller.image")'
 *
 * build this with the folder of the library and its header (`ssmn doctor` names it),
 *
 *     cc -O2 engine.c -I "$LIB" -L "$LIB" -lssmn -Wl,-rpath,"$LIB" -o engine
 *
 * and give it rows: the numbers of a step, with spaces between them, on a line; of a text model, token numbers.
 *
 *     ./engine controller.image < rows.txt
 *
 * It answers every row at once: with the model's outputs, or with the likeliest next token.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssmn.h"

/* What stands at the beginning of an image. The structs of ssmn.h follow, then the weights as they lie in the arena. */
typedef struct image_header {
    char magic[8];
    char version[24];
    int64_t interface;
    int64_t engine_bytes;
    int64_t layer_bytes;
    int64_t weight_bytes;
    int64_t checksum; /* CRC-32 of all that follows */
} image_header;

static void stop(const char* what) {
    fprintf(stderr, "engine: %s\n", what);
    exit(1);
}

static void* zeros(int64_t bytes) {
    const size_t whole = ((size_t)bytes + 63) / 64 * 64;
    void* block = aligned_alloc(64, whole ? whole : 64);
    if (!block) stop("out of memory");
    return memset(block, 0, whole);
}

static uint32_t crc32(uint32_t sum, const void* data, int64_t bytes) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; ++i) {
            table[i] = i;
            for (int bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
        }
    const uint8_t* at = data;
    for (sum = ~sum; bytes > 0; --bytes) sum = sum >> 8 ^ table[(sum ^ *at++) & 255];
    return ~sum;
}

static void must_read(FILE* file, void* into, int64_t bytes) {
    if (fread(into, 1, (size_t)bytes, file) != (size_t)bytes) stop("the image is cut short");
}

/* The model of an image, with its weights in place and no streams. */
static ssmn_engine open_image(const char* path) {
    image_header header;
    ssmn_engine engine;
    FILE* file = fopen(path, "rb");
    if (!file) stop("the image cannot be opened");
    must_read(file, &header, sizeof header);
    if (memcmp(header.magic, "SSMNimg", 8) != 0) stop("this is no image");
    header.version[sizeof header.version - 1] = 0;
    if (strcmp(header.version, ssmn_version()) != 0 || header.interface != SSMN_INTERFACE ||
        ssmn_interface() != SSMN_INTERFACE || header.engine_bytes != sizeof(ssmn_engine) ||
        header.layer_bytes != sizeof(ssmn_engine_layer))
        stop("the image is of another version of the library; write it again");
    must_read(file, &engine, sizeof engine);
    uint32_t sum = crc32(0, &engine, sizeof engine);
    if (engine.layer_count < 1 || engine.layer_count > 10000) stop("the image is damaged");
    engine.layers = zeros(engine.layer_count * header.layer_bytes);
    must_read(file, engine.layers, engine.layer_count * header.layer_bytes);
    sum = crc32(sum, engine.layers, engine.layer_count * header.layer_bytes);
    /* Where everything lies depends on the sizes alone, so another number of threads could be set before this. */
    ssmn_engine_layout(&engine);
    if (engine.workspace != header.weight_bytes) stop("the image is damaged");
    engine.arena = zeros(engine.arena_bytes);
    must_read(file, engine.arena, header.weight_bytes);
    if (crc32(sum, engine.arena, header.weight_bytes) != header.checksum) stop("the image is damaged");
    fclose(file);
    return engine;
}

/* Room for `count` fresh streams. Stream i is the floats from streams + i * stream_floats, positions[i] and
 * learning[i]: copy these three and you have forked or saved it; zero the first two and it is fresh. */
static void make_streams(ssmn_engine* engine, int64_t count) {
    ssmn_engine_learning* learning = zeros(count * (int64_t)sizeof *learning);
    for (int64_t i = 0; i < count; ++i)
        learning[i] = (ssmn_engine_learning){1.0f, 1.0f, -1.0f, -1.0f, -1.0f, -1.0f, -1.0f, 0};
    engine->learning = learning;
    engine->streams = zeros(count * engine->stream_floats * 4);
    engine->positions = zeros(count * 8);
}

static int64_t largest(const float* y, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; ++i)
        if (y[i] > y[best]) best = i;
    return best;
}

int main(int argc, char** argv) {
    if (argc != 2) stop("usage: engine IMAGE < ROWS");
    ssmn_engine engine = open_image(argv[1]);
    if (engine.static_width || engine.future_width) stop("the model takes more than a row; fill in fixed and future");
    make_streams(&engine, 1);

    const int64_t which = 0, width = engine.is_text ? 1 : engine.inputs;
    float *x = zeros(width * 4), *y = zeros(engine.outputs * 4);
    int64_t token = 0;
    ssmn_engine_call call = {.streams = 1, .steps = 1, .which = &which, .y = y};
    call.x = engine.is_text ? (const void*)&token : x;
    for (int64_t read = 0;;) {
        if (engine.is_text ? scanf("%" SCNd64, &token) != 1 : scanf("%f", &x[read]) != 1) break;
        if (++read < width) continue;
        read = 0;
        const int32_t status = ssmn_engine_run(&engine, &call);
        if (status == SSMN_NOT_FINITE || status == SSMN_UNKNOWN_TOKEN) stop("the row is not finite, or no token");
        if (status != SSMN_OK) stop("the step failed");
        if (engine.is_text) {
            printf("%" PRId64 "\n", largest(y, engine.outputs));
        } else {
            for (int64_t i = 0; i < engine.outputs; ++i) printf(i + 1 < engine.outputs ? "%.9g " : "%.9g\n", y[i]);
        }
        fflush(stdout);
    }
    return 0;
}
