# `make help` lists the targets. Everything runs in .venv, which `make setup` makes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
EXTRAS ?= dev,docs,data,sweep,nir,allen
PEERS_VENV ?= .venv-peers# the other libraries need a newer numpy than allen
NIR_PEERS ?= .venv-nir-peers# one environment per simulator
OUTPUTS ?= outputs
# Tables that the figures are drawn from; RESULTS=outputs/tables for your own.
RESULTS ?= docs/results
# The run whose neurons the report shows.
RUN ?= $(wildcard $(OUTPUTS)/demo/default/seed=0)
.DEFAULT_GOAL := help
.NOTPARALLEL: # targets share an environment
.PHONY: help setup setup-locked lock demo test test-slow docs wheel-check endurance lint bench bench-check gpu-check \
	nir-peers data-nmnist data-shd data-ephys fig-classification fig-surrogates fig-detach fig-neurons fig-recordings fig-speed fig-tradeoff \
	figures report

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) \
	else "needs Python 3.11 to 3.13, as in: make PYTHON=python3.12 demo")'

setup: $(VENV)/.installed-$(or $(EXTRAS),base) ## make .venv and install blockspike with its extras

$(VENV)/.installed-%: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(if $(filter-out base,$*),[$*])'
	@touch '$@'

setup-locked: ## make .venv with the exact versions of requirements.lock, hashes verified
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch '$(VENV)/.installed-$(EXTRAS)'

lock: ## update requirements.lock to the newest versions, for every Python and system
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lock/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes $(addprefix --extra ,dev docs data sweep nir) --no-header -o requirements.lock

demo: $(or $(wildcard $(VENV)/.installed-*),$(VENV)/.installed-base) ## train on the shipped N-MNIST recordings (≤ 5 min), test and draw
	$(BIN)/blockspike train experiment=demo output_dir=$(OUTPUTS)
	$(BIN)/blockspike evaluate $(OUTPUTS)/demo/default/seed=0
	$(BIN)/blockspike plot run $(OUTPUTS)/demo/default/seed=0

test: setup ## the tests to run before a commit (ten minutes on two cores, no network)
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile $(TESTS)

test-slow: setup ## all other tests: kills, launchers, pages, browser, whole grids (a quarter of an hour)
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(TESTS)

docs: setup ## build the site in OUTPUTS/site; fail at a dead link or anything loaded from elsewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(OUTPUTS)/site
	$(BIN)/python tools/check_site.py $(OUTPUTS)/site

wheel-check: setup ## run README, docs and notebooks in a new environment, from the wheel (25 min); PAGES="FILE ..."
	$(BIN)/python tools/wheel_check.py $(if $(PAGES),--page $(PAGES))

endurance: setup ## runs of 2,000 epochs, a million steps, arrays of more than 2³¹ elements (half an hour, 14 GiB)
	$(BIN)/blockspike prepare data=nmnist_sample
	$(BIN)/python tools/endurance/sizes.py
	$(BIN)/python tools/endurance/long_runs.py data

lint: setup ## check format and style with ruff, types with pyright
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: ## compare the speed of methods and other libraries (an hour; resumes after a kill)
	$(MAKE) setup VENV=$(PEERS_VENV) EXTRAS=peers
	$(PEERS_VENV)/bin/blockspike prepare data=hd_lauscher_sample
	$(PEERS_VENV)/bin/blockspike benchmark output_dir=$(OUTPUTS)

bench-check: setup ## fail if a speed ratio is below its floor (half a minute)
	$(BIN)/blockspike benchmark --check

gpu-check: setup ## on a CUDA GPU: test the GPU kernels, then time fused, standard and blocks
	$(BIN)/blockspike benchmark study=gpu device=cuda output_dir=$(OUTPUTS)

nir-peers: setup ## run NIR graphs in four simulators (4 GB); fail if docs/howto/nir.md disagrees
	$(BIN)/python tools/nir_peers.py --cache $(NIR_PEERS)

data-nmnist: setup ## download N-MNIST (1.2 GB) and prepare it
	$(BIN)/blockspike prepare data=nmnist data.download=true

data-shd: setup ## download SHD (0.2 GB) and prepare it
	$(BIN)/blockspike prepare data=shd data.download=true

data-ephys: setup ## download the Allen Cell Types recordings of the paper (Python 3.11, extra allen)
	$(BIN)/blockspike prepare data=allen data.download=true

fig-classification: setup ## Figure 4: accuracy and seconds per epoch, beside published values
	$(BIN)/blockspike plot paper classification --table $(RESULTS)/runs.csv --output-dir $(OUTPUTS)

fig-surrogates: setup ## accuracy with three surrogate gradients
	$(BIN)/blockspike plot paper surrogates --table $(RESULTS)/runs.csv --output-dir $(OUTPUTS)

fig-detach: setup ## accuracy with attached and detached spikes
	$(BIN)/blockspike plot paper detach --table $(RESULTS)/runs.csv --output-dir $(OUTPUTS)

fig-neurons: setup ## beyond the paper: accuracy against spikes for every neuron model
	$(BIN)/blockspike plot paper neurons --table $(RESULTS)/runs.csv --output-dir $(OUTPUTS)

fig-speed: setup ## the paper's figure on speed, and other libraries
	$(BIN)/blockspike plot paper speed --table $(RESULTS)/speed.csv --output-dir $(OUTPUTS)

fig-tradeoff: setup ## error of spike times against cost
	$(BIN)/blockspike plot paper tradeoff --table $(RESULTS)/speed.csv --output-dir $(OUTPUTS)

fig-recordings: setup ## the paper's figure on recordings, and traces of newly fitted cells
	$(BIN)/blockspike plot paper recordings --table $(RESULTS)/runs.csv --output-dir $(OUTPUTS)
	$(BIN)/blockspike fit experiment=recovery data.n_cells=3 output_dir=$(OUTPUTS)
	$(BIN)/blockspike plot run $(OUTPUTS)/recovery/data.n_cells=3/seed=0

figures: fig-classification fig-surrogates fig-detach fig-neurons fig-speed fig-tradeoff fig-recordings ## draw all figures

report: setup ## put everything on one page, OUTPUTS/report.html; RUN=FOLDER chooses the run whose neurons it shows
	$(BIN)/blockspike report $(RUN) --output-dir $(OUTPUTS)
