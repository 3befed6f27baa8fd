"""`python -m fewstep.cli`, for `accelerate launch -m`."""

from . import main

main()
