"""The store: rows in, exactly once; sessions, messages, bytes and search results out. ClickHouse, embedded or a server.

    open_store ─► Store ─► a ClickHouse server            (store.url)
                       ─► `verbatim store` of the folder  (service: chDB behind ClickHouse's HTTP interface)
                       ─► chDB in this process            (the folder alone, for the command line)

Evidence is only ever inserted. Readers cannot write, writers can insert into the known tables and nothing else. Every
value that comes from outside reaches SQL as a parameter.
"""
