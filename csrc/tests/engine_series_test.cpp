// What an engine has around its layers for series: an engine without layers against plain loops in double precision,
// with gaps, clocks, unknown targets and every head and read-out; and sequences and batches against steps.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "ssmn.h"
#include "testing.h"

using namespace testing;

namespace {

constexpr int64_t kColumns = 3, kOutputs = 2, kWidth = 20, kStatic = 4, kFuture = 5, kSteps = 150, kStreams = 3;
constexpr double kRate = 0.07, kForget = 0.02, kRidge = 0.3, kEta = 0.6;
const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Settings {
    const char* name;
    bool masks, normalises;
    int64_t statics, futures, head, readout, features;
};

const Settings kSettings[] = {
    {"normalised", false, true, 0, 0, SSMN_POINT, SSMN_NO_READOUT, 0},
    {"masked", true, false, 0, 0, SSMN_POINT, SSMN_NO_READOUT, 0},
    {"gaussian", false, true, kStatic, 0, SSMN_GAUSSIAN, SSMN_NO_READOUT, 0},
    {"quantiles", true, true, 0, kFuture, SSMN_QUANTILES, SSMN_NO_READOUT, 0},
    {"lms of inputs", false, false, 0, 0, SSMN_POINT, SSMN_LMS, SSMN_READS_INPUTS},
    {"lms", true, true, kStatic, kFuture, SSMN_QUANTILES, SSMN_LMS, SSMN_READS_BOTH},
    {"squares", true, true, 0, kFuture, SSMN_GAUSSIAN, SSMN_SQUARES, SSMN_READS_HIDDEN},
    {"squares of both", false, false, kStatic, 0, SSMN_POINT, SSMN_SQUARES, SSMN_READS_BOTH},
};

struct Data {
    Floats x, elapsed, target, future, fixed;  // [T, n, ...], the last [n, ...]
};

// The streams side by side; `only` >= 0 takes that one alone, and steps [from, to).
Data cut(const Data& all, const Settings& s, int64_t only, int64_t from, int64_t to) {
    Data part;
    const auto take = [&](const Floats& source, int64_t width, Floats& into) {
        for (int64_t t = from; t < to; ++t)
            for (int64_t n = 0; n < kStreams; ++n)
                if (only < 0 || n == only)
                    std::copy_n(source.begin() + (t * kStreams + n) * width, width, std::back_inserter(into));
    };
    take(all.x, kColumns, part.x);
    take(all.elapsed, 1, part.elapsed);
    take(all.target, kOutputs, part.target);
    take(all.future, s.futures, part.future);
    part.fixed = all.fixed;
    if (only >= 0) part.fixed.assign(all.fixed.begin() + only * s.statics, all.fixed.begin() + (only + 1) * s.statics);
    return part;
}

Data data_of(const Settings& s, std::mt19937& random) {
    Data d;
    const int64_t rows = kSteps * kStreams;
    std::uniform_real_distribution<float> share(0.0f, 1.0f);
    d.x = floats(normal(rows * kColumns, random));
    d.target = floats(normal(rows * kOutputs, random));
    d.future = floats(normal(rows * s.futures, random));
    d.fixed = floats(normal(kStreams * s.statics, random));
    for (int64_t row = 0; row < rows; ++row) {
        d.elapsed.push_back(3.0f * share(random));
        const bool is_absent = s.masks && share(random) < 0.3f;
        for (int64_t c = 0; c < kColumns; ++c) {
            float& x = d.x[row * kColumns + c];
            x = x * 3.0f + 40.0f * static_cast<float>(c);
            if (share(random) < 0.02f) x *= 30.0f;
            if (is_absent || (s.masks && share(random) < 0.1f)) x = kNan;
        }
        for (int64_t o = 0; o < kOutputs; ++o) {
            float& y = d.target[row * kOutputs + o];
            if (s.normalises) y = y * 3.0f + 40.0f;
            if (share(random) < 0.1f) y = kNan;
        }
    }
    return d;
}

struct Model {
    ssmn_engine engine{};
    std::unique_ptr<Floats> room;  // of the arena
    Floats streams, input, output, gaps;
    std::vector<int64_t> positions;
    std::vector<ssmn_engine_learning> learning;
    const int64_t columns[kOutputs] = {2, 1};

