# One command each. `make demo` and `make test` install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FLOORS := .venv-floors
# Deep tests that measure time; nothing else may run beside them.
MEASURED := tests/relay/test_event_loop.py tests/relay/test_hostile_campaign.py
SOURCES := proto/zrelay shared encoder_service vision_service generator_service client demo
TYPED := $(SOURCES) tests benchmarks docs/_generators

.PHONY: help demo test test-deep test-floors hostile tokenizer node-modules check lint docs reference proto types release-check bench bench-engine bench-fleet bench-scheduling bench-security soak up down demo-model demo-eval clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; torch is the bulk of it)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(INSTALLED)  ## start the services, generate one image, print its path
	@$(BIN)/zrelay demo --output out/demo.png

test: $(INSTALLED)  ## run all tests except the deep ones
	$(BIN)/python -m pytest -n 4 --dist loadfile

test-deep: $(INSTALLED)  ## property tests with many examples, kill tests in full, benchmarks in miniature
	$(BIN)/python -m pytest -m deep --hypothesis-profile deep -n 3 --dist loadfile $(addprefix --ignore ,$(MEASURED))
	$(BIN)/python -m pytest -m deep --hypothesis-profile deep $(MEASURED)

$(FLOORS)/.installed: $(INSTALLED) tests/floors.txt tests/helpers/floors.py
	@$(BIN)/python -m tests.helpers.floors $(FLOORS)
	@touch $@

test-floors: $(FLOORS)/.installed  ## hostile tests with the oldest libraries that pyproject.toml allows
	$(FLOORS)/bin/python -m pytest -m 'hostile and not deep' -n 2 --dist loadfile

tokenizer: $(INSTALLED)  ## download the tokenizer of Qwen3 into out/qwen3-tokenizer, for tests (needs npm)
	$(BIN)/python -m tests.helpers.qwen3_tokenizer

node-modules: $(INSTALLED)  ## install the libraries of the client in Node into out/node-client, for tests (needs npm)
	$(BIN)/python -m tests.helpers.node_modules

check: lint  ## run linters, type checker, contract checks
	$(BIN)/python -m pytest -q -m "" -n 2 --dist loadfile tests/contract

lint: $(INSTALLED)  ## run linters and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb

docs: $(INSTALLED)  ## build the documentation as a website in out/site; a broken link is an error
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet
	@echo out/site/index.html

reference: $(INSTALLED)  ## write the generated pages of the reference: contract, command line, configuration, errors, Python
	$(BIN)/python docs/_generators

types: $(INSTALLED)  ## mypy alone; seconds when little has changed
	$(BIN)/mypy $(TYPED)

# ENVIRONMENTS=base,encoder checks these alone. The complete check downloads and unpacks torch four times.
release-check: $(INSTALLED)  ## build sdist and wheel, install and start each extra alone
	$(BIN)/python tests/contract/distribution.py $(if $(ENVIRONMENTS),--environments $(ENVIRONMENTS))

proto:  ## generate the Python code of the contract, with the oldest supported tools
	proto/generate.sh

bench: $(INSTALLED)  ## compare the services with diffusers
	$(BIN)/python benchmarks/relay.py

bench-engine: $(INSTALLED)  ## the step engine's measurements, on the demo and on a mid-size random checkpoint (half an hour)
	$(BIN)/python benchmarks/engine.py

bench-fleet: $(INSTALLED)  ## 1 to 32 generators with simulated devices behind one client, 10,000 jobs queued (half an hour)
	$(BIN)/python benchmarks/fleet.py

bench-scheduling: $(INSTALLED)  ## waiting times under the scheduler and under other orders, in simulated time (seconds)
	$(BIN)/python benchmarks/scheduling_simulation.py

bench-security: $(INSTALLED)  ## what TLS costs, handshakes and refused calls a second (a minute)
	$(BIN)/python benchmarks/security.py

soak: $(INSTALLED)  ## mixed load with cancelled jobs and lost connections for 15 minutes; fails where memory, files or tasks leak
	$(BIN)/python benchmarks/soak.py --minutes 15

hostile: $(INSTALLED)  ## attacks on real services for 10 minutes; fails where a promise is broken, and says which
	$(BIN)/python benchmarks/hostile.py --minutes 10

up: $(INSTALLED)  ## the services on this machine, with the demo checkpoint
	$(BIN)/zrelay up

down: $(INSTALLED)  ## end what `zrelay up --detach` started
	$(BIN)/zrelay down

demo-model: $(INSTALLED)  ## train the demo checkpoint from nothing (about two hours on two cores, in resumable stages)
	$(BIN)/python -m zrelay_demo.recipe
	@echo 'It is in out/demo-model/checkpoint; `$(BIN)/python -m zrelay_demo.recipe --stage install` puts it into the package.'

demo-eval: $(INSTALLED)  ## its accuracy on fresh held-out prompts: frames, free wordings, guidance (1,000 prompts each)
	$(BIN)/python -m zrelay_demo.evaluate

clean:  ## remove what these targets made, except the trained model's work folder
	rm -rf $(VENV) $(FLOORS) .venv-proto build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis out/demo.png
