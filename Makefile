# One interpreter for every target: PYTHON=…, or what .ci/interpreter.sh finds or makes.
PROFILE ?= standard
pick = python=$$(sh .ci/interpreter.sh $(1))
audit = "$$python" -m audit run --profile "$(PROFILE)"
# Test files side by side, where pytest-xdist is installed, with a thread each: two would wait for a core.
tests = OMP_NUM_THREADS=1 "$$python" -m pytest $$("$$python" -c 'import xdist' 2>/dev/null && echo --numprocesses auto --dist loadfile)
bench = mkdir -p reports && "$$python" -m pytest tests/benchmarks --benchmark-json=reports/bench.json

.PHONY: help audit numbers test test-oldest test-slow test-browser bench regress baseline references exhaustive check
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile
audit: ## audit every device found into reports/latest/ (PROFILE=quick|standard|full)
	@$(call pick,core) && $(audit)
numbers: ## write the figures that README and docs quote anew, from reports/latest (a standard audit)
	@$(call pick,core) && "$$python" docs/renew.py reports/latest
test: ## the whole test suite, with ruff and mypy where they are installed
	@$(call pick,test) && sh .ci/check.sh "$$python" && $(tests)
test-oldest: ## the test suite with the oldest supported packages beside the torch there is
	@$(call pick,oldest) && "$$python" -m pytest
test-slow: ## the tests that take minutes
	@$(call pick,test) && "$$python" -m pytest -m slow
test-browser: ## the report in Chromium, the tables in polars, DuckDB and R
	@$(call pick,test) && sh .ci/browser.sh "$$python"
# New findings, and benchmarks that fail, do not keep the comparison from being made.
regress: ## audit and bench, then compare with this machine's baseline
	@$(call pick,test) && { $(audit) || [ $$? -eq 1 ]; } && { $(bench) || [ $$? -eq 1 ]; } && "$$python" -m audit regress
baseline: ## audit and bench, and record both as this machine's baseline (REASON="…")
	@printf %s "$$REASON" | grep -q '[^[:space:]]' || { echo 'a baseline needs a reason: make baseline REASON="…"' >&2; exit 2; }
	@$(call pick,test) && $(audit) && $(bench) && "$$python" -m audit baseline --reason "$$REASON"
bench: ## speed and accuracy of every path side by side (BENCH=short|full); the reference engine against others
	@$(call pick,test) && $(bench)
references: ## compute the committed references anew, and check them in a second way
	@$(call pick,core) && "$$python" -m audit references build && "$$python" -m audit references verify
exhaustive: ## the largest errors there are on two classes of a 16-bit format: more than an hour, resumed where it ended
	@$(call pick,core) && "$$python" -m audit exhaustive
check: ## ruff and mypy alone
	@$(call pick,test) && sh .ci/check.sh "$$python"