    char* at(int64_t offset) { return static_cast<char*>(engine.arena) + offset; }
};

std::unique_ptr<Model> model_of(const Settings& s, int64_t streams, int64_t threads) {
    auto model = std::make_unique<Model>();
    ssmn_engine& e = model->engine;
    e.masks_missing = s.masks;
    e.is_normalised = e.has_columns = s.normalises;
    e.static_width = s.statics;
    e.future_width = s.futures;
    e.head_kind = s.head;
    e.head_parts = s.head == SSMN_POINT ? 1 : s.head == SSMN_GAUSSIAN ? 2 : 4;
    e.head_middle = s.head == SSMN_QUANTILES ? 1 : 0;
    e.readout = s.readout;
    e.readout_features = s.features;
    e.norm_rate = kRate;
    e.readout_eta = static_cast<float>(kEta);
    e.readout_log_keep = static_cast<float>(std::log1p(-kForget));
    e.readout_ridge = kRidge;
    e.inputs = kColumns;
    e.outputs = kOutputs * e.head_parts;
    e.width = kWidth;
    e.query_heads = e.key_heads = e.memory_heads = 1;
    e.window = 1;
    e.inner_width = 1;
    e.chunk = 8;
    e.threads = threads;
    e.norm_epsilon = 1e-6f;
    ssmn_engine_layout(&e);
    model->room = std::make_unique<Floats>(e.arena_bytes / 4 + 16);
    const auto start = reinterpret_cast<uintptr_t>(model->room->data());
    e.arena = reinterpret_cast<void*>((start + 63) / 64 * 64);
    std::mt19937 random(5);
    model->input = floats(normal(kWidth * e.input.columns, random));
    model->output = floats(normal(e.outputs * kWidth, random));
    for (float& w : model->output) w *= 0.2f;
    model->gaps = floats(normal(e.head_parts, random));
    ssmn_matrix_pack(SSMN_FLOAT32, kWidth, e.input.columns, model->input.data(), 0, 1, model->at(e.input.offset));
    ssmn_matrix_pack(SSMN_FLOAT32, e.outputs, kWidth, model->output.data(), 0, 1, model->at(e.output.offset));
    const Floats ones(kWidth, 1.0f);
    std::memcpy(model->at(e.norm), ones.data(), kWidth * 4);
    if (s.normalises) std::memcpy(model->at(e.columns), model->columns, sizeof model->columns);
    if (e.gaps != 0) std::memcpy(model->at(e.gaps), model->gaps.data(), model->gaps.size() * 4);
    model->streams.assign(streams * e.stream_floats, 0.0f);
    model->positions.assign(streams, 0);
    model->learning.assign(streams, {1.0f, 1.0f, -1.0f, -1.0f, -1.0f, -1.0f, -1.0f, 0});
    e.streams = model->streams.data();
    e.positions = model->positions.data();
    e.learning = model->learning.data();
    return model;
}

Floats run(Model& model, const Data& data, bool last_only = false) {
    const int64_t n = static_cast<int64_t>(model.positions.size());
    const int64_t steps = static_cast<int64_t>(data.elapsed.size()) / n;
    std::vector<int64_t> which;
    for (int64_t i = 0; i < n; ++i) which.push_back(i);
    Floats y = poisoned((last_only ? n : n * steps) * model.engine.outputs);
    const ssmn_engine_call call{
        n,
        steps,
        which.data(),
        data.x.data(),
        data.elapsed.data(),
        y.data(),
        last_only,
        model.engine.readout == SSMN_NO_READOUT ? nullptr : data.target.data(),
        data.future.data(),
        data.fixed.data()};
    check(ssmn_engine_run(&model.engine, &call) == SSMN_OK, "status");
    return y;
}

double softplus(double x) {
    return std::log1p(std::exp(x));
}

// x of M x = b, by Gauss with pivots.
Numbers solved(Numbers matrix, Numbers b) {
    const size_t n = b.size();
    for (size_t k = 0; k < n; ++k) {
        size_t pivot = k;
        for (size_t i = k + 1; i < n; ++i)
            if (std::abs(matrix[i * n + k]) > std::abs(matrix[pivot * n + k])) pivot = i;
        std::swap(b[k], b[pivot]);
        for (size_t j = 0; j < n; ++j) std::swap(matrix[k * n + j], matrix[pivot * n + j]);
        for (size_t i = k + 1; i < n; ++i) {
            const double factor = matrix[i * n + k] / matrix[k * n + k];
            for (size_t j = k; j < n; ++j) matrix[i * n + j] -= factor * matrix[k * n + j];
            b[i] -= factor * b[k];
        }
    }
    for (size_t k = n; k-- > 0;) {
        for (size_t j = k + 1; j < n; ++j) b[k] -= matrix[k * n + j] * b[j];
        b[k] /= matrix[k * n + k];
    }
    return b;
}

// One stream, as the header says it.
class Plain {
  public:
    Plain(const Settings& settings, const Model& model)
        : s_(settings),
          model_(model),
          parts_(model.engine.head_parts),
          mean_(kColumns),
          variance_(kColumns),
          count_(kColumns) {}

