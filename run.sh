#!/bin/bash
cd /tmp/wt4 && PYTHONPATH=/tmp/wt4 timeout 550 /work/main/.venv/bin/python -m pytest "$@"
