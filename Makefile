# make demo     set up, start a real server, send a photograph, save a picture of the results
# make test     set up, build the models, lint, test against real servers, 5 minutes on two cores after the set-up
# make test-all make test, the slow tests, deploy-check and container-check, 15 minutes more
# make lint     ruff and mypy
# make serve    serve model_repository/ (HTTP_PORT, GRPC_PORT, METRICS_PORT, MODEL_REPOSITORY, MODEL_CONFIG_NAME);
#               AU_WEIGHTS=FILE.skops also builds and serves the action units, AU_REPOSITORY=DIR serves built ones
# make accept   test a running server: SERVER=HOST:PORT (METRICS=HOST:PORT, TLS_FOLDER, TLS_NAME, POSE_WEIGHTS=FILE,
#               AU_WEIGHTS=FILE.skops)
# make deploy-check  serve.sh, probes, manifests, alert rules, dashboard, without a cluster, 5 minutes
# make container-check  build and run the image on a substitute for NVIDIA's, 4 to 12 minutes; needs root and apt-get
# make image    build the container: TRITON_IMAGE=NAME TRITON_DIGEST=sha256:... (TRITON_VERSION, IMAGE, POSE_WEIGHTS,
#               AU_WEIGHTS=FILE.skops under export/)
# make perf-image  perf_analyzer with the project's faces, for a cluster: TRITON_IMAGE=NAME TRITON_SDK_DIGEST=sha256:...
# make monitoring  write prometheus_rule.yaml and dashboard.json from the rules and panels in deploy/monitoring/
# make capacity simulate an autoscaled fleet under rising load, 5 minutes
# make parity   compare the outputs with py-feat, which is installed in a separate environment (FACES=FILE.npz, AU_WEIGHTS)
# make chaos    measure crashes, overload, stops and 20,000 hostile requests for docs/reliability.md, 8 minutes
# make soak     measure memory under load for 30 minutes (SOAK_MINUTES=30) and for 3 minutes with a deliberate leak
# make docs     build a site of all pages and the client's API in build/site/index.html; needs Python 3.11 or newer
# make gpu-check  on a machine with a GPU: parity, CUDA memory, speed; GPU_OPTIONS="--quick" (benchmarks/README.md)
# make bench    compare the speed with py-feat, in the same environment; PERF_ANALYZER=FILE, AU_WEIGHTS=FILE.skops
# make bench-au the action units of make bench alone
#
# PYTHON=python3.11 selects another Python, VENV=DIR another folder for the virtual environment.

PYTHON ?= python3
VENV ?= .venv
SOAK_MINUTES ?= 30
# Each test process starts its own server.
PARALLEL ?= --numprocesses auto --maxprocesses 4
# Keeps the tests of a module in one process, where they share fixtures.
BY_MODULE := --dist loadscope
BIN := $(VENV)/bin
PARITY_BIN := $(VENV)-parity/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

DEBIAN := build/debian

HOG_MODEL := model_repository/hog/1/model.onnx
POSE_MODEL := model_repository/pose_mlp/1/model.onnx

# The project's only version; CITATION.cff and the manifests repeat it, and a test compares them.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' client/pyproject.toml)
IMAGE ?= triton-face-features:$(VERSION)
PERF_IMAGE ?= triton-face-perf:$(VERSION)
TRITON_VERSION ?= 26.07-py3
POSE_WEIGHTS ?= export/checkpoints/pose_mlp.safetensors

# An AU_REPOSITORY of the environment or the command line is served; with AU_WEIGHTS it is also built.
BUILT_AU_REPOSITORY := $(or $(AU_REPOSITORY),build/au_repository)

.PHONY: demo test test-all test-slow accept lint serve models au-model install parity bench bench-au gpu-check chaos soak docs api-docs
.PHONY: clean deploy-check container-check image perf-image monitoring capacity autoscaling FORCE

demo: $(BIN)/.installed models
	$(BIN)/python -m deploy.local.demo

serve: $(BIN)/.installed models $(if $(AU_WEIGHTS),au-model)
	@$(if $(AU_WEIGHTS),AU_REPOSITORY="$(BUILT_AU_REPOSITORY)") exec $(BIN)/python -m deploy.local

