# make sample: a clip from the default checkpoint.  make test: the tests.  Both build .venv first, once.
PYTHON ?= python3
# The words for pip that choose the build of torch in a new environment: make sample TORCH=torch==2.13.0, or for the
# CPU build, which takes a quarter of the disk on Linux: make sample TORCH="torch --index-url https://…/cpu" (README.md)
TORCH ?=
export TORCH
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# The clip of `make sample`: by default of the checkpoint's own example, with its own settings (its zs2.json).
PROMPT ?=
# The options of `make app`.
APP ?=
# Which tests of the report and the app `make test-page` runs: .ci/run takes some.
PAGE ?= page
SAMPLE ?= --seed 0 --out out/sample.gif --overwrite

TRAINING := $(if $(QUICK),--quick) $(if $(DEVICE),--device $(DEVICE)) $(if $(MINUTES),--minutes $(MINUTES))

# What makes the study of `make bench-study` smaller, of a real model.
STUDY := $(if $(MODEL),--model $(MODEL),--seeds 0 --steps 10)

# The starts of `make bench-speed`; with FULL=1 also from a single file, and --fast at SD 1.5's size.
STARTS := "zs2 default" "diffusers default" "zs2 folder" "diffusers folder"

# The fixtures of make.py that depend on the default checkpoint's weights.
OF_DEFAULT := attention_checkpoint checkpoint_parts checkpoint_images checkpoint_clip text2video_zero

.PHONY: sample app weights test test-long test-slow fuzz test-cuda test-reference test-page page-picture lint bench bench-study bench-speed bench-steps bench-tried bench-length bench-findings fixtures fixtures-default clean help

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

sample: $(READY)  ## make a clip: out/sample.gif, its contact sheet and its settings
	@$(RUN) -m zs2.sample $(if $(PROMPT),"$(PROMPT)") $(SAMPLE)

app: $(READY)  ## open a page to play with, in the browser (APP="--port 8000": its options)
	@$(RUN) -m pip install -q -e ".[app]"
	@$(RUN) -m zs2.app $(APP)

weights: $(READY)  ## train a checkpoint: out/recipe (QUICK=1: in minutes: out/recipe-quick; DEVICE=cuda; MINUTES=10)
	@$(RUN) -m pip install -q -e ".[recipe]"
	@$(RUN) -m weights.recipe train $(TRAINING)
	@$(RUN) -m weights.recipe judge $(TRAINING)

test: $(READY)  ## run the everyday tests, in two processes: three to five minutes on two cores
	@$(RUN) tests/run.py

test-long: $(READY)  ## run the tests that take seconds each: two to four minutes more; CI runs them, too
	@$(RUN) tests/run.py -m "long and not slow"

test-slow: $(READY)  ## run the tests that take minutes each
	@$(RUN) -m pip install -q -e ".[notebook]"
	@$(RUN) -m pytest -m slow

test-cuda: $(if $(filter $(VENV)/%,$(RUN)),$(READY))  ## the tests that need a GPU (RUN=python3: with its torch, no .venv)
	@$(RUN) -m pytest -m cuda tests/test_cuda.py

test-reference: $(READY)  ## compare live with diffusers and transformers, at full size (installs both)
	@$(RUN) -m pip install -q -e ".[reference]"
	@$(RUN) -m pip install -q --no-deps open_clip_torch  # only its vocabulary file is read
	@$(RUN) -m pytest -m reference

fuzz: $(READY)  ## read 2,000 damaged files of each kind, with another seed in each run: prints totals and faults
	@$(RUN) tests/fuzz

test-page: $(READY)  ## test the report and the app in a real browser: needs Chromium (Debian's package chromium)
	@$(RUN) -m pip install -q -e ".[page,app]"
	@$(RUN) tests/run.py -m "$(PAGE)" tests/app tests/reporting

page-picture: $(READY)  ## make the picture of the app in docs/guide.md again: docs/page.png (needs Chromium)
	@$(RUN) -m pip install -q -e ".[page,app]"
	@$(RUN) -m pytest -m page tests/app/test_app_page.py -k wall
	@$(RUN) -c "from PIL import Image; wall = Image.open('out/page/wall.png').convert('RGB'); \
	wall.quantize(128).save('docs/page.png', optimize=True)"

lint: $(READY)  ## check format, style and types
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy --explicit-package-bases zs2 weights

bench: bench-study bench-speed bench-steps  ## all three of the following

bench-study: $(READY)  ## the ablation study and its report: out/bench-study (MODEL=sd15: smaller, of a real model)
	@$(RUN) -m zs2.ablate --preset paper lambda mu --lam 0.1 $(STUDY) --out out/bench-study
	@$(RUN) -m zs2.report out/bench-study

