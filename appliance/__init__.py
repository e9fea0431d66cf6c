"""Verbatim's appliance: records what agents say on the network before it lets it pass.

Data flows one way through the folders, and a folder never imports one further down the line:

    wire, ingest -> journal -> session -> dissect -> store -> api

`journal`, `model`, `errors`, `config` and `dissect` are leaves that several stages share. Nothing in
this package forwards a byte that has not been recorded.
"""

__version__ = "0.1.0"