    Numbers step(const float* x, double elapsed, const float* target, const float* future, const float* fixed) {
        bool is_absent = s_.masks;
        for (int64_t c = 0; c < kColumns; ++c) is_absent = is_absent && std::isnan(x[c]);
        Numbers y(kOutputs * parts_);
        pending_ += elapsed;
        if (is_absent) return y;
        const double time = pending_;
        pending_ = 0.0;
        Numbers truth(target, target + kOutputs), read, marks;
        if (s_.normalises)
            for (int64_t o = 0; o < kOutputs; ++o) truth[o] = standardised(truth[o], model_.columns[o]);
        for (int64_t c = 0; c < kColumns; ++c) {
            const bool is_missing = std::isnan(x[c]);
            if (!is_missing && s_.normalises) observe(x[c], c);
            read.push_back(is_missing ? 0.0 : s_.normalises ? standardised(x[c], c) : x[c]);
            if (s_.masks) marks.push_back(is_missing);
        }
        read.insert(read.end(), marks.begin(), marks.end());
        read.insert(read.end(), fixed, fixed + s_.statics);
        read.insert(read.end(), future, future + s_.futures);
        Numbers hidden = product(model_.input, read);
        const double length = std::sqrt(inner(hidden, hidden) / kWidth + 1e-6);
        for (double& h : hidden) h /= length;
        y = product(model_.output, hidden);
        for (int64_t o = 0; o < kOutputs; ++o) spread(&y[o * parts_]);
        if (s_.readout != SSMN_NO_READOUT) read_out(hidden, read, truth, time, y);
        for (int64_t i = 0; i < kOutputs * parts_ && s_.normalises; ++i) {
            const int64_t c = model_.columns[i / parts_];
            const bool is_place = s_.head != SSMN_GAUSSIAN || i % parts_ == 0;
            y[i] = y[i] * scale(c) + (is_place ? mean_[c] : 0.0);
        }
        return y;
    }

  private:
    double scale(int64_t c) const {
        const double least = 1.1920928955078125e-07 * mean_[c];
        return std::sqrt(std::max(variance_[c], least * least + 1e-40));
    }
    double standardised(double x, int64_t c) const {
        return std::isnan(x) ? x : std::min(10.0, std::max(-10.0, (x - mean_[c]) / scale(c)));
    }

