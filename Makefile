# lora-forge: `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
role ?= witness
ARGS ?=
BENCH ?= fleet launches plan staging idle_gpu environment dataset_check cluster

# A folder of wheels (pip's variable) serves uv too; without one uv finds torch's CPU build by itself.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
ifeq ($(strip $(UV_FIND_LINKS)),)
unexport UV_FIND_LINKS
endif
UV := $(BIN)/uv
# Some images set it. Without bytecode every command, and each of its tasks, compiles the same parts of Ansible again.
unexport PYTHONDONTWRITEBYTECODE

LINTERS := lint-ansible lint-mypy lint-yaml lint-ruff lint-format lint-imports lint-github # the slowest first
# The paths that ARGS names, or else a default: make unit ARGS='tests/unit/test_placement.py -k lane'
named_or = $(if $(filter tests/%,$(ARGS)),,$(1)) $(ARGS)

.PHONY: help version setup train image rehearse-runpod plan test check docs docs-serve lint $(LINTERS) unit integration mutants e2e models molecule soak faults lock schema reference pictures clean bench

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make train role=witness ARGS='-e fresh=true'   passes options on to ansible-playbook"

version: $(VENV)/.controller ## Say which lora-forge, ansible-core and Python this is
	@$(BIN)/python module_utils/lora_forge/version.py

setup: $(VENV)/.controller ## Make the controller's environment in .venv
	@echo "ready: $(BIN)/ansible-playbook train.yml -e role=$(role)"

train: $(VENV)/.controller ## Train an agent (role=witness) on the default inventory: a rehearsal
	@PATH="$(CURDIR)/$(BIN):$$PATH" ansible-playbook train.yml -e role=$(role) $(ARGS)

rehearse-runpod: $(VENV)/.controller ## The same on a pod of a simulated RunPod (a container; as root, with podman)
	@tests/system-packages.sh
	@echo "RunPod is simulated. The pod's image is made first, where there is none yet: a minute or two."
	@mkdir -p .hosts && CONTAINERS_CONF="$(CURDIR)/tests/hosts/containers.conf" LORA_FORGE_PODS="$(CURDIR)/.hosts/pods" \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/fakes/runpod/simulator.py run --state .hosts/runpod -- \
	  ansible-playbook -i tests/fakes/runpod/pods.yml train.yml -e role=$(role) $(ARGS)

image: $(VENV)/.controller ## Build the training image (IMAGE=name:tag BASE=image@sha256:…; ARGS go to docker or podman)
	@$(BIN)/python image/build.py $(if $(IMAGE),--name $(IMAGE)) $(if $(BASE),--base $(BASE)) $(ARGS)

plan: $(VENV)/.controller ## Show what a training would do; touches no host
	@PATH="$(CURDIR)/$(BIN):$$PATH" ansible-playbook playbooks/plan.yml -e role=$(role) $(ARGS)

test: $(VENV)/.dev ## Everything: check, integration tests, a hostile trainer, real rehearsals and faults, real hosts
	@$(MAKE) --no-print-directory check
	@tests/system-packages.sh
	@$(MAKE) --no-print-directory --jobs 2 --output-sync --keep-going integration hostile # which waits for silent hosts
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory molecule

check: $(VENV)/.dev ## Lint, unit tests and documentation, side by side: two or three minutes
	@$(MAKE) --no-print-directory --jobs 3 --output-sync --keep-going lint-ansible unit lint docs

# mkdocs --quiet would keep --strict from seeing the warnings; and what is printed on a good day is no news.
docs: $(VENV)/.dev ## Build the documentation in .site-docs/; dead links and anchors are errors
	@said=$$(NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict 2>&1) || { echo "$$said"; exit 1; }

docs-serve: $(VENV)/.dev ## Show the documentation on http://127.0.0.1:8000, anew after each change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: $(LINTERS) ## ruff, mypy, yamllint, ansible-lint (profile production), import-linter, check-jsonschema

lint-ansible: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline

lint-mypy: $(VENV)/.dev
	$(BIN)/mypy

lint-imports: $(VENV)/.dev
	PYTHONPATH=tests/imports $(BIN)/lint-imports --no-logo --no-cache

lint-yaml: $(VENV)/.dev
	$(BIN)/yamllint --strict .

lint-ruff: $(VENV)/.dev
	$(BIN)/ruff check .

lint-format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint-github: $(VENV)/.dev
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.renovate .github/renovate.json

unit: $(VENV)/.dev ## Unit tests: no host, no training, no process that lasts; ARGS go to pytest
	$(BIN)/pytest -q --numprocesses 2 $(call named_or,tests/unit)

integration: $(VENV)/.dev ## The same with real processes, sockets and clients, and real Ansible; ARGS go to pytest
	@tests/system-packages.sh
	$(BIN)/pytest -q --numprocesses 4 --dist loadgroup --durations 12 $(call named_or,tests/integration -m "not soak")

hostile: $(VENV)/.dev ## A hostile trainer against real playbooks: what it answers, serves, names and keeps silent about; ARGS go to pytest
	@tests/system-packages.sh
	$(BIN)/pytest -q --numprocesses 5 --dist loadscope --no-loadscope-reorder --durations 12 $(call named_or,tests/hostile)

mutants: $(VENV)/.dev ## Mutation testing of what decides (slow, not part of test); MODULE=planning/recipe for one, ARGS=--show for survivors
	@$(BIN)/python tests/mutants.py $(MODULE) $(ARGS)

e2e: $(VENV)/.dev ## Real rehearsals with real Axolotl, and faults; ARGS go to pytest
	@tests/system-packages.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -q --numprocesses 5 --dist loadgroup --durations 20 $(call named_or,tests/e2e -m "not soak and not models")

