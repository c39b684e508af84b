// The engine's packed matrices against plain loops, and a small engine against itself: one thread and several, a
// sequence and its steps, one stream and a batch.
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

constexpr int64_t kFormats[] = {SSMN_FLOAT32, SSMN_BFLOAT16, SSMN_INT8, SSMN_INT4};
const char* const kNames[] = {"float32", "bfloat16", "int8", "int4"};

// Zeroed memory that begins at a multiple of 64 bytes and ends where it was asked to.
class Block {
  public:
    explicit Block(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
        data_ = ::operator new(bytes_ + 1, std::align_val_t{64});
        std::memset(data_, 0, bytes_);
    }
    ~Block() { ::operator delete(data_, std::align_val_t{64}); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    char* at(int64_t offset) const { return static_cast<char*>(data_) + offset; }

  private:
    size_t bytes_;
    void* data_;
};

// What a format may lose of a group of 32 weights, as a share of the largest.
double rounding(int64_t format) {
    if (format == SSMN_FLOAT32) return 0.0;
    if (format == SSMN_BFLOAT16) return 1.0 / 256.0;
    return format == SSMN_INT8 ? 0.51 / 126.0 : 0.2;
}

void check_packing(int64_t format, int64_t rows, int64_t columns, std::mt19937& random) {
    const std::string name = std::string(kNames[format]) + " " + std::to_string(rows) + " x " + std::to_string(columns);
    const Floats weights = floats(normal(rows * columns, random));
    Block packed(ssmn_matrix_bytes(format, rows, columns));
    ssmn_matrix_pack(format, rows, columns, weights.data(), 0, 1, packed.at(0));
    Floats back = poisoned(rows * columns);
    ssmn_matrix_unpack(format, rows, columns, packed.at(0), back.data());
    bool close = true, again = true;
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
            double most = 0.0;
            for (int64_t c = j / 32 * 32; c < std::min(columns, j / 32 * 32 + 32); ++c)
                most = std::max(most, std::abs(static_cast<double>(weights[i * columns + c])));
            const double off = std::abs(static_cast<double>(back[i * columns + j]) - weights[i * columns + j]);
            close = close && off <= rounding(format) * most;
        }
    check(close, name + ": packed and unpacked");
    Block second(ssmn_matrix_bytes(format, rows, columns));
    ssmn_matrix_pack(format, rows, columns, back.data(), 0, 1, second.at(0));
    Floats twice = poisoned(rows * columns);
    ssmn_matrix_unpack(format, rows, columns, second.at(0), twice.data());
    if (format == SSMN_FLOAT32 || format == SSMN_BFLOAT16) again = twice == back;
    check(again, name + ": packing again changes nothing");
}

// What the product does with its inputs: nothing, or int8 codes per 32 columns.
Numbers rounded_inputs(int64_t format, int64_t columns, const Floats& x) {
    Numbers made(x.begin(), x.end());
    if (format != SSMN_INT8 && format != SSMN_INT4) return made;
    for (size_t from = 0; from < x.size(); from += columns)
        for (int64_t g = 0; g < columns; g += 32) {
            const int64_t end = std::min(columns, g + 32);
            float most = 0.0f;
            for (int64_t c = g; c < end; ++c) most = std::max(most, std::abs(x[from + c]));
            if (most == 0.0f) continue;
            for (int64_t c = g; c < end; ++c)
                made[from + c] = std::nearbyint(x[from + c] * (127.0f / most)) * (most / 127.0f);
        }
    return made;
}