    void observe(double x, int64_t c) {
        count_[c] = std::min(count_[c] + 1.0, std::ceil(1.0 / kRate));
        const double rate = std::max(kRate, 1.0 / count_[c]);
        double d = x - mean_[c];
        if (count_[c] > 8.0 && variance_[c] > 0.0)
            d = std::min(4.0 * std::sqrt(variance_[c]), std::max(-4.0 * std::sqrt(variance_[c]), d));
        mean_[c] += rate * d;
        variance_[c] = (1.0 - rate) * (variance_[c] + rate * d * d);
    }

    static Numbers product(const Floats& matrix, const Numbers& x) {
        Numbers y(matrix.size() / x.size());
        for (size_t i = 0; i < matrix.size(); ++i) y[i / x.size()] += matrix[i] * x[i % x.size()];
        return y;
    }

    void spread(double* raw) const {
        if (s_.head == SSMN_GAUSSIAN) raw[1] = softplus(raw[1] + std::log(std::exp(1.0) - 1.0)) + 1e-3;
        if (s_.head != SSMN_QUANTILES) return;
        const Floats& gaps = model_.gaps;  // four, the second in the middle
        raw[1] += gaps[1];
        raw[0] = raw[1] - softplus(raw[0] + gaps[0]);
        raw[2] = raw[1] + softplus(raw[2] + gaps[2]);
        raw[3] = raw[2] + softplus(raw[3] + gaps[3]);
    }

    void read_out(const Numbers& hidden, const Numbers& read, const Numbers& truth, double time, Numbers& y) {
        Numbers key;
        if (s_.features != SSMN_READS_INPUTS)
            for (double h : hidden) key.push_back(h / std::sqrt(2.0 * inner(hidden, hidden)));
        if (s_.features != SSMN_READS_HIDDEN)
            for (double r : read) key.push_back(r / std::sqrt(2.0 * static_cast<double>(read.size())));
        key.push_back(1.0 / std::sqrt(2.0));
        const size_t F = key.size();
        if (last_.empty()) {
            weights_.assign(kOutputs * F, 0.0);
            moment_.assign(F * F, 0.0);
        } else {
            learn(truth, std::pow(1.0 - kForget, time));
        }
        last_ = key;
        said_.clear();
        const int64_t middle = s_.head == SSMN_QUANTILES ? 1 : 0;
        Numbers asked = key;
        if (s_.readout == SSMN_SQUARES) {
            Numbers system = moment_;
            double trace = 0.0;
            for (size_t i = 0; i < F; ++i) trace += moment_[i * F + i];
            for (size_t i = 0; i < F; ++i) system[i * F + i] += kRidge + 1e-6 * trace;
            asked = solved(system, key);
        }
        for (int64_t o = 0; o < kOutputs; ++o) {
            said_.push_back(y[o * parts_ + middle]);
            double correction = 0.0;
            for (size_t i = 0; i < F; ++i) correction += weights_[o * F + i] * asked[i];
            const int64_t places = s_.head == SSMN_GAUSSIAN ? 1 : parts_;
            for (int64_t i = 0; i < places; ++i) y[o * parts_ + i] += correction;
        }
    }

    void learn(const Numbers& truth, double keep) {
        const size_t F = last_.size();
        bool all = true;
        for (double value : truth) all = all && !std::isnan(value);
        for (int64_t o = 0; o < kOutputs; ++o) {
            double* line = &weights_[o * F];
            double recalled = 0.0, factor = truth[o] - said_[o];
            if (s_.readout == SSMN_SQUARES ? !all : std::isnan(truth[o])) continue;
            for (size_t i = 0; i < F; ++i) recalled += line[i] * last_[i];
            if (s_.readout == SSMN_LMS) factor = kEta * (factor - keep * recalled) / inner(last_, last_);
            for (size_t i = 0; i < F; ++i) line[i] = keep * line[i] + factor * last_[i];
        }
        for (size_t i = 0; i < F * F && all; ++i) moment_[i] = keep * moment_[i] + last_[i / F] * last_[i % F];
    }