models: $(VENV)/.dev ## Every family of base models, trained by real Axolotl on the CPU; writes the table of docs/base-models.md
	LORA_FORGE_MODELS=1 OMP_NUM_THREADS=1 $(BIN)/pytest -q --durations 5 tests/e2e/test_base_models.py $(ARGS)

# Side by side in two halves, each with hosts of its own: a scenario has one core waiting most of the time. The training
# image, of 8 GB, is for make soak.
SOAKED := training-image
SCENARIOS := $(filter-out default $(SOAKED),$(notdir $(patsubst %/molecule.yml,%,$(wildcard tests/molecule/*/molecule.yml))))
HALF := newcomer systemd gate
empty :=
joined = molecule-$(subst $(empty) $(empty),+,$(strip $(1)))

molecule: $(VENV)/.dev ## Real hosts: systemd, a pod, users without root, faults of a GPU; needs podman
	@tests/system-packages.sh
	@$(MAKE) --no-print-directory --jobs 2 --output-sync --keep-going \
	  $(if $(SCENARIO),$(call joined,$(SCENARIO)),$(call joined,$(filter-out $(HALF),$(SCENARIOS))) $(call joined,$(HALF)))

molecule-%: export PATH := $(CURDIR)/$(BIN):$(PATH)
molecule-%: export MOLECULE_GLOB := tests/molecule/*/molecule.yml
molecule-%: $(VENV)/.dev
	$(BIN)/python tests/sandbox.py env ANSIBLE_CONFIG="$(CURDIR)/ansible.cfg" molecule -c tests/molecule/config.yml test $(addprefix --scenario-name ,$(subst +, ,$*)) --report

soak: $(VENV)/.dev ## Long faults and many kills, which test leaves out, beside four busy loops, and the training image; TIMES, LOOPS
	@tests/system-packages.sh
	@TIMES=$(TIMES) LOOPS=$(LOOPS) $(BIN)/python tests/sandbox.py tests/soak.sh $(ARGS)
	@$(if $(ARGS),,$(MAKE) --no-print-directory molecule SCENARIO='$(SOAKED)')

bench: $(VENV)/.dev ## Measure the control plane (an hour or so; as root, with podman); BENCH=fleet ARGS='--hosts 5' for one
	@tests/system-packages.sh
	@for one in $(BENCH); do PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/$$one.py $(ARGS); done

faults: ## The tests that note what they saw of a fault, and docs/faults.md written from it; ARGS name some of them
	@for folder in $(if $(ARGS),,e2e integration hostile unit); do \
	  LORA_FORGE_FAULTS=docs/faults.md $(MAKE) --no-print-directory $$folder ARGS=tests/$$folder; done
	@$(if $(ARGS),LORA_FORGE_FAULTS=docs/faults.md $(BIN)/pytest -q $(ARGS))

# The first three are spelt as the update bot reads them in the heads of the locks (.github/renovate.json).
lock: | $(VENV)/bin/python ## Make requirements/*.txt anew from the .in files
	$(UV) pip compile -q --universal --generate-hashes --python-version=3.11 requirements/controller.in --output-file=requirements/controller.txt $(ARGS)
	$(UV) pip compile -q --universal --generate-hashes --python-version=3.11 --constraint=requirements/controller.txt requirements/uv.in --output-file=requirements/uv.txt $(ARGS)
	$(UV) pip compile -q --universal --generate-hashes --python-version=3.11 requirements/dev.in --output-file=requirements/dev.txt $(ARGS)
	env -u UV_FIND_LINKS $(UV) pip compile -q --universal --generate-hashes --python-version 3.12 --override requirements/overrides.txt requirements/trainer-cuda.in -o requirements/trainer-cuda.txt $(ARGS)
	$(BIN)/python requirements/make_cpu_lock.py requirements/trainer-cuda.txt requirements/trainer-cpu.in >requirements/trainer-cpu.txt.new
	mv requirements/trainer-cpu.txt.new requirements/trainer-cpu.txt
	$(UV) pip compile -q --universal --generate-hashes --python-version 3.12 requirements/hub.in -o requirements/hub.txt $(ARGS)

schema: $(VENV)/.controller ## Make configs/schema.json anew, in the trainer's environment
	@PATH="$(CURDIR)/$(BIN):$$PATH" ansible-playbook playbooks/provision.yml -e role=$(role) -e run_all_wanted=true
	AXOLOTL_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 .trainer/env/trainer-cpu-$$(sha256sum requirements/trainer-cpu.txt | cut -c1-16)/bin/python configs/make_schema.py >configs/schema.json.new
	mv configs/schema.json.new configs/schema.json

pictures: $(VENV)/.dev ## Take the terminal's pictures in docs/images anew; in a checkout without .trainer, as it trains
	@$(BIN)/python docs/make_pictures.py

reference: $(VENV)/.controller ## Make docs/reference anew, from modules, actions, roles and playbooks
	@$(BIN)/python docs/make_reference.py

clean: ## Remove environments and caches; output/ stays
	rm -rf $(VENV) .trainer .hosts .site-docs .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 14) else "lora-forge needs Python 3.11 to 3.14, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 …" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Python's venv module is missing; installing the package python3-venv"; \
	    apt-get update -qq && apt-get install -y -qq python3-venv; \
	  else echo "Python's venv module is missing. Install it: sudo apt-get install python3-venv"; exit 1; fi; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.controller: requirements/controller.txt requirements/uv.txt | $(VENV)/bin/python
	@echo "setting up the controller in $(VENV) …"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements/controller.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.controller
	@echo "adding the test tools …"
	@$(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@
