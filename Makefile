# One interpreter for all targets: PYTHON=…, or what .ci/interpreter.sh finds or makes.
PROFILE ?= standard
WITH = python=$$(sh .ci/interpreter.sh $(1)) && "$$python" -c 'import sys, torch; print(sys.executable + ", torch " + torch.__version__, flush=True)' && "$$python"

.PHONY: help audit test check references
help:
	@echo 'make audit        audit every device found into reports/latest/ (PROFILE=quick|standard|full)'
	@echo 'make test         the whole test suite, ruff and mypy where they are installed'
	@echo 'PYTHON=…          picks the interpreter'
audit:
	@$(call WITH,core) -m audit run --profile $(PROFILE)
test: check
	@$(call WITH,test) -m pytest
check:
	@python=$$(sh .ci/interpreter.sh test) && sh .ci/check.sh "$$python"