test: lint models $(DEBIAN)/.prometheus $(PARITY_BIN)/.installed
	$(BIN)/python -m pytest $(PARALLEL) $(BY_MODULE) -m "not slow" --ignore=tests/deploy --ignore=tests/container

# Sequential even with `make --jobs`: tests that share the cores would miss their time limits.
test-all: test
	$(MAKE) test-slow
	$(MAKE) deploy-check
	$(MAKE) container-check

test-slow: $(BIN)/.installed-test models $(DEBIAN)/.prometheus $(PARITY_BIN)/.installed
	$(BIN)/python -m pytest $(PARALLEL) $(BY_MODULE) -m slow --ignore=tests/deploy --ignore=tests/container

accept: $(BIN)/.installed-test
	@test -n "$(SERVER)" || { echo "make accept: SERVER=HOST:PORT names the gRPC endpoint of the server"; exit 1; }
	$(BIN)/python -m pytest -q tests/acceptance --server $(SERVER) --pose-weights $(POSE_WEIGHTS) \
	  $(if $(AU_WEIGHTS),--au-weights "$(AU_WEIGHTS)") $(if $(METRICS),--metrics $(METRICS)) $(if $(TLS_FOLDER),--tls-folder $(TLS_FOLDER)) \
	  $(if $(TLS_NAME),--tls-name $(TLS_NAME))

deploy-check: $(BIN)/.installed-test models $(DEBIAN)/.prometheus $(DEBIAN)/.kubectl
	$(BIN)/python -m pytest $(PARALLEL) --dist load tests/deploy

container-check: $(BIN)/.installed-test $(PARITY_BIN)/.installed
	$(BIN)/python -m pytest -v tests/container

image:
	@test -n "$(TRITON_IMAGE)" -a -n "$(TRITON_DIGEST)" || { echo "make image: TRITON_IMAGE=NAME and \
	TRITON_DIGEST=sha256:... name NVIDIA's tritonserver image and the digest of $(TRITON_VERSION)"; exit 1; }
	DOCKER_BUILDKIT=1 docker build --file deploy/docker/Dockerfile --tag $(IMAGE) --build-arg TRITON_IMAGE=$(TRITON_IMAGE) \
	  --build-arg TRITON_VERSION=$(TRITON_VERSION) --build-arg TRITON_DIGEST=$(TRITON_DIGEST) \
	  --build-arg POSE_WEIGHTS=$(POSE_WEIGHTS) --build-arg AU_WEIGHTS=$(AU_WEIGHTS) $(if $(PIP_EXTRA_INDEX_URL),--build-arg PIP_EXTRA_INDEX_URL) .

perf-image:
	@test -n "$(TRITON_IMAGE)" -a -n "$(TRITON_SDK_DIGEST)" || { echo "make perf-image: TRITON_IMAGE=NAME and \
	TRITON_SDK_DIGEST=sha256:... name NVIDIA's tritonserver image and the digest of $(TRITON_VERSION)-sdk"; exit 1; }
	DOCKER_BUILDKIT=1 docker build --file deploy/docker/perf_analyzer.Dockerfile --tag $(PERF_IMAGE) \
	  --build-arg TRITON_IMAGE=$(TRITON_IMAGE) --build-arg TRITON_VERSION=$(TRITON_VERSION) \
	  --build-arg TRITON_SDK_DIGEST=$(TRITON_SDK_DIGEST) .

monitoring: $(BIN)/.installed-test
	$(BIN)/python -m deploy.monitoring

capacity: $(BIN)/.installed-test
	$(BIN)/python -m benchmarks.capacity

autoscaling: capacity
	@echo "make autoscaling is the old name of make capacity; the next version drops it"

lint: $(BIN)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

models: $(HOG_MODEL) $(POSE_MODEL)

install: $(BIN)/.installed

