# `make help` lists what there is. Everything runs in .venv, made by `make setup`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
EXTRAS ?= dev,docs,data,sweep,nir,allen
PEERS_VENV ?= .venv-peers# the other libraries want a newer numpy than allen
NIR_PEERS ?= .venv-nir-peers# an environment for each simulator
OUTPUTS ?= outputs
SEED ?= 0
# tables that the figures are drawn from: those kept here, or your own with RESULTS=outputs/tables
RESULTS ?= docs/results
# the run whose neurons the report shows
RUN ?= $(wildcard $(OUTPUTS)/demo/default/seed=0)
FAULT_SEED ?= 0
# PyTorch's waiting threads spin for milliseconds otherwise, on a core that others want.
export GOMP_SPINCOUNT ?= 3000
.DEFAULT_GOAL := help
.PHONY: help setup setup-locked lock demo test docs wheel-check faults endurance lint bench bench-check bench-dynamics bench-fit gpu-check \
	nir-peers data-nmnist data-shd data-ephys fig-classification fig-surrogates fig-detach fig-neurons fig-recordings fig-speed fig-tradeoff \
	figures report

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/.installed-$(EXTRAS) ## make .venv and install blockspike with its extras

$(VENV)/.installed-$(EXTRAS): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch '$@'

setup-locked: ## make .venv with the very versions of requirements.lock, their hashes verified
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch '$(VENV)/.installed-$(EXTRAS)'

lock: ## refresh requirements.lock: the newest versions, for every Python and system
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lock/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes $(addprefix --extra ,dev docs data sweep nir) --no-header -o requirements.lock

demo: setup ## train on the shipped real N-MNIST recordings (≤ 5 min); accuracy and pictures
	$(BIN)/blockspike train experiment=demo output_dir=$(OUTPUTS)
	$(BIN)/blockspike evaluate run=$(OUTPUTS)/demo/default/seed=0
	$(BIN)/blockspike figures run=$(OUTPUTS)/demo/default/seed=0

test: setup ## all tests, no network
	$(BIN)/python -m pytest $(TESTS)

docs: setup ## build the site strictly into OUTPUTS/site; no dead link, nothing from other servers
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(OUTPUTS)/site
	$(BIN)/python tools/check_site.py $(OUTPUTS)/site

wheel-check: setup ## install the wheel in a fresh environment and run what README and docs print (10 min)
	$(BIN)/python tools/wheel_check.py

endurance: setup ## runs of 2,000 epochs, a million steps, arrays of over 2³¹ elements (half an hour, 14 GiB)
	$(BIN)/blockspike prepare data=nmnist_sample
	$(BIN)/python tests/endurance/sizes.py
	$(BIN)/python tests/endurance/long_runs.py data

fuzz: setup ## a million broken inputs into all that reads (an hour and a half); SEED=0
	$(BIN)/python tests/faults/fuzz.py all --seed $(SEED)

lint: setup ## format and lint with ruff, types with pyright
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

faults: setup ## inject ≥ 200 faults into all commands (25 min); FAULT_SEED=0 chooses them
	FAULT_SEED=$(FAULT_SEED) $(BIN)/python tests/faults/faults.py

bench: ## speed of methods and other libraries side by side (an hour; killed, it goes on)
	$(MAKE) setup VENV=$(PEERS_VENV) EXTRAS=peers
	$(PEERS_VENV)/bin/blockspike benchmark output_dir=$(OUTPUTS)

bench-check: setup ## fails if a ratio of speed has fallen under its floor (half a minute)
	$(BIN)/blockspike benchmark --check

bench-dynamics: setup ## ratios of the neurons alone, without synapses, and what we claim of them
	$(BIN)/python -m blockspike.benchmark.dynamics
	$(BIN)/python -m blockspike.benchmark.models

bench-fit: setup ## seconds to fit 146 cells, and the ratio to the standard loop
	$(BIN)/python -m blockspike.benchmark.fitting

gpu-check: setup ## on a CUDA GPU: test the GPU kernels, then time fused, standard and blocks
	$(BIN)/python -m blockspike.benchmark.gpu_check

nir-peers: setup ## run NIR graphs in four simulators (4 GB); fails where docs/howto/nir.md says otherwise
	$(BIN)/python tools/nir_peers.py --cache $(NIR_PEERS)

data-nmnist: setup ## download N-MNIST (1.2 GB) and prepare it
	$(BIN)/blockspike prepare data=nmnist data.download=true

data-shd: setup ## download SHD (0.2 GB) and prepare it
	$(BIN)/blockspike prepare data=shd data.download=true

data-ephys: setup ## download the Allen Cell Types recordings of the paper (Python 3.11, extra allen)
	$(BIN)/blockspike prepare data=allen data.download=true

fig-classification: setup ## Figure 4: accuracy and seconds an epoch, published values beside
	$(BIN)/blockspike figures figure=classification table=$(RESULTS)/runs.csv output_dir=$(OUTPUTS)

fig-surrogates: setup ## accuracy with three surrogate gradients
	$(BIN)/blockspike figures figure=surrogates table=$(RESULTS)/runs.csv output_dir=$(OUTPUTS)

fig-detach: setup ## accuracy with spikes attached and detached
	$(BIN)/blockspike figures figure=detach table=$(RESULTS)/runs.csv output_dir=$(OUTPUTS)

fig-neurons: setup ## beyond the paper: accuracy against spikes, every neuron model
	$(BIN)/blockspike figures figure=neurons table=$(RESULTS)/runs.csv output_dir=$(OUTPUTS)

fig-speed: setup ## the figure on speed, and other libraries
	$(BIN)/blockspike figures figure=speed table=$(RESULTS)/speed.csv output_dir=$(OUTPUTS)

fig-tradeoff: setup ## error of spike times against cost
	$(BIN)/blockspike figures figure=tradeoff table=$(RESULTS)/speed.csv output_dir=$(OUTPUTS)

fig-recordings: setup ## the figure on recordings, and traces of cells fitted on the spot
	$(BIN)/blockspike figures figure=recordings table=$(RESULTS)/runs.csv output_dir=$(OUTPUTS)
	$(BIN)/blockspike train experiment=recovery data.n_cells=3 output_dir=$(OUTPUTS)
	$(BIN)/blockspike figures run=$(OUTPUTS)/recovery/data.n_cells=3/seed=0

figures: fig-classification fig-surrogates fig-detach fig-neurons fig-speed fig-tradeoff fig-recordings ## all

report: setup ## all there is on one page, OUTPUTS/report.html; RUN=FOLDER shows its neurons
	$(BIN)/blockspike report output_dir=$(OUTPUTS) $(addprefix run=,$(RUN))
