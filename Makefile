# One interpreter for every target: PYTHON=…, or what .ci/interpreter.sh finds or makes.
PROFILE ?= standard
pick = python=$$(sh .ci/interpreter.sh $(1))

.PHONY: help audit test test-slow test-browser bench regress baseline references check
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile
audit: ## audit every device found into reports/latest/ (PROFILE=quick|standard|full)
	@$(call pick,core) && "$$python" -m audit run --profile "$(PROFILE)"
test: ## the whole test suite, with ruff and mypy where they are installed
	@$(call pick,test) && sh .ci/check.sh "$$python" && "$$python" -m pytest
test-slow: ## the tests that take minutes
	@$(call pick,test) && "$$python" -m pytest -m slow
test-browser: ## the report in Chromium, the tables in polars, DuckDB and R
	@$(call pick,test) && sh .ci/browser.sh "$$python"
regress: ## audit, then compare with this machine's baseline
	@$(call pick,core) && "$$python" -m audit run --profile "$(PROFILE)" && "$$python" -m audit regress
baseline: ## audit, and record the result as this machine's baseline (REASON="…")
	@test -n "$(REASON)" || { echo 'a baseline needs a reason: make baseline REASON="…"' >&2; exit 2; }
	@$(call pick,core) && "$$python" -m audit run --profile "$(PROFILE)" && "$$python" -m audit baseline --reason "$(REASON)"
bench: ## speed and accuracy of every path side by side; the reference engine against others
	@$(call pick,test) && mkdir -p reports && "$$python" -m pytest tests/benchmarks -o python_files="bench_*.py" -o python_functions="bench_*" --benchmark-columns=min,median,stddev,rounds --benchmark-json=reports/bench.json
references: ## compute the committed references anew, and check them in a second way
	@$(call pick,core) && "$$python" -m audit references build && "$$python" -m audit references verify
check: ## ruff and mypy alone
	@$(call pick,test) && sh .ci/check.sh "$$python"