bench-speed: $(READY)  ## time zs2 against diffusers: a UNet step, attention, a clip, a cold start (installs diffusers)
	@$(RUN) -m pip install -q -e ".[bench]"
	@$(RUN) benchmarks/unet_step.py $(if $(FULL),--full,--attn sa cfa tma) --json out/bench/unet_step.json
	@$(RUN) benchmarks/attention.py --json out/bench/attention.json
	@$(RUN) benchmarks/clip.py $(if $(FULL),,--models default sd15 sd15-bfloat16) --json out/bench/clip.json
	@$(RUN) benchmarks/cold_start.py $(if $(FULL),,--ways $(STARTS)) --json out/bench/cold_start.json

bench-steps: $(READY)  ## what fewer steps, DPM-Solver++, guidance in an interval, DeepCache and half precision change
	@$(RUN) benchmarks/fewer_steps.py --json out/bench/fewer_steps.json
	@$(RUN) benchmarks/precision.py --json out/bench/precision.json

bench-tried: $(READY)  ## what could make a step faster and was tried; where the time of a clip goes
	@$(RUN) benchmarks/tried.py --json out/bench/tried.json
	@$(RUN) benchmarks/parts.py --json out/bench/parts.json

bench-length: $(READY)  ## what a long clip costs: memory, speed, and scaling over processes
	@$(RUN) benchmarks/length.py memory default
	@$(RUN) benchmarks/length.py memory sd15
	@$(RUN) benchmarks/length.py speed
	@$(RUN) benchmarks/scaling.py

STUDIES := reproduce motion-closed motion-open frequencies levels steps seeds edges edit
CUPCAKE := "cupcake on a pink background" --seed 3 --steps 10 --out out/cupcake.webp

bench-findings: $(READY)  ## the studies behind the findings, their reports, and the figures of docs/questions.md: hours
	@$(RUN) -m pip install -q -e ".[recipe]"
	@test -e out/ring.webp || $(RUN) benchmarks/guided.py outline --thing "soccer ball" --out out/ring.webp
	@test -e out/cupcake.webp || $(RUN) -m zs2.sample $(CUPCAKE)
	@for study in $(STUDIES); do $(RUN) -m zs2.ablate benchmarks/studies/$$study.toml || exit; done
	@for study in $(filter-out steps seeds,$(STUDIES)); do $(RUN) -m zs2.report out/$$study || exit; done
	@$(RUN) benchmarks/questions.py drift --each 2 --csv docs/data/drift.csv --plot docs/drift.svg --sheet docs/drift.webp
	@$(RUN) benchmarks/questions.py drift --frames 1024 --each 1 --variants tma cfa first-previous --out out/drift-1024 \
	--csv docs/data/drift-1024.csv --sheet docs/drift-1024.webp
	@$(RUN) benchmarks/questions.py diversity out/seeds --csv docs/data/diversity.csv
	@$(RUN) benchmarks/questions.py divergence
	@$(RUN) benchmarks/questions.py votes
	@$(RUN) benchmarks/search.py

fixtures: $(READY)  ## make the tests' reference outputs again (installs the libraries that they are from)
	@$(RUN) -m pip install -q -e ".[reference]"
	@$(RUN) tests/fixtures/make.py
	@$(RUN) tests/fixtures/make_lora.py
	@$(RUN) tests/fixtures/make_lora_kinds.py
	@$(RUN) tests/fixtures/make_metrics.py
	@$(RUN) tests/fixtures/make_loading.py
	@$(RUN) tests/fixtures/make_spacing.py
	@$(RUN) tests/fixtures/make_prompt_tokens.py
	@$(RUN) tests/fixtures/make_controlnet.py
	@$(RUN) tests/fixtures/make_guided.py

fixtures-default: $(READY)  ## only those that depend on the default checkpoint's weights, after it changed
	@$(RUN) -m pip install -q -e ".[reference]"
	@$(RUN) tests/fixtures/make.py $(OF_DEFAULT)
	@$(RUN) tests/fixtures/make_lora.py
	@$(RUN) tests/fixtures/make_metrics.py

clean:  ## remove the environment, caches and outputs
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zs2 needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	@echo "setting up $(VENV), once: about a minute, longer where torch must be downloaded (TORCH=… chooses its build)"
	@$(PYTHON) -m venv $(VENV)
	@if [ -n "$$TORCH" ] && ! [ -e $(READY) ]; then set -f; $(RUN) -m pip install $$TORCH; fi
	@$(RUN) -m pip install -e ".[dev,video,metrics]"
	@touch $(READY)
