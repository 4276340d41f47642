# make reliability    what the project promises of its reliability, measured in full (tests/reliability); can be stopped and
#                     goes on; figures in outputs/reliability/reliability.json
# make lowest         the lowest versions that pyproject.toml states, in an environment of their own, with a part of the suite;
#                     needs the network; outputs/reliability/lowest.json. TORCH=2.13.0 takes that torch in place of the lowest
# make audit          known vulnerabilities of what constraints.txt pins; needs the network; outputs/reliability/audit.json
PYTHON ?= python

.PHONY: reliability reliability-quick lowest audit
reliability:
	$(PYTHON) -m tests.reliability

reliability-quick:
	$(PYTHON) -m tests.reliability --quick

lowest:
	$(PYTHON) tests/reliability/lowest.py $(if $(TORCH),--torch $(TORCH))

audit:
	$(PYTHON) tests/reliability/audit.py
