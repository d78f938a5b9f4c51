# The verbs of the project; CI calls the same ones. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS ?= models
MINUTES ?= 10
DOCKER ?= docker
# Exactly one build of ONNX Runtime: the CUDA one where an NVIDIA GPU answers, else the CPU one.
RUNTIME := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
SOURCES := clients proto server training tests

.DEFAULT_GOAL := help
.PHONY: help demo serve test conformance fuzz compat check format proto bench bench-quick autoscale image image-check manifests rolling audit clean

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What it takes to train, serve and call; and, on top, what it takes to develop.
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[server,training,images,$(RUNTIME)]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[server,tracing,training,tracking,privacy,sweep,images,dev,$(RUNTIME)]'
	touch $@

demo: $(VENV)/.run  ## train four models, publish, serve, ask, and show one table
	$(BIN)/python clients/examples/demo.py

serve: $(VENV)/.run  ## the same models, served until Ctrl-C; says what to try next
	$(BIN)/python clients/examples/demo.py --serve --models $(MODELS)

test: $(VENV)/.dev  ## every test that takes no long training and no other verb below (data sets: skipped when they cannot be had)
	$(BIN)/python -m pytest -m "not training and not compat" --ignore=tests/conformance
	$(BIN)/python -m pytest tests/conformance/test_fuzz.py

conformance: $(VENV)/.dev  ## hostile requests, stops, reloads and a fuzzer against a real server; table of case, expected, got
	$(BIN)/python -m pytest tests/conformance

fuzz: $(VENV)/.dev  ## random bytes, requests and values to a real server, for MINUTES=10; what it finds ends it with an example
	FORWARDPASS_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/conformance/test_fuzz.py

compat: $(VENV)/.dev  ## clients and models of others: tritonclient, perf_analyzer, KServe, fresh stubs, ONNX's own test suite
	$(BIN)/python -m pytest -m compat tests/compat

check: $(VENV)/.dev  ## ruff, mypy strict, hadolint, and that generated files are what their sources give
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python proto/generate.py --check
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.dev  ## let ruff put the code in order
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: $(VENV)/.dev  ## regenerate descriptors and stubs from the .proto files
	$(BIN)/python proto/generate.py

bench: $(VENV)/.dev  ## speed beside a bare echo and ONNX Runtime alone, on two cores (under 15 minutes)
	$(BIN)/python tests/benchmark/bench.py $(BENCH)

bench-quick: $(VENV)/.dev  ## the same in under 4 minutes; BENCH="--realtime --record" quiets and keeps
	$(BIN)/python tests/benchmark/bench.py --quick $(BENCH)

image: Dockerfile  ## the three container images, by docker (DOCKER=podman for podman)
	for stage in training server-cpu server; do \
	    $(DOCKER) build --target $$stage --tag forwardpass:$$stage --build-arg REVISION=$$(git rev-parse HEAD) . || exit 1; \
	done

image-check: $(VENV)/.dev  ## build two of them without a registry, run them confined, predict, stop; needs root and podman
	$(BIN)/python tests/image/check.py $(IMAGE)

manifests: $(VENV)/.dev  ## render every overlay and component, check schemas, and check what they claim
	$(BIN)/python -m pytest tests/k8s

rolling: $(VENV)/.dev  ## 20 rolling restarts under load behind nginx, haproxy and our client: no call may fail
	FORWARDPASS_RESTARTS=20 $(BIN)/python -m pytest tests/integration/test_rolling_restart.py

audit: $(VENV)/.dev  ## known vulnerabilities of what the server's image holds, and its bill of materials
	$(BIN)/python tests/image/audit.py

autoscale: $(VENV)/.dev  ## the autoscaler's rule against a bursty trace, beside scaling on CPU: table and plot (minutes)
	$(BIN)/python tests/benchmark/autoscaling/autoscale.py

clean:  ## remove the environment, runs and models
	rm -rf $(VENV) runs $(MODELS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