void check_product(
    int64_t format, int64_t rows, int64_t columns, int64_t count, int32_t threads, std::mt19937& random) {
    const std::string name = std::string(kNames[format]) + " product " + std::to_string(rows) + " x " +
                             std::to_string(columns) + " with " + std::to_string(count);
    const Floats weights = floats(normal(rows * columns, random)), x = floats(normal(count * columns, random));
    Block packed(ssmn_matrix_bytes(format, rows, columns));
    ssmn_matrix_pack(format, rows, columns, weights.data(), 0, 1, packed.at(0));
    Floats held = poisoned(rows * columns), y = poisoned(count * rows);
    ssmn_matrix_unpack(format, rows, columns, packed.at(0), held.data());
    const Numbers inputs = rounded_inputs(format, columns, x);
    Numbers expected(count * rows);
    for (int64_t n = 0; n < count; ++n)
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j)
                expected[n * rows + i] += inputs[n * columns + j] * held[i * columns + j];
    const int32_t status = ssmn_matrix_product(format, rows, columns, packed.at(0), count, x.data(), y.data(), threads);
    check(status == SSMN_OK, name + ": status");
    check_close(y, expected, name);
    for (int64_t n = 0; n < count; ++n) {
        Floats alone = poisoned(rows);
        ssmn_matrix_product(format, rows, columns, packed.at(0), 1, x.data() + n * columns, alone.data(), 1);
        check(std::equal(alone.begin(), alone.end(), y.begin() + n * rows), name + ": equals one at a time");
    }
}

struct Model {
    ssmn_engine engine{};
    std::vector<ssmn_engine_layer> layers;
    std::unique_ptr<Block> arena;
    Floats streams;
    std::vector<int64_t> positions;
    std::vector<ssmn_engine_learning> learning;
};

void fill(const Model& model, const ssmn_matrix& matrix, std::mt19937& random) {
    if (matrix.rows == 0) return;
    Floats weights = floats(normal(matrix.rows * matrix.columns, random));
    for (float& weight : weights) weight /= std::sqrt(static_cast<float>(matrix.columns));
    ssmn_matrix_pack(matrix.format, matrix.rows, matrix.columns, weights.data(), 0, 1, model.arena->at(matrix.offset));
}

void fill(const Model& model, int64_t offset, int64_t count, float value) {
    if (offset == 0) return;
    for (int64_t i = 0; i < count; ++i) std::memcpy(model.arena->at(offset + i * 4), &value, 4);
}

// Every option that changes what is computed is on.
std::unique_ptr<Model> text_model(int64_t format, int64_t threads, int64_t streams, bool adapts = false) {
    auto model = std::make_unique<Model>();
    ssmn_engine& e = model->engine;
    e.has_output_memory = adapts;
    e.output_eta = 1.5f;
    e.output_rate = 0.01f;
    e.output_threshold = 0.02f;
    e.output_switch = 0.01f;
    e.is_text = e.has_encoder = e.has_rotary = e.has_sinks = e.has_erasure = 1;
    e.inputs = e.outputs = 41;
    e.width = 36;
    e.query_heads = 6;
    e.key_heads = 2;
    e.window = 11;
    e.memory_heads = 2;
    e.chat_rounds = 1;
    e.inner_width = 44;
    e.format = format;
    e.chunk = 20;
    e.threads = threads;
    e.norm_epsilon = 1e-6f;
    e.plasticity_eta = 0.5f;
    e.read_floor = 0.2f;
    e.chat_epsilon = 1e-2f;
    model->layers.resize(3);
    model->layers[1].plastic = 1;
    e.layers = model->layers.data();
    e.layer_count = 3;
    ssmn_engine_layout(&e);
    model->arena = std::make_unique<Block>(e.arena_bytes);
    std::mt19937 random(7);
    for (const ssmn_matrix& matrix : {e.input, e.output, e.encoder_expand, e.encoder_contract})
        fill(*model, matrix, random);
    fill(*model, e.norm, e.width, 1.0f);
    for (int64_t i = 0; i < e.width / e.query_heads / 2; ++i) {
        const double frequency = std::pow(10.0, -static_cast<double>(i));
        std::memcpy(model->arena->at(e.frequencies + i * 8), &frequency, 8);
    }
    for (const ssmn_engine_layer& layer : model->layers) {
        for (const ssmn_matrix& matrix :
             {layer.input, layer.key, layer.gate, layer.key_gate, layer.output, layer.expand, layer.contract})
            fill(*model, matrix, random);
        fill(*model, layer.mixer_norm, e.width, 1.0f);
        fill(*model, layer.ffn_norm, e.width, 1.1f);
        fill(*model, layer.sinks, e.query_heads, 0.3f);
        fill(*model, layer.gate_bias, e.width, 1.0f);
        fill(*model, layer.importance_bias, e.memory_heads, 0.1f);
        fill(*model, layer.erasure_bias, e.memory_heads, -0.1f);
        fill(*model, layer.decay_rate, e.memory_heads, 0.01f);
        fill(*model, layer.read_norm, e.width / e.memory_heads, 0.9f);
        fill(*model, layer.chat_keep, e.chat_rounds, 0.5f);
        fill(*model, layer.chat_add, e.chat_rounds, 1.0f);
    }
    model->streams.assign(streams * e.stream_floats, 0.0f);
    model->positions.assign(streams, 0);
    model->learning.assign(streams, {1.0f, 1.0f, -1.0f, -1.0f, -1.0f, -1.0f, -1.0f, 0});
    e.arena = model->arena->at(0);
    e.streams = model->streams.data();
    e.positions = model->positions.data();
    e.learning = model->learning.data();
    return model;
}

