# Every target works from any path, without network after the first set-up, beside any active environment.
.DEFAULT_GOAL := help
.PHONY: help lab test test-long demo lint lessons lessons-update lock clean
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH CONDA_PREFIX
unexport PYTHONDONTWRITEBYTECODE # set in many containers: every process would compile PyTorch again

PYTHON_OF_COURSE := .venv/bin/python
WORKSPACE := $(PYTHON_OF_COURSE) -m ddpm_from_scratch.course.workspace
export PYTHON

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

lab: ## set up, copy the lessons into work/ and open JupyterLab
	@sh bootstrap.sh && $(WORKSPACE) lab

test: ## set up and run every test (about 12 minutes on 2 cores); ARGS="-k name" goes to pytest
	@started=$$(date +%s) && sh bootstrap.sh && $(PYTHON_OF_COURSE) tests/run.py --started $$started -- $(ARGS)

test-long: ## the tests too slow for `make test` (at most 60 minutes)
	@started=$$(date +%s) && sh bootstrap.sh && $(PYTHON_OF_COURSE) tests/run.py --long --started $$started -- $(ARGS)

demo: ## train for a minute, sample with DDPM and DDIM, write one picture
	@sh bootstrap.sh && $(PYTHON_OF_COURSE) -m ddpm_from_scratch.course.demo

lint: ## check style and types, count the lines of code
	@sh bootstrap.sh
	@status=0; for check in "-m ruff check ." "-m ruff format --check ." "-m mypy" tests/line_counts.py; do \
		$(PYTHON_OF_COURSE) $$check || status=1; done; exit $$status

lessons: ## generate the notebooks of lessons/ and solutions/ from their sources
	@sh bootstrap.sh && $(PYTHON_OF_COURSE) -m ddpm_from_scratch.course.build

lessons-update: ## bring changed lessons into work/, beside what you wrote
	@sh bootstrap.sh && $(WORKSPACE) update

lock: ## pin the newest packages that pyproject.toml allows (needs network)
	@sh bootstrap.sh && { echo "# Every package of the course and of its tests, pinned with hashes. Made by: make lock"; \
		$(PYTHON_OF_COURSE) -m uv pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-annotate \
		--no-header --extra test pyproject.toml; } > .venv/new.lock && cp .venv/new.lock requirements.lock

clean: ## remove the environment and caches; work/ stays
	rm -rf .venv test-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
