# make reliability    what the project promises of its reliability, measured in full (tests/reliability); can be stopped and
#                     goes on; figures in outputs/reliability/reliability.json
PYTHON ?= python

.PHONY: reliability reliability-quick
reliability:
	$(PYTHON) -m tests.reliability

reliability-quick:
	$(PYTHON) -m tests.reliability --quick