Floats run(
    Model& model, const std::vector<int64_t>& which, const std::vector<int64_t>& tokens, bool last_only = false) {
    const int64_t n = static_cast<int64_t>(which.size()), steps = static_cast<int64_t>(tokens.size()) / n;
    Floats y = poisoned((last_only ? n : n * steps) * model.engine.outputs);
    const ssmn_engine_call call{n,        steps,     which.data(), tokens.data(), nullptr,
                                y.data(), last_only, nullptr,      nullptr,       nullptr};
    check(ssmn_engine_run(&model.engine, &call) == SSMN_OK, "engine: status");
    for (float value : y)
        if (!std::isfinite(value)) {
            check(false, "engine: finite");
            break;
        }
    return y;
}

bool same(const Floats& all, size_t from, const Floats& part) {
    return std::equal(part.begin(), part.end(), all.begin() + static_cast<std::ptrdiff_t>(from));
}

void check_engine(int64_t format, int64_t threads) {
    const std::string name = std::string("engine, ") + kNames[format] + ", " + std::to_string(threads) + " threads: ";
    const int64_t steps = 53, outputs = 41;
    std::vector<int64_t> tokens(3 * steps), second;
    std::mt19937 random(3);
    for (int64_t& token : tokens) token = static_cast<int64_t>(random() % 41);
    for (int64_t t = 0; t < steps; ++t) second.push_back(tokens[t * 3 + 1]);

    auto alone = text_model(format, 1, 1);
    Floats stepped;
    for (int64_t token : second) {
        const Floats y = run(*alone, {0}, {token});
        stepped.insert(stepped.end(), y.begin(), y.end());
    }
    auto sequence = text_model(format, threads, 1);
    check(run(*sequence, {0}, second) == stepped, name + "a sequence equals its steps");
    auto batch = text_model(format, threads, 3);
    const Floats all = run(*batch, {2, 0, 1}, tokens);
    bool equal = true;
    for (int64_t t = 0; t < steps; ++t)
        equal = equal && same(
                             all, (t * 3 + 1) * outputs,
                             Floats(stepped.begin() + t * outputs, stepped.begin() + (t + 1) * outputs));
    check(equal, name + "a batch equals its streams");
    check(batch->positions == std::vector<int64_t>(3, steps), name + "positions");
    auto last = text_model(format, threads, 3);
    check(same(all, (steps - 1) * 3 * outputs, run(*last, {2, 0, 1}, tokens, true)), name + "only the last");
    auto many = text_model(format, threads, 29);  // more than a chunk
    std::vector<int64_t> which, repeated;
    for (int64_t i = 0; i < 29; ++i) which.push_back(i);
    for (int64_t t = 0; t < steps; ++t) repeated.insert(repeated.end(), 29, second[t]);
    const Floats wide = run(*many, which, repeated);
    check(
        same(wide, ((steps - 1) * 29 + 28) * outputs, Floats(stepped.end() - outputs, stepped.end())),
        name + "more streams than a chunk");
}

