"""`python -m appliance` is `verbatim`."""

from appliance.cli import main

main()
