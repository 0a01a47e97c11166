#!/bin/sh
# The quick checks, when a dev container was created. A failed one shows its remedy and keeps nobody from working.
timeout --signal=INT --kill-after=3 20 python -m torchdock.inside.check --quick --ops none
code=$?
case $code in
    0) ;;
    124 | 137) echo "torchdock: the quick checks were not finished after 20 s; \`python -m torchdock.inside.check --quick\` runs them in full" ;;
    *) echo "torchdock: a check failed (above, with its remedy); the environment is open all the same" ;;
esac
