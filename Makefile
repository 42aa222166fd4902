# One interpreter for all targets: PYTHON=…, or what .ci/interpreter.sh finds or makes.
PROFILE ?= standard
# Importing torch to ask its version would add a second; its metadata has it too.
NAME = -c 'import sys; from importlib.metadata import version; print(sys.executable + ", torch " + version("torch"), flush=True)'

.PHONY: help audit test check references
help:
	@echo 'make audit        audit every device found into reports/latest/ (PROFILE=quick|standard|full)'
	@echo 'make test         the whole test suite, ruff and mypy where they are installed'
	@echo 'PYTHON=…          picks the interpreter'
audit:
	@python=$$(sh .ci/interpreter.sh core) && "$$python" -m audit run --profile $(PROFILE)
test: check
	@python=$$(sh .ci/interpreter.sh test) && "$$python" $(NAME) && "$$python" -m pytest
check:
	@python=$$(sh .ci/interpreter.sh test) && sh .ci/check.sh "$$python"