$(HOG_MODEL): $(wildcard export/hog/*.py) export/repository.py model_repository/hog/config.pbtxt | $(BIN)/.installed
	$(BIN)/python -m export hog

# Runs each time: the model's metadata, not its date, show whether it is outdated or exported from other weights.
$(POSE_MODEL): FORCE | $(BIN)/.installed
	@$(BIN)/python -m export update-pose

au-model: $(BIN)/.installed models
	@$(BIN)/python -m export au --weights "$(AU_WEIGHTS)" --out "$(BUILT_AU_REPOSITORY)" \
	  $(if $(MODEL_REPOSITORY),--repository "$(MODEL_REPOSITORY)")

$(BIN)/.installed: requirements.txt requirements-export.txt requirements-serve.txt constraints.txt client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "make: $(PYTHON) is not Python 3.10, 3.11 or 3.12; name one with make PYTHON=python3.11"; exit 1; }
	@echo "setting up $(VENV): torch alone is 200 MB or more, this takes some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt -c constraints.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps --editable client
	@touch $@

$(BIN)/.installed-test: requirements-test.txt $(BIN)/.installed
	$(BIN)/python $(PIP_INSTALL) -r requirements-test.txt -c constraints.txt
	@touch $@

$(BIN)/.installed-docs: requirements-docs.txt $(BIN)/.installed
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make docs: Sphinx needs Python 3.11 or newer; use make docs PYTHON=python3.12 VENV=.venv-docs"; exit 1; }
	$(BIN)/python $(PIP_INSTALL) -r requirements-docs.txt -c constraints.txt
	@touch $@

# Prometheus is no Python package. If the machine lacks it, Debian's package is unpacked under build/.
$(DEBIAN)/.prometheus: tests/tools/fetch_debian_packages.sh
	@mkdir -p $(DEBIAN)
	command -v prometheus >/dev/null || tests/tools/fetch_debian_packages.sh $(DEBIAN) prometheus
	@touch $@

# Debian's kubectl is fetched even if another is installed: the tests render the manifests with every kubectl they find.
$(DEBIAN)/.kubectl: tests/tools/fetch_debian_packages.sh
	@mkdir -p $(DEBIAN)
	tests/tools/fetch_debian_packages.sh $(DEBIAN) kubernetes-client || command -v kubectl
	@touch $@

parity: $(BIN)/.installed $(PARITY_BIN)/.installed models
	PYFEAT_PYTHON=$(PARITY_BIN)/python $(BIN)/python -m benchmarks.speed.parity
	PYFEAT_PYTHON=$(PARITY_BIN)/python $(BIN)/python -m benchmarks.speed.au_parity

bench: $(BIN)/.installed $(PARITY_BIN)/.installed models
	PYFEAT_PYTHON=$(PARITY_BIN)/python $(BIN)/python -m benchmarks.speed
	$(MAKE) bench-au

# GLIBC_TUNABLES: as the servers set it (deploy/local/wheel.py).
bench-au: $(BIN)/.installed $(PARITY_BIN)/.installed models
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYFEAT_PYTHON=$(PARITY_BIN)/python $(BIN)/python -m benchmarks.speed.action_units

# Does not depend on .installed: the machine may have no package registry, and --wheels provides missing packages.
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(GPU_OPTIONS)

chaos: $(BIN)/.installed-test models
	$(BIN)/python -m tests.reliability chaos

soak: $(BIN)/.installed-test models
	$(BIN)/python -m tests.reliability soak --minutes $(SOAK_MINUTES)

# --ignore-requires-python: py-feat's metadata exclude Python 3.10 (requirements-parity.txt).
$(PARITY_BIN)/.installed: requirements-parity.txt
	$(PYTHON) -m venv $(VENV)-parity
	$(PARITY_BIN)/python $(PIP_INSTALL) -r requirements-parity.txt
	$(PARITY_BIN)/python $(PIP_INSTALL) --no-deps --ignore-requires-python py-feat==2.1.5
	@touch $@

docs: $(BIN)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -c docs -d build/doctrees . build/site
	$(BIN)/python -m docs.check_links build/site

# The old name; removed after the next version.
api-docs: docs
	@echo "make api-docs: use make docs; the client's reference is build/site/docs/api.html"

clean:
	rm -rf $(VENV) $(VENV)-parity build client/build client/src/*.egg-info $(HOG_MODEL) $(POSE_MODEL)