    const Settings& s_;
    const Model& model_;
    const int64_t parts_;
    Numbers mean_, variance_, count_, last_, said_, weights_, moment_;  // weights: the sums b of the squares
    double pending_ = 0.0;
};

void check_settings(const Settings& s, std::mt19937& random) {
    const std::string name = std::string("series, ") + s.name + ": ";
    const Data data = data_of(s, random);
    auto model = model_of(s, kStreams, 1);
    const int64_t outputs = model->engine.outputs;
    Floats stepped;
    for (int64_t t = 0; t < kSteps; ++t) {
        const Floats y = run(*model, cut(data, s, -1, t, t + 1));
        stepped.insert(stepped.end(), y.begin(), y.end());
    }
    Numbers expected(stepped.size());
    for (int64_t n = 0; n < kStreams; ++n) {
        Plain plain(s, *model);
        for (int64_t t = 0; t < kSteps; ++t) {
            const int64_t row = t * kStreams + n;
            const Numbers y = plain.step(
                data.x.data() + row * kColumns, data.elapsed[row], data.target.data() + row * kOutputs,
                data.future.data() + row * s.futures, data.fixed.data() + n * s.statics);
            std::copy(y.begin(), y.end(), expected.begin() + row * outputs);
        }
    }
    check_close(stepped, expected, name + "plain loops");
    for (const int64_t threads : {1, 3}) {
        auto whole = model_of(s, kStreams, threads), last = model_of(s, kStreams, threads);
        check(run(*whole, data) == stepped, name + "a sequence equals its steps");
        check(whole->positions == model->positions, name + "positions");
        // Doubles seen as floats may be NaN.
        check(
            std::memcmp(whole->streams.data(), model->streams.data(), whole->streams.size() * 4) == 0, name + "states");
        check(
            run(*last, data, true) == Floats(stepped.end() - kStreams * outputs, stepped.end()),
            name + "only the last");
        auto alone = model_of(s, 1, threads);
        Floats one, first = run(*alone, cut(data, s, 1, 0, 71)), second = run(*alone, cut(data, s, 1, 71, kSteps));
        for (int64_t t = 0; t < kSteps; ++t)
            one.insert(
                one.end(), stepped.begin() + (t * kStreams + 1) * outputs,
                stepped.begin() + (t * kStreams + 2) * outputs);
        first.insert(first.end(), second.begin(), second.end());
        check(first == one, name + "pieces of one stream");
    }
}

void check_refusals() {
    const Settings& s = kSettings[5];
    std::mt19937 random(2);
    const Data good = cut(data_of(s, random), s, 0, 0, 4);
    auto model = model_of(s, 1, 1);
    const Floats before = model->streams;
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float wrong : {infinity, kNan})
        for (int64_t field = 0; field < 4; ++field) {
            Data bad = good;
            Floats* const fields[] = {&bad.x, &bad.target, &bad.future, &bad.fixed};
            if (std::isnan(wrong) && field < 2) continue;
            fields[field]->back() = wrong;
            Floats y = poisoned(4 * model->engine.outputs);
            const int64_t which = 0;
            const ssmn_engine_call call{1,
                                        4,
                                        &which,
                                        bad.x.data(),
                                        bad.elapsed.data(),
                                        y.data(),
                                        0,
                                        bad.target.data(),
                                        bad.future.data(),
                                        bad.fixed.data()};
            check(ssmn_engine_run(&model->engine, &call) == SSMN_NOT_FINITE, "series: not finite");
        }
    check(model->streams == before && model->positions[0] == 0, "series: nothing has changed");
}

void check_all() {
    std::mt19937 random(1);
    for (const Settings& settings : kSettings) check_settings(settings, random);
    check_refusals();
}

}  // namespace

int main() {
    return on_every_path("engine_series", check_all);
}