// With an output memory, sequences and steps agree to rounding: it is written once per chunk.
void check_adapted(int64_t threads) {
    const std::string name = "engine with an output memory, " + std::to_string(threads) + " threads: ";
    const int64_t steps = 53, outputs = 41;
    std::vector<int64_t> tokens(3 * steps), second;
    std::mt19937 random(3);
    for (int64_t& token : tokens) token = static_cast<int64_t>(random() % 41);
    for (int64_t t = 0; t < steps; ++t) second.push_back(tokens[t * 3 + 1]);
    auto alone = text_model(SSMN_FLOAT32, 1, 1, true);
    Numbers stepped;
    for (int64_t token : second) {
        const Floats y = run(*alone, {0}, {token});
        stepped.insert(stepped.end(), y.begin(), y.end());
    }
    auto plain = text_model(SSMN_FLOAT32, 1, 1);
    const Floats without = run(*plain, {0}, second);
    check(Floats(stepped.begin(), stepped.end()) != without, name + "it changes something");
    auto batch = text_model(SSMN_FLOAT32, threads, 3, true), last = text_model(SSMN_FLOAT32, threads, 3, true);
    const Floats all = run(*batch, {2, 0, 1}, tokens);
    Floats one;
    for (int64_t t = 0; t < steps; ++t)
        one.insert(one.end(), all.begin() + (t * 3 + 1) * outputs, all.begin() + (t * 3 + 2) * outputs);
    check_close(one, stepped, name + "a sequence in a batch equals its steps");
    check(same(all, (steps - 1) * 3 * outputs, run(*last, {2, 0, 1}, tokens, true)), name + "only the last");
    const Floats numbers(batch->streams.begin(), batch->streams.begin() + batch->engine.stream_floats);
    check_close(
        Floats(alone->streams.begin() + alone->engine.head, alone->streams.end()),
        Numbers(numbers.begin() + batch->engine.head, numbers.end()), name + "its state");
}

void check_refusals() {
    auto model = text_model(SSMN_FLOAT32, 1, 1);
    const Floats before = model->streams;
    const int64_t which = 0;
    Floats y = poisoned(41);
    for (const int64_t token : {int64_t{-1}, int64_t{41}}) {
        const ssmn_engine_call call{1, 1, &which, &token, nullptr, y.data(), 0, nullptr, nullptr, nullptr};
        check(ssmn_engine_run(&model->engine, &call) == SSMN_UNKNOWN_TOKEN, "engine: unknown token");
    }
    const int64_t token = 3;
    const ssmn_engine_call call{1, 1, &which, &token, nullptr, y.data(), 0, nullptr, nullptr, nullptr};
    model->engine.busy = 1;
    check(ssmn_engine_run(&model->engine, &call) == SSMN_BUSY, "engine: busy");
    model->engine.busy = 0;
    check(model->streams == before && model->positions[0] == 0, "engine: nothing has changed");
    check(ssmn_engine_run(&model->engine, &call) == SSMN_OK && model->engine.busy == 0, "engine: free again");
    const ssmn_engine_call nothing{1, 0, &which, nullptr, nullptr, nullptr, 0, nullptr, nullptr, nullptr};
    check(ssmn_engine_run(&model->engine, &nothing) == SSMN_OK && model->positions[0] == 1, "engine: no steps");
}

void check_all() {
    std::mt19937 random(1);
    const int64_t sizes[][2] = {{1, 1}, {16, 32}, {17, 33}, {64, 64}, {31, 3}, {100, 95}, {130, 160}};
    for (const int64_t format : kFormats) {
        for (const auto& size : sizes) {
            check_packing(format, size[0], size[1], random);
            for (const int64_t count : {0, 1, 2, 3, 5, 29}) check_product(format, size[0], size[1], count, 3, random);
        }
        check_engine(format, 1);
        check_engine(format, 3);
    }
    check_adapted(1);
    check_adapted(3);
    check_refusals();
}

}  // namespace

int main() {
    return on_every_path("engine", check_all);
}
